"""Structural re-parameterisation: parallel branches in training, one convolution at inference.

Large kernels are hard to train alone, so UniRepLKNet trains each one in parallel with several small
*dilated* depthwise convolutions and adds the outputs. A dilated convolution equals a larger, sparse,
non-dilated one, and a batch norm with fixed statistics is a scale and a shift; both are linear, so
the sum is again a single convolution (arXiv 2311.15599, section 3.2; arXiv 2410.08049).

All merging is done in float64, because batch-norm statistics can span many orders of magnitude; the
merged weights are rounded once, at the end.

Shape legend: N batch, C channels, H height, W width, K kernel size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbone.batch_norm import affines_from_sums, alike, takes_sums
from backbone.kernels import DepthwiseConv2d, gram_cpu
from backbone.kernels.depthwise import (
    SMALLEST,
    SMALLEST_TRAINED,
    depthwise_conv2d,
    depthwise_conv2d_moments,
    moments_on_chip,
    sums_on_chip,
)

#: Dilated branches parallel to a large kernel: ``{K: ((kernel, dilation), ...)}``, as in the official release.
DILATED_BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


def as_float64(tensor: Tensor) -> Tensor:
    """Detached float64 copy, on the same device if it supports float64, else on the CPU."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device=device, dtype=torch.float64)


def batch_norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 ``(C,)`` each, that a batch norm applies in evaluation mode.

    Works for every batch norm, :class:`torch.nn.SyncBatchNorm` included.

    Raises:
        TypeError: ``norm`` is not a batch norm with running statistics, hence not a fixed affine map.

    >>> scale, shift = batch_norm_affine(nn.BatchNorm2d(3, eps=0.0))
    >>> scale.tolist(), shift.tolist()
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"only a batch norm with running statistics can be merged, not {type(norm).__name__}")
    scale = (as_float64(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * as_float64(norm.weight)
    shift = -as_float64(norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + as_float64(norm.bias)
    return scale, shift


def undilate(kernel_C1KK: Tensor, dilation: int) -> Tensor:
    """The non-dilated kernel equivalent to a dilated one, with zeros between the taps.

    Args:
        kernel_C1KK: depthwise kernel, ``(C, 1, k, k)``.
        dilation: distance between taps, in pixels.

    Returns:
        ``(C, 1, d(k-1)+1, d(k-1)+1)``.

    >>> undilate(torch.ones(1, 1, 2, 2), 2)[0, 0].tolist()
    [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    """
    size = dilation * (kernel_C1KK.shape[-1] - 1) + 1
    dense = kernel_C1KK.new_zeros(*kernel_C1KK.shape[:2], size, size)
    dense[..., ::dilation, ::dilation] = kernel_C1KK
    return dense


def set_conv(conv: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Set weight and bias of a convolution or linear layer, keeping its dtype, device and ``requires_grad``."""
    old = cast(nn.Parameter, conv.weight)
    for name, value in (("weight", weight), ("bias", bias)):
        value = value.to(device=old.device, dtype=old.dtype)
        setattr(conv, name, nn.Parameter(value, requires_grad=old.requires_grad))


def merged_conv(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias, float64, of a convolution merged with the batch norm behind it."""
    scale_C, shift_C = batch_norm_affine(norm)
    if conv.bias is not None:
        shift_C = shift_C + scale_C * as_float64(cast(Tensor, conv.bias))
    return as_float64(cast(Tensor, conv.weight)) * scale_C.view(-1, 1, 1, 1), shift_C


def _taps(kernel_CKK: Tensor, size: int, dilation: int) -> Tensor:
    """View of the taps of a K x K kernel that coincide with those of a smaller, dilated one: ``(C, size, size)``."""
    margin = (kernel_CKK.shape[-1] - dilation * (size - 1) - 1) // 2
    along = slice(margin, kernel_CKK.shape[-1] - margin, dilation)
    return kernel_CKK[:, along, along]


def _stacked(dilations: list[int], *weights: Tensor) -> Tensor:
    """B dilated kernels ``(C, 1, k, k)`` as dense ones, all of the size of the first: ``(B, C, K, K)``."""
    size = weights[0].shape[-1]
    kernels_BCKK = weights[0].new_zeros(len(weights), len(weights[0]), size, size)
    for kernel_CKK, weight, dilation in zip(kernels_BCKK, weights, dilations, strict=True):
        _taps(kernel_CKK, weight.shape[-1], dilation).copy_(weight[:, 0])
    return kernels_BCKK


def _scaled_sum(kernels_BCKK: Tensor, scale_BC: Tensor) -> Tensor:
    """Scaled sum of B kernels, ``(C, 1, K, K)``."""
    return (kernels_BCKK * scale_BC[:, :, None, None]).sum(0).unsqueeze(1)


class _Stacked(torch.autograd.Function):
    """:func:`_stacked` with a manual backward pass: autograd would copy all kernels for each of them.

    Only used when gradients are recorded: otherwise torch.compile passes ``forward`` an unsupported context.
    """

    forward = staticmethod(_stacked)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dilations, *weights = inputs
        ctx.sizes = [weight.shape[-1] for weight in weights]

    @staticmethod
    def backward(ctx: Any, grad_BCKK: Tensor) -> tuple[Any, ...]:
        each = zip(grad_BCKK, ctx.sizes, ctx.dilations, strict=True)
        return None, *(_taps(grad_CKK, size, dilation).unsqueeze(1) for grad_CKK, size, dilation in each)


class DilatedReparamBlock(nn.Module):
    """A K x K depthwise convolution trained in parallel with dilated branches, each with its own batch norm.

    Shape: ``(N, C, H, W) -> (N, C, H, W)``, stride 1, zero padding.

    Args:
        channels: C.
        kernel_size: K, a key of :data:`DILATED_BRANCHES`.
        deploy: build the merged form, one convolution with bias.

    Raises:
        ValueError: no branches are defined for this K.

    >>> block = DilatedReparamBlock(4, 13).eval()
    >>> x = torch.randn(1, 4, 20, 20)
    >>> before = block(x)
    >>> torch.allclose(block.reparameterize()(x), before, atol=1e-5)
    True
    """

    lk_origin: DepthwiseConv2d

    def __init__(self, channels: int, kernel_size: int, deploy: bool = False) -> None:
        super().__init__()
        if kernel_size not in DILATED_BRANCHES:
            raise ValueError(
                f"no dilated branches for kernel size {kernel_size}: use one of {list(DILATED_BRANCHES)}"
            )
        self.kernel_size = kernel_size
        self.deploy = deploy
        self.lk_origin = DepthwiseConv2d(channels, kernel_size, bias=deploy)
        if deploy:
            return
        self.origin_bn = nn.BatchNorm2d(channels)
        for k, d in DILATED_BRANCHES[kernel_size]:
            setattr(self, f"dil_conv_k{k}_{d}", DepthwiseConv2d(channels, k, dilation=d, bias=False))
            setattr(self, f"dil_bn_k{k}_{d}", nn.BatchNorm2d(channels))

    def branches(self) -> list[tuple[nn.Module, nn.Module, int]]:
        """``(convolution, batch norm, dilation)`` of every remaining branch, the large kernel first."""
        if self.deploy:
            return []
        pairs: list[tuple[nn.Module, nn.Module, int]] = [(self.lk_origin, self.origin_bn, 1)]
        for k, d in DILATED_BRANCHES[self.kernel_size]:
            # Looked up by name each time, because e.g. sync-BN conversion replaces modules.
            pairs.append((getattr(self, f"dil_conv_k{k}_{d}"), getattr(self, f"dil_bn_k{k}_{d}"), d))
        return pairs

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.deploy:
            return cast(Tensor, self.lk_origin(x_NCHW))
        if one := self.as_one_convolution(x_NCHW):
            return depthwise_conv2d(x_NCHW, *one)
        out_NCHW: Tensor = self.origin_bn(self.lk_origin(x_NCHW))
        for conv, norm, _ in self.branches()[1:]:
            out_NCHW = out_NCHW + norm(conv(x_NCHW))
        return out_NCHW

    def as_one_convolution(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Kernel ``(C, 1, K, K)`` and bias ``(C,)`` of the single convolution equal to all branches on this input.

        In training, too, a batch norm is a scale and a shift once the statistics of its branch on this batch are
        known; these are computed from the input's Gram matrices, without materialising any branch's output.
        Differentiable, including the gradient through the statistics; mathematically identical to the branches. Updates
        running statistics.

        None if this would not be faster: without kernels that compute the sums on chip, or with non-plain batch norms.
        """
        if self.deploy:
            return self.lk_origin.as_one_convolution(x_NCHW)
        count = x_NCHW.shape[0] * x_NCHW.shape[2] * x_NCHW.shape[3]
        branches = self.branches()
        least = SMALLEST_TRAINED if torch.is_grad_enabled() else SMALLEST
        norms = [norm for _, norm, _ in branches]
        weight = self.lk_origin.weight
        on_chip = moments_on_chip if norms[0].training else sums_on_chip
        pays = on_chip(x_NCHW, weight, least=least) or (norms[0].training and gram_cpu.pays(x_NCHW, weight))
        if not pays:
            return None
        if not (all(takes_sums(norm, count) for norm in norms) and alike(norms)):
            return None
        weights = [cast(Tensor, conv.weight) for conv, _, _ in branches]
        dilations = [dilation for _, _, dilation in branches]
        stack = _Stacked.apply if torch.is_grad_enabled() else _stacked
        kernels_BCKK = cast(Tensor, stack(dilations, *weights))
        moments = depthwise_conv2d_moments(x_NCHW, kernels_BCKK) if norms[0].training else None
        scale_BC, shift_BC = affines_from_sums(norms, moments, count)
        return _scaled_sum(kernels_BCKK, scale_BC), shift_BC.sum(0)

    @torch.no_grad()
    def merged(self) -> tuple[Tensor, Tensor]:
        """Kernel ``(C, 1, K, K)`` and bias ``(C,)`` of the equivalent single convolution, float64."""
        if self.deploy:
            return as_float64(self.lk_origin.weight), as_float64(cast(Tensor, self.lk_origin.bias))
        branches = self.branches()
        weights = [as_float64(cast(Tensor, conv.weight)) for conv, _, _ in branches]
        scales, shifts = zip(*(batch_norm_affine(norm) for _, norm, _ in branches), strict=True)
        dilations = [dilation for _, _, dilation in branches]
        return _scaled_sum(_stacked(dilations, *weights), torch.stack(scales)), torch.stack(shifts).sum(0)

    @torch.no_grad()
    def reparameterize(self, followed_by: nn.Module | None = None) -> DilatedReparamBlock:
        """Merge in place into ``lk_origin``, including the following batch norm if given. Idempotent."""
        if self.deploy and followed_by is None:
            return self
        kernel, bias = self.merged()
        if followed_by is not None:
            scale, shift = batch_norm_affine(followed_by)
            kernel, bias = kernel * scale.view(-1, 1, 1, 1), bias * scale + shift
        set_conv(self.lk_origin, kernel, bias)
        if not self.deploy:
            del self.origin_bn
            for k, d in DILATED_BRANCHES[self.kernel_size]:
                delattr(self, f"dil_conv_k{k}_{d}")
                delattr(self, f"dil_bn_k{k}_{d}")
        self.deploy = True
        return self
