"""OBJ (Wavefront): vertices, perhaps with colours behind them, and polygons; materials are left alone."""

import re
from pathlib import Path

import numpy as np

from tasks.datasets.base import ReadError
from tasks.datasets.point_cloud.formats.cloud import (
    Cloud,
    Indices,
    ReadOptions,
    check_count,
    check_size,
    mesh,
)
from tasks.datasets.point_cloud.formats.columns import COLORS, NORMALS
from tasks.datasets.point_cloud.formats.numbers import polygons, table

WIDTHS = {3: (), 4: ("w",), 6: COLORS, 7: (*COLORS, "a")}


def read_obj(path: Path, options: ReadOptions) -> Cloud:
    check_size(path.stat().st_size, options)
    text = path.read_text(encoding="utf-8", errors="replace")
    if "\\" in text:  # a line that goes on
        text = text.replace("\\\r\n", " ").replace("\\\n", " ")
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
    scale = 1.0 if colors.size and colors.max() <= 1 else None  # as the format has it; some write bytes
    triangles, owner, _ = polygons(_sized(faces))
    corners = _counted(triangles, np.asarray(before, np.int64)[owner])
    return mesh(rows[:, :3], corners, columns=columns, color_scale=scale)


def _sorted(text: str) -> tuple[list[str], list[str], list[str], list[int]]:
    """Lines of vertices, of normals and of faces without their first word, and the number of vertices before
    each face."""
    vertices: list[str] = []
    normals: list[str] = []
    faces: list[str] = []
    before: list[int] = []
    for line in text.splitlines():
        start = line[:2]
        if start in ("v ", "v\t"):
            vertices.append(line[2:])
        elif start in ("f ", "f\t"):
            faces.append(line[2:])
            before.append(len(vertices))
        elif start == "vn":
            normals.append(line[3:])
        elif line[:1].isspace() and line.strip():
            return _sorted("\n".join(line.strip() for line in text.splitlines()))
    if "#" in text:
        vertices, faces = ([line.split("#", 1)[0] for line in lines] for lines in (vertices, faces))
    return vertices, normals, faces, before


def _sized(faces: list[str]) -> list[str]:
    """Faces as ``K index … index``: of corners written ``1/2/3`` the vertex counts."""
    joined = "\n".join(faces)
    if "/" in joined:
        faces = re.sub(r"/\S*", "", joined).split("\n")
    return [f"{len(face.split())} {face}" for face in faces]


def _counted(triangles: Indices, before: Indices) -> Indices:
    """Indices from 1, or from the vertex before the face backwards, as indices from 0."""
    if (triangles == 0).any():
        raise ReadError("a face names vertex 0, they are counted from 1")
    return np.where(triangles < 0, before[:, None] + triangles, triangles - 1)
