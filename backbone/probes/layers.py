"""Access to the features of a network's stages or blocks, without hooks.

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
    """Stride of each stage's features, in map pixels."""
    info: Any = backbone.feature_info
    entries = info if isinstance(info, list) else [info[index] for index in range(len(info))]
    return [int(entry["reduction"]) for entry in entries]


def centre_offset(backbone: Backbone | nn.Module, stride: int) -> float:
    """Offset in map pixels of a feature's centre from ``stride`` times its index, right and down.

    0 for symmetrically padded strided layers (UniRepLKNet, ResNets); half a patch for patchifying
    networks (ConvNeXt). Exact if the strided layers are sequential.
    """
    offset, jump = 0.0, 1
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and jump < stride:
            size, step, padding = (
                _first(value) for value in (module.kernel_size, module.stride, module.padding)
            )
            if step > 1:
                # ResNets have a parallel 1 × 1 shortcut of the same stride, which adds no offset; counting its
                # stride twice is harmless after symmetrically padded layers.
                offset += jump * ((size - 1) / 2 - padding) if size > 1 else 0.0
                jump *= step
    return offset


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def deepest_first_match(backbone: Backbone | nn.Module, stride: int) -> int:
    """The first stage, counted from 1, with at least this ``stride``; the last stage if there is none.

    timm's ResNets count their stem as a stage, ConvNeXts do not, so networks are compared by stride.
    """
    found = strides(backbone)
    return next((stage for stage, own in enumerate(found, start=1) if own >= stride), len(found))


def block_features(backbone: Backbone, x_NCHW: Tensor) -> dict[str, Tensor]:
    """The outputs of a network's layers by name, from input to output; for UniRepLKNet, of every block."""
    return backbone.layer_outputs(x_NCHW)
