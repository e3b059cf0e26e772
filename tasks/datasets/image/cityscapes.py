"""Cityscapes (Cordts et al. 2016, arXiv 1604.01685): streets of 50 cities, 2048 × 1024, 19 classes."""

from collections.abc import Sequence
from pathlib import Path

from tasks.datasets.base import DataError
from tasks.datasets.image.dense_transforms import VOID
from tasks.datasets.image.mask_data import MaskData, Pair
from tasks.datasets.image.masks import MaskCoding

#: Class -> its `labelId` and colour, in the order of the `trainId`s.
CLASSES: dict[str, tuple[int, tuple[int, int, int]]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
LABEL_IDS = 34  # number of `labelIds`
LICENCE_PLATE = (2**16 - 1, 255)  # -1 in a 16-bit or 8-bit image


class Cityscapes(MaskData):
    """Cityscapes with fine annotations: 2,975 training and 500 validation images.

    Masks are `*_gtFine_labelTrainIds.png` if they exist (made by cityscapesScripts), else `*_gtFine_labelIds.png`,
    whose values are mapped to train ids. The test split is `val`, as in most published results (the labels of `test`
    are not released); a part of `train` is held out for model selection.

    Args:
        **settings: see `MaskData` and `DataModule`.
    """

    title = "Cityscapes"
    layout = (
        "leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and gtFine/{train,val}/<city>/*_gtFine_label*.png"
    )
    homepage = "https://www.cityscapes-dataset.com"
    usual_val_part = 0.05

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.scenes import cityscapes

        cityscapes(root)

    def read_pairs(self, root: Path) -> tuple[MaskCoding, Sequence[Pair]]:
        images, masks = root / "leftImg8bit", root / "gtFine"
        if not (images / "train").is_dir() or not (masks / "train").is_dir():
            raise self.bad_layout(f"no leftImg8bit/train and gtFine/train in {root}")
        pairs: list[Pair] = []
        kinds = set()
        for folder, split in (("train", "train"), ("val", "test")):
            for picture in sorted((images / folder).glob("*/*_leftImg8bit.png")):
                stem = picture.name.removesuffix("_leftImg8bit.png")
                place = masks / folder / picture.parent.name
                files = [place / f"{stem}_gtFine_{kind}.png" for kind in ("labelTrainIds", "labelIds")]
                mask = next((file for file in files if file.is_file()), None)
                if mask is None:
                    raise DataError(f"{picture} has no mask {files[1]}")
                kinds.add(mask.stem.rpartition("_")[2])
                pairs.append(Pair(picture, mask, split))
        if len(kinds) > 1:
            raise DataError(
                f"{masks} has labelTrainIds for a part of its pictures only: make all or delete them"
            )
        return coding(train_ids="labelTrainIds" in kinds), pairs


def coding(train_ids: bool) -> MaskCoding:
    """The mapping from mask values to classes."""
    palette = [colour for _, colour in CLASSES.values()]
    if train_ids:
        values = {index: index for index in range(len(CLASSES))} | {VOID: VOID}
    else:
        place = {label: index for index, (label, _) in enumerate(CLASSES.values())}
        values = {label: place.get(label, VOID) for label in range(LABEL_IDS)}
        values |= dict.fromkeys(LICENCE_PLATE, VOID)
    return MaskCoding(list(CLASSES), values, {}, palette)
