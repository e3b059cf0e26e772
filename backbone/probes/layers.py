"""Where a probe taps a network: the four stages, or every block, without hooks.

Shapes: N maps, C channels, H height, W width.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from backbone.unireplknet import UniRepLKNet

Features = Callable[[Tensor], Tensor]


def stage_features(backbone: nn.Module, stage: int) -> Features:
    """A function from maps ``(N, C, H, W)`` to the features of stage 1 to 4.

    Works for :class:`UniRepLKNet` and for timm's networks built with ``features_only=True``.

    Raises:
        ValueError: there is no such stage.
    """
    stages = len(cast(Any, backbone).feature_info)
    if not 1 <= stage <= stages:
        raise ValueError(f"stage goes from 1 to {stages}, not {stage}")

    def features(x_NCHW: Tensor) -> Tensor:
        run = backbone.forward_features if isinstance(backbone, UniRepLKNet) else backbone
        found: list[Tensor] = run(x_NCHW)
        return found[stage - 1]

    return features


def strides(backbone: nn.Module) -> list[int]:
    """Map pixels a step of each stage's features."""
    info: Any = backbone.feature_info
    entries = info if isinstance(info, list) else [info[index] for index in range(len(info))]
    return [int(entry["reduction"]) for entry in entries]


def centre_offset(backbone: nn.Module, stride: int) -> float:
    """How many map pixels beyond ``stride`` times its place a feature looks at, right and down.

    0 for strided layers that are padded evenly (UniRepLKNet, ResNets); half a patch for networks that cut the map
    into patches (ConvNeXt). Exact where the strided layers follow one another.
    """
    offset, jump = 0.0, 1
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and jump < stride:
            size, step, padding = (
                _first(value) for value in (module.kernel_size, module.stride, module.padding)
            )
            if step > 1:
                # Beside such a layer a ResNet has its shortcut, 1 × 1 with the same stride: it shifts nothing, and
                # after evenly padded layers neither does a jump that is counted twice.
                offset += jump * ((size - 1) / 2 - padding) if size > 1 else 0.0
                jump *= step
    return offset


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def deepest_first_match(backbone: nn.Module, stride: int) -> int:
    """The first stage, counted from 1, whose features lie at ``stride`` or coarser; the last if none does.

    timm's ResNets count their stem as a stage, ConvNeXts do not: networks are compared by stride.
    """
    found = strides(backbone)
    return next((stage for stage, own in enumerate(found, start=1) if own >= stride), len(found))


def block_features(backbone: nn.Module, x_NCHW: Tensor) -> dict[str, Tensor]:
    """The output of the stem, of every downsampling and of every block, from input to output.

    Names: ``stem``; ``1.1`` is the first block of stage 1; ``down 2`` the downsampling before stage 2. Of a
    network that is no :class:`UniRepLKNet` the features of its stages: ``stage 1``, …
    """
    if not isinstance(backbone, UniRepLKNet):
        return {f"stage {position}": value for position, value in enumerate(backbone(x_NCHW), start=1)}
    found: dict[str, Tensor] = {}
    for number, (downsample, stage) in enumerate(
        zip(backbone.downsample_layers, backbone.stages, strict=True), start=1
    ):
        x_NCHW = downsample(x_NCHW)
        found["stem" if number == 1 else f"down {number}"] = x_NCHW
        for position, block in enumerate(cast(nn.Sequential, stage), start=1):
            x_NCHW = block(x_NCHW)
            found[f"{number}.{position}"] = x_NCHW
    return found
