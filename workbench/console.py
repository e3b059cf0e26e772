"""Terminal output: log handler, tables, and filters for the notices of libraries."""

import logging
import os
import re
import textwrap
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from tasks.secrets import mask
from workbench.provenance import note


class WholeConsole(Console):
    """A console on which threads print one after another, each from rendering to writing.

    A live display erases as many rows as it rendered last. If another thread had rendered but not yet written them, the
    rows erased would be lines of text.
    """

    def __init__(self, **options: Any) -> None:
        self._turn = threading.RLock()
        super().__init__(**options)

    def __enter__(self) -> Self:
        self._turn.acquire()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            super().__exit__(*exception)
        finally:
            self._turn.release()

    def print(self, *objects: Any, **options: Any) -> None:
        with self:  # before it looks for a display to print above
            super().print(*objects, **options)


# Names of files and classes are printed literally: "[/x]" is not markup, ":x:" not an emoji.
console = WholeConsole(markup=False, emoji=False)

_TIE = "\xa0"  # no-break space


class TerminalHandler(logging.StreamHandler):
    """Prints log records through `console`, above an active progress bar.

    On a terminal long lines are wrapped with indentation, without splitting names; a pipe or a file receives unwrapped
    lines. Hydra's `stream` is not used: the console looks up `sys.stdout` when it prints.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record))
        except Exception:
            self.handleError(record)


def say(text: str) -> None:
    """Print plain text, above an active progress bar."""
    text = printable(text, keep="\n")
    rows = folded(text, console.width) if console.is_terminal else text
    console.print(rows, highlight=False, soft_wrap=True)


def folded(text: str, width: int) -> str:
    """Wrap long lines with indentation; a line with fields (separated by two spaces) breaks between fields.

    A line with a command is not wrapped, so that it can be copied, nor is a name longer than a row.

    >>> print(folded("epoch 1/4  train/loss 3.559  val/loss 3.561", 32))
    epoch 1/4  train/loss 3.559
      val/loss 3.561
    """
    rows: list[str] = []
    for line in text.split("\n"):
        if len(line) <= width or "python " in line or line.startswith(" "):
            rows.append(line)
            continue
        tied = re.sub(r"(?<! ) (?! )", _TIE, line) if "  " in line else line
        found = textwrap.wrap(
            tied, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        rows += [row.replace(_TIE, " ") for row in found]
    return "\n".join(rows)


# Notices that a user cannot act on, each with the reason.
_NOTICES = (
    r".*does not have many workers.*",  # small samples are read faster in the main process
    r".*The number of training batches \(\d+\) is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
    r".*You're resuming from a checkpoint that ended before the epoch ended.*",  # our loaders are resumable
    r".*isinstance\(treespec, LeafSpec\).*",  # a deprecation inside the trainer
    r".*`_get_loader_len`.*",
    r".*The given buffer is not writable.*",  # torch reading back its own export
    r".*It is recommended to use `self.log\(.*sync_dist=True.*",  # tasks average over processes themselves
    r".*Grad strides do not match bucket view strides.*",  # distributed runs of 1×1 convolutions; harmless
    r".*The AccumulateGrad node's stream does not match.*",  # distributed runs on GPUs; the trainer's doing
    r".*GPU available but not used.*",  # trainer=cpu was asked for
    r".*Found \d+ module\(s\) in eval mode at the start of training.*",  # freeze=… was asked for
    r".*Experiment logs directory .* exists and is not empty.*",
)


class TextFormatter(logging.Formatter):
    """Escapes characters that cannot be encoded, such as invalid bytes in file names."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).encode(errors="backslashreplace").decode()


class FileFormatter(TextFormatter):
    """A `TextFormatter` that also masks secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


def quiet_libraries() -> None:
    """Silence the notices of libraries; warnings that a user can act on are still shown."""
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=notice)
    for name in (
        "lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "torch.onnx",
        "matplotlib",
        "fontTools",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not speaks():
        logging.getLogger("widefield").setLevel(logging.WARNING)
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)


def speaks() -> bool:
    """Whether this process logs; in a distributed run, the one with local rank 0 and SLURM process id 0."""
    return not (int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("SLURM_PROCID", 0)))


def short(path: Path) -> Path:
    """A path relative to the working directory, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def printable(text: str, keep: str = "") -> str:
    r"""Escape control and formatting characters, so that a terminal shows them and does not interpret them.

    >>> printable("\x1b[31mred"), printable("日本 [x]")
    ('\\x1b[31mred', '日本 [x]')
    """
    return "".join(
        character if character.isprintable() or character in keep else ascii(character)[1:-1]
        for character in text
    )


def print_table(title: str, rows: Iterable[tuple[str, ...]], columns: tuple[str, ...]) -> None:
    """Print a small table. Cells may come from a file: markup and control characters are shown literally."""
    console.print(printable(title), style="bold", highlight=False)
    table = Table()
    for position, column in enumerate(columns):
        table.add_column(printable(column), justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell, keep="\n") for cell in row))
    console.print(table)
    if said := note():
        console.print(printable(said), style="red", highlight=False)
