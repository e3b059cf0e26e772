"""``compile=auto``: chooses by the length of the run."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tasks.task import Training
from workbench.compiled import compile_parts, named_blocks, what_pays

log = logging.getLogger("widefield")


class CompileWhatPays(Callback):
    """Before the first step: compile, or record as CUDA graphs, what pays in so many steps (`what_pays`)."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Training)
        networks: list[Any] = [part.network for part in pl_module.by_task().values()]
        steps = pl_module.planned_steps()[0]
        on_gpu = trainer.strategy.root_device.type == "cuda"
        how = what_pays(steps, on_gpu, trainer.world_size, all(map(named_blocks, networks)))
        gpus = "a GPU" if trainer.world_size == 1 else f"{trainer.world_size} GPUs"
        log.info("compile=auto: %s (%d steps on %s)", str(how).lower(), steps, gpus if on_gpu else "a CPU")
        compile_parts(pl_module, how, trainer.accumulate_grad_batches)
