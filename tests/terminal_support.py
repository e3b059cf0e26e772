"""What a person would see: programs run in pseudo-terminals, and the screens that their output makes."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROWS = 24
REDRAWN = b"\r\x1b[2K"  # how a live display begins to draw itself anew
BAR = "━"


def resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))


def written_in_terminals(widths: list[int], run: Callable[[int], None]) -> dict[int, bytes]:
    """What `run(columns)` writes in processes forked from this one, each in a terminal of so many columns."""
    terminals: dict[int, int] = {}
    for columns in widths:
        child, terminal = pty.fork()
        if child == 0:
            with suppress(BaseException):
                for name in ("COLUMNS", "LINES"):
                    os.environ.pop(name, None)
                os.environ["TERM"] = "xterm-256color"
                resize(0, columns)
                run(columns)
            os._exit(0)
        terminals[columns] = terminal
    said = dict.fromkeys(widths, b"")
    reading = dict(terminals)
    while reading:
        ready, _, _ = select.select(list(reading.values()), [], [], 60)
        assert ready, "nothing was written for a minute"
        for columns, terminal in list(reading.items()):
            if terminal in ready:
                part = _part(terminal)
                said[columns] += part
                if not part:
                    os.close(reading.pop(columns))
    return said


def command_in_terminal(command: list[str], columns: int, cwd: Path) -> tuple[int, bytes]:
    """Exit code of a command and all that it writes to a terminal of so many columns."""
    terminal, its_end = pty.openpty()
    resize(terminal, columns)
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command,
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        cwd=cwd,
        env=environ | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(its_end)
    said = b""
    while part := _part(terminal):
        said += part
    os.close(terminal)
    return process.wait(), said


def _part(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux' word for the end
        return b""


def screens(said: bytes, columns: int) -> Iterator[list[str]]:
    """The rows on the terminal, those scrolled away included, before every redrawing of the bars and at the end."""
    pyte = pytest.importorskip("pyte")
    screen = pyte.HistoryScreen(columns, ROWS, history=10_000)
    stream = pyte.ByteStream(screen)
    for part in re.split(b"(?=" + re.escape(REDRAWN) + b")", said):
        stream.feed(part)
        above = ["".join(row[column].data for column in range(columns)) for row in screen.history.top]
        rows = [row.rstrip() for row in (*above, *screen.display)]
        while rows and not rows[-1]:
            rows.pop()
        yield rows


def unfolded(rows: list[str]) -> list[str]:
    """Lines, each with the indented rows that continue it."""
    lines: list[str] = []
    for row in rows:
        if row.startswith("  ") and lines:
            lines[-1] = f"{lines[-1]}  {row.strip()}"
        else:
            lines.append(row)
    return lines
