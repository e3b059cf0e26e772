"""Stops a run whose loss is not finite, before a checkpoint of it is written."""

import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from workbench.errors import TrainingError

BEHIND = 1  # steps by which a check on a GPU may lag, so that no step waits for its own loss


class FiniteLoss(Callback):
    """Raise a `TrainingError` when the loss is NaN or infinite; the last good checkpoint is kept.

    On a CPU, before the weights are updated. On a GPU the loss is copied while training goes on and is checked one step
    later; every loss is checked before a validation and before a checkpoint.

    Args:
        checkpoint_dir: the run's checkpoint folder, named in the message.
        every_n_steps: check interval.
    """

    def __init__(self, checkpoint_dir: str, every_n_steps: int = 1) -> None:
        self.checkpoint_dir = Path(checkpoint_dir)
        self.every_n_steps = every_n_steps
        self._sent: deque[SentLoss] = deque()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._sent.append(SentLoss(loss, trainer.current_epoch, trainer.global_step))
        while self._sent and (len(self._sent) > BEHIND or self._sent[0].arrived()):
            self._check(self._sent.popleft())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_all()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_all()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check_all()

    def _check_all(self) -> None:
        while self._sent:
            self._check(self._sent.popleft())

    def _check(self, sent: "SentLoss") -> None:
        value = sent.read()
        if math.isfinite(value):
            return
        self._sent.clear()
        last = self.checkpoint_dir / "last.ckpt"
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was made yet"
        raise TrainingError(
            f"the loss became {value} in epoch {sent.epoch} at step {sent.step}; "
            f"{kept}. A lower optimizer.lr or trainer.gradient_clip_val usually helps"
        )


class SentLoss:
    """A loss on its way to the CPU."""

    def __init__(self, loss: Tensor, epoch: int, step: int) -> None:
        self.epoch, self.step = epoch, step
        self.value = loss.detach()
        self.event: torch.cuda.Event | None = None
        if loss.is_cuda:
            self.value = torch.empty(loss.shape, dtype=loss.dtype, pin_memory=True)
            self.value.copy_(loss.detach(), non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def arrived(self) -> bool:
        return self.event is None or self.event.query()

    def read(self) -> float:
        """Its value; waits for it."""
        if self.event is not None:
            self.event.synchronize()
        return float(self.value)
