r"""Labels and splits of any collection of files: a folder per class, a table, or labels in the file names.

A data module for one kind of file (audio, images, …) gets its items from `LabelledFiles` and adds the reading.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.base import DataModule
from tasks.datasets.class_names import not_there, refuse_unknown
from tasks.datasets.errors import DataError
from tasks.datasets.file_splits import Entry, FileSplits, by_parts, naming_pattern
from tasks.datasets.items import Item, Whole
from tasks.datasets.label_table import (
    LABEL_SEPARATOR,
    Row,
    existing,
    identity,
    read_label_table,
    refuse_missing_folds,
    refuse_other_separators,
)
from tasks.datasets.listing import Listing, is_hidden, list_files, sorted_out
from tasks.datasets.name_parts import NameParts
from tasks.datasets.split_folders import SPLIT_NAMES, split_of_folder, state_splits
from tasks.datasets.targets import ClassTargets, Kind


class LabelSettings(TypedDict, total=False):
    """Arguments of `LabelledFiles` that every data module for collections of files takes."""

    csv: str | None
    csv_columns: Mapping[str, str | None] | None
    label_separator: str | None
    label_from: str | None
    group_from: str | None
    fold_from: str | None
    test_from: str | None
    val_from: str | None
    test_fraction: float
    val_fraction: float
    fold: int | str | None
    folds: int
    folds_by: str


def label_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separates a data module's settings into those of `LabelledFiles` and the rest."""
    own = LabelSettings.__annotations__
    return (
        {key: value for key, value in settings.items() if key in own},
        {key: value for key, value in settings.items() if key not in own},
    )


class LabelledFiles:
    """Finds files with their labels and splits.

    Splits are those of the folders ``train/``, ``val/`` and ``test/``, if ``train`` and another are there: around the
    folders of classes, or, with a table that states none or with labels in names, those that paths begin with.

    Splits that are not given are drawn from a hash of each file's path relative to the folder (or of its
    ``group``), so they are the same on every machine and a new file never moves another.

    Folds are computed per class, with files ordered by the numbers in their names: ``number`` assigns them
    round-robin, ``block`` cuts the order into contiguous blocks. Where neighbouring files were cut from one
    recording, round-robin leaks scenes from training into test; blocks mostly do not, and their score is the more
    honest one. A fold column of a table is used as it is.

    Args:
        extensions: file extensions to read, in lower case.
        csv: a table with the columns ``path`` (relative to the folder), ``label`` and optionally ``split`` or ``fold``,
            and ``group`` (`tasks.datasets.label_table`).
        csv_columns: role -> column name for ``path``, ``label``, ``split``, ``fold`` or ``group``, where the names are
            not the usual ones.
        multilabel: a file may have several labels, in separate rows or separated by ``;``; only with ``csv``.
        label_separator: what separates several labels in a cell; ``None``: ``;``, and a table that seems to separate
            them otherwise is refused.
        label_from: regular expression searched in a file's name, with a group ``(?P<label>...)`` and optionally
            ``(?P<group>...)``: files of one group (speaker, session) then stay in one split.
        group_from, fold_from: regular expressions searched in a file's name, with ``(?P<group>...)`` and
            ``(?P<fold>...)``, where labels are those of folders or of names.
        test_from, val_from: regular expressions searched in a file's path relative to the folder; matching files
            form the test or validation split.
        test_fraction, val_fraction: fractions of the files, where the splits are not given otherwise;
            with folds, ``val_fraction`` applies to the files outside the test fold.
        fold: the test fold: 1 to ``folds``, or a value of the table's column; ``None``: no folds, or the first one of
            a table.
        folds: number of folds, where no table defines them.
        folds_by: ``number`` or ``block``.
        order: sort key of the files of a class.

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
        label_separator: str | None = None,
        label_from: str | None = None,
        group_from: str | None = None,
        fold_from: str | None = None,
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
        if csv is not None and (group_from is not None or fold_from is not None):
            raise DataError("groups and folds are columns of the csv, or come from names, not both")
        if multilabel and csv is None:
            raise DataError("multilabel=true needs csv=FILE, a table with labels separated by ';'")
        if label_separator is not None and not (multilabel and label_separator):
            raise DataError(
                "label_separator is what separates the labels of a cell: it needs multilabel=true"
            )
        if csv_columns is not None and csv is None:
            raise DataError("csv_columns needs csv=FILE, the table that has them")
        self.splits = FileSplits(
            test_from=test_from,
            val_from=val_from,
            test_fraction=test_fraction,
            val_fraction=val_fraction,
            fold=fold,
            folds=folds,
            folds_by=folds_by,
            order=order,
        )
        self.extensions = extensions
        self.notes: list[str] = []  # what was inferred, one sentence each
        self.listing = Listing()
        self.csv = csv
        self.csv_columns = csv_columns
        self.order = order
        self.multilabel = multilabel
        self.label_separator = label_separator
        self.name_parts = NameParts(fold_from, group_from)
        self.label_from = naming_pattern("label", label_from, "^(?P<label>[a-z]+)_")

    def read(
        self, root: Path, bad_layout: Callable[[str], DataError]
    ) -> tuple[list[str], dict[str, list[Item]]]:
        """Sorted class names and the items of ``train``, ``val`` and ``test`` below ``root``.

        Targets are class indices, or multi-hot float arrays where files may have several labels.

        Args:
            root: the folder.
            bad_layout: makes the error for a folder with another layout.
        """
        entries = self._entries(root, bad_layout)
        classes = sorted({label for entry in entries for label in entry.labels})
        if entries and len(classes) < 2:
            raise bad_layout(f"all files in {root} belong to one class ({', '.join(classes)})")
        splits = self.split(root, entries)
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
        """Every labelled file below ``root``, or only the test split if folders or the table define one.

        Args:
            root: the folder.
            known: class names that target indices refer to.
            bad_layout: makes the error for a folder with another layout.

        Raises:
            DataError: unusable data, or a class that is not in `known`.
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
        """All labelled files; sets `notes` about what was inferred and skipped."""
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
            entries = self.by_folders(root, list(self._from_table(root, table)), whole=known is not None)
        elif self.label_from is not None:
            named = list(self.name_parts.added(self._from_names(root, self.label_from)))
            entries = self.by_folders(root, named, whole=known is not None)
        else:
            entries = list(self.name_parts.added(self._from_folders(root, known)))
        if passed_over := self.listing.passed_over():
            self.notes.append(passed_over)
        return entries

    def _from_folders(self, root: Path, known: Sequence[str] | None = None) -> Iterator[Entry]:
        """One entry per file. With `known` classes, a split folder is recognised by its name alone."""
        folders = _folders(root)
        parts = [
            (None if path.name in (known or ()) else split_of_folder(path.name), path) for path in folders
        ]
        found = {split for split, _ in parts if split}
        enough = state_splits(found)
        if known is not None:
            enough = bool(found) and not any(path.name in known for path in folders)
        if not enough:
            parts = [("", root)]
            if any(_states_splits(folder) for folder in folders):
                yield from self._from_splits_within(folders)
                return
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

    def _from_splits_within(self, folders: Sequence[Path]) -> list[Entry]:
        """One entry per file of class folders that hold split folders (``cat/train/1.wav``).

        Raises:
            DataError: some hold none, or what lies in the split folders are the folders of classes.
        """
        entries, splits = [], []
        for folder in folders:
            for path in self._files(folder):
                entries.append(Entry(path, (readable_name(folder.name),)))
                splits.append(split_of_folder(path.relative_to(folder).parts[0]))
        stated = zip(entries, splits, strict=True)
        placed = {
            entry.labels for entry, split in stated if split and split_of_folder(entry.path.parent.name)
        }
        if placed < {entry.labels for entry in entries}:
            first = next(folder for folder in folders if _states_splits(folder))
            held = ", ".join(f"{path.name}/" for path in _folders(first) if split_of_folder(path.name))
            raise DataError(
                f"{first} holds {held}, so that it seems to be a data set, not a class of {first.parent}: say "
                f"data_dir={first}, or put train/, val/ and test/ into the folder of each class"
            )
        said = ["splits are those of the folders within the folders of classes"]
        return self.splits.placed(entries, splits, said, self.notes)

    def _from_names(self, root: Path, pattern: re.Pattern[str]) -> Iterator[Entry]:
        for path in self._files(root):
            found = pattern.search(path.name)
            if found is None or found["label"] is None:
                raise DataError(f"label_from={pattern.pattern} does not match the file name {path.name}")
            yield Entry(path, (readable_name(found["label"]),), group=found.groupdict().get("group"))

    def _from_table(self, root: Path, file: Path) -> Iterator[Entry]:
        table = read_label_table(file, root, self.csv_columns)
        self.notes += table.notes
        if self.multilabel and self.label_separator is None:
            refuse_other_separators(file, [row.label for row in table.rows])
        first: dict[str, tuple[Row, Entry]] = {}
        again = 0
        for row in table.rows:
            entry = self._entry(root, file, row)
            place = identity(entry.path)
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
        self.notes += refuse_missing_folds(
            file, table.columns, [(row.line, row.split, row.fold) for row in table.rows]
        )
        yield from (entry for _, entry in first.values())

    def _entry(self, root: Path, file: Path, row: Row) -> Entry:
        where = f"line {row.line} of {file}"
        labels = row.label.split(self.label_separator or LABEL_SEPARATOR) if self.multilabel else [row.label]
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
        """Merges two rows of one file; only their labels may differ, and only with `multilabel`."""
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

    def _files(self, folder: Path) -> list[Path]:
        return sorted(list_files(folder, self.extensions, self.listing), key=self.order)

    def by_folders(self, root: Path, entries: list[Entry], whole: bool = False) -> list[Entry]:
        """Adds the splits of the folders that paths begin with, see `FileSplits.by_folders`."""
        return self.splits.by_folders(root, entries, self.notes, whole)

    def split(self, root: Path, entries: list[Entry]) -> dict[str, list[Entry]]:
        """Assigns entries to splits, see `FileSplits.split`."""
        return self.splits.split(root, entries, self.notes)

    def _target(self, entry: Entry, index: dict[str, int]) -> Any:
        if not self.multilabel:
            return index[entry.labels[0]]
        target: NDArray[np.float32] = np.zeros(len(index), dtype=np.float32)
        target[[index[label] for label in entry.labels]] = 1
        return target


class FromLabelledFiles(DataModule):
    """Mixin for classification data modules whose items come from `files`; put it before the class that reads them."""

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


def readable_name(name: str) -> str:
    """A file name as valid text; undecodable bytes are escaped."""
    return name.encode(errors="backslashreplace").decode()


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _states_splits(folder: Path) -> bool:
    with os.scandir(folder) as found:  # of ImageNet's million files none is asked for its kind
        return state_splits({split_of_folder(entry.name) for entry in found if entry.is_dir()})
