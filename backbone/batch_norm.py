"""Batch norm from precomputed sums: the same arithmetic as ``nn.BatchNorm2d``, without another pass over the map.

A kernel that has just computed a map in registers can sum it and its squares at no extra cost; the batch norm is then
a scale and a shift per channel, which can be folded into the next operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def takes_sums(norm: nn.Module, count: int) -> bool:
    """Whether :func:`affine_from_sums` can replace ``norm`` for ``count`` values per channel.

    Not for synchronised norms or settings that UniRepLKNet does not use.
    """
    return type(norm) is nn.BatchNorm2d and has_usual_settings(norm) and count > 1


def has_usual_settings(norm: _BatchNorm) -> bool:
    """Whether the norm has weights and running statistics, updated with a fixed momentum."""
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def affine_from_sums(
    norm: nn.Module, sums: tuple[Tensor, Tensor] | None, count: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and shift ``(C,)`` that ``norm`` applies, as exact as the sums.

    Updates the running statistics in training mode.

    Args:
        norm: a batch norm that satisfies :func:`has_usual_settings`.
        sums: per-channel sums of values and of squares, ``(C,)`` each, fp32 or fp64; ignored in evaluation mode.
        count: number of values per channel.
    """
    if sums is not None:
        sums = sums[0].unsqueeze(0), sums[1].unsqueeze(0)
    scale_1C, shift_1C = affines_from_sums([norm], sums, count)
    return scale_1C[0], shift_1C[0]


def affines_from_sums(
    norms: Sequence[nn.Module], sums: tuple[Tensor, Tensor] | None, count: int | Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`affine_from_sums` for B batch norms that are :func:`alike`; tensors are ``(B, C)``."""
    norms = cast(Sequence[_BatchNorm], norms)
    first = norms[0]
    if not first.training or sums is None:
        mean_BC = torch.stack([cast(Tensor, norm.running_mean) for norm in norms])
        variance_BC = torch.stack([cast(Tensor, norm.running_var) for norm in norms])
    else:
        sums_BC, squares_BC = sums
        mean_BC = sums_BC / count
        # Clamped at 0: catastrophic cancellation when the mean is large relative to the standard deviation.
        variance_BC = (squares_BC / count - mean_BC.square()).clamp_min(0)
        _update_running_statistics(norms, mean_BC, variance_BC * (count / (count - 1)))
    scale_BC = torch.stack([norm.weight for norm in norms]) * torch.rsqrt(variance_BC + first.eps)
    return scale_BC, torch.stack([norm.bias for norm in norms]) - mean_BC * scale_BC


def alike(norms: Sequence[nn.Module]) -> bool:
    """Whether all norms have the same mode and settings."""
    settings = {(norm.training, norm.eps, norm.momentum) for norm in cast(Sequence[_BatchNorm], norms)}
    return len(settings) == 1


@torch.no_grad()
def _update_running_statistics(norms: Sequence[_BatchNorm], mean_BC: Tensor, variance_BC: Tensor) -> None:
    for norm, mean_C, variance_C in zip(norms, mean_BC, variance_BC, strict=True):
        running_mean, running_var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        running_mean.lerp_(mean_C.to(running_mean.dtype), cast(float, norm.momentum))
        running_var.lerp_(variance_C.to(running_var.dtype), cast(float, norm.momentum))
    # One kernel for all counters; the compiler fuses the lerp_ calls itself.
    torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], 1)


@contextlib.contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Context in which batch norms inside ``module`` update temporary copies of their running statistics."""
    buffers = [
        (norm, name, buffer)
        for norm in module.modules()
        if isinstance(norm, _BatchNorm)
        for name, buffer in norm.named_buffers(recurse=False)
    ]
    for norm, name, buffer in buffers:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer)
