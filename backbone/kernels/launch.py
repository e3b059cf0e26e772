"""Starting the Triton kernels: buffers, grids, and which kernel serves which shape.

Everything here takes ``(N, C, H, W)`` tensors of any strides and returns tensors that lie in memory as NHWC: channels
last is what the linear layers around a depthwise convolution want, and the order in which its taps share loads.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from backbone.kernels import autotune, taps, toeplitz
from backbone.kernels.start import INTERPRETED, MOST, start
from backbone.kernels.tilings import Tiling, forward_tilings, weight_grad_tilings

TAPS = 64  # that one program of toeplitz.fold sums
AT_ONCE = 3  # branches whose gradients lie in memory together


def _ceil_div(a: int, b: int) -> int:
    """triton.cdiv is slow outside of kernels."""
    return -(-a // b)


def _nhwc(x_NCHW: Tensor) -> Tensor:
    x_NHWC = x_NCHW.permute(0, 2, 3, 1).contiguous()
    # The interpreter multiplies bf16 matrices as if they were integers.
    return x_NHWC.float() if INTERPRETED and x_NHWC.dtype == torch.bfloat16 else x_NHWC


def _nchw(y_NHWC: Tensor, dtype: torch.dtype) -> Tensor:
    return y_NHWC.to(dtype).permute(0, 3, 1, 2)


def _contiguous(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()  # gradients come expanded, with stride 0


def _channel_block(channels: int) -> int:
    """A power of two of at most 64 that wastes no channel, or 8."""
    return max(8, min(64, channels & -channels))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, flip: bool) -> Tensor:
    """Depthwise convolution, "same" zero padding; ``flip``: with the kernel turned by 180 degrees.

    Shapes: x ``(N, C, H, W)``, weight ``(C, 1, K, K)``, bias ``(C,)`` or None -> ``(N, C, H, W)``.
    """
    x_NHWC = _nhwc(x)
    if x.dtype == torch.float32:
        y_NHWC = _convolve_by_tap(x_NHWC, weight, bias, dilation, flip)
    else:
        y_NHWC = _convolve_by_patch(x_NHWC, weight.transpose(0, 1), bias, dilation, flip)[0][0]
    return _nchw(y_NHWC, x.dtype)


def convolve_with_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`convolve`, and the output's sums over each map ``(N, C)`` and of squares over all ``(C,)``, fp32."""
    if x.dtype == torch.float32:
        y = convolve(x, weight, bias, dilation, flip=False)
        return y, y.sum((2, 3)), y.square().sum((0, 2, 3))
    y_1NHWC, sums_TNC, squares_1RC = _convolve_by_patch(
        _nhwc(x), weight.transpose(0, 1), bias, dilation, sums="per image"
    )
    sums_NC = sums_TNC[0] if len(sums_TNC) == 1 else sums_TNC.sum(0)
    return _nchw(y_1NHWC[0], x.dtype), sums_NC, squares_1RC[0].sum(0)


def moments(x: Tensor, kernels_BCKK: Tensor) -> Tensor:
    """Sums over the outputs of B convolutions of one map, and over their squares, ``(2, B, C)``, fp32.

    In half precision the outputs are not written.
    """
    x_NHWC = _nhwc(x)
    if x.dtype == torch.float32:
        y_BNHWC = _convolve_branches(x_NHWC, kernels_BCKK, None, False, by_tap=True)
        return torch.stack([y_BNHWC.sum((1, 2, 3)), y_BNHWC.square().sum((1, 2, 3))])
    _, totals_2BRC, _ = _convolve_by_patch(x_NHWC, kernels_BCKK, None, 1, store=False, sums="in all")
    return totals_2BRC.sum(2)


def moments_grad(x: Tensor, kernels_BCKK: Tensor, grad_2BC: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`moments`: of x, and of the kernels (fp32).

    At an unwritten output y the gradient is grad_sum + 2 grad_squares y, and y = conv(x, kernel): that is one more
    convolution with a scaled kernel and a bias.
    """
    x_NHWC, by_tap = _nhwc(x), x.dtype == torch.float32
    scaled_BCKK = kernels_BCKK * (2 * grad_2BC[1])[:, :, None, None]
    grad_x_NHWC, grad_kernels = torch.empty_like(x_NHWC), []
    for first in range(0, len(kernels_BCKK), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        grad_BNHWC = _convolve_branches(x_NHWC, scaled_BCKK[some], grad_2BC[0, some], False, by_tap)
        grad_kernels.append(_weight_grads(x_NHWC, grad_BNHWC, kernels_BCKK.shape[-1], by_tap))
        parts_BNHWC = _convolve_branches(grad_BNHWC, kernels_BCKK[some], None, True, by_tap)
        _add_branches(parts_BNHWC, grad_x_NHWC, more=first > 0)
    return _nchw(grad_x_NHWC, x.dtype), torch.cat(grad_kernels) if len(grad_kernels) > 1 else grad_kernels[0]


def _add_branches(maps_BNHWC: Tensor, total_NHWC: Tensor, more: bool) -> None:
    """Their sum, or ``more`` on top of what is there, into ``total_NHWC``."""
    size = total_NHWC.numel()
    constants = {"B": len(maps_BNHWC), "MORE": more, "BLOCK": 2048}
    grid = (_ceil_div(size, constants["BLOCK"]), 1, 1)
    start(toeplitz.add_branches, grid, (maps_BNHWC, total_NHWC), (size,), constants)


def _convolve_branches(
    x: Tensor, kernels_BCKK: Tensor, bias_BC: Tensor | None, flip: bool, by_tap: bool
) -> Tensor:
    """B convolutions, ``(B, N, H, W, C)``, of one map ``(N, H, W, C)`` or each of its own ``(B, N, H, W, C)``."""
    if not by_tap:
        return _convolve_by_patch(x, kernels_BCKK, bias_BC, 1, flip)[0]
    maps = x if x.dim() == 5 else [x] * len(kernels_BCKK)
    biases = [None] * len(kernels_BCKK) if bias_BC is None else bias_BC
    each = zip(maps, kernels_BCKK.unsqueeze(2), biases, strict=True)
    return torch.stack([_convolve_by_tap(map_NHWC, kernel, bias, 1, flip) for map_NHWC, kernel, bias in each])


def _weight_grads(x_NHWC: Tensor, grad_BNHWC: Tensor, kernel_size: int, by_tap: bool) -> Tensor:
    """Gradients of B kernels applied to one map, ``(B, C, K, K)``, fp32."""
    if not by_tap:
        return _weight_grad_by_patch(x_NHWC, grad_BNHWC, kernel_size, 1, torch.float32)
    each = [_weight_grad_by_tap(x_NHWC, grad, kernel_size, 1, torch.float32) for grad in grad_BNHWC]
    return torch.stack(each).squeeze(2)


def _convolve_by_tap(
    x_NHWC: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, flip: bool
) -> Tensor:
    n, height, width, channels = x_NHWC.shape
    kernel_size = weight.shape[-1]
    y_NHWC = torch.empty_like(x_NHWC)
    block = _channel_block(channels)
    pixels = n * height * width
    per_program = 2048 // block
    grid = (_ceil_div(pixels, per_program), _ceil_div(channels, block))
    taps.conv_by_tap[grid](
        x_NHWC, weight.contiguous(), _contiguous(bias), y_NHWC, pixels, channels, height, width, -1 if flip else 1,
        K=kernel_size, D=dilation, PIXELS=per_program, CB=block, BIAS=bias is not None, UNROLL=kernel_size <= 5,
    )  # fmt: skip
    return y_NHWC


def _convolve_by_patch(
    x: Tensor, kernels_BCKK: Tensor, bias: Tensor | None, dilation: int, flip: bool = False, store: bool = True,
    sums: Literal["none", "per image", "in all"] = "none", tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """B convolutions, ``(B, N, H, W, C)``, of one map ``(N, H, W, C)`` or each of its own ``(B, N, H, W, C)``.

    Returns:
        The outputs, and their sums in parts: per image, of one convolution, ``(T, N, C)``, and of squares ``(1, R,
        C)``; in all, both, ``(2, B, R, C)``.
    """
    n, height, width, channels = x.shape[-4:]
    branches, _, kernel_size, _ = kernels_BCKK.shape
    if tiling is None:
        tiling = autotune.choose(
            f"forward {x.dtype}",
            (branches, *x.shape, kernel_size, dilation, store, sums != "none"),
            x.device,
            forward_tilings(dilation * (kernel_size // 2), height, width),
            lambda t: _convolve_by_patch(x, kernels_BCKK, bias, dilation, flip, store, sums, t),
        )
    nothing = x.new_empty(0, dtype=torch.float32)
    y = x.new_empty(branches, n, height, width, channels) if store else nothing
    tiles = tiling.tiles(height, width)
    blocks = branches * _ceil_div(channels, tiling.channels)
    splits = _splits(x.device, tiling, blocks * tiles, n)
    totals, squares = nothing, nothing
    if sums != "none":
        totals = x.new_empty(2, branches, tiles * splits, channels, dtype=torch.float32)
        squares = totals[1]
    if sums == "per image":
        totals = x.new_empty(tiles, n, channels, dtype=torch.float32)
    known = (height, width) if tiling.halo == (0, 0) and not tiling.by_column else (0, 0)
    start(
        toeplitz.conv_by_column if tiling.by_column else toeplitz.conv_by_tile,
        (blocks, splits, tiles),
        (x, kernels_BCKK.contiguous(), _contiguous(bias), y, totals, squares),
        (n, height, width, -1 if flip else 1, splits),
        _convolution(
            tiling,
            kernel_size,
            dilation,
            channels,
            n % tiling.images == 0,
            known,
            bias is not None,
            store,
            sums,
            x.dim() == 5,
        ),
    )
    return y, totals, squares


@lru_cache(MOST)
def _convolution(
    tiling: Tiling, kernel_size: int, dilation: int, channels: int, whole: bool, known: tuple[int, int],
    bias: bool, store: bool, sums: str, stacked: bool,
) -> dict[str, Any]:  # fmt: skip
    """Constants of conv_by_tile and conv_by_column."""
    asked = {"BIAS": bias, "STORE": store, "SUMS": sums != "none", "PER_IMAGE": sums == "per image"}
    constants = _cut(tiling, kernel_size, dilation, channels, whole) | asked | {"STACKED": stacked}
    if tiling.by_column:
        return constants
    return constants | {"TJ": tiling.tile[1], "HJ": tiling.halo[1], "HEIGHT": known[0], "WIDTH": known[1]}


@lru_cache(MOST)
def _cut(tiling: Tiling, kernel_size: int, dilation: int, channels: int, whole: bool) -> dict[str, Any]:
    """Constants of every kernel that takes a tiling, and its options."""
    options = {"num_warps": tiling.channels, "num_stages": 1}
    if tiling.registers and not INTERPRETED:
        options["maxnreg"] = tiling.registers
    return options | _bands(tiling, kernel_size, dilation) | {
        "TI": tiling.tile[0], "HI": tiling.halo[0], "CB": tiling.channels, "NB": tiling.images,
        "C": channels, "WHOLE": whole,
    }  # fmt: skip


@lru_cache(MOST)
def _bands(tiling: Tiling, kernel_size: int, dilation: int) -> dict[str, Any]:
    """Constants that say where a band holds which tap."""
    (ph, pw), (di, dj) = tiling.patch, tiling.reach
    return {"K": kernel_size, "D": dilation, "PH": ph, "PW": pw, "DI": di, "DJ": dj}


def _splits(device: torch.device, tiling: Tiling, others: int, images: int) -> int:
    """Programs among which the images are split."""
    programs = _multiprocessors(device) * tiling.resident
    return _fewest_rounds(_ceil_div(images, tiling.images), others, programs)


@lru_cache(MOST)
def _fewest_rounds(blocks: int, others: int, programs: int) -> int:
    """Into how many parts to split ``blocks`` blocks of images, so that ``others`` programs for each part, of which
    ``programs`` run at a time, are done soonest. A program's bands take it about as long as half a block."""
    return min(
        range(1, blocks + 1),
        key=lambda splits: _ceil_div(others * splits, programs) * (_ceil_div(blocks, splits) + 0.5),
    )


@cache
def _multiprocessors(device: torch.device) -> int:
    return 4 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def weight_grad(x: Tensor, grad: Tensor, kernel_size: int, dilation: int, dtype: torch.dtype) -> Tensor:
    """Gradient of the weight, ``(C, 1, K, K)``; the same bits every time (no atomics).

    Shapes: x, the input, and grad, the output's gradient, ``(N, C, H, W)`` both.
    """
    if x.dtype == torch.float32:
        return _weight_grad_by_tap(_nhwc(x), _nhwc(grad), kernel_size, dilation, dtype)
    grads_BCKK = _weight_grad_by_patch(_nhwc(x), _nhwc(grad)[None], kernel_size, dilation, dtype)
    return grads_BCKK.view(-1, 1, kernel_size, kernel_size)


def _weight_grad_by_tap(
    x_NHWC: Tensor, grad_NHWC: Tensor, kernel_size: int, dilation: int, dtype: torch.dtype
) -> Tensor:
    n, height, width, channels = x_NHWC.shape
    block = _channel_block(channels)
    rows = kernel_size if kernel_size == 3 else 1
    per_program = (1024 if kernel_size <= 15 else 512) // block
    pixels = n * height * width
    others = _ceil_div(channels, block) * _ceil_div(kernel_size, rows)
    splits = max(1, min(_ceil_div(pixels, per_program), 8 * _multiprocessors(x_NHWC.device) // others))
    shape = (splits, kernel_size, kernel_size, channels)
    partial_SKKC = torch.empty(shape, dtype=torch.float32, device=x_NHWC.device)
    grid = (_ceil_div(channels, block), splits, _ceil_div(kernel_size, rows))
    taps.weight_grad_by_tap[grid](
        x_NHWC, grad_NHWC, partial_SKKC, pixels, channels, height, width, splits,
        K=kernel_size, D=dilation, ROWS=rows, PIXELS=per_program, CB=block,
    )  # fmt: skip
    return partial_SKKC.sum(0).permute(2, 0, 1).unsqueeze(1).contiguous().to(dtype)


def _weight_grad_by_patch(
    x_NHWC: Tensor, grad_BNHWC: Tensor, kernel_size: int, dilation: int, dtype: torch.dtype,
    tiling: Tiling | None = None,
) -> Tensor:  # fmt: skip
    """Gradients of the B kernels ``(B, C, K, K)`` that made of one x outputs with these gradients."""
    branches, n, height, width, channels = grad_BNHWC.shape
    if tiling is None:
        tiling = autotune.choose(
            f"weight gradient {x_NHWC.dtype}",
            (*grad_BNHWC.shape, kernel_size, dilation),
            x_NHWC.device,
            weight_grad_tilings(dilation * (kernel_size // 2), height, width),
            lambda t: _weight_grad_by_patch(x_NHWC, grad_BNHWC, kernel_size, dilation, dtype, t),
        )
    blocks, (di, dj), pixels = _ceil_div(channels, tiling.channels), tiling.reach, math.prod(tiling.patch)
    splits = _splits(x_NHWC.device, tiling, branches * blocks * (2 * dj + 1), n)
    shape = (splits, branches, channels, 2 * dj + 1, 2 * di + 1, pixels, pixels)
    partial = torch.empty(shape, dtype=torch.float32, device=x_NHWC.device)
    start(
        toeplitz.weight_grad,
        (branches * blocks, splits, 2 * dj + 1),
        (x_NHWC, grad_BNHWC, partial),
        (n, height, width, splits),
        _cut(tiling, kernel_size, dilation, channels, n % tiling.images == 0),
    )
    out = torch.empty(branches, channels, kernel_size, kernel_size, dtype=dtype, device=x_NHWC.device)
    constants = {**_bands(tiling, kernel_size, dilation), "TAPS": TAPS}
    start(
        toeplitz.fold,
        (branches * channels, _ceil_div(kernel_size**2, TAPS), 1),
        (partial, out),
        (branches * channels, splits),
        constants,
    )
    return out
