"""Launching the Triton kernels: buffers, grids, and kernel selection by shape.

All functions take ``(N, C, H, W)`` tensors of any strides and return tensors in NHWC memory format, which suits
the linear layers around a depthwise convolution and lets its taps share loads.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from backbone.kernels import autotune, taps, toeplitz
from backbone.kernels.sizes import ceil_div, power_of_two
from backbone.kernels.start import ALIGNED, INTERPRETED, MOST, start
from backbone.kernels.tilings import Tiling, forward_tilings, weight_grad_tilings

TAPS = 64  # taps per program of toeplitz.fold
BOXES = 3  # boxes in shared memory at a time


def nhwc(x_NCHW: Tensor) -> Tensor:
    x_NHWC = x_NCHW.permute(0, 2, 3, 1).contiguous()
    # The interpreter treats bf16 matrices as integers in products.
    return x_NHWC.float() if INTERPRETED and x_NHWC.dtype == torch.bfloat16 else x_NHWC


def nchw(y_NHWC: Tensor, dtype: torch.dtype) -> Tensor:
    return y_NHWC.to(dtype).permute(0, 3, 1, 2)


def _contiguous(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()  # gradients may be expanded, with stride 0


def _channel_block(channels: int) -> int:
    """The block of channels: a power of two up to 64 that divides the channels, but at least 8."""
    return max(8, min(64, channels & -channels))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, flip: bool) -> Tensor:
    """Depthwise convolution, "same" zero padding; ``flip``: with the kernel rotated by 180 degrees.

    Shapes: x ``(N, C, H, W)``, weight ``(C, 1, K, K)``, bias ``(C,)`` or None -> ``(N, C, H, W)``.
    """
    x_NHWC = nhwc(x)
    if x.dtype == torch.float32:
        y_NHWC = _convolve_by_tap(x_NHWC, weight, bias, dilation, flip)
    else:
        y_NHWC, _, _ = _convolve_by_patch(x_NHWC, weight, bias, dilation, flip)
    return nchw(y_NHWC, x.dtype)


def convolve_with_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`convolve`, and the output's sum over each map ``(N, C)`` and sum of squares over all ``(C,)``, fp32."""
    if x.dtype == torch.float32:
        y = convolve(x, weight, bias, dilation, flip=False)
        return y, y.sum((2, 3)), y.square().sum((0, 2, 3))
    y_NHWC, sums_TNC, squares_RC = _convolve_by_patch(nhwc(x), weight, bias, dilation, sums=True)
    sums_NC = sums_TNC[0] if len(sums_TNC) == 1 else sums_TNC.sum(0)
    return nchw(y_NHWC, x.dtype), sums_NC, squares_RC.sum(0)


def _convolve_by_tap(
    x_NHWC: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, flip: bool
) -> Tensor:
    n, height, width, channels = x_NHWC.shape
    kernel_size = weight.shape[-1]
    y_NHWC = torch.empty_like(x_NHWC)
    block = _channel_block(channels)
    pixels = n * height * width
    per_program = 2048 // block
    grid = (ceil_div(pixels, per_program), ceil_div(channels, block))
    taps.conv_by_tap[grid](
        x_NHWC, weight.contiguous(), _contiguous(bias), y_NHWC, pixels, channels, height, width, -1 if flip else 1,
        K=kernel_size, D=dilation, PIXELS=per_program, CB=block, BIAS=bias is not None, UNROLL=kernel_size <= 5,
    )  # fmt: skip
    return y_NHWC


def _convolve_by_patch(
    x_NHWC: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, flip: bool = False, sums: bool = False,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The output, ``(N, H, W, C)``; with ``sums``, partial sums ``(T, N, C)`` and sums of squares ``(R, C)``."""
    n, height, width, channels = x_NHWC.shape
    kernel_size = weight.shape[-1]
    if tiling is None:
        tiling = autotune.choose(
            f"forward {x_NHWC.dtype}",
            (*x_NHWC.shape, kernel_size, dilation, sums),
            x_NHWC.device,
            forward_tilings(dilation * (kernel_size // 2), height, width, _boxes(x_NHWC)),
            lambda t: _convolve_by_patch(x_NHWC, weight, bias, dilation, flip, sums, t),
        )
    y_NHWC = torch.empty_like(x_NHWC)
    tiles = tiling.tiles(height, width)
    blocks = ceil_div(channels, tiling.channels)
    splits = _splits(x_NHWC.device, tiling, blocks * tiles, n)
    totals = squares = x_NHWC.new_empty(0, dtype=torch.float32)
    if sums:
        totals, squares = totals.new_empty(tiles, n, channels), totals.new_empty(tiles * splits, channels)
    x_or_boxes, size = (_box(x_NHWC, tiling), ()) if tiling.boxes else (x_NHWC, (height, width))
    start(
        _kernel(tiling),
        (blocks, splits, tiles),
        (x_or_boxes, weight.contiguous(), _contiguous(bias), y_NHWC, totals, squares),
        (n, *size, -1 if flip else 1, splits),
        _convolution(
            tiling, kernel_size, dilation, (height, width), channels, n % tiling.images == 0, bias is not None,
            sums,
        ),
    )  # fmt: skip
    return y_NHWC, totals, squares


def _kernel(tiling: Tiling) -> Any:
    if tiling.boxes:
        return toeplitz.conv_by_box
    return toeplitz.conv_by_column if tiling.by_column else toeplitz.conv_by_tile


@lru_cache(MOST)
def _convolution(
    tiling: Tiling, kernel_size: int, dilation: int, size: tuple[int, int], channels: int, whole: bool,
    bias: bool, sums: bool,
) -> dict[str, Any]:  # fmt: skip
    """Constants of the :func:`_kernel` for this tiling."""
    constants = _cut(tiling, kernel_size, dilation, channels, whole) | {"BIAS": bias, "SUMS": sums}
    if tiling.by_column:
        return constants
    height, width = size if tiling.halo == (0, 0) else (0, 0)
    constants |= {"HEIGHT": height, "WIDTH": width}
    if tiling.boxes:
        del constants["DJ"], constants["HI"]  # 0
        return constants | {"BOXES": 0 if INTERPRETED else BOXES}
    return constants | {"TJ": tiling.tile[1], "HJ": tiling.halo[1]}


@lru_cache(MOST)
def _cut(tiling: Tiling, kernel_size: int, dilation: int, channels: int, whole: bool) -> dict[str, Any]:
    """Constants and options common to all kernels with a tiling."""
    options = {"num_warps": tiling.channels, "num_stages": 1}
    if tiling.registers and not INTERPRETED:
        options["maxnreg"] = tiling.registers
    return options | _bands(tiling, kernel_size, dilation) | {
        "TI": tiling.tile[0], "HI": tiling.halo[0], "CB": tiling.channels, "NB": tiling.images,
        "C": channels, "WHOLE": whole,
    }  # fmt: skip


@lru_cache(MOST)
def _bands(tiling: Tiling, kernel_size: int, dilation: int) -> dict[str, Any]:
    """Constants of the positions of taps in the bands."""
    (ph, pw), (di, dj) = tiling.patch, tiling.reach
    return {"K": kernel_size, "D": dilation, "PH": ph, "PW": pw, "DI": di, "DJ": dj}


def _boxes(x_NHWC: Tensor) -> bool:
    """Whether the tensor memory accelerator (TMA) can read this map; it needs 16-byte alignment."""
    pixel = x_NHWC.shape[3] * x_NHWC.element_size()
    aligned = pixel % ALIGNED == 0 and x_NHWC.data_ptr() % ALIGNED == 0
    return aligned and accelerator(x_NHWC.device)


@cache
def accelerator(device: torch.device) -> bool:
    """Whether to use the TMA: data-centre Hopper and Blackwell; other Blackwells lack shared memory for three boxes."""
    return INTERPRETED or torch.cuda.get_device_capability(device)[0] in (9, 10)


def _box(x_NHWC: Tensor, tiling: Tiling) -> TensorDescriptor:
    """TMA descriptor of the map, for boxes of some images, all patches, some channels; zero-filled outside the map."""
    box = [tiling.images, power_of_two(tiling.tile[0]) * tiling.patch[0], tiling.patch[1], tiling.channels]
    _, height, width, channels = x_NHWC.shape
    # Not the tensor's own strides, which are arbitrary for dimensions of size 1.
    strides = [height * width * channels, width * channels, channels, 1]
    return TensorDescriptor(x_NHWC, list(x_NHWC.shape), strides, box)


def _splits(device: torch.device, tiling: Tiling, others: int, images: int) -> int:
    """Number of programs among which the images are split."""
    programs = _multiprocessors(device) * tiling.resident
    return _fewest_rounds(ceil_div(images, tiling.images), others, programs)


@lru_cache(MOST)
def _fewest_rounds(blocks: int, others: int, programs: int) -> int:
    """Number of parts into which to split ``blocks`` blocks of images, to minimise the total time of ``others``
    programs per part with ``programs`` running concurrently. Loading its bands costs a program about half a block."""
    return min(
        range(1, blocks + 1),
        key=lambda splits: ceil_div(others * splits, programs) * (ceil_div(blocks, splits) + 0.5),
    )


@cache
def _multiprocessors(device: torch.device) -> int:
    return 4 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def weight_grad(x: Tensor, grad: Tensor, kernel_size: int, dilation: int, dtype: torch.dtype) -> Tensor:
    """Gradient of the weight, ``(C, 1, K, K)``; deterministic (no atomics).

    Shapes: x, the input, and grad, the output's gradient, ``(N, C, H, W)`` both.
    """
    if x.dtype == torch.float32:
        return _weight_grad_by_tap(nhwc(x), nhwc(grad), kernel_size, dilation, dtype)
    return _weight_grad_by_patch(nhwc(x), nhwc(grad), kernel_size, dilation, dtype)


def _weight_grad_by_tap(
    x_NHWC: Tensor, grad_NHWC: Tensor, kernel_size: int, dilation: int, dtype: torch.dtype
) -> Tensor:
    n, height, width, channels = x_NHWC.shape
    block = _channel_block(channels)
    rows = kernel_size if kernel_size == 3 else 1
    per_program = (1024 if kernel_size <= 15 else 512) // block
    pixels = n * height * width
    others = ceil_div(channels, block) * ceil_div(kernel_size, rows)
    splits = max(1, min(ceil_div(pixels, per_program), 8 * _multiprocessors(x_NHWC.device) // others))
    shape = (splits, kernel_size, kernel_size, channels)
    partial_SKKC = torch.empty(shape, dtype=torch.float32, device=x_NHWC.device)
    grid = (ceil_div(channels, block), splits, ceil_div(kernel_size, rows))
    taps.weight_grad_by_tap[grid](
        x_NHWC, grad_NHWC, partial_SKKC, pixels, channels, height, width, splits,
        K=kernel_size, D=dilation, ROWS=rows, PIXELS=per_program, CB=block,
    )  # fmt: skip
    return partial_SKKC.sum(0).permute(2, 0, 1).unsqueeze(1).contiguous().to(dtype)


def _weight_grad_by_patch(
    x_NHWC: Tensor, grad_NHWC: Tensor, kernel_size: int, dilation: int, dtype: torch.dtype,
    tiling: Tiling | None = None,
) -> Tensor:  # fmt: skip
    n, height, width, channels = x_NHWC.shape
    if tiling is None:
        tiling = autotune.choose(
            f"weight gradient {x_NHWC.dtype}",
            (*x_NHWC.shape, kernel_size, dilation),
            x_NHWC.device,
            weight_grad_tilings(dilation * (kernel_size // 2), height, width),
            lambda t: _weight_grad_by_patch(x_NHWC, grad_NHWC, kernel_size, dilation, dtype, t),
        )
    blocks, (di, dj), pixels = ceil_div(channels, tiling.channels), tiling.reach, math.prod(tiling.patch)
    splits = _splits(x_NHWC.device, tiling, blocks * (2 * dj + 1), n)
    shape = (splits, channels, 2 * dj + 1, 2 * di + 1, pixels, pixels)
    partial = torch.empty(shape, dtype=torch.float32, device=x_NHWC.device)
    start(
        toeplitz.weight_grad,
        (blocks, splits, 2 * dj + 1),
        (x_NHWC, grad_NHWC, partial),
        (n, height, width, splits),
        _cut(tiling, kernel_size, dilation, channels, n % tiling.images == 0),
    )
    out = torch.empty(channels, 1, kernel_size, kernel_size, dtype=dtype, device=x_NHWC.device)
    start(
        toeplitz.fold,
        (channels, ceil_div(kernel_size**2, TAPS), 1),
        (partial, out),
        (channels, splits),
        {**_bands(tiling, kernel_size, dilation), "TAPS": TAPS},
    )
    return out
