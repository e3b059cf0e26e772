"""Arrays of numbers: NPY, NPZ and HDF5.

Shapes are checked before reading: a few bytes can declare, or unpack into, any number of points.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipExtFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from modalities.point_columns import NORMALS
from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import Cloud, ReadOptions, check_shape
from tasks.datasets.point_cloud.formats.columns import COLORS, from_named, from_table
from tasks.datasets.point_cloud.formats.h5 import SHARED

POINTS = ("points", "data")
# Optional arrays (P, 3) beside the points.
BESIDE = {
    "normals": NORMALS, "normal": NORMALS, "colors": COLORS, "colours": COLORS, "color": COLORS, "rgb": COLORS,
}  # fmt: skip
NUMPY_MAGIC = b"\x93NUMPY"
PLAIN_HEADER = (
    128  # bytes of NumPy's usual header of a 2-D array; generic parsing takes a third of the reading time
)
PLAIN = re.compile(
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '([<>|][fiu]\d)', 'fortran_order': (True|False), "
    rb"'shape': \((\d{1,18}), (\d{1,9})\), \} *\n"
)


def read_npy(path: Path, options: ReadOptions) -> Cloud:
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            raise ReadError("it is an archive of arrays (.npz), not an array: rename it")
        file.seek(0)
        return _cloud({}, _checked(file, options, path.stat().st_size), options)


def read_npz(path: Path, options: ReadOptions) -> Cloud:
    with path.open("rb") as file:
        if file.read(6) == NUMPY_MAGIC:
            raise ReadError("it is an array (.npy), not an archive of arrays: rename it")
    with ZipFile(path) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        wanted = key(list(names))
        arrays = {}
        for name in (wanted, *(name for name in names if name in BESIDE and name != wanted)):
            with archive.open(names[name]) as member:
                size = archive.getinfo(names[name]).file_size
                arrays[name] = _checked(member, options, size)
    return _cloud(arrays, arrays.pop(wanted), options)


def read_h5(path: Path, options: ReadOptions) -> Cloud:
    names, arrays = SHARED.arrays(path, POINTS, list(BESIDE), lambda shape: check_shape(shape, options))
    return _cloud(arrays, arrays.pop(key(names)), options)


def key(names: Sequence[str]) -> str:
    """The name of the array of points."""
    wanted = next((name for name in POINTS if name in names), None)
    if wanted is None and len(names) != 1:
        raise ReadError(
            f"it holds the arrays {', '.join(names)[:200] or '(none)'}; call the one to read points"
        )
    return wanted or names[0]


def _cloud(beside: Mapping[str, NDArray[Any]], array: NDArray[Any], options: ReadOptions) -> Cloud:
    if array.dtype.names:
        fields = {name: array[name].ravel() for name in array.dtype.names if array.dtype[name].kind in "fiu"}
        return from_named(fields)
    cloud = from_table(array, options)
    for name, values in beside.items():
        if values.shape != (len(cloud.points), 3) or values.dtype.kind not in "fiu":
            wanted = (len(cloud.points), 3)
            cloud.remarks.append(
                f"the array {name} is left out: {values.dtype} {values.shape}, not numbers {wanted}"
            )
            continue
        cloud.columns |= dict(zip(BESIDE[name], values.T, strict=True))
        if BESIDE[name] == COLORS:
            cloud.color_scale = 255.0 if values.dtype == np.uint8 else None
    return cloud


def _header(file: BinaryIO | Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order flag, and dtype."""
    start = file.read(PLAIN_HEADER)
    if plain := PLAIN.match(start):
        kind, by_columns, rows, columns = plain.groups()
        return (int(rows), int(columns)), by_columns == b"True", np.dtype(kind.decode())
    file.seek(0)
    try:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, by_columns, kind = read(file)
    except Exception as error:  # NumPy parses it as Python, which may raise anything
        raise ReadError("it cannot be read as a point cloud (its header is damaged)") from error
    return shape, by_columns, kind


def _checked(file: BinaryIO | Any, options: ReadOptions, size: int) -> NDArray[Any]:
    """Read the array of an open NPY file of `size` bytes, with checks."""
    shape, by_columns, kind = _header(file)
    check_shape(shape or (1,), options)
    count = math.prod(shape)
    if kind.hasobject:
        raise ReadError("it holds Python objects, not numbers")
    if count * kind.itemsize > size - file.tell():
        raise ReadError(f"it breaks off: an array of shape {shape} is announced, the file has {size:,} bytes")
    if isinstance(file, ZipExtFile):
        array = np.frombuffer(file.read(count * kind.itemsize), kind)
    else:
        array = np.fromfile(file, kind, count)
    if len(array) < count:
        raise ReadError(f"it breaks off: {count:,} numbers are announced, {len(array):,} are there")
    return array.reshape(shape, order="F" if by_columns else "C")
