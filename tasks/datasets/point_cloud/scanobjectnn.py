"""ScanObjectNN (Uy et al. 2019, arXiv 1908.04616): objects segmented from scans of real rooms, 15 classes."""

from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from tasks.datasets.errors import DataError
from tasks.datasets.items import Item
from tasks.datasets.point_cloud.files import PointData, PointSettings
from tasks.datasets.point_cloud.formats.cloud import Floats
from tasks.datasets.point_cloud.modelnet import read_row
from tasks.datasets.reading import require

CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow",
    "sink", "sofa", "toilet",
)  # fmt: skip
# variant -> folder and suffix of the file names
VARIANTS = {
    "OBJ_ONLY": ("main_split_nobg", ""),
    "OBJ_BG": ("main_split", ""),
    "PB_T25": ("main_split", "_augmented25_norot"),
    "PB_T25_R": ("main_split", "_augmented25rot"),
    "PB_T50_R": ("main_split", "_augmentedrot"),
    "PB_T50_RS": ("main_split", "_augmentedrot_scale75"),
}
COPIES = 5  # perturbed copies of an object in the PB variants


class ScanObjectNN(PointData):
    """ScanObjectNN with its main split: 11,416 / 2,882 clouds of 2,048 points (PB), 2,309 / 581 (OBJ).

    The files have y up; samples have z up. There is no official validation split: blocks of consecutive rows of the
    training split are held out, since perturbed copies of an object may be adjacent.

    Args:
        variant: PB_T50_RS (the hardest, usually reported), PB_T50_R, PB_T25_R, PB_T25, OBJ_BG,
            OBJ_ONLY.
        val_fraction: fraction of the training split to hold out.
        **settings: see `PointData` and `DataModule`.
    """

    title = "ScanObjectNN"
    layout = (
        "h5_files with main_split and main_split_nobg, "
        "which hold training_objectdataset….h5 and test_objectdataset….h5"
    )
    homepage = "https://hkust-vgd.github.io/scanobjectnn/"
    y_up = True

    def __init__(
        self,
        *,
        variant: str = "PB_T50_RS",
        val_fraction: float = 0.1,
        **settings: Unpack[PointSettings],
    ) -> None:
        super().__init__(**settings)
        if variant not in VARIANTS:
            raise DataError(f"variant must be one of {', '.join(VARIANTS)}, not {variant}")
        if not 0 < val_fraction <= 0.5:
            raise DataError(f"val_fraction must lie between 0 and 0.5, not {val_fraction}")
        self.variant = variant
        self.val_fraction = val_fraction
        self.class_names = list(CLASSES)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.point_cloud.sample import scanobjectnn

        scanobjectnn(root, len(CLASSES))

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        h5py = require("h5py", "HDF5 files")
        folder, ending = VARIANTS[self.variant]
        splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        for part in ("training", "test"):
            name = f"{folder}/{part}_objectdataset{ending}.h5"
            path = next(
                (root / below / name for below in (".", "h5_files") if (root / below / name).is_file()), None
            )
            if path is None:
                raise self.bad_layout(f"{self.variant} needs {name} below {root}")
            try:
                with h5py.File(path) as file:
                    labels = np.asarray(file["label"]).ravel().astype(int)
            except (OSError, KeyError) as error:
                raise DataError(f"{path} is not one of the HDF5 files expected ({error})") from error
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES):
                raise DataError(f"{path} has labels outside 0..{len(CLASSES) - 1}")
            held_out = self._held_out(labels) if part == "training" else set()
            for row, label in enumerate(labels.tolist()):
                split = "test" if part == "test" else "val" if row in held_out else "train"
                splits[split].append(Item(path, label, {"row": row}))
        return splits

    def _held_out(self, labels: np.ndarray) -> set[int]:
        """Validation rows: evenly spaced blocks of consecutive rows of each class."""
        rows: set[int] = set()
        for label in np.unique(labels):
            of_class = np.flatnonzero(labels == label)
            blocks = np.array_split(of_class, max(len(of_class) // COPIES, 1))
            wanted = max(round(self.val_fraction * len(blocks)), 1)
            chosen = ((np.arange(wanted) + 0.5) * len(blocks) / wanted).astype(int)
            rows |= {int(row) for position in chosen for row in blocks[position]}
        return rows

    def example_file(self) -> Path | None:
        """None: a file contains many clouds."""
        return None

    def read_pool(self, item: Item) -> Floats:
        return self.thin_out(read_row(item, self))
