"""The simple feature pyramid: maps at four strides from the last map of a plain transformer.

Li, Mao, Girshick, He, "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv 2203.16527, Section 3:
only the last map is used, upsampled by deconvolutions and downsampled by pooling. Widths halve with each upsampling.

Shapes: N maps, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from backbone.unireplknet import LayerNorm2d


class SimplePyramid(nn.Module):
    """``(N, C, H, W)`` at stride s -> four maps at strides s/4, s/2, s and 2s, of C/4, C/2, C and C channels.

    Args:
        channels: C, a multiple of 4.
        stride: s, a multiple of 4.

    Raises:
        ValueError: channels or stride is not a multiple of 4.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        if channels % 4 or stride % 4:
            raise ValueError(
                f"a pyramid needs channels and a stride that are multiples of 4, not {channels} and {stride}"
            )
        half, quarter = channels // 2, channels // 4
        self.widths = (quarter, half, channels, channels)
        self.strides = (stride // 4, stride // 2, stride, 2 * stride)
        self.to_quarter = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.to_half = nn.ConvTranspose2d(channels, half, 2, stride=2)
        self.to_twice = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        return [self.to_quarter(x_NCHW), self.to_half(x_NCHW), x_NCHW, self.to_twice(x_NCHW)]
