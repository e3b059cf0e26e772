"""Plots inputs, learning curves and test results into the run's `figures/` folder."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_map

from tasks.datasets.base import DataModule
from tasks.datasets.joint import JointData
from tasks.task import Training
from workbench import figures
from workbench.files import write_findings
from workbench.provenance import only

SHOWN = 12


class Pictures(Callback):
    """Writes `inputs.png` (augmented maps of the first training batch), `samples.png` (raw samples beside their maps,
    if the embedder can draw them), `curves.png` and the task's own test figures; joint runs have a folder per task.

    Args:
        folder: folder of the PNG files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Training)
        name = pl_module.task_of(batch)
        task, folder = pl_module.by_task()[name], self.folder / name
        file = folder / "inputs.png"
        if file.exists() or not len(batch) or not trainer.is_global_zero:
            return
        devices = [pl_module.device.index or 0] if pl_module.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):  # keep the random state of training unchanged
            raw, captions = task.preview(batch, SHOWN)
            maps_BVCHW = task.embed(raw, train=True)
        embedder: Any = task.network.embedder
        maps_BVCHW = maps_BVCHW.float().cpu()
        with only(_data_of(trainer)[name].drawn):
            if embedder.draws_raw:
                raw = tree_map(lambda value: value.cpu(), raw)
                figures.draw_samples(raw, maps_BVCHW, embedder, captions, folder / "samples.png")
            figures.draw_maps(
                maps_BVCHW,
                embedder.map_axes(),
                captions,
                file,
                title="Training maps as the backbone sees them",
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        history = self.folder.parent / "metrics.csv"
        if trainer.is_global_zero and history.is_file():
            figures.draw_curves(history, self.folder / "curves.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Training)
        # Computed collectively by all processes.
        reports = {name: task.test_report() for name, task in pl_module.by_task().items()}
        if not trainer.is_global_zero:
            return
        if any(reports.values()):
            content = reports.get("", reports)
            write_findings(self.folder.parent / "test_report.json", content)
        for name, report in reports.items():
            with only(_data_of(trainer)[name].drawn):
                for kind, figure in pl_module.by_task()[name].draw_report(report).items():
                    figures.save(figure, self.folder / name / f"{kind}.png")


def _data_of(trainer: Trainer) -> dict[str, DataModule]:
    """Maps each task name of a run to its data module."""
    source: DataModule | JointData = trainer.datamodule  # type: ignore[attr-defined]
    return source.by_task()
