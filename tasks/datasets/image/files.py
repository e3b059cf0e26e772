"""Reads images as RGB tensors of one size; base class of the image classification data modules.

Shapes: S side in pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from modalities.batched_transforms import BatchedImageTransforms
from tasks.datasets.errors import DataError
from tasks.datasets.image.reading import EXTENSIONS, MAX_PIXELS, PictureOptions, open_image
from tasks.datasets.items import Item
from tasks.datasets.seeding import seeded_by
from tasks.datasets.shards.data import ShardableData, ShardableSettings
from tasks.datasets.targets import ClassTargets, Kind

if TYPE_CHECKING:
    from PIL import Image

READ_ALIKE = ", or task.data.transforms.batched=true to draw crops on the device"
CROPS = ("resized", "padded", "whole")
EVAL_CROPS = ("center", "squash", "border")


@dataclass(frozen=True)
class ImageTransforms:
    """Transforms of an image to ``(3, S, S)`` uint8, for training and evaluation, from timm.

    Args:
        size: S.
        crop: training crop. ``resized``: RandomResizedCrop (timm, Inception-style). ``padded``: scaled to S, padded by
            an eighth on each side, then a random S × S crop (the usual one for 32 × 32 images). ``whole``: squashed
            to S × S.
        scale: minimum and maximum area fraction of ``resized``.
        ratio: minimum and maximum aspect ratio of ``resized``.
        hflip, vflip: probabilities of horizontal and vertical flips.
        color_jitter: strength of brightness, contrast and saturation jitter; timm disables it with
            ``auto_augment``.
        auto_augment: timm's policy, e.g. ``rand-m9-mstd0.5-inc1`` (RandAugment); ``None`` for none.
        interpolation: interpolation of all resizing: ``bicubic``, ``bilinear``, …
        crop_pct: in evaluation, the image is scaled to S / crop_pct before the S × S crop.
        crop_mode: in evaluation: ``center`` scales the shorter side and crops, ``squash`` ignores the aspect ratio,
            ``border`` scales the longer side and pads.
        max_pixels: images with more pixels, also after scaling, are refused before decoding.
        bits: significant bits of 16-bit images: 12 for many cameras and scanners.
        batched: the reader only scales training images to S × S; crops, flips and colours are drawn for the whole batch
            on the device (`modalities.batched_transforms`).

    Raises:
        DataError: invalid settings.
    """

    size: int = 224
    crop: str = "resized"
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | None = 0.0
    auto_augment: str | None = None
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    max_pixels: int = MAX_PIXELS
    bits: int = 16
    batched: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.crop_pct <= 1:
            raise DataError("transforms.size must be at least 1 and crop_pct lie in (0, 1]")
        if self.crop not in CROPS or self.crop_mode not in EVAL_CROPS:
            raise DataError(
                f"transforms.crop takes {', '.join(CROPS)} and crop_mode {', '.join(EVAL_CROPS)}, "
                f"not {self.crop} and {self.crop_mode}"
            )
        if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
            raise DataError(
                f"transforms.scale takes two parts of the area, such as [0.08, 1.0], not {self.scale}"
            )

        if self.max_pixels < 1 or not 8 <= self.bits <= 16:
            raise DataError("transforms.max_pixels must be at least 1 and bits lie between 8 and 16")

    @property
    def reading(self) -> PictureOptions:
        """File reading options for these transforms."""
        return PictureOptions(self.max_pixels, self.bits, self._pixels_scaled)

    def _pixels_scaled(self, width: int, height: int) -> int:
        """Number of pixels of an image of this size after scaling for evaluation."""
        short, long = sorted((width, height))
        if self.crop_mode == "center":
            side = math.floor(self.size / self.crop_pct)
            return side * math.ceil(side * long / short)
        return long * math.ceil(long / self.size) if self.crop_mode == "border" else 0

    def for_device(self) -> BatchedImageTransforms | None:
        """Training transforms on the device, with ``batched``."""
        if not self.batched:
            return None
        try:
            return BatchedImageTransforms(
                self.crop,
                self.scale,
                self.ratio,
                self.hflip,
                self.vflip,
                self.color_jitter or 0.0,
                self.auto_augment,
                self.interpolation,
            )
        except ValueError as error:
            raise DataError(str(error)) from error

    def for_training(self) -> Callable[["Image.Image"], Tensor]:
        """Training transform, PIL image -> (3, S, S) uint8; uses the global random generators, see `seeded_by`."""
        from timm.data import create_transform
        from torchvision.transforms import Compose, InterpolationMode, PILToTensor, RandomCrop, Resize

        if self.batched:
            return Compose(
                [Resize((self.size, self.size), InterpolationMode(self.interpolation)), PILToTensor()]
            )
        try:
            pipeline = create_transform(
                self.size,
                is_training=True,
                scale=(self.scale[0], self.scale[1]),
                ratio=(self.ratio[0], self.ratio[1]),
                hflip=self.hflip,
                vflip=self.vflip,
                color_jitter=self.color_jitter or 0.0,
                auto_augment=self.auto_augment,
                interpolation=self.interpolation,
                use_prefetcher=True,  # keeps uint8
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise DataError(
                f"timm knows no such augmentation: auto_augment={self.auto_augment} ({error})"
            ) from error
        first, *others = pipeline.transforms
        if self.crop != "resized":
            how = InterpolationMode(self.interpolation)
            first = Resize((self.size, self.size), how)
        if self.crop == "padded":
            first = Compose([first, RandomCrop(self.size, padding=max(self.size // 8, 1))])
        pipeline.transforms = [first, *others]
        return pipeline

    def for_evaluation(self) -> Callable[["Image.Image"], Tensor]:
        """Evaluation transform, PIL image -> (3, S, S) uint8; deterministic."""
        from timm.data import create_transform
        from torchvision.transforms import Compose

        pipeline = create_transform(
            (self.size, self.size) if self.crop_mode == "border" else self.size,
            is_training=False,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
            use_prefetcher=True,
        )
        return Compose([self._thick_enough, pipeline]) if self.crop_mode == "border" else pipeline

    def _thick_enough(self, image: "Image.Image") -> "Image.Image":
        """Widens very thin images so that at least one pixel is left on each side when the longer side becomes S."""
        least = math.ceil(max(image.size) / self.size)
        width, height = (max(side, least) for side in image.size)
        return image if image.size == (width, height) else image.resize((width, height))


class ImageData(ShardableData):
    """Base class of data modules for images; a raw sample is ``(3, S, S)`` uint8.

    Args:
        transforms: crops, flips and augmentation; ``None``: the defaults of `ImageTransforms`.
        **common: see `ShardableData` and `DataModule`.
    """

    kind: ClassVar[Kind] = ClassTargets
    modality = "image"
    extensions = EXTENSIONS
    unit = "images"
    read_alike = READ_ALIKE

    def __init__(
        self, *, transforms: ImageTransforms | None = None, **common: Unpack[ShardableSettings]
    ) -> None:
        super().__init__(**common)
        self.transforms = transforms or ImageTransforms()
        self.draws = not self.transforms.batched
        self._on_device = self.transforms.for_device()
        self._train = self.transforms.for_training()
        self._eval = self.transforms.for_evaluation()

    def open_item(self, item: Item) -> "Image.Image":
        """The image of an item in RGB; raises `ReadError`."""
        return open_image(item.path, self.transforms.reading)

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor:
        image = self.open_item(item)
        if not train:
            return torch.as_tensor(self._eval(image))
        if not self.draws:
            return torch.as_tensor(self._train(image))
        with seeded_by(rng):
            return torch.as_tensor(self._train(image))

    def device_transforms(self) -> BatchedImageTransforms | None:
        return self._on_device

    def read_file(self, path: Path) -> Tensor:
        return torch.as_tensor(self._eval(open_image(path, self.transforms.reading)))
