"""A progress bar with loss and accuracy on a terminal; one line an epoch in the log either way."""

import logging
import time

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from tasks.task import Training

log = logging.getLogger("widefield")


class Progress(RichProgressBar):
    """Rich's progress bar, and after each epoch one line with its metrics."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        self._started = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started = time.monotonic()
        self._first = trainer.current_epoch

    # A task logs its training metrics when the epoch's callbacks are through, so the line is printed a moment later.

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.current_epoch > self._first:
            self._say(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._say(trainer, pl_module)

    def _say(self, trainer: Trainer, pl_module: LightningModule) -> None:
        in_short = pl_module.in_short if isinstance(pl_module, Training) else str
        shown = {
            name: float(value)
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith(("train/", "val/")) and in_short(name)
        }
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        log.info(
            "epoch %d/%s  %s  (%.0f s)",
            trainer.current_epoch,
            trainer.max_epochs,
            text,
            time.monotonic() - self._started,
        )

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
