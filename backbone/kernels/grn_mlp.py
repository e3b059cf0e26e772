"""``grn_mlp``: the pointwise half of a merged block in three kernels instead of some ten.

    hidden = gelu(x gate @ up.T + up_bias)
    out = residual + hidden scale @ down.T + down_bias,   scale = 1 + gamma |hidden| / mean |hidden|

with |hidden| the energy of a channel over the map of one image (GRN, arXiv 2301.00808, equations 1-3). Left to separate
operators, the map of 4C channels crosses memory five times: written, read for the energies, read and written for the
scaling, read by the second layer. Here it crosses twice: the first layer sums the energies while it still holds its
output, the second scales its input as it reads it, and so does the first with squeeze-excite's gate.

Registered with ``torch.library`` as ``widefield::grn_mlp``; inference only.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from backbone.kernels.depthwise import use_kernels

#: Fewer pixels a map would put too many images into one block of rows.
FEWEST_PIXELS = 32


class Blocking(NamedTuple):
    """How a linear layer is cut: BM x BN outputs a program, BK input channels at a time, warps, pipeline stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def blocking_up(channels: int) -> Blocking:
    """For the layer from C to 4C channels."""
    return Blocking(128, 128, 64 if channels % 64 == 0 else 32, 8, 3)


def blocking_down(channels: int) -> Blocking:
    """For the layer from 4C to C channels."""
    return Blocking(128, 64 if channels % 128 else 128, 64, 4 if channels % 128 else 8, 3)


def takes(x: Tensor) -> bool:
    """Whether :func:`grn_mlp` can serve maps ``(N, C, H, W)`` like x: half precision, kernels on, no gradient asked."""
    n, channels, height, width = x.shape
    return (
        not torch.is_grad_enabled()
        and x.dtype in (torch.bfloat16, torch.float16)
        and channels % 8 == 0
        and n > 0
        and height * width >= FEWEST_PIXELS
        and use_kernels(x, x.new_empty(1, 1, 3, 3))
    )


def grn_mlp(
    x: Tensor, gate: Tensor, up: Tensor, up_bias: Tensor, gamma: Tensor, down: Tensor, down_bias: Tensor,
    residual: Tensor,
) -> Tensor:  # fmt: skip
    """Linear, GELU, GRN, linear, residual.

    Args:
        x: ``(N, C, H, W)``, in channels-last memory or else copied to it; a map for which :func:`takes`.
        gate: factor of each channel of each image, ``(N, C)``.
        up, up_bias: first layer, ``(4C, C)`` and ``(4C,)``.
        gamma: of GRN, any shape of 4C values. Its bias is merged into the second layer.
        down, down_bias: second layer, ``(C, 4C)`` and ``(C,)``.
        residual: ``(N, C, H, W)``.

    Returns:
        ``(N, C, H, W)`` in channels-last memory.
    """
    weights = [tensor.to(x.dtype) for tensor in (up, up_bias, gamma.flatten(), down, down_bias)]
    return cast(Tensor, torch.ops.widefield.grn_mlp(x, gate.to(x.dtype), *weights, residual))


@torch.library.custom_op("widefield::grn_mlp", mutates_args=())
def _grn_mlp(
    x: Tensor, gate: Tensor, up: Tensor, up_bias: Tensor, gamma: Tensor, down: Tensor, down_bias: Tensor,
    residual: Tensor,
) -> Tensor:  # fmt: skip
    with torch.cuda.device_of(x):
        return run(x, gate, up, up_bias, gamma, down, down_bias, residual)


@_grn_mlp.register_fake
def _(
    x: Tensor, gate: Tensor, up: Tensor, up_bias: Tensor, gamma: Tensor, down: Tensor, down_bias: Tensor,
    residual: Tensor,
) -> Tensor:  # fmt: skip
    n, channels, height, width = x.shape
    return x.new_empty(n, height, width, channels).permute(0, 3, 1, 2)


def run(
    x: Tensor, gate: Tensor, up: Tensor, up_bias: Tensor, gamma: Tensor, down: Tensor, down_bias: Tensor,
    residual: Tensor, first: Blocking | None = None, second: Blocking | None = None,
) -> Tensor:  # fmt: skip
    """The three kernels, with blockings other than the usual if given."""
    import triton

    from backbone.kernels import linear
    from backbone.kernels.launch import nhwc

    n, channels, height, width = x.shape
    x_NHWC, residual_NHWC = nhwc(x), nhwc(residual).to(x.dtype)
    hidden_channels, pixels = up.shape[0], height * width
    rows = n * pixels
    first, second = first or blocking_up(channels), second or blocking_down(channels)
    images = (first.rows + pixels - 2) // pixels + 1
    blocks = triton.cdiv(rows, first.rows)

    hidden = x_NHWC.new_empty(rows, hidden_channels)
    energy = x_NHWC.new_empty(blocks, images, hidden_channels, dtype=torch.float32)
    linear.scaled_linear[(blocks * triton.cdiv(hidden_channels, first.columns),)](
        x_NHWC, gate.contiguous(), up.contiguous(), up_bias, x_NHWC, hidden, energy, rows, pixels,
        K=channels, D=hidden_channels, BM=first.rows, BN=first.columns, BK=first.depth, GROUP=8,
        IMAGES=images, GELU=True, RESIDUAL=False, num_warps=first.warps, num_stages=first.stages,
    )  # fmt: skip

    scale = gate.new_empty(n, hidden_channels)
    linear.grn_scale[(n,)](
        energy, gamma, scale, pixels,
        D=hidden_channels, BM=first.rows, IMAGES=images, BLOCKS=4, BD=triton.next_power_of_2(hidden_channels),
    )  # fmt: skip

    y_NHWC = torch.empty_like(x_NHWC)
    linear.scaled_linear[(triton.cdiv(rows, second.rows) * triton.cdiv(channels, second.columns),)](
        hidden, scale, down.contiguous(), down_bias, residual_NHWC, y_NHWC, energy, rows, pixels,
        K=hidden_channels, D=channels, BM=second.rows, BN=second.columns, BK=second.depth, GROUP=8,
        IMAGES=(second.rows + pixels - 2) // pixels + 1, GELU=False, RESIDUAL=True,
        num_warps=second.warps, num_stages=second.stages,
    )  # fmt: skip
    return y_NHWC.to(x.dtype).permute(0, 3, 1, 2)
