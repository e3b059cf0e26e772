"""Training transforms of pictures with boxes: pixels, boxes and masks are scaled, cropped and mirrored together.

torchvision's `transforms.v2` on `tv_tensors`: a transform draws once for all that belongs to a picture. What is drawn
comes from torch's global generator; a reader seeds it for each item (`tasks.datasets.image.files.seeded_by`).

Shapes: n objects of a picture of H × W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tasks.datasets.errors import DataError
from tasks.datasets.image.dense_transforms import PhotometricDistortion, join_pictures, rescaled
from tasks.datasets.image.reading import MAX_PIXELS, PictureOptions

MULTIPLE = 32  # sides of a batch are multiples of it, as a pyramid of strides up to 32 wants
Target = dict[str, Tensor]


@dataclass(frozen=True)
class DetectionTransforms:
    """How a picture and its objects become a training sample; the defaults are the official ones of COCO.

    In evaluation the picture stays as it is: the task scales it.

    Args:
        shorts: the picture is scaled, its shape kept, to a shorter side drawn from these; `None`: it keeps its size.
        longest: but no longer than this.
        crop_part: probability of a crop before that, as DETR has it (Carion et al. 2020, arXiv 2005.12872).
        crop_shorts: shorter sides, one of which the picture is scaled to before it is cropped.
        crop: least and largest height and width of the crop, drawn apart.
        jitter: large scale jitter (Ghiasi et al. 2021, arXiv 2012.07177) instead of all these: the picture is scaled to
            fit into `size` times a factor drawn between these two, such as [0.1, 2.0], and cropped to `size`.
        size: S, the longest side that large scale jitter leaves.
        hflip: probability of mirroring.
        photometric: change brightness, contrast, saturation and hue (`PhotometricDistortion`).
        min_side: objects of which a box thinner than so many pixels is left are left out.
        max_pixels, bits: see `PictureOptions`.

    Raises:
        DataError: settings that make no sense.
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
        """How files are to be read for these transforms."""
        return PictureOptions(self.max_pixels, self.bits)

    def for_training(self) -> v2.Compose:
        """(Image (3, H, W) uint8, target) -> the same; boxes may have lost their size, see `visible`."""
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
    """Scale a picture, its shape kept, to a shorter side drawn from some.

    Args:
        shorts: these; `None`: the picture keeps its size.
        longest: the longer side grows no longer than this.
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
        # Not antialiased, as OpenCV's bilinear resizing in the official recipe; a mask takes its nearest pixel.
        return F.resize(inpt, params["size"], antialias=False)


class ScaleJitter(v2.Transform):
    """Scale a picture, its shape kept, until it fits into a square of a side times a random factor.

    Args:
        size: the side.
        factors: the factor lies between these.
    """

    def __init__(self, size: int, factors: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.factors = factors

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = float(torch.empty(()).uniform_(self.factors[0], self.factors[1]))
        side = max(int(self.size * factor), 1)
        height, width = F.get_size(flat_inputs[0])
        return {"size": list(rescaled(height, width, (side, side)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, params["size"], antialias=False)


class RandomSizeCrop(v2.Transform):
    """A crop anywhere, of height and width drawn apart; none is longer than the picture's, and it may hold no object.

    Args:
        least, most: of both sides.
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
    """A whole number between these, both among them."""
    return int(torch.randint(least, most + 1, ()))


# -- samples and batches ---------------------------------------------------------------------------------------


def wrapped(target: Target, height: int, width: int) -> Target:
    """A target whose boxes and masks follow the picture through torchvision's transforms."""
    moved = {
        **target,
        "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width)),
    }
    if "masks" in target:
        moved["masks"] = tv_tensors.Mask(target["masks"])
    return moved


def visible(target: Target, height: int, width: int, min_side: float) -> Target:
    """A target as plain tensors: boxes clipped to the picture, objects without a box of `min_side` pixels left out."""
    plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
    limits = plain["boxes"].new_tensor([width, height, width, height])
    boxes_n4 = plain["boxes"].clamp(min=0).minimum(limits)
    sides_n2 = boxes_n4[:, 2:] - boxes_n4[:, :2]
    kept_n = (sides_n2 > 0).all(dim=1) & (sides_n2 >= min_side).all(dim=1)
    return {**{name: value[kept_n] for name, value in plain.items()}, "boxes": boxes_n4[kept_n]}


def join_padded(raws: list[Any]) -> dict[str, Tensor]:
    """As `join_pictures`, both sides filled up to a multiple of `MULTIPLE`."""
    return join_pictures(raws, MULTIPLE)
