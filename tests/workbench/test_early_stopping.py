"""callbacks=early_stopping: when a run stops, what is said, and what a resumed run does."""

import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from tests_support import TINY

from workbench.callbacks.early_stopping import EarlyStopping

Act = Callable[..., Path]

# A rate of next to 0: nothing improves.
WORDS = (
    *TINY,
    "task=audio_folder",
    "task.data.batch_size=4",
    "optimizer.lr=1e-30",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "trainer.max_epochs=9",
    "action.test_after=false",
    "callbacks=early_stopping",
    "logger=csv",
    "task.monitor=val/acc",
)


def epochs(run: Path) -> int:
    return len(pd.read_csv(run / "metrics.csv")["epoch"].unique())


def stops(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for record in caplog.records if (text := record.getMessage()).startswith("early stopping: ")]


def test_a_resumed_run_has_the_patience_of_its_command(act: Act, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "widefield")
    words = (*WORDS, "callbacks.early_stopping.min_delta=0.9")
    run = act(*words, "callbacks.early_stopping.patience=2")
    assert epochs(run) == 3
    (said,) = stops(caplog)
    assert said.startswith("early stopping: Monitored metric val/acc did not improve in the last 2 records.")
    caplog.clear()
    act(*words, "callbacks.early_stopping.patience=4", f"resume={run}")
    assert epochs(run) == 5, "two epochs without improvement before, two now"
    assert len(stops(caplog)) == 1
    caplog.clear()
    act(*words, "callbacks.early_stopping.patience=20", f"resume={run}")
    assert epochs(run) == 9
    assert not stops(caplog), "it came to its end"


def test_patience_counts_validations(act: Act) -> None:
    words = ("callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_delta=0.9")
    assert epochs(act(*WORDS, *words, "trainer.check_val_every_n_epoch=2")) == 6


def test_a_metric_that_is_not_measured_is_one_sentence(act: Act, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit):
        act(*WORDS, "trainer.limit_val_batches=0")
    assert "callbacks.early_stopping.monitor=val/acc was not measured" in caplog.records[-1].getMessage()


def test_checkpoints_of_lightnings_callback_are_read() -> None:
    old = LightningEarlyStopping("val/acc", mode="max", patience=5)
    old.wait_count, old.best_score = 4, torch.tensor(0.5)
    new = EarlyStopping("val/acc", mode="max", patience=7)
    assert new.state_key == old.state_key
    new.load_state_dict(old.state_dict())
    assert (new.wait_count, new.best_score, new.patience) == (4, 0.5, 7)
