"""Ctrl-C and SIGTERM save the run after the current step and say how to go on."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from workbench.errors import Interrupted
from workbench.quoting import typed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(Callback):
    """Write `last.ckpt` after the step in which SIGINT or SIGTERM arrived, then raise `Interrupted`.

    A second signal stops at once, with what was saved before.

    Args:
        checkpoint_dir: where the run keeps its checkpoints.
    """

    def __init__(self, checkpoint_dir: str) -> None:
        self.last = Path(checkpoint_dir) / "last.ckpt"
        self.received: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: the trainer has just installed its own handler, which ends a run wherever it is and saves
        # nothing. The trainer also puts back what was there before either.
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _wanted(self, trainer: Trainer) -> bool:
        # One process may get the signal a step before another: all decide together.
        return bool(trainer.strategy.reduce_boolean_decision(self.received is not None, all=False))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # At an epoch's last step the validation and the epoch's own checkpoint come first, see on_train_epoch_start.
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch
        if complete and self._wanted(trainer):
            trainer.save_checkpoint(self.last)
            self._stop()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._wanted(trainer):  # the epoch that has just ended left its checkpoint
            self._stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._wanted(trainer):
            self._stop()

    def _stop(self) -> None:
        number = self.received or signal.SIGTERM
        said, code = f"stopped by {signal.Signals(number).name}", 128 + number
        if not self.last.is_file():
            raise Interrupted(f"{said} before there was anything to save", code)
        folder = self.last.parent.parent
        raise Interrupted(
            f"{said}, saved in {self.last}; to go on, repeat the command with {typed('resume', folder)}", code
        )
