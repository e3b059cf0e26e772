"""Entry point of `run.py` and the script `widefield`: installs signal handlers, imports, runs the command."""

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
        if "action=doctor" in sys.argv[1:]:  # it needs no library, so it still works
            from workbench.doctor import examine

            sys.exit(0 if examine() else 1)
        sys.exit(f"error: {said}")
    try:
        obey()
    except BrokenPipeError:  # the reader of stdout has exited, e.g. `head`
        # The rest is not flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # as if ended by SIGPIPE, which Windows does not have
