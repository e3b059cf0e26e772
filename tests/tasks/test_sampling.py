"""The order of batches, what survives a restart, and what a broken file does to a batch."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.datasets import sampling
from tasks.datasets.base import ClassificationData, DataError, Item, ReadError, spread
from tasks.datasets.batch import Failure, Sample, Unusable, collate, usable
from tasks.datasets.sampling import EpochBatches
from tasks.disk import WriteError


class Numbers(ClassificationData):
    """Items that are numbers; a raw sample is the number and a random value. Number 3 cannot be read."""

    modality = "numbers"
    layout = "a file count.txt"
    writes = 0

    def write_sample(self, root: Path) -> None:
        type(self).writes += 1
        (root / "count.txt").write_text("10")

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        if not (root / "count.txt").is_file():
            raise self.bad_layout(f"no count.txt in {root}")
        self.class_names = ["even", "odd"]
        count = int((root / "count.txt").read_text())
        items = [Item(root / str(number), number % 2, {"number": number}) for number in range(count)]
        return {"train": items, "val": items[:5], "test": items[:7]}

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> torch.Tensor:
        if item.where["number"] == 3:
            raise ReadError("three is broken")
        return torch.tensor([item.where["number"], rng.random() if train else 0.0])


def numbers(tmp_path: Path, **options: Any) -> Numbers:
    data = Numbers(name="numbers", samples_dir=str(tmp_path), num_workers=0, **options)
    data.prepare_data()
    data.setup()
    return data


@given(size=st.integers(1, 200), batch=st.integers(1, 40), world=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_item_exactly_once_over_all_processes(size: int, batch: int, world: int, seed: int) -> None:
    original = sampling._rank_and_world
    seen: list[int] = []
    try:
        for rank in range(world):
            sampling._rank_and_world = partial(lambda rank: (rank, world), rank)
            sampler = EpochBatches(size, batch, shuffle=False, drop_last=False, seed=seed)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            seen += [index for part in batches for index, _ in part]
    finally:
        sampling._rank_and_world = original
    assert sorted(seen) == list(range(size))


@given(size=st.integers(1, 200), batch=st.integers(1, 40), world=st.integers(1, 5), epoch=st.integers(0, 9))
def test_training_gives_every_process_as_many_full_batches(
    size: int, batch: int, world: int, epoch: int
) -> None:
    original = sampling._rank_and_world
    counts, seen = set(), []
    try:
        for rank in range(world):
            sampling._rank_and_world = partial(lambda rank: (rank, world), rank)
            sampler = EpochBatches(size, batch, shuffle=True, drop_last=True, seed=1)
            sampler.set_epoch(epoch)
            batches = list(sampler)
            counts.add(len(batches))
            assert all(len(part) == batch for part in batches)
            seen += [index for part in batches for index, _ in part]
    finally:
        sampling._rank_and_world = original
    assert counts == {size // (batch * world)}
    assert len(seen) == len(set(seen))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochBatches(50, 10, shuffle=True, drop_last=True, seed=seed)
        sampler.set_epoch(epoch)
        return [index for part in sampler for index, _ in part]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_a_restart_goes_on_at_the_next_batch(tmp_path: Path, workers: int, stop: int) -> None:
    def raws(data: Numbers, epochs: int) -> list[list[list[float]]]:
        loader, found = data.train_dataloader(), []
        for epoch in range(epochs):
            loader.batch_sampler.set_epoch(epoch)
            found += [batch.raw.tolist() for batch in loader]
        return found

    whole = raws(numbers(tmp_path, batch_size=2), 2)
    data = numbers(tmp_path, batch_size=2)
    data.num_workers = workers
    loader = data.train_dataloader()
    passing = iter(loader)
    first = [next(passing).raw.tolist() for _ in range(stop)]
    state = loader.state_dict()
    assert state == {"epoch": 0, "batches": stop}, "batches read ahead by the workers do not count"
    loader = data.train_dataloader()
    loader.load_state_dict(state)
    rest = [batch.raw.tolist() for batch in loader]
    begun = 0 if stop < 5 else 1
    assert loader.batch_sampler.epoch == begun
    if begun == 0:
        loader.batch_sampler.set_epoch(1)
        rest += [batch.raw.tolist() for batch in loader]
    assert first + rest == whole


def test_random_choices_change_between_epochs(tmp_path: Path) -> None:
    loader = numbers(tmp_path, batch_size=10).train_dataloader()
    values = []
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        batch = next(iter(loader))
        values.append(dict(batch.raw.tolist()))
    assert values[0].keys() == values[1].keys()
    assert all(values[0][number] != values[1][number] for number in values[0])


def test_a_broken_file_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    data = numbers(tmp_path, batch_size=3)
    batches = list(data.test_dataloader())
    assert [error for batch in batches for error in batch.failures] == [f"{data.root / '3'}: three is broken"]
    assert [number for batch in batches for number in batch.raw[:, 0].tolist()] == [0, 1, 2, 4, 5, 6]
    assert [index for batch in batches for index in batch.index.tolist()] == [0, 1, 2, 4, 5, 6]


def test_a_batch_of_broken_files_is_empty() -> None:
    batch = usable(collate([Failure("a: b"), Failure("c: d")]))
    assert (len(batch), batch.raw, batch.target, batch.failures) == (0, None, None, ["a: b", "c: d"])


def test_unusable_data_are_no_batch() -> None:
    with pytest.raises(DataError, match="a library is missing"):
        usable(collate([Sample(torch.zeros(1)), Failure("a: b"), Unusable("a library is missing")]))


def test_targets_are_joined_as_their_kind_wants() -> None:
    batch = usable(collate([Sample(torch.zeros(2), torch.ones(n), n) for n in (1, 3)], join=list))
    assert [len(target) for target in batch.target] == [1, 3]
    assert batch.index.tolist() == [1, 3]


def test_training_raws_leaves_out_broken_files(tmp_path: Path) -> None:
    raws = torch.cat(list(numbers(tmp_path, batch_size=4).training_raws()))
    assert raws[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@given(count=st.integers(1, 60), most=st.none() | st.integers(1, 80))
def test_a_limit_takes_items_evenly(count: int, most: int | None) -> None:
    items = [Item(Path(str(number))) for number in range(count)]
    taken = [int(item.path.name) for item in spread(items, most)]
    assert len(taken) == min(count, most or count)
    assert sorted(set(taken)) == taken
    if len(taken) > 1:
        gaps = np.diff([*taken, count])
        assert gaps.max() - gaps.min() <= 1


def test_the_sample_is_drawn_once_and_anew_when_its_version_rises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Numbers.writes = 0
    data = numbers(tmp_path)
    numbers(tmp_path)
    assert Numbers.writes == 1
    (data.root / "stale").write_text("")
    monkeypatch.setattr(Numbers, "sample_version", 2)
    numbers(tmp_path)
    assert Numbers.writes == 2
    assert sorted(path.name for path in data.root.iterdir()) == ["SAMPLE.json", "count.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["numbers"], "no drafts are left behind"


def test_a_failed_sample_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Numbers, root: Path) -> None:
        (root / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Numbers, "write_sample", fail)
    with pytest.raises(WriteError, match="the disk is full"):
        numbers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_describe_says_sample_or_real(tmp_path: Path) -> None:
    data = numbers(tmp_path)
    assert data.describe().startswith(
        "embedded sample of numbers (10 train / 5 val / 7 test files, 2 classes) in "
    )
    real = Numbers(name="numbers", data_dir=str(data.root))
    real.setup()
    assert real.describe().startswith("numbers (10 train")
    assert (data.source, real.source) == ("sample", "full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"limit": -1}, "limit must be at least 1"),
        ({"download": True}, "needs data_dir=PATH"),
    ],
)
def test_wrong_options_get_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Numbers(name="numbers", **options)
