"""What a region's head reads: the pyramid's level that suits the region's size, at a fixed grid of points (RoIAlign).

Shapes: R regions, L levels of stride 4 and up, C channels, S points a side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

FINEST = 56  # side of the regions up to whose double the finest level is read


def levels_of(boxes_R4: Tensor, levels: int) -> Tensor:
    """floor(log2(sqrt(area) / 56)), within the levels, `(R,)` (Lin et al. 2017, equation 1: 224 is level 2 of 0..3)."""
    sides = (boxes_R4[:, 2:] - boxes_R4[:, :2]).clamp(min=0)
    scale_R = sides.prod(dim=1).sqrt()
    return torch.floor(torch.log2(scale_R / FINEST + 1e-6)).clamp(0, levels - 1).long()


def pooled(pyramid: Sequence[Tensor], strides: Sequence[int], regions_R5: Tensor, size: int) -> Tensor:
    """`(R, C, S, S)` features of regions.

    Args:
        pyramid: levels that regions may be read from, `(B, C, H, W)` each.
        strides: of them.
        regions_R5: place of the picture in the batch, x1, y1, x2, y2.
        size: S.
    """
    level_R = levels_of(regions_R5[:, 1:], len(pyramid))
    if (
        torch.compiler.is_exporting()
    ):  # a program has no lists of unknown length: all levels are read, one is taken
        each = [roi_align(x, regions_R5, size, 1 / s, 0, True) for x, s in zip(pyramid, strides, strict=True)]
        found = each[0]
        for number, other in enumerate(each[1:], start=1):
            found = torch.where((level_R == number)[:, None, None, None], other, found)
        return found
    parts, places = [], []
    for number, (x_BCHW, stride) in enumerate(zip(pyramid, strides, strict=True)):
        of_level = torch.nonzero(level_R == number)[:, 0]
        parts.append(roi_align(x_BCHW, regions_R5[of_level], size, 1 / stride, 0, True))
        places.append(of_level)
    return torch.cat(parts)[torch.cat(places).argsort()]


def with_picture(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of each picture, (n, 4) -> `(R, 5)` with the picture's place in front."""
    return torch.cat(
        [torch.cat([box.new_full((len(box), 1), place), box], dim=1) for place, box in enumerate(boxes)]
    )
