"""The whole path as one module: raw batch -> embedder -> maps -> backbone -> features -> head -> output."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from backbone.protocol import Backbone
from modalities.embedder import Embedder

Context = dict[str, Tensor]


def mean_of_crops(output: Tensor) -> Tensor:
    """The outputs of a sample's crops, (B, crops, …), as one: (B, …)."""
    return output.mean(dim=1)


class Network(nn.Module):
    """Embedder, backbone and head; this is what is trained, exported and asked.

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
        #: What makes one output of those of a sample's crops.
        self.average_crops: Callable[[Tensor], Tensor] = mean_of_crops
        #: Runs `forward_maps` in another form (compiled, as CUDA graphs); None: as it is.
        self.runner: Callable[..., Tensor] | None = None

    def freeze(self, names: Sequence[str]) -> None:
        """Keep submodules and parameters as they are: no gradients, and submodules always in evaluation mode.

        Their batch norms then use and keep the statistics they have, and their dropout and drop path rest.
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
        """Raw batch -> output of the head, the same way in training, validation, prediction and export.

        Args:
            raw: as the data give it. A tensor with one dimension more than usual, (B, crops, …), holds several crops
                of each sample, whose outputs are averaged.
            augment: changes maps (B, V, C, H, W), in training.
        """
        crops = self.crops(raw)
        if crops:
            raw = raw.flatten(0, 1)
        maps_BVCHW = self.maps(raw, augment)
        run = self.runner or self.forward_maps
        output = run(maps_BVCHW, self.embedder.context(raw))
        return self.average_crops(output.unflatten(0, (-1, crops))) if crops else output

    def crops(self, raw: Any) -> int:
        """How many crops a sample of a raw batch has; 0: it is read whole."""
        several = isinstance(raw, Tensor) and raw.ndim == self.embedder.raw_ndim + 1
        return int(raw.shape[1]) if several else 0

    def maps(self, raw: Any, augment: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Raw batch, one crop a sample -> maps (B, V, C, H, W)."""
        maps_BVCHW: Tensor = self.embedder(raw)
        return maps_BVCHW if augment is None else augment(maps_BVCHW)

    def forward_maps(self, maps_BVCHW: Tensor, context: Context | None = None) -> Tensor:
        """Maps, and what the embedder has to say beside them (`Embedder.context`) -> output of the head."""
        features = self.backbone.forward_features(maps_BVCHW.flatten(0, 1))
        return cast(Tensor, self.head(features, maps_BVCHW.shape[1], context))

    def reparameterize(self) -> "Network":
        """Merge the backbone into its deploy form, in place."""
        self.backbone.reparameterize()
        return self

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        """The layer of every parameter, by name, for layer-wise learning-rate decay, counted from the input.

        The embedder belongs to the first layer, the head is the last one.

        Args:
            per_block: a layer for every block of the backbone, instead of its official groups.
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
    """Maps of one sample of the usual shape, (1, V, C, H, W), made in evaluation mode."""
    training = embedder.training
    maps_BVCHW: Tensor = embedder.eval()(embedder.example_raw(1))
    embedder.train(training)
    return maps_BVCHW
