"""What a reader returns: samples, batches and failures.

A batch whose files were all unreadable has length 0 and no raw data. If the data as a whole are unusable, the loader
raises the reader's `DataError` in the main process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

from tasks.datasets.errors import DataError

Joined = Callable[[list[Any]], Any]  # collates the targets (or raw data) of samples


class Copies(list[Any]):
    """Several raw samples of one item, e.g. repeated augmentations; each becomes a sample of the batch."""


@dataclass(slots=True)
class Sample:
    """One item as read.

    Args:
        raw: input of the embedder, without the batch dimension; `Copies` for repeated augmentation.
        target: class index, multi-hot array, mask, window, …; None if unknown.
        index: index of the item in its split.
        mixed_target: (K,), soft target of a mixed sample.
    """

    raw: Any
    target: Any = None
    index: int = 0
    mixed_target: Any = None


@dataclass(frozen=True)
class Failure:
    """An item that could not be read; `said` is the message with its name and the reason."""

    said: str


@dataclass(frozen=True)
class Unusable:
    """Data that are unusable as a whole; `said` is the message for the user."""

    said: str


@dataclass
class Batch:
    """A batch of samples, in the order of the requested indices.

    Args:
        raw: collated by `DataModule.join_raws`; None if B is 0.
        target: collated by `DataModule.join_targets`; None if unknown.
        index: (B,), indices of the items in their split.
        failures: one message for each item that could not be read.
        mixed_target: (B, K), soft targets of mixed samples.
        task: name of the task; a single task has the key `""`.
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
        """Copy the batch to page-locked memory (called by the `DataLoader`)."""
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
    samples: Sequence[Read] | Batch, join: Joined = default_collate, join_raws: Joined = default_collate
) -> Batch | Unusable:
    """Collates the readable samples, with `Copies` of an item in sequence, and collects the failures.

    Args:
        samples: what was read, in order; a batch that is joined already is returned unchanged.
        join: collates the targets.
        join_raws: collates the raw data.
    """
    if isinstance(samples, Batch):
        return samples
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
    """Returns the batch; raises the `DataError` of the reader, if any."""
    if isinstance(batch, Unusable):
        raise DataError(batch.said)
    return batch


def _apart(sample: Sample) -> list[Sample]:
    """Splits a sample with `Copies` into single samples."""
    return [replace(sample, raw=one) for one in sample.raw]
