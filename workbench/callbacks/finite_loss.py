"""Stops a run whose loss is not finite, before the weights are updated."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from workbench.errors import TrainingError


class FiniteLoss(Callback):
    """Raise a `TrainingError` when the loss is NaN or infinite; the last good checkpoint is kept.

    Args:
        checkpoint_dir: the run's checkpoint folder, named in the message.
        every_n_steps: check interval (each check synchronises with the GPU).
    """

    def __init__(self, checkpoint_dir: str, every_n_steps: int = 1) -> None:
        self.checkpoint_dir = Path(checkpoint_dir)
        self.every_n_steps = every_n_steps

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if trainer.global_step % self.every_n_steps == 0 and not torch.isfinite(loss):
            last = self.checkpoint_dir / "last.ckpt"
            kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was made yet"
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {trainer.current_epoch} at step {trainer.global_step}; "
                f"{kept}. A lower optimizer.lr or trainer.gradient_clip_val usually helps"
            )
