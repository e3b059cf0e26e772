"""Reads point clouds and meshes as clouds of a fixed number of points; base class of the point cloud data modules.

Shapes: P points in a file, N points per sample, D = 3 + F columns, K copies.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from modalities.point_augment import turned_about_up
from modalities.point_columns import normal_places
from tasks.datasets.base import ClassificationSettings, DataModule
from tasks.datasets.errors import DataError
from tasks.datasets.items import Item
from tasks.datasets.point_cloud.cache import cached
from tasks.datasets.point_cloud.choice import farthest_points, sample_surface, turned_z_up
from tasks.datasets.point_cloud.formats.cloud import MAX_POINTS, Cloud, Floats, ReadOptions
from tasks.datasets.point_cloud.formats.reading import EXTENSIONS, read_cloud, table_of
from tasks.datasets.targets import ClassTargets, Kind

SAMPLINGS = ("uniform", "farthest")
DENSER = 4  # oversampling factor of a mesh before farthest-point sampling


class PointSettings(ClassificationSettings, total=False):
    """Arguments of every data module with one cloud per file, passed to `PointData`."""

    num_points: int
    columns: Sequence[str]
    pool_points: int | None
    sampling: str
    votes: int
    vote_turns: bool
    cache_dir: str | None
    max_points: int


class PointData(DataModule):
    """Base class of data modules for point clouds; a raw sample is ``(N, 3 + F)``, float32, z up, in the file's units.

    A file is read once: a mesh is sampled, a large cloud subsampled, and the resulting pool of points is cached
    (`cached`). Training draws N points of the pool at random; validation, testing and prediction use the first N, or
    ``votes`` copies, ``(K, N, 3 + F)``, with different points. Smaller clouds are padded with NaN, which the embedder
    ignores.

    Args:
        num_points: number of points per sample, N.
        columns: names of the F columns after x, y, z: nx, ny, nz (normals; meshes have them), r, g, b (colours,
            from 0 to 1), intensity or any other column name of the files.
        pool_points: pool size per file; ``None``: 2 N.
        sampling: sampling of the pool: ``uniform`` over the surface (or a cloud's points), or
            ``farthest`` points (Open3D).
        votes: K copies at test time; 1 gives ``(N, 3 + F)``.
        vote_turns: also rotate the k-th copy about the vertical axis by 360°·k/K.
        cache_dir: cache folder; ``None``: ``.cache`` in the folder of samples.
        max_points: files with more points are refused before reading.
        **common: see `DataModule`.
    """

    kind: ClassVar[Kind] = ClassTargets
    modality = "point_cloud"
    extensions = EXTENSIONS
    unit = "clouds"
    y_up = False  # whether the files have y up; they are rotated to z up
    file_columns: tuple[str, ...] | None = (
        None  # for files without column names; None: see `ReadOptions.order`
    )
    color_scale: float | None = None  # for formats that do not define it; None: see `columns.color_scale`

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
        max_points: int = MAX_POINTS,
        **common: Unpack[ClassificationSettings],
    ) -> None:
        super().__init__(**common)
        pool_points = 2 * num_points if pool_points is None else pool_points
        if max_points < 1:
            raise DataError(f"max_points must be at least 1, not {max_points}")
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
        self.max_points = max_points
        # `root` is samples_dir/name only for the embedded sample.
        samples_dir = Path(common.get("samples_dir") or "data/samples")
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else samples_dir / ".cache"
        self.check_turning()

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor:
        pool = self.read_pool(item)
        return self.draw(pool, rng) if train else self.first(pool)

    def read_file(self, path: Path) -> Tensor:
        return self.first(self.pool_of(path))

    def read_pool(self, item: Item) -> Floats:
        """The pool of points of one item, (P, D)."""
        pool = self.pool_of(item.path)
        return turned_z_up(pool, self.columns) if self.y_up else pool

    def check_turning(self) -> None:
        """Raise a `DataError` if clouds are to be turned, and the columns name their normals in part."""
        try:
            normal_places(self.columns if self.y_up or self.vote_turns else ())
        except ValueError as error:
            raise DataError(f"task.data.{error}") from error

    def pool_of(self, path: Path) -> Floats:
        """The pool of points of a file, in its original orientation, (P, D); cached."""
        settings = {
            "points": [self.num_points, self.pool_points],
            "columns": list(self.columns),
            "sampling": self.sampling,
            "read": [self.file_columns, self.color_scale],
        }
        return cached(path, self.cache_dir, settings, lambda: self.make_pool(self.read_cloud(path)))

    def read_cloud(self, path: Path) -> Cloud:
        """The cloud or the mesh in a file; raises `ReadError`."""
        return read_cloud(path, ReadOptions(self.max_points, self.columns, self.file_columns))

    def make_pool(self, cloud: Cloud) -> Floats:
        """Sample a mesh or subsample a cloud: (P, D), the test points first."""
        if cloud.triangles is not None:
            denser = DENSER if self.sampling == "farthest" else 1
            cloud = sample_surface(cloud, denser * self.pool_points)
        return self.thin_out(table_of(cloud, self.columns, self.color_scale))

    def thin_out(self, table: Floats) -> Floats:
        """At most `pool_points` of ``(P, D)``, the test points first."""
        if self.sampling == "farthest":
            table = table[farthest_points(table[:, :3], self.pool_points)]
            front = farthest_points(table[:, :3], self.num_points)
            return np.concatenate([table[front], np.delete(table, front, axis=0)])
        return table[np.random.default_rng(0).permutation(len(table))[: self.pool_points]]

    def draw(self, pool: Floats, rng: np.random.Generator) -> Tensor:
        """N random points of a pool, (N, D)."""
        return self.fill(pool[rng.permutation(len(pool))[: self.num_points]])

    def first(self, pool: Floats) -> Tensor:
        """The first N points of a pool, (N, D), or K copies with different points, (K, N, D)."""
        if self.votes == 1:
            return self.fill(pool[: self.num_points])
        rng = np.random.default_rng(0)
        copies = [self.fill(pool[: self.num_points]), *(self.draw(pool, rng) for _ in range(self.votes - 1))]
        points = torch.stack(copies)
        return turned_about_up(points, self.columns) if self.vote_turns else points

    def fill(self, table: Floats) -> Tensor:
        """Pads ``(P, D)`` with P <= N to (N, D) with NaN."""
        whole = np.full((self.num_points, table.shape[1]), np.nan, dtype=np.float32)
        whole[: len(table)] = table
        return torch.from_numpy(whole)
