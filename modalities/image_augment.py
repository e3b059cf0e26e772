"""Augmentation of images on the device: raw batches (B, 3, H, W) on the scale 0..255, uint8 or float.

The classification task calls these in training only. `RandomErasing` draws from torch's global generator of
the batch's device, timm's `Mixup` from numpy's; the trainer seeds both before each step.
"""

import math
from collections.abc import Sequence

import torch
from timm.data import Mixup
from torch import Tensor, nn

from modalities.image import IMAGENET_MEAN, IMAGENET_STD

ATTEMPTS = 10  # candidate rectangles per image; the first that fits is used


class RandomErasing(nn.Module):
    """Fill one random rectangle of an image (Zhong et al. 2017, arXiv 1708.04896): ``(B, 3, H, W)`` -> float.

    All frames of a clip ``(B, T, 3, H, W)`` share one rectangle.

    Same distribution as timm's, drawn for the whole batch at once: area uniform in ``[min_area,
    max_area]`` of the image, log aspect ratio uniform between ``min_aspect`` and its inverse.

    Args:
        prob: probability of erasing, per image.
        mode: ``pixel`` fills with Gaussian noise of the data's mean and std, ``const`` with the mean.
        min_area, max_area: of the rectangle, as a fraction of the image.
        min_aspect: minimum aspect ratio.
        mean, std: of each channel on the scale 0..1, as in the embedder.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        prob: float = 0.25,
        mode: str = "pixel",
        min_area: float = 0.02,
        max_area: float = 1 / 3,
        min_aspect: float = 0.3,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if mode not in ("pixel", "const"):
            raise ValueError(f"RandomErasing takes mode pixel or const, not {mode!r}")
        if not (0 <= prob <= 1 and 0 < min_area <= max_area <= 1 and 0 < min_aspect <= 1):
            raise ValueError(
                "RandomErasing needs 0 <= prob <= 1, 0 < min_area <= max_area <= 1, min_aspect in (0, 1]"
            )
        self.prob = prob
        self.mode = mode
        self.area = (min_area, max_area)
        self.log_aspect = (math.log(min_aspect), -math.log(min_aspect))
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        height, width = raw.shape[-2:]
        erased_B1HW = self._rectangles(raw.shape[0], height, width, raw.device)
        erased = erased_B1HW if raw.ndim == 4 else erased_B1HW[:, None]
        filling = self.mean
        if self.mode == "pixel":
            filling = filling + self.std * torch.randn(raw.shape, device=raw.device)
        return torch.where(erased, filling, raw.to(self.mean.dtype))

    def _rectangles(self, batch: int, height: int, width: int, device: torch.device) -> Tensor:
        """True inside each image's rectangle, (B, 1, H, W); a = attempts."""
        draw_4Ba = torch.rand(4, batch, ATTEMPTS, device=device)
        area_Ba = height * width * torch.lerp(*_edges(self.area, draw_4Ba), draw_4Ba[0])
        aspect_Ba = torch.lerp(*_edges(self.log_aspect, draw_4Ba), draw_4Ba[1]).exp()
        h_Ba = (area_Ba * aspect_Ba).sqrt().round()
        w_Ba = (area_Ba / aspect_Ba).sqrt().round()
        fits_Ba = (h_Ba < height) & (w_Ba < width)
        first_B1 = fits_Ba.int().argmax(dim=1, keepdim=True)
        wanted_B1 = fits_Ba.any(dim=1, keepdim=True) & (torch.rand(batch, 1, device=device) < self.prob)
        top_B1, left_B1 = (
            (draw_Ba * (size - side_Ba + 1)).floor().gather(1, first_B1)
            for draw_Ba, size, side_Ba in ((draw_4Ba[2], height, h_Ba), (draw_4Ba[3], width, w_Ba))
        )
        h_B1, w_B1 = h_Ba.gather(1, first_B1), w_Ba.gather(1, first_B1)
        row_H, column_W = torch.arange(height, device=device), torch.arange(width, device=device)
        rows_BH = (row_H >= top_B1) & (row_H < top_B1 + h_B1) & wanted_B1
        columns_BW = (column_W >= left_B1) & (column_W < left_B1 + w_B1)
        return (rows_BH[:, :, None] & columns_BW[:, None, :])[:, None]


def _edges(span: tuple[float, float], like: Tensor) -> tuple[Tensor, Tensor]:
    return like.new_tensor(span[0]), like.new_tensor(span[1])


class ImageMixup(nn.Module):
    """timm's mixup and CutMix (arXiv 1710.09412, 1905.04899), for one-hot, multi-hot and smoothed targets.

    ``raw (B, 3, H, W), target (B, classes) -> raw (float), target``. Label smoothing is left to the loss.
    The batch is mixed with itself in reverse order; in a batch of odd size the last image is left unmixed.

    Args:
        mixup_alpha, cutmix_alpha: parameters of the Beta distributions of the mixing weights; 0 disables either.
        prob: probability of mixing.
        switch_prob: probability of CutMix instead of mixup when both are enabled.
        mode: draw per ``batch``, per ``pair`` or per element (``elem``).
    """

    def __init__(
        self,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
    ) -> None:
        super().__init__()
        if min(mixup_alpha, cutmix_alpha) < 0 or mixup_alpha + cutmix_alpha == 0:
            raise ValueError(
                "ImageMixup needs mixup_alpha or cutmix_alpha above 0 (augment.mixup=null mixes nothing)"
            )
        if mode not in ("batch", "pair", "elem") or not (0 <= prob <= 1 and 0 <= switch_prob <= 1):
            raise ValueError("ImageMixup takes mode batch, pair or elem, and probabilities between 0 and 1")
        self.settings = {
            "mixup_alpha": mixup_alpha,
            "cutmix_alpha": cutmix_alpha,
            "prob": prob,
            "switch_prob": switch_prob,
            "mode": mode,
        }

    def forward(self, raw: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        even = len(raw) // 2 * 2
        if even == 0:
            return raw.float(), target
        # timm mixes class indices. With each image's position as its class it returns the full mixing matrix,
        # which also mixes multi-hot and already smoothed targets.
        mix = Mixup(**self.settings, label_smoothing=0.0, num_classes=even)
        place_B = torch.arange(even, device=raw.device)
        mixed, shares_BB = mix(raw[:even].to(torch.float32, copy=True), place_B)  # timm mixes in place
        mixed_target = shares_BB.to(target.dtype) @ target[:even]
        return torch.cat([mixed, raw[even:].float()]), torch.cat([mixed_target, target[even:]])
