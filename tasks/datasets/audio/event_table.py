"""Reads tables of sound events (path, onset, offset, label) with the usual encodings and headers of spreadsheets.

Inferred settings are reported as notes to the user; impossible rows are refused with their line numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.base import DataError, ReadError
from tasks.datasets.label_table import COLUMNS as OF_LABELS
from tasks.datasets.label_table import existing, identity, open_table, refuse_missing_folds
from tasks.datasets.labelled_files import Entry
from tasks.datasets.split_folders import SPLIT_NAMES

# Accepted column names in order of preference; compared without case, spaces, "-" and "_".
COLUMNS: dict[str, tuple[str, ...]] = {
    "path": (*OF_LABELS["path"], "audiofile", "audiofilename", "soundfile", "beginfile"),
    "onset": ("onset", "start", "begin", "starttime", "begintime", "onsettime", "onset(s)", "start(s)", "begin(s)",
              "starttime(s)", "begintime(s)", "onsetseconds", "startseconds"),
    "offset": ("offset", "end", "stop", "endtime", "stoptime", "offsettime", "offset(s)", "end(s)", "stop(s)",
               "endtime(s)", "offsetseconds", "endseconds"),
    "label": ("eventlabel", "label", "event", "class", "classname", "eventclass", "soundclass", "species", "category",
              "tag", "annotation"),
    **{role: OF_LABELS[role] for role in ("split", "fold", "group")},
}  # fmt: skip
NEEDED = ("path", "onset", "offset", "label")
SHOWN = 5  # bad rows listed in a message
SLACK = 0.05  # seconds by which an event may exceed the end of its recording; it is clipped there
NO_NUMBER = ("", "nan", "na", "none", "null", "-")


@dataclass
class Recording:
    """A file, its events and, if given, its split, fold and group."""

    entry: Entry
    seconds: float
    events: list[tuple[float, float, str]] = field(default_factory=list)  # onset, offset, label


@dataclass(frozen=True)
class EventTable:
    """The recordings of a table, by path, and notes about what was inferred."""

    recordings: Sequence[Recording]
    notes: Sequence[str]


@dataclass(frozen=True)
class _Row:
    line: int
    cells: Mapping[str, str]

    def __getitem__(self, role: str) -> str:
        return self.cells.get(role, "")


def read_event_table(
    table: Path,
    root: Path,
    length_of: Callable[[Path], float | None],
    columns: Mapping[str, str | None] | None = None,
) -> EventTable:
    """Read an event table: one event per row; a row with only a path is a file without events.

    Encodings: UTF-8, UTF-16 with a byte-order mark, else Windows-1252. Separators: commas, semicolons, tabs or bars.
    Headers are case-insensitive. Without a header: `path,onset,offset,label`, if the first path exists. Decimal commas
    are accepted if the separator is not a comma.

    Args:
        table: the file.
        root: folder that paths are relative to.
        length_of: duration of a file in seconds; raises `ReadError`.
        columns: role -> column name for `path`, `onset`, `offset`, `label`, `split`, `fold` or `group`, where the names
            are not the usual ones; `None` ignores a role.

    Raises:
        DataError: no such file or columns, or impossible rows; the first ones are listed by line.
    """
    found = open_table(
        table,
        columns or {},
        COLUMNS,
        NEEDED,
        lambda header, roles: _without_header(table, root, header, roles),
    )
    rows = [_Row(line, cells) for line, cells in found.rows]
    notes = found.notes + refuse_missing_folds(
        table, found.roles, [(row.line, row["split"], row["fold"]) for row in rows]
    )
    reader = _Reader(root, length_of, decimal_comma=found.separator != ",")
    for row in rows:
        reader.take(row)
    if reader.problems:
        more = len(reader.problems) - SHOWN
        shown = "; ".join(reader.problems[:SHOWN])
        raise DataError(f"{table}: {shown}{f'; and {more:,} more rows' if more > 0 else ''}")
    return EventTable(list(reader.recordings.values()), [*notes, *reader.notes(table.name)])


def _without_header(
    table: Path, root: Path, cells: Sequence[str], roles: Mapping[str, str]
) -> tuple[str, ...]:
    """The roles of a table without a header; raises `DataError` if its first row names no file."""
    if len(cells) == len(NEEDED) and existing(root, cells[0]).is_file():
        return NEEDED
    absent = " and ".join(role for role in NEEDED if role not in roles)
    raise DataError(
        f"{table} lacks a column for the {absent}: it has {', '.join(cells)}; rename them to "
        "path,onset,offset,label[,split|fold|group], or say which they are, for example "
        "'task.data.csv_columns={onset: from, offset: to}'"
    )


class _Reader:
    """Processes rows in sequence and collects their errors."""

    def __init__(self, root: Path, length_of: Callable[[Path], float | None], decimal_comma: bool) -> None:
        self.root = root
        self.length_of = length_of
        self.decimal_comma = decimal_comma
        self.recordings: dict[str, Recording] = {}
        self.unreadable: set[str] = set()
        self.problems: list[str] = []
        self.cut = 0

    def notes(self, name: str) -> list[str]:
        return (
            [f"{self.cut:,} events of {name} end up to {SLACK} s behind their recording and are cut"]
            if self.cut
            else []
        )

    def take(self, row: _Row) -> None:
        try:
            recording = self._recording(row)
            if recording is not None and any(row[role] for role in ("onset", "offset", "label")):
                recording.events.append(self._event(row, recording))
        except ValueError as error:
            self.problems.append(f"line {row.line} {error}")

    def _recording(self, row: _Row) -> Recording | None:
        """The recording of a row; `None` if its file cannot be read, which is reported once."""
        if not row["path"]:
            raise ValueError("lacks a path")
        split = row["split"].lower()
        if split and split not in SPLIT_NAMES:
            raise ValueError(f"has the split {row['split']!r}; it takes train, val or test")
        path = existing(self.root, row["path"])
        place = identity(path)
        if place in self.unreadable:
            return None
        entry = Entry(path, (), SPLIT_NAMES.get(split), row["group"] or None, row["fold"] or None)
        if place not in self.recordings:
            try:
                self.recordings[place] = Recording(entry, self._seconds(path))
            except ValueError:
                self.unreadable.add(place)
                raise
        first = self.recordings[place].entry
        for what in ("split", "fold", "group"):
            values = getattr(first, what), getattr(entry, what)
            if values[0] != values[1]:
                raise ValueError(f"puts {path} into the {what} {values[1]}, a line before into {values[0]}")
        return self.recordings[place]

    def _seconds(self, path: Path) -> float:
        if not path.is_file():
            raise ValueError(f"names {path}, which does not exist")
        try:
            seconds = self.length_of(path)
        except ReadError as error:
            raise ValueError(f"names {path}: {error}") from error
        if not seconds:
            raise ValueError(f"names {path}, which does not say how long it is: save it as WAV or FLAC")
        return seconds

    def _event(self, row: _Row, recording: Recording) -> tuple[float, float, str]:
        onset, offset = self._number(row, "onset"), self._number(row, "offset")
        if not row["label"]:
            raise ValueError("has times, but no label")
        if onset < 0:
            raise ValueError(f"begins at {onset:g} s, before its recording")
        if offset <= onset:
            raise ValueError(f"ends at {offset:g} s, not after it begins at {onset:g} s")
        if offset > recording.seconds + SLACK or onset >= recording.seconds:
            raise ValueError(
                f"lasts from {onset:g} to {offset:g} s, but {recording.entry.path.name} ends at "
                f"{recording.seconds:.6g} s"
            )
        if offset > recording.seconds:
            self.cut += 1
        return onset, min(offset, recording.seconds), row["label"]

    def _number(self, row: _Row, role: str) -> float:
        text = row[role]
        if text.casefold() in NO_NUMBER:
            raise ValueError(f"has no {role}")
        try:
            value = float(text.replace(",", ".") if self.decimal_comma else text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"has the {role} {text!r}, which is no number of seconds")
        return value


def merged(
    events: Sequence[tuple[float, float, str]], classes: Mapping[str, int]
) -> tuple[NDArray[np.float64], int]:
    """Events as an array (E, 3) by onset, with overlapping events of a class merged; and the number of merged events.

    >>> merged([(0, 2, "a"), (1, 3, "a"), (1, 2, "b")], {"a": 0, "b": 1})[0].tolist()
    [[0.0, 3.0, 0.0], [1.0, 2.0, 1.0]]
    """
    found: list[tuple[float, float, float]] = []
    last: dict[str, int] = {}  # index of each class's last event
    gone = 0
    for onset, offset, label in sorted(events):
        place = last.get(label)
        if place is not None and onset < found[place][1]:
            found[place] = found[place][0], max(found[place][1], offset), found[place][2]
            gone += 1
        else:
            last[label] = len(found)
            found.append((onset, offset, float(classes[label])))
    return np.array(found, dtype=np.float64).reshape(-1, 3), gone
