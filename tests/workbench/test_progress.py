"""The line that a run prints after each epoch."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import TINY

WORDS = (*TINY, "task=audio_folder", "task.data.limit=16", "logger=[]", "action.test_after=false")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_only_epochs_with_a_validation_say_its_values(
    act: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Between two validations the trainer still holds the values of the older one."""
    with caplog.at_level(logging.INFO, "widefield"):
        act(*WORDS, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    assert [line.partition("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert ["val/loss" in line for line in lines] == [False, True, False]
    assert all("train/loss" in line for line in lines)
