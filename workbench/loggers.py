"""metrics.csv: the history of a run as one table, one row an epoch."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from workbench.errors import UsageError
from workbench.files import write_table


class MetricsCsv(Logger):
    """Writes epoch metrics to one CSV file; a resumed run goes on in the same table.

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
        """Nothing: the configuration lies in config.yaml."""

    def _write(self) -> None:
        columns = ["epoch", "step"]
        columns += sorted({key for row in self._rows.values() for key in row} - set(columns))
        write_table(self.path, [self._rows[epoch] for epoch in sorted(self._rows)], columns)
