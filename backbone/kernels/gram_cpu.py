"""Sums over the unmaterialised outputs of many kernels on a CPU; the GPU version is :mod:`backbone.kernels.gram`.

On a small map a depthwise convolution is a product of a channel's pixels with a Toeplitz matrix. The sum of the
outputs' squares over a batch is then a quadratic form in the kernel, whose matrix, the products of pixel pairs summed
over images, is the same for every kernel: one matrix product for all images, one for all kernels, and no output.

Shape legend: N batch, C channels, H height, W width, P = H * W; B kernels of K x K taps; T = (2H - 1)(2W - 1) taps,
the possible displacements between two pixels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbone.kernels import cpu

MOST_PIXELS = 36  # above this, computing the outputs was faster


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`moments` is faster than computing the outputs."""
    return (
        cpu.eager_fp32(x, weight) and x.shape[2] * x.shape[3] <= MOST_PIXELS
    )  # sizes last: no guard if compiled


def moments(x: Tensor, kernels_BCKK: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and sums of squares, ``(B, C)`` each, of the outputs of B depthwise convolutions of ``x (N, C, H, W)``."""
    return cast(tuple[Tensor, Tensor], _Moments.apply(x, kernels_BCKK))


def _resized(kernels: Tensor, rows: int, columns: int) -> Tensor:
    """Crop or zero-pad odd-sized kernels around the centre to another odd size: ``(…, rows, columns)``."""
    above, before = (rows - kernels.shape[-2]) // 2, (columns - kernels.shape[-1]) // 2
    return F.pad(kernels, (before, before, above, above))


def _windows(taps: Tensor, height: int, width: int) -> Tensor:
    """Sums over all H x W windows, ``(C, …, …)``."""
    return F.avg_pool2d(taps, (height, width), stride=1, divisor_override=1)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels_BCKK: Tensor) -> tuple[Tensor, Tensor]:
        n, channels, height, width = x.shape
        taps_CBT = _resized(kernels_BCKK, 2 * height - 1, 2 * width - 1).transpose(0, 1)
        pixels_CNP = x.permute(0, 2, 3, 1).flatten(0, 2).t().contiguous().view(channels, n, height * width)
        gram_CPP = pixels_CNP.transpose(1, 2) @ pixels_CNP
        # Row: a kernel's output, last pixel first; column: a pixel of the map.
        toeplitz = F.unfold(taps_CBT, (height, width))
        products_CBT = F.fold(toeplitz @ gram_CPP, taps_CBT.shape[2:], (height, width))
        line_CHW = pixels_CNP.sum(1).unflatten(1, (height, width))
        line_CT = _windows(F.pad(line_CHW, (width - 1, width - 1, height - 1, height - 1)), height, width)
        ctx.save_for_backward(pixels_CNP, taps_CBT, toeplitz, products_CBT, line_CT)
        ctx.shape, ctx.size = x.shape, kernels_BCKK.shape[-1]
        sums_CB = (taps_CBT * line_CT[:, None]).sum((2, 3))
        squares_CB = (taps_CBT * products_CBT).sum((2, 3))
        return sums_CB.t(), squares_CB.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums_BC: Tensor, of_squares_BC: Tensor) -> tuple[Tensor | None, Tensor | None]:
        pixels_CNP, taps_CBT, toeplitz, products_CBT, line_CT = ctx.saved_tensors
        n, channels, height, width = ctx.shape
        of_sums_CB11, of_squares_CB11 = (of.t()[:, :, None, None] for of in (of_sums_BC, 2 * of_squares_BC))
        grad_x = grad_kernels = None
        if ctx.needs_input_grad[0]:
            by_kernel = toeplitz.view(channels, -1, height * width, height * width)
            mixing_CPP = (by_kernel * of_squares_CB11).flatten(1, 2).transpose(1, 2) @ toeplitz
            shift_CHW = _windows((taps_CBT * of_sums_CB11).sum(1), height, width)
            grad_CNP = (pixels_CNP @ mixing_CPP).add_(shift_CHW.flatten(1).unsqueeze(1))
            grad_NPC = grad_CNP.view(channels, -1).t().contiguous()
            grad_x = grad_NPC.view(n, height, width, channels).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            grad_CBT = products_CBT * of_squares_CB11 + line_CT[:, None] * of_sums_CB11
            grad_kernels = _resized(grad_CBT.transpose(0, 1), ctx.size, ctx.size)
        return grad_x, grad_kernels
