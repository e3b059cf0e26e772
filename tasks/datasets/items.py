"""Items of a data set: references to single samples on disk, before they are read."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

SPLITS = ("train", "val", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One sample on disk: its file, its target (class index, multi-hot array, …) and its location within the file."""

    path: Path
    target: Any = None
    where: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the item in messages."""
        return str(self.path)


@dataclass(frozen=True)
class Whole:
    """Labelled items for testing a model that was trained on other data.

    Args:
        items: with targets in the model's classes.
        said: description of the selection (`all 60 files are tested`).
    """

    items: Sequence[Item]
    said: str


def spread(items: Sequence[T], most: int | None) -> Sequence[T]:
    """At most ``most`` items, evenly spaced: items are sorted by class, so the first ones would be of one class."""
    if most is None or most >= len(items):
        return items
    return [items[position * len(items) // most] for position in range(most)]


def share_of(
    items: Sequence[T], fraction: float, seed: int, stratum: Callable[[T], Hashable] = lambda item: None
) -> Sequence[T]:
    """A random share of the items, in their order: the same share of each stratum (a class), but at least one item.

    With the same seed, a smaller share lies within a larger one.

    >>> share_of(range(8), 0.5, seed=0) == [item for item in range(8) if item in share_of(range(8), 0.5, seed=0)]
    True
    """
    if fraction == 1:
        return items
    places: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(stratum(item), []).append(place)
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    for those in places.values():
        kept += rng.permutation(those)[: max(1, round(fraction * len(those)))].tolist()
    return [items[place] for place in sorted(kept)]
