"""LAS and LAZ files of airborne and terrestrial scanners, through laspy."""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import Cloud, ReadOptions, check_count
from tasks.datasets.point_cloud.formats.columns import from_named
from tasks.datasets.reading import require
from tasks.disk import filling

FORMAT_BYTE, COMPRESSED = 104, 0x80  # byte offset and flag for compressed points
HEADER = 375  # bytes of the longest header
VLR, EVLR = 54, 60  # minimum bytes of a variable length record before (VLR) and after (EVLR) the points
# Memory limit of unpacking: a base, and an amount per point; several times what intact files need.
MEMORY, MEMORY_PER_POINT = 3 << 30, 400  # bytes of address space
SECONDS, POINTS_PER_SECOND = 10.0, 300_000
MOST_PACKED = 200  # maximum compression ratio of LAZ
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
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER)
    _check_header(head, size)
    compressed = len(head) > FORMAT_BYTE and bool(head[FORMAT_BYTE] & COMPRESSED)
    if compressed:
        require("lazrs", "LAZ files")
    with laspy.open(path, **({"laz_backend": ()} if compressed else {})) as file:
        header = file.header
        check_count(header.point_count, options)
        whole = header.point_count * header.point_format.size
        if whole > size * (MOST_PACKED if compressed else 1):
            raise ReadError(f"it breaks off: {header.point_count:,} points are announced")
        if not compressed:
            return from_named(_arrays(file.read()))
        count = header.point_count
    return from_named(_unpacked(path, count))


def _check_header(head: bytes, size: int) -> None:
    """Raise a `ReadError` for counts that are impossible for this file size: laspy would try to read every record."""
    if len(head) < 227 or head[:4] != b"LASF":
        raise ReadError("it holds no points: it does not begin with the header of a LAS file")
    length, start, records = struct.unpack_from("<HII", head, 94)
    later = struct.unpack_from("<QI", head, 235) if head[25] >= 4 and len(head) >= HEADER else (0, 0)
    if (
        not length <= start <= size
        or length + VLR * records > size
        or (later[1] and later[0] + EVLR * later[1] > size)
    ):
        raise ReadError("it cannot be read as a point cloud (its header announces more than the file holds)")


def _arrays(points: Any) -> dict[str, NDArray[Any]]:
    names = [name for name in points.point_format.dimension_names if name not in "XYZ"]
    columns = {name: np.asarray(points[name]) for name in names}
    axes = {axis: np.asarray(getattr(points, axis), np.float64) for axis in "xyz"}
    return axes | {name: values for name, values in columns.items() if values.ndim == 1}


def _unpacked(path: Path, count: int) -> dict[str, NDArray[Any]]:
    """The columns of a compressed file, unpacked in a subprocess, since damaged data can crash the library."""
    place = Path(tempfile.gettempdir(), "laz")
    with (
        filling(place, "or choose another folder with TMPDIR=FOLDER"),
        tempfile.TemporaryDirectory(prefix="laz-") as folder,
    ):
        out = Path(folder, "points.npz")
        seconds = SECONDS + count / POINTS_PER_SECOND
        words = [sys.executable, "-c", UNPACK, str(path), str(out), str(MEMORY + MEMORY_PER_POINT * count)]
        try:
            ran = subprocess.run(words, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise ReadError(
                f"its {count:,} points could not be unpacked in {seconds:.0f} seconds: its compressed "
                "data are damaged, or the machine is busy with something else"
            ) from error
        if ran.returncode or not out.is_file():
            said = ran.stderr.decode(errors="replace").strip().splitlines()
            reason = said[-1][:120] if said else f"exit {ran.returncode}"
            raise ReadError(f"it cannot be read as a point cloud (its compressed data are damaged: {reason})")
        with np.load(out, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if arrays[name].ndim == 1}
