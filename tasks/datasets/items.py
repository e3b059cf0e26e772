"""Items of a source: single samples on disk, before they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

SPLITS = ("train", "val", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One sample on disk: its file, its target (class index, multi-hot array, …) and where in the file it lies."""

    path: Path
    target: Any = None
    where: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What a message calls it."""
        return str(self.path)


@dataclass(frozen=True)
class Whole:
    """Labelled items for a test of a model that was trained on other data.

    Args:
        items: their targets are those of the model.
        said: which they are, in words that follow the sentence's subject (`all 60 files are tested`).
    """

    items: Sequence[Item]
    said: str


def spread(items: Sequence[T], most: int | None) -> Sequence[T]:
    """At most ``most`` items, evenly spread: items lie class by class, and the first ones would be of one class."""
    if most is None or most >= len(items):
        return items
    return [items[position * len(items) // most] for position in range(most)]
