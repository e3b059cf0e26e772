"""Batch samplers that are a pure function of (seed, epoch), so that a resumed run draws the same batches."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from tasks.datasets.batch import Batch, usable
from tasks.datasets.readers import follow, signals_held

Key = tuple[int, ...]  # (index, epoch), or (index, epoch, how often the index was drawn before in this epoch)


def _rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class EpochBatches(Sampler[list[Key]]):
    """Batches of `(index, epoch)` keys; each process of a distributed run draws its own shard.

    In training (`drop_last=True`) every process gets the same number of full batches. In evaluation every item occurs
    exactly once over all processes, whatever the batch size.

    Args:
        size: number of items.
        batch_size: items per batch and process.
        shuffle: a new order each epoch, drawn from `(seed, epoch)`.
        drop_last: drop the items that do not fill a batch on every process.
        seed: seed of the order.
        draws: length of an epoch in items; `None` means `size`. More take one pass after the other, each in an order
            of its own, the last one in part. Keys then include the pass, so that an item is augmented differently in
            each.

    Attributes:
        items: number of items.
        size: number of draws of an epoch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        draws: int | None = None,
    ) -> None:
        self.items = size
        self.size = size if draws is None else draws
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        self.skip = 0  # batches of the next pass to skip after resuming

    @property
    def sampler(self) -> "EpochBatches":
        """The object on which the trainer calls `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass (called by the trainer)."""
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
        """The item indices of this process, in the order of this epoch."""
        passes = -(-self.size // max(self.items, 1))
        order = list(range(self.items)) * passes
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            orders = [torch.randperm(self.items, generator=generator) for _ in range(passes)]
            order = torch.cat(orders).tolist()
        return [order[position] for position in self._share()]

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first, self.skip = self.epoch, self.skip, 0
        mine = self._mine()
        share = self._share()
        for batch in range(first, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            if self.size <= self.items:
                yield [(index, epoch) for index in mine[part]]
            else:
                pairs = zip(mine[part], share[part], strict=True)
                yield [(index, epoch, position // self.items) for index, position in pairs]


class BalancedBatches(EpochBatches):
    """Training batches with weighted sampling with replacement; by default, an epoch has as many draws as items.

    The draws are a function of (seed, epoch) only; every process takes its shard of them. A key includes how often its
    index was drawn before, so that repeated draws are augmented differently.

    Args:
        weights: sampling weight of each item, (N,).
        batch_size, seed, draws: see `EpochBatches`.
    """

    def __init__(
        self, weights: NDArray[np.float64], batch_size: int, *, seed: int, draws: int | None = None
    ) -> None:
        super().__init__(len(weights), batch_size, shuffle=True, drop_last=True, seed=seed, draws=draws)
        self.edges = np.cumsum(weights)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first, self.skip = self.epoch, self.skip, 0
        share = self._share()
        places = np.random.default_rng((self.seed, epoch)).random(self.size) * self.edges[-1]
        drawn = np.searchsorted(self.edges, places, side="right")
        before = _counted(drawn)
        mine, mine_before = drawn[share.start :: share.step], before[share.start :: share.step]
        for batch in range(first, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            pairs = zip(mine[part].tolist(), mine_before[part].tolist(), strict=True)
            yield [(index, epoch, earlier) for index, earlier in pairs]


def _counted(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of earlier occurrences of each value of (N,), (N,).

    >>> _counted(np.array([4, 7, 4, 4])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    first = np.searchsorted(ranked, ranked, side="left")
    counted = np.empty(len(values), dtype=np.int64)
    counted[order] = np.arange(len(values)) - first
    return counted


def labels_of(target: Any) -> NDArray[np.int64]:
    """The classes of a target: a class index or a multi-hot array (K,)."""
    return np.flatnonzero(target) if np.ndim(target) else np.array([target])


def label_weights(labels: Iterable[NDArray[Any]], classes: int) -> NDArray[np.float64]:
    """Sampling weight of each item, (N,), so that rare labels are drawn as often as frequent ones.

    As in AST (arXiv 2104.01778) for AudioSet: the weight of a label is 1000 / (number of its items + 0.01), that of an
    item the sum over its labels. If items have one label each, all classes are drawn equally often.

    Args:
        labels: the classes of each item.
        classes: number of classes, K.
    """
    own = list(labels)
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *own]).astype(np.int64)
    weight_K = 1000 / (np.bincount(flat, minlength=classes) + 0.01)
    owner = np.repeat(np.arange(len(own)), np.array([len(one) for one in own]))
    return np.bincount(owner, weights=weight_K[flat], minlength=len(own)).astype(np.float64)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that can be stopped in the middle of an epoch and resumed at the next batch.

    Its workers leave signals to the main process. A `DataError` in a worker is raised in the main process.

    Attributes:
        limit: `trainer.limit_train_batches`: number or fraction of the batches of an epoch.
    """

    batch_sampler: EpochBatches
    limit: int | float | None = None
    _seen = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"worker_init_fn": follow} | options)

    def _get_iterator(self) -> Any:
        with signals_held():
            return super()._get_iterator()

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self._seen = self.batch_sampler.skip
        for batch in super().__iter__():
            self._seen += 1
            yield usable(batch)

    def state_dict(self) -> dict[str, int]:
        """Position in the current pass: its epoch and the number of batches already returned."""
        return {"epoch": self.batch_sampler.epoch, "batches": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume the next pass at `state`."""
        finished = state["batches"] >= self._drawn()
        self.batch_sampler.set_epoch(state["epoch"] + int(finished))
        self.batch_sampler.skip = 0 if finished else state["batches"]

    def _drawn(self) -> int:
        """Number of batches of an epoch, with `limit`."""
        whole = len(self.batch_sampler)
        limit = whole if self.limit is None else self.limit
        return min(whole, limit if isinstance(limit, int) else int(whole * limit))
