"""RadHAR (Singh et al. 2019): recognition of five activities with a millimetre-wave radar.

Shapes: P points of a recording, N points of a window, K windows of a file.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from tasks.datasets.base import ClassificationSettings, DataModule
from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.items import Item
from tasks.datasets.splits import held_out_groups
from tasks.datasets.targets import ClassTargets, Kind

COLUMNS = ("velocity", "intensity", "time")


class RadHAR(DataModule):
    """RadHAR: windows of 60 frames (two seconds) every 10 frames, from the recordings in train/ and test/.

    A sample is the point cloud of a window, ``(N, 6)``: x, y, z in metres, velocity in m/s, intensity in
    dB and time in frames from the window's start, padded with NaN. The validation split is held out of the training
    split by recording, since windows of one recording overlap; the test metric is over single windows.

    Args:
        window, stride: in frames.
        columns: names of the columns after x, y, z; must be velocity, intensity, time.
        num_points: N; larger windows are subsampled at random.
        random_start: shift training windows at random by up to half a stride, in each epoch.
        val_fraction: fraction of each activity's training windows to hold out.
        file_windows: K, evenly spaced windows of a file in prediction, whose predictions are averaged.
        **common: see `DataModule`.
    """

    kind: ClassVar[Kind] = ClassTargets
    modality = "point_cloud"
    extensions = (".npz",)
    unit = "windows"
    title = "RadHAR"
    layout = "train/<activity>/*.npz and test/<activity>/*.npz with the arrays points (P, 5) and frame (P,)"
    homepage = "https://github.com/nesl/RadHAR"

    def __init__(
        self,
        *,
        window: int = 60,
        stride: int = 10,
        num_points: int = 1792,
        columns: Sequence[str] = COLUMNS,
        random_start: bool = True,
        val_fraction: float = 0.15,
        file_windows: int = 5,
        **common: Unpack[ClassificationSettings],
    ) -> None:
        super().__init__(**common)
        if min(window, stride, num_points, file_windows) < 1:
            raise DataError("window, stride, num_points and file_windows must be at least 1")
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
        self.window = window
        self.stride = stride
        self.num_points = num_points
        self.random_start = random_start
        self.val_fraction = val_fraction
        self.file_windows = file_windows
        if tuple(columns) != COLUMNS:
            raise DataError(f"columns are {', '.join(COLUMNS)}, not {', '.join(columns)}")

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.point_cloud.sample import radhar

        radhar(root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        files = {
            part: [(path.parent.name, path) for path in sorted((root / part).glob("*/*.npz"))]
            for part in ("train", "test")
        }
        for part, found in files.items():
            if not found:
                raise self.bad_layout(f"no {part} recordings in {root}")
        self.class_names = sorted({name for name, _ in files["train"]})
        unknown = {name for name, _ in files["test"]} - set(self.class_names)
        if unknown:
            raise self.bad_layout(f"the activity {sorted(unknown)[0]} is in test/ but not in train/")
        held_out = held_out_groups(
            [(name, f"{name}/{path.name}") for name, path in files["train"]], self.val_fraction
        )
        splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        for part, found in files.items():
            for name, path in found:
                split = "val" if part == "train" and f"{name}/{path.name}" in held_out else part
                try:
                    frames = read_recording(path)[1]
                except ReadError as error:
                    raise DataError(f"{path}: {error}") from error
                for start in window_starts(int(frames[0]), int(frames[-1]), self.window, self.stride):
                    splits[split].append(Item(path, self.class_names.index(name), {"start": start}))
        return splits

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor:
        start = item.where["start"]
        if train and self.random_start:
            start += int(rng.integers(-(self.stride // 2), self.stride // 2 + 1))
        return self._window(item.path, start, rng if train else np.random.default_rng(0))

    def read_file(self, path: Path) -> Tensor:
        """K evenly spaced windows of a recording, (K, N, 6)."""
        frames = read_recording(path)[1]
        last = max(int(frames[-1]) - self.window + 1, int(frames[0]))
        starts = np.linspace(int(frames[0]), last, self.file_windows).round().astype(int)
        return torch.stack([self._window(path, int(start), np.random.default_rng(0)) for start in starts])

    def _window(self, path: Path, start: int, rng: np.random.Generator) -> Tensor:
        points, frames = read_recording(path)
        first, behind = np.searchsorted(frames, [start, start + self.window])
        chosen = np.arange(first, behind)
        if len(chosen) == 0:
            raise ReadError(f"no point in frames {start} to {start + self.window - 1}")
        if len(chosen) > self.num_points:
            chosen = np.sort(rng.choice(chosen, self.num_points, replace=False))
        whole = np.full((self.num_points, 6), np.nan, dtype=np.float32)
        whole[: len(chosen), :5] = points[chosen]
        whole[: len(chosen), 5] = frames[chosen] - start
        return torch.from_numpy(whole)


def window_starts(first: int, last: int, window: int, stride: int) -> range:
    """First frames of all windows within frames ``first`` to ``last``; a short recording has one window."""
    return range(first, max(last - window + 2, first + 1), stride)


@lru_cache(maxsize=512)
def read_recording(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Points (P, 5) and their ascending frames (P,) of a recording; cached in memory (0.3 MB each).

    Raises:
        ReadError: missing, broken, empty, or without these arrays.
    """
    if not path.is_file():
        raise ReadError("there is no such file")
    if path.stat().st_size == 0:
        raise ReadError("the file is empty (0 bytes)")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            points, frames = arrays["points"].astype(np.float32), arrays["frame"].astype(np.int64)
    except KeyError as error:
        raise ReadError("it lacks the arrays points and frame") from error
    except Exception as error:  # a damaged zip file may raise anything
        raise ReadError(f"it cannot be read as npz ({error})") from error
    if points.ndim != 2 or points.shape[1] != 5 or frames.shape != points.shape[:1]:
        raise ReadError(f"points must be (P, 5) and frame (P,), not {points.shape} and {frames.shape}")
    if len(points) == 0:
        raise ReadError("it holds no points")
    if not np.isfinite(points).all():
        raise ReadError("it holds values that are not finite numbers")
    order = np.argsort(frames, kind="stable")
    return points[order], frames[order]
