"""Several networks that share their weights: one backbone behind inputs of different kinds.

Every network stays a whole `UniRepLKNet`, so that all that can be done with one can be done with each: what they share
are the modules themselves, once in memory, learnt once. :func:`plain_stem` turns the weights of one of them back into
those of a network on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbone.checkpoints import adapt_first_conv
from backbone.unireplknet import UniRepLKNet

STEM = "downsample_layers.0.0"


class AdaptedConv2d(nn.Module):
    """A shared convolution behind a linear map of the channels of one input.

    Shape: ``(N, in_chans, H, W) -> (N, O, H', W')``, O and the stride of the shared convolution. It is the 1 × 1
    convolution ``in_chans -> k`` followed by the shared one, folded into a single convolution. In the beginning the
    map repeats channels as :func:`backbone.checkpoints.adapt_first_conv` does.

    Args:
        shared: a convolution of k input channels.
        in_chans: channels of this input.
    """

    def __init__(self, shared: nn.Conv2d, in_chans: int) -> None:
        super().__init__()
        self.shared = shared
        identity_kk11 = torch.eye(shared.in_channels)[:, :, None, None]
        self.adapter = nn.Parameter(adapt_first_conv(identity_kk11, in_chans)[:, :, 0, 0].clone())

    def forward(self, x_NCHW: Tensor) -> Tensor:
        conv = self.shared
        weight = folded(conv.weight, self.adapter)
        return nn.functional.conv2d(x_NCHW, weight, conv.bias, conv.stride, conv.padding)


def folded(weight_OkHW: Tensor, adapter_kC: Tensor) -> Tensor:
    """Weight of the convolution that first mixes the channels: (O, C, H, W)."""
    return torch.einsum("okhw,kc->ochw", weight_OkHW, adapter_kC)


def share(networks: Sequence[UniRepLKNet], *, batch_norm: bool = True, stem_chans: int = 0) -> None:
    """Let all networks use the stages and the downsampling between them of the first one, in place.

    Args:
        networks: of the same depths, dims and kernels; input channels may differ.
        batch_norm: whether the batch norms of the stages, weights and statistics, are shared too. If not, each network
            keeps its own: inputs of different kinds have different statistics.
        stem_chans: 0: each network keeps its own stem. Else there is one stem, which reads so many channels, behind an
            :class:`AdaptedConv2d` of each: that of the first network with so many input channels, else a new one.

    Raises:
        ValueError: networks of different shapes.
    """
    first, *others = networks
    for other in others:
        if (other.depths, other.dims, other.kernel_sizes) != (first.depths, first.dims, first.kernel_sizes):
            raise ValueError("only networks of the same depths, dims and kernel sizes can share their stages")
        for stage in range(len(first.stages)):
            if stage > 0:
                other.downsample_layers[stage] = first.downsample_layers[stage]
            if batch_norm:
                other.stages[stage] = first.stages[stage]
            else:
                _share_but_batch_norms(first.stages[stage], other.stages[stage])
    if stem_chans:
        _share_stem(networks, stem_chans)


def _share_but_batch_norms(source: nn.Module, target: nn.Module) -> None:
    for name, child in source.named_children():
        if isinstance(child, _BatchNorm):
            continue
        if any(isinstance(module, _BatchNorm) for module in child.modules()):
            _share_but_batch_norms(child, target.get_submodule(name))
        else:
            setattr(target, name, child)
    for name, parameter in source.named_parameters(recurse=False):
        setattr(target, name, parameter)


def _share_stem(networks: Sequence[UniRepLKNet], stem_chans: int) -> None:
    fitting = [network for network in networks if network.in_chans == stem_chans]
    conv, *rest = cast(nn.Sequential, (fitting or networks)[0].downsample_layers[0])
    shared = cast(nn.Conv2d, conv)
    if not fitting:
        shared.in_channels = stem_chans
        shared.weight = nn.Parameter(shared.weight.new_empty(shared.out_channels, stem_chans, 3, 3))
        nn.init.trunc_normal_(shared.weight, std=0.02)
    for network in networks:
        network.downsample_layers[0] = nn.Sequential(AdaptedConv2d(shared, network.in_chans), *rest)


def plain_stem(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A state dict with an :class:`AdaptedConv2d` at the start folded into an ordinary convolution.

    Args:
        state: of a network, names beginning with `prefix`; without such a convolution it comes back as it is.
    """
    plain = dict(state)
    adapter_kC = plain.pop(f"{prefix}{STEM}.adapter", None)
    if adapter_kC is not None:
        plain[f"{prefix}{STEM}.weight"] = folded(plain.pop(f"{prefix}{STEM}.shared.weight"), adapter_kC)
        plain[f"{prefix}{STEM}.bias"] = plain.pop(f"{prefix}{STEM}.shared.bias")
    return plain
