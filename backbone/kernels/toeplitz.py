"""Depthwise convolution as small matrix products on tensor cores.

One channel of the map is divided into patches of 16 pixels (``PH x PW``: 1 x 16 or 2 x 8). The contribution of an input
patch to the output patch ``(di, dj)`` patches before it is linear, hence a 16 x 16 matrix; it depends only on
``(di, dj)`` and has kernel taps along its diagonals and zeros elsewhere: a *band* of a block-Toeplitz matrix. With 8 or
16 images as the columns of a matrix,

    out[patch, images] = sum over (di, dj) of  band[di, dj] @ in[patch + (di, dj), images],

and each product is one tensor-core instruction for 8 images. A warp holds the bands and the patches of one channel in
registers and multiplies the pairs connected by some tap. The gradient of the input is the same product with the kernel
rotated by 180 degrees (``sign`` -1). The gradient of the weight is, for each displacement, in @ grad.T summed over
images and patches, then summed along the diagonals (:func:`fold`).

Tensors are in NHWC memory format. Shape legend inside kernels: c channels of this program (one per warp), n images, a
the 16 pixels of an input patch, b those of an output patch, j patches of a row. K x K taps, D dilation; TI x TJ output
patches per program; DI x DJ patches that the kernel extends to each side; HI x HJ input patches read around the tile
(0: the tile is the whole map). CB channels and NB images at a time; WHOLE: NB divides the number of images.

Patches are read and written in groups, as one tensor, and split in registers: one wait for many loads, one pass through
shared memory, and shorter compile times, since Triton's layout selection compares all pairs of loads and stores.
If the map is one column of patches and the GPU supports it, all of them are prefetched as one box.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Not specialised by value. With the whole map in one tile, its size is given by HEIGHT and WIDTH.
_ANY_SIZE = ("N", "H", "W", "sign", "splits")


@triton.constexpr_function
def joins(displacement, side, K, D):
    """Whether some tap connects two patches of ``side`` pixels, ``displacement`` patches apart along one axis."""
    offsets = range(displacement * side - side + 1, displacement * side + side)
    return any(offset % D == 0 and abs(offset) <= K // 2 * D for offset in offsets)


@triton.constexpr_function
def displacements(K, D, PH, PW, DI, DJ):
    """The displacements (di, dj), in patches, whose bands contain taps."""
    rows = [di for di in range(-DI, DI + 1) if joins(di, PH, K, D)]
    columns = [dj for dj in range(-DJ, DJ + 1) if joins(dj, PW, K, D)]
    return tuple((di, dj) for di in rows for dj in columns)


@triton.constexpr_function
def divides(block, size):
    """Whether the last block is full."""
    return size % block == 0


@triton.constexpr_function
def source(i, j, displacement, TI, TJ, HI, HJ):
    """Index, in read order, of the input patch at this displacement from output patch (i, j); -1 if there is none."""
    from_i, from_j = i + displacement[0] + HI, j + displacement[1] + HJ
    inside = i < TI and 0 <= from_i < TI + 2 * HI and 0 <= from_j < TJ + 2 * HJ
    return from_i * (TJ + 2 * HJ) + from_j if inside else -1


@triton.constexpr_function
def last_group(first, rows, TI, DI, HI, FIRST, THEN):
    """The last group of input patches required by ``rows`` rows of output starting at ``first``."""
    row = min(first + rows - 1 + DI + HI, TI + 2 * HI - 1)
    return 0 if row < FIRST else 1 + (row - FIRST) // THEN


@triton.constexpr_function
def first_rows(TI, DI, HI):
    """Rows of input patches required by the first 4 rows of a column's output, rounded up to a power of two."""
    rows = min(TI + 2 * HI, 4 + DI + HI)
    return 1 << (rows - 1).bit_length()


@triton.constexpr_function
def rows_of_outputs(TI, TJ):
    """Number of rows of output patches computed together: at most 4 patches."""
    return min(max(1, 4 // TJ), 1 << (TI - 1).bit_length())


@triton.constexpr_function
def rows_read_first(rows, across):
    """Number of rows of input patches read together at first: at most 16 patches."""
    return min(16 // across, 1 << (rows - 1).bit_length())


@triton.jit
def _group_pointers(
    base, n, c, i0, j0, N, C, H, W,
    PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIXELS_FIRST: tl.constexpr,
):  # fmt: skip
    """Pointers to a group of ROWS x COLUMNS patches starting at (i0, j0), and the mask of its pixels on the map:
    ``(p, n, a, c)``, or ``(a, n, p, c)`` if PIXELS_FIRST.

    The order of dimensions determines which thread holds what; the faster one was measured for each use.
    """
    p = tl.arange(0, ROWS * COLUMNS)
    a = tl.arange(0, PH * PW)
    if PIXELS_FIRST:
        p = p[None, None, :, None]
        a = a[:, None, None, None]
        n = n[None, :, None, None]
        c = c[None, None, None, :]
    else:
        p = p[:, None, None, None]
        a = a[None, None, :, None]
        n = n[None, :, None, None]
        c = c[None, None, None, :]
    h = (i0 + p // COLUMNS) * PH + a // PW
    w = (j0 + p % COLUMNS) * PW + a % PW
    mask = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    pointers = base + n.to(tl.int64) * (H * W * C) + c + (h * W + w) * C
    if N is not None:
        mask = mask & (n < N)
    if not divides(c.shape[3], C):
        mask = mask & (c < C)
    return pointers, mask


@triton.jit
def _unpack(group, P: tl.constexpr):
    """The tensors along the last dimension of ``group``; P, their number, is a power of two."""
    if P == 1:
        return (tl.reshape(group, group.shape[:-1]),)
    else:
        even, odd = tl.split(tl.reshape(group, (group.shape[0], group.shape[1], group.shape[2], P // 2, 2)))
        evens = _unpack(even, P // 2)
        odds = _unpack(odd, P // 2)
        tensors = ()
        for p in tl.static_range(P // 2):
            tensors = tensors + (evens[p], odds[p])
        return tensors


@triton.jit
def _pack(tensors, P: tl.constexpr):
    """The inverse of :func:`_unpack`."""
    shape: tl.constexpr = tensors[0].shape
    if P == 1:
        return tl.reshape(tensors[0], (shape[0], shape[1], shape[2], 1))
    elif P == 2:
        return tl.join(tensors[0], tensors[1])
    else:
        pairs = tl.join(tl.join(tensors[0], tensors[2]), tl.join(tensors[1], tensors[3]))
        return tl.reshape(pairs, (shape[0], shape[1], shape[2], 4))


@triton.jit
def _read_group(
    x, n, c, i0, j0, N, C, H, W,
    PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A group of ROWS x COLUMNS input patches, zero outside the map: ``(c, a, n, p)``."""
    pointers, mask = _group_pointers(x, n, c, i0, j0, N, C, H, W, PH, PW, ROWS, COLUMNS, PH > 1)
    group = tl.load(pointers, mask=mask, other=0.0)
    if PH > 1:
        return tl.permute(group, (3, 0, 1, 2))
    else:
        return tl.permute(group, (3, 2, 1, 0))


@triton.jit
def _patches(group):
    """Split a group into its patches, each ``(c, a, n)``."""
    return _unpack(group, group.shape[3])


@triton.jit
def _read_bands(
    weight, c, C, sign, column, first: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DI: tl.constexpr, DJ: tl.constexpr,
):  # fmt: skip
    """The bands of 4 displacements from the ``first`` on, ``column`` patches further right.

    Shape ``(a % 8 // 2, b % 8, c, p)``, where p enumerates bands, halves of b, halves of a, and a % 2: in this shape,
    Triton's layout matches the operands of the tensor-core instruction, so that no band goes through shared memory.
    """
    P: tl.constexpr = 4
    chosen: tl.constexpr = displacements(K, D, PH, PW, DI, DJ)
    p = tl.arange(0, 8 * P)[None, None, None, :]
    di = tl.zeros((1, 1, 1, 8 * P), tl.int32) + K * D  # beyond all taps
    dj = tl.zeros((1, 1, 1, 8 * P), tl.int32) + column
    for e in tl.static_range(P):
        if first + e < len(chosen):
            di = tl.where(p // 8 == e, chosen[first + e][0], di)
            dj = tl.where(p // 8 == e, column + chosen[first + e][1], dj)
    a = p // 2 % 2 * 8 + tl.arange(0, 4)[:, None, None, None] * 2 + p % 2
    b = p // 4 % 2 * 8 + tl.arange(0, 8)[None, :, None, None]
    # Both offsets in pixels, shifted so that tap 0 is at 0.
    h = sign * (di * PH + a // PW - b // PW) + K // 2 * D
    w = sign * (dj * PW + a % PW - b % PW) + K // 2 * D
    mask = (h >= 0) & (h < K * D) & (w >= 0) & (w < K * D)
    if D > 1:
        mask = mask & (h % D == 0) & (w % D == 0)
    if not divides(c.shape[0], C):
        mask = mask & (c < C)[None, None, :, None]
    pointers = weight + c[None, None, :, None] * (K * K) + h // D * K + w // D
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _arrange_bands(four, dtype: tl.constexpr):
    """Rearrange four loaded bands, each to ``(c, b, a)``."""
    P: tl.constexpr = four.shape[3] // 8
    CB: tl.constexpr = four.shape[2]
    seven = tl.reshape(tl.permute(four.to(dtype), (2, 1, 0, 3)), (CB, 8, 4, P, 2, 2, 2))
    return _unpack(tl.reshape(tl.permute(seven, (0, 4, 1, 5, 2, 6, 3)), (CB, 16, 16, P)), P)


@triton.jit
def _load_bands(
    weight, c, C, sign, dtype: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DI: tl.constexpr, DJ: tl.constexpr,
):  # fmt: skip
    """The bands of all displacements, each ``(c, b, a)``."""
    count: tl.constexpr = len(displacements(K, D, PH, PW, DI, DJ))
    bands = ()
    for first in tl.static_range(0, count, 4):
        bands = bands + _arrange_bands(_read_bands(weight, c, C, sign, 0, first, K, D, PH, PW, DI, DJ), dtype)
    return bands


@triton.jit
def _fold_pixels(values):
    """Sums ``(c, 8, n)`` of the upper and lower 8 pixels of ``(c, 16, n)``, within each thread."""
    halves = tl.reshape(values, (values.shape[0], 2, 8, values.shape[2]))
    upper, lower = tl.split(tl.permute(halves, (0, 2, 3, 1)))
    return upper + lower


@triton.jit
def _fold(values):
    """Sums ``(c, 8, n / 2)`` of the four values of ``(c, 16, n)`` held by each thread."""
    even, odd = tl.split(tl.reshape(_fold_pixels(values), (values.shape[0], 8, values.shape[2] // 2, 2)))
    return even + odd


@triton.jit
def _finish_group(
    group, total, squares, y, bias, n, c, i0, j0, N, C, H, W,
    PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VALID: tl.constexpr,
    BIAS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Add the bias to a group of output patches, each ``(c, b, n)``, of which VALID rows belong to this tile, store
    them and update the sums, which are returned."""
    b = tl.arange(0, PH * PW)
    if BIAS:
        shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[:, None, None]
        shifted = ()
        for p in tl.static_range(ROWS * COLUMNS):
            shifted = shifted + (group[p] + shift,)
        group = shifted
    if SUMS:
        for p in tl.static_range(ROWS * COLUMNS):
            inside = ((i0 + p // COLUMNS) * PH + b // PW < H) & ((j0 + p % COLUMNS) * PW + b % PW < W)
            inside = inside & (p // COLUMNS < VALID)
            counted = tl.where(inside[None, :, None], group[p], 0.0)
            if N is not None:
                counted = tl.where((n < N)[None, None, :], counted, 0.0)
            total += _fold_pixels(counted)
            squares += _fold(counted * counted)
    rounded = ()
    for p in tl.static_range(ROWS * COLUMNS):
        rounded = rounded + (group[p].to(y.dtype.element_ty),)
    pointers, mask = _group_pointers(y, n, c, i0, j0, N, C, H, W, PH, PW, ROWS, COLUMNS, False)
    if VALID < ROWS:
        mask = mask & (tl.arange(0, ROWS * COLUMNS) // COLUMNS < VALID)[:, None, None, None]
    tl.store(pointers, tl.permute(_pack(rounded, ROWS * COLUMNS), (3, 2, 1, 0)), mask=mask)
    return total, squares


@triton.jit
def _store_sums(sums, total, n, c, tile, N, C):
    """``sums (tile, N, C)`` over one tile of the map."""
    image = (tile * N + n).to(tl.int64)
    mask = (c < C)[:, None] & (n < N)[None, :]
    tl.store(sums + image[None, :] * C + c[:, None], tl.sum(total, axis=1), mask=mask)


@triton.jit
def _store_total(totals, values, c, tile, splits, C):
    """``totals (tile, split, C)`` over one tile of every ``splits``-th block of images."""
    part = tile * splits + tl.program_id(1)
    tl.store(totals + part * C + c, tl.sum(tl.sum(values, axis=1), axis=1), mask=c < C)


@triton.jit
def _output_group(
    patches, bands, c, n, o: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    DI: tl.constexpr, DJ: tl.constexpr, HI: tl.constexpr, HJ: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS x TJ output patches, the first in row ``o`` of the tile: each ``(c, b, n)``, fp32.

    Products of different patches are interleaved, because the products of one patch depend on each other.
    """
    chosen: tl.constexpr = displacements(K, D, PH, PW, DI, DJ)
    accs = ()
    for _ in tl.static_range(ROWS * TJ):
        accs = accs + (tl.zeros((c.shape[0], PH * PW, n.shape[0]), tl.float32),)
    for e in tl.static_range(len(chosen)):
        updated = ()
        for p in tl.static_range(ROWS * TJ):
            if source(o + p // TJ, p % TJ, chosen[e], TI, TJ, HI, HJ) >= 0:
                patch = patches[source(o + p // TJ, p % TJ, chosen[e], TI, TJ, HI, HJ)]
                updated = updated + (tl.dot(bands[e], patch, accs[p]),)
            else:
                updated = updated + (accs[p],)
        accs = updated
    return accs


@triton.jit(do_not_specialize=_ANY_SIZE)
def conv_by_tile(
    x, weight, bias, y, sums, sums_of_squares, N, H, W, sign, splits, C: tl.constexpr, WHOLE: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    DI: tl.constexpr, DJ: tl.constexpr, HI: tl.constexpr, HJ: tl.constexpr, CB: tl.constexpr, NB: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    BIAS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """All bands stay in registers, for every ``splits``-th block of images. A first group of input patches is
    read at once, the others AHEAD groups before they are needed. Output patches are computed as early as possible.

    TJ + 2 HJ is 1, 2 or 4. ``SUMS``: also ``sums (tile, N, C)`` of the output over one tile of the map, and
    ``sums_of_squares (tile, split, C)``, fp32.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    tile = tl.program_id(2)
    i0 = 0
    j0 = 0
    if HEIGHT > 0:  # lets the compiler drop most border checks
        H = HEIGHT
        W = WIDTH
    if HI > 0 or HJ > 0:
        tiles_across = tl.cdiv(W, TJ * PW)
        i0 = tile // tiles_across * TI
        j0 = tile % tiles_across * TJ

    across: tl.constexpr = TJ + 2 * HJ
    OUT: tl.constexpr = rows_of_outputs(TI, TJ)
    FIRST: tl.constexpr = rows_read_first(TI + 2 * HI, across)
    AHEAD: tl.constexpr = 2
    THEN: tl.constexpr = OUT
    groups: tl.constexpr = 1 + (TI + 2 * HI - FIRST + THEN - 1) // THEN if TI + 2 * HI > FIRST else 1
    M = None if WHOLE else N
    bands = _load_bands(weight, c, C, sign, x.dtype.element_ty, K, D, PH, PW, DI, DJ)
    squares = tl.zeros((CB, 8, NB // 2), tl.float32)
    block = tl.program_id(1)
    while block * NB < N:
        n = block * NB + tl.arange(0, NB)
        total = tl.zeros((CB, 8, NB), tl.float32)
        patches = ()
        read = (_read_group(x, n, c, i0 - HI, j0 - HJ, M, C, H, W, PH, PW, FIRST, across),)
        for g in tl.static_range(groups):
            for ahead in tl.static_range(1 if g == 0 else AHEAD, AHEAD + 1):
                if g + ahead < groups:
                    i = i0 - HI + FIRST + (g + ahead - 1) * THEN
                    read = read + (_read_group(x, n, c, i, j0 - HJ, M, C, H, W, PH, PW, THEN, across),)
            if g == 0:
                patches = _patches(read[0])
            else:
                # Always true, but keeps Triton from waiting for the loads immediately.
                patches = patches + _patches(tl.where(block * NB < N, read[g], 0.0))
            for o in tl.static_range(0, TI, OUT):
                if last_group(o, OUT, TI, DI, HI, FIRST, THEN) == g:
                    done = _output_group(patches, bands, c, n, o, K, D, PH, PW, TI, TJ, DI, DJ, HI, HJ, OUT)
                    total, squares = _finish_group(
                        done, total, squares, y, bias, n, c, i0 + o, j0, M, C, H, W,
                        PH, PW, OUT, TJ, TI - o, BIAS, SUMS,
                    )  # fmt: skip
        if SUMS:
            _store_sums(sums, total, n, c, tile, N, C)
        block += splits
    if SUMS:
        _store_total(sums_of_squares, squares, c, tile, splits, C)


@triton.jit
def _first(a, b):
    return a


@triton.jit
def _read_box(
    x, n, c, CB: tl.constexpr, NB: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr
):
    """Read a map of one column of ROWS patches through the tensor memory accelerator: ``(c, a, n, p)``."""
    box = x.load([n, 0, 0, c])
    LOW: tl.constexpr = min(ROWS, 4)
    HIGH: tl.constexpr = ROWS // LOW
    # Pixels by halves of a patch, patches by rows of 4, for wide shared-memory accesses without bank conflicts. The
    # sum of one term is opaque to Triton, which would otherwise access two bytes at a time.
    parts = tl.permute(tl.reshape(box, (NB, HIGH, LOW, 2, 8, CB)), (5, 3, 1, 0, 2, 4))
    line = tl.reduce(tl.reshape(parts, (1, CB, NB * ROWS * PH * PW)), 0, _first)
    parts = tl.permute(tl.reshape(line, (CB, 2, HIGH, NB, LOW, 8)), (0, 1, 5, 3, 2, 4))
    return tl.reshape(parts, (CB, PH * PW, NB, ROWS))


@triton.jit
def _convolve_box(
    x, bands, squares, bias, y, sums, block, N, C: tl.constexpr, WHOLE: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, DI: tl.constexpr,
    CB: tl.constexpr, NB: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    BIAS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Process one box: store the output and its sums; returns ``squares`` plus those of this box."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    n = block * NB + tl.arange(0, NB)
    OUT: tl.constexpr = rows_of_outputs(TI, 1)
    patches = _patches(
        _read_box(x, block * NB, tl.program_id(0) * CB, CB, NB, PH, PW, triton.next_power_of_2(TI))
    )
    total = tl.zeros((CB, 8, NB), tl.float32)
    for o in tl.static_range(0, TI, OUT):
        done = _output_group(patches, bands, c, n, o, K, D, PH, PW, TI, 1, DI, 0, 0, 0, OUT)
        total, squares = _finish_group(
            done, total, squares, y, bias, n, c, o, 0, None if WHOLE else N, C, HEIGHT, WIDTH,
            PH, PW, OUT, 1, TI - o, BIAS, SUMS,
        )  # fmt: skip
    if SUMS:
        _store_sums(sums, total, n, c, 0, N, C)
    return squares


@triton.jit(do_not_specialize=("N", "sign", "splits"))
def conv_by_box(
    x, weight, bias, y, sums, sums_of_squares, N, sign, splits, C: tl.constexpr, WHOLE: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, DI: tl.constexpr,
    CB: tl.constexpr, NB: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    BIAS: tl.constexpr, SUMS: tl.constexpr, BOXES: tl.constexpr,
):  # fmt: skip
    """For maps of one column of patches, on GPUs with a tensor memory accelerator, which copies boxes of the map into
    shared memory asynchronously: NB images, all patches, CB channels. Otherwise as :func:`conv_by_tile`.

    ``x`` is the tensor descriptor of the map. BOXES boxes are in shared memory at a time, one of them being processed;
    0 uses a loop without software pipelining, for Triton's interpreter.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    bands = _load_bands(weight, c, C, sign, x.dtype, K, D, PH, PW, DI, 0)
    squares = tl.zeros((CB, 8, NB // 2), tl.float32)
    if BOXES > 0:
        for block in tl.range(tl.program_id(1), tl.cdiv(N, NB), splits, num_stages=BOXES):
            squares = _convolve_box(
                x, bands, squares, bias, y, sums, block, N, C, WHOLE, K, D, PH, PW, TI, DI, CB, NB, HEIGHT, WIDTH,
                BIAS, SUMS,
            )  # fmt: skip
    else:
        block = tl.program_id(1)
        while block * NB < N:
            squares = _convolve_box(
                x, bands, squares, bias, y, sums, block, N, C, WHOLE, K, D, PH, PW, TI, DI, CB, NB, HEIGHT, WIDTH,
                BIAS, SUMS,
            )  # fmt: skip
            block += splits
    if SUMS:
        _store_total(sums_of_squares, squares, c, 0, splits, C)


@triton.jit
def _read_column(x, n, c, i0, j, N, C, H, W, PH: tl.constexpr, PW: tl.constexpr, ROWS: tl.constexpr):
    """At least ROWS patches of one column, starting at (i0, j), each ``(c, a, n)``."""
    patches = ()
    for i in tl.static_range(0, ROWS, 8):
        group = _read_group(
            x, n, c, i0 + i, j, N, C, H, W, PH, PW, 8 if ROWS - i > 4 else 4 if ROWS - i > 2 else 2, 1
        )
        patches = patches + _patches(group)
    return patches


@triton.jit(do_not_specialize=_ANY_SIZE)
def conv_by_column(
    x, weight, bias, y, sums, sums_of_squares, N, H, W, sign, splits, C: tl.constexpr, WHOLE: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, DI: tl.constexpr,
    DJ: tl.constexpr, HI: tl.constexpr, CB: tl.constexpr, NB: tl.constexpr,
    BIAS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """For kernels and maps too large for :func:`conv_by_tile`: one column of output patches stays in registers, and
    the bands of one horizontal displacement are streamed, four at a time. Input columns are read 2 DJ + 1 times."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    tile = tl.program_id(2)
    columns = tl.cdiv(W, PW)
    i0 = tile // columns * TI
    j = tile % columns
    chosen: tl.constexpr = displacements(K, D, PH, PW, DI, 0)
    squares = tl.zeros((CB, 8, NB // 2), tl.float32)
    block = tl.program_id(1)
    while block * NB < N:
        n = block * NB + tl.arange(0, NB)
        M = None if WHOLE else N
        outputs = ()
        for _ in tl.static_range((TI + 3) // 4 * 4):
            outputs = outputs + (tl.zeros((CB, PH * PW, NB), tl.float32),)
        for dj in range(-DJ, DJ + 1):
            ahead = _read_bands(weight, c, C, sign, dj, 0, K, D, PH, PW, DI, 0)
            patches = _read_column(x, n, c, i0 - HI, j + dj, M, C, H, W, PH, PW, TI + 2 * HI)
            for first in tl.static_range(0, len(chosen), 4):
                bands = _arrange_bands(ahead, x.dtype.element_ty)
                if first + 4 < len(chosen):
                    ahead = _read_bands(weight, c, C, sign, dj, first + 4, K, D, PH, PW, DI, 0)
                for e in tl.static_range(4):
                    updated = ()
                    for o in tl.static_range(len(outputs)):
                        if first + e < len(chosen):
                            if source(o, 0, chosen[first + e], TI, 1, HI, 0) >= 0:
                                patch = patches[source(o, 0, chosen[first + e], TI, 1, HI, 0)]
                                updated = updated + (tl.dot(bands[e], patch, outputs[o]),)
                            else:
                                updated = updated + (outputs[o],)
                        else:
                            updated = updated + (outputs[o],)
                    outputs = updated
        total = tl.zeros((CB, 8, NB), tl.float32)
        for o in tl.static_range(0, TI, 4):
            total, squares = _finish_group(
                outputs[o : o + 4], total, squares, y, bias, n, c, i0 + o, j, M, C, H, W,
                PH, PW, 4, 1, TI - o, BIAS, SUMS,
            )  # fmt: skip
        if SUMS:
            _store_sums(sums, total, n, c, tile, N, C)
        block += splits
    if SUMS:
        _store_total(sums_of_squares, squares, c, tile, splits, C)


@triton.jit(do_not_specialize=_ANY_SIZE)
def weight_grad(
    x, grad, partial, N, H, W, splits, C: tl.constexpr, WHOLE: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TI: tl.constexpr, DI: tl.constexpr,
    DJ: tl.constexpr, HI: tl.constexpr, CB: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """For every displacement, in @ grad.T over this program's images: ``partial (split, C, dj, di, a, b)`` fp32.

    A program handles one block of channels, one horizontal displacement, and every ``splits``-th block of images.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    split = tl.program_id(1)
    dj = tl.program_id(2) - DJ
    first = tl.maximum(-dj, 0)  # the first output column whose input column lies on the map
    columns = tl.maximum(tl.cdiv(W, PW) - tl.abs(dj), 0)
    row_tiles = tl.cdiv(H, TI * PH)
    steps = tl.cdiv(tl.cdiv(N, NB) - split, splits) * columns * row_tiles
    chosen: tl.constexpr = displacements(K, D, PH, PW, DI, 0)
    FIRST: tl.constexpr = first_rows(TI, DI, HI)
    groups: tl.constexpr = (TI + 3) // 4

    sums = ()
    for _ in tl.static_range(len(chosen)):
        sums = sums + (tl.zeros((CB, PH * PW, PH * PW), tl.float32),)
    step = 0
    while step < steps:
        j = first + step % columns
        i0 = step // columns % row_tiles * TI
        n = (split + step // (columns * row_tiles) * splits) * NB + tl.arange(0, NB)
        M = None if WHOLE else N
        patches = _patches(_read_group(x, n, c, i0 - HI, j + dj, M, C, H, W, PH, PW, FIRST, 1))
        for g in tl.static_range(groups):
            if FIRST + (g - 1) * 4 < TI + 2 * HI and g > 0:
                more = _read_group(x, n, c, i0 - HI + FIRST + (g - 1) * 4, j + dj, M, C, H, W, PH, PW, 4, 1)
                patches = patches + _patches(more)
            grads = _patches(_read_group(grad, n, c, i0 + g * 4, j, M, C, H, W, PH, PW, 4, 1))
            for o in tl.static_range(4):
                grad_T = tl.permute(grads[o], (0, 2, 1))
                updated = ()
                for e in tl.static_range(len(chosen)):
                    if source(g * 4 + o, 0, chosen[e], TI, 1, HI, 0) >= 0:
                        patch = patches[source(g * 4 + o, 0, chosen[e], TI, 1, HI, 0)]
                        updated = updated + (tl.dot(patch, grad_T, sums[e]),)
                    else:
                        updated = updated + (sums[e],)
                sums = updated
        step += 1

    a = tl.arange(0, PH * PW)[None, :, None]
    b = tl.arange(0, PH * PW)[None, None, :]
    channel = (split * C + c)[:, None, None].to(tl.int64) * (2 * DJ + 1) + dj + DJ
    for e in tl.static_range(len(chosen)):
        pointers = (
            partial + (channel * (2 * DI + 1) + chosen[e][0] + DI) * (PH * PW * PH * PW) + a * (PH * PW) + b
        )
        tl.store(pointers, sums[e], mask=(c < C)[:, None, None])


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
    # Output pixel b and this tap use input pixel (h, w), counted from DI x DJ patches before the output patch.
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
