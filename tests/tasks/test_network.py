"""The one forward path: context and crops are its business, in training as in evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbone import UniRepLKNet
from modalities.audio import LogMel
from modalities.time_series import Fold
from tasks.classification import ClassificationTask
from tasks.datasets.batch import Batch
from tasks.heads import ClassificationHead
from tasks.network import Network
from tasks.task import Augment


def tiny(in_chans: int) -> UniRepLKNet:
    return UniRepLKNet(in_chans=in_chans, num_classes=0, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))


def classifier(embedder: nn.Module, maps: nn.Module | None = None) -> ClassificationTask:
    torch.manual_seed(0)
    network = Network(embedder, tiny(embedder.out_chans), ClassificationHead(16, 3))
    data_info = {"class_names": ["a", "b", "c"], "multilabel": False}
    return ClassificationTask(
        nn.CrossEntropyLoss(), network=network, data_info=data_info, augment=Augment(maps=maps)
    )


def folding() -> Fold:
    return Fold(
        look_back=24, horizon=8, mean=[0.0, 1.0], std=[1.0, 2.0], num_calendar=2, step="hour", found=8
    )


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_series_folded_into_maps_can_be_classified_in_every_split(split: str) -> None:
    """An embedder with context in front of a head that needs none: what trains must also be evaluated."""
    task = classifier(folding())
    task.train(split == "train")
    raw = task.network.embedder.example_raw(4)
    out = task.step(Batch(raw, torch.tensor([0, 1, 2, 0]), torch.arange(4)), split)
    assert out["output"].shape == (4, 3)
    assert task.predict(raw)[0].columns["label"] in task.class_names


class Told(nn.Module):
    """A head that keeps what it was told beside the features."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[dict[str, Tensor] | None] = []

    def forward(self, features: list[Tensor], views: int, context: dict[str, Tensor] | None = None) -> Tensor:
        self.contexts.append(context)
        return features[-1].mean(dim=(1, 2, 3)).unflatten(0, (-1, views))[:, :1]


def test_a_head_is_told_the_same_in_training_and_evaluation() -> None:
    embedder, head = folding(), Told()
    network = Network(embedder, tiny(embedder.out_chans), head)
    raw = embedder.example_raw(2)
    network(raw, augment=lambda maps: 2 * maps)
    network(raw)
    trained, evaluated = head.contexts
    assert trained is not None
    assert evaluated is not None
    assert set(trained) == set(evaluated) == {"loc", "scale"}
    torch.testing.assert_close(trained, evaluated)


class Twice(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return 2 * maps


def test_maps_are_augmented_in_training_only() -> None:
    task = classifier(LogMel(num_mel_bins=32, num_frames=32), Twice()).eval()
    raw = torch.randn(2, 8000)
    maps = task.network.maps(raw)
    torch.testing.assert_close(task(raw, train=True), task.network.forward_maps(2 * maps))
    torch.testing.assert_close(task(raw), task.network.forward_maps(maps))


def test_crops_are_read_one_by_one_and_averaged() -> None:
    network = classifier(LogMel(num_mel_bins=32, num_frames=32)).network.eval()
    raw = torch.randn(2, 3, 8000)
    each = torch.stack([network(raw[:, crop]) for crop in range(3)])
    torch.testing.assert_close(network(raw), each.mean(0), rtol=1e-4, atol=1e-5)


def test_another_runner_is_taken_on_every_way() -> None:
    task = classifier(LogMel(num_mel_bins=32, num_frames=32)).eval()
    calls: list[Any] = []

    def counted(*inputs: Any) -> Tensor:
        calls.append(inputs)
        return task.network.forward_maps(*inputs)

    task.network.runner = counted
    raw = torch.randn(2, 8000)
    batch = Batch(raw, torch.tensor([0, 1]), torch.arange(2))
    for split in ("train", "val", "test"):
        task.step(batch, split)
    task.predict(raw)
    assert len(calls) == 4


def test_nothing_outside_the_backbone_asks_which_one_it_is() -> None:
    root = Path(__file__).parents[2]
    asking = [
        f"{file.relative_to(root)}:{number}"
        for package in ("modalities", "tasks", "workbench")
        for file in sorted((root / package).rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if "UniRepLKNet" in line and ("import" in line or "isinstance" in line or "cast(" in line)
    ]
    assert asking == []
