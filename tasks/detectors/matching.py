"""Matching of an image's detections to ground-truth objects, for the prediction table of a test.

Shapes: n detections, G objects.
"""

from torch import Tensor
from torchvision.ops import box_iou


def matched(
    found: dict[str, Tensor], target: dict[str, Tensor], least: float = 0.5
) -> tuple[list[int | None], list[float | None]]:
    """The index of the object matched to each detection, and their IoU; `None` for unmatched detections.

    Greedy: in descending order of score, each detection is matched to the unmatched object of its class with the
    highest IoU, if that is at least `least`; crowd objects are never matched.
    """
    iou_nG = box_iou(found["boxes"], target["boxes"].to(found["boxes"]))
    same_nG = found["labels"][:, None] == target["labels"].to(found["labels"].device)[None]
    usable_nG = iou_nG.masked_fill(~same_nG | target["crowd"].to(same_nG.device)[None], -1)
    rows = usable_nG.tolist()
    objects: list[int | None] = [None] * len(rows)
    ious: list[float | None] = [None] * len(rows)
    taken: set[int] = set()
    for place in found["scores"].argsort(descending=True, stable=True).tolist():
        free = [(iou, -number) for number, iou in enumerate(rows[place]) if number not in taken]
        iou, number = max(free, default=(-1.0, 0))
        if iou >= least:
            objects[place], ious[place] = -number, iou
            taken.add(-number)
    return objects, ious
