"""What a reader hands on: a sample, a batch of them, and what could not be read.

A batch whose files were all unreadable has length 0 and no raw data; data that cannot be used at all never become a
batch: the loader raises the reader's `DataError` in the process that asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

from tasks.datasets.errors import DataError

Joined = Callable[[list[Any]], Any]  # the targets (or raw data) of some samples -> those of their batch


class Copies(list[Any]):
    """Several raw samples of one item, e.g. differently augmented; each is a sample of the batch by itself."""


@dataclass(slots=True)
class Sample:
    """One item as read.

    Args:
        raw: what the embedder reads, without the batch dimension; `Copies` of it where training draws several.
        target: what is to be predicted (class index, multi-hot array, mask, window, …); None: nothing is known.
        index: place of the item in its split.
        mixed_target: (K,), how much of each class is in it, where items were mixed with each other.
    """

    raw: Any
    target: Any = None
    index: int = 0
    mixed_target: Any = None


@dataclass(frozen=True)
class Failure:
    """An item that could not be read; `said` names it and says why."""

    said: str


@dataclass(frozen=True)
class Unusable:
    """Data that cannot be used as a whole; `said` is the sentence for the user."""

    said: str


@dataclass
class Batch:
    """Samples side by side, in the order in which they were asked for.

    Args:
        raw: of B samples, joined as their kind says (`DataModule.join_raws`); None where B is 0.
        target: of B samples, joined as their kind says (`DataModule.join_targets`); None where nothing is known.
        index: (B,), places of the items in their split.
        failures: what is said of each item that could not be read.
        mixed_target: (B, K) where items were mixed with each other.
        task: which of several tasks it is of; a single one has the key `""`.
    """

    raw: Any
    target: Any
    index: Tensor
    failures: list[str] = field(default_factory=list)
    mixed_target: Tensor | None = None
    task: str = ""

    def __len__(self) -> int:
        return len(self.index)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU takes it faster (asked for by the `DataLoader`)."""
        pinned = {
            each.name: tree_map(
                lambda value: value.pin_memory() if isinstance(value, Tensor) else value,
                getattr(self, each.name),
            )
            for each in fields(self)
        }
        return Batch(**pinned)


Read = Sample | Failure | Unusable


def collate(
    samples: Sequence[Read], join: Joined = default_collate, join_raws: Joined = default_collate
) -> Batch | Unusable:
    """The batch of the readable samples, copies of an item one after the other, and the failures of the others.

    Args:
        samples: as read, in order.
        join: joins their targets.
        join_raws: joins their raw data.
    """
    read: list[Sample] = []
    failures: list[str] = []
    for sample in samples:
        if isinstance(sample, Sample):
            read += _apart(sample) if isinstance(sample.raw, Copies) else [sample]
        elif isinstance(sample, Failure):
            failures.append(sample.said)
        else:
            return sample
    if not read:
        return Batch(None, None, torch.empty(0, dtype=torch.long), failures)
    targets, mixed = [one.target for one in read], [one.mixed_target for one in read]
    return Batch(
        join_raws([one.raw for one in read]),
        None if targets[0] is None else join(targets),
        torch.tensor([one.index for one in read]),
        failures,
        None if mixed[0] is None else default_collate(mixed),
    )


def usable(batch: Batch | Unusable) -> Batch:
    """The batch; raises the `DataError` that a reader ran into."""
    if isinstance(batch, Unusable):
        raise DataError(batch.said)
    return batch


def _apart(sample: Sample) -> list[Sample]:
    """The samples of an item that was read as several."""
    return [replace(sample, raw=one) for one in sample.raw]
