"""Format-independent detection labels.

Shapes: n objects in an image of H × W pixels. Boxes are x1, y1, x2, y2 in pixels from the upper left corner; an image
of width W extends from 0 to W.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import DataError
from tasks.datasets.image.box_formats.outlines import Outline

LARGEST_FILE = 2**32  # bytes of a label file; COCO's largest is a tenth of this
LARGEST_OF_A_PICTURE = 2**26  # bytes of the labels of one image
MOST_OBJECTS = 100_000  # in one image
ROUNDING = 1.0  # pixels by which a box may exceed its image without a note


@dataclass(frozen=True)
class Described:
    """One object as read from a file.

    Args:
        box: x1, y1, x2, y2.
        label: class index.
        crowd: the annotation covers several objects, or an object that is ignored in evaluation.
        outline: its mask, if any.
    """

    box: Sequence[float]
    label: int
    crowd: bool = False
    outline: Outline | None = None


@dataclass(frozen=True)
class Labelled:
    """An image and its labels.

    Args:
        picture: image file.
        objects: (n, 6): box, label, crowd (0 or 1).
        outlines: outline of each object; empty if there are none.
        size: width and height that the labels refer to; None if not stated.
        split: its split; None if not given.
        fault: why its labels cannot be used, reported when it is loaded.
        id: its number in the annotations, if they number images.
    """

    picture: Path
    objects: NDArray[np.float64]
    outlines: Sequence[Outline | None] = ()
    size: tuple[int, int] | None = None
    split: str | None = None
    fault: str | None = None
    id: int | None = None


@dataclass
class Tidied:
    """Converts labels to arrays; counts what was changed or dropped."""

    objects: int = 0
    clipped: int = 0
    left_out: int = 0
    first_clipped: str = ""
    first_left_out: str = ""
    without_outline: int = 0
    pictures: int = 0
    further: list[str] = field(default_factory=list)

    def __call__(
        self, picture: Path, described: Iterable[Described], size: tuple[int, int] | None, split: str | None
    ) -> Labelled:
        """The image with its objects, boxes clipped to this width and height."""
        rows: list[tuple[float, ...]] = []
        outlines: list[Outline | None] = []
        for each in described:
            box = self._within(each.box, size, picture)
            if box is None:
                continue
            if len(rows) == MOST_OBJECTS:
                raise DataError(f"{picture} has more than {MOST_OBJECTS:,} objects")
            rows.append((*box, each.label, float(each.crowd)))
            outlines.append(each.outline)
        self.pictures += 1
        self.objects += len(rows)
        self.without_outline += sum(outline is None for outline in outlines)
        objects = np.array(rows, dtype=np.float64).reshape(-1, 6)
        return Labelled(
            picture, objects, outlines if any(o is not None for o in outlines) else (), size, split
        )

    def _within(
        self, box: Sequence[float], size: tuple[int, int] | None, picture: Path
    ) -> tuple[float, float, float, float] | None:
        x1, y1, x2, y2 = box
        if not (all(math.isfinite(value) for value in box) and x2 > x1 and y2 > y1):
            self._leave_out(picture)
            return None
        if size is None:
            return x1, y1, x2, y2
        width, height = size
        beyond = max(-x1, -y1, x2 - width, y2 - height)
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if x2 <= x1 or y2 <= y1:
            self._leave_out(picture)
            return None
        if beyond > ROUNDING:
            self.clipped += 1
            self.first_clipped = self.first_clipped or picture.name
        return x1, y1, x2, y2

    def _leave_out(self, picture: Path) -> None:
        self.left_out += 1
        self.first_left_out = self.first_left_out or picture.name

    def notes(self) -> list[str]:
        """Notes for the user, one sentence each."""
        said = []
        if self.clipped:
            said.append(
                f"{self.clipped:,} of {self.objects:,} boxes reached beyond their picture and are clipped (the first "
                f"in {self.first_clipped})"
            )
        if self.left_out:
            said.append(
                f"{self.left_out:,} boxes without width or height in their picture are left out (the first in "
                f"{self.first_left_out})"
            )
        return [*said, *self.further]

    @property
    def has_masks(self) -> bool:
        """Whether every object has an outline."""
        return self.objects > 0 and self.without_outline == 0


def unusable(picture: Path, split: str | None, fault: str) -> Labelled:
    """An image whose labels cannot be read; it is counted and reported when it is loaded."""
    return Labelled(picture, np.zeros((0, 6)), split=split, fault=fault)


def number_of_name(picture: Path) -> int | None:
    """The id that a file name states if it is a decimal number, as in COCO.

    >>> number_of_name(Path("000000000139.jpg")), number_of_name(Path("scene_3.jpg"))
    (139, None)
    """
    stem = picture.stem
    found = int(stem) if stem.isascii() and stem.isdecimal() and len(stem) < 40 else None
    return None if found is None or found >= 2**63 else found


def number(value: Any) -> float:
    """Parses a number from JSON or text, without Python's underscores; raises `ValueError`.

    >>> number("12.5"), number(3)
    (12.5, 3.0)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("no number")
    if isinstance(value, str) and (len(value) > 40 or "_" in value):
        raise ValueError("no number")
    try:
        return float(value)
    except OverflowError as error:  # an integer of hundreds of digits
        raise ValueError("no number") from error


def check_names(names: Sequence[str], where: str) -> list[str]:
    """Returns stripped class names if there are any, and all are unique and non-empty.

    Raises:
        DataError: otherwise.
    """
    said = [str(name).strip() for name in names]
    if not said or not all(said):
        raise DataError(f"{where} names no classes" if not said else f"{where} has a class without a name")
    if len(set(said)) < len(said):
        twice = next(name for name in said if said.count(name) > 1)
        raise DataError(f"{where} names the class {twice} twice")
    return said


def read_text(path: Path, most: int) -> str:
    """Read a label file as UTF-8 text.

    Raises:
        DataError: it cannot be read, is larger than `most` bytes, or is not text.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DataError(f"{path} is no file")
        if size > most:
            raise DataError(f"{path} has {size:,} bytes, more than a file of labels may ({most:,})")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error.reason})") from error
