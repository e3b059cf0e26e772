r"""Point clouds and meshes of your own: a folder per class, a table, or labels in the file names.

Examples:
    A folder per class, split by name (or below train/, val/ and test/)::

        python run.py modality=point_cloud task=point_folder data_dir=PATH

    Labels in the names, here of ``chair_0001.ply``::

        python run.py modality=point_cloud task=point_folder data_dir=PATH \
            'task.data.label_from="^(?P<label>[a-z]+)_"'
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from tasks.datasets.base import DataError, Item, Whole
from tasks.datasets.labelled_files import LabelledFiles
from tasks.datasets.point_files import PointData, PointSettings, turned_z_up

UPS = ("z", "y")


class PointFolder(PointData):
    """Point clouds and meshes of your own, in any of the readable formats.

    Args:
        up: which axis of the files points up, z or y; samples have z up.
        csv, label_from, test_from, val_from, test_fraction, val_fraction: see `LabelledFiles`.
        **settings: see `PointData` and `DataModule`.
    """

    layout = (
        "a folder of point clouds or meshes (.ply .pcd .off .obj .stl .xyz .npy .npz .h5 .txt) per class, "
        "or train/, val/ and test/ with such folders, "
        "or task.data.csv=FILE with the columns path,label[,split], "
        "or task.data.label_from=REGEX for labels in names"
    )

    def __init__(
        self,
        *,
        up: str = "z",
        csv: str | None = None,
        label_from: str | None = None,
        test_from: str | None = None,
        val_from: str | None = None,
        test_fraction: float = 0.15,
        val_fraction: float = 0.15,
        **settings: Unpack[PointSettings],
    ) -> None:
        super().__init__(**settings)
        if up not in UPS:
            raise DataError(f"up must be z or y, not {up}")
        self.y_up = up == "y"
        self.files = LabelledFiles(
            self.extensions,
            csv=csv,
            label_from=label_from,
            test_from=test_from,
            val_from=val_from,
            test_fraction=test_fraction,
            val_fraction=val_fraction,
        )

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.samples.point_cloud import point_folder

        point_folder(root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        self.class_names, splits = self.files.read(root, self.bad_layout)
        return splits

    def read_whole(self, facts: dict[str, Any]) -> Whole | None:
        return self.files.read_whole(self.root, facts["class_names"], self.bad_layout)

    def read_file(self, path: Path) -> Tensor:
        pool = self.pool_of(path)
        return self.first(turned_z_up(pool, self.has_normals) if self.y_up else pool)
