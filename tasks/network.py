"""The whole path as one module: raw batch -> embedder -> maps -> backbone -> features -> head -> output."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Network(nn.Module):
    """Embedder, backbone and head; this is what is trained, exported and asked.

    Shapes: maps (B, V, C, H, W); the backbone sees N = B·V maps.
    """

    def __init__(self, embedder: nn.Module, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder
        self.backbone = backbone
        self.head = head
        self.frozen: tuple[str, ...] = ()

    def freeze(self, names: Sequence[str]) -> None:
        """Keep submodules as they are: no gradients, and always in evaluation mode.

        Their batch norms then use and keep the statistics they have, and their dropout and drop path rest.
        """
        self.frozen = tuple(names)
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, raw: Any) -> Tensor:
        """Raw batch -> output of the head."""
        return self.forward_maps(self.embedder(raw), self.embedder.context(raw))  # type: ignore[operator]

    def forward_maps(self, maps_BVCHW: Tensor, context: dict[str, Tensor] | None = None) -> Tensor:
        """Maps, and what the embedder has to say beside them (`Embedder.context`) -> output of the head."""
        features = self.backbone.forward_features(maps_BVCHW.flatten(0, 1))  # type: ignore[operator]
        if context is None:
            return self.head(features, maps_BVCHW.shape[1])
        return self.head(features, maps_BVCHW.shape[1], context)

    def reparameterize(self) -> "Network":
        """Merge the backbone into its deploy form, in place."""
        self.backbone.reparameterize()  # type: ignore[operator]
        return self

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        """The layer of every parameter, by name, for layer-wise learning-rate decay, counted from the input.

        The embedder belongs to the first layer, the head is the last one.

        Args:
            per_block: a layer for every block of the backbone, instead of its official groups.
        """
        inner: dict[str, int] = self.backbone.parameter_layers(per_block)  # type: ignore[operator]
        last = 1 + max(layer for name, layer in inner.items() if not name.startswith(("norm", "head")))
        layers = {}
        for name, _ in self.named_parameters(remove_duplicate=False):
            part, _, rest = name.partition(".")
            layers[name] = {"embedder": 0, "backbone": inner.get(rest, last)}.get(part, last)
        return layers
