"""Triton kernels of :mod:`backbone.kernels.gelu_grn`.

A map is ``(N, P, D)`` in memory: N images, P pixels, D channels. Shape legend inside kernels: n image, p pixels, m rows
(pixels of all images), d channels of this program. All arithmetic is fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tail(x):
    """1 - Phi(|x|) and exp(-x^2 / 2), erf by a polynomial (Abramowitz and Stegun 7.1.26, to 1.5e-7)."""
    z = tl.abs(x)
    t = 1.0 / (1.0 + 0.2316418882 * z)  # 0.3275911 / sqrt(2)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    bell = tl.exp(-0.5 * z * z)
    return 0.5 * series * bell, bell


@triton.jit
def _gelu(x):
    tail, _ = _tail(x)
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@triton.jit
def _gelu_and_slope(x):
    tail, bell = _tail(x)
    slope = tl.where(x > 0.0, 1.0 - tail, tail) + x * bell * 0.3989422804  # Phi + x phi
    return tl.maximum(x, 0.0) - tl.abs(x) * tail, slope


@triton.jit(do_not_specialize=("P",))
def sums_over_pixels(
    x, grad, first, second, P, D: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr, GRAD: tl.constexpr
):
    """``first (N, D)``: sums of gelu(x)^2; or, if ``GRAD``, of grad gelu(x), and ``second (N, D)`` of grad. fp32."""
    n = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BP, BD), tl.float32)
    more = tl.zeros((BP, BD), tl.float32)
    base = n.to(tl.int64) * P * D
    p0 = 0
    while p0 < P:
        p = p0 + tl.arange(0, BP)
        mask = (p < P)[:, None] & (d < D)[None, :]
        places = base + p[:, None] * D + d[None, :]
        h = _gelu(tl.load(x + places, mask=mask, other=0.0).to(tl.float32))
        if GRAD:
            g = tl.load(grad + places, mask=mask, other=0.0).to(tl.float32)
            acc += g * h
            more += g
        else:
            acc += h * h
        p0 += BP
    tl.store(first + n * D + d, tl.sum(acc, axis=0), mask=d < D)
    if GRAD:
        tl.store(second + n * D + d, tl.sum(more, axis=0), mask=d < D)


@triton.jit
def factors(
    energy, gamma, dot, scale, slope, gamma_grad, D: tl.constexpr, BD: tl.constexpr, GRAD: tl.constexpr
):
    """Of one image, all ``(N, D)``: the factor ``scale`` of each channel from the energies.

    ``GRAD``: also from ``dot``, the sums of grad gelu(x): ``slope``, which times gelu(x) is what comes to gelu(x)
    through its energy, and this image's part of gamma's gradient.
    """
    n = tl.program_id(0)
    d = tl.arange(0, BD)
    norm = tl.sqrt(tl.load(energy + n * D + d, mask=d < D, other=0.0))
    mean = tl.sum(norm, axis=0) / D + 1e-6
    relative = norm / mean
    weight = tl.load(gamma + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(scale + n * D + d, weight * relative + 1.0, mask=d < D)
    if GRAD:
        to_scale = tl.load(dot + n * D + d, mask=d < D, other=0.0)
        tl.store(gamma_grad + n * D + d, to_scale * relative, mask=d < D)
        to_relative = to_scale * weight
        to_norm = (to_relative - tl.sum(to_relative * relative, axis=0) / D) / mean
        tl.store(
            slope + n * D + d,
            tl.where(norm > 0.0, to_norm / tl.where(norm > 0.0, norm, 1.0), 0.0),
            mask=d < D,
        )


@triton.jit(do_not_specialize=("M", "P"))
def scaled_gelu(
    x, grad, scale, other, y, M, P,
    D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BETA: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """``y = gelu(x) scale``; ``BETA``: + ``other (D)``.

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
        h, slope = _gelu_and_slope(value)
        g = tl.load(grad + places, mask=mask, other=0.0).to(tl.float32)
        out = (g * factor + h * tl.load(other + of_image, mask=mask, other=0.0)) * slope
    else:
        out = _gelu(value) * factor
        if BETA:
            out += tl.load(other + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    tl.store(y + places, out.to(y.dtype.element_ty), mask=mask)
