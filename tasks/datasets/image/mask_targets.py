"""Segmentation masks as a kind of target.

Shapes: H and W in pixels.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.datasets.class_names import refuse_unknown
from tasks.datasets.image.dense_transforms import join_masks
from tasks.datasets.image.masks import MaskCoding
from tasks.datasets.image.reading import PictureOptions
from tasks.datasets.items import Item
from tasks.datasets.targets import Targets


class MaskTargets(Targets):
    """The class of each pixel, ``(H, W)`` uint8, or `VOID`, read from the file `where["mask"]` of an item.

    Data info: `class_names`, and `palette`, the colour of each class.
    """

    coding: MaskCoding

    def __init__(self) -> None:
        super().__init__()
        self.palette: list[list[int]] = []

    def take(self, coding: MaskCoding) -> None:
        """Set the coding of the masks."""
        self.coding = coding
        self.class_names = list(coding.names)
        self.palette = [list(colour) for colour in coding.palette]

    def read(self, item: Item, size: tuple[int, int], options: PictureOptions) -> Tensor:
        """Read the mask of an item whose image has this width and height; raises `ReadError`."""
        return torch.from_numpy(self.coding.read(Path(item.where["mask"]), size, options))

    def join(self, targets: list[Any]) -> Tensor:
        return join_masks(targets)

    def info(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names), "palette": [list(colour) for colour in self.palette]}

    def recall(self, data_info: dict[str, Any]) -> None:
        self.class_names = list(data_info["class_names"])
        self.palette = [list(colour) for colour in data_info["palette"]]

    def adopt(
        self, items: Sequence[Item], info: dict[str, Any], data_info: dict[str, Any], place: str
    ) -> Sequence[Item]:
        known = list(data_info["class_names"])
        refuse_unknown(self.class_names, known, place)
        self.coding = self.coding.renumbered(known)
        self.recall(data_info)
        return items

    def details(self) -> str:
        return f", {len(self.class_names)} classes"

    def fingerprint(self, item: Item, root: Path) -> bytes:
        """The mask's path relative to `root` and its file size, for hashing."""
        mask = Path(item.where["mask"])
        size = mask.stat().st_size if mask.is_file() else 0
        name = str(mask).removeprefix(f"{root}{os.sep}")
        return f"{name}\0{size}\0".encode("utf-8", "surrogateescape")
