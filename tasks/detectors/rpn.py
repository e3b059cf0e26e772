"""Region proposal network (RPN, Ren et al. 2015, arXiv 1506.01497) on a feature pyramid.

Shapes: B images, L levels, A anchors per location, N anchors of all levels, P proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.detectors.anchors import anchors_of
from tasks.detectors.boxes import BoxCoding, best, clipped, has_area, picked, survivors
from tasks.detectors.layers import begin
from tasks.detectors.sampling import NEITHER, assigned, sampled


@dataclass(frozen=True)
class RPNSettings:
    """Settings of anchors, loss and proposals; the defaults are the official ones.

    Args:
        scale: side of an anchor in strides of its level.
        ratios: aspect ratios (height / width) of the anchors at a location.
        positive, negative: an anchor is positive from the first IoU on, and background below the second.
        least: minimum IoU at which the best anchors of an object are positive below `positive`, too.
        samples: number of anchors sampled per image for the loss.
        positive_part: maximum fraction of positive ones among them.
        inside: excludes anchors that cross the image border from the loss.
        beta: the smooth L1 threshold between its quadratic and its linear part.
        before: top-scoring proposals per level before NMS, in training and in evaluation.
        after: proposals per image after NMS, in training and in evaluation.
        overlap: IoU threshold of the NMS.
    """

    scale: float = 8.0
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    positive: float = 0.7
    negative: float = 0.3
    least: float = 0.3
    samples: int = 256
    positive_part: float = 0.5
    inside: bool = True
    beta: float = 1 / 9
    before: Sequence[int] = (2000, 1000)
    after: Sequence[int] = (2000, 1000)
    overlap: float = 0.7

    def __post_init__(self) -> None:
        if self.scale <= 0 or not self.ratios or min(self.ratios) <= 0:
            raise ValueError("task.head.rpn: scale and ratios of anchors are above 0")
        if not 0 < self.negative <= self.positive <= 1 or not 0 < self.least <= 1:
            raise ValueError("task.head.rpn: 0 < negative <= positive <= 1, and least lies in (0, 1]")
        if self.samples < 2 or not 0 < self.positive_part <= 1 or self.beta <= 0:
            raise ValueError("task.head.rpn: samples are at least 2, positive_part in (0, 1], beta above 0")
        if len(self.before) != 2 or len(self.after) != 2 or min(*self.before, *self.after) < 1:
            raise ValueError("task.head.rpn: before and after take two numbers, in training and else")
        if not 0 < self.overlap <= 1:
            raise ValueError(f"task.head.rpn.overlap must lie in (0, 1], not {self.overlap}")


class RPN(nn.Module):
    """A shared convolution on each level, then an objectness score and four deltas per anchor; parameter names are
    mmdetection's.

    Args:
        channels: of the pyramid.
        strides: of its levels.
        settings: see `RPNSettings`.
    """

    def __init__(self, channels: int, strides: Sequence[int], settings: RPNSettings) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.settings = settings
        self.coding = BoxCoding()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, len(settings.ratios), 1)
        self.rpn_reg = nn.Conv2d(channels, 4 * len(settings.ratios), 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            begin(layer, "normal")

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Pyramid -> per level the score logits `(B, A, H, W)` and deltas `(B, 4 · A, H, W)`."""
        hidden = [F.relu(self.rpn_conv(x)) for x in pyramid]
        return [self.rpn_cls(x) for x in hidden], [self.rpn_reg(x) for x in hidden]

    def _levels(
        self, scores: Sequence[Tensor], deltas: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per level: scores (B, n), deltas (B, n, 4) and anchors (n, 4)."""
        found = []
        for score, delta, stride in zip(scores, deltas, self.strides, strict=True):
            size = (score.shape[-2], score.shape[-1])
            anchors = anchors_of(size, stride, self.settings.scale, self.settings.ratios, score.device)
            score_Bn = score.float().permute(0, 2, 3, 1).flatten(1)
            delta_Bn4 = delta.float().permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
            found.append((score_Bn, delta_Bn4, anchors))
        return found

    def losses(
        self,
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        sizes_B2: Tensor,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """`rpn_class`, binary cross-entropy, and `rpn_box`, smooth L1 of the deltas of positive anchors, both
        divided by the number of sampled anchors; `generator` as in `sampled`."""
        levels = self._levels(scores, deltas)
        score_BN, delta_BN4 = (torch.cat([level[part] for level in levels], dim=1) for part in (0, 1))
        anchors_N4 = torch.cat([anchors for _, _, anchors in levels])
        objects_at, ground_at, true_boxes = [], [], []  # per image; indices into the batch's B · N anchors
        for number, (target, size_2) in enumerate(zip(targets, sizes_B2, strict=True)):
            object_N = self._assigned(anchors_N4, target["boxes"], size_2)
            objects, ground = sampled(object_N, self.settings.samples, self.settings.positive_part, generator)
            true_boxes.append(target["boxes"][object_N[objects]])
            objects_at.append(objects + number * len(anchors_N4))
            ground_at.append(ground + number * len(anchors_N4))
        objects_P, ground_M, true_P4 = torch.cat(objects_at), torch.cat(ground_at), torch.cat(true_boxes)
        logits = score_BN.flatten()[torch.cat([objects_P, ground_M])]
        wanted = torch.cat([logits.new_ones(len(objects_P)), logits.new_zeros(len(ground_M))])
        wanted_P4 = self.coding.encode(true_P4, anchors_N4[objects_P % len(anchors_N4)])
        off = F.smooth_l1_loss(
            delta_BN4.flatten(0, 1)[objects_P], wanted_P4, reduction="sum", beta=self.settings.beta
        )
        return {
            "rpn_class": F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
            / max(len(logits), 1),
            "rpn_box": off / max(len(logits), 1),
        }

    def _assigned(self, anchors_N4: Tensor, objects_G4: Tensor, size_2: Tensor) -> Tensor:
        """The object assigned to each anchor, `(N,)`, as by `assigned`; `NEITHER` if it may not be sampled."""
        settings = self.settings
        if not settings.inside:
            return assigned(anchors_N4, objects_G4, settings.positive, settings.negative, settings.least)
        within = (anchors_N4[:, :2] >= 0).all(1) & (anchors_N4[:, 2:] < size_2.flip(0)).all(1)
        inside_I = torch.nonzero(within)[:, 0]
        object_I = assigned(
            anchors_N4[inside_I], objects_G4, settings.positive, settings.negative, settings.least
        )
        return torch.full_like(within, NEITHER, dtype=object_I.dtype).index_copy(0, inside_I, object_I)

    @torch.no_grad()
    def proposals(
        self, scores: Sequence[Tensor], deltas: Sequence[Tensor], sizes_B2: Tensor, training: bool
    ) -> tuple[Tensor, Tensor]:
        """The proposals of each image, `(B, P, 4)`, clipped to it, and which rows are valid, `(B, P)` bool.

        The top-scoring anchors of each level are decoded and filtered by NMS within their level; the best of all levels
        are kept.
        """
        before, after = (pair[0 if training else 1] for pair in (self.settings.before, self.settings.after))
        likely_deltas, likely_anchors, kept_scores, level_of = [], [], [], []
        for number, (score_Bn, delta_Bn4, anchors_n4) in enumerate(self._levels(scores, deltas)):
            score_Bk, places_Bk = best(score_Bn, before)
            likely_deltas.append(picked(delta_Bn4, places_Bk))
            likely_anchors.append(anchors_n4[places_Bk])
            kept_scores.append(score_Bk)
            level_of.append(torch.full_like(places_Bk, number))
        boxes_BN4 = self.coding.decode(torch.cat(likely_deltas, dim=1), torch.cat(likely_anchors, dim=1))
        boxes_BN4 = clipped(boxes_BN4, sizes_B2[:, None])
        there_BN = has_area(boxes_BN4)
        score_BN = torch.cat(kept_scores, dim=1).masked_fill(~there_BN, -torch.inf)
        left_BN = survivors(boxes_BN4, score_BN, torch.cat(level_of, dim=1), self.settings.overlap)
        score_BP, places_BP = best(score_BN.masked_fill(~left_BN, -torch.inf), after)
        return picked(boxes_BN4, places_BP), score_BP > -torch.inf
