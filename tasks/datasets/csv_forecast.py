"""Any CSV with a date column.

Example:
    Forecast two columns 48 steps ahead from the 336 before::

        python run.py modality=time_series task=csv_forecast data_dir=sales.csv \
            'task.data.target=[berlin,paris]' task.data.horizon=48 task.data.look_back=336
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from tasks.datasets.base import CommonSettings, DataError, Whole
from tasks.datasets.series import Parts, SeriesData, read_named
from tasks.datasets.series_table import Table


class CsvForecast(SeriesData):
    """A CSV of your own: a date column, and columns of numbers that are all forecast together.

    The step is inferred; dates that are missing become rows, and missing values are filled
    (`series_table.read_csv`). The last rows are for testing, those before them for validation.

    Args:
        target: column, or columns, to forecast; `None`: all columns with numbers.
        val_fraction, test_fraction: shares of the rows.
        look_back, horizon, season: see `SeriesData`.
        **common: see `DataModule`.
    """

    title = "a series of your own"
    layout = (
        "a .csv file with a column named date and one or more columns of numbers, or a folder with one such "
        "file"
    )

    def __init__(
        self,
        *,
        target: str | Sequence[str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        look_back: int = 96,
        horizon: int = 96,
        season: int | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(look_back=look_back, horizon=horizon, season=season, **common)
        if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1:
            raise DataError("val_fraction and test_fraction must be positive and leave something to train on")
        self.target = (
            [str(target)] if isinstance(target, str | int) else target and [str(name) for name in target]
        )
        self.table: tuple[Sequence[str] | None, Table] | None = None  # that was read, and with which target
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.samples.time_series import csv_forecast

        csv_forecast(root / "series.csv")

    def read_table(self, root: Path) -> Table:
        return self._read(root, self.target or None)

    def read_whole(self, facts: dict[str, Any]) -> Whole | None:
        return self.whole(self._read(self.root, None), facts)

    def _read(self, root: Path, target: Sequence[str] | None) -> Table:
        files = [root] if root.is_file() else sorted(file for file in root.glob("*.csv") if file.is_file())
        if len(files) != 1:
            raise self.bad_layout(f"there are {len(files)} .csv files in {root}")
        self.file = files[0]
        if self.table is None or self.table[0] != target:  # once: what was repaired is said when it is read
            self.table = target, read_named(self.file, target)
        return self.table[1]

    def parts(self, table: Table) -> Parts:
        rows = len(table.dates)
        test = round(self.test_fraction * rows)
        return rows - test - round(self.val_fraction * rows), rows - test, rows
