"""Samples of splits or files in batches, with the errors of unreadable ones."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from typing import Any

from tasks.datasets.base import DataModule
from tasks.datasets.batch import Batch as ReadBatch
from tasks.datasets.items import Item
from tasks.datasets.labelled_files import readable_name
from tasks.datasets.targets import ClassTargets
from workbench.predict import read_raws

FILES = "input"  # split name of files given by `input=`


@dataclass(frozen=True)
class Place:
    """The origin of a sample.

    Args:
        split: its split; `input` for files given by `input=`.
        index: its index in the split.
        path: its file.
        where: its location in the file (row, frame, …), as JSON; empty for the whole file.
        target: its class or classes (multi-hot), or None, also for targets of another kind.
    """

    split: str
    index: int
    path: str
    where: str = ""
    target: Any = None


@dataclass
class Batch:
    """Consecutive samples.

    Args:
        places: origins of all samples.
        read: positions of the readable samples.
        raw: raw batch of the readable samples; None if there are none.
        errors: position -> error of an unreadable sample.
    """

    places: list[Place]
    read: list[int] = field(default_factory=list)
    raw: Any = None
    errors: dict[int, str] = field(default_factory=dict)


def split_batches(
    data: DataModule, splits: Sequence[str], batch_size: int | None
) -> Generator[Batch, None, None]:
    """The samples of splits in order, each once, read as for a test; raises `DataError` if the data are unusable.

    Worker processes end when the iterator is closed.
    """
    for split in splits:
        loader = data.loader(split, train=False, batch_size=batch_size)
        size = loader.batch_sampler.batch_size
        for number, content in enumerate(loader):
            yield _batch(data, split, number * size, size, content)


def _batch(data: DataModule, split: str, first: int, size: int, content: ReadBatch) -> Batch:
    """Convert a loader's batch that starts at item `first`."""
    items: Sequence[Item] = data.splits[split]
    classes = isinstance(data.targets, ClassTargets)
    numbers = range(first, min(first + size, len(items)))
    places = [_place(split, index, items[index], classes) for index in numbers]
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


def _place(split: str, index: int, item: Item, classes: bool) -> Place:
    # Labels kept beside the location, such as outlines, are left out: they may be large.
    plain = {name: value for name, value in item.where.items() if isinstance(value, str | Number)}
    where = json.dumps(plain, default=str) if plain else ""
    return Place(split, index, readable_name(item.name), where, item.target if classes else None)
