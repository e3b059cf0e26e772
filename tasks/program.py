"""The command that starts this program: `python run.py` in a checkout, `widefield` for an installed package.

Imports only the standard library.
"""

import os
import shlex
import sys
from pathlib import Path

NAME = "widefield"  # of the console script
STARTED_AS = "WIDEFIELD_STARTED_AS"  # environment variable: the command that started this process
ROOT = Path(__file__).parents[1]  # root of the checkout, or the site-packages folder of an installed wheel
INSTALLED = (ROOT / "workbench" / "conf").is_dir()  # installed from a wheel, which has conf/ there


def program() -> tuple[str, ...]:
    """The command, as a tuple of words, that starts the program from the current folder.

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
    """The command quoted for a shell."""
    return shlex.join(program())
