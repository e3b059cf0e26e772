"""Text files with one row per point: XYZ, TXT, ASC, CSV, PTS and similar.

A file may begin with a line of column names (CloudCompare writes ``//X Y Z``) and a line with the number of points,
in either order; values are separated by blanks, commas, semicolons or tabs; the decimal separator may be a comma.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from modalities.point_columns import NORMALS
from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import BYTES_PER_POINT, Cloud, Doubles, ReadOptions, check_count
from tasks.datasets.point_cloud.formats.columns import COLORS, XYZ, from_table, known_name
from tasks.datasets.point_cloud.formats.numbers import is_number, parsed_fast, shown, wrong_line

# Columns of formats without a header, by extension and number of columns.
ORDERS: dict[tuple[str, int], tuple[str, ...]] = {
    (".pts", 4): (*XYZ, "intensity"),
    (".pts", 7): (*XYZ, "intensity", *COLORS),
    (".xyzn", 6): (*XYZ, *NORMALS),
    (".xyzrgb", 6): (*XYZ, *COLORS),
}
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
COMMENTS = ("#", "//", ";")
HEAD = 50  # maximum lines before the first point
LONGEST = 65536  # characters of a line
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Layout:
    """Layout of a file.

    Args:
        skip: lines before the first point.
        names: column names, if given.
        count: number of points, if given.
        separator: ``None``: whitespace.
        decimal: decimal separator.
        trailing: whether lines end with a separator.
    """

    skip: int
    names: tuple[str, ...] | None
    count: int | None
    separator: str | None
    decimal: str
    trailing: bool

    def split(self, line: str) -> list[str]:
        """The words of a line."""
        line = line.strip()
        line = line[:-1] if self.trailing else line
        return [word.strip() for word in line.split(self.separator)]

    def __str__(self) -> str:
        name = {None: "blanks", ",": "commas", ";": "semicolons", "\t": "tabs"}[self.separator]
        return f"separated by {name}{', with decimal commas' if self.decimal == ',' else ''}"


def read_text(path: Path, options: ReadOptions) -> Cloud:
    layout = layout_of(path, options)
    if layout.count is not None:
        check_count(layout.count, options)
    rows = _rows(path, layout, options)
    check_count(len(rows), options)
    if layout.count not in (None, len(rows)):
        raise ReadError(f"it breaks off: it announces {layout.count:,} points and holds {len(rows):,}")
    names = layout.names or ORDERS.get((path.suffix.lower(), rows.shape[1]))
    if names is not None and options.order is None and len(names) != rows.shape[1]:
        raise ReadError(
            f"its header names {len(names)} columns ({', '.join(names)[:80]}), its points have "
            f"{rows.shape[1]}: task.data.file_columns=[x,y,z,…] names them"
        )
    cloud = from_table(rows, options, names)
    how = "as its header says" if layout.names else "names of columns inferred" if rows.shape[1] > 3 else ""
    cloud.remarks += [f"{layout}{', ' if how else ''}{how}"]
    return cloud


def layout_of(path: Path, options: ReadOptions) -> Layout:
    """Detect the layout of a file from its first lines.

    Raises:
        ReadError: none of them is a point.
    """
    names: tuple[str, ...] | None = None
    count: int | None = None
    with _opened(path) as file:
        for number, line in enumerate(islice(_short_lines(file), HEAD)):
            text = line.strip()
            layout = Layout(number, names, count, *_signs(text))
            words = layout.split(text)
            if len(words) > 1 and all(is_number(word.replace(layout.decimal, ".")) for word in words):
                return layout
            if words[0].isdigit() and len(words) == 1 and count is None:
                count = int(words[0][:18])
            elif text:
                names = _names(text.lstrip("#/; ")) or names
                if names is None and options.order is None and not text.startswith(COMMENTS):
                    raise ReadError(
                        f"it cannot be read as a point cloud (line {number + 1} is {shown(text)}, neither a "
                        "point nor the names of columns, x, y and z among them)"
                    )
    raise ReadError("it cannot be read as a point cloud (it holds no row of numbers)")


def _names(text: str) -> tuple[str, ...] | None:
    """The column names of a header; ``None`` if it is a comment."""
    separator = next((sign for sign in ";,\t" if sign in text), None)
    words = tuple(word.strip(" \"'") for word in text.split(separator) if word.strip(" \"'"))
    return words if set(XYZ) <= {known_name(word) for word in words} else None


def _signs(line: str) -> tuple[str | None, str, bool]:
    """Separator, decimal separator, and whether a separator ends the line."""
    for separator in (";", "\t"):
        if separator in line:
            return separator, "," if "," in line and "." not in line else ".", line.endswith(separator)
    words = line.split()
    if len(words) > 1 and "," in line and all(is_number(w) or DECIMAL_COMMA.fullmatch(w) for w in words):
        return None, ",", False
    return ("," if "," in line else None), ".", line.endswith(",")


def _rows(path: Path, layout: Layout, options: ReadOptions) -> Doubles:
    if path.stat().st_size < BYTES_PER_POINT * options.max_points:
        try:
            return _rows_fast(path, layout)
        except ValueError:
            pass  # aligned columns, comments between points, or an error to be located
    with _opened(path) as file:
        lines: Iterable[str] = islice(file, layout.skip, None)
        if layout.decimal == "," or layout.trailing:
            lines = _tidied(lines, layout)
        try:
            return np.loadtxt(
                lines, np.float64, ndmin=2, delimiter=layout.separator, max_rows=options.max_points + 1
            )
        except ValueError as error:
            file.seek(0)
            again = _tidied((line for line in islice(file, layout.skip, None) if line.strip()), layout)
            raise ReadError(wrong_line(again, "point", layout.separator)) from error


def _rows_fast(path: Path, layout: Layout) -> Doubles:
    """Fast path for uniform lines; raises `ValueError` for others."""
    text = path.read_bytes()
    if text.startswith(codecs.BOM_UTF8) or b"\0" in text[:4]:
        raise ValueError("not plain")
    place = 0
    for _ in range(layout.skip):
        place = text.index(b"\n", place) + 1
    if layout.decimal == ",":
        text = text.replace(b",", b".")
    if place:
        text = text[place:]
    first = text[: text.find(b"\n") + 1 or None].decode()
    if layout.trailing:
        raise ValueError("not plain")
    return parsed_fast(text, len(layout.split(first)), layout.separator or " ")


def _tidied(lines: Iterable[str], layout: Layout) -> Iterator[str]:
    """Lines with decimal points, without trailing separators."""
    for line in lines:
        text = line.replace(",", ".") if layout.decimal == "," else line
        yield text.strip().removesuffix(layout.separator or "\n") if layout.trailing else text


def _short_lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(LONGEST):
        if len(line) == LONGEST:
            raise ReadError(
                f"it cannot be read as a point cloud (a line has more than {LONGEST:,} characters)"
            )
        yield line


def _opened(path: Path) -> TextIO:
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
    return path.open(encoding=encoding, errors="replace")
