"""Global response normalisation on a CPU, with a manual backward pass.

PyTorch's norm over the pixels of a channels-last map is not vectorised, and its gradient allocates four temporary
maps. Sums over pixels, vectorised over channels, are memory-bound: with gradients, a third to a
tenth of the time.

Shape legend: N batch, H height, W width, D channels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from backbone.kernels.cpu import eager_fp32

EPS = 1e-6
AT_ONCE = 2**18  # values


def takes(x_NHWD: Tensor, gamma: Tensor) -> bool:
    """Whether to use :func:`grn`."""
    return eager_fp32(x_NHWD, gamma)


def grn(x_NHWD: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """Scale each channel by its norm relative to the mean over channels: see ``GRN``.

    Args:
        x_NHWD: ``(N, H, W, D)``.
        gamma: ``(1, 1, 1, D)``, as is beta.
        beta: shift, or None.
    """
    return cast(Tensor, _Grn.apply(x_NHWD, gamma, beta))


def gelu_grn_(x_NHWD: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """GELU and :func:`grn` in place, without gradients, a few images at a time so that they stay in the cache."""
    for some in x_NHWD.split(max(1, AT_ONCE // x_NHWD[0].numel())):
        torch.ops.aten.gelu_(some)
        scale_N11D = _scale(_sum(some.square()).sqrt(), gamma)
        some.mul_(scale_N11D) if beta is None else torch.addcmul(beta, scale_N11D, some, out=some)
    return x_NHWD


def _scale(energy_N11D: Tensor, gamma: Tensor) -> Tensor:
    return gamma * energy_N11D / (energy_N11D.mean(-1, keepdim=True) + EPS) + 1


def _sum(x_NHWD: Tensor) -> Tensor:
    return x_NHWD.sum((1, 2), keepdim=True)


class _Grn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NHWD: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
        energy_N11D = _sum(x_NHWD.square()).sqrt()
        ctx.save_for_backward(x_NHWD, gamma, energy_N11D)
        ctx.shifted = beta is not None
        scale_N11D = _scale(energy_N11D, gamma)
        return scale_N11D * x_NHWD if beta is None else torch.addcmul(beta, scale_N11D, x_NHWD)

    @staticmethod
    def backward(ctx: Any, grad_NHWD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x_NHWD, gamma, energy_N11D = ctx.saved_tensors
        if torch.is_grad_enabled():  # for double backward
            energy_N11D = torch.linalg.vector_norm(x_NHWD, dim=(1, 2), keepdim=True)
        mean_N111 = energy_N11D.mean(-1, keepdim=True) + EPS
        relative_N11D = energy_N11D / mean_N111
        of_scale_N11D = _sum(grad_NHWD * x_NHWD)
        of_relative_N11D = of_scale_N11D * gamma
        through_mean_N111 = (of_relative_N11D * relative_N11D).mean(-1, keepdim=True)
        of_energy_N11D = (of_relative_N11D - through_mean_N111) / mean_N111
        # The gradient of a norm is x / |x|, and 0 at an all-zero channel.
        along_x_N11D = torch.where(energy_N11D > 0, of_energy_N11D / energy_N11D, 0.0)
        grad_x = torch.addcmul(grad_NHWD * (gamma * relative_N11D + 1), x_NHWD, along_x_N11D)
        grad_gamma = (of_scale_N11D * relative_N11D).sum(0, keepdim=True)
        return grad_x, grad_gamma, grad_NHWD.sum((0, 1, 2), keepdim=True) if ctx.shifted else None
