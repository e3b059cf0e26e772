"""Builds the project's wheel from what git tracks, and installs packages into a folder, without the network's help
where pip has what it needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests_support import ROOT


def copy_of_project(folder: Path) -> Path:
    """The files that git knows, or would, in another folder: building leaves its own files beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "notebooks/")):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    return folder


def pip(*words: str | Path) -> None:
    """Run pip; what it says is shown where it fails."""
    environ = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONSTRAINT": ""}
    environ.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "pip", "-q", *map(str, words)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def wheel_of(project: Path, folder: Path) -> Path:
    """Build a project's wheel."""
    pip("wheel", "--no-deps", "-w", folder, project)
    (wheel,) = folder.glob("*.whl")
    return wheel
