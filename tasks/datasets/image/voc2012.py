"""PASCAL VOC 2012 (Everingham et al. 2015): photographs of twenty kinds of objects on a background."""

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.base import DataError
from tasks.datasets.image.dense_transforms import SegmentationTransforms
from tasks.datasets.image.mask_data import MaskData, Pair
from tasks.datasets.image.masks import MaskCoding, numbered, usual_palette
from tasks.datasets.listing import usual_place
from tasks.datasets.shards.data import ShardSettings

FOLDERS = (".", "VOC2012", "VOCdevkit/VOC2012")
CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)


class VOC2012(MaskData):
    """VOC 2012 segmentation: 1,464 training and 1,449 validation images.

    The test split is `val`, as in published results (the labels of the official test set were never released); a part
    of `train` is held out for model selection.

    Args:
        val_part: fraction held out.
        lists: names of the training lists in ImageSets/Segmentation; `trainaug` includes SBD, with masks in
            SegmentationClassAug/.
        transforms, **common: see `MaskData` and `DataModule`.
    """

    title = "PASCAL VOC 2012"
    layout = (
        "VOCdevkit/VOC2012 with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt"
    )
    usual_val_part = 0.05
    homepage = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"

    def __init__(
        self,
        *,
        val_part: float | None = None,
        lists: str = "train",
        transforms: SegmentationTransforms | None = None,
        **common: Unpack[ShardSettings],
    ) -> None:
        super().__init__(transforms=transforms, val_part=val_part, **common)
        self.lists = lists

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.scenes import voc2012

        voc2012(root)

    def looks_complete(self, root: Path) -> bool:
        return _find(root) is not None

    def read_pairs(self, root: Path) -> tuple[MaskCoding, Sequence[Pair]]:
        found = _find(root)
        if found is None:
            raise self.bad_layout(f"no ImageSets/Segmentation in {root}")
        augmented = found / "SegmentationClassAug"
        folders = [found / "SegmentationClass", *([augmented] if augmented.is_dir() else [])]
        pairs = []
        for split, name in (("train", self.lists), ("test", "val")):
            file = found / "ImageSets" / "Segmentation" / f"{name}.txt"
            if not file.is_file():
                raise self.bad_layout(f"{file} does not exist")
            for key in file.read_text(encoding="utf-8").split():
                masks = [folder / f"{key}.png" for folder in folders]
                mask = next((path for path in masks if path.is_file()), None)
                if mask is None:
                    raise DataError(f"{file} names {key}, which has no mask {masks[-1]}")
                pairs.append(Pair(found / "JPEGImages" / f"{key}.jpg", mask, split))
        palette = [(0, 0, 0), *usual_palette(len(CLASSES) - 1)]
        return numbered(CLASSES, palette=palette), pairs


def _find(root: Path) -> Path | None:
    return usual_place(root, FOLDERS, lambda place: (place / "ImageSets" / "Segmentation").is_dir())
