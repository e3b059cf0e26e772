"""Means over classes leave out a class that has nothing to measure."""

import logging

import pytest
import torch
from tests_support import given_task, logits_batch

from tasks.metrics import MeanAveragePrecision, MeanClassAccuracy


def test_a_class_without_samples_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Confusion [[3, 0, 1], [0, 6, 0], [0, 0, 0]]: (3/4 + 1) / 2."""
    target = torch.tensor([0] * 4 + [1] * 6)
    answer = torch.tensor([0, 0, 0, 2] + [1] * 6)
    task = given_task(3)
    task.step(logits_batch(torch.nn.functional.one_hot(answer, 3).float(), target), "test")
    with caplog.at_level(logging.WARNING):
        values = task.epoch_values("test")
    assert float(values["test/macc"]) == pytest.approx(0.875)
    assert float(values["test/acc"]) == pytest.approx(0.9)
    assert task.test_report()["per_class"] == {"c0": 0.75, "c1": 1.0, "c2": None}
    assert "test: no samples of c2: their accuracy is undefined and left out of the mean" in caplog.text


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_class_without_positives_is_left_out(split: str, caplog: pytest.LogCaptureFixture) -> None:
    """Two classes ranked without a mistake, a third that nobody has."""
    task = given_task(3, multilabel=True)
    logits = torch.tensor([[3.0, -3.0, 0.0], [2.0, -2.0, 1.0], [-3.0, 4.0, 2.0]])
    target = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    if split == "train":  # its step draws maps; the metric is the same code
        task._update_metrics(logits, target, split)
        values = task.epoch_metrics(split)
    else:
        task.step(logits_batch(logits, target), split)
        values = task.epoch_values(split)
    assert float(values[f"{split}/map"]) == pytest.approx(1.0)
    assert ("no positive samples of c2" in caplog.text) == (split != "train")
    if split == "test":
        assert task.test_report() == {"per_class": {"c0": 1.0, "c1": 1.0, "c2": None}}


def test_nothing_at_all_is_no_number() -> None:
    accuracy = MeanClassAccuracy(2)
    accuracy.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    assert torch.isnan(accuracy.compute())
    precision = MeanAveragePrecision(2)
    precision.update(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.long))
    assert torch.isnan(precision.compute())


def test_it_is_said_once() -> None:
    task = given_task(2)
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("widefield").addHandler(handler)
    try:
        for _ in range(3):
            task.step(logits_batch(torch.eye(2)[:1], torch.tensor([0])), "val")
            task.epoch_values("val")
    finally:
        logging.getLogger("widefield").removeHandler(handler)
    assert len(records) == 1
