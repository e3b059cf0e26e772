"""What readers of files share: their libraries, imported late; one sentence where a library or a file is at fault."""

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.datasets.errors import DataError, ReadError
from tasks.libraries import complaint


class MissingLibrary(DataError):
    """A library that is missing or broken. No file is at fault, so it ends the run: it is no `ReadError`."""


def require(module: str, purpose: str) -> Any:
    """Import a library that reads files.

    Args:
        module: its name; a submodule such as ``pyarrow.parquet`` works too.
        purpose: what needs it, as a plural: ``"point clouds"``.

    Raises:
        MissingLibrary: it is not installed, or does not load (a missing shared library, an undefined symbol, …).
    """
    try:
        return importlib.import_module(module)
    except (
        Exception
    ) as error:  # a broken library fails in any way there is: ImportError, OSError, RuntimeError, …
        raise MissingLibrary(complaint(module.split(".")[0], error, purpose)) from error


def available(module: str) -> ModuleType | None:
    """A library that can be done without: the module, or `None` where it does not import."""
    try:
        with _local_symbols():
            return importlib.import_module(module)
    except Exception:  # as above
        return None


@contextmanager
def _local_symbols() -> Iterator[None]:
    """Keep the symbols of shared libraries that are loaded here to themselves.

    decord asks for its library's to be seen by all. Open3D, loaded later, then calls the C++ functions in decord's
    library in place of its own, and the process crashes where both are used, as in a joint run of videos and points.
    """
    before = ctypes.RTLD_GLOBAL
    ctypes.RTLD_GLOBAL = ctypes.RTLD_LOCAL  # type: ignore[misc]
    try:
        yield
    finally:
        ctypes.RTLD_GLOBAL = before  # type: ignore[misc]


def unexpected(error: Exception) -> str:
    """One sentence for an error that the reader of a file did not foresee."""
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return f"it cannot be read ({type(error).__name__}{f': {reason}' if reason else ''})"


def check_file(path: Path) -> None:
    """Raise a `ReadError` unless a regular file with content is there; a pipe or a device could block for ever."""
    if not path.is_file():
        what = " (it is a folder, pipe or device)" if path.exists() else ""
        raise ReadError(f"there is no such file{what}")
    if path.stat().st_size == 0:
        raise ReadError("the file is empty (0 bytes)")
