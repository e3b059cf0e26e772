"""One run of a sweep, in a separate process.

The process provided by Hydra's launcher only waits: it starts `python run.py …` with this run's overrides and the
sweep's configuration snapshot, and records the outcome. A run that crashes (invalid value, out of memory, signal) thus
does not affect the other runs and leaves behind no broken CUDA context or allocated memory.
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

PARENT = STARTED_BY  # environment variable with the id of the process that waits for the run
LOCK = ".lock"  # held while a run is active
OUTPUT = "output.txt"  # output of a run, if several share the terminal
# Hydra settings of the sweep as a whole, which are not passed to its runs.
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
    """Run the job composed by Hydra; returns the monitored metric, or `None` if the run failed."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        return _run_job(cfg, folder)
    except (OSError, WriteError) as error:  # of this run's folder: the other runs may still succeed
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
        spent = before.get("wall_s") or 0.0 if goes_on else 0.0  # seconds of earlier attempts
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
    """Hold the run's lock; waits for a run left over from a killed sweep to finish saving.

    The run inherits the lock, so that it is held until the run itself ends.
    """
    import fcntl  # not available on Windows, where run.py imports this file as well

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log.info("run %s: waiting for the process that is still at it", folder.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def command_of(sweep: SweepFolder, words: list[str], folder: Path, goes_on: bool) -> list[str]:
    """The command line of one run."""
    return [
        *(sys.executable, str(RUN), "--config-path", str(sweep.snapshot.resolve())),
        *("--config-name", sweep.config_name),
        *words,
        "hydra.mode=RUN",
        f"hydra.run.dir={quoted(folder)}",
        *([f"resume={quoted(folder)}"] if goes_on else []),
    ]


def follow_parent() -> None:
    """Request a SIGTERM from the system when the parent process dies, so that this process is not orphaned.

    Called in runs of a sweep and in worker processes of a distributed run.
    """
    parent = os.environ.pop(PARENT, None)  # not inherited by child processes
    if parent is None or sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(128 + signal.SIGTERM)


@contextmanager
def _environment(cfg: DictConfig, sweep: SweepFolder, parallel: int | None) -> Iterator[dict[str, str]]:
    """The run's environment; concurrent runs on this machine each get a GPU and a share of the CPU cores."""
    environ = os.environ | {PARENT: str(os.getpid()), STARTED_AS: program()[0]}
    if parallel is None or parallel == 1:
        yield environ
        return
    environ.setdefault("OMP_NUM_THREADS", str(threads_each(parallel)))
    wants_one = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and cfg.trainer.devices in (1, "1")
    with one_gpu(visible_gpus() if wants_one else [], sweep.path / ".gpus") as gpu:
        yield environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})


def _runs_at_a_time(launcher: Any) -> int | None:
    """Number of concurrent runs on this machine; `None` if they run one after the other in the user's terminal."""
    target = str(launcher._target_)
    if target.endswith("BasicLauncher"):
        return None
    if not target.endswith("JoblibLauncher"):
        return 1
    count = int(launcher.n_jobs)
    return count if count > 0 else max(1, cpu_cores() + 1 + count)


def _wait_for(command: list[str], environ: dict[str, str], output: Path | None, lock: int) -> int:
    """Run a command and return its exit code; if the sweep is stopped, wait until the command has saved."""
    with (output or Path(os.devnull)).open("ab") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT} if output else {}
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, pass_fds=[lock], **streams)  # type: ignore[call-overload]
        try:
            return int(process.wait())
        except KeyboardInterrupt:  # Ctrl-C has reached the command as well
            process.wait()
            raise
        except SystemExit:  # SIGTERM (see hydra_plugins/widefield/sweepers.py) has not
            process.terminate()
            process.wait()
            raise


def _verdict(code: int, folder: Path) -> tuple[str, str | None]:
    """Status and error of a run, from its exit code and its error file."""
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
    """The monitored metric of a finished run; None if it has none or its result is damaged."""
    try:
        value = json.loads((folder / "result.json").read_bytes())["best"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(value) if isinstance(value, int | float) else None


def _clear(folder: Path) -> None:
    """Remove the files of a failed attempt, except Hydra's record of the job, the log and the lock."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and entry.name != ".hydra":
            shutil.rmtree(entry)
        elif entry.is_file() and entry.name not in ("run.log", LOCK):
            entry.unlink()
