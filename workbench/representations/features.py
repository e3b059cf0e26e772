"""Raw batch -> features of one stage of the frozen backbone.

Shapes: B batch, V maps per sample, N = B·V; C, H, W of a feature map.
"""

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from modalities.embedder import by_size, in_order
from tasks.network import Network
from workbench.errors import UsageError

LAST = "last"
VIEWS = ("mean", "apart")


@dataclass(frozen=True)
class Features:
    """Which features are extracted from the backbone.

    Args:
        stage: index into the output of `forward_features`; None for the last stage.
        pool: average each map over its pixels, (C,), instead of keeping it, (C, H, W).
        views: `mean` over a sample's V maps, or `apart` to keep them, (V, …).
    """

    stage: int | None = None
    pool: bool = True
    views: str = "mean"

    @classmethod
    def asked(cls, action: DictConfig) -> "Features":
        """Build from an action's settings; raises `UsageError` for invalid ones."""
        stage = action.stage
        if stage != LAST and (type(stage) is not int or stage < 0):
            raise UsageError(f"action.stage={stage}: it must be last, or the number of a stage from 0 on")
        if action.views not in VIEWS:
            raise UsageError(f"action.views={action.views} is none of {', '.join(VIEWS)}")
        return cls(None if stage == LAST else stage, bool(action.get("pool", True)), action.views)

    @torch.inference_mode()
    def of(self, network: Network, raw: Any) -> Tensor:
        """Features of a raw batch: (B, C), or (B, V, C) with `views=apart`; unpooled maps have H and W after C.

        For several crops per sample, raw (B, crops, …), features are averaged over crops, like a classifier's outputs.
        Samples of several sizes are read size by size, without padding.

        Raises:
            UsageError: the backbone has no such stage; maps of several sizes, which are not pooled.
        """
        samples = network.embedder.unpadded(raw)
        if samples is None:
            return self._of(network, raw)
        found = [(places, self._of(network, part)) for places, part in by_size(samples)]
        shapes = list(dict.fromkeys(tuple(features.shape[1:]) for _, features in found))
        if len(shapes) > 1:
            raise UsageError(
                f"features of shape {shapes[0]} and of {shapes[1]}: maps of one size are needed, or action.pool=true"
            )
        return in_order(found)

    def _of(self, network: Network, raw: Any) -> Tensor:
        crops = network.crops(raw)
        maps_BVCHW = network.maps(raw.flatten(0, 1) if crops else raw)
        maps_NCHW = self._stage(network.backbone.forward_features(maps_BVCHW.flatten(0, 1)))
        found = maps_NCHW.mean(dim=(-2, -1)) if self.pool else maps_NCHW
        found = found.unflatten(0, (-1, maps_BVCHW.shape[1]))
        found = found.mean(dim=1) if self.views == "mean" else found
        return (found.unflatten(0, (-1, crops)).mean(dim=1) if crops else found).float()

    def _stage(self, maps: list[Tensor]) -> Tensor:
        if self.stage is not None and self.stage >= len(maps):
            raise UsageError(
                f"action.stage={self.stage}: this backbone has {len(maps)} stages, take {LAST} or 0 to "
                f"{len(maps) - 1}"
            )
        return maps[-1 if self.stage is None else self.stage]

    def said(self) -> str:
        """Description for tables and titles."""
        stage = "the last stage" if self.stage is None else f"stage {self.stage}"
        views = "" if self.views == "mean" else ", each view apart"
        return f"{'pooled features' if self.pool else 'feature maps'} of {stage}{views}"
