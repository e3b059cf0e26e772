"""Locks that all processes and threads of this machine respect; the system frees them after a kill."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # some network file systems


@contextmanager
def locked(file: Path, keep: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be.

    Args:
        keep: leave the file there afterwards, for locks that are taken again and again.
        waiting: called once where somebody else holds it.
    """
    import fcntl  # not on Windows

    while True:
        with file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    if waiting is not None:
                        waiting()
                        waiting = None
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if not keep and not _is(file, lock.fileno()):
                continue  # who held it has removed it: whoever comes now makes another
            try:
                yield
            finally:
                if not keep:
                    file.unlink(missing_ok=True)
                try:
                    # Said aloud: a process forked meanwhile holds the file as well.
                    fcntl.flock(lock, fcntl.LOCK_UN)
                except OSError as error:
                    if error.errno not in NO_LOCKS:
                        raise
            return


def _is(file: Path, number: int) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(file.stat(), os.fstat(number))
    except FileNotFoundError:
        return False
