"""Which training items are drawn and with whom they are mixed: what that does, and that a restart repeats it."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from tasks.datasets import sampling
from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.base import ClassificationData, DataError, Item, ReadError
from tasks.datasets.joint import JointData
from tasks.datasets.mixing import Mixup
from tasks.datasets.sampling import BalancedBatches, label_weights, labels_of
from tasks.datasets.targets import ClassTargets


class Skewed(ClassificationData):
    """Item n of 100 is the vector e_n and a random number; five items are of class 1, the others of class 0.

    With `multilabel` those five have both labels.
    """

    modality = "numbers"
    layout = "anything"
    broken: int | None = None

    def write_sample(self, root: Path) -> None:
        pass

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        self.class_names = ["common", "rare"]
        items = [Item(root / str(number), self.target(number), {"number": number}) for number in range(100)]
        return {"train": items, "val": items[:10], "test": items[:10]}

    def target(self, number: int) -> Any:
        if self.multilabel:
            return np.array([1, number % 20 == 7], dtype=np.float32)
        return int(number % 20 == 7)

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> torch.Tensor:
        if item.where["number"] == self.broken:
            raise ReadError("is broken")
        raw = torch.zeros(101)
        raw[item.where["number"]] = 1
        raw[100] = rng.random()
        return raw


class SkewedLabels(Skewed):
    kind = partial(ClassTargets, multilabel=True)


def skewed(folder: Path, source: type[Skewed] = Skewed, **options: Any) -> Skewed:
    data = source(name="skewed", samples_dir=str(folder), num_workers=0, **options)
    data.prepare_data()
    data.setup()
    return data


def epochs_of(data: ClassificationData, epochs: int) -> list[list[dict[str, Any]]]:
    loader, passes = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        passes.append(list(loader))
    return passes


def drawn(passes: list[list[dict[str, Any]]]) -> list[int]:
    return [index for batches in passes for batch in batches for index in batch.index.tolist()]


# -- balanced draws -------------------------------------------------------------------------------------------------


def test_weights_are_those_of_ast() -> None:
    targets = [np.array([1, 0, 0]), np.array([1, 1, 0]), np.array([1, 0, 0]), np.array([0, 0, 0])]
    common, rare = 1000 / 3.01, 1000 / 1.01
    np.testing.assert_allclose(label_weights(map(labels_of, targets), 3), [common, common + rare, common, 0])
    np.testing.assert_allclose(label_weights(map(labels_of, [0, 1, 0, 0]), 2), [common, rare, common, common])


def test_a_rare_class_is_drawn_as_often_as_a_common_one(tmp_path: Path) -> None:
    plain = drawn(epochs_of(skewed(tmp_path, batch_size=10), 40))
    balanced = drawn(epochs_of(skewed(tmp_path, batch_size=10, balance="labels"), 40))
    assert len(plain) == len(balanced) == 4000, "an epoch is as long"
    share = {
        name: np.mean([n % 20 == 7 for n in draws]) for name, draws in (("plain", plain), ("even", balanced))
    }
    assert share["plain"] == pytest.approx(0.05)
    assert share["even"] == pytest.approx(0.5, abs=0.03)
    of_each = Counter(n for n in balanced if n % 20 == 7)
    assert len(of_each) == 5
    assert max(of_each.values()) < 1.25 * min(of_each.values()), "items of a class are drawn alike"


def test_several_labels_balance_too(tmp_path: Path) -> None:
    """Weights: common 1000 / 100.01 ≈ 10, rare 1000 / 5.01 ≈ 200 more: 5 · 210 of 5 · 210 + 95 · 10."""
    balanced = drawn(epochs_of(skewed(tmp_path, SkewedLabels, batch_size=10, balance="labels"), 40))
    assert np.mean([n % 20 == 7 for n in balanced]) == pytest.approx(1050 / 2000, abs=0.03)


def test_evaluation_sees_every_item_once_all_the_same(tmp_path: Path) -> None:
    data = skewed(tmp_path, balance="labels", mixup=Mixup(prob=1.0))
    batches = list(data.val_dataloader())
    assert drawn([batches]) == list(range(10))
    assert all(batch.mixed_target is None for batch in batches)
    assert all((batch.raw[:, :100].max(1).values == 1).all() for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 6, 10])
def test_a_restart_repeats_balanced_and_mixed_batches(tmp_path: Path, workers: int, stop: int) -> None:
    options: dict[str, Any] = {"batch_size": 10, "balance": "labels", "mixup": Mixup(prob=0.5)}
    whole = [batch for batches in epochs_of(skewed(tmp_path, **options), 2) for batch in batches]
    data = skewed(tmp_path, **options)
    data.num_workers = workers
    loader = data.train_dataloader()
    passing = iter(loader)
    for _ in range(stop):
        next(passing)
    state = loader.state_dict()
    again = skewed(tmp_path, **options).train_dataloader()
    again.load_state_dict(state)
    rest = list(again)
    if stop < 10:
        again.batch_sampler.set_epoch(1)
        rest += list(again)
    assert len(rest) == len(whole) - stop
    for batch, expected in zip(rest, whole[stop:], strict=True):
        for key in ("raw", "index", "target", "mixed_target"):
            assert torch.equal(getattr(batch, key), getattr(expected, key)), key


def test_an_item_drawn_twice_is_read_in_two_ways(tmp_path: Path) -> None:
    (batches,) = epochs_of(skewed(tmp_path, batch_size=10, balance="labels"), 1)
    values: dict[int, list[float]] = {}
    for batch in batches:
        for index, raw in zip(batch.index.tolist(), batch.raw, strict=True):
            values.setdefault(index, []).append(raw[100].item())
    assert max(len(several) for several in values.values()) > 4
    assert all(len(set(several)) == len(several) for several in values.values())


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_draws_of_one(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    weights = label_weights((labels_of(n % 20 == 7) for n in range(120)), 2)

    def batches(rank: int, size: int, batch: int) -> list[list[sampling.Key]]:
        monkeypatch.setattr(sampling, "_rank_and_world", partial(lambda *both: both, rank, size))
        sampler = BalancedBatches(weights, batch, seed=4)
        sampler.set_epoch(2)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    alone = [key for part in batches(0, 1, 10 * world) for key in part]
    shares = [[key for part in batches(rank, world, 10) for key in part] for rank in range(world)]
    assert {len(share) for share in shares} == {len(alone) // world}
    assert Counter(key for share in shares for key in share) == Counter(alone)
    assert len(set(alone)) == len(alone), "the same crop of a file is never drawn twice"


def test_joint_runs_draw_balanced_members(tmp_path: Path) -> None:
    members = {
        "even": skewed(tmp_path / "a", batch_size=10, balance="labels"),
        "plain": skewed(tmp_path / "b", batch_size=10),
    }
    batches = list(JointData(members, num_workers=0).train_dataloader())
    rare = {name: 0 for name in members}
    for batch in batches:
        rare[batch.task] += int(batch.target.sum())
    assert rare["plain"] == 5
    assert rare["even"] > 30


# -- mixed with the whole split -------------------------------------------------------------------------------------


def partners(data: ClassificationData, epochs: int) -> list[tuple[int, int, float]]:
    """(item, partner, share of the item) of all mixed samples, read off the vectors."""
    found = []
    for batches in epochs_of(data, epochs):
        for batch in batches:
            for index, raw in zip(batch.index.tolist(), batch.raw[:, :100], strict=True):
                others = [int(other) for other in raw.nonzero().flatten() if other != index]
                assert len(others) <= 1
                if others:
                    found.append((index, others[0], raw[index].item()))
    return found


def test_partners_come_from_the_whole_split_alike(tmp_path: Path) -> None:
    data = skewed(tmp_path, batch_size=4, mixup=Mixup(prob=0.6, alpha=10.0))
    mixed = partners(data, 60)
    assert len(mixed) / 6000 == pytest.approx(0.6 * 0.99, abs=0.02), "a hundredth meets itself"
    counts = Counter(other for _, other, _ in mixed)
    assert len(counts) == 100
    assert np.std(list(counts.values())) < 2 * np.sqrt(len(mixed) / 100)
    shares = np.array([share for _, _, share in mixed])
    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert shares.std() == pytest.approx(1 / np.sqrt(4 * 21), abs=0.005), "Beta(10, 10)"


def test_targets_are_mixed_as_sounds_are_and_the_own_one_stays(tmp_path: Path) -> None:
    for source in (Skewed, SkewedLabels):
        data = skewed(tmp_path, source, batch_size=100, mixup=Mixup(prob=1.0))
        ((batch,),) = epochs_of(data, 1)
        table = torch.stack(
            [
                torch.as_tensor(np.eye(2, dtype=np.float32)[data.target(n)])
                if source is Skewed
                else torch.as_tensor(data.target(n))
                for n in range(100)
            ]
        )
        torch.testing.assert_close(batch.mixed_target, batch.raw[:, :100] @ table)
        assert batch.mixed_target.dtype == torch.float32
        own = [data.target(index) for index in batch.index.tolist()]
        assert np.array_equal(batch.target.numpy(), np.array(own))


def test_mixing_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    def raws(batch_size: int, seed: int = 0) -> dict[tuple[int, int], tuple[float, ...]]:
        data = skewed(tmp_path, batch_size=batch_size, seed=seed, mixup=Mixup(prob=0.6))
        return {
            (epoch, index): tuple(raw.tolist())
            for epoch, batches in enumerate(epochs_of(data, 2))
            for batch in batches
            for index, raw in zip(batch.index.tolist(), batch.raw, strict=True)
        }

    first = raws(10)
    assert raws(25) == first
    assert raws(10, seed=1) != first
    assert any(first[0, index] != first[1, index] for index in range(100))


def test_a_broken_partner_is_named(tmp_path: Path) -> None:
    data = skewed(tmp_path, batch_size=100, mixup=Mixup(prob=1.0))
    data.broken = 42
    ((batch,),) = epochs_of(data, 1)
    assert set(batch.failures) == {f"{data.root / '42'}: is broken"}
    assert len(batch.index) == 100 - len(batch.failures)


class Ragged(Skewed):
    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> torch.Tensor:
        return torch.zeros(1 + item.where["number"])


def test_what_cannot_be_mixed_is_said_in_one_sentence(tmp_path: Path) -> None:
    data = skewed(tmp_path, Ragged, batch_size=10, mixup=Mixup(prob=1.0))
    with pytest.raises(DataError, match=r"task.data.mixup: raw samples can be mixed where they are tensors"):
        list(data.train_dataloader())


@pytest.mark.parametrize("options", [{"prob": 1.5}, {"prob": 0.5, "alpha": 0.0}])
def test_wrong_mixup_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="0 <= prob <= 1 and alpha > 0"):
        Mixup(**options)


def test_wrong_balance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="balance must be none or labels, not 'bal'"):
        skewed(tmp_path, balance="bal")


@pytest.mark.parametrize("options", [{"balance": "labels"}, {"mixup": Mixup(prob=0.5)}])
def test_shards_refuse_what_would_read_them_all_over(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(
        DataError, match=r"task.data.balance and task.data.mixup.* need task.data.format=files"
    ):
        AudioFolder(name="audio_folder", samples_dir=str(tmp_path), format="webdataset", **options)


@pytest.mark.parametrize(
    "task",
    [
        "image/image_folder",
        "point_cloud/modelnet10",
        "point_cloud/radhar",
        "video/kinetics400",
        "audio/esc50",
    ],
)
def test_every_kind_of_source_takes_balance(
    composed: Callable[..., DictConfig], task: str, tmp_path: Path
) -> None:
    from hydra.utils import instantiate

    modality, name = task.split("/")
    cfg = composed(
        f"modality={modality}", f"task={name}", "task.data.balance=labels", f"paths.samples={tmp_path}"
    )
    data: ClassificationData = instantiate(cfg.task.data)
    data.class_names = ["common", "rare"]
    data.splits = {"train": [Item(Path("a"), 0)] * 95 + [Item(Path("b"), 1)] * 5}
    keys = [key for part in data.loader("train", batch_size=10).batch_sampler for key in part]
    assert len(keys) == 100
    assert sum(index >= 95 for index, *_ in keys) > 30
