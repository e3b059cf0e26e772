"""Training with parameters sharded among processes (`trainer=fsdp`).

Lightning's own settings do not suit the networks here in three points: it would cast every buffer, so that an
embedder's filters and the statistics of the batch norms were rounded to bfloat16; a step that fails would be hidden
by an error of putting the batch norms back; and weights that were sharded to be trained cannot be tested in place.
"""

import contextlib
from typing import Any

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import MixedPrecision


def fsdp() -> FSDPStrategy:
    """Parameters, gradients and optimiser states sharded among the processes; a checkpoint is one whole file.

    Weights, gradients and buffers keep single precision; what `trainer.precision` rounds is the arithmetic, by
    autocast, as with one GPU and with `ddp`.
    """
    return FSDPStrategy(mixed_precision=MixedPrecision())


def is_sharded(strategy: Strategy) -> bool:
    """Whether each process holds only a part of the weights."""
    return isinstance(strategy, FSDPStrategy)


class SyncBatchNorms(TorchSyncBatchNorm):
    """Batch norm across the GPUs of a run; a step that broke off in the middle of sharded weights stays the error."""

    def revert(self, model: Any) -> nn.Module:
        with contextlib.suppress(TypeError):  # weights that are gathered for the step are no parameters
            model = super().revert(model)
        return model
