"""How this program is started: from a checkout by `python run.py`, from an installed package by `widefield`.

Imports nothing but the standard library.
"""

import os
import shlex
import sys
from pathlib import Path

NAME = "widefield"  # of the console script
STARTED_AS = "WIDEFIELD_STARTED_AS"  # how the command was typed that has started this process
ROOT = Path(__file__).parents[1]  # of the checkout, or the folder of packages that a wheel was installed into
INSTALLED = (ROOT / "workbench" / "conf").is_dir()  # from a wheel, which keeps conf/ there


def program() -> tuple[str, ...]:
    """The words that start it from the current folder.

    >>> program()
    ('python', 'run.py')
    """
    path = Path(sys.argv[0])
    if (
        INSTALLED
        or os.environ.get(STARTED_AS) == NAME
        or path.name.removesuffix(".exe").removesuffix("-script.py") == NAME
    ):
        return (NAME,)
    if path.name != "run.py":
        return ("python", "run.py")
    return ("python", os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path))


def called() -> str:
    """The same, quoted for a shell."""
    return shlex.join(program())
