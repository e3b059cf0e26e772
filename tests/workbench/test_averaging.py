"""Averaged weights: the average is in the model during validation, the trained weights before and after it."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from workbench.callbacks.averaging import AveragedWeights, EpochAverage, ExponentialAverage
from workbench.errors import UsageError

DECAY, LR = 0.5, 0.25


class Tied(LightningModule):
    """Two names for one layer, as the tasks of a joint run have for their backbone, and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = self.first
        self.own = nn.Parameter(torch.ones(1))
        nn.init.ones_(self.first.weight)
        self.seen: list[float] = []  # of the shared weight, in validation

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.first.weight + self.own).sum()  # a gradient of 1

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(self.first.weight.item())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=LR)


class Watched(Callback):
    """Notes the shared weight at the start of every training step."""

    def __init__(self) -> None:
        self.trained: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.trained.append(pl_module.first.weight.item())


def fit(
    model: Tied, folder: Path, *callbacks: Callback, epochs: int = 3, ckpt: Path | None = None
) -> Trainer:
    samples: Any = [torch.zeros(1)] * 4
    data = DataLoader(samples)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(model, data, data, ckpt_path=ckpt)
    return trainer


def expected(epochs: int) -> tuple[list[float], list[float]]:
    """The shared weight before every step, and its average in every validation, by hand."""
    weight = average = 1.0
    trained, averages = [], []
    for _ in range(epochs):
        for _ in range(4):
            trained.append(weight)
            weight -= LR
            average = DECAY * average + (1 - DECAY) * weight
        averages += [average] * 4
    return trained, averages


@pytest.mark.filterwarnings("ignore:.*(LeafSpec|log_every_n_steps|does not have many workers).*")
class TestShared:
    """A weight with two names."""

    def test_training_goes_on_from_the_trained_weights(self, tmp_path: Path) -> None:
        model, watched = Tied(), Watched()
        fit(model, tmp_path, ExponentialAverage(DECAY, warmup=False), watched)
        trained, averages = expected(3)
        assert watched.trained == trained
        assert model.seen == averages
        assert model.first.weight.item() == averages[-1], "the average stays after training"

    def test_a_resumed_run_is_an_uninterrupted_one(self, tmp_path: Path) -> None:
        model, average = Tied(), ExponentialAverage(DECAY, warmup=False)
        trainer = fit(model, tmp_path, average, epochs=2)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        again, watched = Tied(), Watched()
        callbacks = (ExponentialAverage(DECAY, warmup=False), watched)
        fit(again, tmp_path, *callbacks, epochs=3, ckpt=tmp_path / "last.ckpt")
        trained, averages = expected(3)
        assert watched.trained == trained[8:]
        assert again.seen == averages[8:]

    def test_a_checkpoint_has_every_name(self, tmp_path: Path) -> None:
        model = Tied()
        trainer = fit(model, tmp_path, ExponentialAverage(DECAY, warmup=False), epochs=1)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        content = torch.load(tmp_path / "last.ckpt", weights_only=True)
        for state in (content["state_dict"], content["training_state_dict"]):
            assert state.keys() == {"first.weight", "second.weight", "own"}
            assert state["first.weight"].equal(state["second.weight"])
        assert content["training_state_dict"]["own"].item() == 1 - 4 * LR

    def test_two_averages_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="of ema and weight_average a run can have one, not both"):
            fit(Tied(), tmp_path, ExponentialAverage(), EpochAverage())

    @pytest.mark.parametrize(("start", "said"), [(1, False), (2, True), (10, True)])
    def test_an_average_of_one_epoch_is_said(
        self, start: int, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "widefield"):
            fit(Tied(), tmp_path, EpochAverage(start))
        assert ("nothing is averaged" in caplog.text) == said


def test_an_empty_tensor_is_no_other_ones_name() -> None:
    model: Any = nn.ParameterDict({"a": nn.Parameter(torch.zeros(0)), "b": nn.Parameter(torch.zeros(0))})
    assert AveragedWeights._state(model).keys() == {"a", "b"}
