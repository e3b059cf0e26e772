"""Training transforms that run on a batch's device: crops, flips and colours of images, and of their masks alike.

The readers then only decode: what is random happens here, drawn from torch's global generator of the device, which the
trainer seeds before every step. Enabled by ``task.data.transforms.batched=true``. Nothing here waits for a value from a
GPU, or copies one to it, so that a CUDA graph can record it (``compile=eager_graphs``).

Shapes: B images, S side of the crop, or S_h × S_w.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modalities import batched_colours as colours
from modalities.batched_geometry import (
    box_matrices,
    chance,
    flipped,
    random_boxes,
    shifted_crops,
    uniform,
    warped,
)
from modalities.batched_rand_augment import BatchedRandAugment
from modalities.counting import histogram
from modalities.image import IMAGENET_MEAN, inside

TRIALS = 10  # further crops drawn until classes are mixed


class BatchedImageTransforms(nn.Module):
    """Training transforms of classification: ``(B, 3, S, S)`` uint8 -> float, the target unchanged.

    The distribution is that of `tasks.datasets.image.files.ImageTransforms`, except that images have been scaled to
    S × S before, that ``resized`` crops are cut out of these, and that RandAugment is `BatchedRandAugment`.

    Args:
        crop: ``resized``, ``padded`` or ``whole``.
        scale: minimum and maximum area fraction of ``resized``.
        ratio: minimum and maximum aspect ratio of ``resized``.
        hflip, vflip: probabilities of flips.
        color_jitter: brightness, contrast and saturation are multiplied by up to 1 ± this; not with ``auto_augment``.
        auto_augment: timm's policy; ``None`` for none.
        interpolation: of ``resized``: ``bilinear`` or ``bicubic``.

    Raises:
        ValueError: a policy that has no batched form.
    """

    def __init__(
        self,
        crop: str = "resized",
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        self.crop = crop
        self.scale = (scale[0], scale[1])
        self.ratio = (ratio[0], ratio[1])
        self.hflip, self.vflip = hflip, vflip
        self.color_jitter = 0.0 if auto_augment else color_jitter
        self.interpolation = "bilinear" if interpolation == "bilinear" else "bicubic"
        self.rand_augment = BatchedRandAugment(auto_augment, IMAGENET_MEAN) if auto_augment else None

    def forward(self, raw: Tensor, target: Any) -> tuple[Tensor, Any]:
        x, batch, device = raw.float(), len(raw), raw.device
        height, width = x.shape[-2:]
        if self.crop == "padded":
            x = shifted_crops(x, max(height // 8, 1))
        elif self.crop == "resized":
            box_B4 = random_boxes(batch, (height, width), self.scale, self.ratio, device)
            matrix_B33 = box_matrices(box_B4, (height, width))
            x = warped(x, matrix_B33, (height, width), self.interpolation).clamp(0, 255)
        for axis, probability in ((-1, self.hflip), (-2, self.vflip)):
            if probability:
                x = flipped(x, chance(probability, batch, device), axis)
        if self.color_jitter:
            low, high = max(1 - self.color_jitter, 0.0), 1 + self.color_jitter
            for change in (colours.brightness, colours.contrast, colours.saturation):
                x = change(x, uniform(low, high, batch, device=device))
        return (x if self.rand_augment is None else self.rand_augment(x)), target


class BatchedMaskTransforms(nn.Module):
    """Training transforms of segmentation: images and masks of any size -> crops of one size.

    ``{"pixels": (B, 3, H, W) uint8, "size": (B, 2)}, (B, H, W) uint8`` -> ``{"pixels": (B, 3, S_h, S_w) float, "size":
    (B, 2)}, (B, S_h, S_w)``. The distribution is that of `SegmentationTransforms` in
    `tasks.datasets.image.dense_transforms`. Scaling and crop are one bilinear interpolation (masks: nearest neighbour).

    Args:
        crop: S_h and S_w.
        scaled: (heights and widths (B, 2), factors (B,)) -> heights and widths after scaling, (B, 2), int64.
        ratio: range of the random factor.
        cat_max_ratio: crops are drawn again until no class covers more than this fraction of the labelled pixels.
        hflip: probability of a horizontal flip.
        photometric: change brightness, contrast, saturation and hue.
        void: value of unlabelled pixels, and of those outside the image.
    """

    crop_2: Tensor

    def __init__(
        self,
        crop: tuple[int, int],
        scaled: Callable[[Tensor, Tensor], Tensor],
        ratio: Sequence[float],
        cat_max_ratio: float,
        hflip: float,
        photometric: bool,
        void: int,
    ) -> None:
        super().__init__()
        self.crop = crop
        self.register_buffer("crop_2", torch.tensor(crop), persistent=False)
        self.scaled = scaled
        self.ratio = (ratio[0], ratio[1])
        self.cat_max_ratio = cat_max_ratio
        self.hflip = hflip
        self.photometric = photometric
        self.void = void

    def forward(self, raw: Mapping[str, Tensor], target_BHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        pixels_B3HW, size_B2 = raw["pixels"], raw["size"]
        device = pixels_B3HW.device
        batch = len(pixels_B3HW)
        scaled_B2 = self.scaled(size_B2, uniform(*self.ratio, batch, device=device))
        cut_B2 = torch.minimum(scaled_B2, self.crop_2)
        matrix_B33, mask_BSS = self._mixed_crops(target_BHW, size_B2, scaled_B2, cut_B2)
        x = warped(pixels_B3HW.float(), matrix_B33, self.crop, "bilinear")
        flip_B = chance(self.hflip, batch, device)
        if self.photometric:
            x = photometric_distortion(x)
        x = x * inside(cut_B2, *self.crop)[:, None]
        x, mask_BSS = (_flipped_inside(part, flip_B, cut_B2) for part in (x, mask_BSS))
        return {"pixels": x, "size": cut_B2}, mask_BSS

    def _mixed_crops(
        self, target_BHW: Tensor, size_B2: Tensor, scaled_B2: Tensor, cut_B2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Matrix from crop to image, and mask, of an image's first crop with mixed classes, or else its last."""
        trials = TRIALS if self.cat_max_ratio < 1 else 0
        matrix_B33, mask_BSS, found_B = self._crops(target_BHW, size_B2, scaled_B2, cut_B2)
        for _ in range(trials):
            again_B33, again_BSS, mixed_B = self._crops(target_BHW, size_B2, scaled_B2, cut_B2)
            keep_B11 = found_B[:, None, None]
            matrix_B33 = torch.where(keep_B11, matrix_B33, again_B33)
            mask_BSS = torch.where(keep_B11, mask_BSS, again_BSS)
            found_B = found_B | mixed_B
        return matrix_B33, mask_BSS

    def _crops(
        self, target_BHW: Tensor, size_B2: Tensor, scaled_B2: Tensor, cut_B2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One crop per image: its matrix, its mask, and whether its classes are mixed."""
        corner_B2 = (torch.rand(scaled_B2.shape, device=scaled_B2.device) * (scaled_B2 - cut_B2 + 1)).floor()
        step_B2 = size_B2 / scaled_B2
        start_B2, stop_B2 = corner_B2 * step_B2, (corner_B2 + self.crop_2) * step_B2
        box_B4 = torch.stack([start_B2[:, 1], start_B2[:, 0], stop_B2[:, 1], stop_B2[:, 0]], dim=1)
        matrix_B33 = box_matrices(box_B4, self.crop)
        mask_BSS = warped(target_BHW[:, None].float(), matrix_B33, self.crop, "nearest")[:, 0]
        mask_BSS = torch.where(inside(cut_B2, *self.crop), mask_BSS.to(target_BHW.dtype), self.void)
        return matrix_B33, mask_BSS, are_mixed(mask_BSS, self.cat_max_ratio, self.void)


def are_mixed(mask_BHW: Tensor, most: float, void: int) -> Tensor:
    """Whether a mask has at least two classes, each with less than the fraction `most` of its labelled pixels, (B,)."""
    batch, values = len(mask_BHW), void + 1
    image_B11 = torch.arange(batch, device=mask_BHW.device)[:, None, None]
    classes_BK = histogram(mask_BHW + values * image_B11, batch * values).view(batch, values)[:, :void]
    several_B = (classes_BK > 0).sum(dim=1) > 1
    return several_B & (classes_BK.amax(dim=1) < most * classes_BK.sum(dim=1))


def _flipped_inside(x: Tensor, flip_B: Tensor, cut_B2: Tensor) -> Tensor:
    """Mirror the part of each crop that lies inside its image; padding stays at the right."""
    width = x.shape[-1]
    column_W = torch.arange(width, device=x.device)
    mirrored_BW = (
        cut_B2[:, 1:] - 1 - column_W
    ) % width  # columns of the padding trade places among themselves
    place_BW = torch.where(flip_B[:, None], mirrored_BW, column_W)
    place = place_BW.view(len(x), *[1] * (x.ndim - 2), width).expand_as(x)
    return x.gather(-1, place)


def photometric_distortion(x_B3HW: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, each changed with probability 1/2 for each image.

    The distribution of `tasks.datasets.image.dense_transforms.PhotometricDistortion`.
    """
    batch, device = len(x_B3HW), x_B3HW.device

    def drawn(most: float, neutral: float) -> Tensor:
        value_B = neutral + uniform(-most, most, batch, device=device)
        return torch.where(chance(0.5, batch, device), value_B, neutral)

    x = (x_B3HW + colours.per_image(drawn(32, 0.0))).clamp(0, 255)
    contrast_B, first_B = drawn(0.5, 1.0), chance(0.5, batch, device)
    x = colours.brightness(x, torch.where(first_B, contrast_B, 1.0))
    x = colours.distort_hsv(x, drawn(0.5, 1.0), drawn(18 / 180, 0.0))
    return colours.brightness(x, torch.where(first_B, 1.0, contrast_B))
