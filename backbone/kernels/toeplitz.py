"""Depthwise convolution as small matrix products on tensor cores.

One channel of the map is cut into patches of 16 pixels (``PH x PW``: 1 x 16 or 2 x 8). What an input patch gives to
the output patch ``(di, dj)`` patches before it is linear, hence a 16 x 16 matrix; it depends on ``(di, dj)`` alone and
holds kernel taps along its diagonals, zeros elsewhere: a *band* of a block-Toeplitz matrix. With 8 or 16 images as the
columns of a matrix,

    out[patch, images] = sum over (di, dj) of  band[di, dj] @ in[patch + (di, dj), images],

and each product is one tensor-core instruction for 8 images. A warp holds the bands and the patches of one channel in
registers and multiplies the pairs that some tap joins. The gradient of the input is the same product with the kernel
turned by 180 degrees (``sign`` -1). The gradient of the weight is, for each displacement, in @ grad.T summed over
images and patches, and then a sum along the diagonals (:func:`fold`).

Tensors lie in memory as NHWC. Shape legend inside kernels: c channels of this program (one a warp), n images, a the 16
pixels of an input patch, b those of an output patch, j patches of a row. K taps a side, D dilation; TI x TJ output
patches a program; DI x DJ patches that the kernel reaches to each side; HI x HJ input patches read around the tile (0:
the tile is the whole map).

Rows of patches are read and written as one tensor and split in registers: Triton's choice of memory layouts looks at
every pair of loads and stores, and a kernel with one of each for every patch would take a minute to compile.
"""

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
def _row_pointers(base, n, c, i, j0, N, C, H, W, PH: tl.constexpr, PW: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the patches (i, j0), (i, j0 + 1), ... lie, and which of their pixels lie on the map: ``(j, n, a, c)``."""
    a = tl.arange(0, PH * PW)[None, :]
    h = i * PH + a // PW
    w = (j0 + tl.arange(0, COLUMNS))[:, None] * PW + a % PW
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    pixel = (h * W + w) * C
    image = n.to(tl.int64) * (H * W * C)
    pointers = base + image[None, :, None, None] + pixel[:, None, :, None] + c[None, None, None, :]
    mask = (n < N)[None, :, None, None] & inside[:, None, :, None] & (c < C)[None, None, None, :]
    return pointers, mask


@triton.jit
def _unpack(row, COLUMNS: tl.constexpr):
    """The tensors along the last dimension of ``row``, of which there are 1, 2 or 4."""
    if COLUMNS == 1:
        return (tl.reshape(row, row.shape[:-1]),)
    elif COLUMNS == 2:
        first, second = tl.split(row)
        return first, second
    else:
        even, odd = tl.split(tl.reshape(row, (row.shape[0], row.shape[1], row.shape[2], 2, 2)))
        zeroth, second = tl.split(even)
        first, third = tl.split(odd)
        return zeroth, first, second, third


@triton.jit
def _pack(row, COLUMNS: tl.constexpr):
    """The inverse of :func:`_unpack`."""
    shape: tl.constexpr = row[0].shape
    if COLUMNS == 1:
        return tl.reshape(row[0], (shape[0], shape[1], shape[2], 1))
    elif COLUMNS == 2:
        return tl.join(row[0], row[1])
    else:
        pairs = tl.join(tl.join(row[0], row[2]), tl.join(row[1], row[3]))
        return tl.reshape(pairs, (shape[0], shape[1], shape[2], 4))


@triton.jit
def _load_row(x, n, c, i, j0, N, C, H, W, PH: tl.constexpr, PW: tl.constexpr, COLUMNS: tl.constexpr):
    """Patches (i, j0), ... of the input, zero outside the map: ``COLUMNS`` times ``(c, a, n)``."""
    pointers, mask = _row_pointers(x, n, c, i, j0, N, C, H, W, PH, PW, COLUMNS)
    return _unpack(tl.permute(tl.load(pointers, mask=mask, other=0.0), (3, 2, 1, 0)), COLUMNS)


@triton.jit
def _load_bands(
    weight, c, C, sign, di, dj0,
    dtype: tl.constexpr, K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The matrices from the input patches (di, dj0), (di, dj0 + 1), ... to the output patch: ``(c, b, a)`` each."""
    dj = dj0 + tl.arange(0, COLUMNS)[:, None, None, None]
    a = tl.arange(0, PH * PW)[None, None, None, :]
    b = tl.arange(0, PH * PW)[None, None, :, None]
    # Both offsets in pixels, shifted so that tap 0 lies at 0.
    h = sign * (di * PH + a // PW - b // PW) + K // 2 * D
    w = sign * (dj * PW + a % PW - b % PW) + K // 2 * D
    mask = (h >= 0) & (h < K * D) & (w >= 0) & (w < K * D) & (c < C)[None, :, None, None]
    if D > 1:
        mask = mask & (h % D == 0) & (w % D == 0)
    pointers = weight + c[None, :, None, None] * (K * K) + h // D * K + w // D
    taps = tl.load(pointers, mask=mask, other=0.0).to(dtype)
    return _unpack(tl.permute(taps, (1, 2, 3, 0)), COLUMNS)


@triton.jit
def _finish_row(
    row, total, squares, y, bias, n, c, i, j0, N, C, H, W,
    PH: tl.constexpr, PW: tl.constexpr, COLUMNS: tl.constexpr,
    BIAS: tl.constexpr, STORE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Bias, output and sums of finished output patches, ``COLUMNS`` times ``(c, b, n)``; returns the sums so far
    ``(c, b, n)``."""
    b = tl.arange(0, PH * PW)
    if BIAS:
        shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[:, None, None]
        shifted = ()
        for j in tl.static_range(COLUMNS):
            shifted = shifted + (row[j] + shift,)
        row = shifted
    if SUMS:
        for j in tl.static_range(COLUMNS):
            inside = (i * PH + b // PW < H) & ((j0 + j) * PW + b % PW < W)
            counted = tl.where(inside[None, :, None] & (n < N)[None, None, :], row[j], 0.0)
            total += counted
            squares += counted * counted
    if STORE:
        rounded = ()
        for j in tl.static_range(COLUMNS):
            rounded = rounded + (row[j].to(y.dtype.element_ty),)
        pointers, mask = _row_pointers(y, n, c, i, j0, N, C, H, W, PH, PW, COLUMNS)
        tl.store(pointers, tl.permute(_pack(rounded, COLUMNS), (3, 2, 1, 0)), mask=mask)
    return total, squares


@triton.jit
def _store_sums(sums, sums_of_squares, total, squares, n, c, tile, N, C):
    """``sums (tile, N, C)`` over one tile of the map, ``sums_of_squares (tile, block of images, C)``; both fp32."""
    row = (tile * N + n).to(tl.int64)
    mask = (c < C)[:, None] & (n < N)[None, :]
    tl.store(sums + row[None, :] * C + c[:, None], tl.sum(total, axis=1), mask=mask)
    block = tile * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums_of_squares + block * C + c, tl.sum(tl.sum(squares, axis=1), axis=1), mask=c < C)


@triton.jit
def _output_row(
    patches, bands, c, n, i: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    DI: tl.constexpr, DJ: tl.constexpr, HI: tl.constexpr, HJ: tl.constexpr,
):  # fmt: skip
    """Output patches of row i of the tile: TJ times ``(c, b, n)``, fp32."""
    row = ()
    for j in tl.static_range(TJ):
        acc = tl.zeros((c.shape[0], PH * PW, n.shape[0]), tl.float32)
        for di in tl.static_range(-DI, DI + 1):
            for dj in tl.static_range(-DJ, DJ + 1):
                if i + di >= -HI and i + di < TI + HI and j + dj >= -HJ and j + dj < TJ + HJ:
                    if joins(di, PH, K, D) and joins(dj, PW, K, D):
                        patch = patches[(i + di + HI) * (TJ + 2 * HJ) + j + dj + HJ]
                        acc = tl.dot(bands[(di + DI) * (3 * DJ + 1) + dj + DJ], patch, acc)
        row = row + (acc,)
    return row


@triton.jit(do_not_specialize=_ANY_SIZE)
def conv_by_tile(
    x, weight, bias, y, sums, sums_of_squares, N, C, H, W, sign,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    DI: tl.constexpr, DJ: tl.constexpr, HI: tl.constexpr, HJ: tl.constexpr, CB: tl.constexpr, NB: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BIAS: tl.constexpr, STORE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """All bands stay in registers; input patches are read row by row, each output row made as soon as it can be.

    TJ + 2 HJ is 1, 2 or 4 and DJ 0 or 1. ``STORE``: write the output. ``SUMS``: also sums of it and its squares, see
    :func:`_store_sums`.
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
        if joins(di, PH, K, D):
            # For DJ 1 four, of which three are used.
            bands = bands + _load_bands(
                weight, c, C, sign, di, -DJ, x.dtype.element_ty, K, D, PH, PW, 3 * DJ + 1
            )
        else:
            for _ in tl.static_range(3 * DJ + 1):
                bands = bands + (0,)

    total = tl.zeros((CB, PH * PW, NB), tl.float32)
    squares = tl.zeros((CB, PH * PW, NB), tl.float32)
    patches = ()
    for i in tl.static_range(-HI, TI + DI):
        if i < TI + HI:
            patches = patches + _load_row(x, n, c, i0 + i, j0 - HJ, N, C, H, W, PH, PW, TJ + 2 * HJ)
        if i - DI >= 0:
            row = _output_row(patches, bands, c, n, i - DI, K, D, PH, PW, TI, TJ, DI, DJ, HI, HJ)
            total, squares = _finish_row(
                row, total, squares, y, bias, n, c, i0 + i - DI, j0, N, C, H, W, PH, PW, TJ, BIAS, STORE, SUMS
            )
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
    tile = tl.program_id(2)
    columns = tl.cdiv(W, PW)
    i0 = tile // columns * TI
    j = tile % columns

    outputs = ()
    for _ in tl.static_range(TI):
        outputs = outputs + (tl.zeros((CB, PH * PW, NB), tl.float32),)
    for dj in range(-DJ, DJ + 1):
        bands = ()
        for di in tl.static_range(-DI, DI + 1):
            if joins(di, PH, K, D):
                bands = bands + _load_bands(weight, c, C, sign, di, dj, x.dtype.element_ty, K, D, PH, PW, 1)
            else:
                bands = bands + (0,)
        for i in tl.static_range(-HI, TI + HI):
            patch = _load_row(x, n, c, i0 + i, j + dj, N, C, H, W, PH, PW, 1)[0]
            updated = ()
            for o in tl.static_range(TI):
                if i - o >= -DI and i - o <= DI and joins(i - o, PH, K, D):
                    updated = updated + (tl.dot(bands[i - o + DI], patch, outputs[o]),)
                else:
                    updated = updated + (outputs[o],)
            outputs = updated

    total = tl.zeros((CB, PH * PW, NB), tl.float32)
    squares = tl.zeros((CB, PH * PW, NB), tl.float32)
    for o in tl.static_range(TI):
        total, squares = _finish_row(
            (outputs[o],), total, squares, y, bias, n, c, i0 + o, j, N, C, H, W, PH, PW, 1, BIAS, STORE, SUMS
        )
    if SUMS:
        _store_sums(sums, sums_of_squares, total, squares, n, c, tile, N, C)


@triton.jit(do_not_specialize=_ANY_SIZE)
def weight_grad(
    x, grad, partial, N, C, H, W, splits,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, DI: tl.constexpr,
    DJ: tl.constexpr, HI: tl.constexpr, CB: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """For every displacement, in @ grad.T over this program's images: ``partial (split, C, dj, di, a, b)`` fp32.

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
                patches = patches + _load_row(x, n, c, i0 + i, j + dj, N, C, H, W, PH, PW, 1)
            if i - DI >= 0:
                g = tl.permute(_load_row(grad, n, c, i0 + i - DI, j, N, C, H, W, PH, PW, 1)[0], (0, 2, 1))
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
