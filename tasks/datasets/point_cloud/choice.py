"""Choosing points: of a mesh's surface, or few of many.

Shapes: P points, N points asked for, T triangles, D columns.
"""

import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import Cloud, Floats
from tasks.datasets.point_cloud.formats.columns import NORMALS
from tasks.datasets.reading import require


def sample_surface(mesh: Cloud, count: int) -> Cloud:
    """``count`` points spread uniformly over a mesh's surface, the same ones each time, with the normals of
    its triangles; what is known of its vertices is interpolated, what is known of its triangles taken over.

    Raises:
        ReadError: the mesh has no surface.
    """
    assert mesh.triangles is not None
    corners = mesh.triangles.ravel()
    points, triangles = mesh.points, mesh.triangles
    columns = {name: values for name, values in mesh.columns.items() if name not in NORMALS}
    if mesh.face_columns:  # each triangle gets corners of its own, which are of one value
        points, triangles = points[corners], np.arange(len(corners), dtype=np.int32).reshape(-1, 3)
        columns = {name: values[corners] for name, values in columns.items()}
        columns = {name: np.repeat(values, 3) for name, values in mesh.face_columns.items()} | columns
    names = list(columns)
    found: dict[str, NDArray[Any]] = {}
    for start in range(0, max(len(names), 1), 3):
        three = names[start : start + 3]
        surface = _sampled(points, triangles, [columns[name] for name in three], count)
        if not found:
            found = dict(zip(NORMALS, np.asarray(surface.normals, np.float32).T, strict=True))
        found |= dict(zip(three, np.asarray(surface.colors, np.float32).T, strict=False))
    chosen = np.asarray(surface.points, np.float32)
    return Cloud(chosen, found, color_scale=mesh.color_scale, origin=mesh.origin)


def _sampled(points: Floats, triangles: NDArray[Any], columns: list[NDArray[Any]], count: int) -> Any:
    """Open3D's points on a surface; what is to be interpolated takes the place of the colours."""
    o3d = open3d()
    surface = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(points.astype(np.float64)), o3d.utility.Vector3iVector(triangles)
    )
    if not surface.get_surface_area() > 0:
        raise ReadError("the mesh has no surface (area 0)")
    surface.compute_triangle_normals()
    if columns:
        filled = [*columns, *[np.zeros(len(points))] * (3 - len(columns))]
        surface.vertex_colors = o3d.utility.Vector3dVector(np.column_stack(filled).astype(np.float64))
    o3d.utility.random.seed(0)
    return surface.sample_points_uniformly(count, use_triangle_normal=True)


def farthest_points(points: Floats, count: int) -> NDArray[np.int64]:
    """Index, ascending, of at most ``count`` of ``(P, 3)`` points, each farthest from those before it."""
    if len(points) <= count:
        return np.arange(len(points))
    o3d = open3d()
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.astype(np.float64)))
    # The colours carry the index through: the chosen cloud alone would not say which points it holds.
    index = np.zeros((len(points), 3))
    index[:, 0] = np.arange(len(points))
    cloud.colors = o3d.utility.Vector3dVector(index)
    chosen = cloud.farthest_point_down_sample(count)
    return np.sort(np.asarray(chosen.colors)[:, 0].astype(np.int64))


def turned_z_up(table: Floats, normals: bool = False) -> Floats:
    """(…, D) with y up -> z up: x stays, -z becomes y, y becomes z; the normals (columns 3 to 5) likewise."""
    parts = [table[..., :3], table[..., 3:6]] if normals else [table[..., :3]]
    turned = [np.stack([part[..., 0], -part[..., 2], part[..., 1]], axis=-1) for part in parts]
    return np.concatenate([*turned, table[..., 3 * len(parts) :]], axis=-1)


def open3d() -> Any:
    """The module, imported late: it takes seconds, and warns where there is no GPU."""
    # In a notebook it would start a web server.
    os.environ.setdefault("OPEN3D_DISABLE_WEB_VISUALIZER", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return require("open3d", "meshes and point clouds")
