"""What to say of a library that does not import, and how to cure it. Imports nothing but the standard library."""

import os
import sys
import sysconfig
import traceback
from pathlib import Path

OURS = ("modalities", "backbone", "tasks", "workbench", "hydra_plugins", "run")
INSTALL = "pip install -c constraints.txt -e ."
# What loaders of shared libraries say, on Linux, macOS and Windows.
LOAD_ERRORS = (
    *("undefined symbol", "cannot open shared object", "image not found", "Symbol not found"),
    *("DLL load failed", "not a valid Win32 application", "WinError 126", "WinError 127"),
)


def cure(module: str) -> str:
    """The command that installs a module as it is tested."""
    if module == "open3d" and sys.platform == "linux" and sys.version_info >= (3, 13):
        return "pip install -c constraints.txt -e '.[open3d]' (needs glibc 2.35 and the system's libusb-1.0)"
    return INSTALL


def complaint(module: str, error: BaseException, purpose: str = "") -> str:
    """One sentence: what does not import, why, what it is needed for, what cures it."""
    needed = f", and {purpose} need it" if purpose else ""
    if isinstance(error, ModuleNotFoundError) and top(error.name) == module:
        said = f"{module} is not installed{needed}"
    else:
        said = f"{module} does not import ({reason(error)}){needed}"
    return f"{said}: {cure(module)}; python run.py action=doctor shows more"


def complaint_of(error: BaseException) -> str | None:
    """The sentence for an error that came of importing a library; `None` for any other error."""
    module = broken_library(error)
    return None if module is None else complaint(module, error)


def reason(error: BaseException) -> str:
    """The first line of an error, without the folders of a path in it."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    words = [os.path.basename(word) if word.startswith(os.sep) else word for word in first.split(" ")]
    return " ".join(words)[:200].strip(" .")


def broken_library(error: BaseException) -> str | None:
    """The library whose import failed with this error; `None` for any other error, one of our own files included."""
    if isinstance(error, OSError):
        if not any(sign in str(error) for sign in LOAD_ERRORS):
            return None
        return _from_frames(error)
    if not isinstance(error, ImportError):
        return None
    if isinstance(error, ModuleNotFoundError):
        # What was asked for is missing; where a library asked for it, that library is incomplete.
        name = top(error.name)
    else:
        name = _from_frames(error) or top(error.name)
    return None if name is None or name in OURS else name


def top(name: str | None) -> str | None:
    """The first part of a dotted name."""
    return name.split(".")[0] if name else None


def _from_frames(error: BaseException) -> str | None:
    """The first library on the way from our code to an error."""
    places = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        for place in places:
            if file.is_relative_to(place):
                return file.relative_to(place).parts[0].removesuffix(".py")
    return None
