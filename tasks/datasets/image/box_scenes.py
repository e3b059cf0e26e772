"""The embedded samples for detection: shapes on a textured background, in the real data sets' formats and layouts.

Shapes and patterns are those of `scenes`: the class determines outline and pattern, while position, size, rotation and
colours are independent of it. A scene has up to five shapes, which may partly occlude each other, and ellipses and bars
as distractors without a class; some scenes have only distractors. A few have a crowd: many small shapes of one class
with a single annotation.

Shapes: H and W in pixels.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.datasets.image.box_formats.outlines import packed_polygons, run_lengths
from tasks.datasets.image.sample import SHAPES, Pose, area, mask, save, texture
from tasks.datasets.image.scenes import SIX, patterned

COUNTS = (320, 40, 80)  # training, validation and test scenes
FEW = (24, 8, 8)
MOST_OBJECTS = 5
SIDES = (0.16, 0.42)  # minimum and maximum side of a shape, relative to the shorter side of the scene
LEAST_SEEN = 0.6  # minimum visible fraction of a shape
EMPTY = 0.05  # fraction of scenes without a shape
CROWDED = 0.04


@dataclass(frozen=True)
class Thing:
    """One annotation: class, visible mask (H, W), crowd flag, and outline (P, 2) if it is fully visible and has no
    hole."""

    label: int
    seen: NDArray[np.bool_]
    crowd: bool = False
    outline: NDArray[np.float64] | None = None

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 of the visible pixels."""
        rows, columns = np.flatnonzero(self.seen.any(1)), np.flatnonzero(self.seen.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def scene(rng: np.random.Generator, width: int, height: int) -> tuple[NDArray[np.uint8], list[Thing]]:
    """An image (H, W, 3) and its annotations."""
    pixels = texture(width, height, rng.uniform(20, 120, 3), rng)
    for _ in range(int(rng.integers(0, 3))):
        pixels = _over(pixels, _clutter(rng, width, height), _tone(rng, width, height))
    things: list[Thing] = []
    kind = rng.uniform()
    if kind < CROWDED:
        label = int(rng.integers(len(SIX)))
        seen = np.zeros((height, width), dtype=bool)
        for _ in range(14):
            pose = _pose(rng, width, height, (0.07, 0.1), middle=0.3)
            covered = mask(SIX[label], pose, width, height)
            pixels = _over(pixels, covered, patterned(label, width, height, rng))
            seen |= covered >= 0.5
        things.append(Thing(label, seen, crowd=True))
    count = 0 if kind > 1 - EMPTY else int(rng.integers(1, MOST_OBJECTS + 1))
    taken = np.zeros((height, width), dtype=bool) | (things[0].seen if things else False)
    placed: list[tuple[int, Pose, NDArray[np.float64]]] = []
    for _ in range(count):
        label = int(rng.integers(len(SIX)))
        for _ in range(20):  # until the shapes below are visible enough
            pose = _pose(rng, width, height, SIDES)
            covered = mask(SIX[label], pose, width, height)
            own = covered >= 0.5
            below = [other >= 0.5 for _, _, other in placed]
            if not (own & taken).any() or (
                (own & taken).sum() < 0.3 * own.sum()
                and not (things and (own & things[0].seen).any())
                and all(
                    (each & ~own & ~_above(placed, k)).sum() > LEAST_SEEN * each.sum()
                    for k, each in enumerate(below)
                )
            ):
                placed.append((label, pose, covered))
                taken |= own
                break
    for label, _, covered in placed:
        pixels = _over(pixels, covered, patterned(label, width, height, rng))
    for place, (label, pose, covered) in enumerate(placed):
        whole = covered >= 0.5
        seen = whole & ~_above(placed, place)
        things.append(Thing(label, seen, outline=_outline(label, pose) if (seen == whole).all() else None))
    return pixels.round().clip(0, 255).astype(np.uint8), things


def _above(placed: Sequence[tuple[int, Pose, NDArray[np.float64]]], place: int) -> NDArray[np.bool_]:
    """Mask of the pixels covered by later shapes."""
    covered: NDArray[np.bool_] = np.zeros(placed[place][2].shape, dtype=bool)
    for _, _, other in placed[place + 1 :]:
        covered |= other >= 0.5
    return covered


def _pose(
    rng: np.random.Generator, width: int, height: int, sides: tuple[float, float], middle: float = 0.0
) -> Pose:
    side = min(width, height) * rng.uniform(*sides)
    x, y = (
        rng.uniform(max(0.6 * side, middle * length), length - max(0.6 * side, middle * length))
        for length in (width, height)
    )
    return Pose(x, y, side, rng.uniform(-0.6, 0.6), rng.uniform(0.88, 1.14))


def _clutter(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    """A distractor: an ellipse or a bar."""
    pose = _pose(rng, width, height, (0.15, 0.3))
    if rng.uniform() < 0.5:
        return mask("ellipse", pose, width, height)
    return mask("square", Pose(pose.x, pose.y, pose.side, rng.uniform(0, np.pi), 2.5), width, height)


def _tone(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    return rng.uniform(150, 225, 3) + rng.normal(0, 4, (height, width, 3))


def _over(
    pixels: NDArray[np.float64], covered: NDArray[np.float64], thing: NDArray[np.float64]
) -> NDArray[np.float64]:
    return covered[..., None] * thing + (1 - covered[..., None]) * pixels


def _outline(label: int, pose: Pose) -> NDArray[np.float64] | None:
    """The corners of a shape in the image, as drawn by `sample.mask`; None if it has a hole."""
    outlines = SHAPES[SIX[label]]
    if len(outlines) > 1:
        return None
    scale = pose.side / area(outlines[0]) ** 0.5 * np.array([pose.stretch, -1 / pose.stretch])
    c, s = np.cos(pose.turn), np.sin(pose.turn)
    placed: NDArray[np.float64] = ((outlines[0] - outlines[0].mean(axis=0)) * scale) @ np.array(
        [(c, s), (-s, c)]
    )
    return placed + np.array([pose.x, pose.y])


def scenes(
    seed: int, part: int, count: int, sides: tuple[int, int]
) -> Iterator[tuple[Image.Image, list[Thing]]]:
    """Scenes with height and width in the range `sides`."""
    for index in range(count):
        rng = np.random.default_rng((seed, part, index))
        height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
        pixels, things = scene(rng, width, height)
        yield Image.fromarray(pixels), things


# -- the samples ---------------------------------------------------------------------------------------------


def _annotation(thing: Thing) -> dict[str, Any]:
    """The COCO annotation: a polygon if possible, otherwise RLE."""
    x1, y1, x2, y2 = thing.box
    segmentation: Any = {"size": list(thing.seen.shape), "counts": run_lengths(thing.seen)}
    if thing.outline is not None:
        segmentation = [packed_polygons(thing.outline.tolist())]
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(thing.seen.sum()),
        "iscrowd": int(thing.crowd),
        "segmentation": segmentation,
    }


def _instances(
    folder: Path,
    file: Path,
    drawn: Iterator[tuple[Image.Image, list[Thing]]],
    ids: dict[str, int],
    named: str,
) -> None:
    """Writes images and their COCO instance file; `ids`: name -> category id, with the names of `SIX` first."""
    own = [ids[name] for name in list(ids)[: len(SIX)]]
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, (picture, things) in enumerate(drawn, start=1):
        name = named.format(number)
        save(picture, folder / name)
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        for thing in things:
            about = {"id": len(annotations) + 1, "image_id": number, "category_id": own[thing.label]}
            annotations.append({**about, **_annotation(thing)})
    file.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": key, "name": name} for name, key in sorted(ids.items(), key=lambda pair: pair[1])]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def box_folder(root: Path, counts: Sequence[int] = COUNTS) -> None:
    """COCO instances with masks, images in images/; 96 to 128 pixels a side."""
    ids = {name: number for number, name in enumerate(SIX, start=1)}
    for part, (split, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        file = root / "annotations" / f"instances_{split}.json"
        drawn = scenes(51, part, count, (96, 128))
        _instances(root / "images" / split, file, drawn, ids, "scene_{:03d}.jpg")


def coco(root: Path, counts: Sequence[int] = (32, 8)) -> None:
    """The COCO 2017 layout with all categories, six of which are used for the shapes; 96 to 128 pixels a side."""
    from tasks.datasets.image.coco import CATEGORIES

    shapes = ("clock", "scissors", "donut", "tv", "teddy bear", "pizza")
    ids = {name: CATEGORIES[name] for name in (*shapes, *CATEGORIES)}
    for part, (split, count) in enumerate(zip(("train2017", "val2017"), counts, strict=True)):
        file = root / "annotations" / f"instances_{split}.json"
        _instances(root / split, file, scenes(52, part, count, (96, 128)), ids, "{:012d}.jpg")


def voc(root: Path, year: int, counts: dict[str, int]) -> None:
    """VOC layout; six of its classes are used for the shapes, crowds are marked difficult; 96 to 128 pixels a side."""
    shapes = ("aeroplane", "bottle", "car", "chair", "person", "sofa")
    folder = root / "VOCdevkit" / f"VOC{year}"
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for part, (split, count) in enumerate(counts.items()):
        names = []
        for number, (picture, things) in enumerate(scenes(year, part, count, (96, 128)), start=1):
            names.append(f"{year}_{part}{number:05d}")
            save(picture, folder / "JPEGImages" / f"{names[-1]}.jpg")
            file = folder / "Annotations" / f"{names[-1]}.xml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(_xml(names[-1], year, picture, things, shapes), encoding="utf-8")
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    both = [(lists / f"{split}.txt").read_text() for split in ("train", "val") if split in counts]
    if both:
        (lists / "trainval.txt").write_text("".join(both))


def _xml(name: str, year: int, picture: Image.Image, things: Sequence[Thing], shapes: Sequence[str]) -> str:
    lines = ["<annotation>", f"<folder>VOC{year}</folder>", f"<filename>{name}.jpg</filename>"]
    lines += [f"<size><width>{picture.width}</width><height>{picture.height}</height><depth>3</depth></size>"]
    for thing in things:
        x1, y1, x2, y2 = thing.box
        corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        lines += [
            "<object>",
            f"<name>{shapes[thing.label]}</name>",
            f"<difficult>{int(thing.crowd)}</difficult>",
        ]
        lines += [f"<bndbox>{corners}</bndbox>", "</object>"]
    return "\n".join([*lines, "</annotation>", ""])
