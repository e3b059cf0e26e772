"""STL: triangles, binary or as text."""

import struct
from pathlib import Path

import numpy as np

from tasks.datasets.base import ReadError
from tasks.datasets.point_cloud.formats.cloud import (
    Cloud,
    Doubles,
    ReadOptions,
    check_count,
    check_size,
    mesh,
)
from tasks.datasets.point_cloud.formats.numbers import table

HEADER, RECORD = 84, 50  # bytes
TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])


def read_stl(path: Path, options: ReadOptions) -> Cloud:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER)
        count = struct.unpack_from("<I", head, 80)[0] if len(head) == HEADER else -1
        # Some binary files begin with the word solid, too: their size tells.
        if head.lstrip()[:5].lower() == b"solid" and size != HEADER + RECORD * count:
            check_size(size, options)
            file.seek(0)
            corners = _from_text(file.read().decode("utf-8", errors="replace"))
        else:
            if count < 0:
                raise ReadError(f"it holds no points: a binary STL file has {HEADER} bytes at least")
            check_count(3 * count, options)
            rows = np.frombuffer(file.read(RECORD * count), np.uint8)
            if rows.size < RECORD * count:
                raise ReadError(
                    f"it breaks off: {count:,} triangles are announced, {rows.size // RECORD:,} are there"
                )
            corners = rows.view(TRIANGLE)["corners"].astype(np.float64).reshape(-1, 3)
    if not len(corners):
        raise ReadError("it holds no points: it has no triangle")
    return mesh(corners, np.arange(len(corners)).reshape(-1, 3))


def _from_text(text: str) -> Doubles:
    lines = [
        line.split(None, 1)[1] for line in map(str.strip, text.splitlines()) if line[:7].lower() == "vertex "
    ]
    if len(lines) % 3:
        raise ReadError("it breaks off: its last triangle has fewer than three corners")
    rows = table(lines, "vertex")
    if lines and rows.shape[1] != 3:
        raise ReadError(f"it cannot be read as a point cloud (a vertex has {rows.shape[1]} values)")
    return rows
