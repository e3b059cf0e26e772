"""Images with masks or boxes: what the data modules of segmentation and detection share.

A raw sample is `{"pixels": (3, H, W) uint8, "size": (2,)}`.
"""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from tasks.datasets.base import CommonSettings
from tasks.datasets.errors import DataError
from tasks.datasets.image.reading import EXTENSIONS, PictureOptions, open_image
from tasks.datasets.items import SPLITS, Item, Whole
from tasks.datasets.shards.data import ReadsShards, ShardOptions
from tasks.datasets.splits import held_out_files, held_out_groups, stable_fraction


class DenseTransforms(Protocol):
    """Training transforms of images and their targets."""

    @property
    def reading(self) -> PictureOptions: ...

    def for_training(self) -> Callable[..., Any]: ...


class DenseEntry(Protocol):
    """An image with its target, and its split (`None`: by name hash)."""

    @property
    def picture(self) -> Path: ...

    @property
    def split(self) -> str | None: ...


Transforms = TypeVar("Transforms", bound=DenseTransforms)
Entry = TypeVar("Entry", bound=DenseEntry)


class DenseData(ReadsShards, Generic[Transforms, Entry]):
    """Base class of data modules for images with masks or boxes.

    A subclass implements `take` and `item_of`, and reads pairs of a raw sample and its target.

    Args:
        transforms: training transforms.
        val_part: fraction of the training images used for validation, if the data define no validation split; `None`:
            the default of the data set.
        test_part: likewise for testing.
        format, shards: see `ReadsShards.open_shards`.
        **common: see `DataModule`.
    """

    modality = "image"
    extensions = EXTENSIONS
    unit = "images"
    beside = True
    usual_val_part: ClassVar[float] = 0.1

    def __init__(
        self,
        *,
        transforms: Transforms,
        val_part: float | None = None,
        test_part: float = 0.1,
        format: str = "files",
        shards: ShardOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(**common)
        self.open_shards(format, shards, common.get("data_dir"))
        val_part = self.usual_val_part if val_part is None else val_part
        if not (0 < val_part < 1 and 0 < test_part < 1 and val_part + test_part < 1):
            raise DataError("val_part and test_part must lie between 0 and 1 and leave something to train on")
        self.transforms = transforms
        self.val_part = val_part
        self.test_part = test_part
        self._train = transforms.for_training()
        self.entries: list[Entry] = []

    # -- what a subclass implements ------------------------------------------------------------------------------

    def take(self, root: Path) -> None:
        """Read what lies below `root`, and set `entries` to its images, sorted by path; raises `DataError`."""
        raise NotImplementedError

    def item_of(self, entry: Entry) -> Item:
        """The item of an image."""
        raise NotImplementedError

    def group_of(self, entry: Entry) -> str | None:
        """The group of an image, which is never split; `None`: it belongs to none."""
        return None

    # -- interface of the data module ----------------------------------------------------------------------------

    def read_splits(self, root: Path) -> Mapping[str, Sequence[Item]]:
        self.take(root)
        stated = {entry.split for entry in self.entries}
        parts: dict[Path, str] = {}
        for split, part in (("test", self.test_part), ("val", self.val_part)):
            free = [e for e in self.entries if e.split in (None, "train") and e.picture not in parts]
            if split not in stated and len(free) > 1:
                names = {os.path.relpath(entry.picture, root): entry for entry in free}
                parts |= {names[name].picture: split for name in self._held_out(names, part, split)}
        return {
            split: [
                self.item_of(entry)
                for entry in self.entries
                if parts.get(entry.picture, entry.split or "train") == split
            ]
            for split in SPLITS
        }

    def _held_out(self, entries: Mapping[str, Entry], part: float, split: str) -> set[str]:
        """The names to hold out for a split: about `part` of them, and all or none of a group."""
        groups = {name: self.group_of(entry) for name, entry in entries.items()}
        if not any(groups.values()):
            return held_out_files((("", name) for name in entries), part)
        units = {name: group or name for name, group in groups.items()}
        if len(set(units.values())) < 2:
            raise DataError(
                f"the pictures left for {split} belong to the group {next(iter(units.values()))} alone, and a group "
                "belongs to one split: more groups are needed, or a column split"
            )
        held = held_out_groups((("", unit) for unit in units.values()), part)
        held = held or {min(units.values(), key=stable_fraction)}
        return {name for name, unit in units.items() if unit in held}

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> dict[str, Tensor]:
        raw: dict[str, Tensor] = self.read_pair(item, train, rng)[0]
        return raw

    def read_file(self, path: Path) -> dict[str, Tensor]:
        return raw_of(pixels_of(open_image(path, self.transforms.reading)))

    def read_whole(self, data_info: dict[str, Any]) -> Whole | None:
        if self.storage is not None:
            return None
        if not self.root.is_dir():
            raise self.bad_layout(f"{self.root} is not a folder")
        self.take(self.root)
        self.adopt(data_info)
        tested = [entry for entry in self.entries if entry.split == "test"]
        said = f"of {len(self.entries):,} pictures the {len(tested):,} of its test split are tested"
        if not tested:
            tested, said = list(self.entries), f"all {len(self.entries):,} pictures are tested"
        return Whole([self.item_of(entry) for entry in tested], said)


def refuse_twice(entries: Sequence[DenseEntry]) -> None:
    """Raise a `DataError` for an image that is there twice; `entries` are sorted by it."""
    for one, other in itertools.pairwise(entries):
        if one.picture == other.picture:
            raise DataError(
                f"{one.picture} is there twice, in {one.split or 'no split'} and in {other.split or 'no split'}"
            )


def pixels_of(image: Any) -> Tensor:
    """A PIL RGB image as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def raw_of(pixels_3HW: Tensor) -> dict[str, Tensor]:
    """The raw sample of an image."""
    return {"pixels": pixels_3HW, "size": torch.tensor(pixels_3HW.shape[-2:])}
