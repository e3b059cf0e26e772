r"""Labels and splits of any collection of files: a folder per class, a table, or labels in the file names.

A source for files of one kind (sounds, pictures, …) asks `LabelledFiles` for its items and adds the reading.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.base import DataError, Item, Whole, not_there, refuse_unknown
from tasks.datasets.splits import stable_fraction

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


@dataclass(frozen=True)
class Entry:
    """A file found: its labels, the split it was given (`None`: by name) and what it must not be parted
    from."""

    path: Path
    labels: tuple[str, ...]
    split: str | None = None
    group: str | None = None


class LabelledFiles:
    """Finds files with their labels and splits.

    Where a split is not given, it is drawn from a hash of each file's path below the folder (or of its
    ``group``), so it is the same on every machine and a new file never moves another.

    Args:
        extensions: endings of the files wanted, in small letters.
        csv: a table with the columns ``path`` (below the folder), ``label`` and, if you like, ``split``.
        multilabel: a file may have several labels, separated by ``;``; only with ``csv``.
        label_from: regular expression searched in a file's name, with a group ``(?P<label>...)`` and, if you
            like, ``(?P<group>...)``: files of one group (speaker, session) are then never split up.
        test_from, val_from: regular expressions searched in a file's path below the folder; what they find
            is the test or validation part.
        test_fraction, val_fraction: parts of the files, where the parts are not given otherwise.

    Raises:
        DataError: settings that contradict each other.
    """

    def __init__(
        self,
        extensions: tuple[str, ...],
        *,
        csv: str | None = None,
        multilabel: bool = False,
        label_from: str | None = None,
        test_from: str | None = None,
        val_from: str | None = None,
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
    ) -> None:
        if csv is not None and label_from is not None:
            raise DataError("labels come from csv or from label_from, not from both")
        if multilabel and csv is None:
            raise DataError("multilabel=true needs csv=FILE, a table with labels separated by ';'")
        if min(test_fraction, val_fraction) < 0 or test_fraction + val_fraction >= 1:
            raise DataError("test_fraction and val_fraction must leave something to train on")
        self.extensions = extensions
        self.csv = csv
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
        if not root.is_dir():
            raise bad_layout(f"{root} is not a folder")
        if self.csv is not None:
            entries = list(self._from_table(root, root / Path(self.csv).expanduser()))
        elif self.label_from is not None:
            entries = list(self._from_names(root, self.label_from))
        else:
            entries = list(self._from_folders(root))
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
        if not root.is_dir():
            raise bad_layout(f"{root} is not a folder")
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
            entries = list(self._from_folders(root, tuple(known)))
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

    def _from_folders(self, root: Path, known: Sequence[str] | None = None) -> Iterator[Entry]:
        """One entry a file; with `known` classes a folder is a split's by its name alone."""
        names = set(SPLIT_NAMES) - set(known or ())
        parts = {SPLIT_NAMES[path.name]: path for path in _folders(root) if path.name in names}
        enough = "train" in parts and len(parts) > 1
        if known is not None:
            enough = bool(parts) and not any(path.name in known for path in _folders(root))
        if not enough:
            parts = {"": root}
        for split, part in parts.items():
            for folder in _folders(part):
                for path in self._files(folder):
                    yield Entry(path, (folder.name,), split or None)

    def _from_names(self, root: Path, pattern: re.Pattern[str]) -> Iterator[Entry]:
        for path in self._files(root):
            found = pattern.search(path.name)
            if found is None or found["label"] is None:
                raise DataError(f"label_from={pattern.pattern} does not match the file name {path.name}")
            yield Entry(path, (found["label"],), group=found.groupdict().get("group"))

    def _from_table(self, root: Path, table: Path) -> Iterator[Entry]:
        if not table.is_file():
            raise DataError(f"the table {table} does not exist")
        with table.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text)
            absent = [column for column in ("path", "label") if column not in (reader.fieldnames or [])]
            if absent:
                raise DataError(
                    f"{table} lacks the column(s) {', '.join(absent)}; it needs path,label[,split]"
                )
            for line, row in enumerate(reader, start=2):
                labels = (row["label"] or "").split(";") if self.multilabel else [row["label"] or ""]
                labels = [label.strip() for label in labels if label.strip()]
                if not row["path"] or (not labels and not self.multilabel):
                    raise DataError(f"line {line} of {table} lacks a path or a label")
                split = (row.get("split") or "").strip().lower()
                if split and split not in SPLIT_NAMES:
                    raise DataError(
                        f"line {line} of {table} has the split {split!r}; it takes train, val or test"
                    )
                path = root / row["path"].strip()
                if not path.is_file():
                    raise DataError(f"line {line} of {table} names {path}, which does not exist")
                yield Entry(path, tuple(labels), SPLIT_NAMES.get(split))

    def _files(self, folder: Path) -> list[Path]:
        return sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in self.extensions and not path.name.startswith(".") and path.is_file()
        )

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
        test_below = 0.0 if "test" in given else self.test_fraction
        val_below = test_below + (0.0 if "val" in given else self.val_fraction)
        splits: dict[str, list[Entry]] = {"train": [], "val": [], "test": []}
        for name, entry, fixed in zip(names, entries, given, strict=True):
            if fixed in ("val", "test"):
                splits[fixed].append(entry)
                continue
            place = stable_fraction(entry.group or name)
            splits["test" if place < test_below else "val" if place < val_below else "train"].append(entry)
        empty = [split for split, part in splits.items() if not part]
        if entries and empty:
            raise DataError(
                f"{len(entries):,} files in {root} leave none for {' and '.join(empty)}: give larger "
                "fractions, or state the parts (test_from, val_from, a split column or folders)"
            )
        return splits

    def _given_split(self, name: str, entry: Entry) -> str | None:
        if self.test_from is not None and self.test_from.search(name):
            return "test"
        if self.val_from is not None and self.val_from.search(name):
            return "val"
        return entry.split

    def _target(self, entry: Entry, index: dict[str, int]) -> Any:
        if not self.multilabel:
            return index[entry.labels[0]]
        target: NDArray[np.float32] = np.zeros(len(index), dtype=np.float32)
        target[[index[label] for label in entry.labels]] = 1
        return target


def _pattern(argument: str, text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise DataError(f"{argument}={text} is not a regular expression ({error})") from error


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
