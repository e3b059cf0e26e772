"""Synchronised batch norm across processes on CPUs.

PyTorch's ``nn.SyncBatchNorm`` supports GPUs only. With this one, distributed training can be tried and
tested without a GPU; it sums in fp64, for exactness rather than speed.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbone.batch_norm import affine_from_sums, has_usual_settings

Model = TypeVar("Model", bound=nn.Module)


class _AcrossProcesses(_BatchNorm):
    """Batch norm over the joint batch of all processes, including gradients.

    Every process must call it the same number of times. In a single process, and in evaluation mode, it is the plain
    norm.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, …) -> (B, C, …)``; B may differ between processes."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(input)
        self._check_input_dim(input)
        channels, others = input.shape[1], [0, *range(2, input.dim())]
        x = input.double()  # the variance is a small difference of large sums
        count = x.new_tensor([input.numel() // channels])
        # Its gradient is summed over the processes too, since each one's input affects the outputs of all.
        total = _added_up(torch.cat([x.sum(others), x.square().sum(others), count]))
        sums = total[:channels], total[channels:-1]
        scale_C, shift_C = affine_from_sums(self, sums, total[-1])
        along = (channels, *[1] * (input.dim() - 2))
        return (x * scale_C.view(along) + shift_C.view(along)).to(input.dtype)


def _added_up(own_S: Tensor) -> Tensor:
    """All-reduce sum of ``own_S``, ``(S,)``, in a form that ``torch.compile`` can trace.

    Other forms break the graph at every norm, and a network with many norms then takes minutes to compile.
    """
    from torch.distributed._functional_collectives import all_gather_tensor_autograd

    everyone = dist.group.WORLD
    assert everyone is not None
    all_WS = all_gather_tensor_autograd(own_S.unsqueeze(0), 0, everyone)
    # The product gives the gradient its own memory, as required by the backward pass of the all-reduce.
    return (all_WS * torch.ones_like(all_WS)).sum(0)


class CrossProcessBatchNorm1d(_AcrossProcesses, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` across processes."""


class CrossProcessBatchNorm2d(_AcrossProcesses, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` across processes."""


_ACROSS: dict[type, type] = {
    nn.BatchNorm1d: CrossProcessBatchNorm1d,
    nn.BatchNorm2d: CrossProcessBatchNorm2d,
}
_WITHIN = {across: within for within, across in _ACROSS.items()}


def across_processes(model: Model) -> Model:
    """Convert every plain batch norm to one across processes, in place; returns the model."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and type(module) in _ACROSS and has_usual_settings(module):
            module.__class__ = _ACROSS[type(module)]
    return model


def within_process(model: Model) -> Model:
    """Undo `across_processes`, in place; returns the model."""
    for module in model.modules():
        if type(module) in _WITHIN:
            module.__class__ = _WITHIN[type(module)]
    return model
