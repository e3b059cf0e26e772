"""The backbone interface used outside this package.

A backbone is an ``nn.Module`` with the members below; no base class is required. :class:`backbone.UniRepLKNet`,
:class:`backbone.replknet.RepLKNet` and :class:`backbone.timm_backbone.TimmBackbone` (any timm network) implement it. A
method ``compiled_apart``, which returns the modules that ``compile=block_graphs`` compiles one by one, may be added.

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
    #: One entry per feature map: ``num_chs``, its channels, and ``reduction``, its stride in map pixels.
    feature_info: list[dict[str, Any]]

    @property
    def first_conv(self) -> str | None:
        """Name of the input convolution, for stems shared between modalities; None if there is not exactly one."""
        ...

    # -- forward -------------------------------------------------------------------------------------------

    def forward_features(self, x_NCHW: Tensor, /) -> list[Tensor]:
        """The feature maps, ``(N, num_chs, H / reduction, W / reduction)``, with sides rounded up."""
        ...

    def fit_input(self, height: int, width: int) -> str | None:
        """Prepare for maps of this size; called before the first forward pass and before the optimiser is created.

        Returns:
            How such maps are adapted (padding, resizing), phrased as the end of a sentence; None if they are not.

        Raises:
            ValueError: the network does not support this size.
        """
        ...

    def make_pyramid(self) -> None:
        """Ensure that strides increase from one feature map to the next, as required for dense prediction.

        Called before the optimiser is created. A no-op for hierarchical networks.
        """
        ...

    # -- parts ---------------------------------------------------------------------------------------------

    def stem_parts(self) -> list[str]:
        """Names of the submodules and parameters before the first stage."""
        ...

    def stage_parts(self) -> list[list[str]]:
        """For each stage, the names of its submodules and parameters, including the downsampling before it."""
        ...

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        """The layer of every parameter, by name, for layer-wise learning-rate decay, counted from the input.

        Args:
            per_block: one layer per block, instead of the groups of the network's official recipe.
        """
        ...

    def layer_count(self, per_block: bool = False) -> int:
        """Number of these layers, i.e. the layer index of a task's head."""
        ...

    # -- weights -------------------------------------------------------------------------------------------

    def load_pretrained(self, source: str | Path | Literal[True], /) -> LoadReport:
        """Load a file, published weights by name, or the default published weights (True).

        Raises:
            CheckpointError: they cannot be found, read or loaded.
        """
        ...

    def load_weights(self, state: Mapping[str, Any], label: str, /) -> LoadReport:
        """Load weights of the same architecture from memory; input channels may differ. `label` is for messages.

        Raises:
            CheckpointError: they belong to another network.
        """
        ...

    def reparameterize(self) -> Self:
        """Merge training-time parallel branches, in place; a no-op for most networks."""
        ...

    # -- for probes ----------------------------------------------------------------------------------------

    def layer_outputs(self, x_NCHW: Tensor, /) -> dict[str, Tensor]:
        """The outputs of the layers by name, from input to output, each ``(N, C, H, W)``."""
        ...

    def depthwise_convs(self) -> Iterator[tuple[int, int, nn.Conv2d]]:
        """Stage, index within the stage (both from 1) and module of each square depthwise convolution."""
        ...

    def receptive_fields(self) -> list[int] | None:
        """Theoretical receptive field of each stage's features in deploy form: side in map pixels.

        None if it is not defined, e.g. because attention covers the whole map.
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
    """Stride of each feature map, in map pixels."""
    return [int(entry["reduction"]) for entry in backbone.feature_info]


def widths_of(backbone: Backbone) -> Sequence[int]:
    """Channels of each feature map."""
    return [int(entry["num_chs"]) for entry in backbone.feature_info]
