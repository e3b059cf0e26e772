"""Launching the kernels of :mod:`backbone.kernels.gram`: sums over unmaterialised outputs, and their gradients.

Products of half-precision pixels are exact and summed in fp32. The cost does not depend on the number of
kernels, only slightly on the number of images, and mainly on the number of pixels of the map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from backbone.kernels import gram
from backbone.kernels.sizes import ceil_div, power_of_two, round_up
from backbone.kernels.start import INTERPRETED, start

STRIP = 512  # approximate number of pixels in the rows of a strip
AT_ONCE = 2**28  # maximum bytes of a strip, which determines its number of channels
APPLY = {"BU": 64, "num_warps": 1, "num_stages": 1}  # taps at a time
IMAGES, CHANNELS = 128, 32  # transposed per program


def moments(x_NHWC: Tensor, kernels_BCKK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums and sums of squares of the outputs, and the derivatives for the kernels' gradient; all fp32.

    Args:
        x_NHWC: half precision, contiguous.
        kernels_BCKK: fp32, contiguous.

    Returns:
        Sums and sums of squares, ``(2, B, C)``; the derivatives of the sums by the kernels, ``(C, K, K)``, identical
        for all kernels; half the derivatives of the sums of squares, ``(B, C, K, K)``.
    """
    channels, height, width = x_NHWC.shape[3], *x_NHWC.shape[1:3]
    size = kernels_BCKK.shape[-1]
    x_CQM, sums = _turned(x_NHWC)
    folded, line = _of_taps(x_NHWC, size)
    fold = {
        "W": width,
        "K": size,
        "BW": power_of_two(width),
        "BD": power_of_two(2 * size - 1),
        "num_warps": 1,
    }
    for strip in _strips(channels, height, width, size, above=0, bytes_each=4):
        gram_CAL = _gram(x_CQM[strip.channels, strip.pixels], x_CQM[strip.channels, strip.facing_pixels])
        start(
            gram.fold, (size, len(gram_CAL), 2), (gram_CAL, folded),
            (strip.channels.start, height, strip.row, strip.end),
            fold | {"L": gram_CAL.shape[2], "MORE": strip.row > 0},
        )  # fmt: skip
        del gram_CAL
    lines = _lines(size, height, width) | {"C": channels, "PARTS": len(sums)}
    start(gram.fold_line, (channels, 1, 1), (sums, line), (height * width, height), lines)
    products = torch.empty_like(kernels_BCKK)
    parts = line.new_empty(2, *kernels_BCKK.shape[:3])
    tensors = (folded, line, kernels_BCKK, products, parts)
    apply = _of_kernels(kernels_BCKK) | {"BB": max(16, power_of_two(len(kernels_BCKK)))} | APPLY
    start(gram.apply, (channels, size, 1), tensors, (), apply)
    return parts.sum(-1), line, products


def grad_of_map(x_NHWC: Tensor, kernels_BCKK: Tensor, grad_2BC: Tensor) -> Tensor:
    """Gradient of the map, ``(N, H, W, C)``, from the gradients of :func:`moments`' sums, ``(2, B, C)`` fp32."""
    n, height, width, channels = x_NHWC.shape
    size = kernels_BCKK.shape[-1]
    x_CQM, _ = _turned(x_NHWC)
    images, pixels = x_CQM.shape[2], height * width
    (taps, line), factor = _of_taps(x_NHWC, size), grad_2BC.new_empty(channels)
    tensors = (kernels_BCKK, grad_2BC, taps, line, factor)
    start(gram.outer, (channels, size, 1), tensors, (), _of_kernels(kernels_BCKK))
    block_d = power_of_two(2 * width - 1)
    unfold = {
        "W": width,
        "K": size,
        "BK": power_of_two(size),
        "BD": block_d,
        "num_warps": max(1, block_d // 64),
    }
    mixed_CPM = x_CQM.new_empty(channels, pixels, images)
    for strip in _strips(channels, height, width, size, above=size - 1, bytes_each=2):
        x_facing = x_CQM[strip.channels, strip.facing_pixels]
        mixing_CAL = x_facing.new_empty(len(x_facing), (strip.end - strip.row) * width, x_facing.shape[1])
        mixing_CAL[:, :, (strip.facing_end - strip.facing) * width :] = 0
        lowest = strip.facing - strip.end + 1
        start(
            gram.unfold, (strip.facing_end - strip.row - lowest, len(x_facing), 1), (taps, mixing_CAL),
            (strip.channels.start, height, strip.row, strip.end, strip.facing, strip.facing_end, lowest),
            unfold | {"L": x_facing.shape[1]},
        )  # fmt: skip
        torch.bmm(mixing_CAL, x_facing, out=mixed_CPM[strip.channels, strip.pixels])
        del mixing_CAL
    shift = line.new_empty(channels, pixels)
    lines = _lines(size, height, width)
    start(gram.unfold_line, (channels, 1, 1), (line, shift), (pixels, height), lines)
    grad_NHWC = torch.empty_like(x_NHWC)
    start(
        gram.to_images,
        (pixels, ceil_div(channels, CHANNELS), ceil_div(images, IMAGES)),
        (mixed_CPM, factor, shift, grad_NHWC),
        (n, images, pixels),
        {"C": channels, "BC": CHANNELS, "BN": IMAGES},
    )
    return grad_NHWC


# -- the matrices ----------------------------------------------------------------------------------------------


def _turned(x_NHWC: Tensor) -> tuple[Tensor, Tensor]:
    """The map as ``(C, Q, M)``, zero-padded, and partial sums over images, ``(parts, C, P)``.

    M is a multiple of 8, and Q at least P + 7, for efficient matrix products.
    """
    n, height, width, channels = x_NHWC.shape
    pixels, images = height * width, round_up(n, 8)
    x_CQM = x_NHWC.new_empty(channels, round_up(pixels + 7, 8), images)
    parts = ceil_div(images, IMAGES)
    sums = x_NHWC.new_empty(parts, channels, pixels, dtype=torch.float32)
    constants = {"C": channels, "Q": x_CQM.shape[1], "BC": CHANNELS, "BN": IMAGES}
    grid = (x_CQM.shape[1], ceil_div(channels, CHANNELS), parts)
    start(gram.to_channels, grid, (x_NHWC, x_CQM, sums), (n, images, pixels), constants)
    return x_CQM, sums


def _of_taps(x_NHWC: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Empty fp32 buffers for every channel: a matrix of taps by taps, and one value per tap."""
    channels = x_NHWC.shape[-1]
    matrices = x_NHWC.new_empty(channels, size**4, dtype=torch.float32)
    return matrices, matrices.new_empty(channels, size, size)


def _gram(a_CAM: Tensor, b_CLM: Tensor) -> Tensor:
    """Products of pixel pairs, summed over images in fp32, ``(C, A, L)``."""
    if INTERPRETED:
        return torch.bmm(a_CAM.float(), b_CLM.float().transpose(1, 2))
    return torch.bmm(a_CAM, b_CLM.transpose(1, 2), out_dtype=torch.float32)


@dataclass(frozen=True)
class Strip:
    """Rows ``row`` to ``end`` (exclusive) by the rows *facing* them, for some channels."""

    channels: slice
    width: int
    row: int
    end: int
    facing: int
    facing_end: int

    @property
    def pixels(self) -> slice:
        return slice(self.row * self.width, self.end * self.width)

    @property
    def facing_pixels(self) -> slice:
        """Pixels of the facing rows, padded to a multiple of 8."""
        first = self.facing * self.width
        return slice(first, first + round_up((self.facing_end - self.facing) * self.width, 8))


def _strips(
    channels: int, height: int, width: int, size: int, above: int, bytes_each: int
) -> Iterator[Strip]:
    """Split all rows as evenly as possible; each strip faces ``above`` rows before and ``size - 1`` rows after it."""
    rows = ceil_div(height, ceil_div(height * width, STRIP))
    for row in range(0, height, rows):
        end = min(row + rows, height)
        facing, facing_end = max(row - above, 0), min(end + size - 1, height)
        bytes_a_channel = (end - row) * (facing_end - facing) * width**2 * bytes_each
        together = ceil_div(channels, ceil_div(channels * bytes_a_channel, AT_ONCE))
        for first in range(0, channels, together):
            some = slice(first, min(first + together, channels))
            yield Strip(some, width, row, end, facing, facing_end)


# -- constants -------------------------------------------------------------------------------------------------


def _lines(size: int, height: int, width: int) -> dict[str, int]:
    """Constants of fold_line and unfold_line; at least 16, as required for a matrix product."""
    block_h, block_w, block_k = (max(16, power_of_two(length)) for length in (height, width, size))
    return {"W": width, "K": size, "BH": block_h, "BW": block_w, "BK": block_k}


def _of_kernels(kernels_BCKK: Tensor) -> dict[str, int]:
    """Constants of apply and outer; at least 16, as required for a matrix product."""
    branches, channels, size, _ = kernels_BCKK.shape
    block_k, block_u = max(16, power_of_two(size)), max(16, power_of_two(size**2))
    return {
        "C": channels, "B": branches, "K": size, "BK": block_k, "BU": block_u,
        "num_warps": max(1, block_k * block_u // 1024),
    }  # fmt: skip
