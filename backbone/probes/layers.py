"""Where a probe taps a network: its stages, or every block, without hooks.

Shapes: N maps, C channels, H height, W width.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from backbone.protocol import Backbone

Features = Callable[[Tensor], Tensor]


def stage_features(backbone: Backbone | nn.Module, stage: int) -> Features:
    """A function from maps ``(N, C, H, W)`` to the features of a stage, counted from 1.

    Works for every :class:`~backbone.protocol.Backbone` and for timm's networks built with ``features_only=True``.

    Raises:
        ValueError: there is no such stage.
    """
    stages = len(cast(Any, backbone).feature_info)
    if not 1 <= stage <= stages:
        raise ValueError(f"stage goes from 1 to {stages}, not {stage}")

    run: Callable[[Tensor], list[Tensor]] = getattr(backbone, "forward_features", cast(Any, backbone))

    def features(x_NCHW: Tensor) -> Tensor:
        found: list[Tensor] = run(x_NCHW)
        return found[stage - 1]

    return features


def strides(backbone: Backbone | nn.Module) -> list[int]:
    """Map pixels a step of each stage's features."""
    info: Any = backbone.feature_info
    entries = info if isinstance(info, list) else [info[index] for index in range(len(info))]
    return [int(entry["reduction"]) for entry in entries]


def centre_offset(backbone: Backbone | nn.Module, stride: int) -> float:
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


def deepest_first_match(backbone: Backbone | nn.Module, stride: int) -> int:
    """The first stage, counted from 1, whose features lie at ``stride`` or coarser; the last if none does.

    timm's ResNets count their stem as a stage, ConvNeXts do not: networks are compared by stride.
    """
    found = strides(backbone)
    return next((stage for stage, own in enumerate(found, start=1) if own >= stride), len(found))


def block_features(backbone: Backbone, x_NCHW: Tensor) -> dict[str, Tensor]:
    """The outputs of a network's layers by name, from input to output; of UniRepLKNet those of every block."""
    return backbone.layer_outputs(x_NCHW)
