"""Weight sharing between networks: one backbone for several kinds of input.

Every network remains a complete `Backbone` that can be used on its own; the shared modules are the same objects,
stored and trained once. :func:`plain_stem` converts the weights of one of them back into those of a standalone
network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbone.checkpoints import adapt_first_conv
from backbone.protocol import Backbone


class AdaptedConv2d(nn.Module):
    """A shared convolution preceded by a linear map of one input's channels.

    Shape: ``(N, in_chans, H, W) -> (N, O, H', W')``, O and the stride of the shared convolution. It is the 1 × 1
    convolution ``in_chans -> k`` followed by the shared one, folded into a single convolution. The
    map is initialised to repeat channels as in :func:`backbone.checkpoints.adapt_first_conv`.

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
    """Weight (O, C, H, W) of the folded convolution: channel map, then shared convolution."""
    return torch.einsum("okhw,kc->ochw", weight_OkHW, adapter_kC)


def share(networks: Sequence[Backbone], *, batch_norm: bool = True, stem_chans: int = 0) -> None:
    """Share the first network's stages and downsampling layers with all others, in place.

    Args:
        networks: of the same architecture and size; input channels may differ.
        batch_norm: whether the stages' batch norms, weights and statistics, are shared too. If not, each network
            keeps its own, since different kinds of input have different statistics.
        stem_chans: 0 to keep each network's own stem; otherwise the number of input channels of a shared stem, used
            through an :class:`AdaptedConv2d` per network. It is taken from the first network with this number of input
            channels, or newly initialised.

    Raises:
        ValueError: networks of different shapes, or a stem that cannot be shared.
    """
    first, *others = networks
    names = [name for stage in first.stage_parts() for name in stage]
    shapes = _shapes(first, names)
    for other in others:
        if type(other) is not type(first) or _shapes(other, names) != shapes:
            raise ValueError("only networks of the same depths, dims and kernel sizes can share their stages")
        for name in names:
            _share_part(cast(nn.Module, first), cast(nn.Module, other), name, batch_norm)
    if stem_chans:
        _share_stem(networks, stem_chans, batch_norm)


def _shapes(network: Backbone, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    inside = tuple(f"{name}." for name in names)
    return {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if name in names or name.startswith(inside)
    }


def _share_part(source: nn.Module, target: nn.Module, name: str, batch_norm: bool) -> None:
    """Share a submodule or a parameter."""
    place, _, last = name.rpartition(".")
    part = getattr(source.get_submodule(place), last)
    has_norms = isinstance(part, nn.Module) and any(
        isinstance(module, _BatchNorm) for module in part.modules()
    )
    if batch_norm or not has_norms:
        setattr(target.get_submodule(place), last, part)
    elif not isinstance(part, _BatchNorm):
        _share_but_batch_norms(part, target.get_submodule(name))


def _share_but_batch_norms(source: nn.Module, target: nn.Module) -> None:
    for name, _ in source.named_children():
        _share_part(source, target, name, batch_norm=False)
    for name, parameter in source.named_parameters(recurse=False):
        setattr(target, name, parameter)


def _share_stem(networks: Sequence[Backbone], stem_chans: int, batch_norm: bool) -> None:
    fitting = [network for network in networks if network.in_chans == stem_chans]
    source = (fitting or networks)[0]
    name = source.first_conv
    shared = source.get_submodule(name) if name else None
    if name is None or not isinstance(shared, nn.Conv2d) or shared.groups != 1:
        raise ValueError(
            "the maps of this backbone are read by no single convolution: take task.stem=per_modality"
        )
    if not fitting:
        shared.in_channels = stem_chans
        shared.weight = nn.Parameter(
            shared.weight.new_empty(shared.out_channels, stem_chans, *shared.kernel_size)
        )
        nn.init.trunc_normal_(shared.weight, std=0.02)
    for network in networks:
        for part in source.stem_parts() if network is not source else ():
            _share_around(cast(nn.Module, source), cast(nn.Module, network), part, name, batch_norm)
    place, _, last = name.rpartition(".")
    for network in networks:
        setattr(network.get_submodule(place), last, AdaptedConv2d(shared, network.in_chans))


def _share_around(source: nn.Module, target: nn.Module, name: str, left_out: str, batch_norm: bool) -> None:
    """Share a part except for one submodule in it; shares nothing if that is the part itself."""
    if name == left_out:
        return
    if not left_out.startswith(f"{name}."):
        _share_part(source, target, name, batch_norm)
        return
    inside = source.get_submodule(name)
    for child, _ in [*inside.named_children(), *inside.named_parameters(recurse=False)]:
        _share_around(source, target, f"{name}.{child}", left_out, batch_norm)


def plain_stem(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A state dict with the :class:`AdaptedConv2d` of the stem folded into an ordinary convolution.

    Args:
        state: of a network, with names starting with `prefix`; returned unchanged if it has no such convolution.
    """
    plain = dict(state)
    for name in [name for name in state if name.startswith(prefix) and name.endswith(".adapter")]:
        conv = name.removesuffix(".adapter")
        adapter_kC = plain.pop(name)
        plain[f"{conv}.weight"] = folded(plain.pop(f"{conv}.shared.weight"), adapter_kC)
        if f"{conv}.shared.bias" in plain:
            plain[f"{conv}.bias"] = plain.pop(f"{conv}.shared.bias")
    return plain
