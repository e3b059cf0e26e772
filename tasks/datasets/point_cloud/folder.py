r"""Any collection of point clouds and meshes: a folder per class, a table, or labels in the file names.

Examples:
    A folder per class, split by name (or below train/, val/ and test/)::

        python run.py modality=point_cloud task=point_folder data_dir=PATH

    Labels in the file names, as in ``chair_0001.ply``::

        python run.py modality=point_cloud task=point_folder data_dir=PATH \
            'task.data.label_from="^(?P<label>[a-z]+)_"'
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from tasks.datasets.errors import DataError
from tasks.datasets.items import Item, Whole
from tasks.datasets.labelled_files import FromLabelledFiles, LabelledFiles, LabelSettings, label_settings
from tasks.datasets.point_cloud.choice import turned_z_up
from tasks.datasets.point_cloud.files import PointData, PointSettings
from tasks.datasets.point_cloud.formats.columns import check_order
from tasks.datasets.point_cloud.formats.reading import EXTENSIONS
from tasks.datasets.point_cloud.look import look_at

UPS = ("z", "y")


class PointFolderSettings(LabelSettings, PointSettings, total=False):
    """Arguments that `PointFolder` passes on."""


class PointFolder(FromLabelledFiles, PointData):
    """Your own point clouds and meshes, in any of the readable formats.

    Args:
        up: vertical axis of the files, z or y; samples have z up.
        file_columns: names of the columns of files without names, including x, y and z; ``None``: from the header, or
            inferred from the values.
        color_scale: maximum colour value in files whose format does not define it: 1, 255 or 65535; ``None``:
            inferred from the values.
        **settings: see `LabelledFiles`, `PointData` and `DataModule`; the default split fractions are 0.15 here.
    """

    title = "point clouds of your own"
    layout = (
        "a folder of point clouds or meshes (" + " ".join(EXTENSIONS) + ") per class, "
        "or train/, val/ and test/ with such folders, "
        "or task.data.csv=FILE with the columns path,label[,split|fold|group], "
        "or task.data.label_from=REGEX for labels in names"
    )

    def __init__(
        self,
        *,
        up: str = "z",
        file_columns: Sequence[str] | None = None,
        color_scale: float | None = None,
        **settings: Unpack[PointFolderSettings],
    ) -> None:
        labels, common = label_settings(settings)
        super().__init__(**common)
        if up not in UPS:
            raise DataError(f"up must be z or y, not {up}")
        self.y_up = up == "y"
        self.check_turning()
        self.file_columns = check_order(file_columns)
        if color_scale is not None and color_scale <= 0:
            raise DataError(f"color_scale must be above 0, such as 1, 255 or 65535, not {color_scale:g}")
        self.color_scale = color_scale
        self.files = LabelledFiles(
            self.extensions, **({"test_fraction": 0.15, "val_fraction": 0.15} | labels)
        )

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.point_cloud.sample import point_folder

        point_folder(root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        splits = super().read_splits(root)
        looked = look_at([item.path for item in splits["train"]], self)
        self.color_scale = looked.color_scale
        self.notes += looked.notes
        return splits

    def read_whole(self, data_info: dict[str, Any]) -> Whole | None:
        self.recall(data_info)
        return super().read_whole(data_info)

    def info(self) -> dict[str, Any]:
        return super().info() | ({"color_scale": self.color_scale} if self.color_scale else {})

    def recall(self, data_info: dict[str, Any]) -> None:
        super().recall(data_info)
        self.color_scale = data_info.get("color_scale", self.color_scale)

    def read_file(self, path: Path) -> Tensor:
        pool = self.pool_of(path)
        return self.first(turned_z_up(pool, self.columns) if self.y_up else pool)
