"""Triton kernels of :mod:`backbone.kernels.pointwise`: the linear layers of a block with what lies around them.

A map is ``(M, channels)`` in memory, M = images x P pixels. A block of BM rows meets at most SLOTS images; a row's slot
is the number of its image less that of the block's first row. Maps and weights that are multiplied come as tensor
descriptors: the tensor memory accelerator fills with zeros what lies outside, and does not store it.

Shape legend inside kernels: m rows, n columns of the output, k columns of the input. Sums are in fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from backbone.kernels.activation import gelu

LARGE: tl.constexpr = tl.constexpr(1e38)


@triton.jit
def _slots_of(m, first, P, SLOTS: tl.constexpr):
    """Slots of rows m of a block whose first image is ``first``, by comparisons: a division takes 20 instructions."""
    slot = tl.zeros_like(m)
    for s in tl.static_range(1, SLOTS):
        slot += (m >= (first + s) * P).to(tl.int32)
    return slot


@triton.jit(do_not_specialize=("P",))
def expand(
    x, weight, bias, h, energy, P,
    C: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SLOTS: tl.constexpr,
    FP32: tl.constexpr,
):  # fmt: skip
    """``h (M, D) = gelu(x weight' + bias)`` with ``x (M, C)``, ``weight (D, C)``, and ``energy (blocks, SLOTS, D)``,
    fp32: the sum of h^2 over the rows that a block shares with each image that it meets; no atomics.

    Tensor cores sum the squares of all slots at once, rounded to bf16, whose range is that of fp32: this changes a norm
    by some 1e-4 of it. Squares that are infinite or undefined count as LARGE, so that 0 times them is 0 for the other
    images of the block; their own image is undefined through h. ``FP32``: not rounded, since the interpreter multiplies
    bf16 as integers.
    """
    across: tl.constexpr = (D + BN - 1) // BN
    block = tl.program_id(0) // across
    m0 = block * BM
    n0 = (tl.program_id(0) % across) * BN
    m = m0 + tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in tl.range(0, C, BK):
        acc = tl.dot(x.load([m0, k0]), weight.load([n0, k0]).T, acc)
    acc += tl.load(bias + n, mask=n < D, other=0.0).to(tl.float32)[None, :]
    value = gelu(acc)
    h.store([m0, n0], value.to(h.dtype))
    kind: tl.constexpr = tl.float32 if FP32 else tl.bfloat16
    r = tl.arange(0, 64)  # the fewest rows that a group of warps multiplies; SLOTS of them count
    mine = (
        r[:, None] == _slots_of(m, m0 // P, P, SLOTS)[None, :]
    )  # rows beyond the map have slots of their own
    squares = value * value
    squares = tl.where(squares <= LARGE, squares, LARGE)
    sums = tl.dot(mine.to(kind), squares.to(kind))
    places = energy + block * SLOTS * D + r[:, None] * D + n[None, :]
    tl.store(places, sums, mask=(r < SLOTS)[:, None] & (n < D)[None, :])


@triton.jit(do_not_specialize=("P",))
def scales(
    energy, gamma, scale, slots, P,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BB: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """For one image, from the sums of :func:`expand`, GRN's factors ``scale (images, D)``, 1 + gamma |h| / mean |h|;
    and, if blocks meet several images, its part of ``slots``, the table of all rows' slots. BB blocks at a time.
    """
    n = tl.program_id(0)
    begin, end = n * P, (n + 1) * P
    d = tl.arange(0, BD)
    total = tl.zeros((BB, BD), tl.float32)
    block = begin // BM
    while block * BM < end:
        b = block + tl.arange(0, BB)
        slot = n - b * BM // P
        places = energy + (b * SLOTS + slot)[:, None] * D + d[None, :]
        total += tl.load(places, mask=(b * BM < end)[:, None] & (d < D)[None, :], other=0.0)
        if SLOTS > 1:
            m = (b * BM)[:, None] + tl.arange(0, BM)[None, :]
            values = tl.broadcast_to(slot[:, None], (BB, BM))
            tl.store(slots + m, values, mask=(m >= begin) & (m < end))
        block += BB
    norm = tl.sqrt(tl.sum(total, axis=0))
    mean = tl.sum(norm, axis=0) / D + 1e-6
    weight = tl.load(gamma + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(scale + n * D + d, (weight * norm / mean + 1.0).to(scale.dtype.element_ty), mask=d < D)


@triton.jit
def _scaled(a, scale, slots, first, images, m, k, D: tl.constexpr, SLOTS: tl.constexpr):
    """``a (BM, BK)`` times each row's ``scale``, that of its image, at columns k.

    Triton multiplies in the registers from which the tensor cores read their left factor only if all that enters is
    loaded in this loop; otherwise a goes through shared memory once more. Hence the table of slots instead of
    :func:`_slots_of`. (The compiler then moves its load out of the loop.)
    """
    factor = tl.load(scale + first * D + k)[None, :]
    if SLOTS > 1:
        slot = tl.load(slots + m)
        for s in tl.static_range(1, SLOTS):
            other = tl.load(scale + tl.minimum(first + s, images - 1) * D + k)
            factor = tl.where((slot >= s)[:, None], other[None, :], factor)
    return a * factor


@triton.jit
def _add_and_store(acc, bias, residual, out, m, n, M, C: tl.constexpr):
    places = m.to(tl.int64)[:, None] * C + n[None, :]
    mask = (m < M)[:, None]
    acc += tl.load(bias + n).to(tl.float32)[None, :]
    acc += tl.load(residual + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + places, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("M", "P", "images"))
def project(
    h, weight, rest, bias, scale, slots, residual, out, M, P, images,
    D: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """``out (M, C) = residual + bias + (h scale) weight'`` with ``h (M, D)``, ``weight (C, D)``, and ``scale (images,
    D)`` of h's type. A tile has BN + BR columns, two powers of two (or BR = 0) whose sum divides C: so many share each
    scaled value. ``weight`` has boxes of BN rows, ``rest``, the same weight, of BR.
    """
    across: tl.constexpr = C // (BN + BR)
    # Last rows first: expand has just written them, so that they may still be in the cache.
    m0 = (tl.cdiv(M, BM) - 1 - tl.program_id(0) // across) * BM
    n0 = (tl.program_id(0) % across) * (BN + BR)
    first = m0 // P
    m = m0 + tl.arange(0, BM)
    n = n0 + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    if BR > 0:
        r = n0 + BN + tl.arange(0, BR)
        more = tl.zeros((BM, BR), tl.float32)
    for k0 in tl.range(0, D, BK):
        a = h.load([m0, k0])
        b = weight.load([n0, k0]).T
        if BR > 0:
            c = rest.load([n0 + BN, k0]).T
        a = _scaled(a, scale, slots, first, images, m, k0 + k, D, SLOTS)
        acc = tl.dot(a, b, acc)
        if BR > 0:
            more = tl.dot(a, c, more)
    _add_and_store(acc, bias, residual, out, m, n, M, C)
    if BR > 0:
        _add_and_store(more, bias, residual, out, m, r, M, C)
