"""The complete network: raw batch -> embedder -> maps -> backbone -> features -> head -> output."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from backbone.protocol import Backbone
from modalities.embedder import Embedder

Context = dict[str, Tensor]


def mean_of_crops(output: Tensor) -> Tensor:
    """Averages the outputs of a sample's crops, (B, crops, …) -> (B, …)."""
    return output.mean(dim=1)


class Network(nn.Module):
    """Embedder, backbone and head: the module that is trained, exported and used for prediction.

    Shapes: maps (B, V, C, H, W); the backbone sees N = B·V maps.
    """

    embedder: Embedder
    backbone: Backbone
    head: nn.Module

    def __init__(self, embedder: Embedder, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder
        self.backbone = backbone
        self.head = head
        self.frozen: tuple[str, ...] = ()
        #: Reduces the outputs of a sample's crops to one output.
        self.average_crops: Callable[[Tensor], Tensor] = mean_of_crops
        #: A replacement for `forward_maps` (compiled, or with CUDA graphs); None: eager.
        self.runner: Callable[..., Tensor] | None = None

    def freeze(self, names: Sequence[str]) -> None:
        """Freezes submodules and parameters: no gradients, and submodules always in evaluation mode.

        Frozen batch norms use their running statistics without updating them; frozen dropout and drop path are off.
        """
        self.frozen = tuple(names)
        for name in self.frozen:
            self._part(name).requires_grad_(False)
        self.train(self.training)

    def _part(self, name: str) -> nn.Module | Tensor:
        place, _, last = name.rpartition(".")
        return cast("nn.Module | Tensor", getattr(self.get_submodule(place), last))

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for name in self.frozen:
            part = self._part(name)
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def forward(self, raw: Any, augment: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Raw batch -> output of the head; the same path in training, validation, prediction and export.

        Args:
            raw: the raw batch of the data loader. A tensor with one extra dimension, (B, crops, …), holds several crops
                of each sample, whose outputs are averaged.
            augment: augmentation of maps (B, V, C, H, W), in training.
        """
        crops = self.crops(raw)
        if crops:
            raw = raw.flatten(0, 1)
        maps_BVCHW = self.maps(raw, augment)
        run = self.runner or self.forward_maps
        output = run(maps_BVCHW, self.embedder.context(raw))
        return self.average_crops(output.unflatten(0, (-1, crops))) if crops else output

    def crops(self, raw: Any) -> int:
        """The number of crops per sample of a raw batch; 0: there is no crop dimension."""
        several = isinstance(raw, Tensor) and raw.ndim == self.embedder.raw_ndim + 1
        return int(raw.shape[1]) if several else 0

    def maps(self, raw: Any, augment: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Raw batch without crop dimension -> maps (B, V, C, H, W)."""
        maps_BVCHW: Tensor = self.embedder(raw)
        return maps_BVCHW if augment is None else augment(maps_BVCHW)

    def forward_maps(self, maps_BVCHW: Tensor, context: Context | None = None) -> Tensor:
        """Maps and the embedder's additional outputs (`Embedder.context`) -> output of the head."""
        features = self.backbone.forward_features(maps_BVCHW.flatten(0, 1))
        return cast(Tensor, self.head(features, maps_BVCHW.shape[1], context))

    def reparameterize(self) -> "Network":
        """Merges the backbone into its deploy form, in place."""
        self.backbone.reparameterize()
        return self

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        """The layer index of every parameter, by name, for layer-wise learning-rate decay, counted from the input.

        The embedder belongs to the first layer, the head is the last one.

        Args:
            per_block: one layer per block of the backbone, instead of its official groups.
        """
        inner = self.backbone.parameter_layers(per_block)
        last = self.backbone.layer_count(per_block)
        layers = {}
        for name, _ in self.named_parameters(remove_duplicate=False):
            part, _, rest = name.partition(".")
            layers[name] = {"embedder": 0, "backbone": inner.get(rest, last)}.get(part, last)
        return layers


@torch.no_grad()
def example_maps(embedder: Embedder) -> Tensor:
    """Maps of the embedder's example input, (1, V, C, H, W), computed in evaluation mode."""
    training = embedder.training
    maps_BVCHW: Tensor = embedder.eval()(embedder.example_raw(1))
    embedder.train(training)
    return maps_BVCHW
