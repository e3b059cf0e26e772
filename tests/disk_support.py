"""Disks that refuse: asked for by Python's own calls, or by the system's limit on a file's size."""

import errno
import fnmatch
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHY = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "it lies on a read-only file system; make it writable",
    errno.EACCES: "there is no permission to write it; make it writable",
}


@dataclass
class Refused:
    """What is refused.

    Args:
        pattern: of whole paths.
        number: the error's.
        after: how many are let through first.
        asked: those that were asked for so far.
    """

    pattern: str
    number: int
    after: int = 0
    asked: int = 0


_refused: list[Refused] = []
_hooked: list[bool] = []


def _answer(event: str, arguments: tuple[Any, ...]) -> None:
    if not _refused:
        return
    if event == "open":
        path = arguments[0] if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else None
    else:
        path = {"os.mkdir": arguments[:1], "os.rename": arguments[1:2]}.get(event, (None,))[0]
    if not isinstance(path, str | bytes | os.PathLike):
        return
    whole = os.path.abspath(os.fsdecode(path))
    for refused in _refused:
        if fnmatch.fnmatch(whole, refused.pattern):
            refused.asked += 1
            if refused.asked > refused.after:
                raise OSError(refused.number, os.strerror(refused.number), str(path))


@contextmanager
def refusing(pattern: str | Path, number: int = errno.ENOSPC, after: int = 0) -> Iterator[Refused]:
    """While the block lasts, files and folders whose whole path fits `pattern` can be neither opened nor made.

    Args:
        pattern, number, after: see `Refused`.
    """
    if not _hooked:
        sys.addaudithook(_answer)  # for good: it cannot be taken away
        _hooked.append(True)
    refused = Refused(str(pattern), number, after)
    _refused.append(refused)
    try:
        yield refused
    finally:
        _refused.remove(refused)


@contextmanager
def small_files(size: int = 500) -> Iterator[None]:
    """While the block lasts the system lets no file grow beyond `size` bytes: of C libraries too, and for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def left_in(folder: Path) -> list[str]:
    """Everything below a folder but folders, by its path in it."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir())
