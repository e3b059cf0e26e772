"""Reading point clouds and meshes as clouds of so many points: what every source of points shares.

Shapes: P points in a file, N points asked for, D = 3 + F columns, K copies.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from modalities.point_augment import turned_about_up
from tasks.datasets.array_cache import keep_array, read_array
from tasks.datasets.base import ClassificationData, ClassificationSettings, DataError, Item, ReadError
from tasks.datasets.reading import require

Floats = NDArray[np.float32]

MESHES = (".off", ".obj", ".stl")
NUMBERS = (".xyz", ".txt", ".npy", ".npz", ".h5")
EXTENSIONS = (".ply", ".pcd", *MESHES, *NUMBERS)
# What columns after x, y, z mean in a file of bare numbers (the order of ModelNet40's resampled text files).
NUMBER_COLUMNS = ("nx", "ny", "nz", "r", "g", "b")
SAMPLINGS = ("uniform", "farthest")
CACHE_VERSION = 1
DENSER = 4  # farthest-point sampling of a mesh chooses among so many times the points wanted


@dataclass
class Cloud:
    """Points (P, 3) and the columns known beside them, name -> (P,); a mesh has its triangles too."""

    points: Floats
    columns: dict[str, Floats] = field(default_factory=dict)
    triangles: NDArray[np.int32] | None = None


class PointSettings(ClassificationSettings, total=False):
    """Arguments every source of single clouds takes, passed on to `PointData`."""

    num_points: int
    columns: Sequence[str]
    pool_points: int | None
    sampling: str
    votes: int
    vote_turns: bool
    cache_dir: str | None


class PointData(ClassificationData):
    """A source whose raw sample is a cloud ``(N, 3 + F)``, float32, z up, in the file's own units.

    A file is read once: a mesh is sampled, a large cloud thinned out, and the resulting pool of points is
    cached (`cached`). Training draws N points of the pool at random; validation, testing and prediction take
    the pool's first N, or ``votes`` copies, ``(K, N, 3 + F)``, each of other points. A cloud of fewer points
    is filled up with NaN, which the embedder leaves out.

    Args:
        num_points: N.
        columns: names of the F columns after x, y, z, out of nx, ny, nz (normals; meshes have them) and r, g,
            b.
        pool_points: points kept of each file; ``None`` keeps 2 N.
        sampling: how a pool is chosen: ``uniform`` over the surface (or among a cloud's points), or
            ``farthest`` points (Open3D).
        votes: K copies at test time; 1 gives ``(N, 3 + F)``.
        vote_turns: also turn the k-th copy about the vertical axis by 360°·k/K.
        cache_dir: folder of the cache; ``None`` takes ``.cache`` in the folder of samples.
        **common: see `DataModule`.
    """

    modality = "point_cloud"
    extensions = EXTENSIONS
    unit = "clouds"
    y_up = False  # whether this source's files have y up; they are turned so that z is

    def __init__(
        self,
        *,
        num_points: int = 1024,
        columns: Sequence[str] = (),
        pool_points: int | None = None,
        sampling: str = "uniform",
        votes: int = 1,
        vote_turns: bool = False,
        cache_dir: str | None = None,
        **common: Unpack[ClassificationSettings],
    ) -> None:
        super().__init__(**common)
        pool_points = 2 * num_points if pool_points is None else pool_points
        if num_points < 1 or votes < 1:
            raise DataError(f"num_points and votes must be at least 1, not {num_points} and {votes}")
        if pool_points < num_points:
            raise DataError(f"pool_points must be at least num_points, {num_points}, not {pool_points}")
        if sampling not in SAMPLINGS:
            raise DataError(f"sampling must be one of {', '.join(SAMPLINGS)}, not {sampling}")
        self.num_points = num_points
        self.columns = tuple(columns)
        self.pool_points = pool_points
        self.sampling = sampling
        self.votes = votes
        self.vote_turns = vote_turns
        # `root` is samples_dir/name for a sample only.
        samples_dir = Path(common.get("samples_dir") or "data/samples")
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else samples_dir / ".cache"

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor:
        pool = self.read_pool(item)
        return self.draw(pool, rng) if train else self.first(pool)

    def read_file(self, path: Path) -> Tensor:
        return self.first(self.pool_of(path))

    def read_pool(self, item: Item) -> Floats:
        """The pool of points of one item, (P, D)."""
        pool = self.pool_of(item.path)
        return turned_z_up(pool, self.has_normals) if self.y_up else pool

    @property
    def has_normals(self) -> bool:
        """Whether columns 3 to 5 of a sample are normals."""
        return self.columns[:3] == NUMBER_COLUMNS[:3]

    def pool_of(self, path: Path) -> Floats:
        """The pool of points of a file, as the file has them, (P, D); cached."""
        settings = {
            "points": [self.num_points, self.pool_points],
            "columns": list(self.columns),
            "sampling": self.sampling,
        }
        return cached(path, self.cache_dir, settings, lambda: self.make_pool(read_cloud(path)))

    def make_pool(self, cloud: Cloud) -> Floats:
        """Sample or thin out a cloud: (P, D), the points of a test first."""
        if cloud.triangles is not None:
            denser = DENSER if self.sampling == "farthest" else 1
            cloud = sample_surface(cloud, denser * self.pool_points)
        return self.thin_out(table_of(cloud, self.columns))

    def thin_out(self, table: Floats) -> Floats:
        """At most `pool_points` of ``(P, D)``, the points of a test first."""
        if self.sampling == "farthest":
            table = table[farthest_points(table[:, :3], self.pool_points)]
            front = farthest_points(table[:, :3], self.num_points)
            return np.concatenate([table[front], np.delete(table, front, axis=0)])
        return table[np.random.default_rng(0).permutation(len(table))[: self.pool_points]]

    def draw(self, pool: Floats, rng: np.random.Generator) -> Tensor:
        """N points of a pool at random, (N, D)."""
        return self.fill(pool[rng.permutation(len(pool))[: self.num_points]])

    def first(self, pool: Floats) -> Tensor:
        """The first N points of a pool, (N, D), or K copies of other points, (K, N, D)."""
        if self.votes == 1:
            return self.fill(pool[: self.num_points])
        rng = np.random.default_rng(0)
        copies = [self.fill(pool[: self.num_points]), *(self.draw(pool, rng) for _ in range(self.votes - 1))]
        points = torch.stack(copies)
        return turned_about_up(points, self.has_normals) if self.vote_turns else points

    def fill(self, table: Floats) -> Tensor:
        """Bring ``(P, D)`` with P <= N to (N, D), NaN behind."""
        whole = np.full((self.num_points, table.shape[1]), np.nan, dtype=np.float32)
        whole[: len(table)] = table
        return torch.from_numpy(whole)


# -- files ----------------------------------------------------------------------------------------------


def read_cloud(path: Path) -> Cloud:
    """Read a cloud or a mesh: PLY, PCD, OFF, OBJ, STL, XYZ, TXT, NPY, NPZ or HDF5.

    Files of bare numbers hold a row per point: x, y, z, then perhaps normals, then perhaps colours. NPZ and
    HDF5 files hold them under ``points`` or ``data``, or as their only array.

    Raises:
        ReadError: the file is missing, empty, broken, of another kind or holds numbers that are not finite.
    """
    if not path.is_file():
        raise ReadError("there is no such file")
    if path.stat().st_size == 0:
        raise ReadError("the file is empty (0 bytes)")
    kind = path.suffix.lower()
    if kind not in EXTENSIONS:
        raise ReadError(f"{kind or 'a file without extension'} is none of {', '.join(EXTENSIONS)}")
    try:
        if kind == ".off":
            cloud = _read_off(path)
        elif kind in NUMBERS:
            cloud = _from_numbers(_READERS[kind](path))
        else:
            cloud = _read_with_open3d(path, kind)
    except DataError:  # says already what is wrong, with the file or with a library
        raise
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, MemoryError, BadZipFile) as error:
        reason = str(error).replace(str(path), "").split("\n")[0].strip(" :.'\"") or type(error).__name__
        raise ReadError(f"it cannot be read as a point cloud ({reason})") from error
    if len(cloud.points) == 0:
        raise ReadError("it holds no points")
    arrays = [cloud.points, *cloud.columns.values()]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ReadError("it holds values that are not finite numbers")
    return cloud


def _read_off(path: Path) -> Cloud:
    """OFF; some of ModelNet's files have the counts on the line of the word OFF, without a space."""
    text = path.read_text(encoding="ascii", errors="replace")
    words = " ".join(line.split("#")[0] for line in text.splitlines()).split()
    if not words[:1] or not words[0].upper().startswith("OFF"):
        raise ReadError("it does not begin with the word OFF")
    words = [words[0][3:], *words[1:]] if len(words[0]) > 3 else words[1:]
    vertices, faces = int(words[0]), int(words[1])
    if vertices < 0 or faces < 0 or len(words) < 3 + 3 * vertices + faces:
        raise ReadError(f"it breaks off: {vertices:,} vertices and {faces:,} faces are announced")
    points = np.array(words[3 : 3 + 3 * vertices], dtype=np.float32).reshape(-1, 3)
    rest = words[3 + 3 * vertices :]
    if rest[: 4 * faces : 4] == ["3"] * faces:  # triangles only, as nearly always
        return _mesh(points, np.array(rest[: 4 * faces], dtype=np.int32).reshape(-1, 4)[:, 1:])
    triangles: list[tuple[int, int, int]] = []
    place = 0
    for _ in range(faces):
        corners = int(rest[place])
        polygon = [int(word) for word in rest[place + 1 : place + 1 + corners]]
        if len(polygon) < corners:
            raise ReadError(f"it breaks off: {vertices:,} vertices and {faces:,} faces are announced")
        triangles += [(polygon[0], *edge) for edge in pairwise(polygon[1:])]
        place += 1 + corners
    return _mesh(points, np.array(triangles, dtype=np.int32).reshape(-1, 3))


def _read_with_open3d(path: Path, kind: str) -> Cloud:
    o3d = open3d()
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        if kind != ".pcd":
            mesh = o3d.io.read_triangle_mesh(str(path))
            if len(mesh.triangles) or kind in MESHES:
                points, triangles = np.asarray(mesh.vertices), np.asarray(mesh.triangles)
                return _mesh(points.astype(np.float32), triangles.astype(np.int32))
        cloud = o3d.io.read_point_cloud(str(path))
    return _from_open3d(cloud)


def _mesh(points: Floats, triangles: NDArray[np.int32]) -> Cloud:
    if len(triangles) == 0:
        return Cloud(points)
    if triangles.min() < 0 or triangles.max() >= len(points):
        raise ReadError(f"a face names vertex {triangles.max()}, there are {len(points):,}")
    return Cloud(points, triangles=triangles)


def _from_open3d(cloud: Any) -> Cloud:
    columns: dict[str, Floats] = {}
    for names, values in ((NUMBER_COLUMNS[:3], cloud.normals), (NUMBER_COLUMNS[3:], cloud.colors)):
        table = np.asarray(values, dtype=np.float32)
        if len(table):
            columns |= dict(zip(names, table.T, strict=True))
    return Cloud(np.asarray(cloud.points, dtype=np.float32), columns)


def _from_numbers(table: NDArray[Any]) -> Cloud:
    if table.ndim == 3 and len(table) == 1:
        table = table[0]
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind not in "fiu":
        raise ReadError(
            f"it holds {table.dtype} numbers of shape {table.shape}, not a row x, y, z … per point"
        )
    table = table.astype(np.float32)
    return Cloud(table[:, :3], dict(zip(NUMBER_COLUMNS, table[:, 3:].T, strict=False)))


def _read_text(path: Path) -> NDArray[Any]:
    with path.open(encoding="utf-8", errors="replace") as file:
        comma = any("," in line for line, _ in zip(file, range(10), strict=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file without numbers is our own error
        return np.loadtxt(path, delimiter="," if comma else None, dtype=np.float32, ndmin=2)


def _read_npy(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, allow_pickle=False))


def _read_npz(path: Path) -> NDArray[Any]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return np.asarray(arrays[_key(list(arrays.files))])


def _read_h5(path: Path) -> NDArray[Any]:
    h5py = require("h5py", "HDF5 files")
    with h5py.File(path) as file:
        return np.asarray(file[_key(list(file.keys()))])


def _key(names: list[str]) -> str:
    wanted = next((name for name in ("points", "data") if name in names), None)
    if wanted is None and len(names) != 1:
        raise ReadError(f"it holds the arrays {', '.join(names) or '(none)'}; call the one to read points")
    return wanted or names[0]


_READERS: dict[str, Callable[[Path], NDArray[Any]]] = {
    ".xyz": _read_text,
    ".txt": _read_text,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_h5,
}


# -- choosing points ------------------------------------------------------------------------------------


def sample_surface(mesh: Cloud, count: int) -> Cloud:
    """``count`` points spread uniformly over a mesh's surface, with normals; the same ones each time."""
    o3d = open3d()
    surface = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(mesh.points.astype(np.float64)), o3d.utility.Vector3iVector(mesh.triangles)
    )
    if not surface.get_surface_area() > 0:
        raise ReadError("the mesh has no surface (area 0)")
    surface.compute_triangle_normals()
    o3d.utility.random.seed(0)
    return _from_open3d(surface.sample_points_uniformly(count, use_triangle_normal=True))


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


def table_of(cloud: Cloud, columns: Sequence[str]) -> Floats:
    """Points and the columns asked for, (P, D)."""
    absent = [name for name in columns if name not in cloud.columns]
    if absent:
        raise ReadError(f"it has no column {', '.join(absent)}")
    return np.column_stack([cloud.points, *(cloud.columns[name] for name in columns)]).astype(np.float32)


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


# -- cache ----------------------------------------------------------------------------------------------


def cached(
    path: Path, folder: Path, settings: dict[str, Any], make: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """``make()``, kept in ``folder`` as NPY under a key of the file (path, size, time) and ``settings``.

    The array is mapped into memory, not read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ReadError("there is no such file") from error
    about = [CACHE_VERSION, str(path.resolve()), stat.st_size, stat.st_mtime_ns, settings]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    entry = folder / key[:2] / f"{key}.npy"
    kept = read_array(entry)
    if kept is None:
        kept = make()
        keep_array(entry, kept, folder)
    return kept
