"""``depthwise_conv2d``: the operator, its gradients, and the choice between Triton kernels and PyTorch.

Registered with ``torch.library`` as ``widefield::depthwise_conv2d`` and, for batch statistics computed on chip,
``widefield::depthwise_conv2d_sums`` and ``widefield::depthwise_conv2d_moments``: each with fake implementation,
autograd (twice differentiable where it is linear) and autocast, so they compile without graph breaks.

The environment variable ``WIDEFIELD_KERNELS``: ``on``, the default; ``off``, PyTorch only; ``always``, also for maps so
small that the kernels' launch overhead exceeds the time of PyTorch's convolution; ``interpret``, with
``TRITON_INTERPRET=1``, also on a CPU in Triton's interpreter: slow, for debugging.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.kernels import cpu, gram_cpu

log = logging.getLogger("widefield")

_OFF = "WIDEFIELD_KERNELS is off"
LARGEST = 31  # size of the largest supported kernel, including dilation
#: Work (values of the map times squared kernel size, including dilation) above which PyTorch takes longer than a kernel
#: launch; and, for the branches of a block in training, than all of their launches.
SMALLEST, SMALLEST_TRAINED = 2**29, 2**30
#: Limits up to which Gram matrices cost less than the outputs of a block's branches: rows, columns, pixels per image.
TALLEST, WIDEST, PIXELS_PER_IMAGE = 256, 64, 64
#: Dtypes multiplied on tensor cores.
HALF: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
_DTYPES = (*HALF, torch.float32)


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """Depthwise convolution: stride 1, "same" zero padding.

    On a CUDA GPU of compute capability 8.0 or later, Triton kernels (bf16 and fp16 on
    tensor cores, fp32 exactly); elsewhere, or if :func:`why_not` returns a reason,
    :func:`torch.nn.functional.conv2d`, with one log line at INFO. A plain 3 x 3 always uses PyTorch.

    Args:
        x: map, ``(N, C, H, W)``, preferably in channels-last memory format, as is the result.
        weight: one K x K kernel per channel, K odd, ``(C, 1, K, K)``. May have another float dtype than ``x``.
        bias: ``(C,)`` or None.
        dilation: distance between taps, in pixels.

    Returns:
        ``(N, C, H, W)``, with the dtype of ``x`` or, under autocast, the autocast dtype.

    Raises:
        ValueError: incompatible shapes, or an even K.

    >>> depthwise_conv2d(torch.ones(1, 2, 5, 5), torch.ones(2, 1, 3, 3))[0, 0, 0].tolist()
    [4.0, 6.0, 6.0, 6.0, 4.0]
    """
    _check(x, weight, bias, dilation)
    if use_kernels(x, weight, dilation) and not _is_plain_3x3(weight, dilation):
        return cast(Tensor, torch.ops.widefield.depthwise_conv2d(x, weight, bias, dilation, False))
    return _pytorch(x, weight, bias, dilation)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> None:
    shape = tuple(weight.shape)
    if x.dim() != 4 or weight.dim() != 4 or shape[:2] != (x.shape[1], 1) or shape[2] != shape[3]:
        raise ValueError(f"x (N, C, H, W) and weight (C, 1, K, K) do not fit: {tuple(x.shape)} and {shape}")
    if shape[3] % 2 == 0:
        raise ValueError(f"an even kernel has no centre: K = {shape[3]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit weight {shape}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, not {dilation}")


# -- which implementation --------------------------------------------------------------------------------------


def _setting() -> str:
    return os.environ.get("WIDEFIELD_KERNELS", "on").lower()


@torch.compiler.assume_constant_result
def why_not_on(device: torch.device) -> str | None:
    """The reason why the kernels do not run on this device; None if they do."""
    if _setting() not in ("on", "always", "interpret"):
        return _OFF
    if torch.compiler.is_exporting():  # checked here, because during compilation torch assumes it to be true
        return "an exported program must run where this project is not installed"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cpu":
        return None if _setting() == "interpret" else "the tensors lie on a CPU"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"there are no kernels for {'ROCm' if torch.version.hip else device.type}"
    return _too_old(device)


@cache
def _too_old(device: torch.device) -> str | None:
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"compute capability {major}.{minor} is below 8.0"


def why_not(x: Tensor, weight: Tensor, dilation: int = 1, least: int = SMALLEST) -> str | None:
    """The reason why PyTorch is used for these tensors instead of the Triton kernels; None if the kernels are used."""
    if x.dtype not in _DTYPES or weight.dtype not in _DTYPES:
        return f"there are no kernels for {x.dtype} and {weight.dtype}"
    if not 3 <= weight.shape[-1] <= dilation * (weight.shape[-1] - 1) + 1 <= LARGEST:
        return f"kernels reach from 3 to {LARGEST} pixels"
    if x.numel() == 0:
        return "the map is empty"
    reason = why_not_on(x.device)
    if reason is None and not starts_for(x.numel() * (dilation * (weight.shape[-1] - 1) + 1) ** 2, least):
        return "on small maps they start sooner"
    return reason


def starts_for(work: int, least: int) -> bool:
    """Whether this much work is worth the launch overhead, which is negligible in compiled and recorded code."""
    return work >= least or torch.compiler.is_compiling() or _recorded or _asked_for()


_recorded = False


@contextmanager
def launches_recorded() -> Iterator[None]:
    """While a CUDA graph is recorded, including warm-up: replaying it launches small kernels at no cost."""
    global _recorded
    before, _recorded = _recorded, True
    try:
        yield
    finally:
        _recorded = before


def kernels_compiled_ahead() -> AbstractContextManager[None]:
    """Inside, Triton kernels are compiled, several at a time, instead of being launched: what is computed is
    meaningless. Without Triton nothing changes."""
    if find_spec("triton") is None:
        return nullcontext()
    from backbone.kernels.start import compiled_ahead

    return compiled_ahead()


def _asked_for() -> bool:
    """Whether the kernels are to be used even if PyTorch would be faster."""
    return _setting() in ("always", "interpret")


def _is_plain_3x3(weight: Tensor, dilation: int) -> bool:
    """Whether this is a 3 x 3 without dilation: PyTorch's kernels take twice the time of a copy; ours were slower."""
    return weight.shape[-1] == 3 and dilation == 1


_told: set[str] = set()


def use_kernels(x: Tensor, weight: Tensor, dilation: int = 1, least: int = SMALLEST) -> bool:
    """Whether to use the Triton kernels for these tensors; if enabled but not used, logs each reason once."""
    reason = why_not(x, weight, dilation, least)
    if reason not in (None, _OFF) and not torch.compiler.is_compiling() and reason not in _told:
        _told.add(reason)
        log.info("depthwise convolutions by PyTorch: %s", reason)
    return reason is None


def sums_on_chip(x: Tensor, weight: Tensor, dilation: int = 1, least: int = SMALLEST) -> bool:
    """Whether :func:`depthwise_conv2d_sums` needs no extra pass over the output."""
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    else:
        dtype = x.dtype
    return dtype in HALF and not _is_plain_3x3(weight, dilation) and use_kernels(x, weight, dilation, least)


def moments_on_chip(x: Tensor, weight: Tensor, least: int = SMALLEST) -> bool:
    """Whether :func:`depthwise_conv2d_moments` avoids writing the outputs and is faster that way."""
    if not sums_on_chip(
        x, weight, least=least
    ):  # before sizes are compared: each comparison guards a compiled graph
        return False
    images, _, height, width = x.shape
    pays = height * width <= PIXELS_PER_IMAGE * images or _asked_for()
    return height <= TALLEST and width <= WIDEST and pays


def depthwise_conv2d_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`depthwise_conv2d`, and the sums of its output for batch norm and squeeze-excite from the same pass.

    Returns:
        The output; its sum over each map, ``(N, C)``; its sum of squares over all maps, ``(C,)``. Sums are fp32.
    """
    _check(x, weight, bias, dilation)
    if sums_on_chip(x, weight, dilation):
        return cast(
            tuple[Tensor, Tensor, Tensor],
            torch.ops.widefield.depthwise_conv2d_sums(x, weight, bias, dilation),
        )
    y = depthwise_conv2d(x, weight, bias, dilation)
    wide = y.float()
    return y, wide.sum((2, 3)), wide.square().sum((0, 2, 3))


def depthwise_conv2d_moments(x: Tensor, kernels_BCKK: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and sums of squares of the outputs of B depthwise convolutions of one map.

    If :func:`moments_on_chip`, the outputs are never materialised: see :mod:`backbone.kernels.gram`.

    Args:
        x: ``(N, C, H, W)``.
        kernels_BCKK: ``(B, C, K, K)``, dilated kernels in their equivalent dense form.

    Returns:
        Sums and sums of squares, ``(B, C)`` each, fp32.
    """
    first = kernels_BCKK[0].unsqueeze(1)  # all have the same shape
    _check(x, first, None, 1)
    if gram_cpu.pays(x, first):
        return gram_cpu.moments(x, kernels_BCKK)
    if moments_on_chip(x, first):
        sums_BC, squares_BC = torch.ops.widefield.depthwise_conv2d_moments(x, kernels_BCKK)[0]
        return sums_BC, squares_BC
    outputs = [depthwise_conv2d(x, weight).float() for weight in kernels_BCKK.unsqueeze(2)]
    sums = torch.stack([y.sum((0, 2, 3)) for y in outputs])
    return sums, torch.stack([y.square().sum((0, 2, 3)) for y in outputs])


def _pytorch(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if cpu.pays(x, weight):
        return cpu.depthwise_conv2d(x, weight, bias, dilation)
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])


# -- the operators ---------------------------------------------------------------------------------------------
# Forward passes, on any device.


def _empty_like_NHWC(x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    return x.new_empty(n, height, width, channels).permute(0, 3, 1, 2)


@torch.library.custom_op("widefield::depthwise_conv2d", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, flip: bool) -> Tensor:
    from backbone.kernels import launch

    with torch.cuda.device_of(x):
        return launch.convolve(x, weight, bias, dilation, flip)


@_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, flip: bool) -> Tensor:
    return _empty_like_NHWC(x)


@torch.library.custom_op("widefield::depthwise_conv2d_weight_grad", mutates_args=())
def _weight_grad(x: Tensor, grad: Tensor, kernel_size: int, dilation: int, dtype: torch.dtype) -> Tensor:
    from backbone.kernels import launch

    with torch.cuda.device_of(x):
        return launch.weight_grad(x, grad, kernel_size, dilation, dtype)


@_weight_grad.register_fake
def _(x: Tensor, grad: Tensor, kernel_size: int, dilation: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape[1], 1, kernel_size, kernel_size, dtype=dtype)


@torch.library.custom_op("widefield::depthwise_conv2d_sums", mutates_args=())
def _conv_with_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    from backbone.kernels import launch

    with torch.cuda.device_of(x):
        return launch.convolve_with_sums(x, weight, bias, dilation)


@_conv_with_sums.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    n, channels = x.shape[:2]
    fp32 = torch.float32
    return _empty_like_NHWC(x), x.new_empty(n, channels, dtype=fp32), x.new_empty(channels, dtype=fp32)


@torch.library.custom_op("widefield::depthwise_conv2d_moments", mutates_args=())
def _moments(x: Tensor, kernels_BCKK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums and sums of squares, ``(2, B, C)``; the sums' derivatives by the kernels, ``(C, K, K)``; half those of the
    sums of squares, ``(B, C, K, K)``."""
    from backbone.kernels import launch, moments

    with torch.cuda.device_of(x):
        return moments.moments(launch.nhwc(x), kernels_BCKK.float().contiguous())


@_moments.register_fake
def _(x: Tensor, kernels_BCKK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape, fp32 = kernels_BCKK.shape, torch.float32
    return (
        x.new_empty(2, *shape[:2], dtype=fp32),
        x.new_empty(shape[1:], dtype=fp32),
        x.new_empty(shape, dtype=fp32),
    )


@torch.library.custom_op("widefield::depthwise_conv2d_moments_grad", mutates_args=())
def _moments_grad(x: Tensor, kernels_BCKK: Tensor, grad_2BC: Tensor) -> Tensor:
    """Gradient of the map."""
    from backbone.kernels import launch, moments

    with torch.cuda.device_of(x):
        grad_NHWC = moments.grad_of_map(
            launch.nhwc(x), kernels_BCKK.float().contiguous(), grad_2BC.contiguous()
        )
        return launch.nchw(grad_NHWC, x.dtype)


@_moments_grad.register_fake
def _(x: Tensor, kernels_BCKK: Tensor, grad_2BC: Tensor) -> Tensor:
    return _empty_like_NHWC(x)


# -- gradients -------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, dilation = inputs[:4]
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.dilation, ctx.flip = dilation, len(inputs) > 4 and inputs[4]


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad = grad.to(x.dtype)
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _conv(grad, weight, None, ctx.dilation, not ctx.flip)
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_grad(x, grad, weight.shape[-1], ctx.dilation, weight.dtype)
        if ctx.flip:
            grad_weight = grad_weight.flip(2, 3)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, None, None


_conv.register_autograd(_conv_backward, setup_context=_save)


def _save_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grad, _, ctx.dilation, _ = inputs
    ctx.save_for_backward(x, grad)


def _weight_grad_backward(ctx: Any, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
    x, grad = ctx.saved_tensors
    # The gradient of the weight is linear in the input and in the output's gradient.
    grad_x = _conv(grad, grad_weight, None, ctx.dilation, True) if ctx.needs_input_grad[0] else None
    grad_grad = _conv(x, grad_weight, None, ctx.dilation, False) if ctx.needs_input_grad[1] else None
    return grad_x, grad_grad, None, None, None


_weight_grad.register_autograd(_weight_grad_backward, setup_context=_save_weight_grad)


def _save_with_sums(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _save(ctx, inputs, output)
    ctx.save_for_backward(inputs[0], inputs[1], output[0])


def _conv_with_sums_backward(
    ctx: Any, grad_y: Tensor, grad_sums_NC: Tensor, grad_squares_C: Tensor
) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    grad = grad_y + grad_sums_NC[:, :, None, None] + 2 * grad_squares_C[:, None, None] * y
    grad = grad.to(x.dtype)
    grad_x = _conv(grad, weight, None, ctx.dilation, True) if ctx.needs_input_grad[0] else None
    grad_weight = grad_bias = None
    if ctx.needs_input_grad[1]:
        grad_weight = _weight_grad(x, grad, weight.shape[-1], ctx.dilation, weight.dtype)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, None


_conv_with_sums.register_autograd(_conv_with_sums_backward, setup_context=_save_with_sums)


def _save_moments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _moments_backward(
    ctx: Any, grad_2BC: Tensor, _of_line: Tensor | None, _of_products: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    x, kernels_BCKK, line_CKK, products_BCKK = ctx.saved_tensors
    grad_x = grad_kernels = None
    if ctx.needs_input_grad[0]:
        grad_x = _moments_grad(x, kernels_BCKK, grad_2BC)
    if ctx.needs_input_grad[1]:
        of_sums_BC11, of_squares_BC11 = grad_2BC[:, :, :, None, None]
        grad_kernels = (of_sums_BC11 * line_CKK + 2 * of_squares_BC11 * products_BCKK).to(kernels_BCKK.dtype)
    return grad_x, grad_kernels


_moments.register_autograd(_moments_backward, setup_context=_save_moments)


# -- autocast --------------------------------------------------------------------------------------------------
# The map is cast to the autocast dtype. Weights keep their dtype: the kernels round them on load.

_library = torch.library.Library("widefield", "FRAGMENT")


def _under_autocast(operator: Any) -> Any:
    def call(x: Tensor, *others: Any) -> Any:
        x = x.to(torch.get_autocast_dtype("cuda"))
        with torch.autocast("cuda", enabled=False):
            return operator(x, *others)

    return call


for _operator in (_conv, _conv_with_sums, _moments):
    _library.impl(_operator._name, _under_autocast(_operator), "AutocastCUDA")
