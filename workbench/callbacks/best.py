"""best.ckpt: the checkpoint of the best epoch, with its metrics."""

import math
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from workbench.errors import UsageError

LOSS = "val/loss"


class BestCheckpoint(Checkpoint):
    """Writes a checkpoint after each epoch whose monitored metric is the best so far.

    Ties are broken by the lower validation loss, then by the earlier epoch. NaN is worse than any number.

    Args:
        path: the checkpoint file.
        monitor: full name of the metric, e.g. `val/acc`.
        mode: `max` or `min`.

    Attributes:
        score: the best value; None before the first validation.
        epoch: its epoch, counted from 0.
        metrics: all validation metrics of that epoch, by full name.
    """

    def __init__(self, path: str, monitor: str, mode: Literal["max", "min"]) -> None:
        self.path = Path(path)
        self.monitor = monitor
        self.sign = {"max": 1.0, "min": -1.0}[mode]
        self.score: float | None = None
        self.epoch: int | None = None
        self.metrics: dict[str, float] = {}
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # At the end of an epoch, wait for on_train_epoch_end, so that training can resume from the checkpoint.
        self._validated = trainer.is_last_batch
        if not self._validated:
            self._compare(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validated:
            self._validated = False
            self._compare(trainer)

    def _compare(self, trainer: Trainer) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics = {name: value for name, value in found.items() if name.startswith("val/")}
        if self.monitor not in metrics:
            raise UsageError(
                f"task.monitor={self.monitor} was not measured: take one of {', '.join(sorted(metrics))}"
            )
        if self.metrics and self._rank(metrics) <= self._rank(self.metrics):
            return
        self.score, self.epoch, self.metrics = metrics[self.monitor], trainer.current_epoch, metrics
        trainer.save_checkpoint(self.path)

    def _rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        score, loss = self.sign * metrics[self.monitor], -metrics.get(LOSS, math.inf)
        return (-math.inf if math.isnan(score) else score, -math.inf if math.isnan(loss) else loss)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "metrics": dict(self.metrics)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.epoch = state_dict["score"], state_dict["epoch"]
        self.metrics = dict(state_dict["metrics"])
