"""LAS and LAZ of airborne and terrestrial scanners, through laspy."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.base import ReadError
from tasks.datasets.point_formats.cloud import Cloud, ReadOptions, check_count
from tasks.datasets.point_formats.columns import from_named
from tasks.datasets.reading import require

MOST_BYTES_PACKED = 200  # LAZ makes a record so many times smaller at best


def read_las(path: Path, options: ReadOptions) -> Cloud:
    laspy = require("laspy", "LAS and LAZ files")
    if path.suffix.lower() == ".laz":
        require("lazrs", "LAZ files")
    try:
        with laspy.open(path) as file:
            header = file.header
            check_count(header.point_count, options)
            packed = MOST_BYTES_PACKED if header.are_points_compressed else 1
            if header.point_count * header.point_format.size > packed * path.stat().st_size:
                raise ReadError(f"it breaks off: {header.point_count:,} points are announced")
            points = file.read()
    except Exception:
        raise
    except BaseException as error:  # what lazrs, written in Rust, raises for damaged data is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise ReadError("it cannot be read as a point cloud (its compressed data are damaged)") from error
    columns: dict[str, NDArray[Any]] = {
        name: np.asarray(points[name])
        for name in points.point_format.dimension_names
        if name not in ("X", "Y", "Z")
    }
    columns = {name: values for name, values in columns.items() if values.ndim == 1}
    axes = {axis: np.asarray(getattr(points, axis), np.float64) for axis in "xyz"}
    return from_named(axes | columns)
