"""Spatial crops and training augmentation of clips.

Shapes: T frames of a clip, H and W of a frame.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.datasets.errors import DataError
from tasks.datasets.seeding import seeded_by

ATTEMPTS = 10  # maximum number of trials for a random crop

Frames = NDArray[np.uint8]  # (T, H, W, 3)
Box = tuple[int, int, int, int]  # top, left, height, width in pixels


def largest_box(shape: tuple[int, ...], view: str, place: float = 0.5) -> Box:
    """Box of a whole frame of ``shape`` (H, W), or of its largest square at ``place`` (0 to 1) on the longer side."""
    height, width = shape
    if view == "whole":
        return 0, 0, height, width
    side = min(height, width)
    return round(place * (height - side)), round(place * (width - side)), side, side


def random_box(
    shape: tuple[int, ...],
    view: str,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """A random box in a frame of ``shape``; ``scale`` and ``ratio`` are relative to `largest_box`."""
    height, width = shape
    _, _, high, wide = largest_box(shape, view)
    area = rng.uniform(*scale)
    stretch = float(np.exp(rng.uniform(*np.log(ratio))))
    box_height = int(np.clip(round(high * (area / stretch) ** 0.5), 1, height))
    box_width = int(np.clip(round(wide * (area * stretch) ** 0.5), 1, width))
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    return top, left, box_height, box_width


def random_resized_box(
    shape: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A random box in a frame of ``shape``, as in torchvision's ``RandomResizedCrop``: ``scale`` is relative to the
    frame's area, ``ratio`` is the aspect ratio; the first of ten draws that fits, else the largest central box of an
    allowed ratio."""
    height, width = shape
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        stretch = float(np.exp(rng.uniform(*np.log(ratio))))
        box_width, box_height = round((area * stretch) ** 0.5), round((area / stretch) ** 0.5)
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            return top, int(rng.integers(width - box_width + 1)), box_height, box_width
    box_width = min(width, round(height * ratio[1]))
    box_height = min(height, round(width / ratio[0]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def rand_augment_of(policy: str, size: int) -> Callable[[Any], Any]:
    """timm's RandAugment, PIL image -> PIL image; uses the global generators of Python and NumPy.

    Args:
        policy: e.g. ``rand-m7-n4-mstd0.5-inc1``.
        size: side of a training clip in pixels; translations are up to 0.45 of it.

    Raises:
        DataError: timm has no such policy.
    """
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    options = {"translate_const": int(size * 0.45), "interpolation": Image.Resampling.BICUBIC}
    try:
        transform: Callable[[Any], Any] = rand_augment_transform(policy, options)
    except (AssertionError, ValueError, KeyError) as error:
        raise DataError(f"rand_augment={policy} is no RandAugment policy of timm's ({error})") from error
    return transform


def same_draw(transform: Callable[[Any], Any], frames: Frames, rng: np.random.Generator) -> Frames:
    """Apply a random transform of PIL images to ``(T, H, W, 3)`` frames, with the same random parameters for each."""
    from PIL import Image

    changed = []
    with seeded_by(rng):
        start = random.getstate(), np.random.get_state()  # noqa: NPY002  timm draws from both
        for frame in frames:
            random.setstate(start[0])
            np.random.set_state(start[1])  # noqa: NPY002
            changed.append(np.asarray(transform(Image.fromarray(frame))))
    return np.stack(changed)


def crop(frames: Frames, box: Box, size: int) -> Tensor:
    """Crop ``(T, H, W, 3)`` frames to a box and resize them (antialiased) to ``(T, 3, size, size)``."""
    top, left, height, width = box
    cut = torch.from_numpy(np.ascontiguousarray(frames[:, top : top + height, left : left + width]))
    return resize(cut.permute(0, 3, 1, 2), size, size)


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize frames ``(T, 3, H, W)``, antialiased."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames.contiguous()
    resized = torch.nn.functional.interpolate(frames, (height, width), mode="bilinear", antialias=True)
    return resized.contiguous()
