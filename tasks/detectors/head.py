"""Base class of the detection heads: feature maps -> raw outputs -> losses or detections.

Shapes: B images of V maps each, D detections per image, M side of a mask, n objects of an image, K classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Outputs = dict[str, list[Tensor]]
Targets = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class TestSettings:
    """Post-processing settings: score threshold, NMS threshold, number of detections. The defaults are the official
    ones.

    Args:
        score: score threshold; detections at or below it are dropped.
        overlap: IoU threshold of the class-wise NMS.
        most: maximum number of detections per image.
        candidates: number of top-scoring (box, class) pairs per image considered before NMS.
    """

    __test__ = False  # keeps pytest from collecting it

    score: float = 0.05
    overlap: float = 0.5
    most: int = 100
    candidates: int = 2000

    def __post_init__(self) -> None:
        if not 0 <= self.score < 1 or not 0 < self.overlap <= 1:
            raise ValueError("task.head.test: score lies in [0, 1) and overlap in (0, 1]")
        if not 1 <= self.most <= self.candidates:
            raise ValueError("task.head.test: most is at least 1, and candidates are not fewer")


class DetectionHead(nn.Module):
    """Base class of the detection heads.

    `forward` returns detections, `(B, D, 6)`: x1, y1, x2, y2 in map pixels, score, class; sorted by descending score
    and padded with rows of 0. A head with masks also returns their probabilities, `(B, D, M, M)`.
    In training, and inside `unfinished`, `forward` returns the raw `outputs` that `losses` and `detect` take.

    Args:
        num_classes: K.
        strides: of the levels used.
    """

    has_masks = False

    def __init__(self, num_classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a detection has at least one class, not {num_classes}")
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.finishes = True

    @contextmanager
    def unfinished(self) -> Iterator[None]:
        """Makes `forward` return raw outputs in evaluation mode too: validation needs both the loss and detections."""
        self.finishes = False
        try:
            yield
        finally:
            self.finishes = True

    def forward(
        self, features: Sequence[Tensor], views: int, context: dict[str, Tensor] | None = None
    ) -> Any:
        """Feature maps of N = B·V maps -> detections, or raw outputs; see the class.

        Args:
            features: from fine to coarse.
            views: V; the feature maps of a sample's V maps are averaged.
            context: `size`, (B, 2): height and width of each image without padding; default: the whole map.
        """
        if views > 1:
            features = [x.unflatten(0, (-1, views)).mean(dim=1) for x in features]
        outputs = self.outputs(features)
        if self.training or not self.finishes:
            return outputs
        return self.detect(outputs, self.sizes(features[0], context))

    def sizes(self, finest_BCHW: Tensor, context: dict[str, Tensor] | None) -> Tensor:
        """Height and width of each image in map pixels, `(B, 2)`."""
        if context and "size" in context:
            return context["size"]
        height, width = (side * self.strides[0] for side in finest_BCHW.shape[-2:])
        one_2 = torch.tensor([height, width], device=finest_BCHW.device)
        return one_2.expand(finest_BCHW.shape[0], 2)

    def outputs(self, features: Sequence[Tensor]) -> Outputs:
        """Feature maps -> raw outputs of the convolutions, per level."""
        raise NotImplementedError

    def losses(self, outputs: Outputs, targets: Targets, sizes_B2: Tensor) -> dict[str, Tensor]:
        """The loss terms by name, already weighted; their sum is the training loss.

        Args:
            outputs: returned by `outputs`.
            targets: per image `boxes` (n, 4) in map pixels, `labels` (n,), `crowd` (n,), optionally `masks`
                (n, H, W).
            sizes_B2: see `sizes`.
        """
        raise NotImplementedError

    def image_weight(self, outputs: Outputs, target: dict[str, Tensor]) -> float | Tensor:
        """The weight of one image's loss in the mean over a split: what its loss is divided by, where that differs
        between images.

        Args:
            outputs: of this image only.
            target: as in `losses`.
        """
        return 1.0

    def detect(self, outputs: Outputs, sizes_B2: Tensor) -> Any:
        """Raw outputs -> detections; see the class."""
        raise NotImplementedError


def without_crowds(targets: Targets) -> list[dict[str, Tensor]]:
    """Targets without crowd boxes, which are excluded from training."""
    kept = []
    for target in targets:
        single = ~target["crowd"]
        kept.append({name: value[single] for name, value in target.items()})
    return kept
