"""Messages of an interrupted run: what is saved, and the command that resumes it."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from workbench.console import speaks
from workbench.errors import LOST_CONNECTION, TrainingError, lost_reader
from workbench.quoting import command
from workbench.stopping import STOP


def how_to_go_on(folder: Path) -> str:
    """`to go on: python run.py … resume=RUN`, to be pasted; without a command line (in a notebook) an instruction.

    All overrides are repeated: some, such as custom callbacks, are not restored from the run's record.
    """
    if not HydraConfig.initialized():
        return f"to go on, repeat the command with resume={folder}"
    words = [word for word in sys.argv[1:] if not word.startswith("resume=")]
    return f"to go on: {command(*words, resume=folder)}"


def what_is_left(folder: Path, since: float | None = None) -> str:
    """The checkpoint to resume from, and how; the end of a sentence.

    Args:
        folder: the run folder.
        since: Unix time at which the run was asked to stop, in seconds.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "no checkpoint was made yet"
    saved = since is not None and last.stat().st_mtime >= since
    kept = f"saved in {last}" if saved else f"the last checkpoint is {last}"
    return f"{kept}; {how_to_go_on(folder)}"


@contextmanager
def going_on_said(folder: Path) -> Iterator[None]:
    """In this context a signal or a killed DataLoader worker ends the run with a message on how to resume it."""

    def said() -> str:
        name = signal.Signals(STOP.number or signal.SIGTERM).name
        return f"stopped by {name}, {what_is_left(folder, time.time() - STOP.waited)}" if speaks() else ""

    STOP.say = said
    try:
        yield
    except LOST_CONNECTION as error:
        lost = lost_reader(error)
        if STOP.number is not None or lost is None:
            raise
        raise TrainingError(f"{lost}; {what_is_left(folder)}") from error
