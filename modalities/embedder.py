"""Shared by all modalities: the embedder interface and the axis labels for plotting its maps."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modalities.tensor_info import TensorInfo


@dataclass(frozen=True)
class MapAxes:
    """How to draw a map: axis labels with units and, where known, the values at the map's edges.

    Args:
        x: label of the horizontal axis (the map's W), e.g. ``"time (s)"``.
        y: label of the vertical axis (the map's H), e.g. ``"mel frequency (Hz)"``.
        x_range: values at the left and right edge; ``None`` for pixel indices.
        y_ticks: ``(row, label)`` pairs for nonlinear axes; empty for pixel indices.
        value: label of the colour scale, e.g. ``"log energy (normalised)"``.
        origin: ``"lower"`` puts row 0 at the bottom, ``"upper"`` at the top (images).
        channel: the channel to draw, or three to draw as RGB; ``None`` draws three-channel maps as RGB and
            averages the channels of any other map.
        title: title of this view, for samples with several maps.
        square: whether pixels are drawn square (images); otherwise a map fills its panel.
    """

    x: str
    y: str
    x_range: tuple[float, float] | None = None
    y_ticks: tuple[tuple[float, str], ...] = ()
    value: str = ""
    origin: str = "upper"
    channel: int | tuple[int, int, int] | None = None
    title: str = ""
    square: bool = False


class Embedder(nn.Module):
    """Turns a raw batch into 2-D maps: ``forward(raw) -> (B, V, C, H, W)``.

    A subclass sets ``out_chans`` (C) and ``raw_ndim`` (dimensions of a raw batch, B included), and implements
    ``forward``, ``example_raw`` and ``map_axes``. Everything in ``forward`` is batched torch code, so that it
    runs on the batch's device and inside an exported model. Normalisation statistics are buffers.
    """

    out_chans: int
    raw_ndim: int
    draws_raw: bool = False  # whether draw_raw can show a sample beside its maps
    raw_projection: str | None = None  # Matplotlib projection of draw_raw's panel; "3d" for point clouds

    @classmethod
    def data_arguments(cls, data_info: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments taken from the data (a data module's `data_info`) instead of the configuration."""
        return {}

    def forward(self, raw: Any) -> Tensor:
        """Embed a raw batch as maps of shape (B, V, C, H, W)."""
        raise NotImplementedError

    def context(self, raw: Any) -> dict[str, Tensor] | None:
        """Information about the raw batch that the head needs beside the maps, e.g. a scale to undo; `None` if none."""
        return None

    def unpadded(self, raw: Any) -> list[Tensor] | None:
        """The samples of a batch of several sizes, as views without their padding; `None` for a batch of one size.

        Samples of one size, stacked, are a raw batch again.
        """
        return None

    def example_raw(self, batch_size: int = 1) -> Any:
        """A random raw batch of nominal shape, for tracing, export and MAC counting."""
        raise NotImplementedError

    def raw_info(self) -> dict[str, TensorInfo]:
        """Describes the tensors of ``example_raw`` by name: the keys of a dictionary, or a single name for a tensor.
        Exported models name their inputs so; empty: not described."""
        return {}

    def map_axes(self) -> MapAxes:
        """Axis labels for plots of this embedder's maps."""
        raise NotImplementedError

    def view_axes(self) -> tuple[MapAxes, ...]:
        """Axis labels of each of a sample's V maps; a single entry applies to all."""
        return (self.map_axes(),)

    def draw_raw(self, panel: Any, raw: Any) -> None:
        """Draw one raw sample (no batch dimension, on the CPU) on a Matplotlib panel; only if ``draws_raw``."""
        raise NotImplementedError(f"{type(self).__name__} does not draw raw samples")

    @property
    def needs_statistics(self) -> bool:
        """Whether ``fit_statistics`` must see training data before the first forward."""
        return False

    def fit_statistics(self, raws: Iterable[Any]) -> None:
        """Set the normalisation buffers from raw training batches; only called if ``needs_statistics``."""
        raise NotImplementedError(f"{type(self).__name__} has no statistics to fit")


def by_size(samples: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Stacks samples of the same shape: yields their positions and the stack, in the order of first occurrence."""
    places: dict[torch.Size, list[int]] = {}
    for position, sample in enumerate(samples):
        places.setdefault(sample.shape, []).append(position)
    for positions in places.values():
        yield positions, torch.stack([samples[position] for position in positions])


def in_order(parts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Puts what was computed of the stacks of `by_size` back into the order of the samples, as one tensor."""
    order = torch.tensor([position for positions, _ in parts for position in positions]).argsort()
    return torch.cat([part for _, part in parts])[order]


class Normalize(nn.Module):
    """``(x - mean) / std`` with scalar statistics kept as buffers.

    Args:
        mean, std: fixed statistics, or ``None`` for both, in which case ``fit`` must be called with training maps.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, mean: float | None, std: float | None) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError(
                "give both mean and std, or neither (then they are measured on the training split)"
            )
        if std is not None and std <= 0:
            raise ValueError(f"std must be positive, not {std}")
        self.register_buffer("mean", torch.tensor(0.0 if mean is None else float(mean)))
        self.register_buffer("std", torch.tensor(1.0 if std is None else float(std)))
        self.register_buffer("fitted", torch.tensor(mean is not None))

    def fit(self, maps: Iterable[Tensor]) -> None:
        """Measure mean and std over all values of ``maps`` (any shapes)."""
        count, total, squares = 0, 0.0, 0.0
        for part in maps:
            part = part.double()
            count += part.numel()
            total += part.sum().item()
            squares += part.square().sum().item()
        if count == 0:
            raise ValueError("no training data to measure mean and std on")
        mean = total / count
        self.mean.fill_(mean)
        self.std.fill_(max(squares / count - mean**2, 1e-12) ** 0.5)
        self.fitted.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
