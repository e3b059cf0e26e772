r"""Labels and splits of any collection of files: a folder per class, a table, or labels in the file names.

A source for files of one kind (sounds, pictures, …) asks `LabelledFiles` for its items and adds the reading.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.base import DataModule
from tasks.datasets.class_names import not_there, refuse_unknown
from tasks.datasets.errors import DataError
from tasks.datasets.items import Item, Whole
from tasks.datasets.label_table import LabelTable, Row, existing, read_label_table
from tasks.datasets.listing import Listing, is_hidden, list_files, sorted_out
from tasks.datasets.splits import FOLDS_BY, fold_parts, stable_fraction
from tasks.datasets.targets import ClassTargets, Kind

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
SPLIT_FOLDER = re.compile(r"[ _-]?(set|split|data)$")  # what may stand behind the name of a split's folder


@dataclass(frozen=True)
class Entry:
    """A file found: its labels, the split or fold it was given (`None`: by name) and what it must not be parted
    from."""

    path: Path
    labels: tuple[str, ...]
    split: str | None = None
    group: str | None = None
    fold: str | None = None


def by_parts(path: Path) -> tuple[str, ...]:
    """Order of files: folder by folder."""
    return path.parts


class LabelSettings(TypedDict, total=False):
    """Arguments of `LabelledFiles` that every collection of files takes."""

    csv: str | None
    csv_columns: Mapping[str, str | None] | None
    label_from: str | None
    test_from: str | None
    val_from: str | None
    test_fraction: float
    val_fraction: float
    fold: int | str | None
    folds: int
    folds_by: str


def label_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of `LabelledFiles` among those of a source, and the others."""
    own = LabelSettings.__annotations__
    return (
        {key: value for key, value in settings.items() if key in own},
        {key: value for key, value in settings.items() if key not in own},
    )


class LabelledFiles:
    """Finds files with their labels and splits.

    Where a split is not given, it is drawn from a hash of each file's path below the folder (or of its
    ``group``), so it is the same on every machine and a new file never moves another.

    Folds go through the files of each class in the order of the numbers in their names: ``number`` deals them
    out in turn, ``block`` cuts the order into consecutive stretches. Where neighbouring files were cut from
    one recording, dealing puts the same scene into training and test; blocks mostly do not, and their figure
    is the more honest one. A table's column of folds is taken as it is.

    Args:
        extensions: endings of the files wanted, in small letters.
        csv: a table with the columns ``path`` (below the folder), ``label`` and, if you like, ``split`` or ``fold``,
            and ``group`` (`tasks.datasets.label_table`).
        csv_columns: which of its columns is ``path``, ``label``, ``split``, ``fold`` or ``group``, where their names do
            not tell.
        multilabel: a file may have several labels, in a row each or separated by ``;``; only with ``csv``.
        label_from: regular expression searched in a file's name, with a group ``(?P<label>...)`` and, if you
            like, ``(?P<group>...)``: files of one group (speaker, session) are then never split up.
        test_from, val_from: regular expressions searched in a file's path below the folder; what they find
            is the test or validation split.
        test_fraction, val_fraction: fractions of the files, where the splits are not given otherwise;
            ``val_fraction`` is also the validation part of what a fold leaves.
        fold: the fold to test on: 1 to ``folds``, or a value of the table's column; ``None``: no folds, or the first
            of a table's.
        folds: how many, where no table says it.
        folds_by: ``number`` or ``block``.
        order: sorts the files of a class.

    Raises:
        DataError: settings that contradict each other.
    """

    def __init__(
        self,
        extensions: tuple[str, ...],
        *,
        csv: str | None = None,
        csv_columns: Mapping[str, str | None] | None = None,
        multilabel: bool = False,
        label_from: str | None = None,
        test_from: str | None = None,
        val_from: str | None = None,
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
        fold: int | str | None = None,
        folds: int = 5,
        folds_by: str = "number",
        order: Callable[[Path], Any] = by_parts,
    ) -> None:
        if csv is not None and label_from is not None:
            raise DataError("labels come from csv or from label_from, not from both")
        if multilabel and csv is None:
            raise DataError("multilabel=true needs csv=FILE, a table with labels separated by ';'")
        if csv_columns is not None and csv is None:
            raise DataError("csv_columns needs csv=FILE, the table that has them")
        if folds < 2 or folds_by not in FOLDS_BY:
            raise DataError(f"folds must be at least 2 and folds_by {' or '.join(FOLDS_BY)}")
        if min(test_fraction, val_fraction) < 0 or test_fraction + val_fraction >= 1:
            raise DataError("test_fraction and val_fraction must leave something to train on")
        self.extensions = extensions
        self.notes: list[str] = []  # what was inferred, a sentence each
        self.listing = Listing()
        self.csv = csv
        self.csv_columns = csv_columns
        self.fold = fold
        self.folds = folds
        self.folds_by = folds_by
        self.order = order
        self.multilabel = multilabel
        self.label_from = _pattern("label_from", label_from)
        self.test_from = _pattern("test_from", test_from)
        self.val_from = _pattern("val_from", val_from)
        self.test_fraction = test_fraction
        self.val_fraction = val_fraction
        if self.label_from and "label" not in self.label_from.groupindex:
            raise DataError(
                f"label_from={label_from} needs a group named label, for example '^(?P<label>[a-z]+)_'"
            )

    def read(
        self, root: Path, bad_layout: Callable[[str], DataError]
    ) -> tuple[list[str], dict[str, list[Item]]]:
        """Sorted class names and the items of ``train``, ``val`` and ``test`` below ``root``.

        Targets are class indices, or multi-hot float arrays where files may have several labels.

        Args:
            root: the folder.
            bad_layout: makes the error for a folder that holds something else.
        """
        entries = self._entries(root, bad_layout)
        classes = sorted({label for entry in entries for label in entry.labels})
        if entries and len(classes) < 2:
            raise bad_layout(f"all files in {root} belong to one class ({', '.join(classes)})")
        splits = self._split(root, entries)
        trained = {label for entry in splits["train"] for label in entry.labels}
        untrained = [name for name in classes if name not in trained]
        if trained and untrained:
            raise DataError(
                f"no training file of the class(es) {', '.join(untrained[:5])}: more files are needed"
            )
        alike = [name for name, count in Counter(map(str.casefold, classes)).items() if count > 1]
        if alike:
            same = [name for name in classes if name.casefold() == alike[0]]
            self.notes.append(f"classes that differ in capital letters only stay apart: {', '.join(same)}")
        index = {name: position for position, name in enumerate(classes)}
        return classes, {
            split: [Item(entry.path, self._target(entry, index)) for entry in part]
            for split, part in splits.items()
        }

    def read_whole(self, root: Path, known: Sequence[str], bad_layout: Callable[[str], DataError]) -> Whole:
        """Every labelled file below ``root``, or those of its test split where folders or the table state one.

        Args:
            root: the folder.
            known: the classes that targets are indices of.
            bad_layout: makes the error for a folder that holds something else.

        Raises:
            DataError: also for a class that is not known.
        """
        entries = self._entries(root, bad_layout, tuple(known))
        if not entries:
            raise bad_layout(f"no labelled files in {root}")
        refuse_unknown([label for entry in entries for label in entry.labels], known, str(root))
        tested = [entry for entry in entries if entry.split == "test"]
        which = f"of {len(entries):,} files the {len(tested):,} of its test split are tested"
        if not tested:
            tested, which = entries, f"all {len(entries):,} files are tested"
        absent = not_there((label for entry in tested for label in entry.labels), known)
        index = {name: position for position, name in enumerate(known)}
        return Whole([Item(entry.path, self._target(entry, index)) for entry in tested], which + absent)

    def _entries(
        self, root: Path, bad_layout: Callable[[str], DataError], known: Sequence[str] | None = None
    ) -> list[Entry]:
        """All labelled files; `notes` says what was inferred and passed over."""
        if not root.is_dir():
            raise bad_layout(f"{root} is not a folder")
        self.notes, self.listing = [], Listing()
        if self.csv is not None:
            table = root / Path(self.csv).expanduser()
            if not table.is_file():
                raise DataError(
                    f"the table {table} does not exist: say task.data.csv=FILE, or task.data.csv=null for a folder "
                    "of files per class"
                )
            entries = list(self._from_table(root, table))
        elif self.label_from is not None:
            entries = list(self._from_names(root, self.label_from))
        else:
            entries = list(self._from_folders(root, known))
        if passed_over := self.listing.passed_over():
            self.notes.append(passed_over)
        return entries

    def _from_folders(self, root: Path, known: Sequence[str] | None = None) -> Iterator[Entry]:
        """One entry a file; with `known` classes a folder is a split's by its name alone."""
        folders = _folders(root)
        parts = [
            (None if path.name in (known or ()) else split_of_folder(path.name), path) for path in folders
        ]
        found = {split for split, _ in parts if split}
        enough = "train" in found and len(found) > 1
        if known is not None:
            enough = bool(found) and not any(path.name in known for path in folders)
        if not enough:
            parts = [("", root)]
        elif any(path.name not in SPLIT_NAMES for _, path in parts):
            named = [f"{path.name} ({split or 'not read'})" for split, path in parts]
            self.notes.append(f"folders taken for splits: {', '.join(named)}")
        outside = Listing()
        for split, part in parts:
            if split is None:
                continue
            names = [path.name for path in part.iterdir() if path.is_file()]
            sorted_out(part, names, (), outside)
            for folder in _folders(part):
                for path in self._files(folder):
                    yield Entry(path, (readable_name(folder.name),), split or None)
        stray = sum(outside.others[ending] for ending in self.extensions)
        if stray:
            self.notes.append(f"{stray:,} files lie in no folder of a class and are not read")

    def _from_names(self, root: Path, pattern: re.Pattern[str]) -> Iterator[Entry]:
        for path in self._files(root):
            found = pattern.search(path.name)
            if found is None or found["label"] is None:
                raise DataError(f"label_from={pattern.pattern} does not match the file name {path.name}")
            yield Entry(path, (readable_name(found["label"]),), group=found.groupdict().get("group"))

    def _from_table(self, root: Path, file: Path) -> Iterator[Entry]:
        table = read_label_table(file, root, self.csv_columns)
        self.notes += table.notes
        first: dict[str, tuple[Row, Entry]] = {}
        again = 0
        for row in table.rows:
            entry = self._entry(root, file, row)
            place = os.path.normpath(entry.path)
            if place in first:
                again += 1
                entry = self._merged(file, *first[place], row, entry)
                first[place] = first[place][0], entry
            else:
                first[place] = row, entry
        if again:
            self.notes.append(
                f"{again:,} rows of {file.name} name a file again and were merged with the first"
            )
        self._check_roles(file, table)
        yield from (entry for _, entry in first.values())

    def _entry(self, root: Path, file: Path, row: Row) -> Entry:
        where = f"line {row.line} of {file}"
        labels = row.label.split(";") if self.multilabel else [row.label]
        labels = [label.strip() for label in labels if label.strip()]
        if not row.path or (not labels and not self.multilabel):
            raise DataError(f"{where} lacks a path or a label")
        split = (row.split or "").lower()
        if split and split not in SPLIT_NAMES:
            raise DataError(
                f"{where} has the split {split!r}; it takes train, val or test; where its column is no split, say "
                "'task.data.csv_columns={split: null}'"
            )
        path = existing(root, row.path)
        if not path.is_file():
            raise DataError(f"{where} names {path}, which does not exist")
        return Entry(path, tuple(labels), SPLIT_NAMES.get(split), row.group, row.fold)

    def _merged(self, file: Path, first: Row, one: Entry, row: Row, other: Entry) -> Entry:
        """Two rows of one file; they may differ in their labels only, and that only where it may have several."""
        for what in ("split", "fold", "group"):
            values = getattr(one, what), getattr(other, what)
            if values[0] != values[1]:
                raise DataError(
                    f"lines {first.line} and {row.line} of {file} put {first.path} into two {what}s, {values[0]} and "
                    f"{values[1]}: a file belongs to one"
                )
        if one.labels != other.labels and not self.multilabel:
            raise DataError(
                f"lines {first.line} and {row.line} of {file} label {first.path} as {one.labels[0]} and as "
                f"{other.labels[0]}: correct one, or say task.data.multilabel=true task/loss=bce for several labels"
            )
        return replace(one, labels=tuple(dict.fromkeys(one.labels + other.labels)))

    def _check_roles(self, file: Path, table: LabelTable) -> None:
        if "fold" in table.columns:
            lacking = [row.line for row in table.rows if row.fold is None]
            if any(row.split for row in table.rows):
                self.notes.append(
                    f"{file.name} states splits, its column {table.columns['fold']} is not used"
                )
            elif lacking:
                raise DataError(f"line {lacking[0]} of {file} lacks a fold")

    def _files(self, folder: Path) -> list[Path]:
        return sorted(list_files(folder, self.extensions, self.listing), key=self.order)

    def _split(self, root: Path, entries: list[Entry]) -> dict[str, list[Entry]]:
        """Given splits stay; `val` and `test` are taken from the rest where nothing gives them."""
        names = [_below(entry.path, root) for entry in entries]
        given = [self._given_split(name, entry) for name, entry in zip(names, entries, strict=True)]
        for argument, pattern, split in (
            ("test_from", self.test_from, "test"),
            ("val_from", self.val_from, "val"),
        ):
            if pattern is not None and entries and split not in given:
                raise DataError(f"{argument}={pattern.pattern} matches no file in {root}")
        _refuse_torn(root, entries, given)
        if any(given):
            if self.fold is not None:
                raise DataError(f"{root} has splits of its own ({_listed(given)}): leave fold out")
            found = self._by_fraction(names, entries, given)
        elif any(entry.fold for entry in entries):
            found = self._by_stated_fold(names, entries)
        elif self.fold is not None:
            found = self._by_dealt_fold(entries)
        else:
            found = self._by_fraction(names, entries, given)
        splits: dict[str, list[Entry]] = {"train": [], "val": [], "test": []}
        for entry, split in zip(entries, found, strict=True):
            splits[split].append(entry)
        empty = [split for split, part in splits.items() if not part]
        if entries and empty:
            raise DataError(
                f"{len(entries):,} files in {root} leave none for {' and '.join(empty)}: give larger "
                "fractions, or state the splits (test_from, val_from, a split column or folders)"
            )
        return splits

    def _given_split(self, name: str, entry: Entry) -> str | None:
        if self.test_from is not None and self.test_from.search(name):
            return "test"
        if self.val_from is not None and self.val_from.search(name):
            return "val"
        return entry.split

    def _by_fraction(self, names: list[str], entries: list[Entry], given: Sequence[str | None]) -> list[str]:
        held = {
            entry.group: fixed
            for entry, fixed in zip(entries, given, strict=True)
            if entry.group and fixed in ("val", "test")
        }
        test_below = 0.0 if "test" in given else self.test_fraction
        val_below = test_below + (0.0 if "val" in given else self.val_fraction)
        found = []
        for name, entry, fixed in zip(names, entries, given, strict=True):
            place = stable_fraction(entry.group or name)
            drawn = "test" if place < test_below else "val" if place < val_below else "train"
            fixed = held.get(entry.group, fixed) if entry.group else fixed
            found.append(fixed if fixed in ("val", "test") else drawn)
        return found

    def _by_stated_fold(self, names: list[str], entries: list[Entry]) -> list[str]:
        """The splits where every file says its fold; what is not tested leaves a fraction for validation."""
        folds = sorted({entry.fold for entry in entries if entry.fold}, key=_by_number)
        fold = folds[0] if self.fold is None else str(self.fold)
        if fold not in folds or len(folds) < 2:
            raise DataError(
                f"fold={fold} is none of at least two folds that the table has: {', '.join(folds)}"
            )
        self.notes.append(f"tested on fold {fold} of {', '.join(folds)} (task.data.fold=…)")
        return [
            "test" if entry.fold == fold
            else "val" if stable_fraction(entry.group or name) < self.val_fraction
            else "train"
            for name, entry in zip(names, entries, strict=True)
        ]  # fmt: skip

    def _by_dealt_fold(self, entries: list[Entry]) -> list[str]:
        """The splits where folds are made here: of the files of each class, or of the groups."""
        fold = self.fold
        if not isinstance(fold, int) or not 1 <= fold <= self.folds:
            raise DataError(f"fold must be between 1 and folds={self.folds}, not {fold}")
        units: dict[Any, list[str]] = {}
        for entry in entries:
            kind, name = ((), entry.group) if entry.group else (entry.labels, entry.path.as_posix())
            units.setdefault(kind, []).append(name)
        part: dict[tuple[Any, str], str] = {}
        for kind, members in units.items():
            ordered = sorted(set(members), key=lambda name: self.order(Path(name)))
            parts = fold_parts(len(ordered), fold - 1, self.folds, self.folds_by, self.val_fraction)
            part |= {(kind, name): split for name, split in zip(ordered, parts, strict=True)}
        return [
            part[((), entry.group) if entry.group else (entry.labels, entry.path.as_posix())]
            for entry in entries
        ]

    def _target(self, entry: Entry, index: dict[str, int]) -> Any:
        if not self.multilabel:
            return index[entry.labels[0]]
        target: NDArray[np.float32] = np.zeros(len(index), dtype=np.float32)
        target[[index[label] for label in entry.labels]] = 1
        return target


class FromLabelledFiles(DataModule):
    """A source of classes whose items `files` finds; stands before the source that reads them."""

    kind: ClassVar[Kind] = ClassTargets
    files: LabelledFiles

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        self.class_names, splits = self.files.read(root, self.bad_layout)
        self.notes += self.files.notes
        return splits

    def read_whole(self, data_info: dict[str, Any]) -> Whole | None:
        if self.format != "files":
            return None
        whole = self.files.read_whole(self.root, data_info["class_names"], self.bad_layout)
        self.notes = list(self.files.notes)
        return whole


def _pattern(argument: str, text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise DataError(f"{argument}={text} is not a regular expression ({error})") from error


def _refuse_torn(root: Path, entries: Sequence[Entry], given: Sequence[str | None]) -> None:
    """Raise a `DataError` for a group that is stated to lie in two splits or folds."""
    stated: dict[str, set[str]] = {}
    for entry, fixed in zip(entries, given, strict=True):
        if entry.group and (role := fixed or (entry.fold and f"fold {entry.fold}")):
            stated.setdefault(entry.group, set()).add(role)
    torn = [group for group, roles in stated.items() if len(roles) > 1]
    if torn:
        raise DataError(
            f"{root}: the group {torn[0]} lies in {' and '.join(sorted(stated[torn[0]]))}: a group belongs to one"
        )


def _listed(given: Sequence[str | None]) -> str:
    return " and ".join(sorted({split for split in given if split}))


def _by_number(fold: str) -> tuple[int, str]:
    return (int(fold) if fold.isdecimal() else -1, fold)


def readable_name(name: str) -> str:
    """A name as text: a file's may be any bytes, those that are none are written as escapes."""
    return name.encode(errors="backslashreplace").decode()


def split_of_folder(name: str) -> str | None:
    """The split that a folder's name says: ``Train``, ``training_set``, ``val-data``, …; ``None``: it says none."""
    return SPLIT_NAMES.get(SPLIT_FOLDER.sub("", name.lower()))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
