r"""Any collection of images: a folder per class, a table, or labels in the file names.

Examples:
    A folder per class, split by name (or below train/, val/ and test/)::

        python run.py modality=image task=image_folder data_dir=PATH

    A table with the columns path, label and optionally split; several labels are separated by ``;``::

        python run.py modality=image task=image_folder data_dir=PATH task.data.csv=labels.csv \
            task.data.multilabel=true task/loss=bce

    Labels in the file names, as in ``cat_001.jpg``::

        python run.py modality=image task=image_folder data_dir=PATH \
            'task.data.label_from="^(?P<label>[a-z]+)_"'
"""

from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.image.files import ImageData, ImageTransforms
from tasks.datasets.image.reading import depth_notes
from tasks.datasets.items import Item
from tasks.datasets.labelled_files import FromLabelledFiles, LabelledFiles, LabelSettings, label_settings
from tasks.datasets.shards.data import ShardableSettings


class ImageFolderSettings(LabelSettings, ShardableSettings, total=False):
    """Arguments that `ImageFolder` passes on."""


class ImageFolder(FromLabelledFiles, ImageData):
    """Your own images.

    Args:
        multilabel: a file may have several labels (`LabelledFiles`).
        transforms: see `ImageData`.
        **settings: see `LabelledFiles`, `ShardableData` and `DataModule`.
    """

    title = "pictures of your own"
    layout = (
        "a folder of pictures per class, or train/, val/ and test/ with such folders, "
        "or task.data.csv=FILE with the columns path,label[,split|fold|group], "
        "or task.data.label_from=REGEX for labels in names"
    )

    def __init__(
        self,
        *,
        multilabel: bool = False,
        transforms: ImageTransforms | None = None,
        **settings: Unpack[ImageFolderSettings],
    ) -> None:
        labels, common = label_settings(settings)
        super().__init__(transforms=transforms, **common)
        self.targets.multilabel = multilabel
        self.files = LabelledFiles(self.extensions, multilabel=multilabel, **labels)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.sample import image_folder

        image_folder(root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        splits = super().read_splits(root)
        self.notes += depth_notes([item.path for item in splits["train"]], self.transforms.reading)
        return splits
