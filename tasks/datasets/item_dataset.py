"""Reads the items of one split as samples."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from tasks.datasets.batch import Failure, Read, Sample, Unusable
from tasks.datasets.errors import DataError, ReadError, UnreadableItem
from tasks.datasets.items import Item
from tasks.datasets.mixing import Mixup, multi_hot
from tasks.datasets.reading import unexpected
from tasks.datasets.sampling import Key
from tasks.disk import WriteError

Reader = Callable[[Item, np.random.Generator], tuple[Any, Any]]  # -> (raw, target)
Draw = Callable[[Any, Any, np.random.Generator], tuple[Any, Any]]  # raw and target, transformed at random


class ItemDataset(Dataset[Read]):
    """Reads the items of one split; all randomness depends on (seed, epoch, index) only.

    Args:
        items: items of the split.
        read: reads one item.
        seed: random seed.
        draws: whether `read` is random; without, no generator is created per item, which can take longer than reading.
    """

    def __init__(self, items: Sequence[Item], read: Reader, seed: int, draws: bool = True) -> None:
        self.items = items
        self.read = read
        self.seed = seed
        self.only = None if draws else np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Read:
        try:
            return self.sample(key[0], self.generator(key))
        except UnreadableItem as error:
            return Failure(str(error))
        except (DataError, WriteError) as error:  # a worker could only pass on a traceback
            return Unusable(str(error))

    def generator(self, key: Key) -> np.random.Generator:
        """The random generator of one read."""
        index, epoch, *before = key
        if self.only is not None:
            return self.only
        return np.random.default_rng((self.seed, epoch, index, *(count for count in before if count)))

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Returns one sample; raises `UnreadableItem`, or `DataError` if the data as a whole are unusable."""
        raw, target = self.pair(self.items[index], rng)
        return Sample(raw, target, index)

    def pair(self, item: Item, rng: np.random.Generator) -> tuple[Any, Any]:
        """Raw data and target of an item; raises `UnreadableItem`."""
        try:
            return self.read(item, rng)
        except ReadError as error:
            raise UnreadableItem(f"{item.name}: {error}") from error
        except OSError as error:  # deleted, or made unreadable, since it was listed
            raise UnreadableItem(f"{item.name}: {(error.strerror or str(error)).lower()}") from error
        except (DataError, WriteError):  # the data as a whole are unusable, or a disk cannot be written
            raise
        except Exception as error:  # one bad file must not end the run, whatever its reader raises
            raise UnreadableItem(f"{item.name}: {unexpected(error)}") from error


class MixedDataset(ItemDataset):
    """Training items with mixup; a sample has a `mixed_target`, (K,), besides its own `target`.

    Args:
        items, read, seed: see `ItemDataset`.
        mixup: draws the partners and mixes.
        classes: number of classes, K.
    """

    def __init__(
        self,
        items: Sequence[Item],
        read: Reader,
        seed: int,
        *,
        mixup: Mixup,
        classes: int,
    ) -> None:
        super().__init__(items, read, seed)
        self.mixup = mixup
        self.classes = classes

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super().sample(index, rng)

        def other(partner: int) -> tuple[Any, Any]:
            raw, target = self.pair(self.items[partner], rng)
            return raw, multi_hot(target, self.classes)

        own_K = multi_hot(sample.target, self.classes)
        try:
            raw, mixed_K = self.mixup(sample.raw, own_K, len(self), other, rng)
        except TypeError as error:
            raise DataError(f"task.data.mixup: {error}") from error
        return replace(sample, raw=raw, mixed_target=mixed_K)
