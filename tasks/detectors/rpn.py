"""Region proposal network (Ren et al. 2015, arXiv 1506.01497): where on the pyramid something lies.

Shapes: B pictures, L levels, A anchors at a place, N anchors of all levels, P proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.detectors.anchors import anchors_of
from tasks.detectors.boxes import BoxCoding, best, clipped, has_area, picked, survivors
from tasks.detectors.layers import begin
from tasks.detectors.sampling import assigned, sampled


@dataclass(frozen=True)
class RPNSettings:
    """Of anchors, of the loss, and of proposals; the defaults are the official ones.

    Args:
        scale: side of an anchor in strides of its level.
        ratios: height to width of the anchors at a place.
        positive, negative: IoU from which on, and below which an anchor is of an object or of background.
        least: IoU from which on the anchors that overlap an object most are its, too.
        samples: anchors of a picture that the loss is made of.
        positive_part: of them, at most.
        inside: anchors that reach beyond their picture are not learnt from.
        beta: where the smooth L1 loss becomes linear.
        before: proposals of a level that are looked at, the best ones, in training and else.
        after: that are kept of a picture, in training and else.
        overlap: IoU above which the worse one of two proposals goes.
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
    """A convolution on each level, then a score and four deltas for each anchor; the names are mmdetection's.

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
        """Levels -> of each the scores `(B, A, H, W)` and deltas `(B, 4 · A, H, W)`."""
        hidden = [F.relu(self.rpn_conv(x)) for x in pyramid]
        return [self.rpn_cls(x) for x in hidden], [self.rpn_reg(x) for x in hidden]

    def _levels(
        self, scores: Sequence[Tensor], deltas: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each level its scores (B, n), deltas (B, n, 4) and anchors (n, 4)."""
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
    ) -> dict[str, Tensor]:
        """Binary cross-entropy, and smooth L1 of the deltas of anchors that stand for objects; both over the number of
        anchors sampled."""
        levels = self._levels(scores, deltas)
        score_BN, delta_BN4 = (torch.cat([level[part] for level in levels], dim=1) for part in (0, 1))
        anchors_N4 = torch.cat([anchors for _, _, anchors in levels])
        positive, negative = self.settings.positive, self.settings.negative
        logits, wanted, off, number = [], [], [score_BN.new_zeros(())], 0
        for score_N, delta_N4, target, size_2 in zip(score_BN, delta_BN4, targets, sizes_B2, strict=True):
            inside = self._usable(anchors_N4, size_2)
            found = assigned(anchors_N4[inside], target["boxes"], positive, negative, self.settings.least)
            objects, ground = sampled(found, self.settings.samples, self.settings.positive_part)
            its_boxes = target["boxes"][found[objects]]
            objects_at, ground_at = inside[objects], inside[ground]
            logits += [score_N[objects_at], score_N[ground_at]]
            wanted += [score_N.new_ones(len(objects)), score_N.new_zeros(len(ground))]
            true_P4 = self.coding.encode(its_boxes, anchors_N4[objects_at])
            off.append(
                F.smooth_l1_loss(delta_N4[objects_at], true_P4, reduction="sum", beta=self.settings.beta)
            )
            number += len(objects) + len(ground)
        classes = F.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(wanted), reduction="sum")
        return {
            "rpn_class": classes / max(number, 1),
            "rpn_box": torch.stack(off).sum() / max(number, 1),
        }

    def _usable(self, anchors_N4: Tensor, size_2: Tensor) -> Tensor:
        """Places of the anchors to learn from."""
        if not self.settings.inside:
            return torch.arange(len(anchors_N4), device=anchors_N4.device)
        within = (anchors_N4[:, :2] >= 0).all(1) & (anchors_N4[:, 2:] < size_2.flip(0)).all(1)
        return torch.nonzero(within)[:, 0]

    @torch.no_grad()
    def proposals(
        self, scores: Sequence[Tensor], deltas: Sequence[Tensor], sizes_B2: Tensor, training: bool
    ) -> tuple[Tensor, Tensor]:
        """The best boxes of each picture, `(B, P, 4)`, cut off at its edges, and which of them are any, `(B, P)` bool.

        The best of each level are decoded, overlapping ones of a level thinned out, and the best of all levels kept.
        """
        before, after = (pair[0 if training else 1] for pair in (self.settings.before, self.settings.after))
        boxes, kept_scores, level_of = [], [], []
        for number, (score_Bn, delta_Bn4, anchors_n4) in enumerate(self._levels(scores, deltas)):
            score_Bk, places_Bk = best(score_Bn, before)
            boxes_Bk4 = self.coding.decode(picked(delta_Bn4, places_Bk), anchors_n4[places_Bk])
            boxes.append(clipped(boxes_Bk4, sizes_B2[:, None]))
            kept_scores.append(score_Bk)
            level_of.append(torch.full_like(places_Bk, number))
        boxes_BN4 = torch.cat(boxes, dim=1)
        there_BN = has_area(boxes_BN4)
        score_BN = torch.cat(kept_scores, dim=1).masked_fill(~there_BN, -torch.inf)
        left_BN = survivors(boxes_BN4, score_BN, torch.cat(level_of, dim=1), self.settings.overlap)
        score_BP, places_BP = best(score_BN.masked_fill(~left_BN, -torch.inf), after)
        return picked(boxes_BN4, places_BP), score_BP > -torch.inf
