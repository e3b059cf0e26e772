"""Feature pyramid network (FPN, Lin et al. 2017, arXiv 1612.03144).

Shapes: N images, Ci channels of feature map i, C channels of the pyramid.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tasks.detectors.layers import NamedConv, begin


class FPN(nn.Module):
    """1 × 1 lateral convolutions, top-down sums with nearest-neighbour upsampling, 3 × 3 output convolutions, and extra
    levels by subsampling with stride 2; parameter names are those of mmdetection.

    Args:
        in_channels: C1 to the last.
        channels: C.
        extra_levels: number of levels beyond the backbone's, each at twice the stride.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, extra_levels: int = 1) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(NamedConv(width, channels, 1) for width in in_channels)
        self.fpn_convs = nn.ModuleList(NamedConv(channels, channels, 3) for _ in in_channels)
        self.extra_levels = extra_levels
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                begin(layer, "xavier")

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps from fine to coarse -> the same number of levels plus `extra_levels`, `(N, C, H, W)` each."""
        maps = [lateral(x) for lateral, x in zip(self.lateral_convs, features, strict=True)]
        for i in reversed(range(len(maps) - 1)):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        pyramid = [conv(x) for conv, x in zip(self.fpn_convs, maps, strict=True)]
        for _ in range(self.extra_levels):
            # Not max_pool2d(…, 1, stride=2): compiled, that is a graph for each parity of height and width.
            pyramid.append(pyramid[-1][..., ::2, ::2])
        return pyramid


def pyramid_strides(strides: Sequence[int], extra_levels: int) -> list[int]:
    """The stride of each pyramid level in map pixels.

    >>> pyramid_strides([4, 8, 16, 32], 1)
    [4, 8, 16, 32, 64]
    """
    return [*strides, *(strides[-1] * 2 ** (extra + 1) for extra in range(extra_levels))]
