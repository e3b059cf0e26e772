"""``pointwise``: the pointwise half of a block in deploy form as three kernels, for inference.

    h = gelu(x W1' + b1),   y = residual + b2 + (h s) W2'   with   s = 1 + gamma |h| / mean |h|

and |h| as in :mod:`backbone.kernels.gelu_grn`. The first kernel writes h, activated, together with the sums of h^2, the
third reads it once and scales it in registers: two passes over the map of 4C channels, where two linear layers with
``gelu_grn`` between them make five.

Registered with ``torch.library`` as ``widefield::pointwise``. The environment variable ``WIDEFIELD_POINTWISE``: ``on``
(default), for maps large enough to pay; ``always``; ``off``. ``WIDEFIELD_KERNELS`` applies, too.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from backbone.kernels.depthwise import HALF, starts_for, why_not_on
from backbone.kernels.gelu_grn import SMALLEST
from backbone.kernels.sizes import ceil_div, power_of_two

#: Columns of a tile of the second layer, the sum of two powers of two: the first that divide its channels.
COLUMNS = ((128, 0), (128, 32), (64, 32), (64, 16), (64, 0), (32, 16), (32, 8), (32, 0))
#: Images that a block of rows meets; each costs a comparison for every value that is scaled. 64 rows meet no more than
#: four of so many pixels.
MOST_IMAGES, FEWEST_PIXELS = 4, 21
AT_ONCE = 8192  # values that a program of ``scales`` reads at a time
REGISTERS = 128  # a thread of ``project``, so that two programs share a multiprocessor
#: Programs of ``project`` from which on it pays, about one for each multiprocessor: a single image keeps few busy.
#: And the rows of each.
FEWEST_PROGRAMS, ROWS = 128, 128
MOST = 4096
SETTINGS = ("on", "always", "off")


@torch.compiler.assume_constant_result
def setting() -> str:
    """``WIDEFIELD_POINTWISE``.

    Raises:
        ValueError: it is none of :data:`SETTINGS`.
    """
    value = os.environ.get("WIDEFIELD_POINTWISE", "on").lower()
    if value not in SETTINGS:
        raise ValueError(f"WIDEFIELD_POINTWISE is on, always or off, not {value!r}")
    return value


def takes(x_NHWC: Tensor, *others: Tensor | None) -> bool:
    """Whether :func:`pointwise` supports a map like x, with this residual and these weights and biases.

    All must be plain tensors of one half-precision type (quantised weights are of a class of their own), without
    autocast, on a GPU with a tensor memory accelerator and enough shared memory; the map must be large enough, unless
    ``WIDEFIELD_POINTWISE`` is ``always``.
    """
    _, height, width, channels = x_NHWC.shape
    return (
        x_NHWC.dtype in HALF
        and all(type(t) in (Tensor, Parameter) and t.dtype == x_NHWC.dtype for t in (x_NHWC, *others))  # type: ignore[union-attr]
        and why_not_on(x_NHWC.device) is None
        and not torch.is_autocast_enabled(x_NHWC.device.type)
        and _has_accelerator(x_NHWC.device)
        and height * width >= FEWEST_PIXELS
        and any(channels % sum(pair) == 0 for pair in COLUMNS)
        and x_NHWC.numel() > 0
        and starts_for(4 * x_NHWC.numel(), SMALLEST)
        and (setting() == "always" or _programs(x_NHWC) >= FEWEST_PROGRAMS)
    )


def _programs(x_NHWC: Tensor) -> int:
    """Programs of ``project``, with blocks of :data:`ROWS` rows."""
    channels = x_NHWC.shape[-1]
    return ceil_div(x_NHWC.numel() // channels, ROWS) * (channels // sum(_columns(channels)))


def _columns(channels: int) -> tuple[int, int]:
    return next(pair for pair in COLUMNS if channels % sum(pair) == 0)


@torch.compiler.assume_constant_result
def _has_accelerator(device: torch.device) -> bool:
    from backbone.kernels.launch import accelerator

    return accelerator(device)


@dataclass(frozen=True)
class Tiles:
    """Tiles of the two linear layers: blocks of ``rows``, in both, which meet at most ``images`` images.

    The second layer's have ``columns[0] + columns[1]`` columns.
    """

    rows: int
    images: int
    columns: tuple[int, int]

    def constants(self, pixels: int, channels: int, hidden: int) -> tuple[dict[str, Any], ...]:
        """Of each kernel, with options."""
        blocks = power_of_two(pixels // self.rows + 2)  # that an image may meet
        whole = power_of_two(hidden)
        sizes = {"C": channels, "D": hidden, "BM": self.rows, "SLOTS": self.images}
        expand = sizes | {
            "BN": max(64, min(128, hidden & -hidden)), "BK": 64 if channels % 64 == 0 else 32,
            "num_warps": 4, "num_stages": 3,
        }  # fmt: skip
        scales = {
            "D": hidden, "BD": whole, "BM": self.rows, "BB": max(1, min(blocks, AT_ONCE // whole)),
            "SLOTS": self.images, "num_warps": 8 if whole > 1024 else 4,
        }  # fmt: skip
        project = sizes | {
            "BN": self.columns[0], "BR": self.columns[1], "BK": 64 if hidden % 64 == 0 else 32,
            "num_warps": self.rows // 16, "num_stages": 3,
        }  # fmt: skip
        return expand, scales, project


@lru_cache(MOST)
def tiles(pixels: int, channels: int) -> Tiles:
    """Tiles for maps of so many pixels and channels, for which :func:`takes`.

    Those of 320 channels at 14 x 14 are the fastest of what was measured; the others follow from them.
    """
    rows = ROWS if _images(ROWS, pixels) <= MOST_IMAGES else ROWS // 2
    return Tiles(rows, _images(rows, pixels), _columns(channels))


def _images(rows: int, pixels: int) -> int:
    """Images that a block of rows meets at most."""
    # A block begins at a multiple of their common divisor in an image, at the latest that divisor before its end.
    return 1 + (pixels - math.gcd(rows, pixels) + rows - 1) // pixels


def pointwise(
    x_NHWC: Tensor,
    residual_NHWC: Tensor,
    weight_DC: Tensor,
    bias_D: Tensor,
    gamma: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor,
) -> Tensor:
    """Linear layer, GELU, GRN without beta, linear layer, addition to the residual; without gradients.

    Args:
        x_NHWC, residual_NHWC: ``(N, H, W, C)``, for which :func:`takes`.
        weight_DC, bias_D: of the first layer, D = 4C.
        gamma: of GRN, D values of any float type and shape.
        weight_CD, bias_C: of the second layer.

    Returns:
        ``(N, H, W, C)``, with the dtype of x.
    """
    # Three dimensions, because torch.compile copies four-dimensional inputs of custom operators to channels-last.
    maps = x_NHWC.flatten(1, 2), residual_NHWC.flatten(1, 2)
    y_NPC = torch.ops.widefield.pointwise(*maps, weight_DC, bias_D, gamma.flatten(), weight_CD, bias_C)
    return cast(Tensor, y_NPC.unflatten(1, x_NHWC.shape[1:3]))


# -- the operator ----------------------------------------------------------------------------------------------


@torch.library.custom_op("widefield::pointwise", mutates_args=())
def _pointwise(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    from triton.tools.tensor_descriptor import TensorDescriptor

    from backbone.kernels import linear
    from backbone.kernels.start import INTERPRETED, start

    dtype, (images, pixels, channels), hidden = x.dtype, x.shape, weight.shape[0]
    x, residual, weight, bias, weight2, bias2 = map(_readable, (x, residual, weight, bias, weight2, bias2))
    chosen = tiles(pixels, channels)
    rows = images * pixels
    blocks = ceil_div(rows, chosen.rows)
    h = x.new_empty(rows, hidden)
    out = torch.empty_like(x)
    energy = x.new_empty(blocks, chosen.images, hidden, dtype=torch.float32)
    scale = x.new_empty(images, hidden)
    # Of what lies beyond the map in the last block nothing is stored.
    slots = x.new_empty(blocks * chosen.rows, dtype=torch.int32) if chosen.images > 1 else None

    def boxes(matrix: Tensor, height: int, width: int) -> TensorDescriptor:
        shape = [matrix.numel() // matrix.shape[-1], matrix.shape[-1]]
        return TensorDescriptor(matrix, shape, [shape[1], 1], [height, width])

    expand, scales, project = chosen.constants(pixels, channels, hidden)
    with torch.cuda.device_of(x):
        start(
            linear.expand, (blocks * ceil_div(hidden, expand["BN"]), 1, 1),
            (
                boxes(x, expand["BM"], expand["BK"]), boxes(weight, expand["BN"], expand["BK"]), bias,
                boxes(h, expand["BM"], expand["BN"]), energy,
            ),
            (pixels,), expand | {"FP32": INTERPRETED},
        )  # fmt: skip
        start(linear.scales, (images, 1, 1), (energy, gamma.contiguous(), scale, slots), (pixels,), scales)
        start(
            linear.project, (blocks * (channels // (project["BN"] + project["BR"])), 1, 1),
            (
                boxes(h, project["BM"], project["BK"]), boxes(weight2, project["BN"], project["BK"]),
                boxes(weight2, project["BR"], project["BK"]) if project["BR"] else None,
                bias2, scale, slots, residual, out,
            ),
            (rows, pixels, images), project | ({} if INTERPRETED else {"maxnreg": REGISTERS}),
        )  # fmt: skip
    return out.to(dtype)


@_pointwise.register_fake
def _(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _refuse(ctx: Any, grad: Tensor) -> None:
    raise NotImplementedError("pointwise is for inference: the layers that it replaces have the gradients")


_pointwise.register_autograd(_refuse)


def _readable(tensor: Tensor) -> Tensor:
    """Contiguous, and aligned as the tensor memory accelerator wants it."""
    from backbone.kernels.start import ALIGNED, INTERPRETED

    if INTERPRETED and tensor.dtype == torch.bfloat16:  # which the interpreter multiplies as integers
        return tensor.float().contiguous()
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNED == 0 else tensor.clone()
