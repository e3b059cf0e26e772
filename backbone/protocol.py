"""What everything outside this package may ask of a backbone, whichever it is.

A backbone is an ``nn.Module`` with the members below; it needs no base class. :class:`backbone.UniRepLKNet`,
:class:`backbone.replknet.RepLKNet` and :class:`backbone.timm_backbone.TimmBackbone` (any of timm's networks) are
backbones.

Shapes: N maps, C channels, H height and W width in map pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from backbone.checkpoints import LoadReport


class Backbone(Protocol):
    """Maps ``(N, in_chans, H, W)`` -> feature maps, from fine to coarse."""

    in_chans: int
    #: Channels of the last feature map.
    num_features: int
    #: One entry for each feature map: ``num_chs``, its channels, and ``reduction``, its stride in map pixels.
    feature_info: list[dict[str, Any]]

    @property
    def first_conv(self) -> str | None:
        """Name of the convolution that reads the maps, for stems that modalities share; None: there is not just one."""
        ...

    # -- forward -------------------------------------------------------------------------------------------

    def forward_features(self, x_NCHW: Tensor, /) -> list[Tensor]:
        """The feature maps, ``(N, num_chs, H / reduction, W / reduction)`` with sides rounded up."""
        ...

    def fit_input(self, height: int, width: int) -> str | None:
        """Get ready for maps of this size, before the first forward pass and before an optimiser is made.

        Returns:
            What has to be done to such maps (padding, resizing), as the end of a sentence about them; None: nothing.

        Raises:
            ValueError: the network cannot read them.
        """
        ...

    def make_pyramid(self) -> None:
        """See to it that strides rise from one feature map to the next, which dense predictions want.

        Called before an optimiser is made. Nothing to do for networks of stages.
        """
        ...

    # -- parts ---------------------------------------------------------------------------------------------

    def stem_parts(self) -> list[str]:
        """Names of the submodules and parameters in front of the first stage."""
        ...

    def stage_parts(self) -> list[list[str]]:
        """For each stage the names of its submodules and parameters, with the downsampling in front of it."""
        ...

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        """The layer of every parameter, by name, for layer-wise learning-rate decay, counted from the input.

        Args:
            per_block: a layer for every block, instead of the groups of the network's official recipe.
        """
        ...

    def layer_count(self, per_block: bool = False) -> int:
        """How many of these layers there are before that of a task's head."""
        ...

    # -- weights -------------------------------------------------------------------------------------------

    def load_pretrained(self, source: str | Path | Literal[True], /) -> LoadReport:
        """Load a file, published weights by their name, or the usual ones (True).

        Raises:
            CheckpointError: they cannot be found, read or fitted.
        """
        ...

    def load_weights(self, state: Mapping[str, Any], label: str, /) -> LoadReport:
        """Load the weights of such a network from memory; input channels may differ. `label`: for messages.

        Raises:
            CheckpointError: they are of another network.
        """
        ...

    def reparameterize(self) -> Self:
        """Merge what is parallel in training only, in place; nothing to do for most networks."""
        ...

    # -- what probes ask -----------------------------------------------------------------------------------

    def layer_outputs(self, x_NCHW: Tensor, /) -> dict[str, Tensor]:
        """The outputs of its layers by name, from input to output, each ``(N, C, H, W)``."""
        ...

    def depthwise_convs(self) -> Iterator[tuple[int, int, nn.Conv2d]]:
        """Stage, number within the stage, both from 1, and each square depthwise convolution."""
        ...

    def receptive_fields(self) -> list[int] | None:
        """Side of the region, in map pixels, that convolutions let a feature of each stage see, once merged.

        None where that is not counted: attention sees the whole map.
        """
        ...

    # -- of every nn.Module --------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...

    def to(self, device: torch.device) -> Self: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def get_submodule(self, target: str) -> nn.Module: ...


def strides_of(backbone: Backbone) -> list[int]:
    """Map pixels a step of each feature map."""
    return [int(entry["reduction"]) for entry in backbone.feature_info]


def widths_of(backbone: Backbone) -> Sequence[int]:
    """Channels of each feature map."""
    return [int(entry["num_chs"]) for entry in backbone.feature_info]
