"""OBJ (Wavefront): vertices, optionally with colours, and polygons; materials are ignored."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modalities.point_columns import NORMALS
from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import (
    Cloud,
    Indices,
    ReadOptions,
    check_count,
    check_size,
    fans,
    mesh,
)
from tasks.datasets.point_cloud.formats.columns import COLORS
from tasks.datasets.point_cloud.formats.numbers import Lines, as_indices, table, uniform

WIDTHS = {3: (), 4: ("w",), 6: COLORS, 7: (*COLORS, "a")}


def read_obj(path: Path, options: ReadOptions) -> Cloud:
    check_size(path.stat().st_size, options)
    text = path.read_bytes()
    if b"\\" in text:  # a line continuation
        text = text.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ")
    vertices, normals, faces, before = _sorted(text)
    check_count(len(vertices), options)
    rows = table(vertices, "vertex")
    if not len(rows):
        raise ReadError("it holds no points: it has no line v x y z")
    if rows.shape[1] not in WIDTHS:
        raise ReadError(f"it cannot be read as a point cloud (its vertices have {rows.shape[1]} values)")
    columns = dict(zip(WIDTHS[rows.shape[1]], rows[:, 3:].T, strict=True))
    columns.pop("w", None)
    if not faces and len(normals) == len(vertices):
        columns |= dict(zip(NORMALS, table(normals, "normal").T, strict=False))
    colors = rows[:, 3:6] if "r" in columns else np.zeros((0, 3))
    scale = 1.0 if colors.size and colors.max() <= 1 else None  # 1 by convention; some programs write bytes
    triangles, owner = fans(list(_corners(faces)))
    corners = _counted(triangles, before[owner])
    return mesh(rows[:, :3], corners, columns=columns, color_scale=scale)


def _sorted(text: bytes) -> tuple[Lines, Lines, Lines, Indices]:
    """Lines of vertices, normals and faces without their first word, and the number of vertices before each face."""
    lines = Lines(text)
    if not lines:
        raise ReadError("it holds no points: it has no line v x y z")
    content = np.frombuffer(lines.data, np.uint8)
    starts = np.append(0, lines.ends[:-1] + 1)
    first, second = content[starts], content[starts + 1]  # a line has at least one byte and its end
    blank = (second == ord(" ")) | (second == ord("\t"))
    if ((first == ord(" ")) | (first == ord("\t"))).any():
        return _sorted(b"\n".join(line.strip() for line in lines.data.split(b"\n")))
    vertex, face = (first == ord("v")) & blank, (first == ord("f")) & blank
    normal = (first == ord("v")) & (second == ord("n"))
    picked = [
        _picked(lines.data, starts, lines.ends, which, word)
        for which, word in ((vertex, b"v"), (normal, b"vn"), (face, b"f"))
    ]
    return picked[0], picked[1], picked[2], np.cumsum(vertex)[face]


def _picked(text: bytes, starts: Indices, ends: Indices, which: NDArray[np.bool_], word: bytes) -> Lines:
    """Selected lines of a text that begin with `word`, without it and without comments."""
    turns = np.flatnonzero(np.diff(np.concatenate([[False], which, [False]]).astype(np.int8)))
    runs = zip(starts[turns[::2]].tolist(), ends[turns[1::2] - 1].tolist(), strict=True)
    joined = b"\n" + b"".join(text[start : end + 1] for start, end in runs)
    for behind in (b" ", b"\t"):
        joined = joined.replace(b"\n" + word + behind, b"\n")
    if b"#" in joined:
        joined = b"\n".join(line.split(b"#", 1)[0] for line in joined.split(b"\n"))
    return Lines(joined[1:])


def _corners(faces: Lines) -> Iterator[tuple[Indices, Indices]]:
    """Faces grouped by number of corners, (F, K), with their indices; of corners ``1/2/3`` the vertex is used."""
    each = 1
    if b"/" in faces.data:
        each = _values_of_corners(faces.data)
        if each:
            faces = Lines(faces.data.replace(b"//", b" ").replace(b"/", b" "))
        else:
            faces, each = Lines(re.sub(rb"/\S*", b"", faces.data)), 1
    for numbers, rows in uniform(faces):
        yield numbers, as_indices(rows[:, ::each])


def _values_of_corners(text: bytes) -> int:
    """Number of values per corner, if all corners are written like the first; else 0."""
    corner = text.split(None, 1)[0]
    slashes = corner.count(b"/")
    content = np.frombuffer(text, np.uint8)
    signs = content[(content == ord("/")) | (content <= ord(" "))]
    if len(signs) % (slashes + 1) or corner.endswith(b"/"):
        return 0
    table = signs.reshape(-1, slashes + 1) == ord("/")
    alike = table[:, :-1].all() and not table[:, -1].any()
    return slashes + 1 - corner.count(b"//") if alike and b"  " not in text else 0


def _counted(triangles: Indices, before: Indices) -> Indices:
    """Converts 1-based, or negative (relative to the face), indices to 0-based ones."""
    if (triangles == 0).any():
        raise ReadError("a face names vertex 0, they are counted from 1")
    return np.where(triangles < 0, before[:, None] + triangles, triangles - 1)
