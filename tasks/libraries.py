"""Messages for libraries that cannot be imported, with the command that fixes it. Imports only the standard library."""

import os
import re
import shlex
import sys
import sysconfig
import traceback
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from tasks.program import INSTALLED, NAME, called

OURS = ("modalities", "backbone", "tasks", "workbench", "hydra_plugins", "widefield", "run")
# The modules of the extras, see pyproject.toml.
EXTRAS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "sweep": ("optuna", "hydra_joblib_launcher", "hydra_submitit_launcher"),
    "las": ("laspy", "lazrs"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "shards": ("aiohttp", "s3fs"),
}
OUTSIDE_THE_SET = ("mlflow", "shards")  # need older releases than those in constraints.txt
INSTALL = (
    f"pip install --force-reinstall {NAME}-*.whl" if INSTALLED else "pip install -c constraints.txt -e ."
)
# Error messages of shared library loaders on Linux, macOS and Windows.
LOAD_ERRORS = (
    *("undefined symbol", "cannot open shared object", "image not found", "Symbol not found"),
    *("DLL load failed", "not a valid Win32 application", "WinError 126", "WinError 127"),
)


def cure(module: str) -> str:
    """The command that installs a module in the tested version."""
    if module == "open3d" and sys.platform == "linux" and sys.version_info >= (3, 13):
        return "pip install -c constraints.txt -e '.[open3d]' (needs glibc 2.35 and the system's libusb-1.0)"
    for extra, modules in EXTRAS.items():
        if module in modules:
            return extra_cure(extra)
    return INSTALL


def extra_cure(extra: str) -> str:
    """The command that installs an extra; for an installed wheel, whose file is unknown, it lists the packages."""
    if INSTALLED:
        return f"pip install {' '.join(map(shlex.quote, _packages_of(extra)))}"
    held = "" if extra in OUTSIDE_THE_SET else "-c constraints.txt "
    return f"pip install {held}-e '.[{extra}]'"


def _packages_of(extra: str) -> list[str]:
    """The requirements of an extra, from the metadata of the installed package."""
    try:
        lines = requires(NAME) or []
    except PackageNotFoundError:
        lines = []
    wanted = re.compile(rf"""\bextra == ['"]{extra}['"]""")
    return [line.partition(";")[0].strip() for line in lines if wanted.search(line)]


def complaint(module: str, error: BaseException, purpose: str = "") -> str:
    """One sentence: which module cannot be imported, why, what needs it, and the fix."""
    if module in sys.stdlib_module_names:
        return f"{module}, a part of Python, is not there on {sys.platform}: this needs Linux or macOS"
    needed = f", and {purpose} need it" if purpose else ""
    if isinstance(error, ModuleNotFoundError) and top(error.name) == module:
        said = f"{module} is not installed{needed}"
    else:
        said = f"{module} does not import ({reason(error)}){needed}"
    return f"{said}: {cure(module)}; {called()} action=doctor shows more"


def complaint_of(error: BaseException) -> str | None:
    """The sentence for an error raised by importing a library; `None` for any other error."""
    module = broken_library(error)
    return None if module is None else complaint(module, error)


def reason(error: BaseException) -> str:
    """The first line of an error, without the folders of a path in it."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    words = [os.path.basename(word) if word.startswith(os.sep) else word for word in first.split(" ")]
    return " ".join(words)[:200].strip(" .")


def broken_library(error: BaseException) -> str | None:
    """The library whose import failed with this error; `None` for any other error, including those of our modules."""
    if isinstance(error, OSError):
        if not any(sign in str(error) for sign in LOAD_ERRORS):
            return None
        return _library_of(error)
    if not isinstance(error, ImportError):
        return None
    if isinstance(error, ModuleNotFoundError):
        # The requested module is missing, or a dependency that an incompletely installed library requested.
        name = top(error.name)
    else:
        name = _library_of(error) or top(error.name)
    return None if name is None or name in OURS else name


def top(name: str | None) -> str | None:
    """The first part of a dotted name."""
    return name.split(".")[0] if name else None


def _library_of(error: BaseException) -> str | None:
    """The library that failed: the one whose file the message names, or the last one in the traceback."""
    named = re.search(r"(?:site|dist)-packages[/\\](\w+)", str(error))
    if named:
        return named[1]
    places = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    passed = [
        file.relative_to(place).parts[0].removesuffix(".py")
        for file in files
        for place in places
        if file.is_relative_to(place)
    ]
    others = [name for name in passed if name != "torch"]  # torch loads the shared libraries of others
    return [None, *passed[-1:], *others[-1:]][-1]
