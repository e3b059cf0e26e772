"""Sums and sums of squares of the outputs of many kernels on one map, from the map's *Gram matrices*.

The Gram matrix of a channel holds the products of all pairs of its pixels, summed over images:

    gram[q, q'] = sum over images of  x[q] x[q'].

An output pixel is y[p] = sum over taps t of k[t] x[p + t], zeros outside the map. Hence, with p over the map,

    sum of y^2 = sum over (t, u) of  k[t] k[u] folded[t, u],     folded[t, u] = sum over p of  gram[p + t, p + u],

for any number of kernels k at the cost of one matrix; ``folded`` k is half its gradient with respect to the kernel. The
gradient of the map is linear in the map: for a loss with derivative s_b by the sum of squares of kernel b,

    dx = mixing x,  mixing[q, q'] = sum over p of  taps[q - p, q' - p],  taps[t, u] = sum over b of 2 s_b k_b[t] k_b[u].

Both matrix products over pixels and images are ordinary ones. This module converts a map to their layout and back,
folds a matrix over pixels to one over taps (:func:`fold`) and unfolds one over taps to one over pixels
(:func:`unfold`). No kernel connects rows K or more apart, so both matrices are computed in strips: some rows of the map
by the rows they can be connected to.

Shape legend: N images, M = N rounded up, P pixels of a map H x W, Q >= P (padded), C channels, B kernels, K x K taps,
T = K * K. Inside kernels: n images, c channel, q pixel; h, w row and column; d offset of a column, or of a
tap along its row; t = (ty, tx) and u = (uy, ux) taps, counted from 0. Layout of a strip: (some C, pixels of the
rows ``row`` to ``end`` (exclusive), L >= pixels of the rows *facing* them).
"""

from __future__ import annotations

import triton
import triton.language as tl

_ANY_SIZE = ("N", "M", "P", "H", "first_channel", "row", "end", "facing", "facing_end", "lowest")


@triton.constexpr_function
def before(tap, K):
    """Number of the K taps before this one."""
    return max(0, min(tap, K))


@triton.jit(do_not_specialize=_ANY_SIZE)
def to_channels(x, y, sums, N, M, P, C: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr):
    """``y (C, Q, M)`` from ``x (N, P, C)``, zero-padded; and each pixel's sums over blocks of BN
    images, ``sums (M / BN, C, P)``, fp32."""
    q = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    inside = (n < N)[:, None] & (c < C)[None, :] & (q < P)
    tile = tl.load(x + (n.to(tl.int64)[:, None] * P + q) * C + c[None, :], mask=inside, other=0.0)
    places = (c.to(tl.int64)[:, None] * Q + q) * M + n[None, :]
    tl.store(y + places, tl.trans(tile), mask=(c < C)[:, None] & (n < M)[None, :])
    total = tl.sum(tile.to(tl.float32), axis=0)
    tl.store(sums + (tl.program_id(2) * C + c) * P + q, total, mask=(c < C) & (q < P))


@triton.jit(do_not_specialize=_ANY_SIZE)
def to_images(x, factor, shift, y, N, M, P, C: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr):
    """``y (N, P, C)`` = ``x (C, P, M)`` ``factor (C)`` + ``shift (C, P)``."""
    q = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    n = tl.program_id(2) * BN + tl.arange(0, BN)
    inside = (c < C)[:, None] & (n < N)[None, :]
    tile = tl.load(x + (c.to(tl.int64)[:, None] * P + q) * M + n[None, :], mask=inside, other=0.0)
    scale = tl.load(factor + c, mask=c < C, other=0.0)[:, None]
    moved = tile.to(tl.float32) * scale + tl.load(shift + c * P + q, mask=c < C, other=0.0)[:, None]
    places = (n.to(tl.int64)[:, None] * P + q) * C + c[None, :]
    tl.store(y + places, tl.trans(moved).to(y.dtype.element_ty), mask=(n < N)[:, None] & (c < C)[None, :])


@triton.jit
def _reached(tap, place, size, K: tl.constexpr):
    """1 if this tap connects the input at position ``place`` of a line to an output on the line, else 0."""
    output = place - tap + K // 2
    return tl.where((tap < K) & (place < size) & (output >= 0) & (output < size), 1.0, 0.0)


@triton.jit
def _diagonals(
    strip, c, h, dh, H, row, end,
    L: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Entries of one channel for pixels of row h (column w) and row h + dh (column w + d), ``(w, d)``, d starting at
    1 - K. Zero outside the strip and the map."""
    w = tl.arange(0, BW)[:, None]
    column = w + tl.arange(0, BD)[None, :] - (K - 1)
    inside = (h >= row) & (h < end) & (h + dh < H) & (w < W) & (column >= 0) & (column < W)
    pixel = c.to(tl.int64) * (end - row) * W + (h - row) * W + w
    return tl.load(strip + pixel * L + (h + dh - row) * W + column, mask=inside, other=0.0)


@triton.jit
def _sum_of_rows(
    strip, c, first, last, dh, H, row, end,
    L: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """:func:`_diagonals` summed over the rows ``first`` to ``last``, several of which are read at once."""
    TOGETHER: tl.constexpr = 4 if BW <= 32 else 2
    acc = tl.zeros((BW, BD), tl.float32)
    h = tl.maximum(first, row)
    last = tl.minimum(last, end - 1)
    while h <= last:
        for i in tl.static_range(TOGETHER):
            here = tl.where(h + i <= last, h + i, -1)  # row -1, above the map, reads as zero
            acc += _diagonals(strip, c, here, dh, H, row, end, L, W, K, BW, BD)
        h += TOGETHER
    return acc


@triton.jit
def _fold_columns(
    folded, acc, c, ty, uy,
    W: tl.constexpr, K: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """Contribution of a sum over rows, ``(w, d)``, to the rows ty and uy of taps. A thread holds all w of its d."""
    w = tl.arange(0, BW)
    d = tl.arange(0, BD) - (K - 1)
    for tx in tl.static_range(K):
        under = (w - tx + K // 2 >= 0) & (w - tx + K // 2 < W)
        sums = tl.sum(tl.where(under[:, None], acc, 0.0), axis=0)
        inside = (tx + d >= 0) & (tx + d < K)
        places = folded + (c.to(tl.int64) * (K * K) + ty * K + tx) * (K * K) + uy * K + tx + d
        if MORE:
            sums += tl.load(places, mask=inside, other=0.0)
        tl.store(places, sums, mask=inside)


@triton.jit(do_not_specialize=_ANY_SIZE)
def fold(
    strip, folded, first_channel, H, row, end,
    L: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """Upper half (uy >= ty) of ``folded (C, T, T)`` from a strip of the Gram matrix, for the channels from
    ``first_channel`` on, facing rows from ``row`` on; ``MORE`` accumulates onto existing values.

    A program handles one channel, one dh = uy - ty, and half of the taps. The upper half sums the map's rows from some
    row to the last, the lower half from the first to some row: sums only grow from tap to tap, without subtraction.
    """
    c = tl.program_id(1)
    dh = tl.program_id(0)
    R: tl.constexpr = K // 2
    down = tl.program_id(2) == 0
    if down:  # ty >= R, rows from ty - R on
        ty = K - 1 - dh
        first_row, last_row, step = ty - R, H - 1, -1
        count = ty - R + 1
    else:  # ty < R, rows before H + ty - R
        ty = 0
        first_row, last_row, step = 0, H - R - 1, 1
        count = tl.minimum(R, K - dh)
    if count > 0:
        acc = _sum_of_rows(strip, c, first_row, last_row, dh, H, row, end, L, W, K, BW, BD)
        h = tl.where(down, first_row, last_row)
        while count > 0:
            h += step
            following = _diagonals(strip, c, h, dh, H, row, end, L, W, K, BW, BD)
            _fold_columns(folded, acc, c + first_channel, ty, ty + dh, W, K, BW, BD, MORE)
            acc += following
            ty += step
            count -= 1


@triton.jit(do_not_specialize=_ANY_SIZE)
def fold_line(
    sums, folded, P, H, PARTS: tl.constexpr, C: tl.constexpr,
    W: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``folded (C, T)``: for each tap, the sum of the pixels it is multiplied with, from ``sums (PARTS, C, P)``."""
    c = tl.program_id(0)
    h = tl.arange(0, BH)[:, None]
    w = tl.arange(0, BW)[None, :]
    total = tl.zeros((BH, BW), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(sums + (part * C + c) * P + h * W + w, mask=(h < H) & (w < W), other=0.0)
    tap = tl.arange(0, BK)
    rows = _reached(tap[:, None], tl.arange(0, BH)[None, :], H, K)
    columns = _reached(tap[None, :], tl.arange(0, BW)[:, None], W, K)
    tile = tl.dot(tl.dot(rows, total, input_precision="ieee"), columns, input_precision="ieee")
    places = c * (K * K) + tap[:, None] * K + tap[None, :]
    tl.store(folded + places, tile, mask=(tap < K)[:, None] & (tap < K)[None, :])


@triton.jit
def apply(
    folded, line, kernels, products, parts, C: tl.constexpr, B: tl.constexpr, K: tl.constexpr,
    BK: tl.constexpr, BU: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """``products (B, C, T)`` = folded k; and sums over one row of taps, ``parts (2, B, C, K)``: of k times ``line (C,
    T)`` for the sum of y, and of k times products for the sum of y squared. ``kernels (B, C, T)``."""
    c = tl.program_id(0).to(tl.int64)
    ty = tl.program_id(1)
    tx = tl.arange(0, BK)
    b = tl.arange(0, BB)
    T: tl.constexpr = K * K
    t = ty * K + tx
    of_kernels = kernels + (b * C)[None, :] * T + c * T
    product = tl.zeros((BK, BB), tl.float32)
    for first in range(0, T, BU):
        u = first + tl.arange(0, BU)
        taps = tl.load(of_kernels + u[:, None], mask=(u < T)[:, None] & (b < B)[None, :], other=0.0)
        # Only one order of each pair of tap rows was folded.
        right = (u >= ty * K) & (u < T)
        of_right = tl.load(
            folded + (c * T + t[:, None]) * T + u[None, :], mask=(tx < K)[:, None] & right[None, :], other=0.0
        )
        left = u < ty * K
        of_left = tl.load(
            folded + (c * T + u[:, None]) * T + t[None, :], mask=left[:, None] & (tx < K)[None, :], other=0.0
        )
        product = tl.dot(of_right + tl.trans(of_left), taps, product, input_precision="tf32x3")
    inside = (tx < K)[:, None] & (b < B)[None, :]
    tl.store(products + (b * C)[None, :] * T + c * T + t[:, None], product, mask=inside)
    row = tl.load(of_kernels + t[:, None], mask=inside, other=0.0)
    met = tl.load(line + c * T + t, mask=tx < K, other=0.0)
    places = parts + (b * C + c) * K + ty
    tl.store(places, tl.sum(row * met[:, None], axis=0), mask=b < B)
    tl.store(places + B * C * K, tl.sum(row * product, axis=0), mask=b < B)


@triton.jit
def outer(
    kernels, grads, taps, line, factor, C: tl.constexpr, B: tl.constexpr, K: tl.constexpr,
    BK: tl.constexpr, BU: tl.constexpr,
):  # fmt: skip
    """From the gradients of the sums and sums of squares ``(2, B, C)``: ``taps (C, T, T)``, divided by the largest of
    the channel's gradients, ``factor (C)``, to stay within the range of half precision; and ``line (C, T)``, the
    kernels times the gradients of their sums. ``kernels (B, C, T)``."""
    c = tl.program_id(0).to(tl.int64)
    ty = tl.program_id(1)
    tx = tl.arange(0, BK)
    u = tl.arange(0, BU)
    T: tl.constexpr = K * K
    t = ty * K + tx
    largest = 0.0
    for b in tl.static_range(B):
        largest = tl.maximum(largest, tl.abs(tl.load(grads + (B + b) * C + c)))
    largest = tl.where(largest > 0.0, largest, 1.0)
    tile = tl.zeros((BK, BU), tl.float32)
    of_sums = tl.zeros((BK,), tl.float32)
    for b in tl.static_range(B):
        row = tl.load(kernels + (b * C + c) * T + t, mask=tx < K, other=0.0)
        other = tl.load(kernels + (b * C + c) * T + u, mask=u < T, other=0.0)
        tile += (row * (2.0 * tl.load(grads + (B + b) * C + c) / largest))[:, None] * other[None, :]
        of_sums += row * tl.load(grads + b * C + c)
    tl.store(taps + (c * T + t[:, None]) * T + u[None, :], tile, mask=(tx < K)[:, None] & (u < T)[None, :])
    tl.store(line + c * T + t, of_sums, mask=tx < K)
    if ty == 0:
        tl.store(factor + c, largest)


@triton.jit
def _rows_of_taps(
    taps, c, ty, dh, near, W: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr
):
    """Row ty of taps by row ty + dh, zero outside: ``(tx, d)``, ux = tx + d, d starting at 1 - W."""
    tx = tl.arange(0, BK)[:, None]
    ux = tx + tl.arange(0, BD)[None, :] - (W - 1)
    near = near & (ty >= 0) & (ty < K) & (ty + dh >= 0) & (ty + dh < K)
    places = (c.to(tl.int64) * (K * K) + ty * K + tx) * (K * K) + (ty + dh) * K + ux
    return tl.load(taps + places, mask=near & (tx < K) & (ux >= 0) & (ux < K), other=0.0)


@triton.jit
def _rests_until(h, H, K: tl.constexpr):
    """The last row with the same window as row h; away from the border the window does not change."""
    return tl.where(h + K // 2 + 1 >= K, tl.maximum(h, H - 1 - K // 2), h)


@triton.jit(do_not_specialize=_ANY_SIZE)
def unfold(
    taps, strip, first_channel, H, row, end, facing, facing_end, lowest,
    L: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A strip of ``mixing``, for the channels from ``first_channel`` on, from ``taps (C, T, T)``.

    A program handles one channel and one row distance dh, starting at ``lowest``, and iterates over rows: the rows of
    taps that connect rows h and h + dh through some output row form a sliding window over h.
    """
    c = tl.program_id(1)
    dh = tl.program_id(0) + lowest
    R: tl.constexpr = K // 2
    tx = tl.arange(0, BK)
    d = tl.arange(0, BD) - (W - 1)
    near = (dh < K) & (dh > -K)
    h = tl.maximum(row, facing - dh)
    last = tl.minimum(end, facing_end - dh) - 1
    # The window: ty from h + R - H + 1 to h + R, clipped to valid taps.
    window = tl.zeros((BK, BD), tl.float32)
    ty = tl.maximum(0, h + R - H + 1)
    while (ty <= h + R) & (ty < K):
        for i in tl.static_range(4):  # loads issued together
            window += _rows_of_taps(
                taps, c + first_channel, ty + i, dh, near & (ty + i <= h + R), W, K, BK, BD
            )
        ty += 4
    until = _rests_until(h, H, K)
    leaving = _rows_of_taps(taps, c + first_channel, until + R - H + 1, dh, near, W, K, BK, BD)
    entering = _rows_of_taps(taps, c + first_channel, until + R + 1, dh, near, W, K, BK, BD)
    while h <= last:
        then = _rests_until(until + 1, H, K)
        next_leaving = _rows_of_taps(taps, c + first_channel, then + R - H + 1, dh, near, W, K, BK, BD)
        next_entering = _rows_of_taps(taps, c + first_channel, then + R + 1, dh, near, W, K, BK, BD)
        up_to = ()  # prefix sums over the taps of a row
        for taps_summed in tl.static_range(K + 1):
            up_to = up_to + (tl.sum(tl.where((tx < taps_summed)[:, None], window, -0.0), axis=0),)
        while (h <= until) & (h <= last):
            pixel = (c.to(tl.int64) * (end - row) + h - row) * W
            for w in tl.static_range(W):
                places = strip + (pixel + w) * L + (h + dh - facing) * W + w + d
                sums = up_to[before(w + R + 1, K)] - up_to[before(w + R + 1 - W, K)]
                tl.store(places, sums.to(strip.dtype.element_ty), mask=(w + d >= 0) & (w + d < W))
            h += 1
        window += entering - leaving
        leaving, entering, until = next_leaving, next_entering, then


@triton.jit(do_not_specialize=_ANY_SIZE)
def unfold_line(
    line, unfolded, P, H,
    W: tl.constexpr, K: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``unfolded (C, P)``: for each pixel, the sum of the taps it is multiplied with, from ``line (C, T)``."""
    c = tl.program_id(0)
    tap = tl.arange(0, BK)
    places = c * (K * K) + tap[:, None] * K + tap[None, :]
    taps = tl.load(line + places, mask=(tap < K)[:, None] & (tap < K)[None, :], other=0.0)
    h = tl.arange(0, BH)[:, None]
    w = tl.arange(0, BW)[None, :]
    rows = _reached(tap[None, :], h, H, K)
    columns = _reached(tap[:, None], w, W, K)
    tile = tl.dot(tl.dot(rows, taps, input_precision="ieee"), columns, input_precision="ieee")
    tl.store(unfolded + c * P + h * W + w, tile, mask=(h < H) & (w < W))
