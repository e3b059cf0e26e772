"""ImageNet-1K (Russakovsky et al. 2015, arXiv 1409.0575): 1.28 million photographs of 1,000 classes."""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from tasks.datasets.errors import DataError
from tasks.datasets.image.files import ImageData, ImageTransforms
from tasks.datasets.image.reading import EXTENSIONS
from tasks.datasets.items import Item
from tasks.datasets.lazy_items import LazyItems
from tasks.datasets.listing import usual_place
from tasks.datasets.shards.data import ShardableSettings
from tasks.datasets.splits import held_out_files

FOLDERS = (".", "ILSVRC/Data/CLS-LOC", "ILSVRC2012", "imagenet", "imagenet-1k")


class ImageNet(ImageData):
    """ImageNet in ImageFolder layout, a folder per WordNet synset; any subset of the classes works as well.

    The test split is ``val/``, the 50,000 images of all published results (the labels of the official test set were
    never released). For model selection, a small fraction of every class in ``train/`` is held out as the validation
    split, by a hash of the names.

    Classes are ordered by synset, as usual, so that official classifiers match; class names are the synset and its
    first word, e.g. ``n01440764 tench``.

    Args:
        val_part: fraction of ``train/`` used for validation; 0.01 is 12,811 images of the full data set.
        transforms: see `ImageData`.
        **common: see `ShardableData` and `DataModule`.
    """

    title = "ImageNet"
    layout = "train/<synset>/*.JPEG and val/<synset>/*.JPEG (ImageFolder layout, such as train/n01440764/…)"
    homepage = "https://www.image-net.org/download.php"

    def __init__(
        self,
        *,
        val_part: float = 0.01,
        transforms: ImageTransforms | None = None,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(transforms=transforms, **common)
        self.val_part = check_val_part(val_part)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.sample import imagenet

        imagenet(root)

    def looks_complete(self, root: Path) -> bool:
        return _find(root) is not None

    def read_splits(self, root: Path) -> Mapping[str, Sequence[Item]]:
        found = _find(root)
        if found is None:
            raise self.bad_layout(f"no train/ and val/ in {root}")
        training = pictures_by_folder(found / "train")
        testing = pictures_by_folder(found / "val")
        if not testing and pictures(found / "val"):
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
        tested = [
            (name, target) for target, synset in enumerate(training) for name in testing.get(synset, [])
        ]
        parts = split_training(found / "train", training, self.val_part)
        return {**parts, "test": Pictures(found / "val", tested)}


class Pictures(LazyItems):
    """Items created on access: a million of them would take a gigabyte in every worker.

    Args:
        root: folder of all images.
        named: path relative to ``root`` and class of each image.
    """

    def __init__(self, root: Path, named: Sequence[tuple[str, int]]) -> None:
        self.root = root
        self.names = np.array([os.fsencode(name) for name, _ in named])
        self.targets = np.array([target for _, target in named], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.targets)

    def item(self, index: int) -> Item:
        return Item(self.root / os.fsdecode(bytes(self.names[index])), int(self.targets[index]))


def check_val_part(val_part: float) -> float:
    """Returns ``val_part`` if it is between 0 and 1; raises `DataError`."""
    if not 0 < val_part < 1:
        raise DataError(
            f"val_part must lie between 0 and 1, not {val_part}: the test split is not for choosing"
        )
    return val_part


def split_training(root: Path, training: Mapping[str, list[str]], val_part: float) -> dict[str, Pictures]:
    """Splits the images of each class (paths relative to ``root``, classes in order) into ``train`` and ``val``."""
    held = held_out_files(((label, name) for label, names in training.items() for name in names), val_part)
    named: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    for target, names in enumerate(training.values()):
        for name in names:
            named["val" if name in held else "train"].append((name, target))
    return {split: Pictures(root, part) for split, part in named.items()}


def pictures(folder: Path) -> list[str]:
    """Names of the images directly in a folder, sorted, without a stat call for each."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file()]  # known without a stat call
    return sorted(name for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith("."))


def pictures_by_folder(folder: Path, below: str = "") -> dict[str, list[str]]:
    """Maps each sub-folder with images (in its ``below``) to their sorted paths relative to ``folder``."""
    with os.scandir(folder) as entries:
        labels = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    found = {}
    for label in labels:
        place = os.path.join(label, below)
        if names := pictures(folder / place):
            found[label] = [os.path.join(place, name) for name in names]
    return found


def describe_synset(synset: str) -> str:
    """``n01440764`` -> ``n01440764 tench``; other names are unchanged. (Two classes are named crane.)"""
    words = _lemmas().get(synset)
    return f"{synset} {words.split(',')[0]}" if words else synset


@lru_cache(maxsize=1)
def _lemmas() -> dict[str, str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    return {name: info.label_name_to_description(name) for name in info.label_names()}


def _find(root: Path) -> Path | None:
    return usual_place(root, FOLDERS, lambda place: (place / "train").is_dir() and (place / "val").is_dir())
