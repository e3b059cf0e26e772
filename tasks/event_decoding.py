"""Conversion between events in seconds and frames: the frame grid, frame targets, and decoding of scores to events.

Shapes: B batch, E events, N frames, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.event_metrics import Events

NOTHING = -1  # class index of the padding of a batch's events


@dataclass(frozen=True)
class FrameGrid:
    """The frames of a map: each is ``length`` samples long and starts ``shift`` samples after the previous one.

    Args:
        sample_rate: in Hz.
        length, shift: in samples.
    """

    sample_rate: int
    length: int
    shift: int

    def count(self, samples: int) -> int:
        """The number of frames in a number of samples, at least one."""
        return max(1 + (samples - self.length) // self.shift, 1)

    def samples(self, frames: int) -> int:
        """The number of samples covered by a number of frames."""
        return (frames - 1) * self.shift + self.length

    @property
    def step(self) -> float:
        """The hop between frames in seconds."""
        return self.shift / self.sample_rate

    def edges(self, frames: int) -> NDArray[np.float64]:
        """The edges of the frames' time intervals in seconds, ``(N + 1,)``; an interval extends half a step to either
        side of the frame's centre."""
        first = (self.length - self.shift) / 2
        return (first + self.shift * np.arange(frames + 1)) / self.sample_rate


def frame_targets(events_BE3: Tensor, grid: FrameGrid, frames: int, classes: int) -> Tensor:
    """Frame-level targets, ``(B, N, K)`` of 0 and 1.

    An event is active in a frame if it covers at least half of the frame's interval; an event shorter than a step, if
    at least half of it lies in the interval.

    Args:
        events_BE3: onset and offset in seconds, class index; padded with the class `NOTHING`.
    """
    edge = torch.from_numpy(grid.edges(frames)).to(events_BE3)
    onset_BE1, offset_BE1 = events_BE3[..., 0, None], events_BE3[..., 1, None]
    shared_BEN = torch.minimum(offset_BE1, edge[1:]) - torch.maximum(onset_BE1, edge[:-1])
    least_BE1 = (offset_BE1 - onset_BE1).clamp(max=grid.step) / 2
    inside_BEN = (shared_BEN >= least_BE1 - 1e-9) & (shared_BEN > 0)
    label_BE = events_BE3[..., 2].long()
    class_BEK = torch.nn.functional.one_hot(label_BE.clamp(min=0), classes) * (label_BE != NOTHING)[..., None]
    return torch.einsum("ben,bek->bnk", inside_BEN.float(), class_BEK.float()).clamp(max=1)


@dataclass(frozen=True)
class Decoding:
    """Decoding of scores to events: a class is active where its median-filtered score is at least a threshold.

    Args:
        threshold: for all classes, or class name -> threshold (others 0.5).
        median: length of the median filter over scores in seconds; 0: no filter.
        max_gap: in seconds; shorter gaps between two events of a class are filled.
        min_length: in seconds; shorter events are dropped after gaps are filled.

    Raises:
        ValueError: invalid settings.
    """

    threshold: float | Mapping[str, float] = 0.5
    median: float = 0.0
    max_gap: float = 0.0
    min_length: float = 0.0

    def __post_init__(self) -> None:
        each = self.threshold.values() if isinstance(self.threshold, Mapping) else [self.threshold]
        if not all(0 < value < 1 for value in each):
            raise ValueError("task.model.decoding.threshold lies between 0 and 1, for all classes or by name")
        if min(self.median, self.max_gap, self.min_length) < 0:
            raise ValueError("task.model.decoding takes seconds of at least 0")

    def thresholds(self, names: Sequence[str]) -> NDArray[np.float64]:
        """The threshold of each class, ``(K,)``; raises `ValueError` for an unknown class."""
        if not isinstance(self.threshold, Mapping):
            return np.full(len(names), float(self.threshold))
        unknown = [name for name in self.threshold if name not in names]
        if unknown:
            raise ValueError(
                f"task.model.decoding.threshold names {unknown[0]!r}, which is none of the {len(names)} classes"
            )
        return np.array([float(self.threshold.get(name, 0.5)) for name in names])

    def smoothed(self, scores_NK: NDArray[np.float32], grid: FrameGrid) -> NDArray[np.float32]:
        """Median-filtered scores. The filter commutes with thresholding, so it serves all thresholds."""
        reach = round(self.median / grid.step) // 2
        if reach < 1:
            return scores_NK
        filled = np.pad(scores_NK, ((reach, reach), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(filled, 2 * reach + 1, axis=0)
        return np.median(windows, axis=-1).astype(np.float32)

    def events(
        self,
        smoothed_NK: NDArray[np.float32],
        thresholds_K: NDArray[np.float64],
        grid: FrameGrid,
        seconds: float,
    ) -> Events:
        """The events of a recording of the given length, sorted by onset."""
        edges = grid.edges(len(smoothed_NK))
        edges[0], edges[-1] = (
            0.0,
            max(seconds, edges[-2]),
        )  # the first and last frame extend to the ends of the recording
        found = []
        for label, threshold in enumerate(thresholds_K.tolist()):
            for first, end in self._joined(smoothed_NK[:, label] >= threshold, edges):
                found.append((edges[first], min(edges[end], seconds), float(label)))
        return np.array(sorted(found), dtype=np.float64).reshape(-1, 3)

    def _joined(self, active_N: NDArray[np.bool_], edges: NDArray[np.float64]) -> list[tuple[int, int]]:
        """Runs of active frames (first, end), with short gaps filled and short runs dropped."""
        turns = np.flatnonzero(np.diff(np.concatenate([[False], active_N, [False]])))
        joined: list[tuple[int, int]] = []
        for first, end in zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True):
            if joined and edges[first] - edges[joined[-1][1]] < self.max_gap - 1e-9:
                joined[-1] = joined[-1][0], end
            else:
                joined.append((first, end))
        return [pair for pair in joined if edges[pair[1]] - edges[pair[0]] >= self.min_length - 1e-9]


def scores_of(events: Events, scores_NK: NDArray[np.float32], grid: FrameGrid) -> list[float]:
    """The mean score of each event's class over its frames."""
    edges = grid.edges(len(scores_NK))
    centres = (edges[:-1] + edges[1:]) / 2
    values = []
    for onset, offset, label in events.tolist():
        inside = (centres >= onset) & (centres < offset)
        if not inside.any():
            inside[np.abs(centres - (onset + offset) / 2).argmin()] = True
        values.append(float(scores_NK[inside, int(label)].mean()))
    return values
