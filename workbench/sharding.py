"""Training with parameters sharded across processes (`trainer=fsdp`).

Lightning's defaults are unsuitable in three points: all buffers would be cast, which rounds an embedder's filters and
the statistics of batch norms to bfloat16; an error in a step would be hidden by a second one when batch norms are
restored; and weights sharded for training cannot be tested in place.
"""

import contextlib
from typing import Any

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import MixedPrecision


def fsdp() -> FSDPStrategy:
    """A strategy that shards parameters, gradients and optimiser states; a checkpoint is a single file.

    Weights, gradients and buffers stay in single precision; `trainer.precision` acts by autocast, as with one GPU and
    with `ddp`.
    """
    return FSDPStrategy(mixed_precision=MixedPrecision())


def is_sharded(strategy: Strategy) -> bool:
    """Whether each process holds only a part of the weights."""
    return isinstance(strategy, FSDPStrategy)


class SyncBatchNorms(TorchSyncBatchNorm):
    """Synchronised batch norm across GPUs; `revert` does not hide the error of a step with sharded weights."""

    def revert(self, model: Any) -> nn.Module:
        with contextlib.suppress(TypeError):  # weights gathered for a step are not parameters
            model = super().revert(model)
        return model
