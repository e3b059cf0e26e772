"""Images with masks: base class of the segmentation data modules.

A raw sample is `{"pixels": (3, H, W) uint8, "size": (2,)}`, its target the class of each pixel, `(H, W)` uint8, or
`VOID`. In training both are crops of a fixed size; otherwise they have the size of the image.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from typing_extensions import Unpack

from modalities.batched_transforms import BatchedMaskTransforms
from tasks.datasets.base import DIGESTED, CommonSettings
from tasks.datasets.batch import Sample
from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.image.dense_data import DenseData, pixels_of, raw_of, refuse_twice
from tasks.datasets.image.dense_transforms import (
    VOID,
    SegmentationTransforms,
    join_pictures,
    padded,
)
from tasks.datasets.image.files import READ_ALIKE
from tasks.datasets.image.mask_targets import MaskTargets
from tasks.datasets.image.masks import MaskCoding, numbered
from tasks.datasets.image.reading import open_image, size_of
from tasks.datasets.items import SPLITS, Item, spread
from tasks.datasets.seeding import seeded_by
from tasks.datasets.shards.data import ShardOptions, as_file
from tasks.datasets.shards.layout import ShardSet
from tasks.datasets.targets import Kind

COUNTED = 1000  # training masks whose pixels are counted for class weights


@dataclass(frozen=True)
class Pair:
    """An image, its mask, its split (`None`: by name hash), and its group, which is never split."""

    picture: Path
    mask: Path
    split: str | None = None
    group: str | None = None


class MaskData(DenseData[SegmentationTransforms, Pair]):
    """Base class of data modules for images with masks.

    A subclass implements `read_pairs` and, for its embedded sample, `write_sample`.

    Args:
        transforms: training transforms; `None`: the defaults of `SegmentationTransforms`.
        val_part: fraction of the training images used for validation, if the data define no validation split; `None`:
            the default of the data set.
        test_part: likewise for testing.
        format, shards: see `ReadsShards.open_shards`.
        **common: see `DataModule`.
    """

    kind: ClassVar[Kind] = MaskTargets
    read_alike = READ_ALIKE
    targets: MaskTargets

    def __init__(
        self,
        *,
        transforms: SegmentationTransforms | None = None,
        val_part: float | None = None,
        test_part: float = 0.1,
        format: str = "files",
        shards: ShardOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(
            transforms=transforms or SegmentationTransforms(),
            val_part=val_part,
            test_part=test_part,
            format=format,
            shards=shards,
            **common,
        )
        if self.transforms.batched is None:
            self.transforms = replace(self.transforms, batched=self.source == "sample")
        self.draws = not self.transforms.batched

    # -- what a subclass implements ------------------------------------------------------------------------------

    def read_pairs(self, root: Path) -> tuple[MaskCoding, Sequence[Pair]]:
        """The coding of the masks, and all pairs of images and masks below `root`; raises `DataError`."""
        raise NotImplementedError

    # -- interface of the data module ----------------------------------------------------------------------------

    def take(self, root: Path) -> None:
        coding, pairs = self.read_pairs(root)
        self.targets.take(coding)
        self.entries = sorted(pairs, key=lambda pair: pair.picture.parts)
        refuse_twice(self.entries)

    def item_of(self, entry: Pair) -> Item:
        return Item(entry.picture, where={"mask": str(entry.mask)})

    def group_of(self, entry: Pair) -> str | None:
        return entry.group

    def read_pair(self, item: Item, train: bool, rng: np.random.Generator) -> tuple[Any, Tensor]:
        image = open_image(item.path, self.transforms.reading)
        mask = self.targets.read(item, image.size, self.transforms.reading)
        pixels = pixels_of(image)
        if not train or not self.draws:
            return raw_of(pixels), mask
        with seeded_by(rng):
            drawn, drawn_mask = self._train(tv_tensors.Image(pixels), tv_tensors.Mask(mask))
        size = self.transforms.crop
        raw = raw_of(drawn.as_subclass(Tensor))
        raw["pixels"] = padded(raw["pixels"], size)
        return raw, padded(drawn_mask.as_subclass(Tensor), size, VOID)

    def join_raws(self, raws: list[Any]) -> dict[str, Tensor]:
        return join_pictures(raws)

    def device_transforms(self) -> BatchedMaskTransforms | None:
        return self.transforms.for_device()

    def class_counts(self) -> tuple[NDArray[np.int64], int]:
        """Number of pixels of each class, (K,), and of all labelled pixels, in at most `COUNTED` training masks."""
        classes = len(self.class_names)
        pixels_K = np.zeros(classes, dtype=np.int64)
        items = spread(self.splits["train"], COUNTED)
        dataset = self._dataset(items, train=False)
        for index in range(len(items)):
            read = dataset[index, 0]
            if isinstance(read, Sample):  # unreadable items are reported in training
                pixels_K += np.bincount(read.target.numpy().reshape(-1), minlength=VOID + 1)[:classes]
        return pixels_K, int(pixels_K.sum())

    @property
    def palette(self) -> list[list[int]]:
        """The colour of each class, (r, g, b)."""
        return self.targets.palette

    def digest(self) -> str:
        """As in `DataModule`, including the names and sizes of the mask files."""
        if self.storage is not None:
            return super().digest()
        found = hashlib.sha256(super().digest().encode())
        for split in SPLITS:
            for item in spread(self.splits[split], DIGESTED):
                found.update(self.targets.fingerprint(item, self.root))
        return found.hexdigest()[:32]

    # -- shards --------------------------------------------------------------------------------------------------

    def know(self, found: ShardSet) -> None:
        palette = found.data_info.get("palette")
        plain = isinstance(palette, list) and len(palette) == len(found.class_names)
        if not plain or not all(_is_colour(colour) for colour in palette or ()):
            raise DataError(f"{self.place} does not say the colours of its classes: write the shards again")
        self.targets.coding = numbered(found.class_names)
        self.recall({"class_names": found.class_names, "palette": palette})

    def pack_beside(self, item: Item) -> tuple[str, bytes]:
        """The mask as an image of class indices; an unreadable mask is stored unchanged and reported on loading."""
        mask = Path(item.where["mask"])
        try:
            size = size_of(item.path, self.transforms.reading)
            packed = io.BytesIO()
            Image.fromarray(self.targets.coding.read(mask, size, self.transforms.reading)).save(packed, "PNG")
            return "mask.png", packed.getvalue()
        except ReadError:
            try:
                return f"mask{mask.suffix}", mask.read_bytes()
            except OSError as error:
                raise DataError(f"{mask} cannot be read ({error.strerror})") from error

    def read_packed(
        self, item: Item, parts: Mapping[str, bytes], train: bool, rng: np.random.Generator
    ) -> tuple[Any, Tensor]:
        ending = item.path.suffix.lower()
        masks = [name for name in parts if name.startswith(".mask.")]
        if ending not in parts or not masks:
            raise ReadError("it is no picture with its mask")
        with as_file(parts[ending], ending) as picture, as_file(parts[masks[0]], masks[0]) as mask:
            return self.read_pair(replace(item, path=picture, where={"mask": str(mask)}), train, rng)


def _is_colour(said: Any) -> bool:
    return (
        isinstance(said, list)
        and len(said) == 3
        and all(type(part) is int and 0 <= part < 256 for part in said)
    )


def paired(
    pictures: Iterable[tuple[str, Path]],
    masks: Iterable[tuple[str, Path]],
    split: str | None,
    place: str,
    notes: list[str] | None = None,
) -> list[Pair]:
    """Pairs images and masks with the same key.

    Args:
        pictures, masks: (key, path) of each.
        split: split of all of them.
        place: location in messages.
        notes: a note about masks without an image is appended.

    Raises:
        DataError: an image without a mask, or two files with one key; the first one is named.
    """
    found: dict[str, Path] = {}
    for key, mask in masks:
        if key in found:
            raise DataError(f"{place}: {found[key].name} and {mask.name} are both the mask of {key}")
        found[key] = mask
    pairs, seen, without = [], dict[str, Path](), []
    for key, picture in pictures:
        if key in seen:
            raise DataError(f"{place}: {seen[key].name} and {picture.name} have the same mask {key}")
        seen[key] = picture
        if key in found:
            pairs.append(Pair(picture, found[key], split))
        else:
            without.append(picture)
    if without:
        more = f" and {len(without) - 1:,} more pictures have" if len(without) > 1 else " has"
        raise DataError(f"{without[0]}{more} no mask of the same name")
    alone = [mask for key, mask in found.items() if key not in seen]
    if alone and notes is not None:
        notes.append(
            f"{len(alone):,} masks in {place} belong to no picture, {alone[0].name} the first of them"
        )
    return pairs
