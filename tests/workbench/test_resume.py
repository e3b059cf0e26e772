"""A run that was killed and continued ends with the very weights of an unbroken one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from tests_support import ROOT, TINY

# Everything random that training has: shuffling, crops, masks, mixup, drop path, dropout.
WORDS = (
    *TINY,
    "task=audio_folder",
    "trainer.max_epochs=4",
    "task.data.batch_size=4",
    "task.head.dropout=0.2",
    "backbone.model.drop_path_rate=0.2",
    "modality.augment.mixup={_target_: modalities.audio_augment.WaveformMixup, prob: 0.6, alpha: 10.0}",
    "modality.augment.maps.noise=0.1",
    "logger=csv",
)


def start(folder: Path, samples: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), f"paths.samples={samples}", *WORDS, *words],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = content["state_dict"]
    return state


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs" / "audio_folder").iterdir()
    return run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    process = start(folder, samples)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return only_run(folder)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_continued(how: signal.Signals, tmp_path: Path, samples: Path, unbroken: Path) -> None:
    process = start(tmp_path, samples)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")):  # the first epoch is complete
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)  # into the middle of the next
    process.send_signal(how)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    run = only_run(tmp_path)
    assert not (run / "result.json").exists()
    stopped = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert stopped["epoch"] < 3, "the kill came too late to mean anything"
    if how is not signal.SIGKILL:
        assert process.returncode == 128 + how
        assert f"resume={run.relative_to(tmp_path)}" in output

    process = start(tmp_path, samples, "resume=auto")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert only_run(tmp_path) == run
    whole, continued = weights(unbroken), weights(run)
    assert whole.keys() == continued.keys()
    different = [name for name in whole if not torch.equal(whole[name], continued[name])]
    assert not different
    assert pd.read_csv(run / "metrics.csv")["epoch"].tolist() == [0, 1, 2, 3]
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (run, unbroken))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["best"] == theirs["best"]


def test_another_command_is_refused(
    command: Callable[..., subprocess.CompletedProcess[str]], act: Callable[..., Path], tmp_path: Path
) -> None:
    run = act(*TINY, "task=audio_folder")
    done = command(tmp_path, *TINY, "task=audio_folder", f"resume={run}", "optimizer.lr=0.5")
    assert done.returncode == 1
    assert "optimizer.lr was 0.002, now 0.5" in done.stderr + done.stdout
