"""predictions.csv of a test: prediction and ground truth of every test sample."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from tasks.task import Training
from workbench.files import write_table

Rows = list[tuple[int, list[dict[str, Any]]]]  # (index in the split, rows) of each sample


class Predictions(Callback):
    """Writes `predictions.csv` after a test; for a joint run, `predictions_NAME.csv` for each task.

    Each row has the sample's file, then the task's columns (`Task.test_rows`), in the order of the split. Unreadable
    files come last, with their error.

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
        self.rows[name] += zip(batch.index.tolist(), found, strict=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, broken = _together(self.rows), _together(self.broken)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for name, member in data.by_task().items():
            lines = [
                {"path": member.splits["test"][index].name, **row}
                for index, own in sorted(rows[name], key=lambda pair: pair[0])
                for row in own
            ]
            for text in broken[name]:
                path, _, error = text.partition(": ")
                lines.append({"path": path, "error": error})
            columns = list(dict.fromkeys(key for line in lines for key in line))
            write_table(self.folder / f"predictions{f'_{name}' if name else ''}.csv", lines, columns)


def _together(own: dict[str, Any]) -> dict[str, list[Any]]:
    """Concatenated lists of all processes of a distributed run."""
    if not (dist.is_available() and dist.is_initialized()):
        return own
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return {name: [value for part in parts for value in part[name]] for name in own}
