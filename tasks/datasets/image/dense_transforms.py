"""Training transforms for images with masks: both are scaled, cropped and flipped together.

torchvision's `transforms.v2` on `tv_tensors`: a transform draws its parameters once for the image and its mask, from
torch's global generator, which is seeded for each item (`tasks.datasets.image.files.seeded_by`).

Shapes: H and W of the image, S of the crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from modalities.batched_transforms import BatchedMaskTransforms
from tasks.bilinear import all_scaled_by, scaled_by
from tasks.datasets.errors import DataError
from tasks.datasets.image.reading import MAX_PIXELS, PictureOptions

VOID = 255  # ignore index: a pixel without a class
CROPS = 10  # maximum number of trials


@dataclass(frozen=True)
class SegmentationTransforms:
    """Training augmentation for segmentation; the defaults are the official ones for ADE20K.

    In evaluation the image is unchanged: the task scales it (`tasks.dense_inference`).

    Args:
        size: S, the side of the crop, or height and width.
        resize: longer and shorter side that the image is scaled to fit, keeping the aspect ratio; `None`: no scaling.
        ratio: range of a further random scale factor.
        cat_max_ratio: up to `CROPS` crops are tried until no class covers more than this fraction of a crop.
        hflip: probability of a horizontal flip.
        photometric: distort brightness, contrast, saturation and hue (`PhotometricDistortion`).
        max_pixels, bits: see `PictureOptions`.
        batched: the reader returns whole images; all of this is drawn for the whole batch on the device
            (`modalities.batched_transforms`); `None`: for an embedded sample.

    Raises:
        DataError: invalid settings.
    """

    size: int | Sequence[int] = 512
    resize: Sequence[int] | None = (2048, 512)
    ratio: Sequence[float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    hflip: float = 0.5
    photometric: bool = True
    max_pixels: int = MAX_PIXELS
    bits: int = 16
    batched: bool | None = False

    def __post_init__(self) -> None:
        if min(self.crop) < 1 or (
            self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1)
        ):
            raise DataError(
                "transforms.size and transforms.resize (longer and shorter side) are numbers of pixels"
            )
        if not (len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1]):
            raise DataError(f"transforms.ratio takes two factors, such as [0.5, 2.0], not {self.ratio}")
        if not (0 < self.cat_max_ratio <= 1 and 0 <= self.hflip <= 1):
            raise DataError("transforms.cat_max_ratio must lie in (0, 1] and hflip in [0, 1]")
        if self.max_pixels < 1 or not 8 <= self.bits <= 16:
            raise DataError("transforms.max_pixels must be at least 1 and bits lie between 8 and 16")

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the crop."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return height, width

    @property
    def reading(self) -> PictureOptions:
        """File reading options for these transforms."""
        return PictureOptions(self.max_pixels, self.bits)

    def for_device(self) -> BatchedMaskTransforms | None:
        """Training transforms on the device, with ``batched``."""
        if not self.batched:
            return None
        return BatchedMaskTransforms(
            self.crop,
            self._scaled,
            self.ratio,
            self.cat_max_ratio,
            self.hflip,
            self.photometric,
            VOID,
        )

    def _scaled(self, size_B2: Tensor, factor_B: Tensor) -> Tensor:
        return all_scaled_by(size_B2, self.resize, factor_B)

    def for_training(self) -> v2.Compose:
        """Transform of (Image (3, H, W), Mask (H, W)) uint8; sides are at most S afterwards."""
        steps: list[v2.Transform] = [
            RandomRescale(self.resize, self.ratio),
            MixedCrop(self.crop, self.cat_max_ratio),
            v2.RandomHorizontalFlip(self.hflip),
        ]
        return v2.Compose([*steps, PhotometricDistortion()] if self.photometric else steps)


class RandomRescale(v2.Transform):
    """Scale an image to fit into `limits` times a random factor, keeping the aspect ratio.

    Args:
        limits: longer and shorter side; `None`: those of the image.
        ratio: range of the factor.
    """

    def __init__(self, limits: Sequence[int] | None, ratio: Sequence[float]) -> None:
        super().__init__()
        self.limits = limits
        self.ratio = ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(flat_inputs[0])
        factor = float(torch.empty(()).uniform_(self.ratio[0], self.ratio[1]))
        return {"size": list(scaled_by(height, width, self.limits, factor))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        # Not antialiased, like OpenCV's bilinear resizing in the official recipe; masks use nearest neighbour.
        return F.resize(inpt, params["size"], antialias=False)


class MixedCrop(v2.Transform):
    """A random crop in which no class covers too much of the labelled pixels; after `CROPS` trials, the last one.

    Args:
        size: height and width; a smaller image is not cropped.
        cat_max_ratio: maximum fraction of the labelled pixels per class.
    """

    def __init__(self, size: tuple[int, int], cat_max_ratio: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.cat_max_ratio = cat_max_ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        (mask,) = (each for each in flat_inputs if isinstance(each, tv_tensors.Mask))
        box = self._draw(mask)
        for _ in range(CROPS):
            if self.cat_max_ratio >= 1 or is_mixed(F.crop(mask, *box), self.cat_max_ratio):
                break
            box = self._draw(mask)
        return {"box": box}

    def _draw(self, mask: Tensor) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        sides = [min(side, most) for side, most in zip(mask.shape[-2:], self.size, strict=True)]
        top, left = (
            int(torch.randint(whole - side + 1, ()))
            for whole, side in zip(mask.shape[-2:], sides, strict=True)
        )
        return top, left, sides[0], sides[1]

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, *params["box"])


def is_mixed(mask: Tensor, most: float) -> bool:
    """Whether there are at least two classes, each with less than the fraction `most` of the labelled pixels."""
    counts = torch.bincount(mask.flatten().long(), minlength=VOID + 1)[:VOID]
    return int((counts > 0).sum()) > 1 and float(counts.max() / counts.sum()) < most


class PhotometricDistortion(v2.Transform):
    """Brightness, contrast, saturation and hue, each changed with probability 1/2 (Liu et al. 2016, arXiv 1512.02325).

    Brightness is shifted by up to 32 of 255, contrast and saturation are multiplied by 0.5 to 1.5, hue is rotated by up
    to 18 of 180 half-degrees; contrast comes before or after the colours. Masks are unchanged.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        on_5 = (torch.rand(5) < 0.5).tolist()
        value_4 = torch.empty(4).uniform_(-1, 1).tolist()
        names = ("brightness", "contrast", "saturation", "hue")
        drawn = {name: value if on else None for name, on, value in zip(names, on_5, value_4, strict=False)}
        return {**drawn, "contrast_first": on_5[4]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        x: Tensor = inpt.as_subclass(torch.Tensor)
        if (shift := params["brightness"]) is not None:
            x = _clipped(x.float() + 32 * shift)
        if params["contrast_first"]:
            x = _contrast(x, params["contrast"])
        x = _colours(x, params["saturation"], params["hue"])
        if not params["contrast_first"]:
            x = _contrast(x, params["contrast"])
        return tv_tensors.wrap(x, like=inpt)


def _clipped(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def _contrast(x_3HW: Tensor, change: float | None) -> Tensor:
    return x_3HW if change is None else _clipped(x_3HW.float() * (1 + 0.5 * change))


def _colours(x_3HW: Tensor, saturation: float | None, hue: float | None) -> Tensor:
    if saturation is None and hue is None:
        return x_3HW
    hsv = np.array(PILImage.fromarray(x_3HW.permute(1, 2, 0).numpy()).convert("HSV"))
    if saturation is not None:
        hsv[..., 1] = (hsv[..., 1] * (1 + 0.5 * saturation)).round().clip(0, 255).astype(np.uint8)
    if hue is not None:  # in Pillow, 256 is a full rotation
        hsv[..., 0] = (hsv[..., 0].astype(np.int64) + round(hue * 18 / 180 * 256)) % 256
    rgb = np.array(PILImage.fromarray(hsv, "HSV").convert("RGB"))
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()


# -- samples and batches ---------------------------------------------------------------------------------------


def padded(pixels_3HW: Tensor, size: tuple[int, int], value: int = 0) -> Tensor:
    """Pads an image (3, H, W) or a mask (H, W) on the right and at the bottom with `value`."""
    height, width = pixels_3HW.shape[-2:]
    if (height, width) == size:
        return pixels_3HW
    whole = pixels_3HW.new_full((*pixels_3HW.shape[:-2], *size), value)
    whole[..., :height, :width] = pixels_3HW
    return whole


def join_pictures(raws: list[Any], multiple: int = 1) -> dict[str, Tensor]:
    """Collates `{"pixels": (3, H, W), "size": (2,)}` to `{"pixels": (B, 3, H, W), "size": (B, 2)}`, padded to the
    largest height and width, rounded up to a `multiple`."""
    height, width = _largest([raw["pixels"] for raw in raws])
    size = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    return {
        "pixels": torch.stack([padded(raw["pixels"], size) for raw in raws]),
        "size": torch.stack([raw["size"] for raw in raws]),
    }


def join_masks(masks: list[Any]) -> Tensor:
    """Masks (H, W) -> (B, H, W), padded with `VOID`."""
    size = _largest(masks)
    return torch.stack([padded(mask, size, VOID) for mask in masks])


def _largest(pictures: list[Tensor]) -> tuple[int, int]:
    return max(one.shape[-2] for one in pictures), max(one.shape[-1] for one in pictures)
