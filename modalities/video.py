"""Video: a clip becomes one map with all frames tiled in reading order, or one map per frame.

Shapes: B batch, T frames, C channels, H and W of one frame, R rows and Q columns of the grid of frames.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as fn

from modalities.embedder import Embedder, MapAxes
from modalities.tensor_info import TensorInfo

LAYOUTS = ("grid", "frames", "rows")
CHANNELS = {"rgb": 3, "difference": 3, "rgb_difference": 6}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Clip(Embedder):
    """Clips ``(B, T, 3, H, W)``, uint8 or float in 0..255, -> maps, normalised per channel.

    ``grid`` tiles the T frames in reading order into one map ``(B, 1, C, R·H, Q·W)``: frame t lies in row
    t // Q and column t % Q, whole and undistorted (UniRepLKNet, arXiv 2410.08049, on video: 16 frames of 224²
    -> 896²). ``rows`` fills the same map with the rows of all frames in sequence, Q frame rows per
    map row, as the official script's ``reshape`` does: a frame becomes a flat strip. ``frames`` makes
    every frame its own map, ``(B, T, C, H, W)``; a head that must see their order needs
    ``task.head.fusion=temporal``.

    Args:
        frames: T.
        size: nominal side of a frame in pixels, for tracing; ``forward`` accepts any H and W.
        layout: ``grid``, ``rows`` or ``frames``.
        columns: Q; ``None`` takes the squarest grid (16 -> 4×4, 8 -> 2×4).
        channels: ``rgb`` (C = 3); ``difference``, each frame minus the previous one, 0 for the first
            (C = 3); ``rgb_difference``, both (C = 6).
        mean, std: of red, green and blue on a scale of 0 to 1; ``None`` for both measures them on the
            training split. Differences are divided by ``std`` too.

    Raises:
        ValueError: invalid map settings.

    Example:
        >>> Clip(frames=16)(torch.zeros(2, 16, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 1, 3, 128, 128])
    """

    raw_ndim = 5
    draws_raw = True

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(
        self,
        frames: int = 16,
        size: int = 224,
        layout: str = "grid",
        columns: int | None = None,
        channels: str = "rgb",
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if frames < 1 or size < 1:
            raise ValueError(
                f"a clip needs at least one frame and one pixel, not frames={frames}, size={size}"
            )
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
        if channels not in CHANNELS:
            raise ValueError(f"channels must be one of {', '.join(CHANNELS)}, not {channels!r}")
        if (mean is None) != (std is None):
            raise ValueError(
                "give both mean and std, or neither (then they are measured on the training split)"
            )
        if (mean is not None and len(mean) != 3) or (std is not None and (len(std) != 3 or min(std) <= 0)):
            raise ValueError("mean and std need three numbers each (red, green, blue), std above 0")
        columns = _squarest(frames) if columns is None else columns
        if columns < 1 or frames % columns:
            raise ValueError(f"{frames} frames do not fill rows of {columns}: take a divisor as columns")
        self.frames = frames
        self.size = size
        self.layout = layout
        self.columns = columns
        self.channels = channels
        self.out_chans = CHANNELS[channels]
        self.register_buffer("mean", torch.tensor(list(mean or (0.0,) * 3)))
        self.register_buffer("std", torch.tensor(list(std or (1.0,) * 3)))
        self.register_buffer("fitted", torch.tensor(mean is not None))

    def forward(self, raw: Tensor) -> Tensor:
        x_BTCHW = (raw.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]
        if self.channels != "rgb":
            change_BTCHW = fn.pad(x_BTCHW[:, 1:] - x_BTCHW[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
            if self.channels == "difference":
                x_BTCHW = change_BTCHW
            else:
                x_BTCHW = torch.cat([x_BTCHW, change_BTCHW], dim=2)
        if self.layout == "frames":
            return x_BTCHW
        return (tile if self.layout == "grid" else in_rows)(x_BTCHW, self.columns)[:, None]

    @property
    def needs_statistics(self) -> bool:
        return not bool(self.fitted)

    @torch.no_grad()
    def fit_statistics(self, raws: Iterable[Tensor]) -> None:
        """Measure mean and std of each colour over ``(..., 3, H, W)`` batches."""
        count, total, squares = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for raw in raws:
            x_3N = raw.cpu().movedim(-3, 0).flatten(1).double() / 255
            count += x_3N.shape[1]
            total += x_3N.sum(1)
            squares += x_3N.square().sum(1)
        if count == 0:
            raise ValueError("no training clips to measure mean and std on")
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp(min=1e-6).sqrt())
        self.fitted.fill_(True)

    def example_raw(self, batch_size: int = 1) -> Tensor:
        shape = (batch_size, self.frames, 3, self.size, self.size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=self.mean.device)

    def raw_info(self) -> dict[str, TensorInfo]:
        return {
            "frames": TensorInfo(
                "the frames of a clip in order of time, RGB, uint8 from 0 to 255; they are normalised inside the model",
                ("batch", "frame", "channel", "row", "column"),
                {"channels": ["red", "green", "blue"], "range": [0, 255]},
            )
        }

    def draw_raw(self, panel: Any, raw: Tensor) -> None:
        middle = raw[raw.shape[0] // 2].float().clamp(0, 255).byte()
        panel.imshow(middle.permute(1, 2, 0).numpy(), interpolation="nearest")
        panel.set_xlabel("middle frame, x (pixels)")
        panel.set_ylabel("y (pixels)")
        panel.tick_params(labelsize=8)

    def map_axes(self) -> MapAxes:
        return self.view_axes()[0]

    def view_axes(self) -> tuple[MapAxes, ...]:
        colours = MapAxes(
            x="x (pixels)", y="y (pixels)", value="normalised colour", title="one frame", channel=(0, 1, 2)
        )
        if self.layout == "frames":
            return tuple(replace(colours, title=f"frame {number}") for number in range(1, self.frames + 1))
        if self.layout == "rows":
            high = self.size / self.columns
            first = MapAxes(
                x=f"x (pixels, every {self.columns}th row of a frame beside the next)",
                y="frames, in order of time",
                y_ticks=tuple((high * (frame + 0.5), str(frame + 1)) for frame in range(self.frames)),
                value=colours.value,
                title="change from frame to frame" if self.channels == "difference" else "frames, in strips",
                channel=(0, 1, 2),
            )
            if self.channels != "rgb_difference":
                return (first,)
            return first, replace(first, channel=(3, 4, 5), title="change from frame to frame")
        rows = self.frames // self.columns
        colours = replace(
            colours,
            x=f"x (pixels, {self.size} a frame)",
            y="frames, in reading order",
            y_ticks=tuple(
                (self.size * (row + 0.5), f"{row * self.columns + 1}–{(row + 1) * self.columns}")
                for row in range(rows)
            ),
            title="change from frame to frame" if self.channels == "difference" else "frames",
        )
        if self.channels != "rgb_difference":
            return (colours,)
        return colours, replace(colours, channel=(3, 4, 5), title="change from frame to frame")


def tile(x_BTCHW: Tensor, columns: int) -> Tensor:
    """Tile T frames in reading order, ``columns`` per row: (B, T, C, H, W) -> (B, C, R·H, Q·W)."""
    x_BRQCHW = x_BTCHW.unflatten(1, (-1, columns))
    return x_BRQCHW.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def in_rows(x_BTCHW: Tensor, columns: int) -> Tensor:
    """Concatenate the rows of all frames, ``columns`` per map row: (B, T, C, H, W) -> (B, C, R·H, Q·W)."""
    rows = x_BTCHW.shape[1] // columns
    return x_BTCHW.transpose(1, 2).flatten(2).unflatten(2, (rows * x_BTCHW.shape[3], -1))


def _squarest(frames: int) -> int:
    """Number of columns of the squarest grid that is not taller than wide."""
    return next(frames // rows for rows in range(int(frames**0.5), 0, -1) if frames % rows == 0)
