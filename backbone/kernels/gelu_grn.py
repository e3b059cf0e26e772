"""``gelu_grn``: GELU and global response normalisation of a map in two passes over it, and in two backward.

    h = gelu(x),   y = h (1 + gamma |h| / mean |h|) + beta

with |h| the norm of a channel over the pixels of one image (GRN, arXiv 2301.00808, equations 1-3). The map between the
two linear layers of a block has 4C channels; nothing else in the network moves as many bytes. One pass reads it for the
norms, one reads it again and writes y; h is never written, and computing it twice costs less than moving it.

Registered with ``torch.library`` as ``widefield::gelu_grn``, differentiable once.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from backbone.kernels.depthwise import HALF, starts_for, why_not_on

SMALLEST = 2**22  # values of a map for which starting the kernels pays


def takes(x_NHWD: Tensor) -> bool:
    """Whether :func:`gelu_grn` serves a map like x: half precision, not too small, where the kernels are on."""
    return (
        x_NHWD.dtype in HALF
        and x_NHWD.numel() > 0
        and starts_for(x_NHWD.numel(), SMALLEST)
        and why_not_on(x_NHWD.device) is None
    )


def gelu_grn(x_NHWD: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """GELU, then GRN.

    Args:
        x_NHWD: ``(N, H, W, D)``, for which :func:`takes`.
        gamma, beta: of GRN, D values of any float type and shape; beta may be None.

    Returns:
        ``(N, H, W, D)``, of the type of x.
    """
    # Three dimensions: of a custom operator's maps with four, torch.compile makes copies in channels-last order.
    x_NPD = x_NHWD.flatten(1, 2)
    beta = None if beta is None else beta.flatten()
    y_NPD = torch.ops.widefield.gelu_grn(x_NPD, gamma.flatten(), beta)[0]
    return cast(Tensor, y_NPD.unflatten(1, x_NHWD.shape[1:3]))


@torch.library.custom_op("widefield::gelu_grn", mutates_args=())
def _gelu_grn(x: Tensor, gamma: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    from backbone.kernels.activation import factors, scaled_gelu, sums_over_pixels
    from backbone.kernels.start import start

    x = x.contiguous()
    n, pixels, channels = x.shape
    energy, scale = (x.new_empty(n, channels, dtype=torch.float32) for _ in range(2))
    y = torch.empty_like(x)
    shift = scale if beta is None else beta
    sums, whole, rows = _sums_blocks(n, channels), _all_channels(channels), _row_blocks(channels)
    with torch.cuda.device_of(x):
        start(sums_over_pixels, _by_image(n, sums), (x, x, energy, energy), (pixels,), sums | {"GRAD": False})
        start(factors, (n, 1, 1), (energy, gamma, energy, scale, energy, energy), (), whole | {"GRAD": False})
        start(
            scaled_gelu, _by_row(n * pixels, rows), (x, x, scale, shift, y), (n * pixels, pixels),
            rows | {"BETA": beta is not None, "GRAD": False},
        )  # fmt: skip
    return y, energy


@_gelu_grn.register_fake
def _(x: Tensor, gamma: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    contiguous = torch.empty_like(x, memory_format=torch.contiguous_format)
    return contiguous, x.new_empty(x.shape[0], x.shape[-1], dtype=torch.float32)


@torch.library.custom_op("widefield::gelu_grn_backward", mutates_args=())
def _backward(x: Tensor, gamma: Tensor, energy: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gamma and beta, the last two fp32."""
    from backbone.kernels.activation import factors, scaled_gelu, sums_over_pixels
    from backbone.kernels.start import start

    x, grad = x.contiguous(), grad.contiguous()
    n, pixels, channels = x.shape
    dot, total, scale, slope, of_gamma = (torch.empty_like(energy) for _ in range(5))
    x_grad = torch.empty_like(x)
    sums, whole, rows = _sums_blocks(n, channels), _all_channels(channels), _row_blocks(channels)
    with torch.cuda.device_of(x):
        start(sums_over_pixels, _by_image(n, sums), (x, grad, dot, total), (pixels,), sums | {"GRAD": True})
        start(factors, (n, 1, 1), (energy, gamma, dot, scale, slope, of_gamma), (), whole | {"GRAD": True})
        start(
            scaled_gelu, _by_row(n * pixels, rows), (x, grad, scale, slope, x_grad), (n * pixels, pixels),
            rows | {"BETA": False, "GRAD": True},
        )  # fmt: skip
    return x_grad, of_gamma.sum(0), total.sum(0)


@_backward.register_fake
def _(x: Tensor, gamma: Tensor, energy: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.empty_like(x, memory_format=torch.contiguous_format)
    return contiguous, torch.empty_like(energy[0]), torch.empty_like(energy[0])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    x, gamma, beta = inputs
    ctx.save_for_backward(x, gamma, output[1])
    ctx.beta_dtype = None if beta is None else beta.dtype
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, gamma, energy = ctx.saved_tensors
    x_grad, gamma_grad, beta_grad = _backward(x, gamma, energy, grad)
    return (
        x_grad,
        gamma_grad.to(gamma.dtype),
        None if ctx.beta_dtype is None else beta_grad.to(ctx.beta_dtype),
    )


_gelu_grn.register_autograd(_gradients, setup_context=_save)


# -- how the map is cut ----------------------------------------------------------------------------------------


def _channel_block(channels: int) -> int:
    """A power of two of at most 128 that wastes no channel, or 32."""
    return max(32, min(128, channels & -channels))


def _sums_blocks(images: int, channels: int) -> dict[str, int]:
    block = min(64, _channel_block(channels))
    # Many small programs, so that the last round is short; but where they are few each must ask for more at a time.
    programs = images * -(-channels // block)
    values = 1024 if programs >= 2048 else 2048 if programs >= 1024 else 4096
    return {"D": channels, "BP": values // block, "BD": block, "num_warps": 2 if values == 1024 else 4}


def _all_channels(channels: int) -> dict[str, int]:
    return {"D": channels, "BD": 1 << (channels - 1).bit_length()}


def _row_blocks(channels: int) -> dict[str, int]:
    block = _channel_block(channels)
    return {"D": channels, "BM": 2048 // block, "BD": block}


def _by_image(images: int, blocks: dict[str, int]) -> tuple[int, int, int]:
    return images, -(-blocks["D"] // blocks["BD"]), 1


def _by_row(rows: int, blocks: dict[str, int]) -> tuple[int, int, int]:
    return -(-rows // blocks["BM"]), -(-blocks["D"] // blocks["BD"]), 1
