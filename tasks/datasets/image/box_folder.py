r"""Any collection of images with boxes.

Examples:
    COCO JSON, PASCAL VOC XML or YOLO text files; the format is detected::

        python run.py modality=image task=box_folder data_dir=PATH

    A subset of the classes, or names for YOLO's class indices::

        python run.py modality=image task=box_folder data_dir=PATH 'task.data.classes=[car,bus]'

    Labels in several formats::

        python run.py modality=image task=box_folder data_dir=PATH task.data.labels=yolo
"""

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.base import DataError
from tasks.datasets.image.box_data import BoxData, Found
from tasks.datasets.image.box_layouts import Options, candidates, read
from tasks.datasets.image.box_transforms import DetectionTransforms
from tasks.datasets.shards.data import ShardSettings

FORMATS = ("coco", "voc", "yolo")


class BoxFolder(BoxData):
    """Your own images with boxes.

    Args:
        labels: `coco`, `voc` or `yolo`; `None`: detected.
        classes: class names: for YOLO those of the indices 0, 1, …, otherwise the subset to use, in this order; `None`:
            all classes in the labels, data.yaml or classes.txt.
        transforms, val_part, test_part: see `BoxData`.
        **common: see `DataModule`.
    """

    title = "pictures with boxes of your own"
    layout = (
        "pictures with COCO's instances (annotations/*.json), PASCAL VOC's XML (Annotations/*.xml) or YOLO's text "
        "files (labels/*.txt), with folders train/, val/ and test/ or without"
    )

    def __init__(
        self,
        *,
        labels: str | None = None,
        classes: Sequence[str] | None = None,
        transforms: DetectionTransforms | None = None,
        val_part: float | None = 0.1,
        test_part: float = 0.1,
        **common: Unpack[ShardSettings],
    ) -> None:
        super().__init__(transforms=transforms, val_part=val_part, test_part=test_part, **common)
        if labels is not None and labels not in FORMATS:
            raise DataError(f"task.data.labels must be {', '.join(FORMATS)} or null, not {labels!r}")
        self.labels = labels
        self.classes = None if classes is None else [str(name) for name in classes]

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.box_scenes import box_folder

        box_folder(root)

    def read_pictures(self, root: Path) -> Found:
        if not root.is_dir():
            raise self.bad_layout(f"{root} is not a folder")
        layouts = candidates(root)
        wanted = [each for each in layouts if self.labels in (None, each.format)]
        if not wanted:
            kind = f"{self.labels} labels" if self.labels else "labels of pictures"
            raise self.bad_layout(f"no {kind} in {root}")
        if len(wanted) > 1:
            raise DataError(
                f"{root} has {' and '.join(each.said for each in wanted)}: say which are meant, "
                f"task.data.labels={' or '.join(each.format for each in wanted)}"
            )
        found = read(wanted[0], root, Options(self.classes, self.transforms.reading))
        if not found.pictures:
            raise self.bad_layout(f"no pictures with boxes in {root}")
        return found
