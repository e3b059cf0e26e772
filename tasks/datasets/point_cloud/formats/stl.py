"""STL: triangles, binary or as text."""

import struct
from pathlib import Path

import numpy as np

from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import (
    Cloud,
    Doubles,
    ReadOptions,
    check_count,
    check_size,
    mesh,
)
from tasks.datasets.point_cloud.formats.numbers import Lines, table

HEADER, RECORD = 84, 50  # bytes
WORD = b"vertex"
BLANKS = np.frombuffer(b" \t", np.uint8)
MOST_INDENTED = 200  # characters before the first word of a line
TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])


def read_stl(path: Path, options: ReadOptions) -> Cloud:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER)
        count = struct.unpack_from("<I", head, 80)[0] if len(head) == HEADER else -1
        # Some binary files begin with the word solid, too; they are recognised by their size.
        if head.lstrip()[:5].lower() == b"solid" and size != HEADER + RECORD * count:
            check_size(size, options)
            file.seek(0)
            corners = _from_text(file.read())
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


def _from_text(text: bytes) -> Doubles:
    corners = _corners(text)
    if len(corners) % 3:
        raise ReadError("it breaks off: its last triangle has fewer than three corners")
    rows = table(Lines(b"".join(corners)), "vertex")
    if corners and rows.shape[1] != 3:
        raise ReadError(f"it cannot be read as a point cloud (a vertex has {rows.shape[1]} values)")
    return rows


def _corners(text: bytes) -> list[bytes]:
    """The rest of all lines that begin with the word vertex."""
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    content = np.frombuffer(text, np.uint8)
    at = np.flatnonzero((content | 0x20) == ord("x")) - WORD.index(b"x")  # x is the rarest of its letters
    at = at[(at >= 0) & (at + len(WORD) < len(content))]
    for place, letter in enumerate(WORD):
        at = at[(content[at + place] | 0x20) == letter]
    at = at[np.isin(content[at + len(WORD)], BLANKS)]
    ends = np.append(np.flatnonzero(content == ord("\n")), len(content))
    line = np.searchsorted(ends, at)
    before = at - np.append(-1, ends)[line] - 1
    for width in np.flatnonzero(np.bincount(before)) if len(before) else ():
        mine = np.flatnonzero(before == width)
        if width > MOST_INDENTED:
            before[mine] = -1
            continue
        blank = np.isin(content[at[mine, None] - 1 - np.arange(width)], BLANKS).all(axis=1)
        before[mine[~blank]] = -1
    own = before >= 0
    starts, behind = at[own] + len(WORD), ends[line[own]] + 1
    return [text[a:b].lstrip(b" \t") for a, b in zip(starts.tolist(), behind.tolist(), strict=True)]
