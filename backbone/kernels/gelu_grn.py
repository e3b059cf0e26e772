"""``gelu_grn``: GELU and global response normalisation (GRN) of a map in two passes.

    h = gelu(x),   y = h (1 + gamma |h| / mean |h|) + beta

with |h| the norm of a channel over the pixels of one image (GRN, arXiv 2301.00808, equations 1-3). The map between the
two linear layers of a block has 4C channels; no other operation of the network moves as many bytes. One pass reads it
for the norms, a second reads it again and writes y; h is never written, since recomputing it is cheaper than moving it.

``gelu_grn_linear``, for training, also includes the following linear layer, which needs y for its weight gradient: y is
recomputed in the backward pass, where x is read for other sums anyway, instead of being stored. This saves a third of a
block's stored activations.

Registered with ``torch.library`` as ``widefield::gelu_grn`` and ``widefield::gelu_grn_linear``, which is differentiable
once.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from backbone.kernels.depthwise import HALF, starts_for, why_not_on
from backbone.kernels.sizes import ceil_div, power_of_two

SMALLEST = 2**22  # minimum number of values of a map to be worth the launch overhead
ENOUGH = 256  # programs that saturate a GPU; with fewer (few images), pixels are summed in parts
MOST_PARTS = 16


def takes(x_NHWD: Tensor) -> bool:
    """Whether :func:`gelu_grn` supports a map like x: half precision, large enough, kernels enabled."""
    return (
        x_NHWD.dtype in HALF
        and x_NHWD.numel() > 0
        and starts_for(x_NHWD.numel(), SMALLEST)
        and why_not_on(x_NHWD.device) is None
    )


def gelu_grn(x_NHWD: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """GELU, then GRN, without gradients; for training see :func:`gelu_grn_linear`.

    Args:
        x_NHWD: ``(N, H, W, D)``, for which :func:`takes`.
        gamma, beta: of GRN, D values of any float type and shape; beta may be None.

    Returns:
        ``(N, H, W, D)``, with the dtype of x.
    """
    # Three dimensions, because torch.compile copies four-dimensional inputs of custom operators to channels-last.
    x_NPD = x_NHWD.flatten(1, 2)
    y_NPD = torch.ops.widefield.gelu_grn(x_NPD, gamma.flatten(), None if beta is None else beta.flatten())
    return cast(Tensor, y_NPD.unflatten(1, x_NHWD.shape[1:3]))


def gelu_grn_linear(x_NHWD: Tensor, gamma: Tensor, beta: Tensor | None, weight_ED: Tensor) -> Tensor:
    """GELU, then GRN, then a linear layer without bias.

    Args:
        x_NHWD: ``(N, H, W, D)``, for which :func:`takes`.
        gamma, beta: of GRN, D values of any float type and shape; beta may be None.
        weight_ED: of the linear layer, with the dtype of x unless under autocast.

    Returns:
        ``(N, H, W, E)``, with the dtype of x.
    """
    x_NPD = x_NHWD.flatten(1, 2)
    beta = None if beta is None else beta.flatten()
    z_NPE = torch.ops.widefield.gelu_grn_linear(x_NPD, gamma.flatten(), beta, weight_ED)[0]
    return cast(Tensor, z_NPE.unflatten(1, x_NHWD.shape[1:3]))


# -- the operators ---------------------------------------------------------------------------------------------


@torch.library.custom_op("widefield::gelu_grn", mutates_args=())
def _gelu_grn(x: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    return _forward(x, gamma, beta)[0]


@_gelu_grn.register_fake
def _(x: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _refuse(ctx: Any, grad: Tensor) -> None:
    raise NotImplementedError("gelu_grn is for inference: gelu_grn_linear has the gradients")


_gelu_grn.register_autograd(_refuse)


@torch.library.custom_op("widefield::gelu_grn_linear", mutates_args=())
def _gelu_grn_linear(
    x: Tensor, gamma: Tensor, beta: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and each channel's energy and scale factor in each image, ``(N, D)`` fp32."""
    y, energy, scale = _forward(x, gamma, beta)
    return y @ weight.t(), energy, scale


@_gelu_grn_linear.register_fake
def _(x: Tensor, gamma: Tensor, beta: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, pixels, channels = x.shape
    energy, scale = (x.new_empty(n, channels, dtype=torch.float32) for _ in range(2))
    return x.new_empty(n, pixels, weight.shape[0]), energy, scale


def _forward(x: Tensor, gamma: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    from backbone.kernels.activation import factors, scaled_gelu, sums_over_pixels
    from backbone.kernels.start import start

    x = x.contiguous()
    n, pixels, channels = x.shape
    y = torch.empty_like(x)
    sums, parts, each = _sums_blocks(n, pixels, channels)
    energy = x.new_empty(parts, n, channels, dtype=torch.float32)
    scale = torch.empty_like(energy[0])
    whole, rows = _all_channels(channels) | {"PARTS": parts}, _row_blocks(channels)
    with torch.cuda.device_of(x):
        start(
            sums_over_pixels, _by_image(n, sums, parts), (x, None, None, None, energy, None, None), (pixels, each),
            sums | {"BETA": False, "GRAD": False},
        )  # fmt: skip
        start(factors, (n, 1, 1), (energy, gamma, None, scale, None, None), (), whole | {"GRAD": False})
        start(
            scaled_gelu, _by_row(n * pixels, rows), (x, None, scale, beta, y), (n * pixels, pixels),
            rows | {"BETA": beta is not None, "GRAD": False},
        )  # fmt: skip
    return y, energy[0], scale


@torch.library.custom_op("widefield::gelu_grn_linear_backward", mutates_args=())
def _backward(
    x: Tensor, gamma: Tensor, beta: Tensor | None, weight: Tensor, energy: Tensor, scale: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of gamma and beta (as partial sums, ``(parts, D)`` fp32), and of weight."""
    from backbone.kernels.activation import factors, scaled_gelu, sums_over_pixels
    from backbone.kernels.start import start

    x, grad_ME = x.contiguous(), grad.flatten(0, 1)
    n, pixels, channels = x.shape
    sums, parts, each = _sums_blocks(n, pixels, channels)
    dot, total = (energy.new_empty(parts, n, channels) for _ in range(2))
    slope, of_gamma = (torch.empty_like(energy) for _ in range(2))
    whole, rows = _all_channels(channels) | {"PARTS": parts}, _row_blocks(channels)
    of_y_MD = grad_ME @ weight
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        start(
            sums_over_pixels, _by_image(n, sums, parts), (x, of_y_MD, scale, beta, dot, total, y), (pixels, each),
            sums | {"BETA": beta is not None, "GRAD": True},
        )  # fmt: skip
        of_weight = grad_ME.t() @ y.flatten(0, 1)
        del y
        start(factors, (n, 1, 1), (energy, gamma, dot, None, slope, of_gamma), (), whole | {"GRAD": True})
        start(  # in place: every value is read and written by the same thread
            scaled_gelu, _by_row(n * pixels, rows), (x, of_y_MD, scale, slope, of_y_MD), (n * pixels, pixels),
            rows | {"BETA": False, "GRAD": True},
        )  # fmt: skip
    return of_y_MD.view_as(x), of_gamma, total.flatten(0, 1), of_weight


@_backward.register_fake
def _(
    x: Tensor, gamma: Tensor, beta: Tensor | None, weight: Tensor, energy: Tensor, scale: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, pixels, channels = x.shape
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    of_beta = energy.new_empty(_sums_blocks(n, pixels, channels)[1] * n, channels)
    return of_x, torch.empty_like(energy), of_beta, weight.new_empty(weight.shape)


def _save(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(
    ctx: Any, grad: Tensor, _of_energy: Tensor | None, _of_scale: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, gamma, beta, weight, energy, scale = ctx.saved_tensors
    of_x, of_gamma, of_beta, of_weight = _backward(x, gamma, beta, weight, energy, scale, grad)
    # Summed here, so that the compiler can fuse it.
    of_beta_D = None if beta is None else of_beta.sum(0).to(beta.dtype)
    return of_x, of_gamma.sum(0).to(gamma.dtype), of_beta_D, of_weight


_gelu_grn_linear.register_autograd(_gradients, setup_context=_save)


# -- autocast --------------------------------------------------------------------------------------------------
# The map and the linear layer's weight are cast to the autocast dtype.

_library = torch.library.Library("widefield", "FRAGMENT")


def _under_autocast(x: Tensor, gamma: Tensor, beta: Tensor | None, weight: Tensor) -> Any:
    device = x.device.type
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _gelu_grn_linear(x.to(dtype), gamma, beta, weight.to(dtype))


for _key in ("AutocastCUDA", "AutocastCPU"):
    _library.impl(_gelu_grn_linear._name, _under_autocast, _key)


# -- tiling of the map -----------------------------------------------------------------------------------------


def _channel_block(channels: int) -> int:
    """The block of channels: a power of two up to 128 that divides the channels, or 32."""
    return max(32, min(128, channels & -channels))


def _sums_blocks(images: int, pixels: int, channels: int) -> tuple[dict[str, int], int, int]:
    """Constants of the kernel; number of parts of the pixels, and number of pixels per part."""
    block = min(64, _channel_block(channels))
    # Many small programs keep the last wave short; with few programs, each must have more loads in flight.
    programs = images * ceil_div(channels, block)
    values = 1024 if programs >= 2048 else 2048 if programs >= 1024 else 4096
    blocks = {"D": channels, "BP": values // block, "BD": block, "num_warps": 2 if values == 1024 else 4}
    steps = ceil_div(pixels, blocks["BP"])
    each = ceil_div(steps, min(steps, max(1, ENOUGH // programs), MOST_PARTS))
    return blocks, ceil_div(steps, each), each * blocks["BP"]


def _all_channels(channels: int) -> dict[str, int]:
    return {"D": channels, "BD": power_of_two(channels)}


def _row_blocks(channels: int) -> dict[str, int]:
    block = _channel_block(channels)
    return {"D": channels, "BM": 2048 // block, "BD": block}


def _by_image(images: int, blocks: dict[str, int], parts: int) -> tuple[int, int, int]:
    return images, ceil_div(blocks["D"], blocks["BD"]), parts


def _by_row(rows: int, blocks: dict[str, int]) -> tuple[int, int, int]:
    return ceil_div(rows, blocks["BM"]), ceil_div(blocks["D"], blocks["BD"]), 1
