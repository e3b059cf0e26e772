"""Reader processes: a signal to the whole process group is for the process that started them, and they end with it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# What ends a run: by hand, by a scheduler, with its terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LOOK = 2.0  # seconds between two looks at whether the starting process still lives


@contextmanager
def signals_held() -> Iterator[None]:
    """Processes started in here never get `SIGNALS`; this process gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow(worker: int) -> None:
    """In a reader process: heed SIGTERM from the process that started it alone, and end when that is gone.

    Args:
        worker: its number, as `DataLoader` says it to `worker_init_fn`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # not inherited where readers are started afresh
    if sys.platform == "linux":
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        got = signal.sigtimedwait(SIGNALS, LOOK)
        if got is not None and got.si_signo == signal.SIGTERM and got.si_pid == parent:
            break
    os._exit(0)
