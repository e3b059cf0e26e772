"""Batch norm from sums: the same arithmetic as ``nn.BatchNorm2d``, without another pass over the map.

A kernel that has just made a map in registers can sum it and its squares for nothing; a batch norm is then a scale
and a shift per channel, which fold into what comes next.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def takes_sums(norm: nn.Module, count: int) -> bool:
    """Whether :func:`affine_from_sums` can stand in for ``norm`` on ``count`` values a channel.

    It cannot for a synchronised norm, nor for settings that UniRepLKNet does not use.
    """
    return type(norm) is nn.BatchNorm2d and has_usual_settings(norm) and count > 1


def has_usual_settings(norm: _BatchNorm) -> bool:
    """Whether it has weights and running statistics, which follow the batches with a fixed momentum."""
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def affine_from_sums(
    norm: nn.Module, sums: tuple[Tensor, Tensor] | None, count: int
) -> tuple[Tensor, Tensor]:
    """Scale and shift ``(C,)`` that ``norm`` applies, as exact as the sums.

    In training it also updates the running statistics.

    Args:
        norm: a batch norm for which :func:`has_usual_settings`.
        sums: of the channel's values and of their squares, ``(C,)`` each, fp32 or fp64; in evaluation not looked at.
        count: values a channel.
    """
    norm = cast(_BatchNorm, norm)
    if not norm.training or sums is None:
        mean_C, variance_C = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    else:
        sum_C, squares_C = sums
        mean_C = sum_C / count
        # A difference of two near numbers when the mean is large beside the deviation: never below 0.
        variance_C = (squares_C / count - mean_C.square()).clamp_min(0)
        _update_running_statistics(norm, mean_C.detach(), variance_C.detach() * (count / (count - 1)))
    scale_C = norm.weight * torch.rsqrt(variance_C + norm.eps)
    return scale_C, norm.bias - mean_C * scale_C


@torch.no_grad()
def _update_running_statistics(norm: _BatchNorm, mean_C: Tensor, variance_C: Tensor) -> None:
    momentum = cast(float, norm.momentum)
    cast(Tensor, norm.num_batches_tracked).add_(1)
    running_mean, running_var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
    running_var.lerp_(variance_C.to(running_var.dtype), momentum)
