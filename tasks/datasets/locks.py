"""File locks between processes and threads of one machine; the system releases them if a process is killed."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # some network file systems


@contextmanager
def locked(file: Path, keep: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file, which is created if missing.

    Args:
        keep: keep the file afterwards, for locks that are taken repeatedly.
        waiting: called once if another process or thread holds the lock.
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
                continue  # the previous holder has removed the file: create it again
            try:
                yield
            finally:
                if not keep:
                    file.unlink(missing_ok=True)
                try:
                    # Explicit, since a process forked meanwhile holds the open file as well.
                    fcntl.flock(lock, fcntl.LOCK_UN)
                except OSError as error:
                    if error.errno not in NO_LOCKS:
                        raise
            return


def _is(file: Path, number: int) -> bool:
    """Whether an open file is still the file at this path."""
    try:
        return os.path.samestat(file.stat(), os.fstat(number))
    except FileNotFoundError:
        return False
