"""One run of a sweep, in a process of its own.

The process that Hydra's launcher gives us only waits: it starts `python run.py …` with the words of this run and the
sweep's snapshot of the YAML, and writes down how that ended. So a run that dies, of a wrong value, of too little memory
or of a signal, takes nothing along, and leaves neither a broken CUDA context nor memory to the next.
"""

import ctypes
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tasks.disk import WriteError
from tasks.program import STARTED_AS, program
from workbench.conf_folders import RUN
from workbench.errors import ERROR_FILE, sentence
from workbench.quoting import quoted
from workbench.secret_words import words_of
from workbench.stopping import STARTED_BY
from workbench.sweeps.devices import cpu_cores, one_gpu, threads_each, visible_gpus
from workbench.sweeps.folder import (
    DONE,
    FAILED,
    KILLED,
    MISSING,
    RUNNING,
    STOPPED,
    SweepFolder,
    now,
    read_record,
    write_record,
)

log = logging.getLogger("widefield")

PARENT = STARTED_BY  # the process id that a run of a sweep belongs to
LOCK = ".lock"  # held as long as a run goes on
OUTPUT = "output.txt"  # what a run printed, where several share the terminal
# What is said to Hydra about the sweep as a whole does not concern its runs.
ABOUT_THE_SWEEP = (
    "hydra/launcher",
    "hydra/sweeper",
    "hydra.launcher",
    "hydra.sweep",
    "hydra.run",
    "hydra.mode",
    "hydra.searchpath",  # all of it is in the snapshot
)


def run_job(cfg: DictConfig) -> float | None:
    """Run the job that Hydra has just composed; returns the monitored metric, `None` if the run failed."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        return _run_job(cfg, folder)
    except (OSError, WriteError) as error:  # of this run's folder: the other runs may do better
        log.error("run %s: failed: %s", folder.name, sentence(error))
        return None


def _run_job(cfg: DictConfig, folder: Path) -> float | None:
    hydra = HydraConfig.get()
    with _only_one(folder) as lock:
        before = read_record(folder)
        if before["status"] == DONE:
            value: float | None = before["value"]
            return value
        sweep = SweepFolder.load(folder.parent)
        goes_on = before["status"] in (RUNNING, KILLED) and (folder / "checkpoints" / "last.ckpt").is_file()
        if not goes_on and before["status"] != MISSING:
            _clear(folder)
        words = words_of(hydra.overrides.task)
        about = [
            word
            for word in words_of(hydra.overrides.hydra)
            if not word.lstrip("+~").startswith(ABOUT_THE_SWEEP)
        ]
        command = command_of(sweep, words + about, folder, goes_on and cfg.action.name == "fit")
        parallel = _runs_at_a_time(hydra.launcher)
        spent = before.get("wall_s") or 0.0 if goes_on else 0.0  # seconds of the attempts it goes on from
        record: dict[str, Any] = {
            "overrides": words,
            "axes": sweep.axes,
            "started": now(),
            "host": platform.node(),
        }
        record["continued"] = goes_on
        write_record(folder, status=RUNNING, error=None, value=None, **record)
        started = time.monotonic()
        try:
            with _environment(cfg, sweep, parallel) as environ:
                code = _wait_for(command, environ, None if parallel is None else folder / OUTPUT, lock)
        except (KeyboardInterrupt, SystemExit):
            seconds = round(spent + time.monotonic() - started, 2)
            stopped = {"status": KILLED, "error": STOPPED, "value": None, "wall_s": seconds}
            with suppress(OSError, WriteError):  # a full disk
                write_record(folder, **stopped, **record)
            raise
        status, error = _verdict(code, folder)
        value = _value(folder) if status == DONE else None
        seconds = round(spent + time.monotonic() - started, 2)
        write_record(folder, status=status, error=error, value=value, wall_s=seconds, **record)
    said = f"best {value:.4g}" if value is not None else error
    level = logging.INFO if status == DONE else logging.ERROR
    log.log(level, "run %s: %s after %.0f s%s", folder.name, status, seconds, f": {said}" if said else "")
    return value


@contextmanager
def _only_one(folder: Path) -> Iterator[int]:
    """Hold the run's lock; waits while a run left behind by a killed sweep is still saving.

    The run inherits the lock, so that it is held until the run itself has ended.
    """
    import fcntl  # not on Windows, where run.py imports this file as well

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log.info("run %s: waiting for the process that is still at it", folder.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def command_of(sweep: SweepFolder, words: list[str], folder: Path, goes_on: bool) -> list[str]:
    """The command line of one run, as one could type it oneself."""
    return [
        *(sys.executable, str(RUN), "--config-path", str(sweep.snapshot.resolve())),
        *("--config-name", sweep.config_name),
        *words,
        "hydra.mode=RUN",
        f"hydra.run.dir={quoted(folder)}",
        *([f"resume={quoted(folder)}"] if goes_on else []),
    ]


def follow_parent() -> None:
    """Ask the system for a SIGTERM when the process that waits for this one dies, so that none is orphaned.

    This one: a run of a sweep, or a process that a distributed run has started.
    """
    parent = os.environ.pop(PARENT, None)  # not for processes started by this one
    if parent is None or sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(128 + signal.SIGTERM)


@contextmanager
def _environment(cfg: DictConfig, sweep: SweepFolder, parallel: int | None) -> Iterator[dict[str, str]]:
    """The run's environment; with several runs at a time on this machine each gets a GPU and its share of the cores."""
    environ = os.environ | {PARENT: str(os.getpid()), STARTED_AS: program()[0]}
    if parallel is None or parallel == 1:
        yield environ
        return
    environ.setdefault("OMP_NUM_THREADS", str(threads_each(parallel)))
    wants_one = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and cfg.trainer.devices in (1, "1")
    with one_gpu(visible_gpus() if wants_one else [], sweep.path / ".gpus") as gpu:
        yield environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})


def _runs_at_a_time(launcher: Any) -> int | None:
    """How many runs share this machine; `None` where they come one after the other, on the user's own terminal."""
    target = str(launcher._target_)
    if target.endswith("BasicLauncher"):
        return None
    if not target.endswith("JoblibLauncher"):
        return 1
    count = int(launcher.n_jobs)
    return count if count > 0 else max(1, cpu_cores() + 1 + count)


def _wait_for(command: list[str], environ: dict[str, str], output: Path | None, lock: int) -> int:
    """Run a command to its end; when the sweep is stopped it is given the time to save."""
    with (output or Path(os.devnull)).open("ab") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT} if output else {}
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, pass_fds=[lock], **streams)  # type: ignore[call-overload]
        try:
            return int(process.wait())
        except KeyboardInterrupt:  # Ctrl-C has reached it as well
            process.wait()
            raise
        except SystemExit:  # SIGTERM, see hydra_plugins/widefield/sweepers.py, has not
            process.terminate()
            process.wait()
            raise


def _verdict(code: int, folder: Path) -> tuple[str, str | None]:
    """Status and error of a run from its exit code and what it left behind."""
    if code == 0:
        return DONE, None
    number = -code if code < 0 else code - 128
    if number in {int(known) for known in signal.Signals}:
        hint = " (out of memory?)" if number == signal.SIGKILL else ""
        return KILLED, f"stopped by {signal.Signals(number).name}{hint}"
    try:
        return FAILED, str(json.loads((folder / ERROR_FILE).read_bytes())["error"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return FAILED, f"ended with exit code {code}"


def _value(folder: Path) -> float | None:
    """The monitored metric of a run that is done; None: it has none, or its result is damaged."""
    try:
        value = json.loads((folder / "result.json").read_bytes())["best"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(value) if isinstance(value, int | float) else None


def _clear(folder: Path) -> None:
    """Take away what a failed attempt left, but for Hydra's record of the job."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and entry.name != ".hydra":
            shutil.rmtree(entry)
        elif entry.is_file() and entry.name not in ("run.log", LOCK):
            entry.unlink()
