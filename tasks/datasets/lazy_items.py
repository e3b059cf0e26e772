"""Items created on access, since millions of objects would exhaust memory."""

from collections.abc import Sequence
from typing import overload

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
