"""``DepthwiseConv2d``: the operator as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from backbone.kernels.depthwise import depthwise_conv2d, sums_on_chip


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise ``nn.Conv2d``, stride 1 and "same" zero padding, computed by :func:`depthwise_conv2d`.

    Shape: ``(N, C, H, W) -> (N, C, H, W)``. Parameters have the names and shapes of ``nn.Conv2d``.

    Args:
        channels: C.
        kernel_size: K, odd.
        dilation: distance between taps, in pixels.
        bias: whether to add a bias.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int = 1, bias: bool = True) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels, bias=bias
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return depthwise_conv2d(x_NCHW, self.weight, self.bias, self.dilation[0])

    def as_one_convolution(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Kernel and bias, if the kernels sum their output on chip; else None."""
        return (self.weight, self.bias) if sums_on_chip(x_NCHW, self.weight, self.dilation[0]) else None
