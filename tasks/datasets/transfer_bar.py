"""Progress of a download: a progress bar on a terminal, else occasional log lines."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("widefield")

EVERY = 30.0  # seconds between lines of a log


@contextmanager
def shown_progress(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Log a title, then show progress: yields a callback that takes the received and the total number of bytes."""
    log.info("%s", title)
    if not (sys.stderr.isatty() and log.isEnabledFor(logging.INFO)):
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        whole = bar.add_task("", total=None)
        yield lambda received, length: bar.update(whole, completed=received, total=length)


class _Lines:
    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, received: int, length: int | None) -> None:
        now = time.monotonic()
        if now - self.last < EVERY:
            return
        self.last = now
        share = f" ({received / length:.0%})" if length else ""
        log.info("download: %s MB%s", f"{received / 1e6:,.0f}", share)
