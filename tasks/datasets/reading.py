"""Shared helpers of file readers: lazy imports of libraries, and error messages for libraries and files."""

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
    """A library that is missing or broken. Not a `ReadError`, since no file is at fault: it ends the run."""


def require(module: str, purpose: str) -> Any:
    """Import a library for reading files.

    Args:
        module: module name; submodules such as ``pyarrow.parquet`` are allowed.
        purpose: what needs it, as a plural: ``"point clouds"``.

    Raises:
        MissingLibrary: it is not installed or cannot be loaded (a missing shared library, an undefined symbol, …).
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken library may raise anything: ImportError, OSError, RuntimeError, …
        raise MissingLibrary(complaint(module.split(".")[0], error, purpose)) from error


def available(module: str) -> ModuleType | None:
    """Import an optional library; `None` if the import fails."""
    try:
        with _local_symbols():
            return importlib.import_module(module)
    except Exception:  # as above
        return None


@contextmanager
def _local_symbols() -> Iterator[None]:
    """Load shared libraries with RTLD_LOCAL instead of RTLD_GLOBAL.

    decord loads its library with RTLD_GLOBAL. Open3D, loaded later, then resolves C++ symbols to decord's library
    instead of its own, and a process that uses both crashes, as in a joint run of videos and point clouds.
    """
    before = ctypes.RTLD_GLOBAL
    ctypes.RTLD_GLOBAL = ctypes.RTLD_LOCAL  # type: ignore[misc]
    try:
        yield
    finally:
        ctypes.RTLD_GLOBAL = before  # type: ignore[misc]


def unexpected(error: Exception) -> str:
    """One-sentence message for an unexpected error of a file reader."""
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return f"it cannot be read ({type(error).__name__}{f': {reason}' if reason else ''})"


def check_file(path: Path) -> None:
    """Raise a `ReadError` unless `path` is a non-empty regular file; a pipe or a device could block forever."""
    if not path.is_file():
        what = " (it is a folder, pipe or device)" if path.exists() else ""
        raise ReadError(f"there is no such file{what}")
    if path.stat().st_size == 0:
        raise ReadError("the file is empty (0 bytes)")
