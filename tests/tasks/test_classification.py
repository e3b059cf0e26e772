"""The classification task against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from tests_support import Given, Identity, Pass, given_task, logits_batch
from torch import nn

from tasks.classification import ClassificationTask
from tasks.confusion_drawing import draw_confusion
from tasks.datasets.batch import Batch
from tasks.heads import ClassificationHead, ViewFusion, one_hot
from tasks.losses import CrossEntropy
from tasks.network import Network


def test_metrics_by_hand() -> None:
    """Ten classes; class 0 is always right, class 1 half the time and second best otherwise."""
    target = torch.tensor([0] * 6 + [1] * 2)
    logits = one_hot(target, 10) * 3
    logits[7, 0] = 4.0
    task = given_task(10)
    for part in (slice(0, 3), slice(3, 8)):
        task.step(logits_batch(logits[part], target[part]), "test")
    values = {name: float(value) for name, value in task.metrics["test_metrics"].compute().items()}  # type: ignore[operator]
    assert values["test/acc"] == pytest.approx(7 / 8)
    assert values["test/acc_top5"] == 1.0
    assert values["test/macc"] == pytest.approx((1 + 0.5) / 2)
    report = task.test_report()
    assert report["per_class"]["c1"] == 0.5
    assert report["confusion"][1][0] == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weighted_loss_does_not_depend_on_the_batches(smoothing: float) -> None:
    """Files are read class by class: most batches of a validation are of one class, in which weights cancel out."""
    torch.manual_seed(0)
    target = torch.tensor([0] * 9 + [1] * 3)
    logits = torch.randn(12, 2)
    weight = [0.5, 4.0]
    expected = nn.functional.cross_entropy(
        logits, target, weight=torch.tensor(weight), label_smoothing=smoothing
    )
    for size in (1, 3, 5, 12):
        task = given_task(2, loss=CrossEntropy(label_smoothing=smoothing, weight=weight))
        for first in range(0, 12, size):
            part = slice(first, first + size)
            task.measured_step(logits_batch(logits[part], target[part]), "val")
        torch.testing.assert_close(task.epoch_values("val")["val/loss"], expected)


def test_crops_are_averaged() -> None:
    task = given_task(3)
    crops = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 3.0, 0.0]]])
    assert task(crops).tolist() == [[2.0, 1.5, 0.0]]


def test_probabilities_of_crops_are_averaged_where_asked() -> None:
    """A crop that is very sure and two that lean the other way: logits and probabilities disagree."""
    crops = torch.tensor([[[9.0, 0.0], [0.0, 2.0], [0.0, 2.0]]])
    target = torch.tensor([1])
    for average, winner in (("logits", 0), ("probabilities", 1)):
        task = given_task(2, average=average)
        output = task(crops)
        assert int(output.argmax()) == winner
        step = task.step(Batch(crops, target, torch.arange(1)), "test")
        assert float(task.epoch_metrics("test")["test/acc"]) == winner
        mean = crops.mean(1).softmax(-1) if average == "logits" else crops.softmax(-1).mean(1)
        torch.testing.assert_close(output.softmax(-1), mean)
        torch.testing.assert_close(step["loss"], -mean[0, 1].log())
        (prediction,) = task.predict(crops)
        assert prediction.columns["probability"] == pytest.approx(float(mean.max()), abs=1e-6)
    several = given_task(2, multilabel=True, average="probabilities")(crops)
    torch.testing.assert_close(several.sigmoid(), crops.sigmoid().mean(1))
    with pytest.raises(ValueError, match="average must be one of logits, probabilities"):
        given_task(2, average="votes")


def test_multilabel_average_precision() -> None:
    task = given_task(2, multilabel=True)
    logits = torch.tensor([[2.0, -1.0], [1.0, 3.0], [-2.0, 2.0]])
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    task.step(logits_batch(logits, target), "val")
    value = float(task.metrics["val_metrics"].compute()["val/map"])  # type: ignore[operator]
    assert value == pytest.approx(((1 + 2 / 3) / 2 + 1.0) / 2)


def test_several_labels_need_a_binary_loss() -> None:
    with pytest.raises(ValueError, match="task/loss=bce"):
        ClassificationTask(
            nn.CrossEntropyLoss(),
            network=Network(Given(), Identity(), Pass()),
            data_info={"class_names": ["a", "b"], "multilabel": True},
        )


def test_answers_are_ranked() -> None:
    (prediction,) = given_task(3).predict(torch.tensor([[0.0, 2.0, 1.0]]), top_k=2)
    assert prediction.columns["label"] == prediction.columns["top1"] == "c1"
    assert prediction.columns["top2"] == "c2"
    assert "top3" not in prediction.columns
    assert prediction.columns["probability"] == pytest.approx(0.6652, abs=1e-4)


@pytest.mark.parametrize("how", ["mean", "max", "attention"])
def test_fusion_ignores_the_order_of_views(how: str) -> None:
    torch.manual_seed(0)
    fusion = ViewFusion(8, how)
    x_BVD = torch.randn(2, 5, 8)
    torch.testing.assert_close(fusion(x_BVD), fusion(x_BVD.flip(1)))


def test_pooling_takes_the_mean_the_most_or_both() -> None:
    map_NCHW = torch.zeros(1, 2, 4, 4)
    map_NCHW[0, 0, 1, 2] = 8.0  # a short event
    map_NCHW[0, 1] = 1.0
    mean, most, both = (
        ClassificationHead(2, 3, pool=pool).pooled(map_NCHW) for pool in ("mean", "max", "mean_max")
    )
    assert mean.tolist() == [[0.5, 1.0]]
    assert most.tolist() == [[8.0, 1.0]]
    torch.testing.assert_close(both, mean + most)
    with pytest.raises(ValueError, match="pool must be one of mean, max, mean_max, not 'sum'"):
        ClassificationHead(2, 3, pool="sum")


def test_head_takes_an_official_classifier() -> None:
    head = ClassificationHead(8, 3)
    official = {name: torch.randn(size) for name, size in
                (("norm.weight", (8,)), ("norm.bias", (8,)), ("head.weight", (3, 8)), ("head.bias", (3,)))}  # fmt: skip
    assert head.load_official(official)
    assert torch.equal(head.linear.weight, official["head.weight"])
    assert not ClassificationHead(8, 4).load_official(official)


def test_a_confusion_is_written_in_counts_or_percent() -> None:
    matrix = [[6, 2, 0], [0, 0, 0], [1, 0, 1]]
    for percent, written in ((False, ["6", "2", "1", "1"]), (True, ["75", "25", "50", "50"])):
        figure = draw_confusion(matrix, ["a", "b", "c"], "{total} samples, {right} right", percent)
        panel = figure.axes[0]
        assert [text.get_text() for text in panel.texts] == written
        assert panel.get_title() == "10 samples, 70.0% right"
        assert [label.get_text() for label in panel.get_yticklabels()] == ["a", "b", "c"]
    many = draw_confusion(np.eye(70).tolist(), [str(k) for k in range(70)], "")
    assert not many.axes[0].texts
    assert len(many.axes[0].get_yticklabels()) < 70
