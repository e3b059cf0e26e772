"""Which task a step draws, how losses are weighed, and what a joint task reports of its members."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from backbone import UniRepLKNet
from backbone.sharing import share
from modalities.audio import LogMel
from modalities.image import Pixels
from tasks.classification import ClassificationTask
from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.base import SPLITS, DataError, Item
from tasks.datasets.batch import Batch
from tasks.datasets.joint import AllInTurns, JointBatches, JointData, shares_of
from tasks.datasets.sampling import EpochBatches, ResumableLoader
from tasks.heads import ClassificationHead
from tasks.joint import FixedWeights, JointTask, UncertaintyWeights, make_weighting, member_state
from tasks.network import Network
from tasks.optimizers import create_optimizer

SIZES = {"a": 30, "b": 9, "c": 1}


# -- a reader that finds the data unusable


@pytest.mark.parametrize("workers", [0, 1])
def test_unusable_data_of_a_member_end_the_run(tmp_path: Path, workers: int) -> None:
    for split, label, number in itertools.product(SPLITS, "ab", range(2)):
        path = tmp_path / split / label / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(1600), 16000)
    member = Unusable(name="x", data_dir=str(tmp_path), batch_size=2, seconds=0.1)
    data = JointData({"x": member}, num_workers=workers)
    data.prepare_data()
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        with pytest.raises(DataError, match="the disk has gone"):
            list(loader)


class Unusable(AudioFolder):
    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor:
        raise DataError("the disk has gone")


# -- which task a step draws


@pytest.mark.parametrize(
    ("steps", "sampling", "temperature", "wanted"),
    [
        (40, "proportional", 1.0, {"a": 30, "b": 9, "c": 1}),
        (80, "proportional", 1.0, {"a": 60, "b": 18, "c": 2}),
        (9, "round_robin", 1.0, {"a": 3, "b": 3, "c": 3}),
        (10, "proportional", 1e9, {"a": 4, "b": 3, "c": 3}),
        (4, "proportional", 1e-3, {"a": 2, "b": 1, "c": 1}),  # every task gets at least one
        (100, "proportional", 2.0, None),
    ],
)
def test_shares(steps: int, sampling: str, temperature: float, wanted: dict[str, int] | None) -> None:
    shares = shares_of(SIZES, steps, sampling, temperature)
    assert sum(shares.values()) == steps
    if wanted is None:
        total = sum(math.sqrt(size) for size in SIZES.values())
        for name, size in SIZES.items():
            assert abs(shares[name] - steps * math.sqrt(size) / total) < 1
    else:
        assert shares == wanted


@pytest.mark.parametrize(
    ("steps", "sampling", "temperature", "said"),
    [
        (40, "at_random", 1.0, "must be one of round_robin, proportional"),
        (40, "proportional", 0.0, "temperature must be positive"),
        (2, "proportional", 1.0, "an epoch of 2 steps is too short for 3 tasks"),
    ],
)
def test_wrong_sampling(steps: int, sampling: str, temperature: float, said: str) -> None:
    with pytest.raises(DataError, match=said):
        shares_of(SIZES, steps, sampling, temperature)


def joint_batches(sampling: str = "proportional", steps: int = 12) -> JointBatches:
    members = {
        name: EpochBatches(size, 4, shuffle=True, drop_last=True, seed=seed)
        for seed, (name, size) in enumerate({"a": 22, "b": 13, "c": 9}.items())
    }
    shares = shares_of({name: len(batches) for name, batches in members.items()}, steps, sampling, 1.0)
    return JointBatches(members, shares, in_turns=sampling == "round_robin", seed=0)


def drawn(batches: JointBatches, epochs: int) -> list[list]:  # type: ignore[type-arg]
    found = []
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        found += list(batches)
    return found


@pytest.mark.parametrize("sampling", ["proportional", "round_robin"])
def test_a_task_goes_through_its_samples_pass_by_pass(sampling: str) -> None:
    batches = joint_batches(sampling)
    steps = drawn(batches, 5)
    assert len(steps) == 5 * 12 == 5 * len(batches)
    for name, member in batches.members.items():
        own = [[key for _, key in step] for step in steps if step[0][0] == name]
        assert len(own) == 5 * batches.shares[name]
        alone = []
        for number in itertools.count():
            member.set_epoch(number)
            alone += list(member)
            if len(alone) >= len(own):
                break
        assert own == alone[: len(own)], "the very batches it would draw on its own, in that order"


def test_turns_and_shuffled_orders() -> None:
    turns = joint_batches("round_robin").order(0)
    assert turns == ["a", "b", "c"] * 4
    shuffled = joint_batches()
    assert shuffled.order(0) != shuffled.order(1)
    assert Counter(shuffled.order(0)) == Counter(shuffled.order(1)) == shuffled.shares
    assert shuffled.order(3) == joint_batches().order(3)


def test_unequal_turns_are_spread_evenly() -> None:
    members = {name: EpochBatches(8, 1, shuffle=False, drop_last=True, seed=0) for name in "ab"}
    order = JointBatches(members, {"a": 6, "b": 2}, in_turns=True, seed=0).order(0)
    assert "".join(order) == "aabaaaba"


@pytest.mark.parametrize("stop", [1, 5, 11, 12])
def test_continued_where_it_stopped(stop: int) -> None:
    whole = drawn(joint_batches(), 3)

    def loader() -> ResumableLoader:
        batches = joint_batches()
        return ResumableLoader(
            Echo(),  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=lambda keys: {"keys": keys},
        )

    first = loader()
    first.batch_sampler.set_epoch(1)
    seen = [batch["keys"] for batch in itertools.islice(iter(first), stop)]
    again = loader()
    again.load_state_dict(first.state_dict())
    seen += [batch["keys"] for batch in again]
    if stop == 12:
        assert seen == whole[12:]
    else:
        assert seen == whole[12:24]


class Echo:
    def __getitem__(self, key: object) -> object:
        return key


def test_evaluation_sees_everything_once() -> None:
    members = {
        name: EpochBatches(size, 4, shuffle=False, drop_last=False, seed=0)
        for name, size in (("a", 9), ("b", 2))
    }
    batches = AllInTurns(members)
    keys = [key for batch in batches for key in batch]
    assert len(batches) == 4
    of_a = [("a", (i, 0)) for i in range(9)]
    assert keys == [*of_a[:4], ("b", (0, 0)), ("b", (1, 0)), *of_a[4:]], (
        "in turns: the first batches are of all tasks"
    )


# -- weights of the losses


def test_fixed_weights() -> None:
    weighting = FixedWeights({"a": 2.0, "b": 0.5})
    assert weighting("a", torch.tensor(3.0), False) == 6
    assert list(weighting.parameters()) == []
    with pytest.raises(ValueError, match="must be positive"):
        FixedWeights({"a": 0.0})
    with pytest.raises(ValueError, match="must be one of fixed, uncertainty, not learnt"):
        make_weighting("learnt", {"a": 1.0})


@pytest.mark.parametrize(("regression", "loss"), [(True, 0.3), (False, 0.3), (True, 5.0), (False, 5.0)])
def test_learnt_variance_is_the_loss_itself(regression: bool, loss: float) -> None:
    """A constant loss L has its least at sigma² = L for a Gaussian, at sigma² = 2 L for a softmax."""
    weighting = UncertaintyWeights({"a": 1.0})
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        weighting("a", torch.tensor(loss), regression).backward()
        optimizer.step()
    variance = loss if regression else 2 * loss
    assert weighting.log_variance["a"].exp().item() == pytest.approx(variance, rel=1e-2)
    factor = weighting.learnt("a")
    assert factor is not None
    assert factor.item() == pytest.approx(1 / variance, rel=1e-2)


# -- the task


@pytest.fixture
def joint() -> JointTask:
    torch.manual_seed(0)
    members = {}
    for name, embedder in (("audio", LogMel(num_mel_bins=32, num_frames=32)), ("image", Pixels(32))):
        backbone = UniRepLKNet(
            in_chans=embedder.out_chans, num_classes=0, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)
        )
        network = Network(embedder, backbone, ClassificationHead(16, 3))
        data_info = {"class_names": ["x", "y", "z"], "multilabel": False}
        members[name] = ClassificationTask(nn.CrossEntropyLoss(), network=network, data_info=data_info)
    share([member.network.backbone for member in members.values()], batch_norm=False)  # type: ignore[misc]
    monitors = {"audio": ("acc", "max"), "image": ("loss", "min")}
    return JointTask(members, monitors, FixedWeights({"audio": 2.0, "image": 3.0}))


def batch_of(name: str, count: int = 6) -> Batch:
    shape = (count, 16000) if name == "audio" else (count, 3, 32, 32)
    target = torch.arange(count) % 3
    return Batch(torch.randn(shape), target, torch.arange(count), task=name)


def test_metrics_carry_the_members_names(joint: JointTask) -> None:
    joint.eval()
    with torch.no_grad():
        out = {name: joint.measured_step(batch_of(name), "val") for name in ("audio", "image")}
    values = joint.epoch_values("val")
    assert {
        "val/audio/acc",
        "val/audio/loss",
        "val/image/acc",
        "val/image/loss",
        "val/loss",
        "val/score",
    } <= set(values)
    losses = {name: values[f"val/{name}/loss"] for name in out}
    torch.testing.assert_close(out["audio"]["loss"], 2 * losses["audio"])
    torch.testing.assert_close(values["val/loss"], 2 * losses["audio"] + 3 * losses["image"])
    torch.testing.assert_close(values["val/score"], (values["val/audio/acc"] + 1 - losses["image"]) / 2)
    assert joint.epoch_values("val") == {}, "an epoch's values are given once"
    assert joint.in_short("val/audio/acc")
    assert not joint.in_short("val/audio/loss")


def test_a_step_leaves_the_other_heads_alone(joint: JointTask) -> None:
    optimizer = create_optimizer(joint, opt="adamw", lr=0.1, weight_decay=0.05)
    before = {name: value.clone() for name, value in joint.state_dict().items()}
    joint.train()
    joint.measured_step(batch_of("audio"), "train")["loss"].backward()
    optimizer.step()
    moved = {name for name, value in joint.state_dict().items() if not torch.equal(value, before[name])}
    assert "members.audio.network.head.linear.weight" in moved
    assert "members.image.network.backbone.stages.2.0.pwconv1.1.weight" in moved
    assert not [name for name in moved if name.startswith("members.image.network.head")]


def test_a_member_is_an_ordinary_task(joint: JointTask) -> None:
    joint.train()
    joint.measured_step(batch_of("image"), "train")
    member = joint.by_task()["image"].eval()
    backbone = UniRepLKNet(in_chans=3, num_classes=0, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    alone = ClassificationTask(
        nn.CrossEntropyLoss(),
        network=Network(Pixels(32), backbone, ClassificationHead(16, 3)),
        data_info=member.data_info,
    ).eval()
    alone.load_state_dict(member_state(joint.state_dict(), "image"))
    raw = batch_of("image").raw
    assert torch.equal(alone(raw), member(raw))


def test_layer_decay_covers_every_member(joint: JointTask) -> None:
    optimizer = create_optimizer(joint, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rate[id(parameter)] for name, parameter in joint.named_parameters(remove_duplicate=False)}
    assert len(rate) == len(list(joint.parameters()))
    for member in ("members.audio.network.", "members.image.network."):
        head, last = (
            named[f"{member}head.linear.weight"],
            named[f"{member}backbone.stages.3.0.pwconv1.1.weight"],
        )
        stem = named[f"{member}backbone.downsample_layers.0.0.weight"]
        assert head == 1.0
        assert head > last > named[f"{member}backbone.stages.0.0.pwconv1.1.weight"] > stem
