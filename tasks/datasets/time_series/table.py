"""Tables of time series: reading a CSV, its frequency and gaps, and calendar features.

Shapes: T rows sorted by time, N variates, K known covariates, P past covariates, F calendar features.
"""

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError
from tasks.datasets.time_series.dates import Dates, offsets_of, read_dates, wall_offsets
from tasks.datasets.time_series.grid import Grid, even_out
from tasks.datasets.time_series.text import (
    SEPARATORS,
    Format,
    Text,
    read_text,
    shown,
    text_columns,
    to_numbers,
)

log = logging.getLogger("widefield")

UNNAMED = re.compile(r"Unnamed: \d+")  # pandas' name for a column without one, such as a written index
FEWEST_ROWS = 10  # with fewer, whole numbers at equal distances may be chance
SERIES_COLUMNS = ("unique_id", "item_id", "series_id", "ts_id", "id")
SENTINELS = (
    -1.0,
    -9.0,
    -99.0,
    -999.0,
    -9999.0,
    -99999.0,
    -32768.0,
    999.0,
    9999.0,
    99999.0,
    999999.0,
    1e20,
    -1e20,
)
FAR = 10  # distance from the other values, in interquartile ranges, at which a sentinel is reported
DAY = pd.Timedelta(days=1)

CYCLES = {"minute_of_hour": DAY / 24, "hour_of_day": DAY, "day_of_week": 7 * DAY, "day_of_year": 365 * DAY}


@dataclass(frozen=True)
class Columns:
    """Roles of the columns of a table.

    Args:
        target: variates to forecast, in this order; `None`: every numeric column without another role.
        known: covariates whose future is known, e.g. holidays or a weather forecast.
        past: covariates known only up to the forecast time.
        static: covariates that are constant within a series.
    """

    target: tuple[str, ...] | None = None
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()

    def covariates(self) -> tuple[str, ...]:
        return (*self.known, *self.past, *self.static)


@dataclass(frozen=True)
class Table:
    """A series with evenly spaced rows.

    Args:
        values_TN: float64, in original units; NaN where missing.
        dates: dates of the rows; in UTC if `offsets_T` is given.
        variates: names of the columns.
        frequency: step as a pandas frequency, e.g. `h`, `15min`, `D`, `MS`.
        offsets_T: UTC offsets in seconds; `None` if the zone is unknown.
        zone: name of the zone, if known.
        known_TK, past_TP: covariates, NaN where missing.
        static: static covariates of the series, by name.
        name: name of the series, if there are several.
        said: short description of how the file was read.
        path: the file.
    """

    values_TN: NDArray[np.float64]
    dates: pd.DatetimeIndex
    variates: tuple[str, ...]
    frequency: str
    offsets_T: NDArray[np.int64] | None = None
    zone: str | None = None
    known_TK: NDArray[np.float64] | None = None
    past_TP: NDArray[np.float64] | None = None
    static: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    said: str = ""
    path: Path | None = None

    def with_variates(self, names: Sequence[str]) -> "Table":
        """The same rows with a subset of the variates, in this order."""
        if tuple(names) == self.variates:
            return self
        places = [self.variates.index(name) for name in names]
        return replace(self, values_TN=self.values_TN[:, places], variates=tuple(names))

    @property
    def wall(self) -> pd.DatetimeIndex:
        """Local time of each row."""
        return wall_clock(self.dates, self.offsets_T)


def wall_clock(dates: pd.DatetimeIndex, offsets_T: NDArray[np.int64] | None) -> pd.DatetimeIndex:
    """Converts UTC times and their offsets in seconds to local time."""
    return dates if offsets_T is None else dates + pd.to_timedelta(offsets_T, unit="s")


def read_csv(
    path: Path,
    target: Sequence[str] | None = None,
    even: bool = True,
    form: Format | None = None,
    columns: Columns | None = None,
) -> Table:
    """`read_series` for a file with one series.

    Args:
        target: shorthand for `Columns(target)`.

    Raises:
        ReadError: see `read_series`; also for several series.
    """
    columns = columns or Columns(None if target is None else tuple(target))
    tables = read_series(path, form or Format(), columns, even)
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables[:3])
        raise ReadError(
            f"it holds {len(tables):,} series ({names}, …), and a forecast is made of one: write each into a file of "
            "its own"
        )
    return tables[0]


def read_series(path: Path, form: Format, columns: Columns, even: bool = True) -> list[Table]:
    """Read a CSV with dates and numeric columns; in long format a column has the series ids.

    With `even`, rows are sorted, of repeated dates the last row is kept, and dates missing from the grid of the
    inferred frequency become rows. Without, rows are unchanged and taken as one step apart, as in the published
    protocols of the benchmarks. Missing values are NaN either way. Repairs are logged.

    Raises:
        ReadError: no dates, no numbers, no regular frequency or a missing column; a cell that is neither a number nor
            missing; an ambiguous format.
    """
    text = read_text(path, form)
    dates = read_dates(text, form)
    series = _series_column(text, form, dates)
    frame = _numbers(text, dates, series, columns)
    names = tuple(map(str, frame.columns))
    target = tuple(name for name in names if name not in columns.covariates())
    said = _said(text, dates)
    if series is None:
        groups = [("", np.arange(len(frame)))]
    else:
        ids = text.frame[series].astype(str)
        groups = [(str(name), np.flatnonzero((ids == name).to_numpy())) for name in ids.unique()]
        said += f", {len(groups):,} series by the column {series}"
    tables = []
    for name, rows in groups:
        own = replace(dates, times=dates.times[rows], offsets_T=_some(dates.offsets_T, rows))
        try:
            tables.append(_table(frame.iloc[rows], own, text, form, columns, target, name, said, even))
        except ReadError as error:
            raise ReadError(f"series {shown(name)}: {error}" if series else str(error)) from error
    if not form.missing:
        with np.errstate(invalid="ignore"):
            low, high = frame.min().to_numpy(), frame.max().to_numpy()
        for variate, ends in zip(names, zip(low, high, strict=True), strict=True):
            if variate in target and set(ends) & set(SENTINELS):
                _name_sentinels(path, variate, frame[variate])
    return tables


def _some(values: NDArray[np.int64] | None, rows: NDArray[np.intp]) -> NDArray[np.int64] | None:
    return None if values is None else values[rows]


def _table(
    frame: pd.DataFrame,
    dates: Dates,
    text: Text,
    form: Format,
    columns: Columns,
    target: tuple[str, ...],
    name: str,
    said: str,
    even: bool,
) -> Table:
    label = f"{text.path.name} {name}".strip()
    if even:
        grid = even_out(frame, dates, infer_frequency, form, label)
    else:
        frequency = infer_frequency(dates.times.drop_duplicates().sort_values())
        grid = Grid(frame, dates.times, dates.offsets_T, frequency)
    static = {}
    for column in columns.static:
        values = frame[column].dropna().unique()
        if len(values) != 1:
            raise ReadError(
                f"its static column {shown(column)} must hold one value in all rows of a series, not {len(values)}"
            )
        static[column] = float(values[0])
    return Table(
        values_TN=grid.frame[list(target)].to_numpy(np.float64),
        dates=grid.dates,
        variates=target,
        frequency=grid.frequency,
        offsets_T=grid.offsets_T,
        zone=dates.zone,
        known_TK=grid.frame[list(columns.known)].to_numpy(np.float64) if columns.known else None,
        past_TP=grid.frame[list(columns.past)].to_numpy(np.float64) if columns.past else None,
        static=static,
        name=name,
        said=said + grid.said,
    )


def _said(text: Text, dates: Dates) -> str:
    """Describes the inferred format."""
    if dates.zone:
        zone = f"times in {dates.zone}"
    elif dates.offsets_T is None:
        zone = "no time zone"
    else:
        zone = "time zone as written"
    separator = SEPARATORS.get(text.separator, repr(text.separator))
    encoding = "UTF-8" if text.encoding == "utf-8-sig" else text.encoding
    return f"{encoding}, separator {separator}, decimal sign {text.decimal!r}, {dates.said}, {zone}"


def _series_column(text: Text, form: Format, dates: Dates) -> str | None:
    """The column of series ids, if the file has several series."""
    frame = text.frame
    if form.series is not None:
        if form.series not in frame.columns:
            raise ReadError(
                f"it lacks the column {form.series} of task.data.series; it has {', '.join(frame.columns[:20])}"
            )
        return form.series
    names = {str(column).lower(): str(column) for column in reversed(frame.columns)}
    column = next((names[name] for name in SERIES_COLUMNS if name in names), None)
    if column is None or column in dates.columns:
        return None
    repeated = dates.times.duplicated().any()
    if repeated or frame[column].nunique() == 1:
        return column
    if frame[column].is_unique:
        return None  # it counts the rows; see `_numbers`
    return column


def _numbers(text: Text, dates: Dates, series: str | None, columns: Columns) -> pd.DataFrame:
    """The requested columns as float64, targets first."""
    frame = text.frame
    others = [name for name in frame.columns if name not in (*dates.columns, series, *columns.covariates())]
    if columns.target is None:
        counters = [name for name in others if _numbers_rows(name, frame[name])]
        if len(counters) == len(others):
            counters = []  # nothing else is there to forecast
        for name in counters:
            log.warning(
                "%s: column %r numbers the rows and is left out (task.data.target=[…] names what is forecast)",
                text.path.name,
                name,
            )
        wanted = [name for name in others if name not in counters]
    else:
        wanted = list(columns.target)
    asked = [*wanted, *columns.covariates()]
    absent = [name for name in asked if name not in frame.columns]
    if absent:
        have = [name for name in frame.columns if name not in dates.columns]
        raise ReadError(f"it lacks the column(s) {', '.join(absent)}; it has {', '.join(have[:20])}")
    values = _values(text, asked)
    infinite = np.isinf(values)
    if infinite.any():
        for name, count in zip(asked, infinite.sum(axis=0), strict=True):
            if count:
                log.warning(
                    "%s: %s infinite values of %s count as missing", text.path.name, f"{count:,}", name
                )
        values[infinite] = np.nan
    empty_A = np.asarray(np.isnan(values).all(axis=0))
    empty = [name for name, none in zip(asked, empty_A, strict=True) if none]
    asked_for = [name for name in empty if columns.target is not None or name in columns.covariates()]
    if asked_for:
        raise ReadError(f"its column {asked_for[0]!r} holds no numbers")
    if empty:
        log.warning("%s: column(s) without numbers left out: %s", text.path.name, ", ".join(empty))
    if not set(wanted) - set(empty):
        raise ReadError("none of its columns holds numbers")
    numbers = pd.DataFrame(values, columns=asked)
    return numbers.drop(columns=empty) if empty else numbers


def _numbers_rows(name: str, column: pd.Series) -> bool:
    """Whether a column is an index: unnamed or called an id, and unique; or whole numbers at equal distances."""
    if (not name.strip() or UNNAMED.fullmatch(name) or name.lower() in SERIES_COLUMNS) and column.is_unique:
        return True
    if not pd.api.types.is_numeric_dtype(column) or len(column) < FEWEST_ROWS or column.isna().any():
        return False
    values_T = column.to_numpy(np.float64)
    steps_T = np.diff(values_T)
    return bool((values_T == np.round(values_T)).all() and steps_T[0] != 0 and (steps_T == steps_T[0]).all())


def _values(text: Text, names: Sequence[str]) -> NDArray[np.float64]:
    """Columns as numbers, (T, columns); NaN for missing cells, and in columns without any number."""
    texts = set(text_columns(text.frame))
    if not texts.intersection(names):  # all at once: a file may have hundreds
        return text.frame[list(names)].to_numpy(np.float64, copy=True)
    values = np.full((len(text.frame), len(names)), np.nan)
    for place, name in enumerate(names):
        column = to_numbers(text, name) if name in texts else text.frame[name]
        if column is not None:
            values[:, place] = column.to_numpy(np.float64)
    return values


def _name_sentinels(path: Path, name: str, column: pd.Series) -> None:
    """Warn about an outlier that often denotes missing values, such as -9999."""
    values = column.dropna().to_numpy()
    for sentinel in {float(values.min()), float(values.max())} & set(
        SENTINELS
    ):  # an outlier is the minimum or the maximum
        same = values == sentinel
        others = values[~same]
        if not same.any() or len(others) < 3:
            continue
        low, high = np.quantile(others, [0.25, 0.75])
        nearest = min(abs(others.min() - sentinel), abs(others.max() - sentinel))
        if not others.min() <= sentinel <= others.max() and nearest > FAR * max(high - low, 1e-9 * abs(low)):
            log.warning(
                "%s: %s stands %s times in column %s, whose other values lie between %g and %g: if it means missing, "
                "say 'task.data.missing=[%g]'",
                path.name, f"{sentinel:g}", f"{same.sum():,}", name, others.min(), others.max(), sentinel,
            )  # fmt: skip


def infer_frequency(dates: pd.DatetimeIndex) -> str:
    """The step of sorted, unique dates: pandas' inference for a regular series, else the most frequent difference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns that the result will no longer be a string
        found = pd.infer_freq(dates)
    if found is not None:
        return str(getattr(found, "freqstr", found))
    distances = pd.Series(dates[1:] - dates[:-1])
    step = pd.Timedelta(distances.mode().iloc[0])
    days = step / DAY
    first = (dates == dates.to_period("M").start_time).mean() > 0.9
    if 28 <= days <= 31:
        return "MS" if first else "ME"
    if 90 <= days <= 92:
        return "QS" if first else "QE"
    if 365 <= days <= 366:
        return "YS" if first else "YE"
    if days == 1 and not (dates.day_of_week >= 5).any():
        return "B"
    if days == 7:
        return f"W-{dates[-1].strftime('%a').upper()}"
    if days % 1 == 0:
        return "D" if days == 1 else f"{days:.0f}D"
    return str(pd.tseries.frequencies.to_offset(step).freqstr)


def calendar_names(frequency: str, span: pd.Timedelta) -> tuple[str, ...]:
    """Calendar cycles that are useful features: longer than a step, and covered at least twice by the `span` of the
    training split (a year seen once would be memorised). Each has a sine and a cosine."""
    start = pd.Timestamp("2001-01-01")
    step = start + pd.tseries.frequencies.to_offset(frequency) - start
    cycles = [name for name, length in CYCLES.items() if step < length and 2 * length <= span]
    return tuple(f"{wave}({name})" for name in cycles for wave in ("sin", "cos"))


def calendar_features(dates: pd.DatetimeIndex, names: Sequence[str]) -> NDArray[np.float32]:
    """Calendar features (T, F) in [-1, 1] for the names returned by `calendar_names`."""
    seconds = (dates.hour * 3600 + dates.minute * 60 + dates.second).to_numpy(np.float64)
    places = {
        "minute_of_hour": seconds % 3600 / 3600,
        "hour_of_day": seconds / 86400,
        "day_of_week": (dates.day_of_week.to_numpy() + seconds / 86400) / 7,
        "day_of_year": (dates.day_of_year.to_numpy() - 1 + seconds / 86400) / 366,
    }
    waves = {"sin": np.sin, "cos": np.cos}
    split = [name.rstrip(")").split("(") for name in names]
    columns = [waves[wave](2 * np.pi * places[cycle]) for wave, cycle in split]
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((len(dates), 0), np.float32)


def future_dates(last: pd.Timestamp, frequency: str, steps: int) -> pd.DatetimeIndex:
    """The dates of the next `steps` rows."""
    return pd.date_range(last, periods=steps + 1, freq=frequency)[1:]


def future_rows(table: Table, steps: int) -> tuple[pd.DatetimeIndex, NDArray[np.int64] | None]:
    """Dates, and UTC offsets if the zone is known, of all rows and the next `steps`; without a zone name, the last
    offset is continued."""
    if table.offsets_T is None:
        return table.dates.append(future_dates(table.dates[-1], table.frequency, steps)), None
    start = pd.Timestamp("2001-01-01")
    last = np.full(steps, table.offsets_T[-1])
    if start + pd.tseries.frequencies.to_offset(table.frequency) - start < DAY:
        dates = future_dates(table.dates[-1], table.frequency, steps)
        offsets = offsets_of(dates, table.zone) if table.zone else last
    else:  # days, weeks and months are in local time
        wall = future_dates(table.wall[-1], table.frequency, steps)
        offsets = wall_offsets(wall, table.zone) if table.zone else last
        dates = wall - pd.to_timedelta(offsets, unit="s")
    return table.dates.append(dates.as_unit("s")), np.concatenate([table.offsets_T, offsets])
