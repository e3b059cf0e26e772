"""ImageNet-1K (Russakovsky et al. 2015, arXiv 1409.0575): 1.28 million photographs of 1,000 classes."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.base import CommonSettings, DataError, Item
from tasks.datasets.image_files import EXTENSIONS, ImageData, ImageTransforms
from tasks.datasets.splits import held_out_files

FOLDERS = (".", "ILSVRC/Data/CLS-LOC", "ILSVRC2012", "imagenet", "imagenet-1k")


class ImageNet(ImageData):
    """ImageNet in ImageFolder layout, a folder per WordNet synset; any subset of the classes works as well.

    Tested on ``val/``, the 50,000 pictures every published figure is of (the labels of the official test set
    were never released). So that they choose no checkpoint, a small part of ``train/`` is held out for
    validation, by a hash of the names and from every class.

    Classes are ordered by synset, as everywhere, so official classifiers fit; they are named with the synset
    and its first word, e.g. ``n01440764 tench``.

    Args:
        val_part: part of ``train/`` to validate on; 0.01 is 12,811 pictures of the whole.
        transforms: see `ImageData`.
        **common: see `DataModule`.
    """

    layout = "train/<synset>/*.JPEG and val/<synset>/*.JPEG (ImageFolder layout, such as train/n01440764/…)"
    homepage = "https://www.image-net.org/download.php"

    def __init__(
        self,
        *,
        val_part: float = 0.01,
        transforms: ImageTransforms | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(transforms=transforms, **common)
        self.val_part = check_val_part(val_part)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.samples.image import imagenet

        imagenet(root)

    def looks_complete(self, root: Path) -> bool:
        return _find(root) is not None

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        found = _find(root)
        if found is None:
            raise self.bad_layout(f"no train/ and val/ in {root}")
        training = dict(pictures_by_folder(found / "train"))
        testing = dict(pictures_by_folder(found / "val"))
        if not testing and next(pictures(found / "val"), None):
            raise self.bad_layout(
                f"the pictures in {found / 'val'} are not sorted into folders by class "
                "(the script valprep.sh, found with many tutorials, does that)"
            )
        if unknown := sorted(set(testing) - set(training)):
            raise DataError(
                f"{found / 'val'} has classes that {found / 'train'} lacks: {', '.join(unknown[:5])}"
            )
        if len(training) < 2:
            raise self.bad_layout(f"fewer than two classes in {found / 'train'}")
        self.class_names = [describe_synset(synset) for synset in training]
        return split_training(training, self.val_part) | {
            "test": [
                Item(path, target, NOWHERE)
                for target, synset in enumerate(training)
                for path in testing.get(synset, [])
            ]
        }


NOWHERE: dict[str, object] = {}  # one for a million items


def check_val_part(val_part: float) -> float:
    """``val_part`` if it lies between 0 and 1; raises `DataError`."""
    if not 0 < val_part < 1:
        raise DataError(
            f"val_part must lie between 0 and 1, not {val_part}: the test part is not for choosing"
        )
    return val_part


def split_training(training: dict[str, list[Path]], val_part: float) -> dict[str, list[Item]]:
    """Items of ``train`` and ``val`` from the training pictures of each class, the classes in order."""
    held = held_out_files(
        ((synset, path.name) for synset, files in training.items() for path in files), val_part
    )
    splits: dict[str, list[Item]] = {"train": [], "val": []}
    for target, files in enumerate(training.values()):
        for path in files:
            splits["val" if path.name in held else "train"].append(Item(path, target, NOWHERE))
    return splits


def pictures(folder: Path) -> Iterator[Path]:
    """The pictures directly in a folder, sorted. One system call per folder: ImageNet has 1.3 million."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS))
    for name in names:
        if not name.startswith("."):
            yield folder / name


def pictures_by_folder(folder: Path, below: str = ".") -> Iterator[tuple[str, list[Path]]]:
    """Name and pictures (in ``below``) of every sub-folder that holds any, sorted."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if files := list(pictures(folder / name / below)):
            yield name, files


def describe_synset(synset: str) -> str:
    """``n01440764`` -> ``n01440764 tench``; other names stay as they are. (Two classes are named crane.)"""
    words = _lemmas().get(synset)
    return f"{synset} {words.split(',')[0]}" if words else synset


@lru_cache(maxsize=1)
def _lemmas() -> dict[str, str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    return {name: info.label_name_to_description(name) for name in info.label_names()}


def _find(root: Path) -> Path | None:
    places = (root / name for name in FOLDERS)
    return next((place for place in places if (place / "train").is_dir() and (place / "val").is_dir()), None)
