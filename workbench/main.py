"""Where `run.py` and the console script `widefield` start: heed signals, then import, then obey the command line."""

import os
import sys

from tasks.libraries import complaint_of
from workbench.stopping import STOP, Interrupted


def main() -> None:
    """Run the command in `sys.argv`."""
    STOP.heed()
    try:
        from workbench.command_line import obey
    except Interrupted as stop:
        stop.end()
    except Exception as error:
        said = complaint_of(error)
        if said is None or os.environ.get("WIDEFIELD_TRACE"):
            raise
        if "action=doctor" in sys.argv[1:]:  # it needs no library at all, so it can still say what is wrong
            from workbench.doctor import examine

            sys.exit(0 if examine() else 1)
        sys.exit(f"error: {said}")
    try:
        obey()
    except BrokenPipeError:  # whoever reads what is printed has gone, as `head` does
        # What is left is not tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # as if ended by SIGPIPE, which Windows does not have
