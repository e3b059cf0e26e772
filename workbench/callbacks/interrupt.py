"""On a signal, save the run after the current step; a long validation is aborted and repeated on resume."""

import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from workbench.stopping import PATIENCE, STOP, Interrupted

VALIDATION = "epoch_loop.val_loop.batch_progress"  # in a checkpoint's loops
BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class Interrupt(Callback):
    """Write `last.ckpt` after the step during which a signal arrived, then raise `Interrupted`.

    If the step ends an epoch, its validation runs first if it is quick; otherwise the checkpoint records that it is
    still pending. Anything longer than `patience`, such as a compilation, is aborted without saving.

    Args:
        checkpoint_dir: the run's checkpoint folder.
    """

    def __init__(self, checkpoint_dir: str) -> None:
        self.last = Path(checkpoint_dir) / "last.ckpt"
        self._began: float | None = None  # start time of the current step
        self._step_s: float | None = None  # duration of the previous step; None: not measured yet
        self._steps = 0
        self._in_validation = False
        self._unfinished = False

    def patience(self) -> float:
        """Seconds that the current step may take, at least twice the previous step's duration."""
        return PATIENCE if self._began is None else max(PATIENCE, 2 * (self._step_s or 0))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.waits, STOP.patience = True, self.patience

    def _wanted(self, trainer: Trainer) -> bool:
        # Processes may receive the signal at different steps, so they decide collectively.
        return bool(trainer.strategy.reduce_boolean_decision(STOP.number is not None, all=False))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._steps and self._began is not None:  # the first step includes compilation
            self._step_s = time.monotonic() - self._began
        self._steps, self._began = self._steps + 1, None
        # After an epoch's last step, validation and the epoch's own checkpoint come first, see on_train_epoch_start.
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch
        if complete and self._wanted(trainer):
            self._save(trainer)
            raise STOP.leave()

    def _save(self, trainer: Trainer) -> None:
        with STOP.writing():  # in every process: a sharded model is saved collectively
            trainer.save_checkpoint(self.last)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._wanted(trainer):  # the previous epoch has already written its checkpoint
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
        if self._unfinished:  # restart the validation from its beginning
            progress = checkpoint["loops"]["fit_loop"][VALIDATION]
            progress["total"], progress["current"] = dict(BEGUN), dict(BEGUN)
