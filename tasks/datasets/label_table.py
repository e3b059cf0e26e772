"""Reads label tables with the usual encodings, separators and headers of spreadsheets.

Inferred settings are reported as notes to the user; ambiguous tables are refused.
"""

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from tasks.datasets.errors import DataError

# Accepted column names in order of preference; compared without case, spaces, "-" and "_".
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "filepath", "relativepath", "slicefilename", "audio", "audiopath", "image",
             "imagepath", "video", "videopath", "clip", "wav", "fname", "img"),
    "label": ("label", "labels", "class", "classname", "category", "tag", "tags", "target", "classid"),
    "split": ("split", "subset", "set", "partition"),
    "fold": ("fold", "folds"),
    "group": ("group", "groupid", "speaker", "speakerid", "subject", "subjectid", "patient", "patientid", "session",
              "recording"),
}  # fmt: skip
SEPARATORS = (",", ";", "\t", "|")
LABEL_SEPARATOR = ";"  # of several labels in a cell
OTHER_SEPARATORS = (",", "|")
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LARGEST_TABLE = 2**30  # bytes


@dataclass(frozen=True)
class Row:
    """One line: a file and its attributes (`None` where not given)."""

    line: int
    path: str
    label: str
    split: str | None = None
    fold: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table, the column name of each role, and notes about what was inferred."""

    rows: Sequence[Row]
    columns: Mapping[str, str]
    notes: Sequence[str] = field(default=())


def read_label_table(table: Path, root: Path, columns: Mapping[str, str | None] | None = None) -> LabelTable:
    """Read a table of labels.

    Encodings: UTF-8, UTF-16 with a byte-order mark, else Windows-1252. Separators: commas, semicolons, tabs or bars.
    Headers are case-insensitive and stripped. Without a header: `path,label` or `path,label,split`, if the first path
    exists.

    Args:
        table: the file.
        root: folder that paths are relative to; used only to detect a table without a header.
        columns: role -> column name for `path`, `label`, `split`, `fold`, `group`, where the names are not the usual
            ones; `None` ignores a role, whatever the column names.

    Raises:
        DataError: no such file, no text, missing columns, or a line with more cells than the header.
    """
    found = open_table(
        table,
        columns or {},
        COLUMNS,
        ("path", "label"),
        lambda header, roles: _without_header(table, root, header, roles),
    )
    optional = ("split", "fold", "group")
    rows = [
        Row(line, cells["path"], cells["label"], *(cells.get(role) or None for role in optional))
        for line, cells in found.rows
    ]
    return LabelTable(rows, found.roles, found.notes)


@dataclass(frozen=True)
class OpenTable:
    """A table whose columns are known.

    Args:
        roles: role -> column name.
        rows: line number, and role -> cell (empty where a line ends early), of each row; a row with more cells than the
            header is a `DataError` when it is reached.
        separator: between cells.
        notes: what was inferred.
    """

    roles: dict[str, str]
    rows: Iterator[tuple[int, dict[str, str]]]
    separator: str
    notes: list[str]


def open_table(
    table: Path,
    wanted: Mapping[str, str | None],
    columns: Mapping[str, tuple[str, ...]],
    needed: Sequence[str],
    without_header: Callable[[list[str], Mapping[str, str]], Sequence[str]],
) -> OpenTable:
    """Decode a table and find its columns.

    Args:
        table: the file.
        wanted, columns: see `roles_of`.
        needed: roles that a header has.
        without_header: the first line's cells and the roles found among them -> the roles of the columns of a table
            without a header; raises `DataError` if it is none.

    Raises:
        DataError: no such file, no text, or missing columns.
    """
    text, encoding = decoded(table)
    separator, lines = separated(table, text)
    if not lines:
        raise DataError(f"the table {table} is empty")
    header = [cell.strip() for cell in lines[0][1]]
    notes = [f"{table.name} is read as {encoding}"] if encoding != "UTF-8" else []
    roles = roles_of(table, header, dict(wanted), columns)
    body = lines[1:]
    if not set(needed) <= set(roles):
        header = list(without_header(header, roles))
        roles, body = {role: role for role in header}, lines
        notes.append(f"{table.name} has no header: its columns are taken as {', '.join(header)}")
    elif named := [f"{name} = {role}" for role, name in roles.items() if name.casefold() != role]:
        notes.append(f"columns of {table.name}: {', '.join(named)}")
    if separator != ",":
        notes.append(f"{table.name} is separated by {spoken(separator)}")
    place = {role: header.index(name) for role, name in roles.items()}
    return OpenTable(roles, _rows(table, body, len(header), place), separator, notes)


def _rows(
    table: Path, lines: Sequence[tuple[int, list[str]]], width: int, place: Mapping[str, int]
) -> Iterator[tuple[int, dict[str, str]]]:
    for line, cells in lines:
        if any(cell.strip() for cell in cells[width:]):
            raise DataError(
                f"line {line} of {table} has {len(cells)} cells, the header {width}: quote what holds a separator"
            )
        yield (
            line,
            {role: cells[index].strip() if index < len(cells) else "" for role, index in place.items()},
        )


def existing(root: Path, name: str) -> Path:
    """The path of a row's file below `root`; backslashes are separators if no file has the literal name."""
    path = root / name
    if "\\" in name and not path.is_file():
        path = root / PureWindowsPath(name).as_posix()
    return path


def identity(path: Path) -> str:
    """One name for each file, however its folder is spelt (relative, absolute, by `..` or a link)."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def refuse_missing_folds(
    table: Path, columns: Mapping[str, str], rows: Sequence[tuple[int, str | None, str | None]]
) -> list[str]:
    """Notes about a column of folds that is not used, since splits are stated.

    Args:
        table: for messages.
        columns: role -> column name.
        rows: line, split and fold of each row (`None` or empty: not stated).

    Raises:
        DataError: a row without a fold.
    """
    if "fold" not in columns:
        return []
    if any(split for _, split, _ in rows):
        return [f"{table.name} states splits, its column {columns['fold']} is not used"]
    lacking = [line for line, _, fold in rows if not fold]
    if lacking:
        raise DataError(f"line {lacking[0]} of {table} lacks a fold")
    return []


def refuse_other_separators(table: Path, cells: Sequence[str]) -> None:
    """Raises `DataError` for labels that seem to be separated by something else than `;`.

    That is so where none holds `;`, and several hold another mark and have a part that occurs in other labels, too.
    """
    if any(LABEL_SEPARATOR in cell for cell in cells):
        return
    for mark in OTHER_SEPARATORS:
        joined = [cell for cell in cells if mark in cell]
        parts = {label: {part.strip() for part in label.split(mark)} for label in set(cells)}
        counts = Counter(part for own in parts.values() for part in own)
        if len(joined) > 1 and any(part and counts[part] > 1 for cell in joined for part in parts[cell]):
            raise DataError(
                f"{table} has labels such as {joined[0]!r}: separate several labels by {LABEL_SEPARATOR!r}, or say "
                f'what separates them, for example \'task.data.label_separator="{mark}"\' (";" for one label each)'
            )


def decoded(table: Path) -> tuple[str, str]:
    """Returns the text of a table and its encoding; raises `DataError`."""
    if not table.is_file():
        raise DataError(f"the table {table} does not exist")
    if table.stat().st_size > LARGEST_TABLE:
        raise DataError(f"{table} has {table.stat().st_size / 2**30:.1f} GB: too large for a table of labels")
    raw = table.read_bytes()
    for mark, encoding in BOMS.items():
        if raw.startswith(mark):
            return _text(table, raw, encoding), "UTF-8" if encoding == "utf-8-sig" else "UTF-16"
    if b"\0" in raw:
        raise DataError(f"{table} is no text (it holds zero bytes); save it as CSV in UTF-8")
    try:
        return raw.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError:
        return _text(table, raw, "cp1252"), "Windows-1252 (save it as UTF-8 if names look wrong)"


def _text(table: Path, raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is no text in UTF-8, UTF-16 or Windows-1252 ({error.reason})") from error


def separated(table: Path, text: str) -> tuple[str, list[tuple[int, list[str]]]]:
    """Returns the separator, and the line number and cells of every non-empty line."""
    first = next(iter(text.splitlines()), "")
    skipped = int(
        first.casefold().startswith("sep=") and len(first.strip()) == len("sep=;")
    )  # Excel's separator hint
    if skipped:
        separator, text = first[4], text[len(first) :].lstrip("\r\n")
    else:
        separator = max(SEPARATORS, key=lambda mark: _cells(first, mark))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    lines = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num + skipped, cells))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num + skipped} of {table} cannot be read ({error})") from error
    return separator, lines


def _cells(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator, skipinitialspace=True), []))
    except csv.Error:
        return 0


def roles_of(
    table: Path,
    header: Sequence[str],
    wanted: Mapping[str, str | None],
    columns: Mapping[str, tuple[str, ...]],
) -> dict[str, str]:
    """Maps each role found to its column name.

    Args:
        table: for messages.
        header: cells of the first line.
        wanted: role -> column name given by the user; `None`: the role is ignored.
        columns: role -> accepted column names (compared without case, spaces, "-" and "_").

    Raises:
        DataError: unknown roles or column names, or a duplicate column.
    """
    unknown = sorted(set(wanted) - set(columns))
    if unknown:
        raise DataError(f"csv_columns takes {', '.join(columns)}, not {', '.join(unknown)}")
    for role, name in wanted.items():
        if name is not None and name not in header:
            raise DataError(f"{table} has no column {name!r} ({role}); it has {', '.join(header)}")
    plain = {_plain(name): name for name in reversed(header)}
    roles = {}
    for role, names in columns.items():
        if role in wanted and wanted[role] is None:
            continue
        found = wanted.get(role) or next((plain[name] for name in names if name in plain), None)
        if found is not None:
            roles[role] = found
    twice = [name for name in roles.values() if header.count(name) > 1]
    if twice:
        raise DataError(f"{table} has two columns {twice[0]!r}")
    return roles


def _without_header(
    table: Path, root: Path, cells: Sequence[str], roles: Mapping[str, str]
) -> tuple[str, ...]:
    """The roles of a table without a header; raises `DataError` if its first row names no file."""
    if len(cells) in (2, 3) and existing(root, cells[0]).is_file():
        return ("path", "label", "split")[: len(cells)]
    absent = " and ".join(role for role in ("path", "label") if role not in roles)
    raise DataError(
        f"{table} lacks a column for the {absent}: it has {', '.join(cells)}; rename them to path,label[,split|fold|"
        "group], or say which they are, for example 'task.data.csv_columns={path: file, label: kind}'"
    )


def _plain(name: str) -> str:
    return name.casefold().translate(str.maketrans("", "", " -_"))


def spoken(separator: str) -> str:
    """The name of a separator."""
    return {";": "semicolons", "\t": "tabs", "|": "bars"}.get(separator, repr(separator))
