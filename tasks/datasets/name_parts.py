"""Folds and groups that file names state."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from tasks.datasets.errors import DataError
from tasks.datasets.file_splits import Entry, naming_pattern


class NameParts:
    """Finds an entry's fold and group in the name of its file.

    Args:
        fold_from: regular expression with a group ``(?P<fold>...)``; ``None``: names state no fold.
        group_from: regular expression with a group ``(?P<group>...)``; ``None``: names state no group.

    Raises:
        DataError: an expression that is none or lacks its group.
    """

    def __init__(self, fold_from: str | None = None, group_from: str | None = None) -> None:
        patterns = {
            "fold": naming_pattern("fold", fold_from, "^(?P<fold>[0-9])-"),
            "group": naming_pattern("group", group_from, "^(?P<group>[a-z]+)_"),
        }
        self.patterns = {part: pattern for part, pattern in patterns.items() if pattern is not None}

    def added(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries with what their names state.

        Raises:
            DataError: a name in which an expression finds nothing.
        """
        for entry in entries:
            parts: dict[str, Any] = {
                part: self._found(part, pattern, entry) for part, pattern in self.patterns.items()
            }
            yield replace(entry, **parts) if parts else entry

    def _found(self, part: str, pattern: re.Pattern[str], entry: Entry) -> str:
        found = pattern.search(entry.path.name)
        if found is None or not found[part]:
            raise DataError(f"{part}_from={pattern.pattern} does not match the file name {entry.path.name}")
        return found[part]
