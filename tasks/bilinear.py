"""Bilinear resizing of maps, and the sizes to resize to.

Shapes: B batch, C channels, H × W pixels resized to S_h × S_w.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def fitted(height: int, width: int, limits: Sequence[int]) -> tuple[int, int]:
    """The largest size at which an image fits into the given longer and shorter side, keeping its aspect ratio.

    >>> fitted(300, 400, (2048, 512)), fitted(100, 1000, (2048, 512))
    ((512, 683), (205, 2048))
    """
    factor = min(max(limits) / max(height, width), min(limits) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def scaled_by(height: int, width: int, limits: Sequence[int] | None, factor: float) -> tuple[int, int]:
    """`fitted` into the limits, or without limits the image's own size, times a factor."""
    limits = (max(height, width), min(height, width)) if limits is None else limits
    return fitted(height, width, [max(int(side * factor), 1) for side in limits])


def all_scaled_by(size_B2: Tensor, limits: Sequence[int] | None, factor_B: Tensor) -> Tensor:
    """`scaled_by` for a batch, on its device.

    Args:
        size_B2: heights and widths.
        limits: longer and shorter side; `None`: the image's own.
        factor_B: one factor per image.

    Returns:
        Heights and widths, (B, 2), int64.
    """
    size_B2, factor_B = size_B2.double(), factor_B.double()
    short_B, long_B = size_B2.aminmax(dim=1)
    most_B, least_B = (
        ((long_B, short_B)[place] if limits is None else (max(limits), min(limits))[place]) * factor_B
        for place in (0, 1)
    )
    most_B, least_B = (side_B.floor().clamp(min=1) for side_B in (most_B, least_B))
    ratio_B = torch.minimum(most_B / long_B, least_B / short_B)
    return (size_B2 * ratio_B[:, None] + 0.5).floor().clamp(min=1).long()


def resized(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing with `align_corners=False`, without antialiasing; a no-op if the size already matches."""
    # In an export the comparison would make the sizes of the traced image constants of the program.
    if not torch.compiler.is_exporting() and tuple(x_BCHW.shape[-2:]) == size:
        return x_BCHW
    if x_BCHW.is_cuda and x_BCHW.requires_grad and not torch.compiler.is_compiling():
        return by_products(x_BCHW, size)
    return F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)


def by_products(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """`resized` as two matrix products, one for each axis; a map in channels-last layout stays in it.

    The gradient is two products as well; PyTorch's adds it up pixel by pixel with atomic operations, which on a GPU
    takes several times as long.
    """
    with torch.autocast(x_BCHW.device.type, enabled=False):
        rows_SH, columns_SW = (
            _weights(length, wanted, x_BCHW) for length, wanted in zip(x_BCHW.shape[-2:], size, strict=True)
        )
        if x_BCHW.is_contiguous():
            return rows_SH @ (x_BCHW @ columns_SW.T)
        x_BHWC = x_BCHW.permute(0, 2, 3, 1).contiguous()
        x_BSWC = (rows_SH @ x_BHWC.flatten(2)).unflatten(2, x_BHWC.shape[2:])
        return (columns_SW @ x_BSWC).permute(0, 3, 1, 2)


def _weights(length: int, wanted: int, like: Tensor) -> Tensor:
    """The weight of each of `length` pixels in each of the `wanted` ones, `(wanted, length)`."""
    one_LL = torch.eye(length, device=like.device)
    weights_LS = F.interpolate(one_LL[None], size=wanted, mode="linear", align_corners=False)[0]
    return weights_LS.T.to(like.dtype)
