"""Region features: RoIAlign on the pyramid level that suits each region's size.

Shapes: R regions, L levels of stride 4 and up, C channels, S side of the pooled features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from tasks.detectors.roi_gradient import roi_aligned

FINEST = 56  # regions with a side below twice this are pooled from the finest level


def levels_of(boxes_R4: Tensor, levels: int) -> Tensor:
    """Pyramid level of each region, `(R,)`: floor(log2(sqrt(area) / 56)), clamped to the levels (Lin et al. 2017,
    equation 1: 224 is level 2 of 0..3)."""
    sides = (boxes_R4[:, 2:] - boxes_R4[:, :2]).clamp(min=0)
    scale_R = sides.prod(dim=1).sqrt()
    return torch.floor(torch.log2(scale_R / FINEST + 1e-6)).clamp(0, levels - 1).long()


def pooled(pyramid: Sequence[Tensor], strides: Sequence[int], regions_R5: Tensor, size: int) -> Tensor:
    """RoIAlign features of regions, `(R, C, S, S)`.

    Args:
        pyramid: levels to pool from, `(B, C, H, W)` each.
        strides: of the levels.
        regions_R5: index of the image in the batch, x1, y1, x2, y2.
        size: S.
    """
    level_R = levels_of(regions_R5[:, 1:], len(pyramid))
    if (
        torch.compiler.is_exporting()
    ):  # export has no data-dependent shapes: every region is pooled from all levels, then one is selected
        each = [roi_align(x, regions_R5, size, 1 / s, 0, True) for x, s in zip(pyramid, strides, strict=True)]
        found = each[0]
        for number, other in enumerate(each[1:], start=1):
            found = torch.where((level_R == number)[:, None, None, None], other, found)
        return found
    parts, places = [], []
    for number, (x_BCHW, stride) in enumerate(zip(pyramid, strides, strict=True)):
        of_level = torch.nonzero(level_R == number)[:, 0]
        if len(of_level) == len(regions_R5):
            return roi_aligned(x_BCHW, regions_R5, size, 1 / stride)
        parts.append(roi_aligned(x_BCHW, regions_R5[of_level], size, 1 / stride))
        places.append(of_level)
    return torch.cat(parts)[torch.cat(places).argsort()]


def with_picture(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of each image, (n, 4) -> `(R, 5)` with the image's index in the batch prepended."""
    return torch.cat(
        [torch.cat([box.new_full((len(box), 1), place), box], dim=1) for place, box in enumerate(boxes)]
    )
