"""Any CSV with a date column.

Example:
    Forecast two columns 48 steps ahead from the previous 336::

        python run.py modality=time_series task=csv_forecast data_dir=sales.csv \
            'task.data.target=[berlin,paris]' task.data.horizon=48 task.data.look_back=336
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from tasks.datasets.base import CommonSettings
from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.items import Whole
from tasks.datasets.split_folders import split_of_folder
from tasks.datasets.time_series.table import Columns, Table, read_series
from tasks.datasets.time_series.text import Format
from tasks.datasets.time_series.windows import Parts, SeriesData, first_rows, last_observed

log = logging.getLogger("widefield")

Names = str | Sequence[str] | None


class CsvForecast(SeriesData):
    """Your own CSV files: a date column, and numeric columns that are forecast jointly.

    A file has one series, or several in long format (with a column of series ids); in a folder every file adds further
    series. One model is trained on all of them. Separator, decimal separator, the order of day and month and the step
    are inferred, and refused if ambiguous (see `text`, `dates` and `grid` in this package). Missing dates become rows,
    and missing values are ignored. The last rows are the test split, those before them the validation split.

    Args:
        target: column, or columns, to forecast; `None`: all numeric columns.
        known: covariates whose future is known at forecast time, e.g. holidays, prices, a weather forecast.
        past: covariates known only up to the forecast time.
        static: covariates that are constant within each series.
        series: column of series ids; `None`: unique_id, item_id, series_id, ts_id or id.
        date: date column, or columns of date and time; `None`: one with a usual name, else the first.
        separator, decimal, date_order, time_zone, missing, max_missing, max_gib: see `Format`.
        val_fraction, test_fraction: fractions of the rows.
        look_back, horizon, season: see `SeriesData`.
        **common: see `DataModule`.
    """

    title = "a series of your own"
    layout = (
        "a .csv file with a column named date and one or more columns of numbers, or a folder of such files"
    )

    def __init__(
        self,
        *,
        target: Names = None,
        known: Names = None,
        past: Names = None,
        static: Names = None,
        series: str | None = None,
        date: Names = None,
        separator: str | None = None,
        decimal: str | None = None,
        date_order: str | None = None,
        time_zone: str | None = None,
        missing: Sequence[str | float] | str | float | None = (),
        max_missing: float = 0.5,
        max_gib: float = 2.0,
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
        self.columns = Columns(_names(target) or None, _names(known), _names(past), _names(static))
        asked = [*(self.columns.target or ()), *self.columns.covariates()]
        twice = [name for name in asked if asked.count(name) > 1]
        if twice:
            raise DataError(f"column {twice[0]} is named twice among target, known, past and static")
        self.form = Format(
            separator=separator,
            decimal=decimal,
            missing=_names(missing),
            date=_names(date) or None,
            date_order=date_order,
            time_zone=time_zone,
            series=series,
            max_missing=max_missing,
            max_gib=max_gib,
        )
        self.tables: tuple[Columns, list[Table]] | None = (
            None  # the tables read, and the columns they were read with
        )
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.time_series.sample import csv_forecast

        csv_forecast(root / "series.csv")

    def read_tables(self, root: Path) -> list[Table]:
        return self._read(root, self.columns)

    def read_whole(self, data_info: dict[str, Any]) -> Whole | None:
        try:
            tables = self._read(self.root, replace(self.columns, target=tuple(data_info["variates"])))
        except DataError:  # its columns have other names: use all numeric ones, in order
            tables = self._read(self.root, replace(self.columns, target=None))
        return self.whole(tables, data_info)

    def _read(self, root: Path, columns: Columns) -> list[Table]:
        if self.tables is None or self.tables[0] != columns:
            # Read once and kept, since repairs are logged while reading.
            tables = self._picked(columns)
            self.tables = columns, self._read_files(root, columns) if tables is None else tables
        return self.tables[1]

    def _picked(self, columns: Columns) -> list[Table] | None:
        """A subset of the variates of the tables read before; `None` if one is missing, or other columns were read."""
        if (
            self.tables is None
            or columns.target is None
            or self.tables[0] != replace(columns, target=self.tables[0].target)
        ):
            return None
        if not all(set(columns.target) <= set(table.variates) for table in self.tables[1]):
            return None
        tables = [table.with_variates(columns.target) for table in self.tables[1]]
        return _observed(tables, columns)

    def _read_files(self, root: Path, columns: Columns) -> list[Table]:
        files = [root] if root.is_file() else self._files(root)
        self.file = files[0]
        tables: list[Table] = []
        for file in files:
            try:
                found = read_series(file, self.form, columns)
            except ReadError as error:
                raise DataError(f"{file}: {error}") from error
            tables += [replace(_named(table, file, alone=len(files) == 1), path=file) for table in found]
        return _observed(tables, columns)

    def _files(self, root: Path) -> list[Path]:
        """The CSV files of a folder; other files are counted."""
        visible = sorted(file for file in root.iterdir() if file.is_file() and not file.name.startswith("."))
        files = [file for file in visible if file.suffix.lower() in self.extensions]
        if not files:
            raise self.bad_layout(f"there are 0 .csv files in {root}")
        others = [file.name for file in visible if file not in files and file.name != "SAMPLE.json"]
        if others:
            log.warning("%s: %s other files left out: %s", root, f"{len(others):,}", ", ".join(others[:5]))
        splits = [file.name for file in files if split_of_folder(file.stem)]
        if len(splits) > 1:
            raise DataError(
                f"{root} holds {' and '.join(splits)}, which would be read as series of their own: join them in one "
                "file, whose last rows are for validation and testing (task.data.val_fraction, test_fraction)"
            )
        return files

    def parts(self, table: Table) -> Parts:
        rows = len(table.dates)
        test = round(self.test_fraction * rows)
        return rows - test - round(self.val_fraction * rows), rows - test, rows


def _observed(tables: list[Table], columns: Columns) -> list[Table]:
    """Without trailing rows that have only covariates: they are in the future and have no targets."""
    if not columns.known:
        return tables
    return [first_rows(table, last_observed(table.values_TN) + 1) for table in tables]


def _names(given: Names | Sequence[str | float] | float) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, str | int | float):
        return (str(given),)
    return tuple(str(name) for name in given)


def _named(table: Table, file: Path, alone: bool) -> Table:
    """Names a series by its file, if there are several files, and by its own name."""
    if alone:
        return table
    return replace(table, name=f"{file.stem}/{table.name}" if table.name else file.stem)
