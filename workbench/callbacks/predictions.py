"""Predictions of a test: `predictions.csv`, with the ground truth, and the task's own files beside it."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from tasks.task import Shared, Training
from workbench.files import write_table
from workbench.shared_files import SharedFiles

# Of each sample its index in the split, its rows, and its entries in shared files.
Rows = list[tuple[int, list[dict[str, Any]], dict[str, Shared]]]


class Predictions(Callback):
    """Writes `predictions.csv` after a test; for a joint run, `predictions_NAME.csv` for each task.

    Each row has the sample's file, then the task's columns (`Task.test_rows`), in the order of the split. Unreadable
    files come last, with their error. Files that the task writes for a whole test (`Task.test_shared`), such as
    `detections.json`, are named likewise.

    Args:
        folder: output folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.rows: dict[str, Rows] = {}
        self.broken: dict[str, list[str]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Training)
        self.rows = {name: [] for name in pl_module.by_task()}
        self.broken = {name: [] for name in pl_module.by_task()}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, Training)
        name = pl_module.task_of(batch)
        self.broken[name] += batch.failures
        if outputs is None:
            return
        task = pl_module.by_task()[name]
        found = task.test_rows(batch, outputs["output"])
        shared = task.test_shared(batch, outputs["output"])
        self.rows[name] += zip(batch.index.tolist(), found, shared, strict=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, broken = _together(self.rows), _together(self.broken)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for name, member in data.by_task().items():
            items, suffix = member.splits["test"], f"_{name}" if name else ""
            lines: list[dict[str, Any]] = []
            together = SharedFiles()
            for index, own, shared in sorted(rows[name], key=lambda found: found[0]):
                lines += [{"path": items[index].name, **row} for row in own]
                together.add(items[index].name, shared)
            together.write(self.folder, member, suffix)
            for text in broken[name]:
                path, _, error = text.partition(": ")
                lines.append({"path": path, "error": error})
            columns = list(dict.fromkeys(key for line in lines for key in line))
            write_table(self.folder / f"predictions{suffix}.csv", lines, columns)


def _together(own: dict[str, Any]) -> dict[str, list[Any]]:
    """Concatenated lists of all processes of a distributed run."""
    if not (dist.is_available() and dist.is_initialized()):
        return own
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return {name: [value for part in parts for value in part[name]] for name in own}
