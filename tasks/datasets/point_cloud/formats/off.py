"""OFF and its variants COFF (colours), NOFF (normals) and STOFF (texture), and face colours."""

import re
from pathlib import Path

import numpy as np

from modalities.point_columns import NORMALS
from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import Cloud, ReadOptions, check_count, check_size, mesh
from tasks.datasets.point_cloud.formats.columns import COLORS, name_columns
from tasks.datasets.point_cloud.formats.numbers import polygons, table

KIND = re.compile(r"(ST)?(C)?(N)?(4)?(n)?OFF", re.IGNORECASE)
COUNTS = re.compile(r"\s*\d+\s+\d+(\s+\d+)?\s*")


def read_off(path: Path, options: ReadOptions) -> Cloud:
    """Read an OFF file. Some of ModelNet's files have the counts directly after the word OFF, without a space."""
    check_size(path.stat().st_size, options)
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("ascii", errors="replace")
    lines = text.splitlines()
    if "#" in text:
        lines = [line.split("#", 1)[0] for line in lines]
    lines = [line for line in lines if line and not line.isspace()]
    if lines and COUNTS.fullmatch(lines[0]):  # the word may be missing
        lines.insert(0, "OFF")
    kind = KIND.match(lines[0].lstrip()) if lines else None
    if kind is None:
        raise ReadError("it does not begin with the word OFF")
    behind = lines[0].lstrip()[kind.end() :].strip()
    if behind.upper().startswith("BINARY"):
        raise ReadError("it is a binary OFF file: save it as text, or as PLY")
    if kind[4] or kind[5]:
        raise ReadError(f"it is {kind[0]}, with points of another number of dimensions than three")
    lines = [*([behind] if behind else []), *lines[1:]]
    vertices, faces, first = _counts(lines)
    check_count(vertices, options)
    names = [*(NORMALS if kind[3] else ()), *((*COLORS, "a") if kind[2] else ()), *("st" if kind[1] else "")]
    body = lines[1:] if len(lines[0].split()) == first else []  # the whole file may be on one line
    if len(body) < vertices + faces:
        body = _one_line_each(lines, vertices, faces, first, 3 + len(names))
    return _from_lines(body, vertices, faces, names, options)


def _counts(lines: list[str]) -> tuple[int, int, int]:
    """Numbers of vertices and faces, and the number of count words (the number of edges may be missing)."""
    words = lines[0].split() if lines else []
    try:
        return int(words[0]), int(words[1]), min(len(words), 3)
    except (IndexError, ValueError) as error:
        said = " ".join(words)[:40]
        raise ReadError(
            f"it cannot be read as a point cloud (its counts of vertices and faces are {said!r})"
        ) from error


def _one_line_each(lines: list[str], vertices: int, faces: int, first: int, width: int) -> list[str]:
    """Re-splits words to one line per vertex and face; the faces have no colours."""
    words = " ".join(lines).split()[first:]
    broken = ReadError(f"it breaks off: {vertices:,} vertices and {faces:,} faces are announced")
    if vertices < 0 or faces < 0 or len(words) < width * vertices + faces:
        raise broken
    body = [" ".join(words[start : start + width]) for start in range(0, width * vertices, width)]
    place = width * vertices
    for _ in range(faces):
        if place >= len(words) or not words[place].isdigit():
            raise broken
        end = place + 1 + int(words[place])
        if end > len(words):
            raise broken
        body.append(" ".join(words[place:end]))
        place = end
    return body


def _from_lines(body: list[str], vertices: int, faces: int, names: list[str], options: ReadOptions) -> Cloud:
    rows = table(body[:vertices], "vertex")
    if vertices and rows.shape[1] < 3:
        raise ReadError(f"it cannot be read as a point cloud (a vertex has {rows.shape[1]} coordinates)")
    rows = rows if vertices else np.zeros((0, 3))
    extra = rows[:, 3:]
    if names and extra.shape[1] in (len(names), len(names) - 1):  # colours come with or without alpha
        columns = dict(zip(names, extra.T, strict=False))
    else:
        columns = name_columns(extra, options.wanted)
    triangles, owner, colors = polygons(body[vertices : vertices + faces])
    face_columns = {} if colors is None else dict(zip(COLORS, colors[owner].T, strict=False))
    return mesh(rows[:, :3], triangles, columns=columns, face_columns=face_columns)
