"""What every head of detection is to its task: feature maps -> detections, and losses of what lies between.

Shapes: B pictures of V maps each, D detections a picture, M side of a mask, n objects of a picture, K classes.
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
    """What of a head's answers is kept; the defaults are the official ones.

    Args:
        score: least score of a detection.
        overlap: IoU above which the worse one of two detections of a class goes.
        most: detections of a picture.
        candidates: pairs of box and class that are looked at, the best ones of a picture.
    """

    __test__ = False  # pytest must not take it for one of its own

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
    """Base of the heads of detection.

    `forward` answers with detections, `(B, D, 6)`: x1, y1, x2, y2 in pixels of the maps, score, class; the best come
    first, and rows beyond the last one found are 0. A head of masks adds probabilities, `(B, D, M, M)`.
    In training, and within `unfinished`, it answers with its `outputs`, from which `losses` and `detect` go on.

    Args:
        num_classes: K.
        strides: of the levels that it reads.
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
        """Let `forward` answer with outputs in evaluation, too: for validation, which measures a loss as well."""
        self.finishes = False
        try:
            yield
        finally:
            self.finishes = True

    def forward(
        self, features: Sequence[Tensor], views: int, context: dict[str, Tensor] | None = None
    ) -> Any:
        """Feature maps of N = B·V maps -> detections, or outputs; see the class.

        Args:
            features: from fine to coarse.
            views: V; feature maps of a sample's maps are averaged.
            context: `size`, (B, 2): what of each map is picture; without it all is.
        """
        if views > 1:
            features = [x.unflatten(0, (-1, views)).mean(dim=1) for x in features]
        outputs = self.outputs(features)
        if self.training or not self.finishes:
            return outputs
        return self.detect(outputs, self.sizes(features[0], context))

    def sizes(self, finest_BCHW: Tensor, context: dict[str, Tensor] | None) -> Tensor:
        """Height and width of each picture in map pixels, `(B, 2)`."""
        if context and "size" in context:
            return context["size"]
        height, width = (side * self.strides[0] for side in finest_BCHW.shape[-2:])
        one_2 = torch.tensor([height, width], device=finest_BCHW.device)
        return one_2.expand(finest_BCHW.shape[0], 2)

    def outputs(self, features: Sequence[Tensor]) -> Outputs:
        """Feature maps -> what convolutions make of them, level by level."""
        raise NotImplementedError

    def losses(self, outputs: Outputs, targets: Targets, sizes_B2: Tensor) -> dict[str, Tensor]:
        """The parts of the loss by name, each with its weight in it; their sum is trained.

        Args:
            outputs: of `outputs`.
            targets: of each picture `boxes` (n, 4) in map pixels, `labels` (n,), `crowd` (n,), perhaps `masks`
                (n, H, W).
            sizes_B2: see `sizes`.
        """
        raise NotImplementedError

    def detect(self, outputs: Outputs, sizes_B2: Tensor) -> Any:
        """Outputs -> detections; see the class."""
        raise NotImplementedError


def without_crowds(targets: Targets) -> list[dict[str, Tensor]]:
    """Targets without the boxes that stand for crowds: these are not learnt from."""
    kept = []
    for target in targets:
        single = ~target["crowd"]
        kept.append({name: value[single] for name, value in target.items()})
    return kept
