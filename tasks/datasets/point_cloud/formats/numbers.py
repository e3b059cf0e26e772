"""Parses tables of numbers from text, with errors that name the invalid line."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import overload

import numpy as np

from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import Doubles, Indices, fans
from tasks.datasets.reading import require

MANY = 500  # lines from which Arrow is faster than NumPy
SHOWN = 40  # characters of a wrong line


class Lines(Sequence[str]):
    """The non-empty lines of a text file, split lazily on access.

    Args:
        data: the text.
    """

    def __init__(self, data: bytes) -> None:
        data = data if data.endswith(b"\n") else data + b"\n"
        ends = _line_ends(data)
        starts = np.append(-1, ends[:-1]) + 1
        first = np.frombuffer(data, np.uint8)[starts]
        if b"\r" in data or ((first <= ord(" ")) & (first != 0)).any():
            data = b"".join(line + b"\n" for line in data.splitlines() if line.strip())
            ends = _line_ends(data)
        self._set(data, ends)

    def _set(self, data: bytes, ends: Indices) -> None:
        self.data, self.ends = data, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> "Lines": ...

    def __getitem__(self, place: int | slice) -> "str | Lines":
        if isinstance(place, int):
            if not -len(self) <= place < len(self):
                raise IndexError(place)
            place %= len(self)
            return self.data[self._start(place) : self.ends[place]].decode("ascii", errors="replace")
        first, behind, step = place.indices(len(self))
        assert step == 1
        behind = max(first, behind)
        start = self._start(first)
        part = Lines.__new__(Lines)
        part._set(self.data[start : self._start(behind)], self.ends[first:behind] - start)
        return part

    def _start(self, place: int) -> int:
        """Offset of a line; after the last one, the end of the text."""
        return int(self.ends[place - 1]) + 1 if place else 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.data.decode("ascii", errors="replace").split("\n")[:-1])


def _line_ends(data: bytes) -> Indices:
    return np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))


def table(lines: Sequence[str], what: str, delimiter: str | None = None) -> Doubles:
    """Parses lines with the same number of values each, (lines, columns), float64.

    Args:
        lines: lines without comments and empty lines.
        what: what a line describes, for messages: ``vertex``.
        delimiter: separator of the numbers; ``None``: whitespace.

    Raises:
        ReadError: names the first invalid line.
    """
    if not lines:
        return np.zeros((0, 0))
    try:
        return _parsed(lines, delimiter)
    except ValueError as error:
        raise ReadError(wrong_line(lines, what, delimiter)) from error


def _parsed(lines: Sequence[str], delimiter: str | None = None) -> Doubles:
    """Like `table`, but raises NumPy's error."""
    if len(lines) >= MANY:
        text = lines.data if isinstance(lines, Lines) else "\n".join(lines).encode()
        try:
            return parsed_fast(text, len(lines[0].split(delimiter)), delimiter or " ")
        except ValueError:  # e.g. two blanks between numbers
            pass
    return np.loadtxt(iter(lines), dtype=np.float64, ndmin=2, comments=None, delimiter=delimiter)


def parsed_fast(text: bytes, width: int, delimiter: str) -> Doubles:
    """Parses lines of ``width`` numbers separated by exactly one delimiter, (lines, width), float64.

    Raises:
        ValueError: any other content.
    """
    arrow = require("pyarrow", "text files of points")
    csv = require("pyarrow.csv", "text files of points")
    names = [str(column) for column in range(width)]
    rows = csv.read_csv(
        arrow.BufferReader(text),
        csv.ReadOptions(use_threads=False, column_names=names),
        csv.ParseOptions(delimiter=delimiter, quote_char=False),
        csv.ConvertOptions(column_types=dict.fromkeys(names, arrow.float64()), null_values=[]),
    )
    return np.column_stack([column.to_numpy() for column in rows.columns])


def wrong_line(lines: Iterable[str], what: str, delimiter: str | None = None) -> str:
    """Message about why lines are not a table of numbers."""
    width = 0
    for number, line in enumerate(lines, start=1):
        words = line.split(delimiter)
        width = width or len(words)
        for word in words:
            if not is_number(word):
                return (
                    f"it cannot be read as a point cloud ({what} {number:,} holds {shown(word)}, no number)"
                )
        if len(words) != width:
            return (
                f"it cannot be read as a point cloud ({what} {number:,} has {len(words)} values, "
                f"those before {width})"
            )
    return "it cannot be read as a point cloud (it holds something else than numbers)"


def is_number(word: str) -> bool:
    """Whether a word is a number (without Python's underscores)."""
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word


def shown(text: str) -> str:
    """A word of a file, quoted for messages."""
    return repr(text.strip()[:SHOWN])


def polygons(lines: Sequence[str], what: str = "face") -> tuple[Indices, Indices, Doubles | None]:
    """Parses lines ``K index … index [more]`` to triangles (T, 3), the line of each, (T,), and the values after the
    indices of every line, (lines, 3 or 4), or ``None`` if there are not 3 or 4.

    Raises:
        ReadError: an invalid line, or fewer indices than declared.
    """
    groups: list[tuple[Indices, Indices]] = []
    behind: list[tuple[Indices, Doubles]] = []
    for numbers, rows in uniform(lines, what):
        sizes = rows[:, 0]
        for size in sizes[:1] if (sizes == sizes[0]).all() else np.unique(sizes):
            here = sizes == size
            if not 0 <= size < 2**31 or size != int(size) or 1 + size > rows.shape[1]:
                place = int(numbers[here][0]) + 1
                raise ReadError(
                    f"it breaks off: {what} {place:,} announces {size:g} corners and has {rows.shape[1] - 1}"
                )
            groups.append((numbers[here], as_indices(rows[here, 1 : 1 + int(size)], what)))
            behind.append((numbers[here], rows[here, 1 + int(size) :]))
    triangles, owner = fans(groups)
    return triangles, owner, _joined(behind, len(lines))


def as_indices(corners: Doubles, what: str = "face") -> Indices:
    """Converts to integers, with huge values clipped; raises `ReadError` for fractions."""
    corners = corners.clip(-(2.0**53), 2.0**53)
    indices = corners.astype(np.int64)
    if not (corners == indices).all():
        raise ReadError(f"it cannot be read as a point cloud (a {what} has indices with fractions)")
    return indices


def uniform(lines: Sequence[str], what: str = "face") -> Iterator[tuple[Indices, Doubles]]:
    """Groups lines by their number of words; yields the line indices and the values of each group.

    Raises:
        ReadError: a line contains anything but finite numbers.
    """
    for numbers, rows in _groups(lines, what):
        if rows.size and not np.isfinite([rows.min(), rows.max()]).all():
            raise ReadError(f"it cannot be read as a point cloud (a {what} has values that are not finite)")
        yield numbers, rows


def _groups(lines: Sequence[str], what: str) -> list[tuple[Indices, Doubles]]:
    if not lines:
        return []
    try:
        return [(np.arange(len(lines)), _parsed(lines))]
    except ValueError:
        lines = list(lines)
        widths = [len(line.split()) for line in lines]
    order = sorted(range(len(lines)), key=widths.__getitem__)
    found: list[tuple[Indices, Doubles]] = []
    for _, group in groupby(order, key=widths.__getitem__):
        numbers = list(group)
        try:
            rows = _parsed([lines[number] for number in numbers])
        except ValueError as error:
            word = next(word for n in numbers for word in lines[n].split() if not is_number(word))
            raise ReadError(
                f"it cannot be read as a point cloud (a {what} holds {shown(word)}, no number)"
            ) from error
        found.append((np.asarray(numbers), rows))
    return found


def _joined(behind: list[tuple[Indices, Doubles]], count: int) -> Doubles | None:
    widths = {rows.shape[1] for _, rows in behind}
    if len(widths) != 1 or not widths <= {3, 4}:
        return None
    whole = np.zeros((count, widths.pop()))
    for numbers, rows in behind:
        whole[numbers] = rows
    return whole
