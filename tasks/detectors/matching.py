"""Which object each detection of a picture is taken for, to be written beside it.

Shapes: n detections, G objects.
"""

from torch import Tensor
from torchvision.ops import box_iou


def matched(
    found: dict[str, Tensor], target: dict[str, Tensor], least: float = 0.5
) -> tuple[list[int | None], list[float | None]]:
    """Of each detection the place of its object in the target, and their IoU; `None`: it has no object.

    From the best score down each takes the object of its class that it overlaps most, of those left, from `least` on;
    crowds are not taken.
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
