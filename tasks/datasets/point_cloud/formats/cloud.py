"""Common result of all format readers: points, their columns, and optionally triangles.

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
BYTES_PER_POINT = 64  # of a text file, as most programs write
VALUES_PER_POINT = 32  # columns of a file, more than any program writes


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading files.

    Args:
        max_points: files with more points are refused.
        wanted: the columns that will be used; they name the columns of a file without a header, if the number
            matches.
        order: names of the columns of a file without names, including x, y and z; ``None``: from its header, or
            inferred.
    """

    max_points: int = MAX_POINTS
    wanted: tuple[str, ...] = ()
    order: tuple[str, ...] | None = None


@dataclass
class Cloud:
    """Points and their columns.

    Args:
        points: (P, 3), relative to `origin`.
        columns: name -> (P,), as in the file.
        triangles: (T, 3), point indices, for a mesh.
        face_columns: name -> (T,), columns of the triangles.
        color_scale: maximum colour value; ``None``: inferred from the values.
        origin: (3,), offset subtracted from the points.
        dropped: number of points dropped because of non-finite coordinates.
        remarks: notes about what was inferred.
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
    """Raise a `ReadError` if a file declares more points than allowed."""
    if count < 0:
        raise ReadError(f"it announces {count:,} {unit}")
    if count > options.max_points:
        raise ReadError(
            f"it announces {count:,} {unit}, more than the {options.max_points:,} that are read: say "
            "task.data.max_points=N if this is meant"
        )


def check_shape(shape: Sequence[int], options: ReadOptions) -> None:
    """Raise a `ReadError` if an array of points is larger than allowed."""
    rows = math.prod(int(side) for side in shape[:-1]) if len(shape) > 1 else 0
    columns = int(shape[-1]) if shape else 0
    check_count(max(rows, -(-rows * columns // VALUES_PER_POINT)), options)
    if not rows:
        check_count(-(-columns // VALUES_PER_POINT), options)


def check_size(size: int, options: ReadOptions) -> None:
    """Raise a `ReadError` for a text file so long that it must have more points than allowed."""
    check_count(size // BYTES_PER_POINT, options)


def mesh(points: NDArray[Any], triangles: NDArray[Any], **more: Any) -> Cloud:
    """A mesh, or a plain cloud if there are no triangles; raises `ReadError` for an invalid index."""
    if len(triangles) == 0:
        more.pop("face_columns", None)
        return Cloud(points, **more)
    if triangles.min() < 0 or triangles.max() >= len(points):
        wrong = triangles.max() if triangles.max() >= len(points) else triangles.min()
        raise ReadError(f"a face names vertex {int(wrong):,}, there are {len(points):,}")
    return Cloud(points, triangles=triangles.astype(np.int32), **more)


def fan(corners_FK: Indices) -> tuple[Indices, Indices]:
    """Triangulates polygons of one size: triangles (T, 3), and the polygon of each, (T,)."""
    faces, size = corners_FK.shape
    each = max(size - 2, 0)
    if not faces or not each:
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
    first_FT = np.broadcast_to(corners_FK[:, :1], (faces, each))
    triangles = np.stack([first_FT, corners_FK[:, 1:-1], corners_FK[:, 2:]], axis=-1).reshape(-1, 3)
    return triangles, np.repeat(np.arange(faces), each)


def fans(groups: Sequence[tuple[Indices, Indices]]) -> tuple[Indices, Indices]:
    """Like `fan`, for groups of polygons of several sizes with their indices; in the file's order."""
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
