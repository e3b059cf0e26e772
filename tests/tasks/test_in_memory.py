"""task.data.in_memory: splits are read once, and give the same batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.datasets.base import DataModule, Item, ReadError
from tasks.datasets.batch import Batch
from tasks.datasets.errors import DataError
from tasks.datasets.in_memory import MemoryDataset
from tasks.datasets.item_dataset import ItemDataset
from tasks.datasets.mixing import Mixup
from tasks.datasets.targets import ClassTargets


class Squares(DataModule):
    """Ten samples; counts how often each is read."""

    kind = ClassTargets
    modality = "image"
    draws = False
    broken = ""
    sides: tuple[int, ...] = (2,)

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(name="squares", samples_dir=str(folder), batch_size=4, **settings)
        self.reads: list[str] = []
        self.root.mkdir(parents=True)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        self.class_names = ["odd", "even"]
        items = [Item(root / f"{number}", number % 2) for number in range(10)]
        return {"train": items, "val": items[:4], "test": items[4:]}

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor:
        self.reads.append(item.path.name)
        if item.path.name == self.broken:
            raise ReadError("it is broken")
        side = self.sides[int(item.path.name) % len(self.sides)]
        return torch.full((side, side), float(item.path.name) + (0 if train else 100))

    def join_raws(self, raws: list[Tensor]) -> Any:
        return (
            torch.stack(raws)
            if len({raw.shape for raw in raws}) == 1
            else torch.stack([r.mean().view(1) for r in raws])
        )


def batches(data: DataModule, split: str = "train") -> list[Batch]:
    data.setup()
    return list(data.loader(split))


@pytest.mark.parametrize("sides", [(2,), (2, 3)])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_same_batches(tmp_path: Path, split: str, sides: tuple[int, ...]) -> None:
    plain, kept = Squares(tmp_path / "a"), Squares(tmp_path / "b", in_memory=True)
    plain.sides = kept.sides = sides
    for ours, theirs in zip(batches(kept, split), batches(plain, split), strict=True):
        assert ours.raw.equal(theirs.raw)
        assert ours.target.equal(theirs.target)
        assert ours.index.equal(theirs.index)


def test_items_are_read_once(tmp_path: Path) -> None:
    data = Squares(tmp_path, in_memory=True)
    data.setup()
    for epoch in range(3):
        loader = data.loader("train")
        loader.batch_sampler.set_epoch(epoch)
        list(loader)
    assert sorted(data.reads[1:]) == sorted(map(str, range(10))), (
        "the first is read once more, to see its size"
    )
    before = len(data.reads)
    list(data.loader("test"))
    assert len(data.reads) == before + 6, "the test split is read as ever"


def test_training_samples_are_not_those_of_evaluation(tmp_path: Path) -> None:
    data = Squares(tmp_path, in_memory=True)
    data.setup()
    (first, *_), (again, *_) = data.loader("train", train=False), data.loader("train")
    assert first.raw.min() >= 100
    assert again.raw.max() < 100


def test_broken_items_are_reported_in_every_epoch(tmp_path: Path) -> None:
    data = Squares(tmp_path, in_memory=True)
    data.broken = "3"
    data.setup()
    for _ in range(2):
        read = list(data.loader("val"))
        assert [batch.failures for batch in read] == [[f"{data.root / '3'}: it is broken"]]
        assert read[0].index.tolist() == [0, 1, 2]


def test_what_is_read_at_random_is_refused(tmp_path: Path) -> None:
    data = Squares(tmp_path, in_memory=True)
    data.draws = True
    data.setup()
    with pytest.raises(DataError, match=r"read differently each time: say task\.data\.in_memory=false"):
        data.loader("train")
    assert len(list(data.loader("val"))) == 1


class Shifted(Squares):
    """Samples that are moved at random by what `augmented` adds."""

    draws = True
    draws_apart = True

    def read_pair(self, item: Item, train: bool, rng: np.random.Generator) -> tuple[Any, Any]:
        raw, target = self.decode(item)
        return self.augmented(raw, target, rng) if train else (raw, target)

    def decode(self, item: Item) -> tuple[Any, Any]:
        return self.read_item(item, True, np.random.default_rng(0)), item.target

    def augmented(self, raw: Any, target: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        return raw + rng.integers(1000), target


@pytest.mark.parametrize("sides", [(2,), (2, 3)])
def test_what_is_drawn_apart_is_drawn_from_memory(tmp_path: Path, sides: tuple[int, ...]) -> None:
    plain, kept = Shifted(tmp_path / "a"), Shifted(tmp_path / "b", in_memory=True)
    plain.sides = kept.sides = sides
    plain.broken = kept.broken = "3"
    seen = []
    for split in ("train", "train", "val"):
        loaders = []
        for data in (kept, plain):
            data.setup()
            loaders.append(data.loader(split))
            loaders[-1].batch_sampler.set_epoch(len(seen))
        ours, theirs = (list(loader) for loader in loaders)
        for one, other in zip(ours, theirs, strict=True):
            assert one.raw.equal(other.raw)
            assert one.target.equal(other.target)
            assert one.index.equal(other.index)
            assert len(one.failures) == len(other.failures)
        values = [(batch.index.tolist(), batch.raw.flatten(1)[:, 0].tolist()) for batch in ours]
        seen.append({i: v for index, raw in values for i, v in zip(index, raw, strict=True)})
    shared = seen[0].keys() & seen[1].keys()
    assert shared
    assert any(seen[0][index] != seen[1][index] for index in shared), "drawn anew in each epoch"
    assert len(kept.reads) < len(plain.reads)
    by_default = Shifted(tmp_path / "c", in_memory=None)
    by_default.setup()
    assert type(by_default.loader("train").dataset) is MemoryDataset


def test_by_default_only_a_sample_from_files_is_kept(tmp_path: Path) -> None:
    data = Squares(tmp_path, in_memory=None)
    data.setup()
    assert type(data.loader("train").dataset) is MemoryDataset
    data.source = "full"
    assert type(data.loader("train").dataset) is ItemDataset
    data.source, data.draws = "sample", True
    assert type(data.loader("train").dataset) is ItemDataset


def test_mixup_in_the_data_set_is_refused(tmp_path: Path) -> None:
    data = Squares(tmp_path, in_memory=True, mixup=Mixup(0.5))
    data.setup()
    with pytest.raises(DataError, match="in_memory"):
        data.loader("train")


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.datasets.in_memory._free_memory", lambda: 300)
    data = Squares(tmp_path, in_memory=True)
    data.setup()
    with pytest.raises(DataError, match=r"train would take about 0\.0 GB"):
        list(data.loader("train"))


def test_a_replaced_split_is_read_anew(tmp_path: Path) -> None:
    data = Squares(tmp_path, in_memory=True)
    data.setup()
    assert len(list(data.loader("val"))) == 1
    data.splits = {**data.splits, "val": data.splits["val"][1:2]}
    assert [batch.index.tolist() for batch in data.loader("val")] == [[0]]
    assert next(iter(data.loader("val"))).raw[0, 0, 0] == 101
