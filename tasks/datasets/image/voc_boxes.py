"""PASCAL VOC 2007 and 2012 (Everingham et al. 2010, 2015): boxes of twenty kinds of objects."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

from typing_extensions import Unpack

from tasks.datasets.base import DataError
from tasks.datasets.download import Source
from tasks.datasets.fetch import download_and_unpack
from tasks.datasets.image.box_data import BoxData, Found
from tasks.datasets.image.box_layouts import Options, names_in, read_voc
from tasks.datasets.image.box_transforms import DetectionTransforms
from tasks.datasets.image.voc2012 import CLASSES
from tasks.datasets.shards.data import ShardSettings

SITE = "http://host.robots.ox.ac.uk/pascal/VOC"


class VOCBoxes(BoxData):
    """VOC detection in the official layout; `difficult` objects are ignored in evaluation.

    Args:
        lists: the list in ImageSets/Main of each split, `train`, `test` and optionally `val`; without it a part of
            `train` is held out for model selection.
        val_part: fraction held out.
        transforms, **common: see `BoxData` and `DataModule`.
    """

    usual_val_part: ClassVar[float] = 0.05
    year: ClassVar[int]
    archives: ClassVar[Mapping[str, Source]]  # folder -> archive unpacked into it
    lists: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        *,
        lists: Mapping[str, str] | None = None,
        val_part: float | None = None,
        transforms: DetectionTransforms | None = None,
        **common: Unpack[ShardSettings],
    ) -> None:
        super().__init__(transforms=transforms, val_part=val_part, **common)
        self.chosen = dict(self.lists if lists is None else lists)
        if not {"train", "test"} <= set(self.chosen) <= {"train", "val", "test"}:
            raise DataError("task.data.lists takes a list for train and test, and for val if you like")

    @property
    def title(self) -> str:
        return f"PASCAL VOC {self.year}"

    def looks_complete(self, root: Path) -> bool:
        return all(self._list(root, name) is not None for name in self.chosen.values())

    def fetch(self, root: Path) -> None:
        for folder, archive in self.archives.items():
            if not (root / folder).is_dir():
                download_and_unpack(archive, root / folder)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.box_scenes import voc

        held = {} if "val" in self.lists.values() else {"val": 8}
        voc(root, self.year, {"train": 24, **held, self.lists["test"]: 8})

    def read_pictures(self, root: Path) -> Found:
        named: dict[str, tuple[Path, Path, str | None]] = {}
        for split, name in self.chosen.items():
            file = self._list(root, name)
            if file is None:
                raise self.bad_layout(f"no ImageSets/Main/{name}.txt in {root}")
            home = file.parents[2]
            for key in names_in(file, partial(_has_picture, home)):
                if key in named:
                    raise DataError(
                        f"{file} names {key}, which is in {self.chosen[str(named[key][2])]}.txt, too"
                    )
                picture, labels = _picture(home, key), home / "Annotations" / f"{key}.xml"
                for part in (picture, labels):
                    if not part.is_file():
                        raise DataError(f"{file} names {key}, and there is no {part}")
                named[key] = (picture, labels, split)
        found = read_voc(list(named.values()), Options(None, self.transforms.reading), CLASSES[1:])
        return Found(found.class_names, found.pictures, notes=found.notes)

    def _list(self, root: Path, name: str) -> Path | None:
        """An image list in the official layout, in any of the folders that its archive may be unpacked into."""
        devkit = f"VOCdevkit/VOC{self.year}"
        homes = [".", f"VOC{self.year}", devkit, *(f"{folder}/{devkit}" for folder in self.archives)]
        files = (root / home / "ImageSets" / "Main" / f"{name}.txt" for home in homes)
        return next((file for file in files if file.is_file()), None)


def _picture(home: Path, key: str) -> Path:
    return home / "JPEGImages" / f"{key}.jpg"


def _has_picture(home: Path, key: str) -> bool:
    return _picture(home, key).is_file()


class VOC2007(VOCBoxes):
    """VOC 2007: trained on `trainval` (5,011), tested on `test` (4,952)."""

    year = 2007
    layout = "VOCdevkit/VOC2007 with JPEGImages/, Annotations/ and ImageSets/Main/{trainval,test}.txt"
    homepage = f"{SITE}/voc2007/"
    lists: ClassVar[Mapping[str, str]] = {"train": "trainval", "test": "test"}
    archives: ClassVar[Mapping[str, Source]] = {
        "VOCtrainval": Source(
            f"{SITE}/voc2007/VOCtrainval_06-Nov-2007.tar",
            "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        ),
        "VOCtest": Source(
            f"{SITE}/voc2007/VOCtest_06-Nov-2007.tar",
            "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
        ),
    }


class VOC2012Boxes(VOCBoxes):
    """VOC 2012: trained on `train` (5,717), tested on `val` (5,823); the labels of `test` were never released."""

    year = 2012
    layout = "VOCdevkit/VOC2012 with JPEGImages/, Annotations/ and ImageSets/Main/{train,val}.txt"
    homepage = f"{SITE}/voc2012/"
    lists: ClassVar[Mapping[str, str]] = {"train": "train", "test": "val"}
    archives: ClassVar[Mapping[str, Source]] = {
        "VOCtrainval": Source(
            f"{SITE}/voc2012/VOCtrainval_11-May-2012.tar",
            "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        ),
    }
