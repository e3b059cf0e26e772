"""Images with boxes: base class of the detection data modules.

A raw sample is `{"pixels": (3, H, W) uint8, "size": (2,)}`. Its target is a dictionary of `boxes` (n, 4) float32, x1,
y1, x2, y2 in pixels of `pixels`, `labels` (n,) int64, `crowd` (n,) bool and, if available, `masks` (n, H, W) bool; n
may be 0. Outside training, `image_id` () int64 is the id of the image in the annotations, if they have ids. The target
of a batch is a list of these.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from typing_extensions import Unpack

from tasks.datasets.base import (
    DIGESTED,
    SPLITS,
    CommonSettings,
    DataError,
    Item,
    ReadError,
    refuse_unknown,
    spread,
)
from tasks.datasets.image.box_formats import coco_json
from tasks.datasets.image.box_formats.labels import Labelled, check_names, number_of_name
from tasks.datasets.image.box_formats.outlines import Outline
from tasks.datasets.image.box_formats.packed import packed, unpacked
from tasks.datasets.image.box_formats.places import (
    folders_of,
    picture_folders,
    root_of,
    split_of_name,
)
from tasks.datasets.image.box_transforms import (
    DetectionTransforms,
    Target,
    join_padded,
    visible,
    wrapped,
)
from tasks.datasets.image.dense_data import DenseData, pixels_of, raw_of, refuse_twice
from tasks.datasets.image.reading import open_image
from tasks.datasets.items import Whole
from tasks.datasets.seeding import seeded_by
from tasks.datasets.shards.data import ShardOptions, as_file
from tasks.datasets.shards.layout import ShardSet

LABEL, CROWD = 4, 5  # columns of an item's `objects`


@dataclass(frozen=True)
class Found:
    """Result of a reader: class names, images, whether every object has a mask, and the id of each class, if any."""

    class_names: Sequence[str]
    pictures: Sequence[Labelled]
    has_masks: bool = False
    notes: Sequence[str] = field(default=())
    category_ids: Sequence[int] | None = None


class BoxData(DenseData[DetectionTransforms, Labelled]):
    """Base class of data modules for images with boxes.

    A subclass implements `read_pictures` and, for its embedded sample, `write_sample`. The target of an item is an
    array of its objects, (n, 6): box, label, crowd; their outlines are in `where`.

    Data info: `class_names`, and `has_masks`; of data in COCO's format also `category_ids`, the id of each class in the
    annotations, and, where every image's id is the number that its file name states, `ids_in_names`.

    Args:
        transforms: training transforms; `None`: the defaults of `DetectionTransforms`.
        val_part: fraction of the training images used for validation, if the data define no validation split; `None`:
            the default of the data set.
        test_part: likewise for testing.
        format, shards: see `ReadsShards.open_shards`.
        **common: see `DataModule`.
    """

    draws_apart = True

    def __init__(
        self,
        *,
        transforms: DetectionTransforms | None = None,
        val_part: float | None = None,
        test_part: float = 0.1,
        format: str = "files",
        shards: ShardOptions | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(
            transforms=transforms or DetectionTransforms(),
            val_part=val_part,
            test_part=test_part,
            format=format,
            shards=shards,
            **common,
        )
        self.has_masks = False
        self.category_ids: list[int] | None = None
        self.ids_in_names = False
        self.listed_ids: dict[Path, int] = {}  # of the images that a file of annotations has named

    # -- what a subclass implements ------------------------------------------------------------------------------

    def read_pictures(self, root: Path) -> Found:
        """All images below `root` with their objects; raises `DataError`."""
        raise NotImplementedError

    # -- interface of the data module ----------------------------------------------------------------------------

    def take(self, root: Path) -> None:
        found = self.read_pictures(root)
        self.entries = sorted(found.pictures, key=lambda entry: entry.picture.parts)
        refuse_twice(self.entries)
        self.class_names = check_names(found.class_names, self.place)
        self.has_masks = found.has_masks
        self.category_ids = None if found.category_ids is None else list(found.category_ids)
        self.ids_in_names = bool(self.entries) and all(
            entry.id is not None and entry.id == number_of_name(entry.picture) for entry in self.entries
        )
        self.notes = [*found.notes]

    def item_of(self, entry: Labelled) -> Item:
        where: dict[str, Any] = {"size": entry.size, "fault": entry.fault, "outlines": entry.outlines}
        where = {name: value for name, value in where.items() if value}
        return Item(entry.picture, entry.objects, where if entry.id is None else {**where, "id": entry.id})

    def read_pair(self, item: Item, train: bool, rng: np.random.Generator) -> tuple[Any, Target]:
        raw, target = self.decode(item)
        if train:
            return self.augmented(raw, target, rng)
        if "id" in item.where:
            target["image_id"] = torch.tensor(item.where["id"])
        return raw, target

    def decode(self, item: Item) -> tuple[dict[str, Tensor], Target]:
        if "fault" in item.where:
            raise ReadError(str(item.where["fault"]))
        image = open_image(item.path, self.transforms.reading)
        size = item.where.get("size", image.size)
        if tuple(size) != image.size:
            raise ReadError(
                f"its labels are for {size[0]}×{size[1]} pixels, the picture has {image.width}×{image.height}"
            )
        return raw_of(pixels_of(image)), self._target(item, image.height, image.width)

    def augmented(
        self, raw: dict[str, Tensor], target: Target, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], Target]:
        height, width = raw["pixels"].shape[-2:]
        with seeded_by(rng):
            moved, target = self._train(tv_tensors.Image(raw["pixels"]), wrapped(target, height, width))
        pixels = moved.as_subclass(Tensor)
        height, width = pixels.shape[-2:]
        return raw_of(pixels), visible(target, height, width, self.transforms.min_side)

    def _target(self, item: Item, height: int, width: int) -> Target:
        objects_n6: NDArray[np.float64] = item.target
        outlines: Sequence[Outline | None] = item.where.get("outlines", ())
        target = {
            "boxes": torch.from_numpy(objects_n6[:, :LABEL].astype(np.float32)),
            "labels": torch.from_numpy(objects_n6[:, LABEL].astype(np.int64)),
            "crowd": torch.from_numpy(objects_n6[:, CROWD] > 0),
        }
        if self.has_masks:
            masks_nHW = np.zeros((len(objects_n6), height, width), dtype=bool)
            for place, outline in enumerate(outlines):
                assert outline is not None  # guaranteed by has_masks
                try:
                    masks_nHW[place] = outline.mask(height, width)
                except ValueError as error:
                    raise ReadError(f"object {place + 1}: {error}") from error
            target["masks"] = torch.from_numpy(masks_nHW)
        return visible(target, height, width, 0.0)

    def join_raws(self, raws: list[Any]) -> dict[str, Tensor]:
        return join_padded(raws)

    def join_targets(self, targets: list[Any]) -> list[Target]:
        return list(targets)

    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"class_names": list(self.class_names), "has_masks": self.has_masks}
        if self.category_ids is not None:
            info["category_ids"] = list(self.category_ids)
        return {**info, "ids_in_names": True} if self.ids_in_names else info

    def recall(self, data_info: dict[str, Any]) -> None:
        self.class_names = list(data_info["class_names"])
        self.has_masks = bool(data_info["has_masks"])
        self.category_ids = _checked_ids(data_info.get("category_ids"), len(self.class_names))
        self.ids_in_names = data_info.get("ids_in_names") is True

    def adopt(self, data_info: dict[str, Any]) -> None:
        known = list(data_info["class_names"])
        refuse_unknown(self.class_names, known, self.place)
        if data_info["has_masks"] and not self.has_masks:
            raise DataError(f"the model answers with masks, and {self.place} has boxes only")
        places = np.array([known.index(name) for name in self.class_names], dtype=np.float64)

        def translated(objects_n6: NDArray[np.float64]) -> NDArray[np.float64]:
            moved = objects_n6.copy()
            moved[:, LABEL] = places[objects_n6[:, LABEL].astype(np.int64)]
            return moved

        if (
            self.class_names != known and self.storage is None
        ):  # in shards, objects are stored with class names
            self.entries = [replace(entry, objects=translated(entry.objects)) for entry in self.entries]
            self.splits = {
                split: [replace(item, target=translated(item.target)) for item in items]
                for split, items in self.splits.items()
            }
        own, in_names = self._ids_of_classes(), self.ids_in_names
        self.recall(data_info)
        self._number(own)
        self.ids_in_names = in_names

    def take_whole(self, whole: Whole, data_info: dict[str, Any]) -> None:
        own = self.category_ids, self.ids_in_names  # as adopted by `read_whole`
        super().take_whole(whole, data_info)
        self.category_ids, self.ids_in_names = own

    def files_listed_in(self, path: Path) -> list[Path] | None:
        """The images that a COCO instance file names (or one without labels, as of COCO's test images).

        Their ids, and those of the classes, are from then on the file's.
        """
        if path.suffix.lower() != ".json" or not coco_json.looks_like_instances(path):
            return None
        content = coco_json.read_instances(path, ("images",))
        root = root_of(path)
        folders = dict.fromkeys([*picture_folders(path, split_of_name(path.stem), root), *folders_of(root)])
        pictures = coco_json.pictures(path, content, list(folders))
        self.listed_ids = {picture: number for number, picture in pictures.items()}
        if "categories" in content:
            coco_json.check_parts(content, path, ("categories",))
            self._number({name: number for number, name in coco_json.categories(content, path).items()})
        return list(pictures.values())

    def image_id(self, path: Path) -> int | None:
        """The number of an image in the annotations; None if nothing states it."""
        if path in self.listed_ids:
            return self.listed_ids[path]
        return number_of_name(path) if self.ids_in_names else None

    def _ids_of_classes(self) -> dict[str, int]:
        return dict(zip(self.class_names, self.category_ids or (), strict=False))

    def _number(self, ids: Mapping[str, int]) -> None:
        """Take over the ids of classes from annotations, if there are any; classes unknown to them get free ids."""
        if ids:
            free = itertools.count(max(ids.values()) + 1)
            self.category_ids = [ids[name] if name in ids else next(free) for name in self.class_names]

    def digest(self) -> str:
        """As in `DataModule`, including the outlines."""
        found = hashlib.sha256(super().digest().encode())
        for split in SPLITS:
            for item in spread(self.splits[split], DIGESTED):
                for outline in item.where.get("outlines", ()):
                    found.update(outline.content() if outline is not None else b"\0")
        return found.hexdigest()[:32]

    def details(self) -> str:
        with_masks = " with masks" if self.has_masks else ""
        return f", {len(self.class_names)} classes{with_masks}{self.in_shards}"

    # -- shards --------------------------------------------------------------------------------------------------

    def know(self, found: ShardSet) -> None:
        has_masks = found.data_info.get("has_masks")
        if not isinstance(has_masks, bool):
            raise DataError(
                f"{self.place} does not say whether its objects have masks: write the shards again"
            )
        self.recall({**found.data_info, "class_names": found.class_names})

    def pack_beside(self, item: Item) -> tuple[str, bytes]:
        return "json", packed(item.target, self.class_names, item.where)

    def read_packed(
        self, item: Item, parts: Mapping[str, bytes], train: bool, rng: np.random.Generator
    ) -> tuple[Any, Target]:
        ending = item.path.suffix.lower()
        if ending not in parts or ".json" not in parts:
            raise ReadError("it is no picture with its boxes")
        objects_n6, where = unpacked(parts[".json"], self.class_names)
        with as_file(parts[ending], ending) as picture:
            return self.read_pair(replace(item, path=picture, target=objects_n6, where=where), train, rng)


def _checked_ids(ids: Any, classes: int) -> list[int] | None:
    """The ids of the classes as stored with a model or with shards; raises `DataError` if they are none."""
    if ids is None:
        return None
    whole = isinstance(ids, list) and all(type(number) is int and abs(number) < 2**63 for number in ids)
    if not whole or len(set(ids)) != classes or len(ids) != classes:
        raise DataError(f"category_ids are not {classes} different whole numbers, one for each class")
    return list(ids)
