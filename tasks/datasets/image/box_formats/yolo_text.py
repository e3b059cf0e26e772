"""YOLO labels: one text file per image, one line per object: class, x and y of the centre, width, height.

The four are relative to the image's width and height. A line with more numbers is a polygon: class, x, y, x, y, … An
image without a file, or with an empty one, has no objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.datasets.errors import DataError
from tasks.datasets.image.box_formats.labels import (
    LARGEST_OF_A_PICTURE,
    Described,
    check_names,
    number,
    read_text,
)
from tasks.datasets.image.box_formats.outlines import LONGEST, Outline

ENDINGS = (".txt",)
YAML = (".yaml", ".yml")
#: Names of files with class names.
NAMES = (
    "data.yaml",
    "data.yml",
    "dataset.yaml",
    "classes.txt",
    "obj.names",
    "classes.names",
    "_darknet.labels",
)
TOLERANCE = 1e-3  # by which relative coordinates may exceed [0, 1], since they are rounded
MOST_CLASSES = 1000  # without class names
LARGEST_NAMES = 2**18  # bytes
DEEPEST = 20  # nesting levels of a YAML file


@dataclass(frozen=True)
class Line:
    """An object: its class, and a box (x, y, w, h) or the corners of a polygon in relative coordinates."""

    label: int
    parts: tuple[float, ...]


def read(file: Path, classes: int | None) -> list[Line]:
    """Read a label file.

    Args:
        file: the labels of one image.
        classes: number of classes; None if unknown.

    Raises:
        DataError: an invalid line, with its number.
    """
    lines = []
    for place, text in enumerate(read_text(file, LARGEST_OF_A_PICTURE).splitlines(), start=1):
        cells = text.split()
        if not cells:
            continue
        where = f"line {place} of {file}"
        if len(cells) != 5 and (len(cells) < 7 or len(cells) % 2 == 0):
            raise DataError(f"{where} has {len(cells)} numbers, not a class and x, y, width, height")
        if len(cells) > LONGEST:
            raise DataError(f"{where} is too long")
        if not (cells[0].isascii() and cells[0].isdigit() and len(cells[0]) < 7):
            raise DataError(f"{where} begins with {cells[0][:20]!r}, no number of a class")
        label = int(cells[0])
        if label >= (MOST_CLASSES if classes is None else classes):
            of = "" if classes is None else f": there are {classes}, from 0 to {classes - 1}"
            raise DataError(f"{where} has the class {label}{of}")
        try:
            parts = tuple(number(cell) for cell in cells[1:])
        except ValueError as error:
            raise DataError(f"{where} has something else than numbers") from error
        wrong = [part for part in parts if not -TOLERANCE <= part <= 1 + TOLERANCE]  # also catches NaN
        if wrong:
            raise DataError(
                f"{where} has {wrong[0]:g}, no part of a picture from 0 to 1 (YOLO's boxes are not in pixels)"
            )
        lines.append(Line(label, parts))
    return lines


def described(lines: Sequence[Line], size: tuple[int, int]) -> list[Described]:
    """The objects in pixels of an image of this width and height."""
    width, height = size
    found = []
    for line in lines:
        if len(line.parts) == 4:
            x, y, w, h = line.parts
            box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            found.append(Described(box, line.label))
        else:
            corners = np.array(line.parts, dtype=np.float32).reshape(-1, 2) * np.array(
                [width, height], dtype=np.float32
            )
            (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
            found.append(Described((x1, y1, x2, y2), line.label, outline=Outline((corners.reshape(-1),))))
    return found


def read_names(file: Path) -> list[str]:
    """Read class names: `names` of a YAML file (a list, or a mapping from 0 on), or one per line.

    Raises:
        DataError: no valid class names.
    """
    text = read_text(file, LARGEST_NAMES)
    if file.suffix.lower() not in YAML:
        lines = [line.strip() for line in text.splitlines()]
        while lines and not lines[-1]:
            lines.pop()
        return check_names(lines, str(file))
    return check_names(_listed(_yaml(file, text), file), str(file))


def content_of(file: Path) -> Any:
    """The content of a YAML file; raises `DataError`."""
    return _yaml(file, read_text(file, LARGEST_NAMES))


def _yaml(file: Path, text: str) -> Any:
    import yaml

    blocks = (yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken)
    starts = (*blocks, yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken)
    ends = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)
    try:
        # Aliases can expand a small file, nesting can make it slow.
        depth = 0
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken):
                raise DataError(f"{file} uses aliases of YAML (*name), which no list of classes needs")
            depth += isinstance(token, starts) - isinstance(token, ends)
            if depth > DEEPEST:
                raise DataError(f"{file} is nested too deeply for a list of classes")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file} is no YAML ({reason[:200]})") from error


def _listed(content: Any, file: Path) -> list[str]:
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(f"{file} numbers its names otherwise than from 0 to {len(names) - 1}")
        names = [names[place] for place in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"{file} has no list of names")
    return [str(name) for name in names]
