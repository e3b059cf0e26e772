"""Errors of writing to disk as one sentence: file, reason and remedy. Imports only the standard library."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOM = 1 << 16  # bytes of a test write
FREE, ALLOW = "free some space", "make it writable"
# Error numbers that only writing raises, whatever file the error names.
REASONS = {
    errno.ENOSPC: ("the disk is full", FREE),
    errno.EDQUOT: ("the disk quota is used up", FREE),
    errno.EROFS: ("it lies on a read-only file system", ALLOW),
    errno.EFBIG: ("it is larger than a file may be there", "raise the limit (ulimit -f)"),
}
# Error numbers that reading raises, too: they count only if the error names the file to be written.
EITHER = {
    errno.EIO: ("the disk reports an input/output error", "mend the disk"),
    errno.EACCES: ("there is no permission to write it", ALLOW),
    errno.EPERM: ("there is no permission to write it", ALLOW),
    errno.ENOTDIR: ("a file lies where its folder goes", "move that file"),
    errno.EEXIST: ("something else lies in its place", "move that"),
    errno.EISDIR: ("a folder lies in its place", "move that folder"),
    errno.ENOENT: ("its folder is gone", "make that folder again"),
    errno.ENAMETOOLONG: ("its name is too long", "shorten it"),
}


class WriteError(Exception):
    """A file that cannot be written; the message is one sentence.

    Args:
        path: the file, or the folder that was being filled.
        reason: why, e.g. `the disk is full`.
        first: the remedy, e.g. `free some space`.
        then: further advice, beginning with `or` or `and`.
    """

    def __init__(self, path: Path, reason: str, first: str, then: str) -> None:
        super().__init__(path, reason, first, then)
        self.path, self.reason, self.first, self.then = path, reason, first, then

    def __str__(self) -> str:
        return f"{self.path} cannot be written: {self.reason}; {self.first} {self.then}".rstrip()

    def but(self, then: str) -> "WriteError":
        """The same error with other advice."""
        return WriteError(self.path, self.reason, self.first, then)


@contextmanager
def writing(path: Path, then: str, hidden: bool = False) -> Iterator[None]:
    """Context manager that converts write errors in its block into a `WriteError`; the innermost block wins.

    Libraries that write files often hide the system's error; then a test write finds out the reason. Files that
    the block leaves on a full disk must therefore not be deleted before the block ends.

    Args:
        path: the file that is written, or the folder that is filled.
        then: see `WriteError`.
        hidden: do the test write after any error: the block's library replaces system errors by its own.
    """
    try:
        yield
    except Exception as error:
        refused = refusal(error, path) or (_answer(path) if hidden or _of_a_library(error) else None)
        if isinstance(error, WriteError) or refused is None:
            raise
        raise WriteError(path, *refused, then) from error


@contextmanager
def filling(folder: Path, then: str) -> Iterator[None]:
    """Like `writing`, for libraries that do not report incomplete writes: Open3D, and Pillow for JPEG files."""
    with writing(folder, then):
        yield
        if refused := _answer(folder):
            raise WriteError(folder, *refused, then)


def refusal(error: BaseException | None, path: Path | None = None) -> tuple[str, str] | None:
    """Reason and remedy of a write error; `None` if neither the error nor those that caused it are write errors.

    Args:
        error: the error.
        path: what was written; `None`: unknown, then only errors specific to writing count.
    """
    if isinstance(error, OSError) and error.errno in EITHER and path is not None and _concerns(error, path):
        return EITHER[error.errno]
    while error is not None:
        if isinstance(error, OSError) and error.errno in REASONS:
            return REASONS[error.errno]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the file named by an error is `path`, a descendant or an ancestor of it, or its draft."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    whole = path.absolute()
    for name in names:
        file = Path(name).absolute()
        if file.is_relative_to(whole) or whole.is_relative_to(file) or is_draft(file, whole):
            return True
    return False


def draft_of(path: Path) -> Path:
    """The path of a temporary file beside `path`, for an atomic move to `path`."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}")


def is_draft(file: Path, path: Path) -> bool:
    """Whether a file is a draft of `path` or its lock, or lies below one."""
    beside = path.parent
    return file.is_relative_to(beside) and f"{file.relative_to(beside)}".startswith(f".{path.name}")


def _of_a_library(error: Exception) -> bool:
    # torch, soundfile and SQLite raise RuntimeError; numpy an OSError without errno.
    return isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is None)


def _answer(path: Path) -> tuple[str, str] | None:
    """Reason and remedy if a test write beside `path` fails; `None` if it succeeds."""
    folder = next((above for above in path.absolute().parents if above.is_dir()), None)
    if folder is None:
        return None
    draft = draft_of(folder / path.name)
    try:
        try:
            with draft.open("wb") as file:
                file.write(b"\0" * ROOM)
                file.flush()
                os.fsync(file.fileno())
        finally:
            with suppress(OSError):
                draft.unlink()
    except OSError as error:
        return refusal(error, path)
    return None
