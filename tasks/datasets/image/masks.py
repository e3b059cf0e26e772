"""Segmentation masks: images that encode the class of each pixel as a value or as a colour.

Shapes: H and W in pixels, K classes.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.image.dense_transforms import VOID
from tasks.datasets.image.reading import PictureOptions, open_unchanged

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif")  # lossless formats
VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore", "ignored")
MOST_CLASSES = 254
LEAST_VOID = -(2**31)  # what 32 bits hold
TABLES = ("classes.csv", "classes.json", "class_dict.csv")
LARGEST_TABLE = 2**24  # bytes
Colour = tuple[int, int, int]
_COLUMNS = {
    "name": ("name", "class", "label"),
    "index": ("index", "id", "value"),
    "colour": ("colour", "color", "rgb"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
}
_UNKNOWN = -1


@dataclass(frozen=True)
class MaskCoding:
    """Mapping from the pixels of masks to classes.

    Args:
        names: names of the K classes.
        values: pixel value (below 2^16, or negative) -> class index or `VOID`, for masks of values.
        colours: colour -> class index or `VOID`, for masks of colours.
        palette: a colour for each class, for drawing.
    """

    names: Sequence[str]
    values: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[Colour, int] = field(default_factory=dict)
    palette: Sequence[Colour] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= MOST_CLASSES:
            raise DataError(f"masks have between 2 and {MOST_CLASSES} classes, not {len(self.names)}")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if list(self.names).count(name) > 1)
            raise DataError(f"the class {twice} is named twice")

    def renumbered(self, names: Sequence[str]) -> "MaskCoding":
        """The coding for a model with the classes `names`, a superset of ours."""
        place = {index: list(names).index(name) for index, name in enumerate(self.names)} | {VOID: VOID}
        return replace(
            self,
            names=list(names),
            values={value: place[index] for value, index in self.values.items()},
            colours={colour: place[index] for colour, index in self.colours.items()},
        )

    def read(self, path: Path, size: tuple[int, int], options: PictureOptions) -> NDArray[np.uint8]:
        """Read a mask, (H, W), as class indices and `VOID`.

        Args:
            path: mask file.
            size: required width and height.
            options: image reading options.

        Raises:
            ReadError: unreadable, of another size, or with an unknown pixel, whose position is named.
        """
        try:
            image = open_unchanged(path, options)
        except ReadError as error:
            raise ReadError(f"its mask {path}: {error}") from error
        if image.size != size:
            stored = " (a mask is one of the picture as shown, turned by its EXIF orientation)"
            raise ReadError(
                f"its mask {path} has {image.width}×{image.height} pixels, the picture {size[0]}×{size[1]}"
                f"{stored if image.size == size[::-1] else ''}"
            )
        try:
            return self.decoded(image)
        except ReadError as error:
            raise ReadError(f"its mask {path}: {error}") from error

    def decoded(self, image: "Image.Image") -> NDArray[np.uint8]:
        """Decodes an image to class indices and `VOID`, (H, W); raises `ReadError`."""
        if self.colours and not (self.values and holds_numbers(image)):
            return self._of_colours(_colours_of(image))
        if (numbers_HW := numbers_of(image)) is not None:
            return self._of_numbers(numbers_HW)
        raise ReadError(
            "it has colours, and no table of classes says what they mean: give task.data.classes=FILE"
        )

    def _of_numbers(self, values_HW: NDArray[np.int64]) -> NDArray[np.uint8]:
        meaning = np.full(2**16 + 1, _UNKNOWN, dtype=np.int64)
        negative = {value: index for value, index in self.values.items() if value < 0}
        for value, index in self.values.items():
            if value not in negative:
                meaning[value] = index
        found_HW = meaning[np.clip(values_HW, 0, 2**16)]
        if values_HW.min(initial=0) < 0:
            found_HW[values_HW < 0] = _UNKNOWN
            for value, index in negative.items():
                found_HW[values_HW == value] = index
        if places := _first(found_HW):
            y, x, count = places
            raise ReadError(f"the value {values_HW[y, x]} at x={x}, y={y} is that of no class{_more(count)}")
        return found_HW.astype(np.uint8)

    def _of_colours(self, pixels_HW3: NDArray[np.int64]) -> NDArray[np.uint8]:
        keys = np.array([_key(colour) for colour in self.colours], dtype=np.int64)
        order = np.argsort(keys)
        indices = np.array(list(self.colours.values()), dtype=np.int64)[order]
        keys = keys[order]
        wanted_HW = (pixels_HW3[..., 0] << 16) | (pixels_HW3[..., 1] << 8) | pixels_HW3[..., 2]
        place_HW = np.searchsorted(keys, wanted_HW).clip(max=len(keys) - 1)
        found_HW = np.where(keys[place_HW] == wanted_HW, indices[place_HW], _UNKNOWN)
        if places := _first(found_HW):
            y, x, count = places
            colour = tuple(int(part) for part in pixels_HW3[y, x])
            raise ReadError(f"the colour {colour} at x={x}, y={y} is that of no class{_more(count)}")
        return found_HW.astype(np.uint8)


def holds_numbers(image: "Image.Image") -> bool:
    """Whether the pixels of an image are single numbers: grey values or palette indices."""
    return image.mode in ("1", "L", "P", "F") or image.mode.startswith("I")


def numbers_of(image: "Image.Image") -> NDArray[np.int64] | None:
    """The values of a mask, (H, W), also if saved as grey in three channels; `None`: it has colours.

    Raises:
        ReadError: floating-point numbers that are not whole; the first one's position is named.
    """
    if image.mode == "F":
        return _whole(np.asarray(image))
    if holds_numbers(image):
        return np.asarray(image).astype(np.int64)
    pixels_HW3 = np.asarray(image.convert("RGB"))
    grey = bool((pixels_HW3[..., :1] == pixels_HW3).all())
    return pixels_HW3[..., 0].astype(np.int64) if grey else None


def _whole(values_HW: NDArray[np.float32]) -> NDArray[np.int64]:
    whole_HW = np.isfinite(values_HW) & (np.abs(values_HW) < 2**31)
    whole_HW &= np.where(whole_HW, values_HW, 0) % 1 == 0
    if places := _first(np.where(whole_HW, 0, _UNKNOWN)):
        y, x, count = places
        raise ReadError(f"the value {values_HW[y, x]:g} at x={x}, y={y} is no whole number{_more(count)}")
    return values_HW.astype(np.int64)


def _colours_of(image: "Image.Image") -> NDArray[np.int64]:
    """The colours of a mask, (H, W, 3); grey values are not cut to 255."""
    if image.mode == "F" or image.mode.startswith("I"):
        values_HW = numbers_of(image)
        assert values_HW is not None
        return np.repeat(values_HW[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB")).astype(np.int64)


def _key(colour: Colour) -> int:
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def _first(found_HW: NDArray[np.int64]) -> tuple[int, int, int] | None:
    """Row and column of the first unknown pixel, and the number of unknown pixels."""
    wrong = np.flatnonzero(found_HW == _UNKNOWN)
    if not len(wrong):
        return None
    y, x = divmod(int(wrong[0]), found_HW.shape[1])
    return y, x, len(wrong)


def _more(count: int) -> str:
    return f" (of {count:,} such pixels the first)" if count > 1 else ""


# -- class tables --------------------------------------------------------------------------------------------


def numbered(
    names: Sequence[str],
    void: Iterable[int] = (VOID,),
    *,
    first: int = 0,
    palette: Sequence[Colour] | None = None,
) -> MaskCoding:
    """Coding with the values `first`, `first + 1`, … for the classes in order; `void`: values without a class."""
    values = {first + index: index for index in range(len(names))} | {value: VOID for value in void}
    return MaskCoding(list(names), values, {}, list(palette or usual_palette(len(names))))


def read_class_table(path: Path, reduce_zero_label: bool = False) -> MaskCoding:
    """Read a class table: CSV with a header, or JSON.

    CSV: the columns `name` and `r,g,b` (or `colour` as `#rrggbb`) or `index`, or all of them. JSON: a list of such
    objects (`colour` may be `[r, g, b]`), or an object of name: colour. Rows named `void`, `unlabelled` or `ignore` are
    void, and may have a negative `index`. Without `index`, class rows are numbered from 0 in their order.

    Args:
        path: table file.
        reduce_zero_label: value 0 is void, and rows are numbered from 1.

    Raises:
        DataError: unreadable, or not a class table; the row is named.
    """
    rows = _rows_of(path)
    names: list[str] = []
    values: dict[int, int] = {VOID: VOID, 0: VOID} if reduce_zero_label else {VOID: VOID}
    colours: dict[Colour, int] = {}
    palette: list[Colour | None] = []
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of {path}"
        name = str(row.get("name") or "").strip()
        if not name:
            raise DataError(f"{where} names no class")
        colour = _colour_of(row, where)
        is_void = name.lower() in VOID_NAMES
        index = VOID if is_void else len(names)
        value = (
            _number(row["index"], f"{where}: index", 2**16 - 1, least=LEAST_VOID if is_void else 0)
            if row.get("index") not in (None, "")
            else None
        )
        if value == VOID and not is_void:
            raise DataError(
                f"{where} gives {name} the number {VOID}, which is no class: instead of numbers give colours, with the "
                f"columns name,r,g,b and {name},{VOID},{VOID},{VOID}"
            )
        if value is None and not is_void:
            value = index + int(reduce_zero_label)
        if value is not None:
            if values.get(value, index) != index:
                raise DataError(f"{where} gives {name} the number {value}, which is taken")
            values[value] = index
        if colour is not None:
            if colour in colours:
                raise DataError(f"{where} gives {name} the colour {colour}, which another class has")
            colours[colour] = index
        if not is_void:
            names.append(name)
            palette.append(colour)
    if colours and None in palette:
        raise DataError(f"{path} gives some classes a colour, but not {names[palette.index(None)]}")
    drawn = [colour for colour in palette if colour is not None] or usual_palette(len(names))
    # With colours and without indices, masks are colour-coded, whatever the file's mode.
    if colours and not any(row.get("index") not in (None, "") for row in rows):
        values = {}
    return MaskCoding(names, values, colours, drawn)


def _rows_of(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > LARGEST_TABLE:
            raise DataError(f"{path} is too large for a table of classes")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the table of classes {path} cannot be read ({error})") from error
    if path.suffix.lower() == ".json":
        return _rows_of_json(path, text)
    separator = max(",;\t|", key=text.partition("\n")[0].count)
    lines = [
        line
        for line in csv.reader(io.StringIO(text), delimiter=separator)
        if any(cell.strip() for cell in line)
    ]
    if not lines:
        raise DataError(f"the table of classes {path} is empty")
    header = [cell.strip().lower() for cell in lines[0]]
    roles = {
        role: next((header.index(name) for name in names if name in header), None)
        for role, names in _COLUMNS.items()
    }
    if roles["name"] is None:
        raise DataError(f"{path} has no column name: its first line is {', '.join(lines[0])}")
    rows = []
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise DataError(f"row {number} of {path} has {len(line)} cells, its header {len(header)}")
        rows.append({role: line[place].strip() for role, place in roles.items() if place is not None})
    return rows


def _rows_of_json(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the table of classes {path} is no JSON ({error})") from error
    if isinstance(content, dict):
        content = [{"name": name, "colour": colour} for name, colour in content.items()]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(f"{path} is neither a list of classes nor an object of name: colour")
    other = {name: role for role, names in _COLUMNS.items() for name in names}
    return [{other.get(str(key).lower(), str(key)): value for key, value in row.items()} for row in content]


def _colour_of(row: Mapping[str, Any], where: str) -> Colour | None:
    parts = [row.get(part) for part in "rgb"]
    if any(part not in (None, "") for part in parts):
        r, g, b = (_number(part, f"{where}: {name}", 255) for part, name in zip(parts, "rgb", strict=True))
        return r, g, b
    said = row.get("colour")
    if said in (None, ""):
        return None
    if isinstance(said, list | tuple) and len(said) == 3:
        r, g, b = (_number(part, f"{where}: colour", 255) for part in said)
        return r, g, b
    if isinstance(said, str) and (
        found := re.fullmatch(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", said)
    ):
        return int(found[1], 16), int(found[2], 16), int(found[3], 16)
    raise DataError(f"{where} has the colour {said!r}: write #rrggbb, or r, g and b from 0 to 255")


def _number(said: Any, what: str, most: int, least: int = 0) -> int:
    text = str(said).strip()
    if isinstance(said, bool) or not re.fullmatch(r"-?\d{1,10}", text) or not least <= int(text) <= most:
        raise DataError(f"{what} is {said!r}, not a whole number from {least} to {most}")
    return int(text)


def usual_palette(classes: int) -> list[Colour]:
    """The palette of PASCAL VOC: the bits of the class number, distributed over red, green and blue."""
    palette: list[Colour] = []
    for number in range(1, classes + 1):
        colour, rest = [0, 0, 0], number
        for bit in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= ((rest >> channel) & 1) << bit
            rest >>= 3
        palette.append((colour[0], colour[1], colour[2]))
    return palette
