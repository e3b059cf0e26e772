"""The logger of metrics.csv, a table with one row per epoch, and disk errors of other loggers."""

import csv
import logging
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from tasks.disk import WriteError, refusal, writing
from workbench.errors import UsageError
from workbench.files import ELSEWHERE, write_table

log = logging.getLogger("widefield")


class MetricsCsv(Logger):
    """Writes epoch metrics to one CSV file; a resumed run continues the same table.

    Args:
        path: the file. Existing rows are kept; a repeated epoch replaces its row.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self._rows: dict[int, dict[str, Any]] = {}
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file, strict=True):
                    self._rows[int(row["epoch"])] = {key: value for key, value in row.items() if value != ""}
        except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
            raise UsageError(
                f"{self.path} is damaged: remove it to go on without the numbers of the epochs before"
            ) from error

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "epoch" not in metrics:
            return
        kept = {key: value for key, value in metrics.items() if key.startswith(("train/", "val/", "lr"))}
        if not kept:
            return
        row = self._rows.setdefault(int(metrics["epoch"]), {"epoch": int(metrics["epoch"])})
        row.update(kept, step=step)
        self._write()

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration is in config.yaml."""

    def _write(self) -> None:
        columns = ["epoch", "step"]
        columns += sorted({key for row in self._rows.values() for key in row} - set(columns))
        write_table(self.path, [self._rows[epoch] for epoch in sorted(self._rows)], columns)


# -- loggers of other libraries ------------------------------------------------------------------------------------

CALLS = ("log_hyperparams", "log_metrics", "log_graph", "save", "finalize")


def telling(logger: Logger, run: str) -> Logger:
    """Make a logger raise `WriteError` on disk errors, which ends the run, as an error of `metrics.csv` does.

    Libraries hide them: TensorBoard writes in a thread whose last errors are lost; W&B and MLflow raise errors of their
    own. If the run is already ending for another reason, the error is only logged.

    Args:
        logger: any logger; modified in place.
        run: the run folder, for loggers without a folder of their own.

    Raises:
        WriteError: in the call that detects the error; it names the logger's folder.
    """
    _leave_threads_to_their_loggers()
    for name in CALLS:
        setattr(logger, name, _told(logger, getattr(logger, name), run))
    return logger


def _told(logger: Logger, call: Callable[..., Any], run: str) -> Callable[..., Any]:
    @wraps(call)
    def told(*args: Any, **kwargs: Any) -> Any:
        last = call.__name__ == "finalize"
        ending = last and (args[0] if args else kwargs.get("status", "success")) != "success"
        try:
            with writing(_place(logger, run), ELSEWHERE, hidden=True):
                if call.__name__ == "log_hyperparams":  # the first call; some create their files later
                    getattr(logger, "experiment", None)
                files = _event_files(logger) if last else []
                answer = call(*args, **kwargs)
                for file in files:
                    _raise_what_is_left(file)
                return answer
        except WriteError as refused:
            if not ending:
                raise
            log.warning("%s", refused)
            return None

    return told


def _place(logger: Logger, run: str) -> Path:
    """The folder that a logger writes to."""
    return Path(logger.log_dir or logger.save_dir or run)


class _EventFile(Protocol):
    def flush(self) -> None: ...


def _event_files(logger: Logger) -> list[_EventFile]:
    """TensorBoard's open event files, each written by a thread."""
    writer = logger._experiment if isinstance(logger, TensorBoardLogger) else None
    return list((writer.all_writers or {}).values()) if writer is not None else []


def _raise_what_is_left(file: _EventFile) -> None:
    """Raise an error that the thread of a closed file has not reported yet."""
    try:
        file.flush()
    except OSError as error:
        if error.errno is not None:  # otherwise: the file is closed
            raise


def _leave_threads_to_their_loggers() -> None:
    """Suppress tracebacks of disk errors in TensorBoard's threads: the logger raises the same errors."""
    before = threading.excepthook
    if getattr(before, "of_loggers", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and refusal(args.exc_value)):
            before(args)

    hook.of_loggers = True  # type: ignore[attr-defined]
    threading.excepthook = hook
