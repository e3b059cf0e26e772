"""Tables of labels, as people write them: any spreadsheet's encoding, separator and headers.

What had to be inferred is kept as notes for the user; what cannot be told safely is refused.
"""

import codecs
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from tasks.datasets.errors import DataError

# What a column is called, in order of preference; compared without case, spaces, "-" and "_".
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
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LARGEST_TABLE = 2**30  # bytes


@dataclass(frozen=True)
class Row:
    """One line: the file it names and what it says of it (`None`: nothing)."""

    line: int
    path: str
    label: str
    split: str | None = None
    fold: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table, which roles its columns have, and what was inferred."""

    rows: Sequence[Row]
    columns: Mapping[str, str]
    notes: Sequence[str] = field(default=())


def read_label_table(table: Path, root: Path, columns: Mapping[str, str | None] | None = None) -> LabelTable:
    """Read a table of labels.

    UTF-8, UTF-16 with a mark, or else Windows-1252; separated by commas, semicolons, tabs or bars; headers in any
    case, with spaces around. Without headers: `path,label` or `path,label,split`, if the first path exists.

    Args:
        table: the file.
        root: the folder that paths start from; only looked at to tell a table without headers.
        columns: which column is `path`, `label`, `split`, `fold`, `group`, where their names do not tell;
            `None` for a role: no column has it, whatever its name.

    Raises:
        DataError: no such file, no text, no such columns, or a line with more or fewer cells than the header.
    """
    text, encoding = decoded(table)
    separator, lines = separated(table, text)
    if not lines:
        raise DataError(f"the table {table} is empty")
    header = [cell.strip() for cell in lines[0][1]]
    notes = [f"{table.name} is read as {encoding}"] if encoding != "UTF-8" else []
    roles = roles_of(table, header, dict(columns or {}), COLUMNS)
    body = lines[1:]
    if not {"path", "label"} <= set(roles):
        roles, body = _without_header(table, root, header, roles, lines), lines
        notes.append(f"{table.name} has no header: its columns are taken as {', '.join(roles)}")
        header = list(roles)
    elif named := [f"{name} = {role}" for role, name in roles.items() if name.casefold() != role]:
        notes.append(f"columns of {table.name}: {', '.join(named)}")
    if separator != ",":
        notes.append(f"{table.name} is separated by {spoken(separator)}")
    place = {role: header.index(name) for role, name in roles.items()}
    rows = [_row(table, line, cells, len(header), place) for line, cells in body]
    return LabelTable(rows, roles, notes)


def existing(root: Path, name: str) -> Path:
    """The file that a row names, below `root`; Windows' backslashes are read where the file is found by them."""
    path = root / name
    if "\\" in name and not path.is_file():
        path = root / PureWindowsPath(name).as_posix()
    return path


def decoded(table: Path) -> tuple[str, str]:
    """The text of a table, and the encoding that it was read in; raises `DataError`."""
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
    """The separator, and the cells of every line that has any, with its number."""
    first = next(iter(text.splitlines()), "")
    skipped = int(
        first.casefold().startswith("sep=") and len(first.strip()) == len("sep=;")
    )  # a hint of Excel's
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
    """The header's name of every role that is found.

    Args:
        table: named in messages.
        header: its first line.
        wanted: the header's name of some roles; `None`: no column has it.
        columns: what each role's column may be called (compared without case, spaces, "-" and "_").

    Raises:
        DataError: roles or names that there are not, or a name that stands twice.
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
    table: Path,
    root: Path,
    cells: Sequence[str],
    roles: Mapping[str, str],
    lines: Sequence[tuple[int, list[str]]],
) -> dict[str, str]:
    """The roles of a table whose first line is a row already; else the error that it lacks columns."""
    if len(cells) in (2, 3) and existing(root, cells[0]).is_file():
        return {role: role for role in ("path", "label", "split")[: len(cells)]}
    absent = " and ".join(role for role in ("path", "label") if role not in roles)
    raise DataError(
        f"{table} lacks a column for the {absent}: it has {', '.join(cells)}; rename them to path,label[,split|fold|"
        "group], or say which they are, for example 'task.data.csv_columns={path: file, label: kind}'"
    )


def _row(table: Path, line: int, cells: Sequence[str], width: int, place: Mapping[str, int]) -> Row:
    if len(cells) > width and any(cell.strip() for cell in cells[width:]):
        raise DataError(
            f"line {line} of {table} has {len(cells)} cells, the header {width}: quote what holds a separator"
        )
    own = {role: cells[index].strip() if index < len(cells) else "" for role, index in place.items()}
    return Row(
        line, own["path"], own["label"], *(own.get(role) or None for role in ("split", "fold", "group"))
    )


def _plain(name: str) -> str:
    return name.casefold().translate(str.maketrans("", "", " -_"))


def spoken(separator: str) -> str:
    """What a separator is called."""
    return {";": "semicolons", "\t": "tabs", "|": "bars"}.get(separator, repr(separator))
