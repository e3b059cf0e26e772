"""Anchor boxes of the region proposal network, at every location of its feature maps.

Shapes: A anchors per location, H and W of a pyramid level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def anchors_at(stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """Base anchors centred at the origin, `(A, 4)`: one per aspect ratio (height / width), each of area
    (stride · scale)².

    Coordinates are not rounded, as in mmdetection (torchvision's generator rounds them).
    """
    height_A = torch.tensor([ratio**0.5 for ratio in ratios]) * stride * scale
    width_A = torch.tensor([ratio**-0.5 for ratio in ratios]) * stride * scale
    return torch.stack([-width_A, -height_A, width_A, height_A], dim=1) / 2


def anchors_of(
    size: tuple[int, int], stride: int, scale: float, ratios: Sequence[float], device: torch.device
) -> Tensor:
    """All anchors of a level, `(H · W · A, 4)`, in row-major order of locations; location (0, 0) is at pixel (0, 0)."""
    height, width = size
    y_H = torch.arange(height, device=device) * stride
    x_W = torch.arange(width, device=device) * stride
    x_HW, y_HW = x_W.expand(height, width), y_H[:, None].expand(height, width)
    place_HW14 = torch.stack([x_HW, y_HW, x_HW, y_HW], dim=-1)[:, :, None].float()
    return (place_HW14 + anchors_at(stride, scale, ratios).to(device)).reshape(-1, 4)
