"""What a reader of one format hands over: points, the columns beside them, perhaps triangles.

Shapes: P points, E columns without a name, F polygons of K corners, T triangles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

MAX_POINTS = 30_000_000
BYTES_PER_POINT = 64  # of a text file, as many as most writers spend
VALUES_PER_POINT = 32  # columns of a file, more than any writer has


@dataclass(frozen=True)
class ReadOptions:
    """How files are to be read.

    Args:
        max_points: a file of more points is refused.
        wanted: the columns that will be asked for; they name the columns of a file without a header, where
            there are as many.
        order: what the columns of a file of bare numbers are, x, y and z among them; ``None``: its header
            says it, or it is inferred.
    """

    max_points: int = MAX_POINTS
    wanted: tuple[str, ...] = ()
    order: tuple[str, ...] | None = None


@dataclass
class Cloud:
    """Points and what is known of each.

    Args:
        points: (P, 3), about `origin`.
        columns: name -> (P,), as the file has them.
        triangles: (T, 3), indices of points, where the file is a mesh.
        face_columns: name -> (T,), what is known of each triangle.
        color_scale: value of a full red, green or blue; ``None``: the values themselves must tell.
        origin: (3,), what was subtracted from the points.
        dropped: points left out, as they have no finite coordinates.
        remarks: how the file was read, where that was inferred.
    """

    points: NDArray[Any]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    triangles: NDArray[Any] | None = None
    face_columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    color_scale: float | None = None
    origin: Doubles = field(default_factory=lambda: np.zeros(3))
    dropped: int = 0
    remarks: list[str] = field(default_factory=list)


def check_count(count: int, options: ReadOptions, unit: str = "points") -> None:
    """Raise a `ReadError` where a file announces more points than may be read."""
    if count < 0:
        raise ReadError(f"it announces {count:,} {unit}")
    if count > options.max_points:
        raise ReadError(
            f"it announces {count:,} {unit}, more than the {options.max_points:,} that are read: say "
            "task.data.max_points=N if this is meant"
        )


def check_shape(shape: Sequence[int], options: ReadOptions) -> None:
    """Raise a `ReadError` where an array of points is larger than may be read."""
    rows = math.prod(int(side) for side in shape[:-1]) if len(shape) > 1 else 0
    columns = int(shape[-1]) if shape else 0
    check_count(max(rows, -(-rows * columns // VALUES_PER_POINT)), options)
    if not rows:
        check_count(-(-columns // VALUES_PER_POINT), options)


def check_size(size: int, options: ReadOptions) -> None:
    """Raise a `ReadError` for a file of text so long that it must hold more points than may be read."""
    check_count(size // BYTES_PER_POINT, options)


def mesh(points: NDArray[Any], triangles: NDArray[Any], **more: Any) -> Cloud:
    """A cloud with triangles, or without, where there are none; raises `ReadError` for a wrong index."""
    if len(triangles) == 0:
        more.pop("face_columns", None)
        return Cloud(points, **more)
    if triangles.min() < 0 or triangles.max() >= len(points):
        wrong = triangles.max() if triangles.max() >= len(points) else triangles.min()
        raise ReadError(f"a face names vertex {int(wrong):,}, there are {len(points):,}")
    return Cloud(points, triangles=triangles.astype(np.int32), **more)


def fan(corners_FK: Indices) -> tuple[Indices, Indices]:
    """Polygons of one size as triangles, (T, 3), and which polygon each comes from, (T,)."""
    faces, size = corners_FK.shape
    each = max(size - 2, 0)
    if not faces or not each:
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
    first_FT = np.broadcast_to(corners_FK[:, :1], (faces, each))
    triangles = np.stack([first_FT, corners_FK[:, 1:-1], corners_FK[:, 2:]], axis=-1).reshape(-1, 3)
    return triangles, np.repeat(np.arange(faces), each)


def fans(groups: Sequence[tuple[Indices, Indices]]) -> tuple[Indices, Indices]:
    """Polygons of several sizes, each group with the numbers of its polygons, as `fan`; in the file's order."""
    parts = [(*fan(corners), numbers) for numbers, corners in groups]
    if not parts:
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
    if len(parts) == 1:
        triangles, own, numbers = parts[0]
        return triangles, numbers[own]
    triangles = np.concatenate([part for part, _, _ in parts])
    owner = np.concatenate([numbers[own] for _, own, numbers in parts])
    order = np.argsort(owner, kind="stable")
    return triangles[order], owner[order]
