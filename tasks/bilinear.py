"""Bilinear resizing of maps.

Shapes: B batch, C channels, H × W pixels resized to S_h × S_w.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing with `align_corners=False`, without antialiasing; a no-op if the size already matches."""
    if tuple(x_BCHW.shape[-2:]) == size:
        return x_BCHW
    if x_BCHW.is_cuda and x_BCHW.requires_grad and not torch.compiler.is_compiling():
        return by_products(x_BCHW, size)
    return F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)


def by_products(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """`resized` as two matrix products, one for each axis.

    The gradient is two products as well; PyTorch's adds it up pixel by pixel with atomic operations, which on a GPU
    takes several times as long as everything else between the logits and the loss.
    """
    with torch.autocast(x_BCHW.device.type, enabled=False):
        rows_SH, columns_SW = (
            _weights(length, wanted, x_BCHW) for length, wanted in zip(x_BCHW.shape[-2:], size, strict=True)
        )
        return rows_SH @ (x_BCHW @ columns_SW.T)


def _weights(length: int, wanted: int, like: Tensor) -> Tensor:
    """The weight of each of `length` pixels in each of the `wanted` ones, `(wanted, length)`."""
    place_S1 = (torch.arange(wanted, device=like.device, dtype=torch.float32)[:, None] + 0.5) * (
        length / wanted
    ) - 0.5
    far_SH = (place_S1.clamp(0, length - 1) - torch.arange(length, device=like.device)).abs()
    return (1 - far_SH).clamp(min=0).to(like.dtype)
