"""Depthwise convolution on a CPU, using oneDNN's forward convolutions only.

oneDNN's forward pass of a depthwise convolution runs close to peak speed. Its backward pass takes 10 to 40
times as long for large kernels, and both fall back to a reference implementation, up to 100 times slower, if a
dilated kernel spans the whole map. Here:

- taps that overlap no pixel of the map are dropped;
- kernels of 11 to 13 columns, which are slower than wider ones, are zero-padded;
- the gradient of the map is a convolution with the kernel rotated by 180°;
- the gradient of the kernel is also a convolution: of each image's channel, with the gradient of its output as the
  kernel and the dilation as the stride, summed over images.

Mathematically identical, up to summation order; twice differentiable; deterministic.

Shape legend: N batch, C channels, H height, W width, K and L rows and columns of taps.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

#: With this number of columns, oneDNN takes up to 2.8 times as long as with 15.
SLOW_COLUMNS, WIDER = range(11, 14), 15


@cache
def _has_fast_forward() -> bool:
    """Whether oneDNN has JIT-compiled depthwise convolutions for this processor."""
    return torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def eager_fp32(x: Tensor, weight: Tensor) -> bool:
    """Whether both are fp32 on a CPU, without compilation, export or autocast, and ``WIDEFIELD_KERNELS`` is not off."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and os.environ.get("WIDEFIELD_KERNELS", "on").lower() != "off"
    )


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether to use :func:`depthwise_conv2d`: :func:`eager_fp32` on an x86 processor."""
    return eager_fp32(x, weight) and cast(bool, torch.backends.mkldnn.enabled) and _has_fast_forward()


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """Depthwise convolution: stride 1, "same" zero padding; ``(N, C, H, W)``, in the input's memory format.

    Args:
        x: ``(N, C, H, W)``, preferably in channels-last memory format.
        weight: ``(C, 1, K, L)``, K and L odd; with the dtype of ``x``, as is the bias.
        bias: ``(C,)`` or None.
        dilation: distance between taps, in pixels.
    """
    rows, columns = ((size - 1) // dilation for size in x.shape[2:])
    weight = _middle(_middle(weight, 2, rows), 3, columns)
    if dilation == 1 and weight[0].numel() <= 9:  # here oneDNN's backward pass is faster
        return F.conv2d(x, weight, bias, padding=_padding(weight.shape[2:], 1), groups=len(weight))
    convolve = _Convolution.apply if torch.is_grad_enabled() else _Convolution.forward
    return cast(Tensor, convolve(x, weight, bias, dilation))


def _middle(weight: Tensor, dim: int, most: int) -> Tensor:
    """The middle tap and up to ``most`` taps on either side of it."""
    beyond = weight.shape[dim] // 2 - most
    return weight if beyond <= 0 else weight.narrow(dim, beyond, 2 * most + 1)


def _padding(taps: torch.Size, dilation: int) -> list[int]:
    return [dilation * (size // 2) for size in taps]


class _Convolution(torch.autograd.Function):
    """``(N, C, H, W)`` from the map, ``weight (C, 1, K, L)``, bias or None, dilation."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        if weight.shape[3] in SLOW_COLUMNS:
            more = (WIDER - weight.shape[3]) // 2
            weight = F.pad(weight, (more, more))
        padding = _padding(weight.shape[2:], dilation)
        return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _Convolution.apply(grad, weight.flip(2, 3), None, ctx.dilation)
        if ctx.needs_input_grad[1]:
            grad_weight = _WeightGradient.apply(x, grad, weight.shape[2:], ctx.dilation)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None


class _WeightGradient(torch.autograd.Function):
    """``(C, 1, K, L)`` from map and gradient of the output, ``(N, C, H, W)`` each; taps ``(K, L)``, dilation."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor, taps: torch.Size, dilation: int) -> Tensor:
        n, channels, height, width = x.shape
        # Images are folded into the channels; in channels-last memory format, the channels of a pixel stay contiguous.
        x_1HWA, grad_1HWA = (
            side.permute(2, 3, 0, 1).reshape(1, height, width, n * channels) for side in (x, grad)
        )
        each = F.conv2d(
            x_1HWA.permute(0, 3, 1, 2),
            grad_1HWA.permute(3, 0, 1, 2),
            padding=_padding(taps, dilation),
            stride=dilation,
            groups=n * channels,
        )
        return each.view(n, channels, 1, *taps).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, grad, _, ctx.dilation = inputs
        ctx.save_for_backward(x, grad)

    @staticmethod
    def backward(ctx: Any, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
        x, grad = ctx.saved_tensors
        grad_x = grad_grad = None
        if ctx.needs_input_grad[0]:
            grad_x = _Convolution.apply(grad, grad_weight.flip(2, 3), None, ctx.dilation)
        if ctx.needs_input_grad[1]:
            grad_grad = _Convolution.apply(x, grad_weight, None, ctx.dilation)
        return grad_x, grad_grad, None, None
