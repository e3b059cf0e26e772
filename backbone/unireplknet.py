"""UniRepLKNet: a large-kernel ConvNet that reads any 2-D map.

Paper: Zhang, Ding, Ge, Song, Zhao, Yue, Shan, "Scaling Up Your Kernels: Large Kernel Design in ConvNets
towards Universal Representations", arXiv 2410.08049 (first as arXiv 2311.15599). Modules and parameters have
the names of the official release, so that its checkpoints load strictly.

Contents: the layers (LayerNorm2d, GRN, SqueezeExcite, DropPath), the block, the network. The official sizes are
in :mod:`backbone.sizes`.

Shape legend: N batch, C channels, H height, W width (pixels of the current map), D = 4C hidden width.
Where a name ends in these letters, they are its shape: ``x_NHWC``.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from backbone.batch_norm import affine_from_sums, keep_statistics, takes_sums
from backbone.checkpoints import LoadReport, load_pretrained, load_weights
from backbone.kernels import DepthwiseConv2d, grn_cpu, pointwise
from backbone.kernels.depthwise import depthwise_conv2d_sums
from backbone.kernels.gelu_grn import gelu_grn, gelu_grn_linear, takes
from backbone.reparam import DilatedReparamBlock, as_float64, batch_norm_affine, merged_conv, set_conv

KERNEL_SIZES = (0, 3, 5, 7, 9, 11, 13, 15, 17)
KernelSizes = Sequence[int | Sequence[int]]
DownsampleNorm = Literal["layer", "batch"]
WeightInit = Literal["official", "fan_in"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of an ``(N, C, H, W)`` map: biased variance, eps 1e-6.

    The output and all maps after it are in NHWC memory format: the linear layers need no copies, and
    depthwise convolutions on a CPU run 1.3 to 2 times as fast as with NCHW.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        x_NHWC = F.layer_norm(x_NHWC, self.normalized_shape, self.weight, self.bias, self.eps)
        return x_NHWC.permute(0, 3, 1, 2)


class GRN(nn.Module):
    """Global response normalisation of an ``(N, H, W, D)`` map (arXiv 2301.00808, equations 1-3).

    Each channel is scaled by its L2 norm over the map, relative to the mean over channels. Norms are computed in fp32
    because a sum of squares can overflow fp16. ``use_bias=False`` omits ``beta``.
    """

    beta: nn.Parameter | None

    def __init__(self, dim: int, use_bias: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.register_parameter("beta", nn.Parameter(torch.zeros(1, 1, 1, dim)) if use_bias else None)

    def forward(self, x_NHWD: Tensor) -> Tensor:
        if grn_cpu.takes(x_NHWD, self.gamma):
            return grn_cpu.grn(x_NHWD, self.gamma, self.beta)
        dtype = torch.promote_types(x_NHWD.dtype, torch.float32)
        # vector_norm and not sqrt(sum of squares): its gradient at an all-zero channel is 0, not NaN.
        energy_N11D = torch.linalg.vector_norm(x_NHWD, dim=(1, 2), keepdim=True, dtype=dtype)
        relative_N11D = energy_N11D / (energy_N11D.mean(dim=-1, keepdim=True) + 1e-6)
        scale_N11D = (self.gamma * relative_N11D + 1).to(x_NHWD.dtype)
        if self.beta is None:
            return scale_N11D * x_NHWD
        return torch.addcmul(self.beta.to(x_NHWD.dtype), scale_N11D, x_NHWD)


class SqueezeExcite(nn.Module):
    """The gate of channel attention: 1x1 convolutions C -> ``hidden`` -> C, ReLU, sigmoid."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)

    def forward(self, mean_NC11: Tensor) -> Tensor:
        """Gate of each channel, ``(N, C, 1, 1)``, from the map's mean."""
        return cast(Tensor, self.up(F.relu(self.down(mean_NC11))).sigmoid())


class DropPath(nn.Module):
    """Stochastic depth: in training, a sample's residual is 0 with probability ``rate``, else rescaled."""

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # A tensor, so that blocks that differ only in their rate share their compiled code.
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return x_NCHW
        if torch.compiler.is_compiling():
            kept_N111 = torch.rand(x_NCHW.shape[0], 1, 1, 1, device=x_NCHW.device) < self.keep
            return x_NCHW * (kept_N111 / self.keep).to(x_NCHW.dtype)
        if self.rate == 0.0:
            return x_NCHW
        keep = 1.0 - self.rate
        mask_N111 = x_NCHW.new_empty(x_NCHW.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)
        return x_NCHW * mask_N111

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class NCHWtoNHWC(nn.Module):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.permute(0, 2, 3, 1)


class NHWCtoNCHW(nn.Module):
    def forward(self, x_NHWC: Tensor) -> Tensor:
        return x_NHWC.permute(0, 3, 1, 2)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class UniRepLKNetBlock(nn.Module):
    """Depthwise K x K -> BN -> SE -> linear x4 -> GELU -> GRN -> linear -> BN, scaled and added to the input.

    Shape: ``(N, C, H, W) -> (N, C, H, W)``.

    Args:
        dim: C.
        kernel_size: K. 7 and above with dilated branches, 3 and 5 a plain depthwise convolution, 0 none.
        drop_path: probability of dropping the residual in training.
        layer_scale_init_value: initial value of the residual's layer scale; None or 0 for no layer scale.
        deploy: build the merged form.
        dilated_branches: False uses a plain convolution for K >= 7 as well (ablation).
    """

    dwconv: nn.Module
    norm: nn.Module
    gamma: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        deploy: bool = False,
        dilated_branches: bool = True,
    ) -> None:
        super().__init__()
        self.deploy = deploy
        self.grad_checkpointing = False
        has_gamma = bool(layer_scale_init_value) and not deploy
        gamma = nn.Parameter(torch.full((dim,), float(layer_scale_init_value or 0.0))) if has_gamma else None
        self.register_parameter("gamma", gamma)

        if kernel_size == 0:
            self.dwconv = nn.Identity()
        elif kernel_size >= 7 and dilated_branches:
            self.dwconv = DilatedReparamBlock(dim, kernel_size, deploy)
        else:
            self.dwconv = DepthwiseConv2d(dim, kernel_size, bias=deploy)
        self.norm = nn.Identity() if deploy or kernel_size == 0 else nn.BatchNorm2d(dim)
        self.se = SqueezeExcite(dim, dim // 4)
        self.pwconv1 = nn.Sequential(NCHWtoNHWC(), nn.Linear(dim, 4 * dim))
        self.act = nn.Sequential(nn.GELU(), GRN(4 * dim, use_bias=not deploy))
        self.pwconv2 = nn.Sequential(nn.Linear(4 * dim, dim, bias=deploy), NHWCtoNCHW())
        if not deploy:
            self.pwconv2.append(nn.BatchNorm2d(dim))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def _convolve(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Depthwise convolution, ``(N, C, H, W)``, and the scale, ``(N, C, 1, 1)``, and shift still to be applied.

        The scale is the squeeze-excite gate and the shift None; if the kernels sum their output on chip, both also
        include the batch norm, which then needs no separate pass.
        """
        pixels = x_NCHW.shape[2] * x_NCHW.shape[3]
        count = x_NCHW.shape[0] * pixels
        merged = isinstance(self.norm, nn.Identity)
        one = None if isinstance(self.dwconv, nn.Identity) else self.dwconv.as_one_convolution(x_NCHW)  # type: ignore[operator]
        if one is None or not (merged or takes_sums(self.norm, count)):
            y_NCHW = self.norm(self.dwconv(x_NCHW))
            return y_NCHW, self.se(y_NCHW.mean(dim=(2, 3), keepdim=True)), None

        y_NCHW, sums_NC, squares_C = depthwise_conv2d_sums(x_NCHW, *one)
        mean_NC = sums_NC / pixels
        if merged:
            return y_NCHW, self.se(mean_NC[:, :, None, None].to(y_NCHW.dtype)), None
        scale_C, shift_C = affine_from_sums(self.norm, (sums_NC.sum(0), squares_C), count)
        mean_NC = mean_NC * scale_C + shift_C
        gate_NC11 = self.se(mean_NC[:, :, None, None].to(y_NCHW.dtype)).float()
        scale_NC11, shift_NC11 = gate_NC11 * scale_C[:, None, None], gate_NC11 * shift_C[:, None, None]
        return y_NCHW, scale_NC11.to(y_NCHW.dtype), shift_NC11.to(y_NCHW.dtype)

    def _activate_and_project(self, hidden_NHWD: Tensor) -> Tensor:
        """``act`` and ``pwconv2``: ``(N, H, W, 4C) -> (N, C, H, W)``."""
        grn, (linear, *others) = cast(GRN, self.act[1]), self.pwconv2
        differentiated = torch.is_grad_enabled()
        if not differentiated and grn_cpu.takes(hidden_NHWD, grn.gamma):
            return cast(Tensor, self.pwconv2(grn_cpu.gelu_grn_(hidden_NHWD, grn.gamma, grn.beta)))
        if not takes(hidden_NHWD) or (differentiated and type(linear) is not nn.Linear):
            return cast(Tensor, self.pwconv2(self.act(hidden_NHWD)))
        if not differentiated:
            return cast(Tensor, self.pwconv2(gelu_grn(hidden_NHWD, grn.gamma, grn.beta)))
        y: Tensor = gelu_grn_linear(hidden_NHWD, grn.gamma, grn.beta, cast(Tensor, linear.weight))
        if linear.bias is not None:
            y = y + cast(Tensor, linear.bias).to(y.dtype)
        for layer in others:
            y = layer(y)
        return y

    def _as_one_operator(self, y_NCHW: Tensor, x_NCHW: Tensor) -> Tensor | None:
        """Everything behind the gate by :mod:`backbone.kernels.pointwise`; None if it does not apply.

        It applies in inference to maps large enough, unless a layer has been replaced (adapters, quantisation) or has
        hooks.
        """
        if torch.is_grad_enabled() or self.training or not self.deploy or pointwise.setting() == "off":
            return None
        layers: list[Any] = [*self.pwconv1, *self.act, *self.pwconv2]
        drop: nn.Module = self.drop_path
        if [type(layer) for layer in layers] != [NCHWtoNHWC, nn.Linear, nn.GELU, GRN, nn.Linear, NHWCtoNCHW]:
            return None
        if type(drop) not in (nn.Identity, DropPath) or drop.training:
            return None
        if any(_has_hooks(part) for part in (*layers, self.pwconv1, self.act, self.pwconv2, drop)):
            return None
        _, first, _, grn, second, _ = layers
        linear = first.weight, first.bias, second.weight, second.bias
        maps = y_NCHW.permute(0, 2, 3, 1), x_NCHW.permute(0, 2, 3, 1)
        if grn.beta is not None or not pointwise.takes(*maps, *linear):
            return None
        return pointwise.pointwise(*maps, *linear[:2], grn.gamma, *linear[2:]).permute(0, 3, 1, 2)

    def _forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW, scale_NC11, shift_NC11 = self._convolve(x_NCHW)
        if shift_NC11 is None:
            y_NCHW = y_NCHW * scale_NC11
        else:
            y_NCHW = torch.addcmul(shift_NC11, y_NCHW, scale_NC11)
        if (output_NCHW := self._as_one_operator(y_NCHW, x_NCHW)) is not None:
            return output_NCHW
        y_NCHW = self._activate_and_project(self.pwconv1(y_NCHW))
        if self.gamma is not None:
            y_NCHW = y_NCHW * self.gamma.view(1, -1, 1, 1)
        return x_NCHW + cast(Tensor, self.drop_path(y_NCHW))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return self._forward(x_NCHW)
        if torch.compiler.is_compiling():  # the compiler's own recomputation does not repeat buffer updates
            return cast(Tensor, checkpoint(self._forward, x_NCHW, use_reentrant=False))
        # The backward pass reruns the block; its batch norms must not count this batch twice.
        contexts = lambda: (contextlib.nullcontext(), keep_statistics(self))  # noqa: E731
        return cast(Tensor, checkpoint(self._forward, x_NCHW, use_reentrant=False, context_fn=contexts))

    @torch.no_grad()
    def reparameterize(self) -> UniRepLKNetBlock:
        """Merge branches, both batch norms, the GRN bias and the layer scale, in place. Idempotent."""
        if self.deploy:
            return self
        if isinstance(self.dwconv, DilatedReparamBlock):
            self.dwconv.reparameterize(followed_by=self.norm)
        elif isinstance(self.dwconv, nn.Conv2d):
            set_conv(self.dwconv, *merged_conv(self.dwconv, self.norm))
        self.norm = nn.Identity().train(self.training)

        grn, linear = cast(GRN, self.act[1]), cast(nn.Linear, self.pwconv2[0])
        scale, shift = batch_norm_affine(self.pwconv2[2])
        if self.gamma is not None:
            gamma = as_float64(self.gamma)
            scale, shift = scale * gamma, shift * gamma
        weight = as_float64(linear.weight)
        bias = shift
        if grn.beta is not None:
            bias = bias + scale * (weight @ as_float64(grn.beta).flatten())
        set_conv(linear, weight * scale.view(-1, 1), bias)
        grn.beta = None
        del self.pwconv2[2]
        self.gamma = None
        self.deploy = True
        return self


def default_kernel_sizes(depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The official kernel sizes: 3 in stage 1, 13 in stages 2 and 4, about nine 13s interleaved with 3s in stage 3.

    Every official size has six to nine large kernels in stage 3: all blocks at depth 6 and 8, every second
    at 18, every third at 27. Other depths n follow the same rule: every p-th block, with p = max(round(n/9), 1).

    >>> default_kernel_sizes((1, 1, 6, 1))[2]
    (13, 13, 13, 13, 13, 13)
    >>> default_kernel_sizes((1, 1, 18, 1))[2][:4]
    (13, 3, 13, 3)
    """
    period = max(1, round(depths[2] / 9))
    third = tuple(13 if i % period == 0 else 3 for i in range(depths[2]))
    return (3,) * depths[0], (13,) * depths[1], third, (13,) * depths[3]


def _four_ints(name: str, values: Sequence[int], least: int) -> tuple[int, ...]:
    entries = tuple(values) if not isinstance(values, str | int) else ()
    if len(entries) != 4 or any(not isinstance(v, int) or v < least for v in entries):
        raise ValueError(f"{name} takes four integers of at least {least}, one a stage, not {values!r}")
    return entries


def expand_kernel_sizes(
    kernel_sizes: KernelSizes | None, depths: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Expand to one kernel size per block, from None or from four entries, each a K or one K per block.

    Raises:
        ValueError: not four entries, a number of kernels that differs from the stage's depth, or an unsupported K.

    >>> expand_kernel_sizes([3, 13, [13, 3], 7], (1, 1, 2, 1))
    ((3,), (13,), (13, 3), (7,))
    """
    if kernel_sizes is None:
        return default_kernel_sizes(depths)
    if isinstance(kernel_sizes, str | int) or len(kernel_sizes) != 4:
        raise ValueError(
            f"kernel_sizes takes four entries, one a stage, each K or one K a block, not {kernel_sizes!r}"
        )
    stages = []
    for i, (entry, depth) in enumerate(zip(kernel_sizes, depths, strict=True)):
        stage = tuple(entry) if isinstance(entry, Sequence) else (entry,) * depth
        if len(stage) != depth:
            raise ValueError(
                f"stage {i + 1} has {depth} blocks, but kernel_sizes gives {len(stage)} kernels: {stage}"
            )
        if wrong := [k for k in stage if not isinstance(k, int) or k not in KERNEL_SIZES]:
            raise ValueError(
                f"kernel size {wrong[0]} in stage {i + 1} is not offered: use one of {KERNEL_SIZES}"
            )
        stages.append(stage)
    return tuple(stages)


def _check_numbers(
    in_chans: int,
    num_classes: int,
    drop_path_rate: float,
    layer_scale_init_value: float | None,
    stem_stride: int,
) -> None:
    """Raise a ``ValueError`` for an argument of :class:`UniRepLKNet` that is out of range."""
    if in_chans < 1:
        raise ValueError(f"in_chans must be at least 1, not {in_chans}")
    if num_classes < 0:
        raise ValueError(f"num_classes must be 0 (no classifier) or more, not {num_classes}")
    if not 0.0 <= drop_path_rate < 1.0:
        raise ValueError(f"drop_path_rate must lie in [0, 1), not {drop_path_rate}")
    if layer_scale_init_value is not None and layer_scale_init_value < 0:
        raise ValueError(f"layer_scale_init_value must be None, 0 or positive, not {layer_scale_init_value}")
    if stem_stride not in (1, 2, 4):
        raise ValueError(f"stem_stride must be 4, 2 or 1, not {stem_stride}")


def _check_choices(downsample_norm: str, weight_init: str) -> None:
    if downsample_norm not in get_args(DownsampleNorm) or weight_init not in get_args(WeightInit):
        raise ValueError(
            f"downsample_norm is layer or batch and weight_init official or fan_in, not {downsample_norm!r} and "
            f"{weight_init!r}"
        )


def _stem(in_chans: int, width: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """Two convolutions with this total stride: ``(N, in_chans, H, W) -> (N, width, H / stride, W / stride)``."""
    first, second = {4: (2, 2), 2: (2, 1), 1: (1, 1)}[stride]
    return nn.Sequential(
        nn.Conv2d(in_chans, width // 2, 3, stride=first, padding=1),
        norm(width // 2),
        nn.GELU(),
        nn.Conv2d(width // 2, width, 3, stride=second, padding=1),
        norm(width),
    )


def _merge_norms(layers: nn.Sequential) -> None:
    """Merge every batch norm of a stem or downsampling into the convolution before it, in place."""
    for place, norm in enumerate(layers):
        if isinstance(norm, _BatchNorm):
            set_conv(layers[place - 1], *merged_conv(layers[place - 1], norm))
            layers[place] = nn.Identity().train(norm.training)


class UniRepLKNet(nn.Module):
    """UniRepLKNet: a stem and four stages of blocks, each at half the resolution of the previous one.

    Shapes: an ``(N, in_chans, H, W)`` map of any size gives four features of ``dims[i]`` channels at strides
    4, 8, 16, 32 (sides rounded up), and, from :meth:`forward`, ``(N, num_classes)`` logits.

    Args:
        in_chans: channels of the input map.
        num_classes: number of classes; 0 for no classifier, in which case :meth:`forward` returns pooled features.
        depths: number of blocks in each of the four stages.
        dims: channels of each stage; at least 4.
        kernel_sizes: None for the official rule (:func:`default_kernel_sizes`), or four entries, each a K or
            a sequence with one K per block; K is one of 0, 3, 5, 7, 9, 11, 13, 15, 17.
        drop_path_rate: stochastic depth rate of the last block, in [0, 1); increases linearly from 0 at the first.
        layer_scale_init_value: initial value of each block's layer scale; None or 0 for no layer scale.
        head_init_scale: factor on the initial classifier weights (0.001 in the official fine-tuning).
        deploy: build the merged form, as after :meth:`reparameterize`.
        grad_checkpointing: recompute blocks in the backward pass to save memory.
        feature_norms: the official form for dense tasks: a norm on each of the four features, no classifier
            (``num_classes`` is then treated as 0).
        stem_stride: s, one of 4, 2 or 1; features have strides s, 2s, 4s, 8s. Use a smaller s for small maps.
        dilated_branches: False trains large kernels without parallel dilated branches (an ablation; the
            checkpoints of the official release have them).
        downsample_norm: the norms of the stem and between the stages: ``layer``, as published, or ``batch``, which
            :meth:`reparameterize` merges into the convolutions. A layer norm enlarges each pixel's features to one
            size, those of silence or plain areas, too, which costs accuracy with little data (docs/FINDINGS.md).
        weight_init: ``official``, a standard deviation of 0.02 everywhere, or ``fan_in``, one over the square root of
            a unit's inputs, with which narrow networks learn faster. The classifier's is official in both cases.

    Raises:
        ValueError: an argument out of range; the message states the range.

    >>> net = UniRepLKNet(in_chans=1, num_classes=5, depths=(1, 1, 1, 1), dims=(8, 16, 16, 32)).eval()
    >>> [tuple(f.shape) for f in net.forward_features(torch.zeros(2, 1, 64, 40))]
    [(2, 8, 16, 10), (2, 16, 8, 5), (2, 16, 4, 3), (2, 32, 2, 2)]
    >>> net.reparameterize()(torch.zeros(2, 1, 64, 40)).shape
    torch.Size([2, 5])
    """

    norm: nn.Module
    head: nn.Module

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 27, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: KernelSizes | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        head_init_scale: float = 1.0,
        deploy: bool = False,
        grad_checkpointing: bool = False,
        feature_norms: bool = False,
        stem_stride: int = 4,
        dilated_branches: bool = True,
        downsample_norm: DownsampleNorm = "layer",
        weight_init: WeightInit = "official",
    ) -> None:
        super().__init__()
        _check_numbers(in_chans, num_classes, drop_path_rate, layer_scale_init_value, stem_stride)
        _check_choices(downsample_norm, weight_init)
        depths = _four_ints("depths", depths, least=1)
        dims = _four_ints("dims", dims, least=4)
        kernels = expand_kernel_sizes(kernel_sizes, depths)

        self.in_chans = in_chans
        self.num_classes = 0 if feature_norms else num_classes
        self.num_features = dims[-1]
        self.depths, self.dims, self.kernel_sizes = depths, dims, kernels
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init_value = layer_scale_init_value
        self.head_init_scale = head_init_scale
        self.feature_norms = feature_norms
        self.stem_stride = stem_stride
        self.dilated_branches = dilated_branches
        self.downsample_norm: DownsampleNorm = downsample_norm
        #: For timm: channels, stride and module of each feature.
        self.feature_info: list[dict[str, Any]] = [
            {
                "num_chs": dim,
                "reduction": stem_stride * 2**i,
                "module": f"norm{i}" if feature_norms else f"stages.{i}",
            }
            for i, dim in enumerate(dims)
        ]

        norm: Callable[[int], nn.Module] = LayerNorm2d
        if downsample_norm == "batch":
            norm = nn.Identity if deploy else nn.BatchNorm2d
        self.downsample_layers = nn.ModuleList([_stem(in_chans, dims[0], stem_stride, norm)])
        for narrow, wide in itertools.pairwise(dims):
            down = nn.Sequential(nn.Conv2d(narrow, wide, 3, stride=2, padding=1), norm(wide))
            self.downsample_layers.append(down)

        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    UniRepLKNetBlock(dim, k, next(rates), layer_scale_init_value, deploy, dilated_branches)
                    for k in stage_kernels
                )
            )
            for dim, stage_kernels in zip(dims, kernels, strict=True)
        )
        if feature_norms:
            for i, dim in enumerate(dims):
                self.add_module(f"norm{i}", LayerNorm2d(dim))
        self.apply(partial(_init_weights, fan_in=weight_init == "fan_in"))
        self._build_classifier(self.num_classes)
        self.set_grad_checkpointing(grad_checkpointing)

    # -- forward -------------------------------------------------------------------------------------------

    def forward_features(self, x_NCHW: Tensor) -> list[Tensor]:
        """The four feature maps, ``(N, dims[i], H/s, W/s)`` with s = ``stem_stride`` times 1, 2, 4, 8."""
        return self._run_stages(x_NCHW)

    def _run_stages(self, x_NCHW: Tensor, count: int | None = None) -> list[Tensor]:
        """The feature maps of the first ``count`` stages; all by default."""
        features = []
        stages = list(zip(self.downsample_layers, self.stages, strict=True))[:count]
        for i, (downsample, stage) in enumerate(stages):
            x_NCHW = stage(self._downsample(downsample, x_NCHW))
            features.append(getattr(self, f"norm{i}")(x_NCHW) if self.feature_norms else x_NCHW)
        return features

    def _downsample(self, layers: nn.Module, x_NCHW: Tensor) -> Tensor:
        """The stem or a downsampling; its output is in NHWC memory format, see :class:`LayerNorm2d`."""
        y_NCHW: Tensor = layers(x_NCHW)
        batch = self.downsample_norm == "batch"
        return y_NCHW.contiguous(memory_format=torch.channels_last) if batch else y_NCHW

    def forward_head(self, features: Tensor | Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        """Pool the last map and classify: ``(N, num_classes)``, or ``(N, num_features)`` without classifier.

        Args:
            features: output of :meth:`forward_features`, or its last map.
            pre_logits: stop before the linear layer.
        """
        x_NCHW = features if isinstance(features, Tensor) else features[-1]
        x_NC: Tensor = self.norm(x_NCHW.mean(dim=(2, 3)))
        return x_NC if pre_logits else cast(Tensor, self.head(x_NC))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``; with ``num_classes=0`` pooled features ``(N, num_features)``."""
        return self.forward_head(self.forward_features(x_NCHW))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Selected features, as in timm; used by ``timm.create_model(..., features_only=True)``.

        Args:
            x: ``(N, C, H, W)``.
            indices: indices of the four features; an integer n means the last n, None all.
            norm: must be False: norms are part of the network here (``feature_norms``).
            stop_early: accepted for compatibility with timm, but has no effect.
            output_fmt: must be ``"NCHW"``.
            intermediates_only: do not return the last map.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"features have the format NCHW, not {output_fmt}")
        if norm:
            raise ValueError("build the network with feature_norms=True to get normalised features")
        features = self.forward_features(x)
        chosen = [features[i] for i in feature_indices(indices)]
        return chosen if intermediates_only else (features[-1], chosen)

    # -- deploy form, memory -------------------------------------------------------------------------------

    def reparameterize(self) -> UniRepLKNet:
        """Merge every block and batch norm into its deploy form, in place: equivalent to evaluation mode, but faster.

        Idempotent; keeps mode, dtype, device and ``requires_grad``. Merged parameters are new objects, so create
        the optimizer afterwards. Merging cannot be undone: copy the network first to continue training its branches.
        """
        for block in self.blocks():
            block.reparameterize()
        for layers in self.downsample_layers:
            _merge_norms(cast(nn.Sequential, layers))
        return self

    @property
    def deploy(self) -> bool:
        """Whether every block is in deploy form."""
        return all(block.deploy for block in self.blocks())

    def compiled_apart(self) -> list[nn.Module]:
        """The modules that ``compile=block_graphs`` compiles by themselves: those of one kind share their code."""
        return [*self.downsample_layers, *self.blocks()]

    def blocks(self) -> Iterator[UniRepLKNetBlock]:
        """All blocks, from input to output."""
        for stage in self.stages:
            yield from cast(nn.Sequential, stage)  # type: ignore[misc]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable recomputing blocks in the backward pass. Running statistics are still updated once."""
        self.grad_checkpointing = enable
        for block in self.blocks():
            block.grad_checkpointing = enable

    # -- timm's model interface ----------------------------------------------------------------------------

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups for timm's layer-wise learning-rate decay, from the input: stem, every block (with the downsampling
        before it), norms and classifier. ``coarse`` groups by stage instead of block."""
        blocks = (
            r"^(?:downsample_layers|stages)\.(\d+)"
            if coarse
            else [(r"^downsample_layers\.(\d+)", (0,)), (r"^stages\.(\d+)\.(\d+)", None)]
        )
        return {"stem": r"^downsample_layers\.0", "blocks": blocks}

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        """The layer of every parameter, by name, for layer-wise learning-rate decay, counted from the input.

        The official groups: the stem; stage 1; stage 2 with the downsampling before it; stage 3 in groups of three
        blocks, its downsampling with the first three; stage 4 with its downsampling; norms and classifier. These are
        14 layers at the sizes S to XL, 11 at T. (The official detection recipe counts T's last two as if it had 14.)

        Args:
            per_block: one layer per block instead, as in :meth:`group_matcher`.
        """
        if per_block:
            return dict(group_parameters(self, self.group_matcher(), reverse=True))
        fourth = 3 + -(-self.depths[2] // 3)
        first = {0: 0, 1: 2, 2: 3, 3: fourth}  # of a downsampling
        layers = {}
        for name, _ in self.named_parameters(remove_duplicate=False):
            part, *numbers = name.split(".")
            layer = fourth + 1
            if part == "downsample_layers":
                layer = first[int(numbers[0])]
            elif part == "stages":
                stage, block = int(numbers[0]), int(numbers[1])
                layer = 3 + block // 3 if stage == 2 else {0: 1, 1: 2, 3: fourth}[stage]
            layers[name] = layer
        return layers

    def layer_count(self, per_block: bool = False) -> int:
        """Number of layers before norms and classifier, see :meth:`parameter_layers`."""
        layers = self.parameter_layers(per_block)
        return 1 + max(layer for name, layer in layers.items() if not name.startswith(("norm", "head")))

    def get_classifier(self) -> nn.Module:
        """The linear classifier, or the identity."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0 classes for none); the final norm is kept if there is one.

        Raises:
            ValueError: a pooling other than ``"avg"``, or a network with ``feature_norms``.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"only average pooling is offered, not {global_pool!r}")
        if self.feature_norms and num_classes > 0:
            raise ValueError("a network with feature_norms has no classifier")
        self._build_classifier(num_classes)

    def _build_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        if num_classes == 0:
            self.norm, self.head = nn.Identity(), nn.Identity()
            return
        self._build_norm()
        head = self._like_others(nn.Linear(self.num_features, num_classes))
        _init_weights(head)
        with torch.no_grad():
            head.weight.mul_(self.head_init_scale)
        self.head = head

    def _build_norm(self) -> None:
        """Create the final norm unless it exists."""
        if not isinstance(getattr(self, "norm", None), nn.LayerNorm):
            self.norm = self._like_others(nn.LayerNorm(self.num_features, eps=1e-6))

    def _like_others(self, module: ModuleT) -> ModuleT:
        """Move ``module`` to the device, dtype and mode of the rest of the network."""
        return module.to(self.downsample_layers[0].get_parameter("0.weight")).train(self.training)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's pruning: remove the classifier, which features do not need; returns the selected indices."""
        if prune_head:
            self.reset_classifier(0)
        return feature_indices(indices)

    def load_pretrained(self, source: str | Path | Literal[True]) -> LoadReport:
        """Load a file, or published weights by name: see :func:`backbone.checkpoints.load_pretrained`."""
        return load_pretrained(self, source)

    def load_weights(self, state: Mapping[str, Any], label: str) -> LoadReport:
        """Load weights from memory: see :func:`backbone.checkpoints.load_weights`."""
        return load_weights(self, state, label)

    def train_form(self, layer_scale_init_value: float | None = 1e-6) -> UniRepLKNet:
        """A new network of the same shape in train form, on the CPU."""
        return type(self)(
            in_chans=self.in_chans,
            num_classes=self.num_classes,
            depths=self.depths,
            dims=self.dims,
            kernel_sizes=self.kernel_sizes,
            layer_scale_init_value=layer_scale_init_value,
            feature_norms=self.feature_norms,
            stem_stride=self.stem_stride,
            dilated_branches=self.dilated_branches,
            downsample_norm=self.downsample_norm,
        )

    # -- backbone interface (backbone.protocol) ------------------------------------------------------------

    first_conv = "downsample_layers.0.0"

    def fit_input(self, height: int, width: int) -> str | None:
        """No-op: any size is supported."""
        return None

    def make_pyramid(self) -> None:
        """No-op: the strides already increase."""

    def stem_parts(self) -> list[str]:
        """Names of the submodules before the first stage."""
        return ["downsample_layers.0"]

    def stage_parts(self) -> list[list[str]]:
        """Names of each stage's submodules: the downsampling before it (except for the first) and its blocks."""
        return [
            [f"downsample_layers.{stage}", f"stages.{stage}"] if stage else [f"stages.{stage}"]
            for stage in range(len(self.stages))
        ]

    def layer_outputs(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        """The outputs of the stem, every downsampling and every block, from input to output.

        Names: ``stem``; ``1.1`` for the first block of stage 1; ``down 2`` for the downsampling before stage 2.
        """
        found: dict[str, Tensor] = {}
        for number, (downsample, stage) in enumerate(
            zip(self.downsample_layers, self.stages, strict=True), start=1
        ):
            x_NCHW = self._downsample(downsample, x_NCHW)
            found["stem" if number == 1 else f"down {number}"] = x_NCHW
            for position, block in enumerate(cast(nn.Sequential, stage), start=1):
                x_NCHW = block(x_NCHW)
                found[f"{number}.{position}"] = x_NCHW
        return found

    def depthwise_convs(self) -> Iterator[tuple[int, int, nn.Conv2d]]:
        """Stage and block, counted from 1, and the depthwise convolution of every block that has one."""
        for number, stage in enumerate(self.stages, start=1):
            for position, block in enumerate(cast(nn.Sequential, stage), start=1):
                conv = block.dwconv
                if isinstance(conv, DilatedReparamBlock):
                    conv = conv.lk_origin
                if isinstance(conv, nn.Conv2d):
                    yield number, position, conv

    def receptive_fields(self) -> list[int]:
        """Theoretical receptive field of each stage's features in deploy form: side in map pixels.

        Only convolutions count; squeeze-and-excitation and global response normalisation, which depend on the whole
        map, are ignored.
        """
        fields, field, jump = [], 1, 1
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            for module in [*downsample.modules(), *stage.modules()]:
                if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                    field += (module.kernel_size[0] - 1) * module.dilation[0] * jump
                    jump *= module.stride[0]
            fields.append(field)
        return fields


def feature_indices(indices: int | Sequence[int] | None, count: int = 4) -> list[int]:
    """Normalise timm's feature indices to a list counted from 0: an integer n means the last n, None all."""
    if indices is None:
        return list(range(count))
    chosen = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not chosen or any(not -count <= i < count for i in chosen):
        raise ValueError(f"feature indices go from 0 to {count - 1} (or {-count} to -1), not {indices}")
    return [i % count for i in chosen]


def _init_weights(module: nn.Module, fan_in: bool = False) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5 if fan_in else 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
