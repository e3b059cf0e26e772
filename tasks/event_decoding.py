"""Between events in seconds and frames: where a frame lies, what sounds in it, and events from scores of frames.

Shapes: B batch, E events, N frames, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.event_metrics import Events

NOTHING = -1  # class of what fills up the events of a batch


@dataclass(frozen=True)
class FrameGrid:
    """Frames of a map: each is ``length`` samples, ``shift`` after the one before.

    Args:
        sample_rate: in Hz.
        length, shift: in samples.
    """

    sample_rate: int
    length: int
    shift: int

    def count(self, samples: int) -> int:
        """Frames in so many samples, at least one."""
        return max(1 + (samples - self.length) // self.shift, 1)

    def samples(self, frames: int) -> int:
        """Samples that so many frames take."""
        return (frames - 1) * self.shift + self.length

    @property
    def step(self) -> float:
        """Seconds from a frame to the next."""
        return self.shift / self.sample_rate

    def edges(self, frames: int) -> NDArray[np.float64]:
        """Seconds where each frame's own time begins, and where that of the last ends, ``(N + 1,)``: half a step on
        either side of its centre."""
        first = (self.length - self.shift) / 2
        return (first + self.shift * np.arange(frames + 1)) / self.sample_rate


def frame_targets(events_BE3: Tensor, grid: FrameGrid, frames: int, classes: int) -> Tensor:
    """What sounds in each frame, ``(B, N, K)`` of 0 and 1.

    An event is in a frame where it fills half of the frame's own time; one that is shorter than a step, where half of
    it lies.

    Args:
        events_BE3: onset and offset in seconds, class index; `NOTHING` fills up.
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
    """How events are made of scores: a class sounds where its score, smoothed, is at least a threshold.

    Args:
        threshold: of all classes, or class name -> threshold (others 0.5).
        median: seconds of the median filter over scores; 0: none.
        max_gap: seconds; shorter silence between two events of a class is filled.
        min_length: seconds; shorter events are left out, after gaps were filled.

    Raises:
        ValueError: settings that make no sense.
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
        """That of each class, ``(K,)``; raises `ValueError` for one that there is not."""
        if not isinstance(self.threshold, Mapping):
            return np.full(len(names), float(self.threshold))
        unknown = [name for name in self.threshold if name not in names]
        if unknown:
            raise ValueError(
                f"task.model.decoding.threshold names {unknown[0]!r}, which is none of the {len(names)} classes"
            )
        return np.array([float(self.threshold.get(name, 0.5)) for name in names])

    def smoothed(self, scores_NK: NDArray[np.float32], grid: FrameGrid) -> NDArray[np.float32]:
        """Scores after the median filter. It moves no threshold: filtering what is above one is the same."""
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
        """Events of a recording of so many seconds, by onset."""
        edges = grid.edges(len(smoothed_NK))
        edges[0], edges[-1] = (
            0.0,
            max(seconds, edges[-2]),
        )  # what no frame's own time covers belongs to the outer ones
        found = []
        for label, threshold in enumerate(thresholds_K.tolist()):
            for first, end in self._joined(smoothed_NK[:, label] >= threshold, edges):
                found.append((edges[first], min(edges[end], seconds), float(label)))
        return np.array(sorted(found), dtype=np.float64).reshape(-1, 3)

    def _joined(self, active_N: NDArray[np.bool_], edges: NDArray[np.float64]) -> list[tuple[int, int]]:
        """Stretches of frames (first, end) that sound, gaps filled, the short ones left out."""
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
