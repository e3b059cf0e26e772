"""Sampling of points from the surface of a mesh, and farthest-point sampling.

Shapes: P points, T triangles, D columns.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.point_columns import NORMALS, normal_places
from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import Cloud, Floats
from tasks.datasets.reading import require


def sample_surface(mesh: Cloud, count: int) -> Cloud:
    """Deterministically samples ``count`` points uniformly from a mesh's surface, with the triangles' normals.
    Columns of vertices are interpolated, columns of triangles are copied.

    Raises:
        ReadError: the mesh has no surface.
    """
    assert mesh.triangles is not None
    corners = mesh.triangles.ravel()
    points, triangles = mesh.points, mesh.triangles
    columns = {name: values for name, values in mesh.columns.items() if name not in NORMALS}
    if mesh.face_columns:  # duplicate the vertices of each triangle, so that all three have its value
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
    """Sample a surface with Open3D; columns are interpolated as colours."""
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
    """Farthest-point sampling of ``(P, 3)`` points: ascending indices of at most ``count`` points."""
    if len(points) <= count:
        return np.arange(len(points))
    o3d = open3d()
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.astype(np.float64)))
    # The index is passed as a colour, since Open3D does not return indices.
    index = np.zeros((len(points), 3))
    index[:, 0] = np.arange(len(points))
    cloud.colors = o3d.utility.Vector3dVector(index)
    chosen = cloud.farthest_point_down_sample(count)
    return np.sort(np.asarray(chosen.colors)[:, 0].astype(np.int64))


def turned_z_up(table: Floats, columns: Sequence[str] = ()) -> Floats:
    """(…, D) with y up -> z up: x stays, -z becomes y, y becomes z; the normals among ``columns``, the names of the
    columns after x, y, z, likewise.
    """
    turned = table.copy()
    for _, y, z in filter(None, [(0, 1, 2), normal_places(columns)]):
        turned[..., y], turned[..., z] = -table[..., z], table[..., y]
    return turned


def open3d() -> Any:
    """Open3D, imported lazily: it takes seconds, and warns without a GPU."""
    # Otherwise it starts a web server in notebooks.
    os.environ.setdefault("OPEN3D_DISABLE_WEB_VISUALIZER", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return require("open3d", "meshes and point clouds")
