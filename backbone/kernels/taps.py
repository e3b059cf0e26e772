"""Depthwise convolution tap by tap, with fused multiply-adds in fp32.

For small kernels, which are memory-bound and would not use tensor cores efficiently, and for fp32 inputs, which tensor
cores would round to tf32. Tensors are in NHWC memory format; neighbouring pixels are reread from the cache.

Shape legend inside kernels: K taps a side, D dilation; q output pixels, numbered over images, rows and columns; c
channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

_ANY_SIZE = ("pixels", "H", "W", "sign", "splits")


@triton.jit(do_not_specialize=_ANY_SIZE)
def conv_by_tap(
    x, weight, bias, y, pixels, C, H, W, sign,
    K: tl.constexpr, D: tl.constexpr, PIXELS: tl.constexpr, CB: tl.constexpr, BIAS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One block of pixels and channels; ``sign`` -1 rotates the kernel by 180 degrees."""
    q = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    h = (q // W % H).to(tl.int32)
    w = (q % W).to(tl.int32)
    in_c = c < C
    acc = tl.zeros((PIXELS, CB), tl.float32)
    if BIAS:
        acc += tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    if UNROLL:
        for kh in tl.static_range(K):
            for kw in tl.static_range(K):
                acc += _tap(x, weight, q, c, h, w, pixels, C, H, W, sign, kh, kw, K, D)
    else:
        for kh in range(K):
            for kw in range(K):
                acc += _tap(x, weight, q, c, h, w, pixels, C, H, W, sign, kh, kw, K, D)
    pointers = y + q[:, None] * C + c[None, :]
    tl.store(pointers, acc.to(y.dtype.element_ty), mask=(q < pixels)[:, None] & in_c[None, :])


@triton.jit
def _tap(x, weight, q, c, h, w, pixels, C, H, W, sign, kh, kw, K: tl.constexpr, D: tl.constexpr):
    """Contribution of one tap to every output pixel, fp32 ``(q, c)``."""
    dh = sign * (kh - K // 2) * D
    dw = sign * (kw - K // 2) * D
    inside = (q < pixels) & (h + dh >= 0) & (h + dh < H) & (w + dw >= 0) & (w + dw < W)
    pointers = x + (q + dh * W + dw)[:, None] * C + c[None, :]
    value = tl.load(pointers, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    tap = tl.load(weight + c * (K * K) + kh * K + kw, mask=c < C, other=0.0).to(tl.float32)
    return value * tap[None, :]


@triton.jit(do_not_specialize=_ANY_SIZE)
def weight_grad_by_tap(
    x, grad, partial, pixels, C, H, W, splits,
    K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, PIXELS: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Sums over this program's pixels for ``ROWS`` rows of taps: ``partial (split, K, K, C)`` fp32."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    split = tl.program_id(1)
    first_row = tl.program_id(2) * ROWS
    in_c = (c < C)[None, :]
    sums = ()
    for _ in tl.static_range(ROWS * K):
        sums = sums + (tl.zeros((PIXELS, CB), tl.float32),)
    block = split
    while block < tl.cdiv(pixels, PIXELS):
        q = block * PIXELS + tl.arange(0, PIXELS).to(tl.int64)
        h = (q // W % H).to(tl.int32)
        w = (q % W).to(tl.int32)
        g = tl.load(grad + q[:, None] * C + c[None, :], mask=(q < pixels)[:, None] & in_c, other=0.0).to(
            tl.float32
        )
        updated = ()
        for t in tl.static_range(ROWS * K):
            dh = (first_row + t // K - K // 2) * D
            dw = (t % K - K // 2) * D
            inside = (q < pixels) & (h + dh >= 0) & (h + dh < H) & (w + dw >= 0) & (w + dw < W)
            pointers = x + (q + dh * W + dw)[:, None] * C + c[None, :]
            value = tl.load(pointers, mask=inside[:, None] & in_c, other=0.0).to(tl.float32)
            updated = updated + (sums[t] + value * g,)
        sums = updated
        block += splits
    for t in tl.static_range(ROWS * K):
        tap = first_row * K + t
        pointers = partial + (split * (K * K) + tap).to(tl.int64) * C + c
        tl.store(pointers, tl.sum(sums[t], axis=0), mask=(c < C) & (tap < K * K))
