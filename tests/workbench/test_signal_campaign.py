"""Kills and signals at random moments: every run goes on, and ends with the weights of one that was left alone.

A run is stopped and continued several times over until it has had its share. `WIDEFIELD_STOPS` says how many stops
there are in all.
"""

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tests_support import TINY, only_run, weights
from warm_runs import WarmRun, WarmRuns

STOPS = int(os.environ.get("WIDEFIELD_STOPS", 200))
EACH = 10  # stops of one run
AT_ONCE = 2
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WORDS = (
    *TINY,
    "task=audio_folder",
    "task.data.batch_size=4",
    "task.head.dropout=0.2",
    "backbone.model.drop_path_rate=0.2",
    "modality.augment.mixup={_target_: modalities.audio_augment.WaveformMixup, prob: 0.6, alpha: 10.0}",
    "task.data.mixup={_target_: tasks.datasets.mixing.Mixup, prob: 0.5}",
    "logger=csv",
    "callbacks=[]",
)
LONG = (
    "trainer.max_epochs=4",
    "trainer.limit_train_batches=12",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
)


def stopped(run: WarmRun, number: signal.Signals, whole_group: bool, after: float) -> str:
    """Stop a run after so many seconds; what became of it: `done` when it was faster."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        if run.poll() is not None:
            return "done" if run.code == 0 else f"failed: {run.said[-2000:]}"
        time.sleep(0.02)
    with suppress(ProcessLookupError):  # it has just ended
        (os.killpg if whole_group else os.kill)(run.pid, number)
    asked = time.monotonic()
    code = run.wait(60)
    if code == 0:
        return "done"
    if time.monotonic() - asked > 20:
        return f"too slow: {time.monotonic() - asked:.0f} s"
    if number == signal.SIGKILL:
        return "stopped" if code == -number else f"code {code}: {run.said[-2000:]}"
    if code != 128 + number or "Traceback" in run.said or f"stopped by {number.name}" not in run.said:
        return f"code {code} after {number.name}: {run.said[-2000:]}"
    return "stopped"


def chain(runs: WarmRuns, folder: Path, seed: int, lasted: list[float]) -> tuple[Counter[str], list[str]]:
    """One run with its stops; counts by kind, and what went wrong.

    Args:
        runs, folder, seed: what starts it, where, and what its moments are drawn from.
        lasted: seconds that runs have taken which nobody stopped; the quickest says how far a moment may lie.
    """
    folder.mkdir()
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    while counts["stops"] < EACH:
        number, whole_group = draw.choice(SIGNALS), draw.random() < 0.5
        words = ["task.data.num_workers=2"] if whole_group else ["task.data.num_workers=0"]
        began, after = time.monotonic(), draw.uniform(0.1, 0.6) * min(lasted)
        run = runs.start(folder, *LONG, *words, "resume=auto")
        became = stopped(run, number, whole_group, after)
        if became == "done":
            lasted.append(time.monotonic() - began)
            break
        counts["stops"] += 1
        counts[f"{number.name} to {'the group' if whole_group else 'the process'}"] += 1
        if became != "stopped":
            return counts, [f"chain {seed}, stop {counts['stops']}: {became}"]
    if list(folder.glob("runs/*/*/result.json")):
        counts["finished early"] += 1
    else:
        run = runs.start(folder, *LONG, "task.data.num_workers=0", "resume=auto")
        if run.wait(180) != 0:
            return counts, [f"chain {seed} does not go on: {run.said[-2000:]}"]
    return counts, []


def differences(run: Path, expected: dict[str, torch.Tensor]) -> list[str]:
    """What is not as it would be had the run been left alone."""
    ours = weights(run)
    names = [name for name in expected if not torch.equal(expected[name], ours[name])]
    return [f"{run}: {name}" for name in names] + [str(draft) for draft in run.rglob(".last.ckpt-*")]


def finished(folder: Path) -> Path:
    """The run of a chain; those that were stopped before they had a checkpoint are left beside it."""
    (run,) = [result.parent for result in folder.glob("runs/*/*/result.json")]
    return run


@pytest.mark.slow
def test_every_stopped_run_ends_like_one_left_alone(samples: Path, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with WarmRuns(f"paths.samples={samples}", *WORDS) as runs, ThreadPoolExecutor(AT_ONCE) as pool:
        alone = tmp_path / "alone"
        alone.mkdir()
        began = time.monotonic()
        run = runs.start(alone, *LONG, "task.data.num_workers=0")
        assert run.wait() == 0, run.said
        lasted = [time.monotonic() - began]
        expected = weights(only_run(alone))
        seed = 0
        while counts["stops"] < STOPS and not wrong:
            folders = {number: tmp_path / str(number) for number in range(seed, seed + AT_ONCE)}
            jobs = {
                number: pool.submit(chain, runs, folder, number, lasted) for number, folder in folders.items()
            }
            for number, job in jobs.items():
                found, errors = job.result()
                counts += found
                wrong += errors or differences(finished(folders[number]), expected)
            seed += AT_ONCE
            print(dict(counts), f"{time.monotonic() - began:.0f} s", *wrong, flush=True)
    assert not wrong, "\n".join(wrong[:5])
