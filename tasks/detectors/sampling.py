"""Assignment of boxes to ground-truth objects, and random sampling of the boxes used in a loss.

Shapes: N boxes, G objects, S sampled boxes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND, NEITHER = -1, -2


def assigned(
    boxes_N4: Tensor, objects_G4: Tensor, positive: float, negative: float, least: float | None = None
) -> Tensor:
    """The object assigned to each box, `(N,)`: its index, `BACKGROUND`, or `NEITHER` (ignored).

    Args:
        boxes_N4, objects_G4: boxes in pixels.
        positive: minimum IoU at which a box is assigned to the object that it overlaps most.
        negative: IoU below which a box is background.
        least: minimum IoU at which the boxes with an object's highest IoU are assigned to it, too; of several such
            objects the last one wins (as in mmdetection's `MaxIoUAssigner`). `None`: no such assignment.
    """
    found_N = torch.full((len(boxes_N4),), BACKGROUND, device=boxes_N4.device)
    if not len(objects_G4) or not len(boxes_N4):
        return found_N
    iou_GN = box_iou(objects_G4, boxes_N4)
    most_N, object_N = iou_GN.max(dim=0)
    found_N[most_N >= negative] = NEITHER
    found_N = torch.where(most_N >= positive, object_N, found_N)
    if least is not None:
        best_G = iou_GN.amax(dim=1)
        is_best_GN = (iou_GN == best_G[:, None]) & (best_G[:, None] >= least)
        number_G1 = torch.arange(1, len(objects_G4) + 1, device=boxes_N4.device)[:, None]
        last_N = (is_best_GN * number_G1).amax(dim=0) - 1
        found_N = torch.where(last_N >= 0, last_N, found_N)
    return found_N


def sampled(
    found_N: Tensor, number: int, positive_part: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Indices of randomly sampled boxes: positives and negatives (background).

    Args:
        found_N: returned by `assigned`.
        number: maximum number of both together; negatives fill up the rest.
        positive_part: maximum fraction of positives.
        generator: of the draws, on the device of `found_N`; None: the default one.
    """
    positive = _drawn(torch.nonzero(found_N >= 0)[:, 0], int(number * positive_part), generator)
    negative = _drawn(torch.nonzero(found_N == BACKGROUND)[:, 0], number - len(positive), generator)
    return positive, negative


def _drawn(places: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    if len(places) <= most:
        return places
    return places[torch.randperm(len(places), generator=generator, device=places.device)[:most]]


@dataclass
class Regions:
    """The sampled boxes of one image on which a stage is trained, positives first.

    Args:
        boxes: (S, 4).
        objects: index of the object assigned to each of the P positives, (P,).
        labels: class of each box, (S,); the number of classes for background.
        are_truth: (S,), whether a box is a ground-truth box.
    """

    boxes: Tensor
    objects: Tensor
    labels: Tensor
    are_truth: Tensor


def regions_of(
    boxes_N4: Tensor,
    target: dict[str, Tensor],
    num_classes: int,
    iou: float,
    number: int,
    positive_part: float,
    generator: torch.Generator | None = None,
) -> Regions:
    """Assigns and samples proposals, to which the ground-truth boxes are added.

    Args:
        boxes_N4: proposals.
        target: `boxes` (G, 4) and `labels` (G,), without crowds.
        num_classes: K.
        iou: minimum IoU of a positive proposal.
        number, positive_part, generator: see `sampled`.
    """
    objects_G4 = target["boxes"]
    candidates = torch.cat([objects_G4, boxes_N4])
    own = torch.arange(len(candidates), device=candidates.device) < len(objects_G4)
    found = assigned(candidates, objects_G4, iou, iou)
    found[: len(objects_G4)] = torch.arange(len(objects_G4), device=found.device)
    positive, negative = sampled(found, number, positive_part, generator)
    places = torch.cat([positive, negative])
    labels = torch.full((len(places),), num_classes, device=candidates.device)
    labels[: len(positive)] = target["labels"][found[positive]]
    return Regions(candidates[places], found[positive], labels, own[places])
