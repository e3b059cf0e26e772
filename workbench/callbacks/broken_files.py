"""Counts unreadable files, logs each once, and stops a run with too many of them."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tasks.datasets.batch import Batch
from tasks.datasets.errors import DataError

log = logging.getLogger("widefield")


class BrokenFiles(Callback):
    """Raise a `DataError` as soon as a fraction `most` of all files is broken.

    Args:
        most: fraction of all files (train, val and test) at which the run stops.
    """

    def __init__(self, most: float = 0.01) -> None:
        self.most = most
        self.broken: set[str] = set()

    def _look(self, trainer: Trainer, batch: Batch) -> None:
        new = [error for error in batch.failures if error not in self.broken]
        if not new:
            return
        for error in new:
            log.warning("broken file: %s", error)
        self.broken.update(new)
        data = trainer.datamodule  # type: ignore[attr-defined]
        total = sum(len(items) for items in data.splits.values())
        if len(self.broken) >= self.most * total:
            raise DataError(
                f"{len(self.broken)} of {total} files cannot be read "
                f"({self.most:.0%} or more), the first: {sorted(self.broken)[0]}"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._look(trainer, batch)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._look(trainer, batch)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._look(trainer, batch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.broken:
            log.warning("%d broken files were left out", len(self.broken))
