"""ModelNet40 and ModelNet10 (Wu et al. 2015, arXiv 1406.5670): CAD models of 40 or 10 object classes."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import Unpack

from modalities.point_columns import NORMALS
from tasks.datasets.download import Source
from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.fetch import download_and_unpack
from tasks.datasets.items import Item
from tasks.datasets.point_cloud.cache import cached
from tasks.datasets.point_cloud.choice import turned_z_up
from tasks.datasets.point_cloud.files import PointData, PointSettings
from tasks.datasets.point_cloud.formats.cloud import Floats
from tasks.datasets.reading import require
from tasks.datasets.splits import stable_fraction

SOURCES = {
    40: Source(
        "https://modelnet.cs.princeton.edu/ModelNet40.zip",
        sha256="42dc3e656932e387f554e25a4eb2cc0e1a1bd3ab54606e2a9eae444c60e536ac",
        most_gb=20,
    ),
    10: Source(
        "https://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
        sha256="9d8679435fc07d1d26f13009878db164a7aa8ea5e7ea3c8880e42794b7307d51",
        most_gb=20,
    ),
}
FOLDERS = (
    ".", "ModelNet40", "ModelNet10", "modelnet40_normal_resampled", "modelnet40_ply_hdf5_2048",
)  # fmt: skip
# fmt: off
MODELNET10 = (
    "bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet",
)
# fmt: on


class ModelNet(PointData):
    """ModelNet with its official train and test splits: 9,843 / 2,468 models (40 classes), 3,991 / 908 (10).

    Three variants are read: the meshes (``class/train/*.off``; z up), the text files of PointNet++ with 10,000
    points and normals (``modelnet40_normal_resampled``; y up) and the HDF5 files of PointNet with 2,048
    points (``modelnet40_ply_hdf5_2048``; y up). All are converted to z up.

    There is no official validation split; many papers select the epoch on the test split. Here a fraction of the
    training split is held out, by a hash of each model's name.

    Args:
        classes: 40 or 10.
        val_fraction: fraction of the training split to hold out.
        **settings: see `PointData` and `DataModule`.
    """

    layout = (
        "class/train/*.off and class/test/*.off (the unpacked ModelNet40.zip), "
        "or modelnet40_normal_resampled (class/*.txt with modelnet40_train.txt), "
        "or modelnet40_ply_hdf5_2048 (ply_data_train*.h5 with shape_names.txt)"
    )
    homepage = "https://modelnet.cs.princeton.edu"
    y_up = True  # unless meshes are found

    def __init__(
        self,
        *,
        classes: int = 40,
        val_fraction: float = 0.1,
        **settings: Unpack[PointSettings],
    ) -> None:
        super().__init__(**settings)
        if classes not in SOURCES:
            raise DataError(f"classes must be 40 or 10, not {classes}")
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
        self.classes = classes
        self.val_fraction = val_fraction

    @property
    def title(self) -> str:
        return f"ModelNet{self.classes}"

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.point_cloud.sample import modelnet

        modelnet(root)

    def looks_complete(self, root: Path) -> bool:
        return _find(root) is not None

    def fetch(self, root: Path) -> None:
        download_and_unpack(SOURCES[self.classes], root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        found = _find(root)
        if found is None:
            raise self.bad_layout(f"{root} holds none of these forms")
        folder, form = found
        self.y_up = form != "meshes"
        read = {"meshes": self._from_meshes, "text": self._from_text, "hdf5": self._from_hdf5}[form]
        named = read(folder)
        splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        for part, name, item in named:
            held_out = part == "train" and stable_fraction(name) < self.val_fraction
            splits["val" if held_out else part].append(item)
        return splits

    def _from_meshes(self, folder: Path) -> list[tuple[str, str, Item]]:
        names = sorted(path.name for path in folder.iterdir() if (path / "train").is_dir())
        if self.classes == 10 and set(MODELNET10) <= set(names):
            names = list(MODELNET10)
        self.class_names = names
        return [
            (part, path.stem, Item(path, target))
            for target, name in enumerate(names)
            for part in ("train", "test")
            for path in sorted((folder / name / part).glob("*.off"))
        ]

    def _from_text(self, folder: Path) -> list[tuple[str, str, Item]]:
        self.class_names = sorted(_words(folder / f"modelnet{self.classes}_shape_names.txt"))
        named = []
        for part in ("train", "test"):
            for name in _words(folder / f"modelnet{self.classes}_{part}.txt"):
                kind = name.rpartition("_")[0]
                if kind not in self.class_names:
                    raise DataError(
                        f"modelnet{self.classes}_{part}.txt in {folder} names {name}, of no known class"
                    )
                path = folder / kind / f"{name}.txt"
                named.append((part, name, Item(path, self.class_names.index(kind))))
        missing = [item.path for _, _, item in named if not item.path.is_file()]
        if missing:
            raise DataError(
                f"{len(missing):,} of the {len(named):,} models are not there (first: {missing[0]})"
            )
        return named

    def _from_hdf5(self, folder: Path) -> list[tuple[str, str, Item]]:
        h5py = require("h5py", "HDF5 files")
        names = _words(folder / "shape_names.txt")
        self.class_names = [name for name in names if self.classes == 40 or name in MODELNET10]
        named = []
        for part in ("train", "test"):
            for path in sorted(file for file in folder.glob(f"ply_data_{part}*.h5") if file.is_file()):
                try:
                    with h5py.File(path) as file:
                        labels = np.asarray(file["label"]).ravel()
                except (OSError, KeyError) as error:
                    raise DataError(f"{path} is not one of the HDF5 files expected ({error})") from error
                for row, label in enumerate(labels):
                    if names[label] in self.class_names:
                        item = Item(path, self.class_names.index(names[label]), {"row": row})
                        named.append((part, f"{path.stem}/{row}", item))
        return named

    def read_file(self, path: Path) -> Tensor:
        # PointNet++'s text files have y up, meshes have z up.
        pool = self.pool_of(path)
        return self.first(turned_z_up(pool, self.columns) if path.suffix.lower() == ".txt" else pool)

    def example_file(self) -> Path | None:
        """An example file for prediction; None for HDF5 files, which contain many clouds."""
        file = super().example_file()
        return None if file and file.suffix == ".h5" else file

    def read_pool(self, item: Item) -> Floats:
        if "row" not in item.where:
            return super().read_pool(item)
        return self.thin_out(read_row(item, self))


def read_row(item: Item, data: PointData) -> Floats:
    """Read one cloud (P, D) from an HDF5 file of many (data, optionally normal), rotated to z up."""
    normals = data.columns[:3] == NORMALS
    settings: dict[str, Any] = {"form": "rows", "normals": normals}

    def read() -> Floats:
        h5py = require("h5py", "HDF5 files")
        try:
            with h5py.File(item.path) as file:
                parts = [file["data"], *([file["normal"]] if normals else [])]
                return np.concatenate([np.asarray(part, dtype=np.float32) for part in parts], axis=-1)
        except (OSError, KeyError, ValueError) as error:
            raise ReadError(f"it cannot be read ({error})") from error

    # Unpacked once into the cache: rows of a memory-mapped array are cheap and need no open file.
    table: Floats = cached(item.path, data.cache_dir, settings, read)[item.where["row"]]
    if table.shape[-1] != 3 + len(data.columns):
        raise ReadError(f"it holds x, y, z and at most normals, not {', '.join(data.columns)}")
    if not np.isfinite(table).all():
        raise ReadError(f"row {item.where['row']} holds values that are not finite numbers")
    return turned_z_up(table, data.columns)


def _find(root: Path) -> tuple[Path, str] | None:
    """The folder of the models, and its variant."""
    for folder in (root / name for name in FOLDERS):
        if (folder / "modelnet40_train.txt").is_file():
            return folder, "text"
        if next(folder.glob("ply_data_train*.h5"), None) and (folder / "shape_names.txt").is_file():
            return folder, "hdf5"
        if next(folder.glob("*/train/*.off"), None):
            return folder, "meshes"
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise DataError(f"{path} is missing") from error
