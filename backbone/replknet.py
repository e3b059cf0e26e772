"""RepLKNet: a ConvNet with kernels of up to 31 × 31, the predecessor of UniRepLKNet.

Paper: Ding, Zhang, Han, Ding, "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", arXiv
2203.06717. Modules and parameters have the names of the official release (DingXiaoH/RepLKNet-pytorch), so that its
checkpoints load; the classifier is omitted, since tasks have their own head.

Shapes: N batch, C channels, H height, W width (pixels of the current map), K kernel size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbone.batch_norm import keep_statistics
from backbone.checkpoints import CheckpointError, LoadReport, read_safely, weights_in
from backbone.fitting import take_weights
from backbone.kernels import DepthwiseConv2d
from backbone.reparam import merged_conv, set_conv

PREFIXES = ("", "module.", "backbone.", "network.backbone.")


def conv_bn(
    in_chans: int, out_chans: int, kernel_size: int, stride: int = 1, groups: int = 1, act: bool = False
) -> nn.Sequential:
    """Convolution without bias, batch norm and optional ReLU: ``conv``, ``bn``, ``nonlinear``."""
    conv: nn.Conv2d
    if groups == in_chans == out_chans and stride == 1 and kernel_size > 1:
        conv = DepthwiseConv2d(in_chans, kernel_size, bias=False)
    else:
        conv = nn.Conv2d(
            in_chans, out_chans, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
        )
    layers = nn.Sequential()
    layers.add_module("conv", conv)
    layers.add_module("bn", nn.BatchNorm2d(out_chans))
    if act:
        layers.add_module("nonlinear", nn.ReLU())
    return layers


def _merged(branch: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias, float64, of a convolution merged with its batch norm."""
    return merged_conv(branch.get_submodule("conv"), branch.get_submodule("bn"))


class ReparamLargeKernelConv(nn.Module):
    """A K × K depthwise convolution trained in parallel with a small one, each with a batch norm; can be merged.

    Shape: ``(N, C, H, W) -> (N, C, H, W)``.

    Args:
        channels: C.
        kernel_size: K, odd.
        small_kernel: size of the small kernel, odd and at most K; None for no small kernel.
    """

    def __init__(self, channels: int, kernel_size: int, small_kernel: int | None) -> None:
        super().__init__()
        self.lkb_origin: nn.Sequential | None = conv_bn(channels, channels, kernel_size, groups=channels)
        self.small_conv: nn.Sequential | None = (
            None if small_kernel is None else conv_bn(channels, channels, small_kernel, groups=channels)
        )
        self.lkb_reparam: DepthwiseConv2d | None = None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.lkb_reparam is not None:
            return cast(Tensor, self.lkb_reparam(x_NCHW))
        assert self.lkb_origin is not None
        y_NCHW: Tensor = self.lkb_origin(x_NCHW)
        return y_NCHW if self.small_conv is None else y_NCHW + self.small_conv(x_NCHW)

    @property
    def conv(self) -> DepthwiseConv2d:
        """The large convolution, in either form."""
        return self.lkb_reparam or cast(DepthwiseConv2d, cast(nn.Sequential, self.lkb_origin).conv)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Merge in place. Idempotent."""
        if self.lkb_origin is None:
            return
        weight_C1KK, bias_C = _merged(self.lkb_origin)
        if self.small_conv is not None:
            small_C1kk, small_bias_C = _merged(self.small_conv)
            margin = (weight_C1KK.shape[-1] - small_C1kk.shape[-1]) // 2
            weight_C1KK = weight_C1KK + nn.functional.pad(small_C1kk, [margin] * 4)
            bias_C = bias_C + small_bias_C
        old = self.conv
        merged = DepthwiseConv2d(old.in_channels, old.kernel_size[0]).to(old.weight)
        merged.requires_grad_(old.weight.requires_grad)
        set_conv(merged, weight_C1KK, bias_C)
        self.lkb_reparam = merged.train(self.training)
        self.lkb_origin = self.small_conv = None


class RepLKBlock(nn.Module):
    """BN -> 1 × 1 -> ReLU -> large kernel -> ReLU -> 1 × 1, added to the input."""

    def __init__(self, channels: int, kernel_size: int, small_kernel: int | None, drop_path: float) -> None:
        super().__init__()
        self.pw1 = conv_bn(channels, channels, 1, act=True)
        self.pw2 = conv_bn(channels, channels, 1)
        self.large_kernel = ReparamLargeKernelConv(channels, kernel_size, small_kernel)
        self.lk_nonlinear = nn.ReLU()
        self.prelkb_bn = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.large_kernel(self.pw1(self.prelkb_bn(x_NCHW)))
        return x_NCHW + cast(Tensor, self.drop_path(self.pw2(self.lk_nonlinear(y_NCHW))))


class ConvFFN(nn.Module):
    """BN -> 1 × 1 to four times the width -> GELU -> 1 × 1, added to the input."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.preffn_bn = nn.BatchNorm2d(channels)
        self.pw1 = conv_bn(channels, 4 * channels, 1)
        self.pw2 = conv_bn(4 * channels, channels, 1)
        self.nonlinear = nn.GELU()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x_NCHW))))
        return x_NCHW + cast(Tensor, self.drop_path(y_NCHW))


class RepLKNetStage(nn.Module):
    """Alternating large-kernel and feed-forward blocks, ``blocks``."""

    def __init__(
        self, channels: int, kernel_size: int, small_kernel: int | None, drop_paths: Sequence[float]
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList()
        for rate in drop_paths:
            self.blocks.append(RepLKBlock(channels, kernel_size, small_kernel, rate))
            self.blocks.append(ConvFFN(channels, rate))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        for block in self.blocks:
            x_NCHW = self._checkpointed(block, x_NCHW) if self.grad_checkpointing else block(x_NCHW)
        return x_NCHW

    def _checkpointed(self, block: nn.Module, x_NCHW: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return cast(Tensor, block(x_NCHW))
        if torch.compiler.is_compiling():
            return cast(Tensor, checkpoint(block, x_NCHW, use_reentrant=False))
        contexts = lambda: (contextlib.nullcontext(), keep_statistics(block))  # noqa: E731
        return cast(Tensor, checkpoint(block, x_NCHW, use_reentrant=False, context_fn=contexts))


class RepLKNet(nn.Module):
    """RepLKNet backbone: a stem and four stages, each at half the resolution of the previous one.

    Shapes: ``(N, in_chans, H, W)`` of any size -> four features of ``dims[i]`` channels at strides 4, 8, 16, 32 (sides
    rounded up).

    Args:
        in_chans: channels of the input map.
        depths: pairs of blocks in each of the four stages.
        dims: channels of each stage.
        kernel_sizes: K of each stage, odd.
        small_kernel: size of the parallel small kernel, odd; None to train the large ones alone.
        drop_path_rate: stochastic depth rate of the last block, in [0, 1); increases linearly from 0 at the first.
        grad_checkpointing: recompute blocks in the backward pass to save memory.

    Raises:
        ValueError: an argument out of range.

    >>> net = RepLKNet(1, (1, 1, 1, 1), (8, 8, 16, 16), (31, 29, 27, 13)).eval()
    >>> [tuple(f.shape) for f in net.forward_features(torch.zeros(2, 1, 64, 40))]
    [(2, 8, 16, 10), (2, 8, 8, 5), (2, 16, 4, 3), (2, 16, 2, 2)]
    """

    first_conv = "stem.0.conv"

    def __init__(
        self,
        in_chans: int = 3,
        depths: Sequence[int] = (2, 2, 18, 2),
        dims: Sequence[int] = (128, 256, 512, 1024),
        kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        small_kernel: int | None = 5,
        drop_path_rate: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not len(depths) == len(dims) == len(kernel_sizes) == 4 or min(*depths, *dims) < 1:
            raise ValueError("depths, dims and kernel_sizes take four positive integers each, one a stage")
        if any(k % 2 == 0 or k < 1 for k in (*kernel_sizes, small_kernel or 1)):
            raise ValueError(f"kernels are odd, not {tuple(kernel_sizes)} with {small_kernel}")
        if small_kernel is not None and small_kernel > min(kernel_sizes):
            raise ValueError(f"small_kernel must be at most {min(kernel_sizes)}, not {small_kernel}")
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate must lie in [0, 1), not {drop_path_rate}")
        self.in_chans = in_chans
        self.num_features = dims[-1]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        width = dims[0]
        self.stem = nn.ModuleList(
            [
                conv_bn(in_chans, width, 3, stride=2, act=True),
                conv_bn(width, width, 3, groups=width, act=True),
                conv_bn(width, width, 1, act=True),
                conv_bn(width, width, 3, stride=2, groups=width, act=True),
            ]
        )
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.stages, self.transitions = nn.ModuleList(), nn.ModuleList()
        for i, (depth, dim, kernel) in enumerate(zip(depths, dims, kernel_sizes, strict=True)):
            done = sum(depths[:i])
            self.stages.append(RepLKNetStage(dim, kernel, small_kernel, rates[done : done + depth]))
            if i < 3:
                self.transitions.append(
                    nn.Sequential(
                        conv_bn(dim, dims[i + 1], 1, act=True),
                        conv_bn(dims[i + 1], dims[i + 1], 3, stride=2, groups=dims[i + 1], act=True),
                    )
                )
        for stage in self._stages():
            stage.grad_checkpointing = grad_checkpointing

    def _stages(self) -> list[RepLKNetStage]:
        return [cast(RepLKNetStage, stage) for stage in self.stages]

    def forward_features(self, x_NCHW: Tensor) -> list[Tensor]:
        """The four feature maps."""
        features = []
        for layer in self.stem:
            x_NCHW = layer(x_NCHW)
        for number, stage in enumerate(self.stages):
            x_NCHW = stage(x_NCHW if number == 0 else self.transitions[number - 1](x_NCHW))
            features.append(x_NCHW)
        return features

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The pooled last feature map, ``(N, num_features)``."""
        return self.forward_features(x_NCHW)[-1].mean(dim=(2, 3))

    def fit_input(self, height: int, width: int) -> str | None:
        """No-op: any size is supported."""
        return None

    def make_pyramid(self) -> None:
        """No-op: the strides already increase."""

    # -- parts ---------------------------------------------------------------------------------------------

    def stem_parts(self) -> list[str]:
        """Names of the submodules before the first stage."""
        return ["stem"]

    def stage_parts(self) -> list[list[str]]:
        """Names of each stage's submodules, including the transition before it."""
        return [[f"transitions.{i - 1}", f"stages.{i}"] if i else ["stages.0"] for i in range(4)]

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        """The layer of every parameter, counted from the input: the stem, then every pair of blocks.

        The official release has no layer-wise decay, so ``per_block`` has no effect.
        """
        pairs = [len(stage.blocks) // 2 for stage in self._stages()]
        first = [1 + sum(pairs[:i]) for i in range(4)]
        layers = {}
        for name, _ in self.named_parameters(remove_duplicate=False):
            part, *rest = name.split(".")
            if part == "stem":
                layers[name] = 0
            elif part == "transitions":
                layers[name] = first[int(rest[0]) + 1]
            else:
                layers[name] = first[int(rest[0])] + int(rest[2]) // 2
        return layers

    def layer_count(self, per_block: bool = False) -> int:
        """Number of layers before the head."""
        return 1 + sum(len(stage.blocks) // 2 for stage in self._stages())

    # -- weights -------------------------------------------------------------------------------------------

    def load_pretrained(self, source: str | Path | Literal[True]) -> LoadReport:
        """Load a file of the official release (whose weights are not on a hub) or of this project."""
        path = Path("" if source is True else source).expanduser()
        if not path.is_file():
            raise CheckpointError(
                f"there is no checkpoint file {source!r}: RepLKNet's weights are on no hub, so download them from the "
                "official release, DingXiaoH/RepLKNet-pytorch, and give the path of the file"
            )
        state = weights_in(read_safely(path), path)
        wanted = f"{self.first_conv}.weight"
        prefix = next((prefix for prefix in PREFIXES if prefix + wanted in state), None)
        if prefix is None:
            raise CheckpointError(f"{path.name} holds no RepLKNet weights (there is no {wanted})")
        inside = {
            name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
        }
        return self.load_weights(inside, path.name)

    def load_weights(self, state: Mapping[str, Any], label: str) -> LoadReport:
        """Load weights with the official names; the classifier and its norm are skipped."""
        return take_weights(self, state, label, "this RepLKNet", [self.first_conv])

    def reparameterize(self) -> RepLKNet:
        """Merge every large kernel with its small one and their batch norms, in place. Idempotent."""
        for _, _, block in self._large_blocks():
            block.large_kernel.reparameterize()
        return self

    # -- for probes ----------------------------------------------------------------------------------------

    def _large_blocks(self) -> Iterator[tuple[int, int, RepLKBlock]]:
        for number, stage in enumerate(self._stages(), start=1):
            for position, block in enumerate(stage.blocks[::2], start=1):
                yield number, position, cast(RepLKBlock, block)

    def layer_outputs(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        """The outputs of the stem, every transition and every pair of blocks, named as for UniRepLKNet."""
        for layer in self.stem:
            x_NCHW = layer(x_NCHW)
        found = {"stem": x_NCHW}
        for number, stage in enumerate(self._stages(), start=1):
            if number > 1:
                x_NCHW = found[f"down {number}"] = self.transitions[number - 2](x_NCHW)
            for position, block in enumerate(stage.blocks):
                x_NCHW = block(x_NCHW)
                if position % 2:
                    found[f"{number}.{position // 2 + 1}"] = x_NCHW
        return found

    def depthwise_convs(self) -> Iterator[tuple[int, int, nn.Conv2d]]:
        """The large convolution of every block."""
        for number, position, block in self._large_blocks():
            yield number, position, block.large_kernel.conv

    def receptive_fields(self) -> list[int]:
        """Theoretical receptive field of each stage's features in deploy form: side in map pixels."""
        fields, field, jump = [], 1, 1
        parts = [[*self.stem, self.stages[0]]]
        parts += [[*cast(nn.Sequential, self.transitions[i - 1]), self.stages[i]] for i in (1, 2, 3)]
        for stage in parts:
            for module in (inner for part in stage for inner in part.modules()):
                # The small kernel of the train form lies inside the large one.
                if isinstance(module, ReparamLargeKernelConv):
                    field += (module.conv.kernel_size[0] - 1) * jump
                elif isinstance(module, nn.Conv2d) and not isinstance(module, DepthwiseConv2d):
                    field += (module.kernel_size[0] - 1) * jump
                    jump *= module.stride[0]
                elif isinstance(module, DepthwiseConv2d) and module is self.stem[1].get_submodule("conv"):
                    field += (module.kernel_size[0] - 1) * jump
            fields.append(field)
        return fields
