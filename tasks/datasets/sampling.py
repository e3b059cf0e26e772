"""Batches that are a pure function of (seed, epoch), so that a run continued after a kill draws the same ones."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler

Key = tuple[int, int]  # (index, epoch)


def _rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class EpochBatches(Sampler[list[Key]]):
    """Batches of `(index, epoch)` keys; each process of a distributed run draws its own share.

    Training (`drop_last=True`) gives every process the same number of full batches. Evaluation gives every item
    exactly once over all processes, whatever the batch size.

    Args:
        size: number of items.
        batch_size: items per batch and process.
        shuffle: a new order each epoch, drawn from `(seed, epoch)`.
        drop_last: leave out the items that do not fill a batch on every process.
        seed: seed of the order.
    """

    def __init__(self, size: int, batch_size: int, *, shuffle: bool, drop_last: bool, seed: int) -> None:
        self.size = size
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        self.skip = 0  # batches of the next pass already seen before a restart

    @property
    def sampler(self) -> "EpochBatches":
        """Where the trainer looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass (called by the trainer)."""
        self.epoch = epoch

    def __len__(self) -> int:
        _, world = _rank_and_world()
        if self.drop_last:
            return self.size // (self.batch_size * world)
        return -(-len(self._share()) // self.batch_size)

    def _share(self) -> range:
        rank, world = _rank_and_world()
        return range(rank, self.size, world)

    def _mine(self) -> list[int]:
        """The items of this process in the order of this epoch."""
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        return [order[position] for position in self._share()]

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first, self.skip = self.epoch, self.skip, 0
        mine = self._mine()
        for batch in range(first, len(self)):
            part = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(index, epoch) for index in part]


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A DataLoader that the trainer can stop in the middle of an epoch and continue at the next batch."""

    batch_sampler: EpochBatches
    _seen = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        self._seen = self.batch_sampler.skip
        for batch in super().__iter__():
            self._seen += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the current pass stands: its epoch and the batches already handed out."""
        return {"epoch": self.batch_sampler.epoch, "batches": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass continue where `state` was taken."""
        finished = state["batches"] >= len(self.batch_sampler)
        self.batch_sampler.set_epoch(state["epoch"] + int(finished))
        self.batch_sampler.skip = 0 if finished else state["batches"]
