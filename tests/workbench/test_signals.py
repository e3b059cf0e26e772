"""Signals, to one process or to all of a run: saved or ended within 20 s, and how to go on."""

import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.resource_sharer import DupFd
from pathlib import Path

import pytest
import torch
from tests_support import ROOT, TINY, only_run, weights
from warm_runs import WarmRun, WarmRuns

from workbench.errors import TrainingError, sentence
from workbench.files import remove_drafts
from workbench.going_on import going_on_said
from workbench.stopping import Stop

WORDS = (
    *TINY,
    "task=audio_folder",
    "task.data.batch_size=4",
    "task.head.dropout=0.2",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=12",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "logger=csv",
    "callbacks=[]",
)
READERS = "task.data.num_workers=2"


@pytest.fixture(scope="module")
def runs(samples: Path) -> Iterator[WarmRuns]:
    with WarmRuns(f"paths.samples={samples}", *WORDS) as started:
        yield started


@pytest.fixture(scope="module")
def unbroken(runs: WarmRuns, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("unbroken")
    run = runs.start(folder)
    assert run.wait() == 0, run.said
    return weights(only_run(folder))


def pause(hook: str, batch: int, seconds: float = 60) -> str:
    """Words for a run that says `paused` in a file and stays where it is."""
    return f"+callbacks.pause={{_target_: callbacks_support.Pause, hook: {hook}, batch: {batch}, seconds: {seconds}}}"


def until_paused(run: WarmRun) -> None:
    deadline = time.monotonic() + 60
    while "paused" not in run.said:
        assert run.poll() is None, run.said
        assert time.monotonic() < deadline, run.said
        time.sleep(0.02)


def readers_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def gone(pids: list[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def pasted(runs: WarmRuns, run: WarmRun, folder: Path) -> WarmRun:
    """The command that a stopped run has printed, as a shell takes it."""
    (line,) = [line for line in run.said.splitlines() if "to go on: " in line]
    python, *words = shlex.split(line.partition("to go on: ")[2])
    assert python == "python"
    output = folder / "pasted.txt"
    output.touch()
    # The pause is repeated too, since the run's record has it; it comes no more.
    return runs.paste(folder, [re.sub(r"batch: \d+", "batch: -1", word) for word in words], output)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        ),
    ],
)
def test_a_signal_to_the_whole_group_spares_the_readers(
    runs: WarmRuns, unbroken: dict[str, torch.Tensor], tmp_path: Path, number: signal.Signals
) -> None:
    run = runs.start(tmp_path, READERS, pause("on_train_batch_start", 5, seconds=0.5))
    until_paused(run)
    readers = readers_of(run.pid)
    assert len(readers) == 2
    os.kill(run.pid, number)  # as `timeout` does: to the process, then to its group
    os.killpg(run.pid, number)
    assert run.wait() == 128 + number, run.said
    assert "Traceback" not in run.said
    assert torch.load(only_run(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert f"stopped by {number.name}, saved in" in run.said
    assert gone(readers, 5)
    again = pasted(runs, run, tmp_path)
    assert again.wait() == 0, again.said
    ours = weights(only_run(tmp_path))
    assert [name for name in unbroken if not torch.equal(unbroken[name], ours[name])] == []


@pytest.mark.slow
def test_readers_end_with_a_process_that_is_killed(runs: WarmRuns, tmp_path: Path) -> None:
    run = runs.start(tmp_path, READERS, pause("on_train_batch_start", 5))
    until_paused(run)
    readers = readers_of(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert gone(readers, 10)


def test_a_killed_reader_is_one_sentence(runs: WarmRuns, tmp_path: Path) -> None:
    run = runs.start(
        tmp_path, READERS, pause("on_train_batch_start", 15, seconds=2)
    )  # of no epoch: never reached
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(readers_of(run.pid)[0], signal.SIGKILL)
    assert run.wait() == 1, run.said
    assert "Traceback" not in run.said
    (said,) = [line for line in run.said.splitlines() if line.startswith("error:")]
    assert said.startswith(
        "error: a reader process was killed, most likely because the memory ran out: lower task.data.num_workers or "
        f"task.data.batch_size; the last checkpoint is {only_run(tmp_path).relative_to(tmp_path)}"
    )
    again = pasted(runs, run, tmp_path)
    assert again.wait() == 0, again.said


def _hand_out(connection: Connection) -> None:
    """Send a file descriptor as a reader sends the memory of a batch, and wait."""
    connection.send(DupFd(os.open(os.devnull, os.O_RDONLY)))
    time.sleep(60)


def test_a_reader_killed_before_its_batch_is_fetched_is_one_sentence() -> None:
    here, there = multiprocessing.Pipe()
    reader = multiprocessing.get_context("spawn").Process(target=_hand_out, args=(there,))
    reader.start()
    handed = here.recv()
    reader.kill()
    reader.join()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)) as caught:
        handed.detach()
    assert str(sentence(caught.value)).startswith(
        "a reader process was killed, most likely because the memory"
    )


@pytest.mark.parametrize(
    "error",
    [EOFError(), ConnectionResetError("reset"), RuntimeError("received 0 items of ancdata")],
    ids=repr,
)
def test_a_reader_killed_while_its_batch_is_fetched_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("multiprocessing.connection.Client", broken)
    said = r"a reader process was killed.*; no checkpoint was made yet"
    with pytest.raises(TrainingError, match=said), going_on_said(tmp_path):
        DupFd(os.open(os.devnull, os.O_RDONLY)).detach()
    assert sentence(error) is not None
    assert sentence(type(error)("from elsewhere")) is None
    place = 'File "lib/multiprocessing/resource_sharer.py", line 57'
    pinned = f"Caught {type(error).__name__} in pin memory thread for device 0.\n  {place}"
    assert sentence(type(error)(pinned)) == sentence(error)


def test_a_second_signal_ends_at_once(runs: WarmRuns, tmp_path: Path) -> None:
    run = runs.start(tmp_path, READERS, pause("on_train_batch_start", 5))
    until_paused(run)
    os.killpg(run.pid, signal.SIGINT)
    time.sleep(1)
    assert run.poll() is None, "the step is waited for"
    asked = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait() == 128 + signal.SIGINT
    assert time.monotonic() - asked < 5
    assert "Traceback" not in run.said
    assert "stopped by SIGINT, no checkpoint was made yet" in run.said


def test_ctrl_c_before_the_first_batch(runs: WarmRuns, tmp_path: Path) -> None:
    run = runs.start(tmp_path, READERS, pause("setup", 0))
    until_paused(run)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(10) == 128 + signal.SIGINT
    assert "Traceback" not in run.said
    assert "stopped by SIGINT, no checkpoint was made yet" in run.said


def test_a_long_validation_is_left_and_made_again(
    act: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (*WORDS, "trainer.limit_train_batches=3", "callbacks=[ema]")
    whole = act(*words, folder="whole")
    monkeypatch.setattr("workbench.callbacks.interrupt.PATIENCE", 0.3)
    stop = (
        "+callbacks.stop={_target_: callbacks_support.StopAt, epoch: 0, batch: 2, hook: on_train_batch_end}"
    )
    asked = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        act(*words, stop, pause("on_validation_batch_start", 1))
    assert time.monotonic() - asked < 20
    assert stopped.value.code == 128 + signal.SIGTERM
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    assert caplog.records[-1].getMessage().startswith(f"stopped by SIGTERM, saved in {last}; to go on")
    assert not (run / "checkpoints" / "best.ckpt").exists()
    act(*words, f"resume={run}")
    ours, theirs = weights(run), weights(whole)
    assert [name for name in theirs if not torch.equal(theirs[name], ours[name])] == []
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (run, whole))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["best_epoch"] == theirs["best_epoch"]


def test_what_takes_longer_than_a_step_is_left(
    act: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a compilation in the first step does."""
    monkeypatch.setattr("workbench.callbacks.interrupt.PATIENCE", 0.3)
    stop = (
        "+callbacks.stop={_target_: callbacks_support.StopAt, epoch: 0, batch: 0, hook: on_train_batch_start}"
    )
    asked = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        act(*WORDS, stop, pause("on_train_batch_start", 0))
    assert time.monotonic() - asked < 20
    assert stopped.value.code == 128 + signal.SIGTERM
    assert caplog.records[-1].getMessage() == "stopped by SIGTERM, no checkpoint was made yet"


STUCK = """
import hashlib, sys, threading, time
from workbench import stopping
stopping.PATIENCE = stopping.LEAVING = 0.3
stopping.STOP.say = lambda: "said"
stopping.STOP.heed()
main = threading.main_thread().ident
def when_stuck(line):  # before that a signal would be handled as usual
    while sys._current_frames()[main].f_lineno != line:
        time.sleep(0.01)
    print("ready", flush=True)
threading.Thread(target=when_stuck, args=(sys._getframe().f_lineno + 1,), daemon=True).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_a_process_that_is_stuck_in_a_library_is_ended(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (128 + signal.SIGTERM, "said\n")


BROKEN_INTO = """
import os, signal, time, warnings
from workbench.stopping import STOP, Interrupted
STOP.heed()
warnings.warn("before")
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
except Interrupted as stop:
    warnings.warn("Error detected in ConvolutionBackward0. Traceback of forward call that caused the error")
    stop.end()
"""


def test_what_a_signal_breaks_into_is_not_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_INTO], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert "before" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("stopped by SIGTERM\n")


def test_drafts_are_told_from_other_files(tmp_path: Path) -> None:
    draft, kept = tmp_path / "checkpoints" / f".last.ckpt-{'0a' * 16}", tmp_path / "checkpoints" / ".mine"
    draft.parent.mkdir()
    for file in (draft, kept):
        file.write_bytes(b"half a checkpoint")
    remove_drafts(tmp_path)
    assert [draft.exists(), kept.exists()] == [False, True]


@pytest.mark.slow
def test_drafts_of_a_killed_run_are_removed_when_it_goes_on(act: Callable[..., Path]) -> None:
    words = (*WORDS, "trainer.limit_train_batches=2", "action.test_after=false")
    run = act(*words)
    draft = run / "checkpoints" / f".last.ckpt-{'0a' * 16}"
    kept = run / "checkpoints" / ".mine"
    for file in (draft, kept):
        file.write_bytes(b"half a checkpoint")
    act(*words, f"resume={run}")
    assert not draft.exists()
    assert kept.exists()


TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_two_processes_stop_after_the_same_step(runs: WarmRuns, tmp_path: Path, whole_group: bool) -> None:
    run = runs.start(tmp_path, *TWO, READERS, pause("on_train_batch_start", 5, seconds=2))
    until_paused(run)
    other, *_ = [pid for pid in readers_of(run.pid) if b"run.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if whole_group:
        os.killpg(run.pid, signal.SIGTERM)
    else:
        os.kill(other, signal.SIGTERM)
    assert run.wait(20) == 128 + signal.SIGTERM, run.said
    assert gone([other], 5)
    assert "Traceback" not in run.said
    assert run.said.count("stopped by SIGTERM") == 1
    assert torch.load(only_run(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    again = pasted(runs, run, tmp_path)
    assert again.wait() == 0, again.said


@pytest.mark.slow
def test_two_processes_that_compile_end_in_time(runs: WarmRuns, tmp_path: Path) -> None:
    run = runs.start(tmp_path, *TWO, "compile=true")
    deadline = time.monotonic() + 120
    while not (
        found := [
            pid for pid in readers_of(run.pid) if b"run.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
    ):
        assert time.monotonic() < deadline, run.said
        time.sleep(0.1)
    time.sleep(25)  # both have begun to compile
    asked = time.monotonic()
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM, run.said
    assert time.monotonic() - asked < 20
    assert gone(found, 20)
    assert "Traceback" not in run.said
    assert run.said.count("stopped by SIGTERM") == 1


def test_a_reader_that_lives_on_does_not_keep_an_action_from_ending() -> None:
    """It was started meanwhile and holds the same pipe; an error would otherwise never reach the terminal."""
    stop = Stop()
    with stop.heeded():
        reader = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,), daemon=True)
        reader.start()
    try:
        assert reader.is_alive()
        assert not stop.heeding
    finally:
        reader.kill()
        reader.join()
