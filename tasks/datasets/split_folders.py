"""Splits that the folders of files state: `train/`, `val/`, `test/` and their usual other names."""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import Field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

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
SPLIT_FOLDER = re.compile(r"[ _-]?(set|split|data|(19|20)\d\d)$")  # optional suffix of a split folder's name


def split_of_folder(name: str) -> str | None:
    """The split of a folder by its name (``Train``, ``training_set``, ``val2017``, …); ``None``: no split."""
    return SPLIT_NAMES.get(SPLIT_FOLDER.sub("", name.lower()))


def state_splits(found: Collection[str | None]) -> bool:
    """Whether these splits of folders (``None``: of other folders) are meant: ``train`` and at least one other."""
    return "train" in found and len(set(found) - {None}) > 1


def splits_by_folders(
    paths: Sequence[Path], root: Path, whole: bool = False
) -> tuple[list[str | None], list[str]] | None:
    """The splits of files by the folders that their paths begin with.

    Paths begin below `root`, or, where that states no splits, below the folder that all files have in common.

    Args:
        paths: the files.
        root: folder of the data set.
        whole: the files are not trained on; ``train`` need not be among the splits.

    Returns:
        The split of each file (`None`: in none of these folders) and notes about what was inferred, one sentence each;
        `None` if the folders state no splits.

    >>> files = [Path("a/train/1.wav"), Path("a/test_set/1.wav"), Path("a/2.wav")]
    >>> splits_by_folders(files, Path("."))
    (['train', 'test', None], ['splits are those of the folders that paths begin with: test_set (test), train'])
    """
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    for start in (os.path.abspath(root), _common(folders)):
        tops = [_top(folder, start) for folder in folders]
        said = {top: split for top in sorted(set(tops) - {""}) if (split := split_of_folder(top))}
        found = set(said.values())
        if state_splits(found) or (whole and len(found) > 1):
            named = [top if top == split else f"{top} ({split})" for top, split in said.items()]
            note = f"splits are those of the folders that paths begin with: {', '.join(named)}"
            return [said.get(top) for top in tops], [note]
    return None


class HasSplit(Protocol):
    """A dataclass with a field `split`; `None`: not stated."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def split(self) -> str | None: ...


E = TypeVar("E", bound=HasSplit)


def with_splits(entries: Sequence[E], splits: Sequence[str | None], what: str) -> tuple[list[E], list[str]]:
    """Entries with the splits of their folders, where they state none; those with neither are left out.

    Args:
        entries: the files.
        splits: the split of each file's folder (see `splits_by_folders`).
        what: plural of what is left out, for the note.

    Returns:
        The entries that are read, and a note if some are not.
    """
    placed = [
        replace(entry, split=entry.split or split) for entry, split in zip(entries, splits, strict=True)
    ]
    kept = [entry for entry in placed if entry.split]
    left_out = len(entries) - len(kept)
    return kept, [f"{left_out:,} {what} lie in none of these folders and are not read"] if left_out else []


def _common(folders: Sequence[str]) -> str:
    """The folder that all have in common; `""`: none."""
    try:
        return os.path.commonpath(folders) if folders else ""
    except ValueError:  # on several drives
        return ""


def _top(folder: str, start: str) -> str:
    """The first folder below `start` on the way to `folder`; `""`: none."""
    begin = os.path.join(start, "")
    return folder[len(begin) :].split(os.sep)[0] if start and folder.startswith(begin) else ""
