"""A share of the training split, and epochs of several passes: learning curves over the amount of data."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from tasks.datasets import sampling
from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.base import DataError
from tasks.datasets.items import share_of
from tasks.datasets.sampling import BalancedBatches, EpochBatches, Key, ResumableLoader
from tasks.datasets.shards.storage import Storage
from tasks.datasets.shards.write import write_shards
from tasks.datasets.time_series.csv_forecast import CsvForecast

COUNTS = {"a": 24, "b": 8, "c": 1}  # training clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for label, count in COUNTS.items():
        for split, size in (("train", count), ("val", 2), ("test", 2)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(size):
                soundfile.write(folder / f"{number:02d}.wav", np.full(400, number / 50), 8000)
    return root


def opened(data_dir: Path, **options: Any) -> AudioFolder:
    settings = {"name": "clips", "num_workers": 0, "batch_size": 4, "seconds": 0.05, "sample_rate": 8000}
    data = AudioFolder(data_dir=str(data_dir), **(settings | options))
    data.prepare_data()
    data.setup()
    return data


def names(data: AudioFolder) -> set[str]:
    return {f"{item.path.parent.name}/{item.path.name}" for item in data.splits["train"]}


def labels(data: AudioFolder) -> dict[str, int]:
    return dict(Counter(data.class_names[item.target] for item in data.splits["train"]))


@given(
    strata=st.lists(st.integers(0, 3), min_size=1, max_size=80),
    fractions=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 5),
)
def test_a_share_keeps_order_and_proportions_and_holds_smaller_ones(
    strata: list[int], fractions: tuple[float, float], seed: int
) -> None:
    places = range(len(strata))
    small, large = (
        list(share_of(places, part, seed, lambda place: strata[place])) for part in sorted(fractions)
    )
    assert small == sorted(set(small))
    assert set(small) <= set(large) <= set(places)
    for stratum, count in Counter(strata).items():
        kept = sum(strata[place] == stratum for place in small)
        assert kept == max(1, round(min(fractions) * count))


def test_a_fraction_leaves_as_many_of_each_class_and_the_other_splits_whole(clips: Path) -> None:
    whole, half = opened(clips), opened(clips, train_fraction=0.5)
    assert labels(half) == {"a": 12, "b": 4, "c": 1}
    assert names(opened(clips, train_fraction=0.25)) < names(half) < names(whole)
    assert names(opened(clips, train_fraction=0.5, seed=1)) != names(half)
    for split in ("val", "test"):
        assert half.splits[split] == whole.splits[split]
    assert "17 of 33 training files are used (task.data.train_fraction=0.5)" in half.notes
    assert not [note for note in whole.notes if "fraction" in note]
    assert len(opened(clips, train_fraction=0.5, limit=5).splits["train"]) == 5
    assert half.digest() != whole.digest()


def test_the_loader_draws_of_the_share_alone_as_often_as_there_are_passes(clips: Path) -> None:
    data = opened(clips, train_fraction=0.5, train_passes=2)
    drawn = Counter(int(index) for batch in data.train_dataloader() for index in batch.index)
    assert len(data.train_dataloader()) == len(opened(clips).train_dataloader()) == 8
    assert set(drawn) <= set(range(17))
    assert sum(drawn.values()) == 32  # of 34 in two passes, in batches of 4
    assert max(drawn.values()) == 2
    assert len(data.val_dataloader()) == len(opened(clips).val_dataloader())


@pytest.mark.parametrize("balance", ["none", "labels"])
@pytest.mark.parametrize("batch_size", [4, 16, 32])
def test_an_epoch_has_as_many_steps_at_every_fraction(clips: Path, balance: str, batch_size: int) -> None:
    found = {}
    for fraction in (0.05, 0.125, 0.3, 0.7, 1.0):
        data = opened(
            clips, train_fraction=fraction, train_passes=None, balance=balance, batch_size=batch_size
        )
        sizes = [len(batch.index) for batch in data.train_dataloader()]
        assert len(data.train_dataloader()) == len(sizes)
        found[fraction] = sizes
    assert found == dict.fromkeys(found, [batch_size] * (sum(COUNTS.values()) // batch_size))


def test_an_epoch_of_a_limited_split_is_as_long_at_every_fraction(clips: Path) -> None:
    limited = [opened(clips, limit=12, train_fraction=part, train_passes=None) for part in (0.125, 1.0)]
    assert [len(data.train_dataloader()) for data in limited] == [3, 3]


@given(size=st.integers(1, 40), draws=st.integers(1, 150), batch=st.integers(1, 9), world=st.integers(1, 3))
def test_every_pass_holds_every_item(size: int, draws: int, batch: int, world: int) -> None:
    options: dict[str, Any] = {"shuffle": True, "drop_last": False, "seed": 3}
    original = sampling._rank_and_world
    keys: list[Key] = []
    try:
        for rank in range(world):
            sampling._rank_and_world = partial(lambda rank: (rank, world), rank)
            sampler = EpochBatches(size, batch, draws=draws, **options)
            sampler.set_epoch(2)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            keys += [key for one in batches for key in one]
            sampler.skip = 1
            assert list(sampler) == batches[1:]
    finally:
        sampling._rank_and_world = original
    assert len(set(keys)) == len(keys) == draws
    passes, left = divmod(draws, size)
    drawn = Counter(key[0] for key in keys)
    assert sorted(drawn[item] for item in range(size)) == [passes] * (size - left) + [passes + 1] * left
    if draws > size:
        assert {key[2] for key in keys} == set(range(passes + (left > 0)))


def test_the_first_pass_is_that_of_an_epoch_of_one_and_the_next_has_another_order() -> None:
    one, two = (
        [
            key
            for batch in EpochBatches(20, 4, shuffle=True, drop_last=True, seed=1, draws=draws)
            for key in batch
        ]
        for draws in (20, 40)
    )
    assert [(index, epoch) for index, epoch, _ in two[:20]] == one
    assert [key[0] for key in two[20:]] != [key[0] for key in one]


def test_balanced_draws_are_as_many_as_asked_for() -> None:
    sampler = BalancedBatches(np.array([1.0, 1.0, 8.0]), 3, seed=0, draws=150)
    keys = [key for batch in sampler for key in batch]
    assert len(keys) == 150
    assert len(set(keys)) == 150, "repeated draws are augmented differently"
    assert 0.7 < sum(key[0] == 2 for key in keys) / 150 < 0.9


def test_a_loader_goes_on_within_the_second_pass(clips: Path) -> None:
    def loader() -> ResumableLoader:
        return opened(clips, train_fraction=0.25, train_passes=3).train_dataloader()

    first = loader()
    whole = [batch.index.tolist() for batch in first]
    begun = loader()
    seen = iter(begun)
    before = [next(seen).index.tolist() for _ in range(4)]
    after = loader()
    after.load_state_dict(begun.state_dict())
    assert before + [batch.index.tolist() for batch in after] == whole


def test_shards_have_shares_and_one_pass(clips: Path, tmp_path: Path) -> None:
    data = opened(clips)
    write_shards(data, data.splits, Storage(str(tmp_path)), shard_samples=8)
    shards: dict[str, Any] = {"format": "webdataset"}
    half = opened(tmp_path, train_fraction=0.5, **shards)
    assert labels(half) == {"a": 12, "b": 4, "c": 1}
    assert labels(opened(tmp_path, **shards)) == COUNTS
    assert sum(len(batch) for batch in half.train_dataloader()) == 16
    for passes in (2, None):
        with pytest.raises(DataError, match="passes over shards once"):
            opened(tmp_path, train_passes=passes, **shards)


def test_of_a_series_the_last_rows_are_left_and_give_the_statistics(tmp_path: Path) -> None:
    rows = 400
    values = np.where(np.arange(rows) < 210, 1000.0, 0.0) + np.arange(rows) % 7
    dates = pd.date_range("2024-01-01", periods=rows, freq="h")
    pd.DataFrame({"date": dates, "value": values}).to_csv(tmp_path / "a.csv", index=False)

    def read(**options: Any) -> CsvForecast:
        data = CsvForecast(name="a", data_dir=str(tmp_path / "a.csv"), look_back=14, horizon=7, **options)
        data.prepare_data()
        data.setup()
        return data

    whole, quarter = read(), read(train_fraction=0.25)
    end = whole.splits["train"][-1].where["row"]
    assert end == quarter.splits["train"][-1].where["row"] == 280 - 21
    assert [item.where["row"] for item in quarter.splits["train"]] == list(range(210, end + 1))
    assert whole.info()["mean"][0] > 500
    assert quarter.info()["mean"][0] == pytest.approx(values[210:280].mean())
    for split in ("val", "test"):
        assert [i.where for i in whole.splits[split]] == [i.where for i in quarter.splits[split]]
    assert len(read(train_fraction=0.001).splits["train"]) == 1, "one window at least"
    steps = {len(read(train_fraction=part, train_passes=None).train_dataloader()) for part in (0.001, 0.1, 1)}
    assert steps == {len(whole.train_dataloader())}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_fraction": 0.0}, "train_fraction must be above 0 and at most 1, not 0.0"),
        ({"train_fraction": 1.5}, "train_fraction must be above 0 and at most 1, not 1.5"),
        ({"train_fraction": [0.5]}, r"train_fraction must be above 0 and at most 1, not \[0.5\]"),
        ({"train_fraction": None}, "train_fraction must be above 0 and at most 1, not None"),
        ({"train_fraction": float("nan")}, "train_fraction must be above 0 and at most 1, not nan"),
        ({"train_passes": 0}, "train_passes must be at least 1, not 0"),
        ({"train_passes": 1.5}, "train_passes must be a whole number, not 1.5"),
        ({"batch_size": [4]}, r"batch_size must be a whole number, not \[4\]"),
        ({"limit": "many"}, "limit must be a whole number, not many"),
    ],
)
def test_no_share_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        AudioFolder(name="clips", data_dir=str(tmp_path), **options)
