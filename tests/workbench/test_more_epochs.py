"""`resume=RUN trainer.max_epochs=MORE`: a run goes on beyond its plan, and says what becomes of the learning rate."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import OmegaConf
from tests_support import TINY
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from tasks.schedules import cosine
from workbench.callbacks.replan import refuse_kept_plan
from workbench.errors import UsageError
from workbench.resolvers import can_go_on

Act = Callable[..., Path]

WORDS = (
    *TINY,
    "task=audio_folder",
    "task.data.batch_size=4",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "action.test_after=false",
    "callbacks=[]",
    "logger=csv",
    "+callbacks.rates={_target_: callbacks_support.Rates, file: ${paths.run}/rates.txt}",
)


def rates(run: Path) -> list[float]:
    return [float(line) for line in (run / "rates.txt").read_text().split()]


def test_a_finished_run_goes_on_as_if_it_had_been_planned_so(
    act: Act, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "widefield")
    words = (*WORDS, "trainer.limit_train_batches=4")
    whole = act(*words, "trainer.max_epochs=4", folder="whole")
    run = act(*words, "trainer.max_epochs=2")
    assert rates(run)[-1] < 0.2 * max(rates(run)), "the cosine has come down"
    with pytest.raises(SystemExit):
        act(*words, "trainer.max_epochs=1", f"resume={run}")
    assert "2 epochs of this run are complete" in caplog.records[-1].getMessage()
    caplog.clear()
    act(*words, "trainer.max_epochs=4", f"resume={run}")
    assert pd.read_csv(run / "metrics.csv")["epoch"].tolist() == [0, 1, 2, 3]
    assert rates(run)[8:] == rates(whole)[8:]
    assert rates(run)[:8] != rates(whole)[:8]
    text = "instead of"
    (said,) = [record.getMessage() for record in caplog.records if text in record.getMessage()]
    assert said.startswith(
        "resume: 4 epochs instead of 2; the schedule is that of a run planned so from the beginning"
    )
    before, now, half, end = rates_said(said)
    assert [now, end] == pytest.approx([rates(whole)[8], rates(whole)[-1]], rel=5e-3)
    assert before < end < half < now


def test_a_run_that_goes_on_is_unfinished_until_its_new_end(act: Act, tmp_path: Path) -> None:
    """Its best checkpoint may already be another than the one that the result is about."""
    run = act(*WORDS, "trainer.max_epochs=1")
    assert (run / "result.json").is_file()
    stop = "+callbacks.stop={_target_: callbacks_support.StopAt, epoch: 1, batch: 0}"
    with pytest.raises(SystemExit):
        act(*WORDS, "trainer.max_epochs=2", f"resume={run}", stop)
    assert not (run / "result.json").exists()
    assert can_go_on(run, {"backbone": "widefield_nano"}), "resume=auto finds it"
    act(*WORDS, "trainer.max_epochs=2", f"resume={run}")
    assert json.loads((run / "result.json").read_text())["epochs"] == 2


def test_the_plan_before_stands_until_every_process_has_read_it(
    act: Act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that the trainer starts later go by `config.yaml` where a checkpoint is of an earlier version."""
    run = act(*WORDS, "trainer.max_epochs=1")
    seen: list[int] = []
    barrier = SingleDeviceStrategy.barrier

    def watched(strategy: SingleDeviceStrategy, name: str | None = None) -> None:
        seen.append(OmegaConf.load(run / "config.yaml").trainer.max_epochs)
        barrier(strategy)

    monkeypatch.setattr(SingleDeviceStrategy, "barrier", watched)
    act(*WORDS, "trainer.max_epochs=2", f"resume={run}")
    assert seen[0] == 1, "when the processes wait for each other"
    assert seen[-1] == 2


def rates_said(sentence: str) -> list[float]:
    return [
        float(word.strip(","))
        for word in sentence.split()
        if word[0].isdigit() and ("." in word or "e" in word)
    ]


def test_a_schedule_that_knows_no_end_goes_on_as_it_was(act: Act, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "widefield")
    words = (*WORDS, "scheduler=exponential", "scheduler.start_epoch=1", "scheduler.gamma=0.5")
    run = act(*words, "trainer.max_epochs=1")
    act(*words, "trainer.max_epochs=2", f"resume={run}")
    steps = [rate for epoch in (1, 0.5) for rate in [0.002 * epoch] * 2]
    assert rates(run) == pytest.approx(steps)
    assert "2 epochs instead of 1; the schedule goes on as it was" in caplog.text


def test_a_schedule_that_keeps_its_plan_is_refused() -> None:
    def one_cycle(optimizer: torch.optim.Optimizer, *, total_steps: int, steps_per_epoch: int) -> OneCycleLR:
        return OneCycleLR(optimizer, 0.1, total_steps=total_steps)

    def fixed(
        optimizer: torch.optim.Optimizer, *, total_steps: int, steps_per_epoch: int
    ) -> CosineAnnealingLR:
        return CosineAnnealingLR(optimizer, T_max=50)

    with pytest.raises(
        UsageError, match=r"trainer.max_epochs=9: OneCycleLR keeps .*total_steps.*init_from=RUN"
    ):
        refuse_kept_plan(one_cycle, 9)
    refuse_kept_plan(fixed, 9)
    refuse_kept_plan(cosine, 9)
