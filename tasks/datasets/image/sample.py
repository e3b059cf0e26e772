"""The embedded image samples: shapes on textured backgrounds, in the real benchmarks' formats and layouts.

The label is the shape. Size, position, rotation, both textures and all colours are independent of it, all shapes have
the same area, and every pair of textures occurs once with every shape: neither colour nor texture nor size
distinguishes the classes.

Shapes: P points of an outline.
"""

import csv
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Outline = NDArray[np.float64]  # (P, 2); x to the right, y upwards
FINER = 4  # supersampling factor, for smooth edges


# -- shapes --------------------------------------------------------------------------------------------------


def _arc(start: float, stop: float, points: int = 48, radius: float = 1.0, x: float = 0.0) -> Outline:
    angle = np.linspace(start, stop, points)
    return np.stack([x + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _polygon(corners: int, radii: Sequence[float] = (1.0,), first: float = np.pi / 2) -> Outline:
    angle = first + np.arange(corners) * 2 * np.pi / corners
    radius = np.resize(radii, corners)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _crescent() -> Outline:
    # The unit circle minus a circle of radius 0.8 around (0.5, 0); they intersect at x = 0.61.
    y = (1 - 0.61**2) ** 0.5
    outer, inner = np.arctan2(y, 0.61), np.arctan2(y, 0.11)
    return np.concatenate([_arc(outer, 2 * np.pi - outer), _arc(2 * np.pi - inner, inner, radius=0.8, x=0.5)])


def _cross() -> Outline:
    arm = np.array([(1, -0.33), (1, 0.33), (0.33, 0.33)])
    turns = [np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate([arm @ turn for turn in turns])


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, y], axis=1)


def _drop() -> Outline:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return np.stack([1.6 * np.sin(t) * np.sin(t / 2) ** 2, np.cos(t)], axis=1)


#: Name -> outlines; a second one is a hole.
SHAPES: dict[str, tuple[Outline, ...]] = {
    "circle": (_polygon(64),),
    "crescent": (_crescent(),),
    "cross": (_cross(),),
    "drop": (_drop(),),
    "ellipse": (_polygon(64) * (1.0, 0.5),),
    "heart": (_heart(),),
    "ring": (_polygon(64), 0.6 * _polygon(64)),
    "square": (_polygon(4, first=np.pi / 4),),
    "star": (_polygon(10, (1.0, 0.42)),),
    "triangle": (_polygon(3),),
}
EIGHT = ("circle", "crescent", "cross", "heart", "ring", "square", "star", "triangle")
#: The WordNet synsets of the eight shapes, for the ImageNet readers.
SYNSETS = {
    "n03135532": "cross",
    "n13865904": "heart",
    "n13873502": "circle",
    "n13875392": "ring",
    "n13879049": "square",
    "n13879320": "triangle",
    "n13881644": "star",
    "n13896217": "crescent",
}


def area(outline: Outline) -> float:
    """Area inside an outline (shoelace formula)."""
    x, y = outline.T
    return float(abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2)


@dataclass(frozen=True)
class Pose:
    """Pose of a shape in pixels: its centre and the side of a square of the same area."""

    x: float
    y: float
    side: float
    turn: float  # radians
    stretch: float

    @classmethod
    def draw(cls, rng: np.random.Generator, width: int, height: int) -> "Pose":
        short = min(width, height)
        return cls(
            x=width / 2 + short * rng.uniform(-0.08, 0.08),
            y=height / 2 + short * rng.uniform(-0.08, 0.08),
            side=short * rng.uniform(0.42, 0.54),
            turn=rng.uniform(-0.6, 0.6),
            stretch=rng.uniform(0.88, 1.14),
        )


def mask(shape: str, pose: Pose, width: int, height: int) -> NDArray[np.float64]:
    """Coverage of each pixel by the shape, (height, width) in [0, 1]."""
    outlines = SHAPES[shape]
    inside = area(outlines[0]) - sum(area(hole) for hole in outlines[1:])
    middle = outlines[0].mean(axis=0)
    scale = (
        pose.side / inside**0.5 * np.array([pose.stretch, -1 / pose.stretch])
    )  # image rows point downwards
    c, s = np.cos(pose.turn), np.sin(pose.turn)
    picture = Image.new("L", (width * FINER, height * FINER))
    pen = ImageDraw.Draw(picture)
    for outline, fill in zip(outlines, (255, 0), strict=False):
        points = ((outline - middle) * scale) @ np.array([(c, s), (-s, c)]) + (pose.x, pose.y)
        pen.polygon([(float(x), float(y)) for x, y in points * FINER], fill=fill)
    return np.asarray(picture.reduce(FINER), dtype=np.float64) / 255


# -- textures ------------------------------------------------------------------------------------------------


def _grid(
    width: int, height: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotated and shifted coordinates in units of a period of 5 to 14 pixels."""
    turn, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    y, x = np.mgrid[:height, :width] / period
    c, s = np.cos(turn), np.sin(turn)
    return c * x - s * y + rng.uniform(), s * x + c * y + rng.uniform()


def _stripes(u: NDArray[np.float64], v: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return 0.5 + 0.5 * np.sin(2 * np.pi * u)


def _checks(u: NDArray[np.float64], v: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return ((np.floor(u) + np.floor(v)) % 2).astype(np.float64)


def _dots(u: NDArray[np.float64], v: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.clip(4 * (0.35 - np.hypot(u % 1 - 0.5, v % 1 - 0.5)) + 0.5, 0, 1)


def _slope(u: NDArray[np.float64], v: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return (u - u.min()) / np.ptp(u)


def _clouds(u: NDArray[np.float64], v: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    height, width = u.shape
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 2, width // 8 + 2), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) / 255


TEXTURES: tuple[Callable[..., NDArray[np.float64]], ...] = (_stripes, _checks, _dots, _slope, _clouds)


def texture(
    width: int, height: int, colour: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """A texture (height, width, 3) that varies between two tones around ``colour``."""
    kind = TEXTURES[rng.integers(len(TEXTURES))]
    strength = kind(*_grid(width, height, rng), rng)[..., None] - 0.5
    return colour + strength * rng.uniform(-40, 40, 3) + rng.normal(0, 4, (height, width, 3))


def draw(shape: str, seed: Sequence[int], index: int, sides: tuple[int, int]) -> Image.Image:
    """One image with sides in the range ``sides``. Everything but the shape depends on ``(seed, index)`` only."""
    rng = np.random.default_rng((*seed, index))
    width, height = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
    # The figure is lighter than the background; hues are arbitrary.
    ground, figure = rng.uniform(20, 120, 3), rng.uniform(135, 235, 3)
    behind, before = texture(width, height, ground, rng), texture(width, height, figure, rng)
    pose = Pose.draw(np.random.default_rng((*seed, index, list(SHAPES).index(shape))), width, height)
    covered = mask(shape, pose, width, height)[..., None]
    pixels = covered * before + (1 - covered) * behind
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path) -> None:
    """Write an image in the format of its extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        image.save(path, "JPEG", quality=90)
    else:
        image.save(path)


# -- the samples ---------------------------------------------------------------------------------------------


def image_folder(root: Path, counts: Sequence[int] = (120, 20, 40), shapes: Sequence[str] = EIGHT) -> None:
    """train/, val/ and test/ with a folder per shape, JPEG and PNG, 64 to 88 pixels a side."""
    for part, (split, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        for shape in shapes:
            for index in range(count):
                suffix = ".jpg" if index % 3 else ".png"
                name = root / split / shape / f"{shape}_{index:03d}{suffix}"
                save(draw(shape, (31, part), index, (64, 88)), name)


def imagenet(root: Path, train: int = 24, val: int = 8) -> None:
    """ImageNet-1K's folders and file names, with eight synsets that are shapes; 120 to 200 pixels a side."""
    for position, (synset, shape) in enumerate(SYNSETS.items()):
        for index in range(train):
            picture = draw(shape, (1000, 0), index, (120, 200))
            save(picture, root / "train" / synset / f"{synset}_{index + 1}.JPEG")
        for index in range(val):
            number = index * len(SYNSETS) + position + 1
            picture = draw(shape, (1000, 1), index, (120, 200))
            save(picture, root / "val" / synset / f"ILSVRC2012_val_{number:08d}.JPEG")


def imagenet22k(root: Path, count: int = 32) -> None:
    """ImageNet-22K's folders and file names, with eight synsets that are shapes; 120 to 200 pixels a side."""
    for synset, shape in SYNSETS.items():
        for index in range(count):
            picture = draw(shape, (22000, 0), index, (120, 200))
            save(picture, root / synset / f"{synset}_{index + 1}.JPEG")


def tiny_imagenet(root: Path, train: int = 30, val: int = 10) -> None:
    """Tiny ImageNet's folders and lists, with eight synsets that are shapes; 64 × 64."""
    root = root / "tiny-imagenet-200"
    for synset, shape in SYNSETS.items():
        boxes = []
        for index in range(train):
            name = f"{synset}_{index}.JPEG"
            save(draw(shape, (200, 0), index, (64, 64)), root / "train" / synset / "images" / name)
            boxes.append((name, 0, 0, 63, 63))
        _write_tabs(root / "train" / synset / f"{synset}_boxes.txt", boxes)
    rows: list[tuple[Any, ...]] = []
    for index in range(val):
        for synset, shape in SYNSETS.items():
            name = f"val_{len(rows)}.JPEG"
            save(draw(shape, (200, 1), index, (64, 64)), root / "val" / "images" / name)
            rows.append((name, synset, 0, 0, 63, 63))
    _write_tabs(root / "val" / "val_annotations.txt", rows)
    _write_tabs(
        root / "wnids.txt", [(synset,) for synset in reversed(SYNSETS)]
    )  # the real list is not sorted either
    words = {**SYNSETS, "n00001740": "entity"}
    _write_tabs(root / "words.txt", sorted(words.items()))


def _write_tabs(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)


def cifar10(root: Path, train: int = 200, test: int = 100) -> None:
    """CIFAR-10's pickled batches, with ten shapes; ``train`` images in each of five batches."""
    folder, names = root / "cifar-10-batches-py", list(SHAPES)
    folder.mkdir(parents=True)
    for batch in range(6):
        rows = _tiny_pictures(10, batch, names, test if batch == 5 else train)
        about = "testing batch 1 of 1" if batch == 5 else f"training batch {batch + 1} of 5"
        content = {"batch_label": about, "labels": rows.labels, "data": rows.pixels, "filenames": rows.names}
        (folder / ("test_batch" if batch == 5 else f"data_batch_{batch + 1}")).write_bytes(
            python2_pickle(content)
        )
    meta = {"num_cases_per_batch": train, "label_names": names, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))


def cifar100(root: Path, train: int = 800, test: int = 200) -> None:
    """CIFAR-100's pickled files, with ten shapes as fine labels and two groups of them as coarse labels."""
    folder, names = root / "cifar-100-python", list(SHAPES)
    folder.mkdir(parents=True)
    angular = [int(name in ("cross", "square", "star", "triangle")) for name in names]
    for part, (file, count) in enumerate((("train", train), ("test", test))):
        rows = _tiny_pictures(100, part, names, count)
        content = {
            "filenames": rows.names,
            "batch_label": f"{file}ing batch 1 of 1",
            "fine_labels": rows.labels,
            "coarse_labels": [angular[label] for label in rows.labels],
            "data": rows.pixels,
        }
        (folder / file).write_bytes(python2_pickle(content))
    meta = {"fine_label_names": names, "coarse_label_names": ["round", "angular"]}
    (folder / "meta").write_bytes(python2_pickle(meta))


@dataclass
class _Rows:
    pixels: NDArray[np.uint8]  # (count, 3072): red, green, blue plane
    labels: list[int]
    names: list[str]


def _tiny_pictures(seed: int, part: int, shapes: Sequence[str], count: int) -> _Rows:
    """32 × 32 images, cycling through the shapes; drawn at twice the size and reduced, for clear outlines."""
    rows = _Rows(np.zeros((count, 3072), np.uint8), [], [])
    for row in range(count):
        label = row % len(shapes)
        picture = draw(shapes[label], (seed, part), row // len(shapes), (64, 64)).reduce(2)
        rows.pixels[row] = np.asarray(picture).transpose(2, 0, 1).reshape(-1)
        rows.labels.append(label)
        rows.names.append(f"{shapes[label]}_s_{part * 10_000 + row:06d}.png")
    return rows


def python2_pickle(value: dict[str, Any]) -> bytes:
    """Pickle as Python 2 and its NumPy did in 2009 (protocol 2), like the CIFAR files.

    Python 3 cannot write this: text becomes unicode, and NumPy's functions are in other modules.
    """
    out = io.BytesIO()
    out.write(b"\x80\x02")
    _pickle(value, out.write)
    out.write(b".")
    return out.getvalue()


def _pickle(value: Any, write: Callable[[bytes], int]) -> None:
    if isinstance(value, str):
        write(b"T" + struct.pack("<i", len(value)) + value.encode("ascii"))  # BINSTRING: Python 2's str
    elif isinstance(value, int):
        write(b"J" + struct.pack("<i", value))
    elif isinstance(value, list):
        write(b"](")
        for part in value:
            _pickle(part, write)
        write(b"e")
    elif isinstance(value, dict):
        write(b"}(")
        for key, part in value.items():
            _pickle(key, write)
            _pickle(part, write)
        write(b"u")
    else:
        # _reconstruct(ndarray, (0,), 'b'), then its state (1, shape, dtype('u1'), False, bytes)
        write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(")
        for side in value.shape:
            _pickle(side, write)
        write(
            b"tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN"
            + 2 * b"J\xff\xff\xff\xff"
            + b"K\x00tb\x89T"
        )
        write(struct.pack("<i", value.nbytes) + value.tobytes() + b"tb")
