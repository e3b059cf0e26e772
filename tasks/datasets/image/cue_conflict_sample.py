"""The embedded cue-conflict sample: one shape, overlaid with a texture of many small shapes of another kind.

A synthetic equivalent of the published images, for models trained on the image sample's shapes. In the original, the
texture of a category is its close-up appearance in photographs. A drawn shape has none, so its texture here is a tiling
of small copies of itself (like the compound figures of Navon 1977, a large letter made of small ones). The large shape
appears as in the image sample, lighter than its background; the small ones cover figure and background alike.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.datasets.image.sample import EIGHT, Pose, mask, save

VERSION = 1  # incremented when the drawing changes: old samples are regenerated
SIDE = 96  # pixels
CELL = 24  # pixels from one small shape to the next


def cue_conflict(root: Path, pairs: int = 4, shapes: Sequence[str] = EIGHT) -> None:
    """A folder per shape; ``pairs`` images of every shape with every texture, including its own."""
    for row, shape in enumerate(shapes):
        for column, texture in enumerate(shapes):
            for number in range(1, pairs + 1):
                picture = draw(shape, texture, (61, row, column, number))
                instance = column * pairs + number
                save(picture, root / shape / f"{shape}{instance}-{texture}{number}.png")


def draw(shape: str, texture: str, seed: Sequence[int]) -> Image.Image:
    """One image of ``SIDE`` × ``SIDE`` pixels; everything but the two shapes depends on ``seed`` only."""
    rng = np.random.default_rng(seed)
    ground, figure = rng.uniform(30, 110, 3), rng.uniform(145, 225, 3)
    pose = Pose.draw(rng, SIDE, SIDE)
    covered = mask(shape, pose, SIDE, SIDE)[..., None]
    small = tiled(texture, rng)[..., None]
    strength = rng.choice([-1, 1]) * rng.uniform(30, 45, 3)
    pixels = covered * figure + (1 - covered) * ground + (small - 0.5) * strength
    pixels += rng.normal(0, 4, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def tiled(shape: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """A grid of small, individually rotated shapes: (SIDE, SIDE) in [0, 1]."""
    cells = SIDE // CELL + 1
    rows = []
    for _ in range(cells):
        row = []
        for _ in range(cells):
            pose = Pose(CELL / 2, CELL / 2, 0.62 * CELL, rng.uniform(-0.6, 0.6), rng.uniform(0.88, 1.14))
            row.append(mask(shape, pose, CELL, CELL))
        rows.append(np.concatenate(row, axis=1))
    whole = np.concatenate(rows, axis=0)
    top, left = rng.integers(0, CELL, 2)
    return whole[top : top + SIDE, left : left + SIDE]
