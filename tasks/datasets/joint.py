"""Several data sets behind one loader; every batch is from one of them.

The task and the batch of a step are a pure function of (seed, epoch, step), like the batches themselves
(`tasks.datasets.sampling`): a resumed run draws the same ones, and all processes of a distributed run draw the same
task.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset

from tasks.datasets.base import DataModule, limited
from tasks.datasets.batch import Batch, Joined, Read, Unusable, collate
from tasks.datasets.errors import DataError
from tasks.datasets.items import SPLITS, Item
from tasks.datasets.sampling import EpochBatches, Key, ResumableLoader

SAMPLINGS = ("round_robin", "proportional")
JointKey = tuple[str, Key]  # (task, key of its data set)


def shares_of(passes: Mapping[str, int], steps: int, sampling: str, temperature: float) -> dict[str, int]:
    """Number of steps of each task in an epoch.

    Args:
        passes: task -> number of batches in one pass through its training split.
        steps: total number of steps of the epoch; every task gets at least one.
        sampling: `round_robin` (equal for all tasks) or `proportional` (to passes ** (1 / temperature)).
        temperature: 1 is proportional to the sizes; higher is closer to uniform (arXiv 1907.05019).

    >>> shares_of({"large": 30, "small": 10}, 40, "proportional", 1.0)
    {'large': 30, 'small': 10}
    """
    if sampling not in SAMPLINGS:
        raise DataError(f"task.data.sampling must be one of {', '.join(SAMPLINGS)}, not {sampling}")
    if temperature <= 0:
        raise DataError(f"task.data.temperature must be positive, not {temperature}")
    if steps < len(passes):
        raise DataError(f"an epoch of {steps} steps is too short for {len(passes)} tasks")
    power = 1 / temperature if sampling == "proportional" else 0.0
    largest = max(passes.values())
    weights = {name: (size / largest) ** power for name, size in passes.items()}
    exact = {name: steps * weight / sum(weights.values()) for name, weight in weights.items()}
    shares = {name: max(int(value), 1) for name, value in exact.items()}
    while (left := steps - sum(shares.values())) != 0:  # by largest remainder
        step = 1 if left > 0 else -1
        movable = [name for name in shares if step > 0 or shares[name] > 1]
        shares[max(movable, key=lambda name: step * (exact[name] - shares[name]))] += step
    return shares


class JointBatches(EpochBatches):
    """Interleaved training batches of several tasks; the passes of a task continue across epochs.

    Args:
        members: task -> batch sampler of one pass through its training split.
        shares: task -> steps in an epoch.
        in_turns: interleave the tasks as evenly as their shares allow; otherwise shuffle the order in each epoch.
        seed: seed of the order.
    """

    def __init__(
        self, members: Mapping[str, EpochBatches], shares: Mapping[str, int], *, in_turns: bool, seed: int
    ) -> None:
        super().__init__(sum(shares.values()), 1, shuffle=not in_turns, drop_last=True, seed=seed)
        self.members = dict(members)
        self.shares = dict(shares)

    def __len__(self) -> int:
        return self.size

    def order(self, epoch: int) -> list[str]:
        """The task of every step of an epoch."""
        # The n-th of a task's m steps is at (n + ½) / m of the epoch; ties go to the first task.
        places = [
            ((n + 0.5) / share, position, name)
            for position, (name, share) in enumerate(self.shares.items())
            for n in range(share)
        ]
        names = [name for _, _, name in sorted(places)]
        if not self.shuffle:
            return names
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return [names[position] for position in torch.randperm(len(names), generator=generator).tolist()]

    def __iter__(self) -> Iterator[list[JointKey]]:  # type: ignore[override]
        epoch, first, self.skip = self.epoch, self.skip, 0
        drawn = {name: epoch * share for name, share in self.shares.items()}
        passes: dict[str, tuple[int, list[list[Key]]]] = {}
        for step, name in enumerate(self.order(epoch)):
            if step >= first:
                number, place = divmod(drawn[name], len(self.members[name]))
                if name not in passes or passes[name][0] != number:
                    self.members[name].set_epoch(number)
                    passes[name] = number, list(self.members[name])
                yield [(name, key) for key in passes[name][1][place]]
            drawn[name] += 1


class AllInTurns(EpochBatches):
    """Evaluation: every batch of every task once. The tasks take turns, so that the first few batches (see
    `trainer.limit_val_batches`) cover every task."""

    def __init__(self, members: Mapping[str, EpochBatches]) -> None:
        super().__init__(0, 1, shuffle=False, drop_last=False, seed=0)
        self.members = dict(members)

    def __len__(self) -> int:
        return sum(len(batches) for batches in self.members.values())

    def __iter__(self) -> Iterator[list[JointKey]]:  # type: ignore[override]
        left = {name: iter(batches) for name, batches in self.members.items()}
        while left:
            for name, batches in list(left.items()):
                batch = next(batches, None)
                if batch is None:
                    del left[name]
                else:
                    yield [(name, key) for key in batch]


class JointDataset(Dataset[tuple[str, Read]]):
    """Samples of several data sets, each with the name of its task.

    Args:
        members: task -> data set.
    """

    def __init__(self, members: Mapping[str, Dataset[Read]]) -> None:
        self.members = dict(members)

    def __len__(self) -> int:
        return sum(len(member) for member in self.members.values())  # type: ignore[arg-type, misc]

    def __getitem__(self, key: JointKey) -> tuple[str, Read]:
        name, own = key
        return name, self.members[name][own]


def collate_task(
    samples: list[tuple[str, Read]], join: Mapping[str, Joined], join_raws: Mapping[str, Joined]
) -> Batch | Unusable:
    """Collates a batch of one task and sets `Batch.task`.

    Args:
        samples: each with the name of its task.
        join: task -> collate function of its targets.
        join_raws: task -> collate function of its raw data.
    """
    name = samples[0][0]
    batch = collate([sample for _, sample in samples], join[name], join_raws[name])
    return batch if isinstance(batch, Unusable) else replace(batch, task=name)


class JointData(LightningDataModule):
    """The data modules of several tasks as one.

    Args:
        members: task -> its data module.
        sampling, temperature: distribution of the steps of an epoch over the tasks, see `shares_of`.
        steps_per_epoch: `None`: the sum of the members' passes.
        num_workers: `DataLoader` workers for all tasks; `None`: the maximum over the members.
        seed: seed of the order of tasks.
    """

    def __init__(
        self,
        members: Mapping[str, DataModule],
        *,
        sampling: str = "proportional",
        temperature: float = 1.0,
        steps_per_epoch: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.members = dict(members)
        self.sampling = sampling
        self.temperature = temperature
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = num_workers
        self.seed = seed

    def prepare_data(self) -> None:
        for member in self.members.values():
            member.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        for member in self.members.values():
            member.setup(stage)

    def by_task(self) -> dict[str, DataModule]:
        return self.members

    def info(self) -> dict[str, Any]:
        """Task -> `DataModule.info`."""
        return {name: member.info() for name, member in self.members.items()}

    def record(self) -> dict[str, Any]:
        """Task -> `DataModule.record`."""
        return {name: member.record() for name, member in self.members.items()}

    def sizes(self, split: str) -> dict[str, int]:
        """Task -> number of samples of a split."""
        return {name: len(member.splits[split]) for name, member in self.members.items()}

    @property
    def splits(self) -> dict[str, list[Item]]:
        """All items of each split."""
        return {
            split: [item for member in self.members.values() for item in member.splits[split]]
            for split in SPLITS
        }

    @property
    def source(self) -> str:
        """`sample` or `full` where all members agree, else `mixed`."""
        sources = {member.source for member in self.members.values()}
        return sources.pop() if len(sources) == 1 else "mixed"

    @property
    def drawn(self) -> list[str]:
        """The data sets that synthetic members imitate; empty if all data are real."""
        return list(dict.fromkeys(title for member in self.members.values() for title in member.drawn))

    @property
    def place(self) -> str:
        """The common parent folder of all data."""
        return os.path.commonpath([member.root.absolute() for member in self.members.values()])

    def describe(self) -> str:
        """A count, then one line per task."""
        lines = [f"{name}: {member.describe()}" for name, member in self.members.items()]
        return f"{len(lines)} tasks\n  " + "\n  ".join(lines)

    def train_dataloader(self) -> ResumableLoader:
        loaders = {name: member.train_dataloader() for name, member in self.members.items()}
        batches = {name: loader.batch_sampler for name, loader in loaders.items()}
        passes = {name: len(sampler) for name, sampler in batches.items()}
        empty = [name for name, size in passes.items() if size == 0]
        if empty:
            raise DataError(f"{empty[0]}: its training split does not fill one batch on every process")
        steps = self.steps_per_epoch or sum(passes.values())
        shares = shares_of(passes, steps, self.sampling, self.temperature)
        sampler = JointBatches(batches, shares, in_turns=self.sampling == "round_robin", seed=self.seed)
        return limited(self._loader(loaders, sampler), self)

    def val_dataloader(self) -> ResumableLoader:
        return self._evaluation("val")

    def test_dataloader(self) -> ResumableLoader:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> ResumableLoader:
        loaders = {name: member.loader(split) for name, member in self.members.items()}
        return self._loader(loaders, AllInTurns({n: loader.batch_sampler for n, loader in loaders.items()}))

    def _loader(self, loaders: Mapping[str, ResumableLoader], sampler: EpochBatches) -> ResumableLoader:
        workers = self.num_workers
        if workers is None:
            workers = max(loader.num_workers for loader in loaders.values())
        return ResumableLoader(
            JointDataset({name: loader.dataset for name, loader in loaders.items()}),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=partial(
                collate_task,
                join={n: member.join_targets for n, member in self.members.items()},
                join_raws={n: member.join_raws for n, member in self.members.items()},
            ),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )
