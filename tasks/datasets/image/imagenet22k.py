"""ImageNet-22K (Deng et al. 2009, the autumn 2011 release): 14.2 million photographs of 21,841 classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.errors import DataError
from tasks.datasets.image.files import ImageData, ImageTransforms
from tasks.datasets.image.imagenet import Pictures, describe_synset, pictures_by_folder
from tasks.datasets.items import Item
from tasks.datasets.shards.data import ShardableSettings
from tasks.datasets.splits import held_out_files


class ImageNet22K(ImageData):
    """The unpacked archive: a folder per WordNet synset; any subset of the classes works as well.

    There is no official split: pre-training uses every image. Here a small fraction of each class is held out for
    validation and the same for testing, by a hash of the names; every class keeps a training image, so classes of one
    or two images may be missing from the other splits.

    Args:
        held_part: fraction of each class for validation, and for testing; at least one image each.
        transforms: see `ImageData`.
        **common: see `ShardableData` and `DataModule`.

    Raises:
        DataError: a `held_part` that leaves nothing to train on or nothing to validate on.
    """

    title = "ImageNet-22K"
    layout = (
        "<synset>/*.JPEG (the unpacked archive of each class in a folder of its own, such as n01440764/…)"
    )
    homepage = "https://www.image-net.org/download.php"

    def __init__(
        self,
        *,
        held_part: float = 0.002,
        transforms: ImageTransforms | None = None,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(transforms=transforms, **common)
        if not 0 < held_part < 0.5:
            raise DataError(f"held_part must lie between 0 and 0.5, not {held_part}")
        self.held_part = held_part

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.sample import imagenet22k

        imagenet22k(root)

    def looks_complete(self, root: Path) -> bool:
        return root.is_dir() and len(pictures_by_folder(root)) > 1

    def read_splits(self, root: Path) -> Mapping[str, Sequence[Item]]:
        if not root.is_dir():
            raise self.bad_layout(f"{root} is not a folder")
        found = pictures_by_folder(root)
        if len(found) < 2:
            raise self.bad_layout(f"fewer than two classes in {root}")
        self.class_names = [describe_synset(synset) for synset in found]
        named: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
        for target, (synset, names) in enumerate(found.items()):
            val = held_out_files([(synset, name) for name in names], self.held_part)
            left = [(synset, name) for name in names if name not in val]
            test = held_out_files(left, self.held_part)
            for name in names:
                split = "val" if name in val else "test" if name in test else "train"
                named[split].append((name, target))
        return {split: Pictures(root, part) for split, part in named.items()}
