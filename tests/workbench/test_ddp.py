"""Two processes with half the batch each learn what one process learns with the whole.

Batch norm is the one part of the network that looks across samples, so `trainer=ddp` shares its statistics among the
processes; without that the two results part, as a test shows. Everything random that is not a sample's own (masks,
drop path) is off: each process draws its own. Plain gradient descent, not Adam, whose steps hide how large a gradient
is.
"""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from tests_support import ROOT, TINY

WORDS = (
    *(word for word in TINY if not word.startswith("trainer=")),
    "task=audio_folder",
    "task.data.shards.buffer=1000",  # holds all: drawn as files are
    "backbone.model.drop_path_rate=0",
    "modality.augment.raw=null",
    "modality.augment.maps=null",
    "optimizer.opt=sgd",
    "optimizer.lr=0.02",
    "scheduler=constant",
    "logger=csv",
)
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")

State = dict[str, torch.Tensor]
Run = Callable[..., Path]


def weights(run: Path) -> State:
    """Parameters and running statistics."""
    state: State = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {
        name: value
        for name, value in state.items()
        if name.startswith("network.") and value.is_floating_point()
    }


def apart(one: State, other: State, start: State) -> float:
    """The largest difference of a tensor, relative to the way it has gone since `start`.

    Tensors that have hardly moved are left out. Some cannot move, such as a bias in front of a batch norm, which takes
    it away again: their gradients are rounding errors.
    """
    assert one.keys() == other.keys()
    ways = {name: float((one[name] - start[name]).norm()) for name in one}
    moved = [name for name, way in ways.items() if way > 1e-4]
    assert len(moved) > len(ways) / 2, "something was learnt"
    return max(float((one[name] - other[name]).norm()) / ways[name] for name in moved)


def measured(run: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((run / "result.json").read_text())["metrics"]
    return metrics


@pytest.fixture(scope="module")
def alone(
    composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`alone("optimizer.lr=0", …)`: a run of one process with batches of 16."""
    from workbench.actions import run_action

    def run(*words: str) -> Path:
        folder = tmp_path_factory.mktemp("alone") / "run"
        common = (
            *WORDS,
            "trainer=cpu",
            "task.data.batch_size=16",
            f"paths.samples={samples}",
            f"paths.run={folder}",
        )
        run_action(composed(*common, *words))
        return folder

    return run


@pytest.fixture(scope="module")
def whole(alone: Run) -> Path:
    return alone()


@pytest.fixture(scope="module")
def start(alone: Run) -> State:
    """The weights every run begins with, and the statistics after a batch."""
    return weights(alone("optimizer.lr=0", "trainer.limit_train_batches=1", "action.test_after=false"))


@pytest.fixture
def together(
    new_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[Path, str]]:
    """`together(…)`: the run of two processes with batches of 8, and what they printed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))

    def run(*words: str) -> tuple[Path, str]:
        done = new_command(tmp_path, *WORDS, *TWO, "task.data.batch_size=8", *words)
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "runs").glob("*/*")  # one run folder
        return folder, done.stdout

    return run


def test_two_processes_learn_what_one_does(
    together: Callable[..., tuple[Path, str]], whole: Path, start: State, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    watch = f"+callbacks.writers={{_target_: callbacks_support.Writers, folder: {tmp_path / 'runs'}, notes: {notes}}}"
    run, said = together(watch)
    assert apart(weights(whole), weights(run), start) < 5e-3
    assert measured(run) == pytest.approx(measured(whole), rel=1e-3)
    ours, theirs = (pd.read_csv(folder / "metrics.csv") for folder in (run, whole))
    assert ours["epoch"].tolist() == [0]
    assert ours["train/loss"].iloc[0] == pytest.approx(theirs["train/loss"].iloc[0], rel=1e-3)
    # The first process writes and speaks, the second does neither.
    assert said.count("everything lies in") == 1
    written = {file.stem: set(file.read_text().split()) for file in notes.iterdir()}
    assert set(written) == {"0", "1"}
    assert any("result.json" in path for path in written["0"])
    assert not written["1"]


@pytest.mark.slow
def test_two_processes_learn_from_shards_what_one_does(
    together: Callable[..., tuple[Path, str]], alone: Run, start: State
) -> None:
    words = ("task.data.format=webdataset", "task.data.num_workers=2")
    run, _ = together(*words)
    assert apart(weights(alone(*words)), weights(run), start) < 5e-3


@pytest.mark.slow
def test_without_shared_statistics_they_part(
    together: Callable[..., tuple[Path, str]], whole: Path, start: State
) -> None:
    run, _ = together("trainer.sync_batchnorm=false")
    assert apart(weights(whole), weights(run), start) > 0.1


def test_half_a_batch_is_far_from_the_whole(alone: Run, whole: Path, start: State) -> None:
    """The comparison can fail: so it would if one process's gradients were lost."""
    assert apart(weights(whole), weights(alone("task.data.batch_size=8")), start) > 0.1


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(
    new_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    stop = (
        "+callbacks.stop={_target_: callbacks_support.StopAt, epoch: 0, batch: 3, hook: on_train_batch_end}"
    )
    done = new_command(tmp_path, *WORDS, *TWO, "task.data.batch_size=8", stop)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert (done.stdout + done.stderr).count("stopped by SIGTERM") == 1
    (last,) = (tmp_path / "runs").glob("*/*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 5
