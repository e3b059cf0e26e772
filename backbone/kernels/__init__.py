"""Depthwise convolution with large kernels, fast on GPUs."""

from backbone.kernels.depthwise import depthwise_conv2d, kernels_compiled_ahead, launches_recorded
from backbone.kernels.module import DepthwiseConv2d

__all__ = ["DepthwiseConv2d", "depthwise_conv2d", "kernels_compiled_ahead", "launches_recorded"]
