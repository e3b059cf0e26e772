"""Reports errors to the user as one sentence, with a nonzero exit code."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.disk import WriteError, refusal
from tasks.libraries import complaint_of
from workbench.console import speaks
from workbench.files import ELSEWHERE, write_json
from workbench.quoting import typed
from workbench.stopping import STOP, Interrupted

log = logging.getLogger("widefield")

ERROR_FILE = "error.json"
LOST_CONNECTION = (EOFError, OSError, RuntimeError)  # of a connection to a process that has ended


class UsageError(ValueError):
    """A request that cannot be carried out; the message is one sentence."""


class SettingError(UsageError):
    """A setting of another type than the argument of its component."""


class TrainingError(RuntimeError):
    """Training cannot continue; the message says why and what was saved."""


def sentence(error: BaseException) -> str | None:
    """The message for an error that a user can act on; `None` for a bug."""
    if isinstance(error, (UsageError, TrainingError, WriteError)):
        return str(error)
    broken = complaint_of(error)
    if broken is not None:
        return broken
    from hydra.errors import InstantiationException

    from backbone import CheckpointError
    from tasks.datasets.errors import DataError

    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        cause = sentence(error.__cause__)
        if cause is None and isinstance(error.__cause__, (ValueError, TypeError, ImportError)):
            return str(error.__cause__)
        return cause
    if isinstance(error, (DataError, CheckpointError)):
        return str(error)
    if said := _of_the_disk(error):
        return said
    if (lost := lost_reader(error)) is not None:
        return lost
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU ran out of memory: lower task.data.batch_size or set backbone.model.grad_checkpointing=true"
    if type(error).__name__ == "MisconfigurationException":
        return str(error).replace("\n", " ").strip()
    return None


def _of_the_disk(error: BaseException) -> str | None:
    """The message for a disk error raised by the trainer or a library; `None` for any other."""
    file = next((one for one in (error, error.__cause__) if isinstance(one, OSError)), None)
    name = file.filename if file is not None and isinstance(file.filename, str) else None
    if refused := refusal(error):
        return str(WriteError(Path(name or "a file of the run"), *refused, ELSEWHERE))
    return (
        f"{name}: {(file.strerror or 'it cannot be opened').lower()}" if file is not None and name else None
    )


@contextmanager
def plain_errors() -> Iterator[None]:
    """Exit with one sentence and code 1 on errors a user can act on; `WIDEFIELD_TRACE=1` keeps the traceback."""
    try:
        yield
    except Interrupted as stop:
        _say_stopped(stop)
        raise
    except KeyboardInterrupt:  # where signals are not handled
        if speaks():
            log.warning("stopped by SIGINT")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        said = sentence(error)
        if STOP.number is not None:  # mostly caused by a signal to other processes of this run
            if said is not None and lost_reader(error) is None:
                log.error("error: %s", said)
            ended = STOP.leave()
            _say_stopped(ended)
            raise ended from error
        if said is None or os.environ.get("WIDEFIELD_TRACE"):
            raise
        log.error("error: %s", said)
        sys.exit(1)


def _say_stopped(stop: Interrupted) -> None:
    if speaks() and not STOP.said:
        log.warning("%s", STOP.say() or stop)
        STOP.said = True


def lost_reader(error: BaseException) -> str | None:
    """The message for an error caused by a DataLoader worker that has ended; `None` for any other."""
    killed = (
        "a reader process was killed, most likely because the memory ran out: lower task.data.num_workers or "
        "task.data.batch_size"
    )
    if _within_a_batch(error):
        return killed
    said = str(error)
    if not isinstance(error, RuntimeError) or not said.startswith("DataLoader worker"):
        return None
    if "shared memory" in said:
        return "a reader process ran out of shared memory (/dev/shm): lower task.data.num_workers"
    if "killed by signal: Killed" in said or "exited unexpectedly" in said:
        return killed
    return f"a reader process crashed ({said.splitlines()[0].rpartition(': ')[2].strip(' .')})"


def _within_a_batch(error: BaseException) -> bool:
    """Whether the connection broke over which a reader process hands out the memory of a batch: it ended after it had
    sent the batch, and before all of it was fetched."""
    if not isinstance(error, LOST_CONNECTION):
        return False
    if "resource_sharer.py" in str(error):  # the traceback of the thread that pins memory
        return True
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "multiprocessing.resource_sharer" for frame, _ in frames)


@contextmanager
def kept_errors(folder: Path) -> Iterator[None]:
    """Write the error that ends a run to `error.json` in its folder; the file of an earlier attempt is removed.

    The error of a command that ends before it goes on with a finished run is not that run's. If a disk error ends a run
    that has a checkpoint, the message says how to resume it.
    """
    file, finished = folder / ERROR_FILE, (folder / "result.json").exists()
    before = _version(folder / "config.yaml")  # written anew where a command goes on with a run
    with suppress(OSError):  # disk not writable: the first write reports it
        file.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if STOP.number is not None:
            raise
        told = _going_on(error, folder)
        said = sentence(told) or f"{type(error).__name__}: {error}"
        if not finished or _version(folder / "config.yaml") != before:
            with suppress(OSError, WriteError):  # the error itself may be a full disk
                write_json(file, {"error": said, "traceback": traceback.format_exc()})
        if told is error:
            raise
        raise told from error


def _version(file: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        about = file.stat()
        return about.st_ino, about.st_mtime_ns
    return None


def _going_on(error: Exception, folder: Path) -> Exception:
    refused = refusal(error) if not isinstance(error, WriteError) else (error.reason, error.first)
    last = folder / "checkpoints" / "last.ckpt"
    if refused is None or not last.exists() or (folder / "result.json").exists():
        return error
    path = error.path if isinstance(error, WriteError) else Path(getattr(error, "filename", None) or folder)
    if not path.absolute().is_relative_to(folder.absolute()):
        return error
    return WriteError(path, *refused, f"and go on from {last} with {typed('resume', folder)}")
