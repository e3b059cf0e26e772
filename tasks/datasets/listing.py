"""Lists the readable files of a folder and reports what was skipped."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

SHOWN = 5  # extensions listed in the report
NEVER = ("__MACOSX",)  # folders without data that are not hidden


@dataclass
class Listing:
    """What was skipped below a folder: files by extension, and the number of hidden files and folders."""

    others: Counter[str] = field(default_factory=Counter)
    hidden: int = 0

    def passed_over(self) -> str | None:
        """Message about skipped files; ``None`` if there are none."""
        named = [f"{count:,} {ending}" for ending, count in self.others.most_common(SHOWN)]
        rest = sum(self.others.values()) - sum(count for _, count in self.others.most_common(SHOWN))
        named += [f"{rest:,} others"] if rest else []
        named += (
            [f"{self.hidden:,} hidden (names beginning with a dot, a folder counted as one)"]
            if self.hidden
            else []
        )
        return f"files passed over: {', '.join(named)}" if named else None


def usual_place(root: Path, names: Iterable[str], fits: Callable[[Path], bool]) -> Path | None:
    """The first of the folders `names` below `root` (`.`: itself) that fits; ``None`` if none does."""
    return next((root / name for name in names if fits(root / name)), None)


def list_files(folder: Path, endings: Collection[str], listing: Listing | None = None) -> list[Path]:
    """Files below a folder with one of these extensions (in lower case), unordered, without hidden files; without
    pipes and devices, which could block forever.

    Args:
        folder: searched recursively.
        endings: file extensions: ``.png``, …
        listing: counts what is skipped.
    """
    found = []
    listing = listing if listing is not None else Listing()
    for place, folders, names in os.walk(folder):
        unseen = [name for name in folders if is_hidden(name)]
        listing.hidden += len(unseen)
        folders[:] = sorted(name for name in folders if name not in unseen)
        found += sorted_out(Path(place), names, endings, listing)
    return found


def sorted_out(folder: Path, names: Iterable[str], endings: Collection[str], listing: Listing) -> list[Path]:
    """Of the files directly in a folder those that can be read; the others are counted in `listing`."""
    found = []
    for name in names:
        ending = os.path.splitext(name)[1].lower()
        if is_hidden(name):
            listing.hidden += 1
        elif ending not in endings:
            listing.others[ending or "without ending"] += 1
        elif (path := folder / name).is_file():
            found.append(path)
    return found


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or system data: ``.ipynb_checkpoints``, ``._photo.jpg``, …"""
    return name.startswith(".") or name in NEVER
