"""Tiny ImageNet (Stanford CS231N): 200 classes of ImageNet with 500 training images each, 64 × 64."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.base import DataError, Item
from tasks.datasets.download import Source
from tasks.datasets.fetch import download_and_unpack
from tasks.datasets.image.files import ImageData, ImageTransforms
from tasks.datasets.image.imagenet import check_val_part, pictures_by_folder, split_training
from tasks.datasets.listing import usual_place
from tasks.datasets.shards.data import ShardableSettings

SOURCE = Source(
    url="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    most_gb=5,
)
FOLDERS = (".", "tiny-imagenet-200")


class TinyImageNet(ImageData):
    """Tiny ImageNet, tested on the official ``val/``: the labels of ``test/`` were never released.

    For model selection, a fraction of every class in ``train/`` is held out as the validation split, by a hash of the
    names.

    Args:
        val_part: fraction of ``train/`` used for validation.
        transforms: see `ImageData`.
        **common: see `ShardableData` and `DataModule`.
    """

    title = "Tiny ImageNet"
    layout = (
        "train/<synset>/images/*.JPEG, val/images/*.JPEG, val/val_annotations.txt and words.txt "
        "(the unpacked tiny-imagenet-200.zip, or the folder that holds it)"
    )
    homepage = SOURCE.url

    def __init__(
        self,
        *,
        val_part: float = 0.05,
        transforms: ImageTransforms | None = None,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(transforms=transforms, **common)
        self.val_part = check_val_part(val_part)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.sample import tiny_imagenet

        tiny_imagenet(root)

    def looks_complete(self, root: Path) -> bool:
        return _find(root) is not None

    def fetch(self, root: Path) -> None:
        download_and_unpack(SOURCE, root)

    def read_splits(self, root: Path) -> Mapping[str, Sequence[Item]]:
        found = _find(root)
        if found is None:
            raise self.bad_layout(f"no val/val_annotations.txt in {root}")
        training = pictures_by_folder(found / "train", below="images")
        if len(training) < 2:
            raise self.bad_layout(f"fewer than two classes in {found / 'train'}")
        words = dict(_rows(found / "words.txt")) if (found / "words.txt").is_file() else {}
        self.class_names = [f"{synset} {words.get(synset, '').split(',')[0]}".strip() for synset in training]
        index = {synset: target for target, synset in enumerate(training)}
        annotations = found / "val" / "val_annotations.txt"
        testing: list[Item] = []
        missing: list[Item] = []
        for name, synset in _rows(annotations):
            if synset not in index:
                raise DataError(f"{annotations} names the class {synset}, of which train/ has no picture")
            path = found / "val" / "images" / name
            (testing if path.is_file() else missing).append(Item(path, index[synset]))
        if missing:
            raise DataError(
                f"{len(missing):,} of the {len(testing) + len(missing):,} pictures in {annotations} are not "
                f"there (first: {missing[0].path.name}): the download is incomplete"
            )
        return {**split_training(found / "train", training, self.val_part), "test": testing}


def _rows(file: Path) -> list[tuple[str, str]]:
    """The first two columns of a table without header, separated by tabs."""
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    if any(len(row) < 2 for row in rows):
        raise DataError(f"{file} needs two columns in every line, separated by tabs")
    return [(row[0], row[1]) for row in rows]


def _find(root: Path) -> Path | None:
    return usual_place(root, FOLDERS, lambda place: (place / "val" / "val_annotations.txt").is_file())
