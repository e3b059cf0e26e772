"""The numbers of result.json are those of the weights in the checkpoint it names, whatever callbacks a run has."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import torch
from lightning import Trainer
from omegaconf import DictConfig
from tests_support import TINY

from workbench.callbacks.averaging import TRAINING_STATE, EpochAverage, ExponentialAverage
from workbench.callbacks.best import BestCheckpoint

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]

# Few steps at a high rate: the weights of one epoch, of the next and their average are far apart.
WORDS = (
    *TINY,
    "task=audio_folder",
    "task.data.limit=24",
    "task.data.batch_size=4",
    "trainer.max_epochs=4",
    "optimizer.lr=0.02",
    "logger=csv",
)


def result(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def measured(composed: Compose, samples: Path, folder: Path, ckpt: Path) -> dict[str, float]:
    """Validation and test of a checkpoint as anybody measures it who only has the file."""
    from workbench.test import trained

    cfg = composed(*TINY, f"ckpt={ckpt}", f"paths.samples={samples}", f"paths.run={folder}", "action=test")
    _, data, task, _ = trained(cfg)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    found: dict[str, float] = {}
    for evaluate in (trainer.validate, trainer.test):
        (values,) = evaluate(task, datamodule=data, verbose=False)
        found |= values
    return found


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("callbacks=ema",),
        ("callbacks=[default,ema]", "callbacks.ema.decay=0.95", "callbacks.ema.warmup=false"),
        pytest.param(
            ("callbacks=early_stopping", "callbacks.early_stopping.patience=1"), marks=pytest.mark.slow
        ),
        ("callbacks=[ema,early_stopping]", "trainer.accumulate_grad_batches=2"),
        ("callbacks=weight_average", "callbacks.weight_average.start_epoch=1"),
        pytest.param(
            ("callbacks=ema", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=5"),
            marks=pytest.mark.slow,
        ),
        ("callbacks=ema", "+trainer.val_check_interval=0.5"),
        ("callbacks=ema", "~callbacks.best"),
        pytest.param(("callbacks=[]", "logger=[]", "~callbacks.best"), marks=pytest.mark.slow),
        pytest.param(("callbacks=ema", "task.monitor=val/loss"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_numbers_are_those_of_the_checkpoint(
    words: tuple[str, ...], act: Act, composed: Compose, samples: Path, tmp_path: Path
) -> None:
    run = act(*WORDS, *words)
    said = result(run)
    file = "last.ckpt" if "~callbacks.best" in words else "best.ckpt"
    assert said["checkpoint"] == str(run / "checkpoints" / file)
    found = measured(composed, samples, tmp_path / "again", Path(said["checkpoint"]))
    assert set(said["metrics"]) == set(found)
    assert said["metrics"] == pytest.approx(found, rel=1e-5)
    assert said["best"] == said["metrics"][said["monitor"]]
    again = act(*TINY, "action=test", "task=audio_folder", f"ckpt={said['checkpoint']}", folder="test")
    for name, value in result(again)["metrics"].items():
        assert value == pytest.approx(said["metrics"][name], rel=1e-5)
    content = torch.load(said["checkpoint"], weights_only=True)
    if said["best_epoch"] is not None:
        assert content["epoch"] == said["best_epoch"]
    if any("ema" in word for word in words):
        apart = [
            not torch.equal(content[TRAINING_STATE][name], value)
            for name, value in content["state_dict"].items()
        ]
        assert any(apart), "the average and the weights are told apart"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trainer.check_val_every_n_epoch=9",), "has no val/acc and they were not chosen by it"),
        (("trainer.limit_val_batches=0",), "has no val/acc and they were not chosen by it"),
        (("trainer.check_val_every_n_epoch=3", "~callbacks.best"), "has no val/acc"),  # of 4 epochs
    ],
)
def test_weights_that_were_not_validated_have_no_validation_metrics(
    words: tuple[str, ...], said: str, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    found = result(act(*WORDS, *words))
    assert found["best"] is found["best_epoch"] is None
    assert found["checkpoint"].endswith("last.ckpt")
    assert {name.partition("/")[0] for name in found["metrics"]} == {"test"}
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert sum(message.endswith(said) for message in warnings) == 1


def test_best_epoch_need_not_be_the_last(act: Act) -> None:
    """With a rate that only spoils the weights the first epoch stays the best, and its numbers are given."""
    run = act(*WORDS, "task.monitor=val/loss", "optimizer.lr=0.3", "scheduler=constant")
    history = pd.read_csv(run / "metrics.csv").set_index("epoch")
    said = result(run)
    best = int(history["val/loss"].idxmin())
    assert said["best_epoch"] == best
    for name in ("val/loss", "val/acc", "val/macc"):
        assert said["metrics"][name] == pytest.approx(history.loc[best, name], rel=1e-6)


def test_an_average_reaches_the_weights_in_a_short_run(act: Act) -> None:
    """24 steps: without warm-up an average with 0.999 is untrained still."""
    distance = {}
    for warmup in ("true", "false"):
        run = act(*WORDS, "callbacks=ema", f"callbacks.ema.warmup={warmup}", folder=warmup)
        content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        name = "network.head.linear.weight"
        distance[warmup] = float((content[TRAINING_STATE][name] - content["state_dict"][name]).norm())
    assert distance["true"] < 0.5 * distance["false"]


def test_an_average_by_hand() -> None:
    class Steps:
        current_epoch, is_last_batch = 0, False

    trainer = Steps()
    plain, warm = ExponentialAverage(0.9, warmup=False), ExponentialAverage(0.9)
    assert plain.share(cast(Trainer, trainer)) == pytest.approx(0.1)
    assert warm.share(cast(Trainer, trainer)) == pytest.approx(0.9)  # 1 - 1/10
    warm.updates = 1000
    assert warm.share(cast(Trainer, trainer)) == pytest.approx(0.1)
    epochs = EpochAverage(start_epoch=2)
    assert epochs.share(cast(Trainer, trainer)) is None
    trainer.is_last_batch = True
    shares = []
    for trainer.current_epoch in range(5):
        shares.append(epochs.share(cast(Trainer, trainer)))
    assert shares == [1, 1, 1, 1 / 2, 1 / 3], "before epoch 2 the weights themselves, then their mean"


def test_mean_of_epochs(act: Act) -> None:
    run = act(*WORDS, "callbacks=weight_average", "callbacks.weight_average.start_epoch=2",
              "+callbacks.keep={_target_: lightning.pytorch.callbacks.ModelCheckpoint, filename: '{epoch}', "
        "monitor: val/loss, "
              f"dirpath: {'${paths.run}'}/kept, save_top_k: -1, save_on_train_epoch_end: true}}")  # fmt: skip
    contents = {
        int(file.stem.split("=")[1]): torch.load(file, weights_only=True) for file in (run / "kept").iterdir()
    }
    name = "network.head.linear.weight"
    both = [contents[epoch][TRAINING_STATE][name] for epoch in (2, 3)]
    torch.testing.assert_close(contents[3]["state_dict"][name], (both[0] + both[1]) / 2)
    assert torch.equal(contents[1]["state_dict"][name], contents[1][TRAINING_STATE][name])


@pytest.mark.parametrize("batch", [1, 4])
def test_an_average_stopped_in_an_epoch_goes_on_exactly(batch: int, act: Act, tmp_path: Path) -> None:
    words = (*WORDS, "callbacks=ema", "trainer.max_epochs=3", "task.data.num_workers=0")
    whole = torch.load(act(*words, folder="whole") / "checkpoints" / "last.ckpt", weights_only=True)
    stop = f"+callbacks.stop={{_target_: callbacks_support.StopAt, epoch: 1, batch: {batch}}}"
    with pytest.raises(SystemExit) as stopped:
        act(*words, stop, folder="parts")
    assert stopped.value.code == 128 + signal.SIGTERM
    run = act(*words, f"resume={tmp_path / 'parts'}", folder="parts")
    parts = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for state in ("state_dict", TRAINING_STATE):
        different = [
            name for name, value in whole[state].items() if not torch.equal(value, parts[state][name])
        ]
        assert not different, state
    (updates,) = (
        {
            state["updates"]
            for name, state in content["callbacks"].items()
            if name.startswith("ExponentialAverage")
        }
        for content in (parts,)
    )
    assert updates == {whole["global_step"]}, "one update a step"


class Rounds:
    """A trainer as BestCheckpoint sees it."""

    sanity_checking, is_last_batch = False, True

    def __init__(self) -> None:
        self.state = type("State", (), {"fn": "fit"})
        self.saved: list[int] = []
        self.current_epoch = 0
        self.callback_metrics: dict[str, float] = {}

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(self.current_epoch)

    def play(self, best: BestCheckpoint, rounds: list[dict[str, float]]) -> list[int]:
        for self.current_epoch, self.callback_metrics in enumerate(rounds):
            best.on_validation_end(cast(Trainer, self), cast(Any, None))
            best.on_train_epoch_end(cast(Trainer, self), cast(Any, None))
        return self.saved


NAN = float("nan")


@pytest.mark.parametrize(
    ("mode", "rounds", "saved"),
    [
        ("max", [(0.5, 0.42), (0.5, 0.17), (0.5, 0.3), (0.4, 0.1)], [0, 1]),  # a tie: the loss decides
        ("max", [(0.5, 0.4), (0.5, 0.4)], [0]),
        ("min", [(0.5, 0.4), (0.3, 0.9), (0.4, 0.1)], [0, 1]),
        ("max", [(NAN, 0.4), (0.1, 0.4), (NAN, 0.1)], [0, 1]),
        ("min", [(NAN, 0.4), (NAN, 0.4), (0.1, 0.4)], [0, 2]),
        ("max", [(0.5, NAN), (0.5, 0.9)], [0, 1]),
    ],
)
def test_ties_and_numbers_that_are_none(
    mode: str, rounds: list[tuple[float, float]], saved: list[int], tmp_path: Path
) -> None:
    best = BestCheckpoint(str(tmp_path / "best.ckpt"), "val/m", mode)
    assert Rounds().play(best, [{"val/m": metric, "val/loss": loss} for metric, loss in rounds]) == saved
    assert best.epoch == saved[-1]
    assert best.metrics["val/loss"] == rounds[saved[-1]][1] or saved == [0]


def test_an_epoch_without_validation_is_not_compared(tmp_path: Path) -> None:
    best, rounds = BestCheckpoint(str(tmp_path / "best.ckpt"), "val/m", "max"), Rounds()
    best.on_train_epoch_end(cast(Trainer, rounds), cast(Any, None))
    assert rounds.saved == []
    assert best.epoch is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("task.monitor=val/loss", "task.mode=max"),
            "val/loss is better when it is smaller; leave task.mode out",
        ),
        (("task.mode=min",), "val/acc is better when it is larger"),
        (("task.monitor=val/typo",), "val/typo is not measured here: take one of val/acc, val/macc"),
        (("task.monitor=train/loss",), "train/loss is not measured here"),
        (("task.monitor=val/map",), "val/map is not measured here"),
    ],
)
def test_a_monitor_that_cannot_serve_is_refused_before_training(
    words: tuple[str, ...], said: str, act: Act, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        act(*WORDS, *words)
    (error,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_learning_rates_are_columns(act: Act) -> None:
    run = act(*WORDS, "optimizer.layer_decay=0.5", "scheduler=exponential", "scheduler.start_epoch=2",
              "scheduler.gamma=0.1")  # fmt: skip
    history = pd.read_csv(run / "metrics.csv")
    assert history["lr"].tolist() == pytest.approx([0.02, 0.02, 0.002, 0.0002])
    layers = [column for column in history if column.startswith("lr/layer_")]
    assert layers == [f"lr/layer_{layer:02d}" for layer in range(6)]
    assert history["lr/layer_00"].tolist() == pytest.approx([rate * 0.5**5 for rate in history["lr"]])
    assert history["lr/layer_05"].tolist() == history["lr"].tolist()


def test_tensorboard_has_the_whole_configuration(act: Act) -> None:
    from omegaconf import OmegaConf

    run = act(*WORDS, "trainer.max_epochs=1", "logger=tensorboard")
    hparams = OmegaConf.load(run / "tensorboard" / "hparams.yaml")
    for key, value in (
        ("optimizer.lr", 0.02),
        ("task.data.limit", 24),
        ("backbone.model.dims", [8, 8, 16, 16]),
    ):
        assert OmegaConf.select(cast(DictConfig, hparams), key) == value
