"""Reads clouds and meshes of any format: `read_cloud`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.point_cloud.formats.arrays import read_h5, read_npy, read_npz
from tasks.datasets.point_cloud.formats.cloud import Cloud, Doubles, ReadOptions
from tasks.datasets.point_cloud.formats.columns import COLORS, color_scale
from tasks.datasets.point_cloud.formats.las import read_las
from tasks.datasets.point_cloud.formats.obj import read_obj
from tasks.datasets.point_cloud.formats.off import read_off
from tasks.datasets.point_cloud.formats.pcd import read_pcd
from tasks.datasets.point_cloud.formats.ply import read_ply
from tasks.datasets.point_cloud.formats.stl import read_stl
from tasks.datasets.point_cloud.formats.text import read_text
from tasks.datasets.reading import check_file

Reader = Callable[[Path, ReadOptions], Cloud]
READERS: dict[str, Reader] = {
    ".ply": read_ply,
    ".pcd": read_pcd,
    ".off": read_off,
    ".obj": read_obj,
    ".stl": read_stl,
    **dict.fromkeys((".xyz", ".xyzn", ".xyzrgb", ".txt", ".asc", ".csv", ".pts"), read_text),
    ".npy": read_npy,
    ".npz": read_npz,
    **dict.fromkeys((".h5", ".hdf5"), read_h5),
    **dict.fromkeys((".las", ".laz"), read_las),
}
EXTENSIONS = tuple(READERS)
AT_ONCE = (1024, 32)  # block sizes for computing the extent
FAR = 16  # distance from the origin in cloud sizes at which float32 resolves about 1e-6 of the size


def read_cloud(path: Path, options: ReadOptions | None = None) -> Cloud:
    """Read a cloud or a mesh in any of `EXTENSIONS`; float32, in the file's own units.

    Points with non-finite coordinates are dropped and counted. A cloud far from the origin, e.g. in map coordinates,
    is centred, since float32 would lose precision; `Cloud.origin` is the offset.

    Raises:
        ReadError: the file is missing, empty, broken, of another format, too large, or has no points.
    """
    options = options or ReadOptions()
    check_file(path)
    kind = path.suffix.lower()
    if kind not in READERS:
        raise ReadError(f"{kind or 'a file without extension'} is none of {', '.join(EXTENSIONS)}")
    try:
        cloud = READERS[kind](path, options)
        if len(cloud.points) == 0:
            raise ReadError("it holds no points")
        _keep_finite(cloud)
        return _single(cloud)
    except DataError:  # already explains what is wrong, with the file or with a library
        raise
    except Exception as error:  # libraries may raise anything for damaged files
        reason = str(error).replace(str(path), "").split("\n")[0].strip(" :.'\"") or type(error).__name__
        raise ReadError(f"it cannot be read as a point cloud ({reason[:200]})") from error


def table_of(cloud: Cloud, columns: Sequence[str], scale: float | None = None) -> NDArray[np.float32]:
    """Points and the given columns, (P, 3 + F), without non-finite rows; colours are in [0, 1].

    Args:
        cloud: the points.
        columns: column names.
        scale: maximum colour value, if the file's format does not define it.

    Raises:
        ReadError: a missing column, or implausible values.
    """
    absent = [name for name in columns if name not in cloud.columns]
    if absent:
        known = f"; it has {', '.join(cloud.columns)}" if cloud.columns else ""
        raise ReadError(
            f"it has no column {', '.join(absent)}{known} (task.data.file_columns=[x,y,z,…] names the columns of "
            "files of bare numbers)"
        )
    colors = [name for name in columns if name in COLORS]
    full = color_scale([cloud.columns[name] for name in colors], cloud.color_scale, scale) if colors else 1.0
    parts = [cloud.columns[name] / full if name in colors else cloud.columns[name] for name in columns]
    table = np.column_stack([cloud.points, *parts]).astype(np.float32)
    there = np.isfinite(table).all(axis=1)
    if not there.any():
        raise ReadError("its points have no finite values in the columns asked for")
    return table if there.all() else table[there]


def _keep_finite(cloud: Cloud) -> None:
    """Drop points with non-finite coordinates, and centre the others if they are far from the origin."""
    low, high = _reach(cloud.points)
    limit = np.finfo(np.float32).max
    if not max(np.abs(low).max(), np.abs(high).max()) <= limit:  # true for NaN as well
        there = (np.abs(cloud.points) <= limit).all(axis=1)
        if cloud.triangles is not None or not there.any():
            raise ReadError("its points have coordinates that are not finite numbers")
        cloud.points = cloud.points[there]
        cloud.columns = {name: values[there] for name, values in cloud.columns.items()}
        cloud.dropped = int((~there).sum())
        low, high = _reach(cloud.points)
    size = float((high - low).max())
    if max(np.abs(low).max(), np.abs(high).max()) > FAR * size > 0:
        cloud.origin = cloud.points.mean(axis=0, dtype=np.float64)
        cloud.points = cloud.points - cloud.origin


def _reach(points: NDArray[Any]) -> tuple[Doubles, Doubles]:
    """Minimum and maximum coordinates, (3,) each; NaN if any is NaN."""
    rows = points
    for at_once in AT_ONCE if points.flags.c_contiguous else ():  # NumPy is fastest with long rows
        whole = len(rows) // at_once * at_once
        if whole > 2 * at_once:
            wide = rows[:whole].reshape(-1, 3 * at_once)
            ends = np.concatenate([wide.min(axis=0), wide.max(axis=0)]).reshape(-1, 3)
            rows = np.concatenate([ends, rows[whole:]])
    axes = [rows[:, axis] for axis in range(3)]
    low, high = [axis.min() for axis in axes], [axis.max() for axis in axes]
    return np.asarray(low, np.float64), np.asarray(high, np.float64)


def _single(cloud: Cloud) -> Cloud:
    with np.errstate(over="ignore"):
        cloud.points = np.asarray(cloud.points, np.float32)
        cloud.columns = {name: np.asarray(values, np.float32) for name, values in cloud.columns.items()}
        cloud.face_columns = {
            name: np.asarray(values, np.float32) for name, values in cloud.face_columns.items()
        }
    return cloud
