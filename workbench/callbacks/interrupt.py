"""A signal saves the run after the current step; a validation that takes long is left, and made again on resume."""

import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from workbench.stopping import PATIENCE, STOP, Interrupted

VALIDATION = "epoch_loop.val_loop.batch_progress"  # in a checkpoint's loops
BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class Interrupt(Callback):
    """Write `last.ckpt` after the step in which a signal arrived, then raise `Interrupted`.

    Where the step ends an epoch, its validation comes first, if it is quick. Else the checkpoint says that it is still
    to be made. What takes longer than `patience`, such as a compilation, is left without saving.

    Args:
        checkpoint_dir: where the run keeps its checkpoints.
    """

    def __init__(self, checkpoint_dir: str) -> None:
        self.last = Path(checkpoint_dir) / "last.ckpt"
        self._began: float | None = None  # the step that is made now
        self._step_s: float | None = None  # the step before; None: nothing to compare with
        self._steps = 0
        self._in_validation = False
        self._unfinished = False

    def patience(self) -> float:
        """Seconds that a step may still take: none is left halfway for being as long as the others."""
        return PATIENCE if self._began is None else max(PATIENCE, 2 * (self._step_s or 0))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.waits, STOP.patience = True, self.patience

    def _wanted(self, trainer: Trainer) -> bool:
        # One process may get the signal a step before another: all decide together.
        return bool(trainer.strategy.reduce_boolean_decision(STOP.number is not None, all=False))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._steps and self._began is not None:  # the first one is also compiled
            self._step_s = time.monotonic() - self._began
        self._steps, self._began = self._steps + 1, None
        # At an epoch's last step the validation and the epoch's own checkpoint come first, see on_train_epoch_start.
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch
        if complete and self._wanted(trainer):
            self._save(trainer)
            raise STOP.leave()

    def _save(self, trainer: Trainer) -> None:
        with STOP.writing():  # in every process: a sharded model is written by all
            trainer.save_checkpoint(self.last)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._wanted(trainer):  # the epoch that has just ended left its checkpoint
            raise STOP.leave()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.waits = False
        if self._wanted(trainer):
            raise STOP.leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        STOP.waits = False
        if isinstance(exception, Interrupted) and trainer.state.fn == "fit" and self._in_validation:
            self._unfinished = True
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_validation = not trainer.sanity_checking

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_validation = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._unfinished:  # to be made from its beginning
            progress = checkpoint["loops"]["fit_loop"][VALIDATION]
            progress["total"], progress["current"] = dict(BEGUN), dict(BEGUN)
