"""Reads the text of a table: separator, encoding, and the number formats of spreadsheets.

A cell is a number, missing, or refused with its line: nothing in a numeric column is dropped silently.
"""

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.reading import check_file

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
DECIMALS = (".", ",")
LONGEST_CELL = 1000  # characters
LONGEST_LINE = 2**21  # characters, of the first lines
MOST_COLUMNS = 100_000
LOOKED_AT = 50  # lines inspected to infer the separator
GIB = 2**30


@dataclass(frozen=True)
class Format:
    """Format of a table; `None` is inferred.

    Args:
        separator: column separator: one character.
        decimal: decimal separator, `.` or `,`.
        missing: strings or numbers that denote a missing value, besides empty cells, NA, NaN and null.
        date: date column, or the columns of date and time.
        date_order: first component of dates like `03/04/2021`: day, month or year.
        time_zone: name of the zone, e.g. Europe/Berlin: that of naive times, and the one zoned times are converted to.
        series: column of series ids.
        max_missing: maximum fraction of a series' steps without a row.
        max_gib: maximum memory of a table, in GiB.
    """

    separator: str | None = None
    decimal: str | None = None
    missing: tuple[str, ...] = ()
    date: str | tuple[str, ...] | None = None
    date_order: str | None = None
    time_zone: str | None = None
    series: str | None = None
    max_missing: float = 0.5
    max_gib: float = 2.0

    def __post_init__(self) -> None:
        if self.separator is not None and len(self.separator) != 1:
            raise DataError(f"separator must be one character, not {self.separator!r}")
        if self.decimal not in (None, *DECIMALS):
            raise DataError(f"decimal must be '.' or ',', not {self.decimal!r}")
        if self.date_order not in (None, "day", "month", "year"):
            raise DataError(f"date_order must be day, month or year, not {self.date_order!r}")
        if not 0 <= self.max_missing < 1:
            raise DataError(f"max_missing must be at least 0 and below 1, not {self.max_missing}")
        if self.max_gib <= 0:
            raise DataError(f"max_gib must be above 0, not {self.max_gib}")


@dataclass(frozen=True)
class Text:
    """The cells of a table; unambiguous numeric columns are already parsed.

    Args:
        path: the file.
        frame: its cells; rows are numbered from 0.
        separator: column separator.
        encoding: encoding of the file.
        decimal: decimal separator.
    """

    path: Path
    frame: pd.DataFrame
    separator: str
    encoding: str
    decimal: str = "."

    def line(self, row: int) -> int:
        """The line number of a row in the file, from 1, counting blank lines and line breaks in quotes."""
        with self.path.open(encoding=self.encoding, newline="", errors="replace") as file:
            lines = csv.reader(file, delimiter=self.separator)
            seen = -1
            for cells in lines:
                seen += bool(cells)
                if seen == row + 1:
                    break
            return lines.line_num


def shown(value: object) -> str:
    """A cell or a name, shortened and quoted for messages."""
    text = repr(str(value))
    return text if len(text) <= 42 else f"{text[:40]}…'"


def read_text(path: Path, form: Format) -> Text:
    """Read a CSV file with any separator, encoding and decimal separator.

    Raises:
        ReadError: not a table, or an ambiguous format.
    """
    check_file(path)
    check_memory(path.stat().st_size, form, "the file")
    encoding = _encoding(path)
    separator = form.separator or _separator(path, encoding)
    _check_lines(path, encoding, separator)
    frame, encoding = _load(path, form, separator, encoding, as_text=form.decimal == ",")
    _check_cells(Text(path, frame, separator, encoding))
    text = Text(path, frame, separator, encoding, form.decimal or ".")
    if form.decimal is None and _has_decimal_commas(text):
        frame, _ = _load(path, form, separator, encoding, as_text=True)
        text = Text(path, frame, separator, encoding, ",")
        _refuse_two_signs(text)
    return text


def check_memory(size: float, form: Format, what: str) -> None:
    """Raise a `ReadError` if `size` bytes exceed the limit."""
    if size > form.max_gib * GIB:
        raise ReadError(
            f"{what} would take {size / GIB:,.1f} GiB, more than the limit of {form.max_gib:g}: if that is meant, "
            "say task.data.max_gib=GIB"
        )


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in head:
        raise ReadError("it cannot be read as a CSV table (it holds bytes of value 0: no text)")
    return "utf-8-sig"


def _first_lines(path: Path, encoding: str) -> list[str]:
    lines: list[str] = []
    with path.open(encoding=encoding, newline="", errors="replace") as file:
        while len(lines) < LOOKED_AT and (line := file.readline(LONGEST_LINE)):
            if len(line) == LONGEST_LINE:
                raise ReadError(f"line {len(lines) + 1} has more than {LONGEST_LINE:,} characters")
            lines.append(line)
    return lines


def _fields(lines: Sequence[str], separator: str) -> list[list[str]]:
    try:
        return [cells for cells in csv.reader(lines, delimiter=separator, skipinitialspace=True) if cells]
    except csv.Error as error:
        raise ReadError(f"it cannot be read as a CSV table ({error})") from error


def _separator(path: Path, encoding: str) -> str:
    """The separator that splits all of the first lines into the same, and the largest, number of columns."""
    lines = _first_lines(path, encoding)
    lines = lines[:-1] if len(lines) > 3 else lines  # the last one may be truncated
    found = {}
    for separator in SEPARATORS:
        if lines and separator not in lines[0]:  # a single column, whatever the other lines contain
            continue
        try:
            counts = {len(cells) for cells in _fields(lines, separator)}
        except ReadError:  # a cell is too long: the wrong separator
            continue
        if len(counts) == 1 and max(counts) > 1:
            found[separator] = max(counts)
    return max(found, key=lambda separator: found[separator]) if found else ","


def _check_lines(path: Path, encoding: str, separator: str) -> None:
    """Refuse a table without a header, and lines longer than the header, whose columns would shift."""
    rows = _fields(_first_lines(path, encoding), separator)
    if not rows:
        raise ReadError("it cannot be read as a CSV table (it holds no line)")
    if len(rows[0]) > MOST_COLUMNS:
        raise ReadError(f"it has {len(rows[0]):,} columns; more than {MOST_COLUMNS:,} are not read")
    first = next((cell for cell in rows[0] if cell.strip()), "").strip()
    if re.fullmatch(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*", first):
        raise ReadError(
            f"it has no header: its first line begins with {shown(first)}; write names above the columns"
        )
    for number, cells in enumerate(rows[1:], start=2):
        if any(cell.strip() for cell in cells[len(rows[0]) :]):
            raise ReadError(
                f"line {number} has {len(cells)} cells and the header {len(rows[0])}: where decimal commas are not in "
                "quotes, columns must be separated by something else"
            )


def _load(path: Path, form: Format, separator: str, encoding: str, as_text: bool) -> tuple[pd.DataFrame, str]:
    """Read the frame; also returns its encoding."""
    for name in dict.fromkeys((encoding, "cp1252")):
        how = {
            "sep": separator,
            "skipinitialspace": True,
            "encoding": "utf-8"
            if name == "utf-8-sig"
            else name,  # pandas skips the byte-order mark itself, which is faster
            "index_col": False,
            "dtype": str if as_text else None,
            "na_values": list(form.missing) or None,
        }
        try:
            frame = _parsed(path, how)
        except UnicodeDecodeError:
            continue
        except (OSError, ValueError, OverflowError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            first = str(error).strip().split("\n")[0]
            raise ReadError(f"it cannot be read as a CSV table ({first[:200]})") from error
        break
    else:
        raise ReadError("it cannot be read as a CSV table (it is neither UTF-8, UTF-16 nor Windows-1252)")
    if len(frame) < 3 or len(frame.columns) < 2:
        raise ReadError(
            f"it has {len(frame)} rows and {len(frame.columns)} columns; a series needs at least 3 rows, a "
            "date column and a column of numbers"
        )
    frame.columns = pd.Index([str(column).strip() for column in frame.columns])
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise ReadError(f"two of its columns are named {shown(repeated[0])}")
    return frame, name


def _parsed(path: Path, how: dict[str, Any]) -> pd.DataFrame:
    """Parse a table in chunks, which is nearly twice as fast, unless a column has different types in different
    chunks."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.DtypeWarning)
        try:
            return pd.read_csv(path, **how)
        except pd.errors.DtypeWarning:
            return pd.read_csv(path, low_memory=False, **how)


def is_text(kind: Any) -> bool:
    """Whether a column, or a dtype, is text rather than numeric."""
    return not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind))


def text_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that are text rather than numeric."""
    kinds = {kind: is_text(kind) for kind in set(frame.dtypes)}
    return [str(name) for name, kind in frame.dtypes.items() if kinds[kind]]


def _texts(frame: pd.DataFrame) -> list[str]:
    return [name for name in text_columns(frame) if frame[name].notna().any()]


def _check_cells(text: Text) -> None:
    for name in _texts(text.frame):
        length = text.frame[name].str.len().fillna(0)
        if length.max() > LONGEST_CELL:
            row = int(length.to_numpy().argmax())
            raise ReadError(
                f"a cell of its column {shown(name)} has {int(length.max()):,} characters (row {row + 1} below the "
                f"header); no date and no number is longer than {LONGEST_CELL:,}"
            )


# -- numbers -------------------------------------------------------------------------------------------------


def _pattern(decimal: str) -> str:
    """Pattern of numbers with this decimal separator; thousands separators are the other one, spaces or apostrophes."""
    point, comma = re.escape(decimal), re.escape("," if decimal == "." else ".")
    plain = rf"(?:\d+{point}?\d*|{point}\d+)(?:[eE][+-]?\d+)?"
    return rf"[+-]?(?:{plain}|\d{{1,3}}(?:(?:{comma}\d{{3}})+|(?:[ '’]\d{{3}})+)(?:{point}\d+)?)|[+-]?inf(?:inity)?"


def _tidy(column: pd.Series) -> pd.Series:
    """Strips cells and normalises minus signs and spaces."""
    return (
        column.astype(str)
        .str.strip()
        .str.replace("−", "-")
        .str.replace("[\u00a0\u2009\u202f]", " ", regex=True)
    )


def _fits(cells: pd.Series, decimal: str) -> pd.Series:
    return cells.str.fullmatch(_pattern(decimal), case=False)


def _has_decimal_commas(text: Text) -> bool:
    """Whether the decimal separator is a comma; raises a `ReadError` if 1,234 is ambiguous."""
    doubtful: tuple[str, int] | None = None
    points = False
    for name in _texts(text.frame):
        column = text.frame[name].dropna()
        if re.match(r"\d{4}-\d{2}-\d{2}", str(column.iloc[0])):  # dates, which would be slow to check
            continue
        cells = _tidy(column)
        point, comma = _fits(cells, "."), _fits(cells, ",")
        if (comma & ~point).any():
            return True
        points |= bool((point & ~comma & cells.str.contains(".", regex=False)).any())
        either = point & comma & cells.str.contains("[.,]", regex=True)
        if either.any() and doubtful is None:
            doubtful = name, int(column.index[either.to_numpy().argmax()])
    if doubtful is not None:
        numbers = text.frame.select_dtypes("floating")
        points |= bool(((numbers % 1) > 0).to_numpy().any())
    if doubtful is not None and not points:
        name, row = doubtful
        raise ReadError(
            f"{shown(text.frame[name].iloc[row])} in column {shown(name)}, line {text.line(row)}, may have thousands "
            'set apart or decimals: say task.data.decimal=. or task.data.decimal=","'
        )
    return False


def _refuse_two_signs(text: Text) -> None:
    """Raise a `ReadError` if some numbers have a decimal comma and others a decimal point."""
    for name in _texts(text.frame):
        column = text.frame[name].dropna()
        cells = _tidy(column)
        wrong = _fits(cells, ".") & ~_fits(cells, ",")
        if wrong.any():
            row = int(column.index[wrong.to_numpy().argmax()])
            raise ReadError(
                f"it has decimal commas and, in column {shown(name)}, line {text.line(row)}, "
                f"{shown(column.loc[row])}: write all numbers alike, or say task.data.decimal=. "
                'or task.data.decimal=","'
            )


def to_numbers(text: Text, name: str) -> pd.Series | None:
    """A column as float64, with NaN for missing cells; `None` if no cell is a number.

    Raises:
        ReadError: some cells are numbers and others neither numbers nor missing; line and value are named.
    """
    column = text.frame[name]
    if not is_text(column):
        return column.astype(np.float64)
    cells = _tidy(column.dropna())
    fits = _fits(cells, text.decimal)
    if not fits.any():
        return None
    if not fits.all():
        row = int(cells.index[(~fits).to_numpy().argmax()])
        raise ReadError(
            f"{int((~fits).sum()):,} cells of its column {shown(name)} are no numbers, the first in line "
            f"{text.line(row)}: {shown(column.loc[row])}; if they mean missing, say "
            f"'task.data.missing=[{_option(column.loc[row])}]', or leave the column out with task.data.target"
        )
    cells = cells.str.replace("[ '’]", "", regex=True).str.replace("," if text.decimal == "." else ".", "")
    numbers = pd.Series(np.nan, index=column.index, dtype=np.float64)
    numbers[cells.index] = cells.str.replace(",", ".").astype(np.float64)
    return numbers


def _option(value: object) -> str:
    """A value in the syntax of a command line list."""
    text = str(value)[:40]
    return text if re.fullmatch(r"[\w.-]+", text) else f'"{text}"'
