"""Training, validation and test splits of a collection of files: given, by name hash, or by folds."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.datasets.errors import DataError
from tasks.datasets.split_folders import splits_by_folders, with_splits
from tasks.datasets.splits import FOLDS_BY, fold_parts, stable_fraction


@dataclass(frozen=True)
class Entry:
    """A file with its labels, its given split or fold (`None`: by name hash), and its group, which is never split."""

    path: Path
    labels: tuple[str, ...]
    split: str | None = None
    group: str | None = None
    fold: str | None = None


def by_parts(path: Path) -> tuple[str, ...]:
    """Sort key of files: folder by folder."""
    return path.parts


class FileSplits:
    """Splits files; the arguments are those of `tasks.datasets.labelled_files.LabelledFiles`.

    Raises:
        DataError: settings that contradict each other.
    """

    def __init__(
        self,
        *,
        test_from: str | None = None,
        val_from: str | None = None,
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
        fold: int | str | None = None,
        folds: int = 5,
        folds_by: str = "number",
        order: Callable[[Path], Any] = by_parts,
    ) -> None:
        if folds < 2 or folds_by not in FOLDS_BY:
            raise DataError(f"folds must be at least 2 and folds_by {' or '.join(FOLDS_BY)}")
        if min(test_fraction, val_fraction) < 0 or test_fraction + val_fraction >= 1:
            raise DataError("test_fraction and val_fraction must leave something to train on")
        self.test_from = pattern_of("test_from", test_from)
        self.val_from = pattern_of("val_from", val_from)
        self.test_fraction = test_fraction
        self.val_fraction = val_fraction
        self.fold = fold
        self.folds = folds
        self.folds_by = folds_by
        self.order = order

    def by_folders(
        self, root: Path, entries: list[Entry], notes: list[str], whole: bool = False
    ) -> list[Entry]:
        """Adds the splits of the folders that paths begin with, where these state splits.

        Stated splits are kept; folds that are stated or asked for come before folders. Files in none of the folders,
        and without a stated split, are left out.

        Args:
            root: folder that names are relative to.
            entries: the files.
            notes: what was inferred is appended, one sentence each.
            whole: the files are not trained on; ``train`` need not be among the splits.
        """
        if entries and all(entry.split for entry in entries):
            return entries
        found = splits_by_folders([entry.path for entry in entries], root, whole)
        if found is None:
            return entries
        return self.placed(entries, *found, notes)

    def placed(
        self, entries: list[Entry], splits: Sequence[str | None], said: Sequence[str], notes: list[str]
    ) -> list[Entry]:
        """Entries with the splits of their folders (`None`: not stated), unless there are folds.

        Appends ``said`` or why not, and how many are left out, to ``notes``.
        """
        if self.fold is not None or any(entry.fold for entry in entries):
            notes.append("there are folds: folders named as splits (train, test, …) are not taken for splits")
            return entries
        kept, left_out = with_splits(entries, splits, "files")
        notes += [*said, *left_out]
        return kept

    def split(self, root: Path, entries: list[Entry], notes: list[str]) -> dict[str, list[Entry]]:
        """Assigns entries to splits. Given splits are kept; missing `val` and `test` are taken from the rest.

        Args:
            root: folder that names are relative to.
            entries: the files.
            notes: what was inferred is appended, one sentence each.

        Raises:
            DataError: an empty split, or settings that do not match the files.
        """
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
            found = self._by_stated_fold(names, entries, notes)
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

    def _by_stated_fold(self, names: list[str], entries: list[Entry], notes: list[str]) -> list[str]:
        """Splits by given folds; a fraction of the files outside the test fold is the validation split."""
        folds = sorted({entry.fold for entry in entries if entry.fold}, key=_by_number)
        fold = folds[0] if self.fold is None else str(self.fold)
        if fold not in folds or len(folds) < 2:
            raise DataError(f"fold={fold} is none of at least two folds that are stated: {', '.join(folds)}")
        notes.append(f"tested on fold {fold} of {', '.join(folds)} (task.data.fold=…)")
        return [
            "test" if entry.fold == fold
            else "val" if stable_fraction(entry.group or name) < self.val_fraction
            else "train"
            for name, entry in zip(names, entries, strict=True)
        ]  # fmt: skip

    def _by_dealt_fold(self, entries: list[Entry]) -> list[str]:
        """Splits by computed folds, of the files of each class or of the groups."""
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


def pattern_of(argument: str, text: str | None) -> re.Pattern[str] | None:
    """Compiles the regular expression of an argument; raises `DataError`."""
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise DataError(f"{argument}={text} is not a regular expression ({error})") from error


def naming_pattern(part: str, text: str | None, example: str) -> re.Pattern[str] | None:
    """Compiles the regular expression of the argument ``PART_from``, which finds a part of a file's name in the group
    of this name; raises `DataError`."""
    pattern = pattern_of(f"{part}_from", text)
    if pattern is not None and part not in pattern.groupindex:
        raise DataError(f"{part}_from={text} needs a group named {part}, for example '{example}'")
    return pattern


def _refuse_torn(root: Path, entries: Sequence[Entry], given: Sequence[str | None]) -> None:
    """Raise a `DataError` for a group whose files are given different splits or folds."""
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


def _below(path: Path, root: Path) -> str:
    """The path relative to `root`, whether either is stated as a relative or an absolute path."""
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    path, root = path.absolute(), root.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
