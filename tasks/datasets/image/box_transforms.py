"""Training transforms for images with boxes: pixels, boxes and masks are scaled, cropped and flipped together.

torchvision's `transforms.v2` on `tv_tensors`: a transform draws its parameters once for the image and its targets, from
torch's global generator, which is seeded for each item (`tasks.datasets.image.files.seeded_by`).

Shapes: n objects in an image of H × W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tasks.bilinear import fitted
from tasks.datasets.errors import DataError
from tasks.datasets.image.dense_transforms import PhotometricDistortion, join_pictures
from tasks.datasets.image.reading import MAX_PIXELS, PictureOptions

MULTIPLE = 32  # batches are padded to multiples of it, for a feature pyramid with strides up to 32
Target = dict[str, Tensor]


@dataclass(frozen=True)
class DetectionTransforms:
    """Training augmentation for detection; the defaults are the official ones for COCO.

    In evaluation the image is unchanged: the task scales it.

    Args:
        shorts: shorter sides to choose from; the aspect ratio is kept; `None`: no scaling.
        longest: maximum longer side.
        crop_part: probability of a crop before scaling, as in DETR (Carion et al. 2020, arXiv 2005.12872).
        crop_shorts: shorter sides to choose from for the scaling before the crop.
        crop: minimum and maximum of the crop's height and width, drawn independently.
        jitter: large scale jitter (Ghiasi et al. 2021, arXiv 2012.07177) instead of the above: the image is scaled to
            fit into `size` times a factor from this range, such as [0.1, 2.0], and cropped to `size`.
        size: S, the maximum side with large scale jitter.
        hflip: probability of a horizontal flip.
        photometric: distort brightness, contrast, saturation and hue (`PhotometricDistortion`).
        min_side: minimum side of a box in pixels; objects with smaller boxes are dropped.
        max_pixels, bits: see `PictureOptions`.

    Raises:
        DataError: invalid settings.
    """

    shorts: Sequence[int] | None = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    longest: int = 1333
    crop_part: float = 0.5
    crop_shorts: Sequence[int] = (400, 500, 600)
    crop: Sequence[int] = (384, 600)
    jitter: Sequence[float] | None = None
    size: int = 1024
    hflip: float = 0.5
    photometric: bool = False
    min_side: float = 1.0
    max_pixels: int = MAX_PIXELS
    bits: int = 16

    def __post_init__(self) -> None:
        sides = (*(self.shorts or (1,)), self.longest, *self.crop_shorts, *self.crop, self.size)
        if min(sides) < 1 or self.shorts == () or not self.crop_shorts:
            raise DataError("transforms.shorts, longest, crop_shorts, crop and size are numbers of pixels")
        if len(self.crop) != 2 or self.crop[0] > self.crop[1]:
            raise DataError(f"transforms.crop takes two sides, such as [384, 600], not {list(self.crop)}")
        if not (0 <= self.crop_part <= 1 and 0 <= self.hflip <= 1):
            raise DataError("transforms.crop_part and hflip must lie in [0, 1]")
        if self.jitter is not None and not (len(self.jitter) == 2 and 0 < self.jitter[0] <= self.jitter[1]):
            raise DataError(f"transforms.jitter takes two factors, such as [0.1, 2.0], not {self.jitter}")
        if self.min_side < 0 or self.max_pixels < 1 or not 8 <= self.bits <= 16:
            raise DataError(
                "transforms.min_side must be at least 0, max_pixels at least 1 and bits lie between 8 and 16"
            )

    @property
    def reading(self) -> PictureOptions:
        """File reading options for these transforms."""
        return PictureOptions(self.max_pixels, self.bits)

    def for_training(self) -> v2.Compose:
        """Transform of (Image (3, H, W) uint8, target); boxes may become empty, see `visible`."""
        steps: list[v2.Transform] = [v2.RandomHorizontalFlip(self.hflip)]
        if self.jitter is not None:
            steps += [ScaleJitter(self.size, self.jitter), RandomSizeCrop(self.size, self.size)]
        else:
            steps.append(self._scaled())
        return v2.Compose([*steps, PhotometricDistortion()] if self.photometric else steps)

    def _scaled(self) -> v2.Transform:
        last = RandomShortSide(self.shorts, self.longest)
        if self.crop_part == 0:
            return last
        cropped = [
            RandomShortSide(self.crop_shorts, self.longest),
            RandomSizeCrop(self.crop[0], self.crop[1]),
            last,
        ]
        return v2.RandomChoice([last, v2.Compose(cropped)], p=[1 - self.crop_part, self.crop_part])


class RandomShortSide(v2.Transform):
    """Scale an image to a random shorter side, keeping the aspect ratio.

    Args:
        shorts: shorter sides to choose from; `None`: no scaling.
        longest: maximum longer side.
    """

    def __init__(self, shorts: Sequence[int] | None, longest: int) -> None:
        super().__init__()
        self.shorts = shorts
        self.longest = longest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(flat_inputs[0])
        if self.shorts is None:
            return {"size": [height, width]}
        short = self.shorts[int(torch.randint(len(self.shorts), ()))]
        factor = min(short / min(height, width), self.longest / max(height, width))
        return {"size": [max(int(side * factor + 0.5), 1) for side in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        # Not antialiased, like OpenCV's bilinear resizing in the official recipe; masks use nearest neighbour.
        return F.resize(inpt, params["size"], antialias=False)


class ScaleJitter(v2.Transform):
    """Scale an image to fit into a square of `size` times a random factor, keeping the aspect ratio.

    Args:
        size: side of the square.
        factors: range of the factor.
    """

    def __init__(self, size: int, factors: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.factors = factors

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = float(torch.empty(()).uniform_(self.factors[0], self.factors[1]))
        side = max(int(self.size * factor), 1)
        height, width = F.get_size(flat_inputs[0])
        return {"size": list(fitted(height, width, (side, side)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, params["size"], antialias=False)


class RandomSizeCrop(v2.Transform):
    """A random crop of random height and width, at most those of the image; it may contain no object.

    Args:
        least, most: minimum and maximum of both sides.
    """

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        self.least = least
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        whole = F.get_size(flat_inputs[0])
        sides = [_drawn(min(side, self.least), min(side, self.most)) for side in whole]
        starts = [_drawn(0, side - own) for side, own in zip(whole, sides, strict=True)]
        return {"box": (*starts, *sides)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, *params["box"])


def _drawn(least: int, most: int) -> int:
    """A random integer in [least, most]."""
    return int(torch.randint(least, most + 1, ()))


# -- samples and batches ---------------------------------------------------------------------------------------


def wrapped(target: Target, height: int, width: int) -> Target:
    """Wraps boxes and masks as `tv_tensors`, so that torchvision's transforms apply to them."""
    moved = {
        **target,
        "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width)),
    }
    if "masks" in target:
        moved["masks"] = tv_tensors.Mask(target["masks"])
    return moved


def visible(target: Target, height: int, width: int, min_side: float) -> Target:
    """A target as plain tensors: boxes clipped to the image, objects with a side below `min_side` pixels dropped."""
    plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
    limits = plain["boxes"].new_tensor([width, height, width, height])
    boxes_n4 = plain["boxes"].clamp(min=0).minimum(limits)
    sides_n2 = boxes_n4[:, 2:] - boxes_n4[:, :2]
    kept_n = (sides_n2 > 0).all(dim=1) & (sides_n2 >= min_side).all(dim=1)
    return {**{name: value[kept_n] for name, value in plain.items()}, "boxes": boxes_n4[kept_n]}


def join_padded(raws: list[Any]) -> dict[str, Tensor]:
    """Like `join_pictures`, with both sides padded to a multiple of `MULTIPLE`."""
    return join_pictures(raws, MULTIPLE)
