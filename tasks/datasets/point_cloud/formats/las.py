"""LAS and LAZ of airborne and terrestrial scanners, through laspy."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.base import ReadError
from tasks.datasets.point_cloud.formats.cloud import Cloud, ReadOptions, check_count
from tasks.datasets.point_cloud.formats.columns import from_named
from tasks.datasets.reading import require
from tasks.disk import filling

FORMAT_BYTE, COMPRESSED = 104, 0x80  # where the header says that the points are compressed
MEMORY = 8 << 30  # bytes of addresses for unpacking
SECONDS = 300
MOST_PACKED = 200  # times that LAZ makes a file smaller, at best
UNPACK = """
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]),) * 2)
except ImportError:  # Windows
    pass
import laspy, numpy
with laspy.open(sys.argv[1], laz_backend=laspy.LazBackend.Lazrs) as file:
    points = file.read()
arrays = {name: numpy.asarray(points[name]) for name in points.point_format.dimension_names if name not in "XYZ"}
axes = {axis: numpy.asarray(getattr(points, axis)) for axis in "xyz"}
numpy.savez(sys.argv[2], **arrays, **axes)
"""


def read_las(path: Path, options: ReadOptions) -> Cloud:
    laspy = require("laspy", "LAS and LAZ files")
    with path.open("rb") as file:
        head = file.read(FORMAT_BYTE + 1)
    compressed = len(head) > FORMAT_BYTE and bool(head[FORMAT_BYTE] & COMPRESSED)
    if compressed:
        require("lazrs", "LAZ files")
    with laspy.open(path, **({"laz_backend": ()} if compressed else {})) as file:
        header = file.header
        check_count(header.point_count, options)
        whole = header.point_count * header.point_format.size
        if whole > path.stat().st_size * (MOST_PACKED if compressed else 1):
            raise ReadError(f"it breaks off: {header.point_count:,} points are announced")
        if not compressed:
            return from_named(_arrays(file.read()))
    return from_named(_unpacked(path))


def _arrays(points: Any) -> dict[str, NDArray[Any]]:
    names = [name for name in points.point_format.dimension_names if name not in "XYZ"]
    columns = {name: np.asarray(points[name]) for name in names}
    axes = {axis: np.asarray(getattr(points, axis), np.float64) for axis in "xyz"}
    return axes | {name: values for name, values in columns.items() if values.ndim == 1}


def _unpacked(path: Path) -> dict[str, NDArray[Any]]:
    """The columns of a compressed file, unpacked in a process of its own: damaged data make the library end it."""
    place = Path(tempfile.gettempdir(), "laz")
    with (
        filling(place, "or choose another folder with TMPDIR=FOLDER"),
        tempfile.TemporaryDirectory(prefix="laz-") as folder,
    ):
        out = Path(folder, "points.npz")
        words = [sys.executable, "-c", UNPACK, str(path), str(out), str(MEMORY)]
        try:
            ran = subprocess.run(words, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise ReadError(f"it could not be unpacked in {SECONDS} seconds") from error
        if ran.returncode or not out.is_file():
            said = ran.stderr.decode(errors="replace").strip().splitlines()
            reason = said[-1][:120] if said else f"exit {ran.returncode}"
            raise ReadError(f"it cannot be read as a point cloud (its compressed data are damaged: {reason})")
        with np.load(out, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if arrays[name].ndim == 1}
