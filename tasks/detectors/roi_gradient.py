"""RoIAlign of small maps on a CPU: torchvision's forward pass, and a gradient by matrix products.

torchvision's gradient on a CPU adds up one value at a time in one thread, and takes five times as long as the forward
pass. The mean of a bin's bilinear samples is separable: a sum over rows of a sum over columns, with weights that depend
on the box alone. So the gradient of a map is two matrix products per image, whose cost grows with the map's area.

Shapes: B images, R regions (n of one image), C channels, H and W of the map, S side of the pooled features, L pixels
along one side of the map.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import roi_align

MOST_PIXELS = 96 * 96  # of a map; above this the advantage is gone
AT_ONCE = 64  # regions of one image; bounds the memory


def roi_aligned(x_BCHW: Tensor, regions_R5: Tensor, size: int, scale: float) -> Tensor:
    """RoIAlign with an adaptive number of samples, aligned by half a pixel: `(R, C, S, S)`.

    Args:
        x_BCHW: a map.
        regions_R5: index of the image in the batch, x1, y1, x2, y2 in image pixels.
        size: S.
        scale: map pixels per image pixel.
    """
    if _pays(x_BCHW):
        return cast(Tensor, _RoIAlign.apply(x_BCHW, regions_R5, size, scale))
    return cast(Tensor, roi_align(x_BCHW, regions_R5, size, scale, 0, True))


def _pays(x_BCHW: Tensor) -> bool:
    return (
        x_BCHW.requires_grad
        and torch.is_grad_enabled()
        and x_BCHW.device.type == "cpu"
        and x_BCHW.dtype == torch.float32
        and x_BCHW.shape[2] * x_BCHW.shape[3] <= MOST_PIXELS
        and not torch.compiler.is_compiling()
    )


def bin_weights(begin_R: Tensor, end_R: Tensor, bins: int, length: int) -> Tensor:
    """Weight of each pixel along one side of a map in each bin of each region, `(R, bins, L)`.

    As in torchvision: ceil(width of a bin) samples per bin; samples more than a pixel outside the map count as 0, those
    less far outside as the border pixel.

    Args:
        begin_R, end_R: ends of the regions in map pixels, where 0 is the centre of the first pixel.
        bins: S.
        length: L.
    """
    width_R11 = ((end_R - begin_R) / bins)[:, None, None]
    count_R11 = width_R11.ceil()
    sample_G = torch.arange(max(int(count_R11.max()), 1) if len(begin_R) else 1, device=begin_R.device)
    bin_S1 = torch.arange(bins, device=begin_R.device)[:, None]
    place_RSG = begin_R[:, None, None] + width_R11 * (bin_S1 + (sample_G + 0.5) / count_R11.clamp(min=1))
    counts_RSG = (sample_G < count_R11) & (place_RSG >= -1) & (place_RSG <= length)
    pixel_L = torch.arange(length, device=begin_R.device)
    near_RSGL = (1 - (place_RSG.clamp(0, length - 1)[..., None] - pixel_L).abs()).clamp(min=0)
    return (near_RSGL * counts_RSG[..., None]).sum(dim=2) / count_R11.clamp(min=1)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, regions_R5: Tensor, size: int, scale: float) -> Tensor:
        ctx.save_for_backward(regions_R5)
        ctx.shape, ctx.size, ctx.scale = x_BCHW.shape, size, scale
        return cast(Tensor, roi_align(x_BCHW, regions_R5, size, scale, 0, True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RCSS: Tensor) -> tuple[Tensor, None, None, None]:
        (regions_R5,) = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        x1_R, y1_R, x2_R, y2_R = (regions_R5[:, 1:] * ctx.scale - 0.5).unbind(1)
        rows_RSH = bin_weights(y1_R, y2_R, ctx.size, height)
        columns_RSW = bin_weights(x1_R, x2_R, ctx.size, width)
        grad_x = grad_RCSS.new_zeros(batch, height, width * channels)
        for image in range(batch):
            for own_n in torch.nonzero(regions_R5[:, 0] == image)[:, 0].split(AT_ONCE):
                grad_nSSC = grad_RCSS[own_n].permute(0, 2, 3, 1)
                by_row_nSWC = columns_RSW[own_n].transpose(1, 2)[:, None] @ grad_nSSC
                grad_x[image].addmm_(rows_RSH[own_n].flatten(0, 1).t(), by_row_nSWC.flatten(2).flatten(0, 1))
        return grad_x.view(batch, height, width, channels).permute(0, 3, 1, 2), None, None, None
