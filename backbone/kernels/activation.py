"""Triton kernels of :mod:`backbone.kernels.gelu_grn`.

A map is ``(N, P, D)`` in memory: N images, P pixels, D channels. Shape legend inside kernels: n image, p pixels, m rows
(pixels of all images), d channels of this program. All arithmetic is in fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

# GELU without special functions, whose throughput would be the bottleneck instead of memory: gelu(x) = x / 2 + g(x),
# where g(x) = x (Phi(x) - 1/2) is even, hence a polynomial in x^2; beyond BORDER it is |x| / 2. Error 5e-5; error of
# the slope, which is odd except for 1/2, 2e-4 (bf16 rounding near 0.05). Minimax coefficients, lowest power first.
BORDER: tl.constexpr = tl.constexpr(4.25)
DEGREE: tl.constexpr = tl.constexpr(8)
_VALUE: tl.constexpr = tl.constexpr((
    0.3988192199, -0.0661902829, 0.009718780032, -0.001079078362, 8.848920602e-05, -5.14752018e-06, 1.986162508e-07,
    -4.515314459e-09, 4.547086331e-11,
))  # fmt: skip
_SLOPE: tl.constexpr = tl.constexpr((
    0.7973457601, -0.2639648367, 0.05765011809, -0.008382554605, 0.0008348242525, -5.610022993e-05, 2.416350378e-06,
    -5.987735328e-08, 6.462550708e-10,
))  # fmt: skip


@triton.jit
def _polynomial(u, coefficients: tl.constexpr):
    """Horner's scheme."""
    value = tl.full(u.shape, coefficients[DEGREE], tl.float32)
    for k in tl.static_range(1, DEGREE + 1):
        value = value * u + coefficients[DEGREE - k]
    return value


@triton.jit
def gelu(x):
    u = x * x
    return 0.5 * x + tl.where(tl.abs(x) < BORDER, u * _polynomial(u, _VALUE), 0.5 * tl.abs(x))


@triton.jit
def _slope(x):
    """Phi(x) + x phi(x)."""
    odd = tl.where(tl.abs(x) < BORDER, x * _polynomial(x * x, _SLOPE), tl.where(x > 0.0, 0.5, -0.5))
    return 0.5 + odd


@triton.jit(do_not_specialize=("P", "each"))
def sums_over_pixels(
    x, grad, scale, beta, first, second, y, P, each,
    D: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr, BETA: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """``first (parts, N, D)``: sums of gelu(x)^2 over ``each`` pixels; with ``GRAD``, sums of grad gelu(x) instead, and
    ``second``, sums of grad. fp32.

    ``GRAD`` also recomputes ``y`` of :func:`scaled_gelu`, bit-identically.

    Images are processed in reverse order: the previous layer wrote the last ones last, so they may still be cached.
    """
    n = tl.num_programs(0) - 1 - tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BP, BD), tl.float32)
    more = tl.zeros((BP, BD), tl.float32)
    base = n.to(tl.int64) * P * D
    if GRAD:
        factor = tl.load(scale + n * D + d, mask=d < D, other=0.0)[None, :]
        if BETA:
            shift = tl.load(beta + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    p0 = tl.program_id(2) * each
    end = tl.minimum(p0 + each, P)
    while p0 < end:
        p = p0 + tl.arange(0, BP)
        mask = (p < end)[:, None] & (d < D)[None, :]
        places = base + p[:, None] * D + d[None, :]
        h = gelu(tl.load(x + places, mask=mask, other=0.0).to(tl.float32))
        if GRAD:
            g = tl.load(grad + places, mask=mask, other=0.0).to(tl.float32)
            acc += g * h
            more += g
            out = h * factor
            if BETA:
                out += shift
            tl.store(y + places, out.to(y.dtype.element_ty), mask=mask)
        else:
            acc += h * h
        p0 += BP
    place = (tl.program_id(2) * tl.num_programs(0) + n) * D + d
    tl.store(first + place, tl.sum(acc, axis=0), mask=d < D)
    if GRAD:
        tl.store(second + place, tl.sum(more, axis=0), mask=d < D)


@triton.jit
def _sum_of_parts(parts, place, mask, D: tl.constexpr, PARTS: tl.constexpr):
    total = tl.load(parts + place, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * tl.num_programs(0) * D + place, mask=mask, other=0.0)
    return total


@triton.jit
def factors(
    energy, gamma, dot, scale, slope, gamma_grad,
    D: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """For one image: the scale factor ``scale (N, D)`` of each channel from its partial energies ``(parts, N, D)``,
    whose sum overwrites the first part.

    ``GRAD``: instead, from ``dot (parts, N, D)``, the sums of grad gelu(x), and the total energies ``(N, D)``: ``slope
    (N, D)``, which times gelu(x) is the gradient of gelu(x) through its energy, and this image's contribution to
    gamma's gradient.
    """
    d = tl.arange(0, BD)
    mask = d < D
    place = tl.program_id(0) * D + d
    if GRAD:
        whole = tl.load(energy + place, mask=mask, other=0.0)
    else:
        whole = _sum_of_parts(energy, place, mask, D, PARTS)
        if PARTS > 1:
            tl.store(energy + place, whole, mask=mask)
    norm = tl.sqrt(whole)
    mean = tl.sum(norm, axis=0) / D + 1e-6
    relative = norm / mean
    weight = tl.load(gamma + d, mask=mask, other=0.0).to(tl.float32)
    if GRAD:
        to_scale = _sum_of_parts(dot, place, mask, D, PARTS)
        tl.store(gamma_grad + place, to_scale * relative, mask=mask)
        to_relative = to_scale * weight
        to_norm = (to_relative - tl.sum(to_relative * relative, axis=0) / D) / mean
        of_norm = tl.where(norm > 0.0, to_norm / tl.where(norm > 0.0, norm, 1.0), 0.0)
        tl.store(slope + place, of_norm, mask=mask)
    else:
        tl.store(scale + place, weight * relative + 1.0, mask=mask)


@triton.jit(do_not_specialize=("M", "P"))
def scaled_gelu(
    x, grad, scale, other, y, M, P,
    D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BETA: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """``y = gelu(x) scale``, plus ``other (D)`` if ``BETA``.

    ``GRAD``: instead the gradient of x, (grad scale + gelu(x) other) gelu'(x), with ``other (N, D)`` of
    :func:`factors`.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    mask = (m < M)[:, None] & (d < D)[None, :]
    places = m.to(tl.int64)[:, None] * D + d[None, :]
    of_image = (m // P)[:, None] * D + d[None, :]
    value = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(scale + of_image, mask=mask, other=0.0)
    if GRAD:
        h = gelu(value)
        g = tl.load(grad + places, mask=mask, other=0.0).to(tl.float32)
        out = (g * factor + h * tl.load(other + of_image, mask=mask, other=0.0)) * _slope(value)
    else:
        out = gelu(value) * factor
        if BETA:
            out += tl.load(other + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    tl.store(y + places, out.to(y.dtype.element_ty), mask=mask)
