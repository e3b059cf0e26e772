"""Triton kernels of :mod:`backbone.kernels.grn_mlp`: a linear layer with what stands around it, and GRN's factors.

Shape legend inside kernels: M = N H W rows (pixels of all images), m rows of this program; k input channels, K in all,
d output channels, D in all; BM x BN output values a program, BK input channels at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _gelu(x):
    """x Phi(x), with erf by a polynomial (Abramowitz and Stegun 7.1.26): exact to 1.5e-7, in half the instructions."""
    z = tl.abs(x)
    t = 1.0 / (1.0 + 0.2316418882 * z)  # 0.3275911 / sqrt(2)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return tl.maximum(x, 0.0) - 0.5 * z * series * tl.exp(-0.5 * z * z)


@triton.jit
def _scale(scale, image, first, k, K: tl.constexpr, IMAGES: tl.constexpr):
    """The factor of each row's image and each input channel, from the factors of the IMAGES that the rows belong to."""
    factor = tl.load(scale + first * K + k, mask=k < K, other=0.0)[None, :]
    for i in tl.static_range(1, IMAGES):
        another = tl.load(scale + tl.minimum(first + i, tl.max(image, axis=0)) * K + k, mask=k < K, other=0.0)
        factor = tl.where((image == first + i)[:, None], another[None, :], factor)
    return factor


@triton.jit(do_not_specialize=("M", "PIXELS"))
def scaled_linear(
    x, scale, weight, bias, residual, y, energy, M, PIXELS,
    K: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    IMAGES: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """``y (M, D) = x (M, K) * scale (image, K) @ weight (D, K).T + bias``, then either of two ends.

    ``GELU``: of that, and the sums of squares of y over the rows of each of the at most ``IMAGES`` images to which this
    program's rows belong: ``energy (block of rows, IMAGES, D)`` fp32, the first image of the block first.
    ``RESIDUAL``: ``residual (M, D)`` is added.
    """
    # Programs that share rows or columns run near each other, so that both stay in the cache.
    across: tl.constexpr = (D + BN - 1) // BN
    down = tl.cdiv(M, BM)
    program = tl.program_id(0)
    group = program // (GROUP * across) * GROUP
    height = tl.minimum(down - group, GROUP)
    block = group + program % (GROUP * across) % height
    column = program % (GROUP * across) // height

    m = block * BM + tl.arange(0, BM)
    d = column * BN + tl.arange(0, BN)
    in_m = m < M
    in_d = d < D
    first = block * BM // PIXELS
    image = tl.minimum(m, M - 1) // PIXELS
    row = m.to(tl.int64)
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        in_k = k < K
        a = tl.load(x + row[:, None] * K + k[None, :], mask=in_m[:, None] & in_k[None, :], other=0.0)
        b = tl.load(weight + d[None, :] * K + k[:, None], mask=in_d[None, :] & in_k[:, None], other=0.0)
        scaled = a * _scale(scale, image, first, k, K, IMAGES)
        acc = tl.dot(scaled.to(x.dtype.element_ty), b, acc)
    acc += tl.load(bias + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
    mask = in_m[:, None] & in_d[None, :]
    if GELU:
        acc = _gelu(acc)
        squares = tl.where(mask, acc * acc, 0.0)
        for i in tl.static_range(IMAGES):
            of_image = tl.sum(tl.where((image == first + i)[:, None], squares, 0.0), axis=0)
            tl.store(energy + (block * IMAGES + i) * D + d, of_image, mask=in_d)
    if RESIDUAL:
        acc += tl.load(residual + row[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row[:, None] * D + d[None, :], acc.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("PIXELS",))
def grn_scale(
    energy, gamma, scale, PIXELS,
    D: tl.constexpr, BM: tl.constexpr, IMAGES: tl.constexpr, BLOCKS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """From the sums of :func:`scaled_linear`, GRN's factor of every channel of one image: ``scale (image, D)``."""
    image = tl.program_id(0)
    last = ((image + 1) * PIXELS - 1) // BM
    d = tl.arange(0, BD)
    squares = tl.zeros((BLOCKS, BD), tl.float32)
    block0 = image * PIXELS // BM
    while block0 <= last:
        block = block0 + tl.arange(0, BLOCKS)
        place = image - block * BM // PIXELS
        pointers = energy + (block * IMAGES + place)[:, None] * D + d[None, :]
        squares += tl.load(pointers, mask=(block <= last)[:, None] & (d < D)[None, :], other=0.0)
        block0 += BLOCKS
    norm = tl.sqrt(tl.sum(squares, axis=0))
    mean = tl.sum(norm, axis=0) / D
    factor = tl.load(gamma + d, mask=d < D, other=0.0).to(tl.float32) * norm / (mean + 1e-6) + 1.0
    tl.store(scale + image * D + d, factor.to(scale.dtype.element_ty), mask=d < D)
