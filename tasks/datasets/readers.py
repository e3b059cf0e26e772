"""Signal handling of `DataLoader` workers: group signals are left to the parent, and workers exit with it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Signals that end a run: from the user, a scheduler, or a closed terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LOOK = 2.0  # seconds between checks whether the parent is alive


@contextmanager
def signals_held() -> Iterator[None]:
    """Blocks `SIGNALS` in this process, and in processes started inside; this process receives them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow(worker: int) -> None:
    """`worker_init_fn`: the worker obeys SIGTERM from its parent only, and exits when the parent is gone.

    Args:
        worker: worker id, as passed to `worker_init_fn`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # not inherited with the spawn start method
    if sys.platform == "linux":
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        got = signal.sigtimedwait(SIGNALS, LOOK)
        if got is not None and got.si_signo == signal.SIGTERM and got.si_pid == parent:
            break
    os._exit(0)
