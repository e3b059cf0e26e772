"""Draws what the model sees and how it learns into the run's `figures/` folder."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from tasks.task import Task
from workbench import figures

SHOWN = 12


class Pictures(Callback):
    """`inputs.png` (maps of the first training batch, augmented), `curves.png` and the task's own test pictures.

    Args:
        folder: where the PNG files go.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        file = self.folder / "inputs.png"
        if file.exists() or "raw" not in batch or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Task)
        devices = [pl_module.device.index or 0] if pl_module.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):  # drawing must not change what training draws
            raw, captions = pl_module.preview(batch, SHOWN)
            maps_BVCHW = pl_module.embed(raw, train=True)
        figures.draw_maps(
            maps_BVCHW.float().cpu(),
            pl_module.network.embedder.map_axes(),  # type: ignore[operator]
            captions,
            file,
            title="Training maps as the backbone sees them",
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        history = self.folder.parent / "metrics.csv"
        if trainer.is_global_zero and history.is_file():
            figures.draw_curves(history, self.folder / "curves.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if trainer.is_global_zero:
            figures.draw_test(pl_module.test_report(), self.folder)
