"""A run that was killed and continued ends with the very weights of an unbroken one."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from tests_support import TINY, only_run, weights
from warm_runs import WarmRuns

# Everything random that training has: shuffling, crops, masks, mixup, drop path, dropout.
WORDS = (
    *TINY,
    "task=audio_folder",
    "task.data.limit=96",
    "trainer.max_epochs=4",
    "task.data.batch_size=4",
    "task.head.dropout=0.2",
    "backbone.model.drop_path_rate=0.2",
    "modality.augment.mixup={_target_: modalities.audio_augment.WaveformMixup, prob: 0.6, alpha: 10.0}",
    "modality.augment.maps.noise=0.1",
    "task.data.mixup={_target_: tasks.datasets.mixing.Mixup, prob: 0.5}",
    "logger=csv",
)

SHORT = (  # two epochs of four steps
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=3",
    "trainer.limit_test_batches=3",
    "task.data.num_workers=0",
)


@pytest.fixture(scope="module")
def runs(samples: Path) -> Iterator[WarmRuns]:
    with WarmRuns(f"paths.samples={samples}", *WORDS) as started:
        yield started


@pytest.fixture(scope="module")
def unbroken(runs: WarmRuns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run = runs.start(folder)
    assert run.wait() == 0, run.said
    return only_run(folder)


@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGTERM, signal.SIGINT))],
)
def test_killed_and_continued(how: signal.Signals, tmp_path: Path, runs: WarmRuns, unbroken: Path) -> None:
    killed = runs.start(tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")):  # the first epoch is complete
        assert killed.poll() is None, killed.said
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)  # into the middle of the next
    os.kill(killed.pid, how)
    code = killed.wait()
    assert code != 0
    run = only_run(tmp_path)
    assert not (run / "result.json").exists()
    stopped = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert stopped["epoch"] < 3, "the kill came too late to mean anything"
    if how is not signal.SIGKILL:
        assert code == 128 + how
        assert f"resume={run.relative_to(tmp_path)}" in killed.said

    continued = runs.start(tmp_path, "resume=auto")
    assert continued.wait() == 0, continued.said
    assert only_run(tmp_path) == run
    _assert_same(run, unbroken)


def _assert_same(run: Path, unbroken: Path) -> None:
    whole, continued = weights(unbroken), weights(run)
    assert whole.keys() == continued.keys()
    different = [name for name in whole if not torch.equal(whole[name], continued[name])]
    assert not different
    assert pd.read_csv(run / "metrics.csv")["epoch"].tolist() == [0, 1, 2, 3]
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (run, unbroken))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["best"] == theirs["best"]


@pytest.mark.parametrize(
    ("hook", "batch", "step"),
    [
        ("on_train_batch_start", 1, 2),
        ("on_train_batch_end", 1, 3),  # this step's chance to stop has just passed
        ("on_train_batch_end", 3, 4),  # the epoch's last: its validation comes first
        ("on_validation_batch_end", 0, 4),
    ],
)
def test_sigterm_at_any_moment_saves_and_says_how_to_go_on(
    act: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    hook: str,
    batch: int,
    step: int,
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = f"+callbacks.stop={{_target_: callbacks_support.StopAt, epoch: 0, batch: {batch}, hook: {hook}}}"
    with pytest.raises(SystemExit) as stopped:
        act(*WORDS, *SHORT, stop)
    assert stopped.value.code == 128 + signal.SIGTERM
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == step
    said = f"stopped by SIGTERM, saved in {last}; to go on, repeat the command with resume={run}"
    assert caplog.records[-1].getMessage() == said
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_in_the_test_after_training_is_no_success(
    act: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = "+callbacks.stop={_target_: callbacks_support.StopAt, epoch: 2, batch: 0, hook: on_test_batch_end}"
    with pytest.raises(SystemExit) as stopped:
        act(*WORDS, *SHORT, stop)
    assert stopped.value.code == 128 + signal.SIGTERM
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    said = (
        f"stopped by SIGTERM, the last checkpoint is {last}; to go on, repeat the command with resume={run}"
    )
    assert caplog.records[-1].getMessage() == said
    assert not (run / "result.json").exists()
    run = act(*WORDS, *SHORT, f"resume={tmp_path / 'run'}")
    whole = act(*WORDS, *SHORT, folder="whole")
    continued, unbroken = (json.loads((folder / "result.json").read_text()) for folder in (run, whole))
    for key in ("metrics", "best", "best_epoch", "epochs"):
        assert continued[key] == unbroken[key], (
            "validation and test both, though only the test was still to do"
        )


def test_another_command_is_refused(
    command: Callable[..., subprocess.CompletedProcess[str]], act: Callable[..., Path], tmp_path: Path
) -> None:
    words = (*TINY, "task=audio_folder", "task.data.limit=24")
    run = act(*words)
    done = command(tmp_path, *words, f"resume={run}", "optimizer.lr=0.5")
    assert done.returncode == 1
    assert "optimizer.lr was 0.002, now 0.5" in done.stderr + done.stdout
