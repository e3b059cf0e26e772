"""COCO instances (cocodataset.org/#format-data): one JSON file for all images of a split.

`categories` are the classes, `images` the images, `annotations` the objects: `bbox` is x, y, width, height,
`segmentation` polygons or RLE, `iscrowd` is 1 if one annotation covers several objects.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.image.box_formats.labels import (
    LARGEST_FILE,
    Described,
    Labelled,
    Tidied,
    check_names,
    number,
    read_text,
    unusable,
)
from tasks.datasets.image.box_formats.outlines import read_outline
from tasks.datasets.image.reading import size_of
from tasks.datasets.names import inside

SHOWN = 3  # names in a message
PARTS = ("images", "annotations", "categories")


def read_instances(file: Path, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Read an instance file and check that `images`, `annotations` and `categories` are lists of objects.

    Args:
        file: JSON.
        parts: what is needed; images without labels, such as COCO's `image_info` files, have no `annotations`.

    Raises:
        DataError: not an instance file.
    """
    try:
        content = json.loads(read_text(file, LARGEST_FILE))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{file} is no JSON ({said})") from error
    check_parts(content, file, parts)
    return content


def check_parts(content: Any, file: Path, parts: Sequence[str]) -> None:
    """Raise a `DataError` unless each of these parts of an instance file is a list of objects."""
    for part in parts:
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{file} is no file of COCO's instances: it has no list of {part}")
        for row in rows:
            if not isinstance(row, dict):
                raise DataError(f"{file} has something in its {part} that is no object: {str(row)[:40]}")


def looks_like_instances(file: Path) -> bool:
    """Whether a JSON file may be an instance file, by the keys in its first and last 64 KiB."""
    try:
        with file.open("rb") as opened:
            start = opened.read(1 << 16)
            opened.seek(max(file.stat().st_size - (1 << 16), 0))
            text = start + opened.read(1 << 16)
    except OSError:
        return False
    return any(f'"{part}"'.encode() in text for part in PARTS)


def categories(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Id -> name, by ascending id; raises `DataError` for duplicate ids or names, or if there are none."""
    found: dict[int, str] = {}
    for row in content["categories"]:
        key = _id(row.get("id"), "a category", file)
        if key in found:
            raise DataError(f"{file} has two categories with the id {key}")
        found[key] = str(row.get("name") or "")[:200]
    named = dict(sorted(found.items()))
    return dict(zip(named, check_names(list(named.values()), str(file)), strict=True))


def read(
    file: Path,
    content: Mapping[str, Any],
    folders: Sequence[Path],
    labels: Mapping[int, int | None],
    split: str | None,
    tidied: Tidied,
) -> list[Labelled]:
    """The images of an instance file.

    Args:
        file, content: see `read_instances`.
        folders: image folders, in order of preference.
        labels: category id -> class index; None: its objects are dropped.
        split: split of all its images.
        tidied: converts and counts the objects.

    Raises:
        DataError: a duplicate or unknown id; an image that does not exist.
    """
    images = _images(content, file)
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    seen: set[int] = set()
    for row in content["annotations"]:
        key = _id(row.get("id", len(seen)), "an annotation", file)
        if "id" in row and key in seen:
            raise DataError(f"{file} has two annotations with the id {key}")
        seen.add(key)
        image = _id(row.get("image_id"), f"the annotation {key}: image_id", file)
        if image not in images:
            raise DataError(f"{file}: the annotation {key} is of the picture {image}, which it does not have")
        category = _id(row.get("category_id"), f"the annotation {key}: category_id", file)
        if category not in labels:
            raise DataError(
                f"{file}: the annotation {key} is of the category {category}, which it does not name"
            )
        of_image[image].append(row)
    return [
        replace(_labelled(picture, images[key], of_image[key], labels, split, tidied), id=key)
        for key, picture in _located(images, folders, file).items()
    ]


def pictures(file: Path, content: Mapping[str, Any], folders: Sequence[Path]) -> dict[int, Path]:
    """The image of each id; arguments and errors as for `read`."""
    return _located(_images(content, file), folders, file)


def _images(content: Mapping[str, Any], file: Path) -> dict[int, dict[str, Any]]:
    """Id -> row of `images`."""
    images: dict[int, dict[str, Any]] = {}
    names: set[str] = set()
    for row in content["images"]:
        key = _id(row.get("id"), "a picture", file)
        if key in images:
            raise DataError(f"{file} has two pictures with the id {key}")
        images[key] = row
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{file} has a picture without file_name (id {key})")
        if name in names:
            raise DataError(f"{file} has two pictures with the file_name {name[:200]}")
        names.add(name)
    return images


def _located(images: Mapping[int, Mapping[str, Any]], folders: Sequence[Path], file: Path) -> dict[int, Path]:
    """Id -> file; raises `DataError` if some do not exist."""
    found = {key: _picture(row["file_name"], folders, file) for key, row in images.items()}
    absent = [images[key]["file_name"] for key, picture in found.items() if picture is None]
    if absent:
        more = f" and {len(absent) - SHOWN:,} more" if len(absent) > SHOWN else ""
        places = " or ".join(str(folder) for folder in folders)
        raise DataError(
            f"{file} names {len(absent):,} pictures that do not exist in {places}: "
            f"{', '.join(name[:200] for name in absent[:SHOWN])}{more}"
        )
    return {key: picture for key, picture in found.items() if picture is not None}


def _labelled(
    picture: Path,
    image: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    labels: Mapping[int, int | None],
    split: str | None,
    tidied: Tidied,
) -> Labelled:
    width, height = image.get("width"), image.get("height")
    size: tuple[int, int] | None = None
    if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
        size = (width, height)
    else:
        with suppress(ReadError):  # reported when it is loaded
            size = size_of(picture)
    described = []
    for row in rows:
        label = labels[row["category_id"]]
        if label is None:
            continue
        try:
            described.append(_described(row, label, size))
        except ValueError as error:
            return unusable(picture, split, f"its annotation {row.get('id')}: {error}")
    return tidied(picture, described, size, split)


def _described(row: Mapping[str, Any], label: int, size: Any) -> Described:
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError("its bbox is no list of x, y, width and height")
    try:
        x, y, width, height = (number(value) for value in box)
    except ValueError as error:
        raise ValueError("its bbox is no list of x, y, width and height") from error
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise ValueError(f"its iscrowd is {str(crowd)[:20]}, not 0 or 1")
    outline = read_outline(row.get("segmentation"), size)
    return Described((x, y, x + width, y + height), label, bool(crowd), outline)


def _picture(name: str, folders: Sequence[Path], file: Path) -> Path | None:
    try:
        path = inside(name)
    except DataError as error:
        raise DataError(
            f"{file} names the picture {name[:80]!r}, which would lie outside its folder"
        ) from error
    return next((folder / path for folder in folders if (folder / path).is_file()), None)


def _id(said: Any, what: str, file: Path) -> int:
    if type(said) is not int or abs(said) >= 2**63:
        raise DataError(f"{file}: {what} has the id {str(said)[:40]!r}, no whole number")
    return said
