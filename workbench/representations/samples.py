"""Samples of splits or files in batches, with those that cannot be read by name."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.datasets.base import DataModule
from tasks.datasets.batch import Batch as ReadBatch
from tasks.datasets.items import Item
from tasks.datasets.labelled_files import readable_name
from workbench.predict import read_raws

FILES = "input"  # the split of files that `input=` names


@dataclass(frozen=True)
class Place:
    """Where a sample comes from.

    Args:
        split: its split, `input` for files that were named.
        index: its place in the split.
        path: its file.
        where: where in the file it lies (row, frame, …), as JSON; empty for all of it.
        target: its class or classes (multi-hot), or None.
    """

    split: str
    index: int
    path: str
    where: str = ""
    target: Any = None


@dataclass
class Batch:
    """Some samples in a row.

    Args:
        places: of all of them.
        read: positions of those that could be read.
        raw: the raw batch of those; None: there are none.
        errors: position -> why the sample could not be read.
    """

    places: list[Place]
    read: list[int] = field(default_factory=list)
    raw: Any = None
    errors: dict[int, str] = field(default_factory=dict)


def split_batches(
    data: DataModule, splits: Sequence[str], batch_size: int | None
) -> Generator[Batch, None, None]:
    """The samples of splits in order, each once, as a test reads them; raises `DataError` for the data as a whole.

    Reader processes end when the iterator is closed.
    """
    for split in splits:
        items: Sequence[Item] = data.splits[split]
        loader = data.loader(split, train=False, batch_size=batch_size)
        size = loader.batch_sampler.batch_size
        for number, content in enumerate(loader):
            yield _batch(split, items, number * size, size, content)


def _batch(split: str, items: Sequence[Item], first: int, size: int, content: ReadBatch) -> Batch:
    """What a loader made of the items from `first` on."""
    places = [_place(split, index, items[index]) for index in range(first, min(first + size, len(items)))]
    read = [int(index) - first for index in content.index]
    there = set(read)
    broken = [position for position in range(len(places)) if position not in there]
    errors = {
        position: text.removeprefix(f"{items[first + position].name}: ")
        for position, text in zip(broken, content.failures, strict=True)
    }
    return Batch(places, read, content.raw, errors)


def file_batches(data: DataModule, files: list[Path], batch_size: int) -> Generator[Batch, None, None]:
    """Files in order, read as `action=predict` reads them."""
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        places = [
            Place(FILES, start + position, readable_name(str(file))) for position, file in enumerate(part)
        ]
        raws, errors = read_raws(data, part)
        yield Batch(places, list(raws), data.join_raws(list(raws.values())) if raws else None, errors)


def _place(split: str, index: int, item: Item) -> Place:
    where = json.dumps(item.where, default=str) if item.where else ""
    return Place(split, index, readable_name(item.name), where, item.target)
