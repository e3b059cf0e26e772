"""The embedded samples for segmentation: shapes on a textured background, in the real data sets' formats and layouts.

The class determines a shape's outline and pattern; position, rotation and colours are independent of it, and the
background has any pattern. Colours distinguish a shape from the background, which is darker, but not one class of
shapes from another. Pixels on outlines, and some whole ellipses, are void.

Shapes: H and W in pixels.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.datasets.image.dense_transforms import VOID
from tasks.datasets.image.masks import usual_palette
from tasks.datasets.image.sample import Pose, mask, save, texture

SIX = ("circle", "cross", "ring", "square", "star", "triangle")
CLASSES = ("ground", *SIX)
COUNTS = (560, 40, 80)  # training, validation and test scenes
FEW = (24, 8, 8)
EDGE = (0.1, 0.9)  # pixels with a coverage in this range are void
OBJECTS = (2, 3)


def scene(rng: np.random.Generator, width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (H, W, 3) and the class of each pixel, (H, W): an index of `CLASSES`, or `VOID`."""
    pixels = texture(width, height, rng.uniform(20, 120, 3), rng)
    classes: NDArray[np.uint8] = np.zeros((height, width), dtype=np.uint8)
    count = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    things = [*rng.choice(len(SIX), count, replace=False)]
    if rng.uniform() < 0.25:
        things.insert(0, -1)  # behind the others
    places = _places(rng, len(things), width, height)
    for thing, (x, y) in zip(things, places, strict=True):
        side = min(width, height) * rng.uniform(0.30, 0.40)
        pose = Pose(x, y, side, rng.uniform(-0.6, 0.6), rng.uniform(0.88, 1.14))
        covered_HW = mask("ellipse" if thing < 0 else SIX[thing], pose, width, height)
        thing_HW3 = patterned(thing, width, height, rng)
        pixels = covered_HW[..., None] * thing_HW3 + (1 - covered_HW[..., None]) * pixels
        classes[covered_HW >= 0.5] = VOID if thing < 0 else thing + 1
        classes[(covered_HW > EDGE[0]) & (covered_HW < EDGE[1])] = VOID
    return pixels.round().clip(0, 255).astype(np.uint8), classes


def patterned(thing: int, width: int, height: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The pattern of one of `SIX` in a random light colour, (H, W, 3); anything else (-1) is plain."""
    turn, period = rng.uniform(0, np.pi), rng.uniform(6, 9)
    y, x = np.mgrid[:height, :width] / period
    u, v = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
    grain = rng.uniform(
        0, 1, (height, width)
    )  # for every shape, so that what is drawn next does not depend on it
    strength = _strength(thing, u, v, grain)
    change = rng.choice([-1, 1]) * rng.uniform(70, 110)
    pixels: NDArray[np.float64] = rng.uniform(150, 225, 3) + (strength[..., None] - 0.5) * change
    return pixels + rng.normal(0, 4, (height, width, 3))


def _strength(
    thing: int, u: NDArray[np.float64], v: NDArray[np.float64], grain: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The pattern of one of `SIX`, from 0 to 1, at rotated coordinates in periods."""
    if thing == 0:  # dots
        return np.clip(4 * (0.35 - np.hypot(u % 1 - 0.5, v % 1 - 0.5)) + 0.5, 0, 1)
    if thing == 1:  # stripes
        return 0.5 + 0.5 * np.sin(2 * np.pi * u)
    if thing == 2:  # checks
        return ((np.floor(u) + np.floor(v)) % 2).astype(np.float64)
    if thing == 4:  # a mesh
        return np.maximum(np.sin(2 * np.pi * u), np.sin(2 * np.pi * v)) * 0.5 + 0.5
    return grain if thing == 5 else np.full_like(grain, 0.5)  # the square is plain


def _places(rng: np.random.Generator, count: int, width: int, height: int) -> list[tuple[float, float]]:
    """Centres of shapes: the best of a few random trials at keeping them apart."""
    trials = [
        np.stack([rng.uniform(0.18, 0.82, count) * width, rng.uniform(0.18, 0.82, count) * height], axis=1)
        for _ in range(20)
    ]

    def nearest(places: NDArray[np.float64]) -> float:
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
        return float(np.min(apart + np.eye(count) * 1e9))

    return [(float(x), float(y)) for x, y in max(trials, key=nearest)]


def _scenes(
    seed: int, part: int, count: int, sides: tuple[int, int], shape: float = 1.0
) -> Iterator[tuple[Image.Image, NDArray[np.uint8]]]:
    """Scenes with a height in the range `sides` and `shape` times that as width; independent sides if `shape` is 1."""
    for index in range(count):
        rng = np.random.default_rng((seed, part, index))
        height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
        if shape != 1.0:
            width = round(height * shape)
        pixels, classes = scene(rng, width, height)
        yield Image.fromarray(pixels), classes


def mask_folder(root: Path, counts: Sequence[int] = COUNTS) -> None:
    """images/ and masks/ with train/, val/ and test/, colour masks and classes.csv; 72 to 88 pixels a side."""
    palette = {name: (0, 0, 0) for name in CLASSES[:1]} | dict(zip(SIX, usual_palette(len(SIX)), strict=True))
    rows = [*((name, *colour) for name, colour in palette.items()), ("void", 255, 255, 255)]
    colours = np.full((256, 3), 255, dtype=np.uint8)
    colours[: len(CLASSES)] = list(palette.values())
    for part, (split, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        for index, (picture, classes) in enumerate(_scenes(41, part, count, (72, 88))):
            suffix = ".jpg" if index % 3 else ".png"
            save(picture, root / "images" / split / f"scene_{index:03d}{suffix}")
            save(Image.fromarray(colours[classes]), root / "masks" / split / f"scene_{index:03d}.png")
    with (root / "classes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("name", "r", "g", "b"), *rows])


def _numbers(numbers: Sequence[int], void: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """A function that maps our classes to a data set's mask values."""
    table = np.full(256, void, dtype=np.uint8)
    table[: len(CLASSES)] = numbers
    return lambda classes: table[classes]


def camvid(root: Path, counts: Sequence[int] = FEW) -> None:
    """SegNet's layout; road and six other classes are used for background and shapes; 128 × 96."""
    as_numbers = _numbers((3, 0, 1, 5, 8, 9, 10), 11)
    for part, (split, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        for index, (picture, classes) in enumerate(_scenes(42, part, count, (96, 96), 4 / 3)):
            name = f"0001TP_{part}{index:05d}.png"
            save(picture, root / split / name)
            save(Image.fromarray(as_numbers(classes)), root / f"{split}annot" / name)


def ade20k(root: Path, counts: Sequence[int] = (32, 8)) -> None:
    """The challenge's layout, values from 1; wall and six other classes are drawn; 96 to 128 pixels a side."""
    as_numbers = _numbers((1, 13, 16, 20, 21, 58, 67), 0)
    folder = root / "ADEChallengeData2016"
    for part, (split, short, count) in enumerate(
        zip(("training", "validation"), ("train", "val"), counts, strict=True)
    ):
        for index, (picture, classes) in enumerate(_scenes(43, part, count, (96, 128))):
            name = f"ADE_{short}_{index + 1:08d}"
            save(picture, folder / "images" / split / f"{name}.jpg")
            save(Image.fromarray(as_numbers(classes)), folder / "annotations" / split / f"{name}.png")


def cityscapes(root: Path, counts: Sequence[int] = (24, 8)) -> None:
    """The official layout with labelIds; road and six other classes are used for background and shapes; 192 × 96."""
    as_numbers = _numbers((7, 11, 17, 20, 24, 26, 33), 0)
    for part, (split, count) in enumerate(zip(("train", "val"), counts, strict=True)):
        for index, (picture, classes) in enumerate(_scenes(44, part, count, (96, 96), 2.0)):
            city = ("aachen", "bochum")[index % 2] if split == "train" else "frankfurt"
            stem = f"{city}_{index:06d}_000019"
            save(picture, root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            place = root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
            save(Image.fromarray(as_numbers(classes)), place)


def voc2012(root: Path, counts: Sequence[int] = (24, 8)) -> None:
    """VOC layout, palette masks; six of its classes are used for the shapes; 96 to 128 pixels a side."""
    as_numbers = _numbers((0, 1, 5, 7, 8, 15, 20), 255)
    folder = root / "VOCdevkit" / "VOC2012"
    palette = [0, 0, 0, *(part for colour in usual_palette(255) for part in colour)]
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, (split, count) in enumerate(zip(("train", "val"), counts, strict=True)):
        names = []
        for index, (picture, classes) in enumerate(_scenes(45, part, count, (96, 128))):
            names.append(f"2012_{part}{index:05d}")
            save(picture, folder / "JPEGImages" / f"{names[-1]}.jpg")
            numbers = Image.fromarray(as_numbers(classes))
            numbers.putpalette(palette)
            save(numbers, folder / "SegmentationClass" / f"{names[-1]}.png")
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
