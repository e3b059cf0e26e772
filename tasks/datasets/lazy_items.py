"""Items created on access, since millions of objects would exhaust memory."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.items import Item


class LazyItems(Sequence[Item]):
    """A sequence of items backed by arrays; a subclass implements `__len__` and `item`."""

    def item(self, index: int) -> Item:
        """The item at an index from 0 to len(self) - 1."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        places = range(len(self))
        return (
            [self.item(place) for place in places[index]]
            if isinstance(index, slice)
            else self.item(places[index])
        )


class ChosenItems(LazyItems):
    """Some items of a sequence, by their places."""

    def __init__(self, items: Sequence[Item], places: Sequence[int]) -> None:
        self.items = items
        self.places: NDArray[np.int64] = np.asarray(places, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.places)

    def item(self, index: int) -> Item:
        return self.items[int(self.places[index])]
