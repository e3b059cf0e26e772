"""Depthwise convolution as small matrix products on tensor cores.

One channel of the map is cut into patches of 16 pixels (``PH x PW``: 1 x 16 or 2 x 8). What an input patch gives to
the output patch ``(di, dj)`` patches before it is linear, hence a 16 x 16 matrix; it depends on ``(di, dj)`` alone and
holds kernel taps along its diagonals, zeros elsewhere: a *band* of a block-Toeplitz matrix. With 16 images as the
rows of a matrix,

    out[image, patch] = sum over (di, dj) of  in[image, patch + (di, dj)] @ band[di, dj],

and each product is two tensor-core instructions. A warp holds the bands and the patches of one channel in registers
and multiplies the pairs that some tap joins. The gradient of the input is the same product with the kernel turned by
180 degrees (``sign`` -1). The gradient of the weight is, for each displacement, in.T @ grad summed over images and
patches, and then a sum along the diagonals (:func:`fold`).

Tensors lie in memory as NHWC. Shape legend inside kernels: c channels of this program (one a warp), n images, a or b
the 16 pixels of a patch. K taps a side, D dilation; TI x TJ output patches a program; DI x DJ patches that the kernel
reaches to each side; HI x HJ input patches read around the tile (0: the tile is the whole map).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


# One compiled kernel for any number of images and map size; only the channels' divisibility is worth another.
_ANY_SIZE = ("N", "H", "W", "sign", "splits")


@triton.constexpr_function
def joins(displacement, side, K, D):
    """Whether some tap joins two patches of ``side`` pixels, ``displacement`` patches apart along one axis."""
    offsets = range(displacement * side - side + 1, displacement * side + side)
    return any(offset % D == 0 and abs(offset) <= K // 2 * D for offset in offsets)


@triton.jit
def _load_patch(x, n, c, i, j, N, C, H, W, PH: tl.constexpr, PW: tl.constexpr):
    """Pixels of patch (i, j), zero outside the map: ``(n, a, c)``."""
    a = tl.arange(0, PH * PW)
    h = i * PH + a // PW
    w = j * PW + a % PW
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    image = n.to(tl.int64) * (H * W * C)
    pointers = x + image[:, None, None] + ((h * W + w) * C)[None, :, None] + c[None, None, :]
    mask = (n < N)[:, None, None] & inside[None, :, None] & (c < C)[None, None, :]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _load_band(
    weight, c, C, sign, di, dj,
    dtype: tl.constexpr, K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
):  # fmt: skip
    """The matrix ``(c, a, b)`` from an input patch to the output patch (di, dj) patches before it."""
    a = tl.arange(0, PH * PW)[None, :, None]
    b = tl.arange(0, PH * PW)[None, None, :]
    # Both offsets in pixels, shifted so that tap 0 lies at 0.
    h = sign * (di * PH + a // PW - b // PW) + K // 2 * D
    w = sign * (dj * PW + a % PW - b % PW) + K // 2 * D
    mask = (h >= 0) & (h < K * D) & (w >= 0) & (w < K * D) & (c < C)[:, None, None]
    if D > 1:
        mask = mask & (h % D == 0) & (w % D == 0)
    taps = tl.load(weight + c[:, None, None] * (K * K) + h // D * K + w // D, mask=mask, other=0.0)
    return taps.to(dtype)


@triton.jit
def _finish(
    acc, total, squares, y, bias, n, c, i, j, N, C, H, W,
    PH: tl.constexpr, PW: tl.constexpr, BIAS: tl.constexpr, STORE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Bias, output and sums of one finished output patch ``acc (c, n, a)``; returns the sums so far ``(c, n)``."""
    if BIAS:
        acc += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[:, None, None]
    a = tl.arange(0, PH * PW)
    h = i * PH + a // PW
    w = j * PW + a % PW
    inside = (h < H) & (w < W)
    if STORE:
        image = n.to(tl.int64) * (H * W * C)
        pointers = y + image[:, None, None] + ((h * W + w) * C)[None, :, None] + c[None, None, :]
        mask = (n < N)[:, None, None] & inside[None, :, None] & (c < C)[None, None, :]
        tl.store(pointers, tl.permute(acc.to(y.dtype.element_ty), (1, 2, 0)), mask=mask)
    if SUMS:
        counted = tl.where((n < N)[None, :, None] & inside[None, None, :], acc, 0.0)
        total += tl.sum(counted, axis=2)
        squares += tl.sum(counted * counted, axis=2)
    return total, squares


@triton.jit
def _store_sums(sums, sums_of_squares, total, squares, n, c, tile, N, C):
    """``sums (tile, N, C)`` over one tile of the map, ``sums_of_squares (tile, block of images, C)``."""
    row = (tile * N + n).to(tl.int64)
    tl.store(sums + row[None, :] * C + c[:, None], total, mask=(c < C)[:, None] & (n < N)[None, :])
    block = tile * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums_of_squares + block * C + c, tl.sum(squares, axis=1), mask=c < C)


@triton.jit
def _output_row(
    patches, bands, total, squares, y, bias, n, c, i0, j0, i: tl.constexpr, N, C, H, W,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    DI: tl.constexpr, DJ: tl.constexpr, HI: tl.constexpr, HJ: tl.constexpr,
    BIAS: tl.constexpr, STORE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Output patches of row i of the tile; returns the running sums and sums of squares ``(c, n)``."""
    for j in tl.static_range(TJ):
        acc = tl.zeros((c.shape[0], n.shape[0], PH * PW), tl.float32)
        for di in tl.static_range(-DI, DI + 1):
            for dj in tl.static_range(-DJ, DJ + 1):
                if i + di >= -HI and i + di < TI + HI and j + dj >= -HJ and j + dj < TJ + HJ:
                    if joins(di, PH, K, D) and joins(dj, PW, K, D):
                        patch = patches[(i + di + HI) * (TJ + 2 * HJ) + j + dj + HJ]
                        acc = tl.dot(patch, bands[(di + DI) * (2 * DJ + 1) + dj + DJ], acc)
        total, squares = _finish(
            acc, total, squares, y, bias, n, c, i0 + i, j0 + j, N, C, H, W, PH, PW, BIAS, STORE, SUMS
        )
    return total, squares


@triton.jit(do_not_specialize=_ANY_SIZE)
def conv_by_tile(
    x, weight, bias, y, sums, sums_of_squares, N, C, H, W, sign,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    DI: tl.constexpr, DJ: tl.constexpr, HI: tl.constexpr, HJ: tl.constexpr, CB: tl.constexpr, NB: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BIAS: tl.constexpr, STORE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """All bands stay in registers; input patches are read row by row, each output row made as soon as it can be.

    ``STORE``: write the output. ``SUMS``: also its sums over the tile, ``sums (tile, N, C)``, and its sums of squares
    over the tile and this block of images, ``sums_of_squares (tile, block, C)``, both fp32.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    n = tl.program_id(1) * NB + tl.arange(0, NB)
    tile = tl.program_id(2)
    i0 = 0
    j0 = 0
    if HEIGHT > 0:  # the compiler drops most tests for the map's border
        H = HEIGHT
        W = WIDTH
    if HI > 0 or HJ > 0:
        tiles_across = tl.cdiv(W, TJ * PW)
        i0 = tile // tiles_across * TI
        j0 = tile % tiles_across * TJ

    bands = ()
    for di in tl.static_range(-DI, DI + 1):
        for dj in tl.static_range(-DJ, DJ + 1):
            if joins(di, PH, K, D) and joins(dj, PW, K, D):
                bands = bands + (_load_band(weight, c, C, sign, di, dj, x.dtype.element_ty, K, D, PH, PW),)
            else:
                bands = bands + (0,)  # never used

    total = tl.zeros((CB, NB), tl.float32)
    squares = tl.zeros((CB, NB), tl.float32)
    patches = ()
    for i in tl.static_range(-HI, TI + DI):
        if i < TI + HI:
            for j in tl.static_range(-HJ, TJ + HJ):
                patch = _load_patch(x, n, c, i0 + i, j0 + j, N, C, H, W, PH, PW)
                patches = patches + (tl.permute(patch, (2, 0, 1)),)
        if i - DI >= 0:
            total, squares = _output_row(
                patches, bands, total, squares, y, bias, n, c, i0, j0, i - DI, N, C, H, W,
                K, D, PH, PW, TI, TJ, DI, DJ, HI, HJ, BIAS, STORE, SUMS,
            )  # fmt: skip
    if SUMS:
        _store_sums(sums, sums_of_squares, total, squares, n, c, tile, N, C)


@triton.jit(do_not_specialize=_ANY_SIZE)
def conv_by_column(
    x, weight, bias, y, sums, sums_of_squares, N, C, H, W, sign,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, DI: tl.constexpr,
    DJ: tl.constexpr, HI: tl.constexpr, CB: tl.constexpr, NB: tl.constexpr,
    BIAS: tl.constexpr, STORE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """For kernels and maps too large for :func:`conv_by_tile`: one column of output patches stays in registers, and
    the bands of one horizontal displacement at a time. Input columns are read 2 DJ + 1 times."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    n = tl.program_id(1) * NB + tl.arange(0, NB)
    columns = tl.cdiv(W, PW)
    i0 = tl.program_id(2) // columns * TI
    j = tl.program_id(2) % columns

    outputs = ()
    for _ in tl.static_range(TI):
        outputs = outputs + (tl.zeros((CB, NB, PH * PW), tl.float32),)
    for dj in range(-DJ, DJ + 1):
        bands = ()
        for di in tl.static_range(-DI, DI + 1):
            if joins(di, PH, K, D):
                bands = bands + (_load_band(weight, c, C, sign, di, dj, x.dtype.element_ty, K, D, PH, PW),)
            else:
                bands = bands + (0,)  # never used
        for i in tl.static_range(-HI, TI + HI):
            patch = tl.permute(_load_patch(x, n, c, i0 + i, j + dj, N, C, H, W, PH, PW), (2, 0, 1))
            updated = ()
            for o in tl.static_range(TI):
                if i - o >= -DI and i - o <= DI and joins(i - o, PH, K, D):
                    updated = updated + (tl.dot(patch, bands[i - o + DI], outputs[o]),)
                else:
                    updated = updated + (outputs[o],)
            outputs = updated

    total = tl.zeros((CB, NB), tl.float32)
    squares = tl.zeros((CB, NB), tl.float32)
    for o in tl.static_range(TI):
        total, squares = _finish(
            outputs[o], total, squares, y, bias, n, c, i0 + o, j, N, C, H, W, PH, PW, BIAS, STORE, SUMS
        )
    if SUMS:
        _store_sums(sums, sums_of_squares, total, squares, n, c, tl.program_id(2), N, C)


@triton.jit(do_not_specialize=_ANY_SIZE)
def weight_grad(
    x, grad, partial, N, C, H, W, splits,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, DI: tl.constexpr,
    DJ: tl.constexpr, HI: tl.constexpr, CB: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """For every displacement, in.T @ grad over this program's images: ``partial (split, C, dj, di, a, b)`` fp32.

    A program takes one block of channels, one horizontal displacement, and every ``splits``-th block of images.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    split = tl.program_id(1)
    dj = tl.program_id(2) - DJ
    first = tl.maximum(-dj, 0)  # the first output column whose input column lies on the map
    columns = tl.maximum(tl.cdiv(W, PW) - tl.abs(dj), 0)
    row_tiles = tl.cdiv(H, TI * PH)
    steps = tl.cdiv(tl.cdiv(N, NB) - split, splits) * columns * row_tiles

    sums = ()
    for _ in tl.static_range(2 * DI + 1):
        sums = sums + (tl.zeros((CB, PH * PW, PH * PW), tl.float32),)
    step = 0
    while step < steps:
        j = first + step % columns
        i0 = step // columns % row_tiles * TI
        n = (split + step // (columns * row_tiles) * splits) * NB + tl.arange(0, NB)
        patches = ()
        for i in tl.static_range(-HI, TI + DI):
            if i < TI + HI:
                patch = _load_patch(x, n, c, i0 + i, j + dj, N, C, H, W, PH, PW)
                patches = patches + (tl.permute(patch, (2, 1, 0)),)
            if i - DI >= 0:
                g = tl.permute(_load_patch(grad, n, c, i0 + i - DI, j, N, C, H, W, PH, PW), (2, 0, 1))
                updated = ()
                for di in tl.static_range(-DI, DI + 1):
                    if i - DI + di >= -HI and i - DI + di < TI + HI and joins(di, PH, K, D):
                        updated = updated + (tl.dot(patches[i - DI + di + HI], g, sums[di + DI]),)
                    else:
                        updated = updated + (sums[di + DI],)
                sums = updated
        step += 1

    a = tl.arange(0, PH * PW)[None, :, None]
    b = tl.arange(0, PH * PW)[None, None, :]
    channel = (split * C + c)[:, None, None].to(tl.int64) * (2 * DJ + 1) + dj + DJ
    for d in tl.static_range(2 * DI + 1):
        pointers = partial + (channel * (2 * DI + 1) + d) * (PH * PW * PH * PW) + a * (PH * PW) + b
        tl.store(pointers, sums[d], mask=(c < C)[:, None, None])


@triton.jit(do_not_specialize=_ANY_SIZE)
def fold(
    partial, weight_grad, C, splits,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DI: tl.constexpr, DJ: tl.constexpr,
    TAPS: tl.constexpr,
):  # fmt: skip
    """Sum ``partial`` over splits and along the diagonals that belong to each tap: ``weight_grad (C, K, K)``."""
    A: tl.constexpr = PH * PW
    c = tl.program_id(0)
    tap = tl.program_id(1) * TAPS + tl.arange(0, TAPS)
    b = tl.arange(0, A)[None, :]
    # Output pixel b and this tap meet the input pixel (h, w), counted from DI x DJ patches before the output patch.
    h = ((tap // K - K // 2) * D)[:, None] + b // PW + DI * PH
    w = ((tap % K - K // 2) * D)[:, None] + b % PW + DJ * PW
    di = h // PH
    dj = w // PW
    a = h % PH * PW + w % PW
    reached = (h >= 0) & (di <= 2 * DI) & (w >= 0) & (dj <= 2 * DJ) & (tap < K * K)[:, None]
    acc = tl.zeros((TAPS, A), tl.float32)
    split = 0
    while split < splits:
        channel = (split * C + c).to(tl.int64)
        pointers = partial + ((channel * (2 * DJ + 1) + dj) * (2 * DI + 1) + di) * (A * A) + a * A + b
        acc += tl.load(pointers, mask=reached, other=0.0)
        split += 1
    total = tl.sum(acc, axis=1).to(weight_grad.dtype.element_ty)
    tl.store(weight_grad + c * (K * K) + tap, total, mask=tap < K * K)
