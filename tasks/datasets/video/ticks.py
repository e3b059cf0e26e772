"""Temporal sampling: the frames of a clip.

Shapes: L frames of a file, T frames of a clip.
"""

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]  # (T,)


def dense(length: int, frames: int, stride: int, place: float) -> Places:
    """``frames`` ticks of ``length``, ``stride`` apart: at the start for place 0, at the end for place 1.

    A file that is too short is looped.
    """
    spare = max(length - ((frames - 1) * stride + 1), 0)
    return (round(place * spare) + stride * np.arange(frames, dtype=np.int64)) % length


def uniform(length: int, frames: int, place: float | NDArray[np.float64]) -> Places:
    """One tick of each of ``frames`` equal parts of a file, at ``place`` in [0, 1) of the part."""
    part = np.arange(frames)
    last = np.ceil((part + 1) * length / frames) - 1  # rounding must not reach the next part
    return np.minimum((part + place) * length / frames, last).astype(np.int64)


def clock(times: NDArray[np.float64]) -> Places | None:
    """The frame shown at each tick of a uniform clock, from the start times (L,) of the frames, in seconds.

    ``None`` for invalid times (missing, not ascending): such a file supports neither timing nor seeking.
    """
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any() or np.abs(times).max(initial=0) > 1e9:
        return None
    ticks = np.linspace(times[0], times[-1], len(times))
    step = (times[-1] - times[0]) / max(len(times) - 1, 1)
    if np.abs(times - ticks).max() < step / 2:  # constant up to rounding
        return np.arange(len(times), dtype=np.int64)
    return np.searchsorted(times, ticks + 1e-6, side="right").astype(np.int64) - 1


def spread_out(count: int) -> NDArray[np.float64]:
    """``count`` evenly spaced places from 0 to 1; the middle for one."""
    return np.linspace(0, 1, count) if count > 1 else np.array([0.5])
