"""A small backbone: four stages of convolutions, each at half the size of the one before.

It has what the workbench asks of any backbone; none of it is inherited.

Shapes: N maps, C channels, H height and W width in map pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backbone import CheckpointError, LoadReport
from backbone.fitting import take_weights


class EegNet(nn.Module):
    """Maps (N, in_chans, H, W) -> four feature maps at strides 2, 4, 8, 16.

    Args:
        in_chans: C of the maps.
        dims: channels of each stage.
        num_classes: must be 0: the task's head answers.
    """

    first_conv = "downsample_layers.0.0"

    def __init__(self, in_chans: int, dims: Sequence[int] = (16, 32, 48, 64), num_classes: int = 0) -> None:
        super().__init__()
        if num_classes:
            raise ValueError("EegNet has no classifier: the task's head answers")
        self.in_chans, self.num_features = in_chans, dims[-1]
        before = (in_chans, *dims)
        self.downsample_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before[i], dims[i], 3, stride=2, padding=1), nn.BatchNorm2d(dims[i]))
            for i in range(len(dims))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.Conv2d(dim, dim, 1), nn.GELU())
            for dim in dims
        )
        self.feature_info = [
            {"num_chs": dim, "reduction": 2 ** (stage + 1), "module": f"stages.{stage}"}
            for stage, dim in enumerate(dims)
        ]

    def forward_features(self, x_NCHW: Tensor) -> list[Tensor]:
        return list(self.layer_outputs(x_NCHW).values())

    def layer_outputs(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for number, (down, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x_NCHW = down(x_NCHW)
            x_NCHW = x_NCHW + stage(x_NCHW)
            outputs[f"stages.{number}"] = x_NCHW
        return outputs

    def reparameterize(self) -> "EegNet":
        return self  # nothing is parallel in training only

    def fit_input(self, height: int, width: int) -> str | None:
        return None  # any size is read as it is

    def make_pyramid(self) -> None:
        """Strides rise already."""

    # -- parts: what is frozen, and how learning rates decay -------------------------------------------------------

    def stem_parts(self) -> list[str]:
        return ["downsample_layers.0"]

    def stage_parts(self) -> list[list[str]]:
        return [
            ["stages.0"],
            *([f"downsample_layers.{i}", f"stages.{i}"] for i in range(1, len(self.stages))),
        ]

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        return {name: int(name.split(".")[1]) for name, _ in self.named_parameters()}

    def layer_count(self, per_block: bool = False) -> int:
        return len(self.stages)

    def depthwise_convs(self) -> Iterator[tuple[int, int, nn.Conv2d]]:
        for number, stage in enumerate(self.stages, start=1):
            first = stage.get_submodule("0")
            assert isinstance(first, nn.Conv2d)
            yield number, 1, first

    def receptive_fields(self) -> list[int]:
        fields, field, jump = [], 1, 1
        for _ in self.stages:
            field += 2 * jump
            jump *= 2
            field += 6 * jump
            fields.append(field)
        return fields

    # -- weights ---------------------------------------------------------------------------------------------------

    def load_pretrained(self, source: str | Path | bool) -> LoadReport:
        raise CheckpointError(f"backbone.pretrained={source}: no weights of EegNet have been published")

    def load_weights(self, state: Mapping[str, Any], label: str) -> LoadReport:
        return take_weights(self, state, label, "EegNet", [self.first_conv])
