"""Layers with the parameter names of mmdetection's checkpoints, and weight initialisation."""

import torch.nn.functional as F
from torch import Tensor, nn


class NamedConv(nn.Module):
    """A convolution with bias, named `conv`, and an optional ReLU: `(N, in, H, W) -> (N, out, H, W)`."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int, relu: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, padding=kernel_size // 2)
        self.relu = relu

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.conv(x_NCHW)
        return F.relu(x_NCHW) if self.relu else x_NCHW


def begin(layer: nn.Conv2d | nn.Linear | nn.ConvTranspose2d, how: str, std: float = 0.01) -> None:
    """Initialises a layer's weight with `normal`, `xavier` (uniform) or `kaiming` (normal, fan out, ReLU), its bias
    with 0."""
    if how == "normal":
        nn.init.normal_(layer.weight, std=std)
    elif how == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
