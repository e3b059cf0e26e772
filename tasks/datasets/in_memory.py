"""Keeps what the reader returns for a split in memory (`task.data.in_memory`)."""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from tasks.datasets.batch import Batch, Joined, Read, Sample
from tasks.datasets.errors import DataError
from tasks.datasets.item_dataset import Draw, ItemDataset
from tasks.datasets.sampling import Key

log = logging.getLogger("widefield")

MOST = 0.5  # fraction of the free memory that a split may take
THREADS = 8


class MemoryDataset(Dataset[Read]):
    """A split that is read once, on first use, and then served from memory; unreadable items stay failures.

    If all raw samples are tensors of one shape they are kept as one tensor, and a batch is one indexing operation.

    Args:
        source: reads the items; what it returns must not be random.
        name: name of the split in messages.
        join: collates the targets of a batch.
        draw: random transforms, drawn anew on each access with the generator of `source`; `None`: none.
    """

    def __init__(self, source: ItemDataset, name: str, join: Joined, draw: Draw | None = None) -> None:
        self.source = source
        self.name = name
        self.join = join
        self.draw = draw
        self.items: Sequence[Any] = source.items
        self._reads: list[Read] | None = None
        self._raws: Tensor | None = None  # (N, …), if all samples have one shape
        self._targets: list[Any] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Read:
        read = self._filled()[key[0]]
        if self.draw is None or not isinstance(read, Sample):
            return read
        raw, target = self.draw(read.raw, read.target, self.source.generator(key))
        return Sample(raw, target, read.index)

    def __getitems__(self, keys: Sequence[Key]) -> list[Read] | Batch:
        """The samples of a batch, joined already where that is one indexing operation (called by the `DataLoader`)."""
        self._filled()
        if self._raws is None:
            return [self[key] for key in keys]
        places = [key[0] for key in keys]
        index = torch.tensor(places)
        targets = [self._targets[place] for place in places]
        return Batch(self._raws[index], None if targets[0] is None else self.join(targets), index)

    def _filled(self) -> list[Read]:
        if self._reads is None:
            self._reads = self._read_all()
        return self._reads

    def _read_all(self) -> list[Read]:
        began = time.monotonic()
        self._check_room()
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            reads = list(pool.map(lambda index: self.source[index, 0], range(len(self.source))))
        samples = [read for read in reads if isinstance(read, Sample)]
        size = sum(_bytes(sample) for sample in samples)
        shapes = {(raw.shape, raw.dtype) if isinstance(raw := one.raw, Tensor) else None for one in samples}
        alike = len(samples) == len(reads) and len(shapes) == 1 and None not in shapes
        if alike and self.draw is None:
            self._raws = torch.stack([sample.raw for sample in samples])
            self._targets = [sample.target for sample in samples]
            for sample, raw in zip(samples, self._raws, strict=True):
                sample.raw = raw
        log.info(
            "data: %s kept in memory, %d samples, %.0f MB, read in %.0f s",
            self.name,
            len(reads),
            size / 1e6,
            time.monotonic() - began,
        )
        return reads

    def _check_room(self) -> None:
        """Raise a `DataError` if the split would not fit, judged by its first readable sample."""
        for index in range(min(len(self.source), 10)):
            read = self.source[index, 0]
            if isinstance(read, Sample):
                needed, free = _bytes(read) * len(self.source), _free_memory()
                if free is not None and needed > MOST * free:
                    raise DataError(
                        f"task.data.in_memory=true: {self.name} would take about {needed / 1e9:.1f} GB, and "
                        f"{free / 1e9:.1f} GB of memory are free: say task.data.in_memory=false"
                    )
                return


def _bytes(sample: Sample) -> int:
    leaves = tree_leaves((sample.raw, sample.target))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def _free_memory() -> int | None:
    """Bytes of memory that are free; None if the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
