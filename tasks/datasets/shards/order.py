"""Sampling order for shards: shards are read sequentially in shuffled order, samples are shuffled within a window.

The order is a function of (seed, epoch, rank) only. An epoch therefore has an exact length, contains every sample once,
and can be resumed in the middle without reading the samples already seen.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.datasets import sampling
from tasks.datasets.sampling import EpochBatches, Key


class ShardBatches(EpochBatches):
    """Batches of `(index, epoch)` keys that need only a few shards at a time.

    In training, the shards are shuffled each epoch and their samples cut into one contiguous range per process. Within
    a range, samples are sorted by (position + uniform random number below ``buffer``), so a sample is delayed by at
    most ``buffer`` places. A process reads its own shards, and at the ends of its range parts of its neighbours';
    its workers take batches in turn. In evaluation, the ranges are read in order.

    Training splits that fit into ``buffer`` are shuffled like files in `EpochBatches`.

    Args:
        shards: shard index of each item, ascending.
        batch_size, shuffle, drop_last, seed: see `EpochBatches`.
        buffer: size of the shuffle window in samples.
        ahead: number of samples before its first use at which a shard is announced.
        announce: called with the index of each shard that will soon be read.
    """

    def __init__(
        self,
        shards: Sequence[int] | NDArray[np.int32],
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        buffer: int,
        ahead: int = 0,
        announce: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(len(shards), batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed)
        self.shards = np.asarray(shards)
        self.buffer = buffer
        self.ahead = ahead
        self.announce = announce

    @property
    def _small(self) -> bool:
        return self.shuffle and self.size <= self.buffer

    def _share(self) -> range:
        if self._small:
            return super()._share()
        rank, world = sampling._rank_and_world()
        if self.drop_last:
            length = len(self) * self.batch_size
            return range(rank * length, (rank + 1) * length)
        return range(self.size * rank // world, self.size * (rank + 1) // world)

    def _mine(self) -> list[int]:
        if self._small:
            return super()._mine()
        share = self._share()
        if not self.shuffle:
            return list(share)
        rank, _ = sampling._rank_and_world()
        _, starts = np.unique(self.shards, return_index=True)
        runs = np.split(np.arange(self.size), starts[1:])
        turns = np.random.default_rng((self.seed, self.epoch)).permutation(len(runs))
        mine = np.concatenate([runs[turn] for turn in turns])[share.start : share.stop]
        delay = np.random.default_rng((self.seed, self.epoch, rank)).uniform(0, self.buffer, len(mine))
        order: list[int] = mine[np.argsort(np.arange(len(mine)) + delay, kind="stable")].tolist()
        return order

    def __iter__(self) -> Iterator[list[Key]]:
        if self.announce is None:
            yield from super().__iter__()
            return
        waiting: deque[list[Key]] = deque()
        announced: set[int] = set()
        for batch in super().__iter__():
            for shard in dict.fromkeys(int(self.shards[index]) for index, _ in batch):
                if shard not in announced:
                    announced.add(shard)
                    self.announce(shard)
            waiting.append(batch)
            if len(waiting) * self.batch_size > self.ahead:
                yield waiting.popleft()
        yield from waiting
