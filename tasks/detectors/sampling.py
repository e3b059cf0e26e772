"""Which object a box stands for, and which boxes a loss is made of.

Shapes: N boxes, G objects, S boxes sampled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND, NEITHER = -1, -2


def assigned(
    boxes_N4: Tensor, objects_G4: Tensor, positive: float, negative: float, least: float | None = None
) -> Tensor:
    """The object of each box, `(N,)`: its index, `BACKGROUND`, or `NEITHER`.

    Args:
        boxes_N4, objects_G4: boxes in pixels.
        positive: IoU from which on a box stands for the object that it overlaps most.
        negative: IoU below which it is background.
        least: the boxes that overlap an object most stand for it, too, from this IoU on; of several such objects the
            last one counts (as in mmdetection's `MaxIoUAssigner`). `None`: they do not.
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


def sampled(found_N: Tensor, number: int, positive_part: float) -> tuple[Tensor, Tensor]:
    """Places of the boxes drawn at random, those of objects and those of background.

    Args:
        found_N: of `assigned`.
        number: of both together, at most; background fills up what objects leave.
        positive_part: of them, at most.
    """
    positive = _drawn(torch.nonzero(found_N >= 0)[:, 0], int(number * positive_part))
    negative = _drawn(torch.nonzero(found_N == BACKGROUND)[:, 0], number - len(positive))
    return positive, negative


def _drawn(places: Tensor, most: int) -> Tensor:
    if len(places) <= most:
        return places
    return places[torch.randperm(len(places), device=places.device)[:most]]


@dataclass
class Regions:
    """The boxes of one picture that a stage learns from; those of objects come first.

    Args:
        boxes: (S, 4).
        objects: index of the object of each of the first ones, (P,).
        labels: class of each, (S,); the number of classes for background.
        are_truth: (S,), whether a box is an object's own.
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
) -> Regions:
    """Assign and sample proposals, the objects' own boxes among them.

    Args:
        boxes_N4: proposals.
        target: `boxes` (G, 4) and `labels` (G,), without crowds.
        num_classes: K.
        iou: from which on a proposal stands for an object.
        number, positive_part: see `sampled`.
    """
    objects_G4 = target["boxes"]
    candidates = torch.cat([objects_G4, boxes_N4])
    own = torch.arange(len(candidates), device=candidates.device) < len(objects_G4)
    found = assigned(candidates, objects_G4, iou, iou)
    found[: len(objects_G4)] = torch.arange(len(objects_G4), device=found.device)
    positive, negative = sampled(found, number, positive_part)
    places = torch.cat([positive, negative])
    labels = torch.full((len(places),), num_classes, device=candidates.device)
    labels[: len(positive)] = target["labels"][found[positive]]
    return Regions(candidates[places], found[positive], labels, own[places])
