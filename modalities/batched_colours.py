"""Colour changes of a batch of images with one strength per image, as batched torch code.

torchvision's transforms draw one strength per call, so that all images of a batch would be changed alike. Nothing here
waits for a value from a GPU, or copies one to it, so that a CUDA graph can record it.

Shapes: images ``x_B3HW``, float on the scale 0..255; strengths ``(B,)``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in Pillow


def per_image(values_B: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values_B[:, None, None, None]


def grey(x_B3HW: Tensor) -> Tensor:
    """Luminance, ``(B, 1, H, W)``."""
    red, green, blue = x_B3HW.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def blended(x_B3HW: Tensor, with_: Tensor, factor_B: Tensor) -> Tensor:
    """``with_`` at factor 0, the image at 1, extrapolated beyond; clipped to 0..255."""
    return torch.lerp(with_.expand_as(x_B3HW), x_B3HW, per_image(factor_B)).clamp(0, 255)


def brightness(x_B3HW: Tensor, factor_B: Tensor) -> Tensor:
    """Black at factor 0, unchanged at 1."""
    return (x_B3HW * per_image(factor_B)).clamp(0, 255)


def contrast(x_B3HW: Tensor, factor_B: Tensor) -> Tensor:
    """The image's mean luminance at factor 0, unchanged at 1."""
    return blended(x_B3HW, grey(x_B3HW).mean(dim=(2, 3), keepdim=True), factor_B)


def saturation(x_B3HW: Tensor, factor_B: Tensor) -> Tensor:
    """Grey at factor 0, unchanged at 1."""
    return blended(x_B3HW, grey(x_B3HW), factor_B)


def sharpness(x_B3HW: Tensor, factor_B: Tensor) -> Tensor:
    """Smoothed at factor 0 (Pillow's SMOOTH: 3 x 3, the centre counts five times), unchanged at 1; the outermost pixels
    are unchanged."""
    smooth_B3HW = x_B3HW.clone()
    smooth_B3HW[..., 1:-1, 1:-1] = (9 * F.avg_pool2d(x_B3HW, 3, stride=1) + 4 * x_B3HW[..., 1:-1, 1:-1]) / 13
    return blended(x_B3HW, smooth_B3HW, factor_B)


def posterize(x_B3HW: Tensor, bits_B: Tensor) -> Tensor:
    """Keep the highest bits of every value."""
    step_B111 = per_image(2.0 ** (8 - bits_B))
    return (x_B3HW.round() / step_B111).floor() * step_B111


def solarize(x_B3HW: Tensor, threshold_B: Tensor) -> Tensor:
    """Invert values from a threshold on; 256 leaves all of them."""
    return torch.where(x_B3HW >= per_image(threshold_B), 255 - x_B3HW, x_B3HW)


def solarize_add(x_B3HW: Tensor, added_B: Tensor, threshold: int = 128) -> Tensor:
    """Add to values below a threshold."""
    return torch.where(x_B3HW < threshold, (x_B3HW + per_image(added_B)).clamp(0, 255), x_B3HW)


def distort_hsv(x_B3HW: Tensor, saturation_B: Tensor, hue_B: Tensor) -> Tensor:
    """Scale the saturation of HSV (clipped to 1) and rotate its hue.

    Args:
        x_B3HW: images.
        saturation_B: factors; 1: unchanged.
        hue_B: fractions of a full rotation; 0: unchanged.
    """
    x = x_B3HW / 255
    value, _ = x.max(dim=1)
    chroma = value - x.min(dim=1)[0]
    red, green, blue = x.unbind(dim=1)
    safe = chroma.clamp(min=1e-6)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = (sector / 6 + hue_B[:, None, None]) % 1
    changed = (chroma / value.clamp(min=1e-6) * saturation_B[:, None, None]).clamp(max=1)
    # Value of a channel: v · (1 − s · max(0, min(k, 4 − k, 1))), k = (n + 6 h) mod 6.
    channels = []
    for n in (5, 3, 1):
        k = (n + 6 * hue) % 6
        channels.append(value * (1 - changed * torch.minimum(k, 4 - k).clamp(0, 1)))
    return 255 * torch.stack(channels, dim=1)
