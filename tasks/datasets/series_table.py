"""Tables of time series: reading a CSV, its rhythm, its gaps, and what the calendar says of each row.

Shapes: T rows in order of time, N variates, F calendar features.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.datasets.base import ReadError, check_file

log = logging.getLogger("widefield")

DATE_COLUMNS = ("date", "datetime", "timestamp", "time", "ds")
MOST_OFF_GRID = 0.01  # share of rows whose date does not lie on the series' own grid
FEWEST_ON_GRID = 0.5  # share of the grid that must have a row
DAY = pd.Timedelta(days=1)

CYCLES = {"minute_of_hour": DAY / 24, "hour_of_day": DAY, "day_of_week": 7 * DAY, "day_of_year": 365 * DAY}


@dataclass(frozen=True)
class Table:
    """A series without gaps.

    Args:
        values_TN: float64, in the data's own units.
        dates: of the rows.
        variates: names of the columns.
        frequency: length of a step as pandas writes it, e.g. `h`, `15min`, `D`, `MS`.
    """

    values_TN: NDArray[np.float64]
    dates: pd.DatetimeIndex
    variates: tuple[str, ...]
    frequency: str


def read_csv(path: Path, target: Sequence[str] | None = None, even: bool = True) -> Table:
    """Read a CSV with a date column and numeric columns.

    With `even`, rows are sorted, repeated dates keep the last row, and dates missing from the grid of the
    inferred frequency become rows. Without, rows stay as they are, one step apart, which is how the published
    protocols of the benchmarks treat their files. Either way missing values are filled: linearly between the
    neighbours in time, and at both ends with the nearest value. Whatever was repaired is logged.

    Args:
        target: columns to keep, in this order; `None` keeps every numeric column.

    Raises:
        ReadError: the file has no dates, no numbers, no regular rhythm or lacks a column of `target`.
    """
    frame = _load(path)
    dates = _dates(frame, path)
    frame = _numbers(frame.drop(columns=dates.name), path, target)
    frame.index = pd.DatetimeIndex(dates)
    if even:
        frame, frequency = _even_out(frame, path)
    else:
        frequency = infer_frequency(pd.DatetimeIndex(frame.index).drop_duplicates().sort_values())
    missing = int(frame.isna().to_numpy().sum())
    if missing:
        log.warning(
            "%s: %s missing values filled, linearly between neighbours and with the nearest at the ends",
            path.name,
            f"{missing:,}",
        )
        frame = frame.interpolate(method="linear", limit_direction="both")
    names = tuple(map(str, frame.columns))
    return Table(frame.to_numpy(np.float64), pd.DatetimeIndex(frame.index), names, frequency)


def _load(path: Path) -> pd.DataFrame:
    check_file(path)
    try:
        frame = pd.read_csv(path, skipinitialspace=True, encoding="utf-8-sig")
    except (OSError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        first = str(error).strip().split("\n")[0]
        raise ReadError(f"it cannot be read as a CSV table ({first})") from error
    if len(frame) < 3 or len(frame.columns) < 2:
        raise ReadError(
            f"it has {len(frame)} rows and {len(frame.columns)} columns; a series needs at least 3 rows, a "
            "date column and a column of numbers"
        )
    return frame


def _dates(frame: pd.DataFrame, path: Path) -> pd.Series:
    """The date column: one with a usual name, else the first column."""
    names = {str(column).strip().lower(): column for column in frame.columns}
    column = next((names[name] for name in DATE_COLUMNS if name in names), frame.columns[0])
    if pd.api.types.is_numeric_dtype(frame[column]):
        raise ReadError(
            f"its first column, {column!r}, holds numbers; a column named date with dates is needed"
        )
    dates = pd.to_datetime(frame[column], errors="coerce", utc=True, format="mixed").dt.tz_localize(None)
    wrong = int(dates.isna().sum())
    if wrong:
        row = int(dates.isna().to_numpy().argmax())
        raise ReadError(
            f"{wrong:,} entries of its column {column!r} are no dates, the first in line {row + 2}: "
            f"{str(frame[column].iloc[row])!r}"
        )
    return dates.dt.as_unit("s")


def _numbers(frame: pd.DataFrame, path: Path, target: Sequence[str] | None) -> pd.DataFrame:
    if target is not None:
        absent = [name for name in target if name not in frame.columns]
        if absent:
            raise ReadError(
                f"it lacks the column(s) {', '.join(absent)}; it has {', '.join(map(str, frame.columns))}"
            )
        frame = frame[list(target)]
    numbers = frame.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    numbers = numbers.where(np.isfinite(numbers))
    empty = [str(column) for column in numbers if numbers[column].isna().all()]
    if target is not None and empty:
        raise ReadError(f"its column {empty[0]!r} holds no numbers")
    if empty:
        log.warning("%s: column(s) without numbers left out: %s", path.name, ", ".join(empty))
        numbers = numbers.drop(columns=empty)
    if numbers.shape[1] == 0:
        raise ReadError("none of its columns holds numbers")
    return numbers


def _even_out(frame: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, str]:
    """Rows one step apart, without repetition; new rows hold NaN."""
    index = pd.DatetimeIndex(frame.index)
    if not index.is_monotonic_increasing:
        log.warning("%s: rows sorted by date", path.name)
        frame = frame.sort_index(kind="stable")
    repeated = int(frame.index.duplicated(keep="last").sum())
    if repeated:
        log.warning(
            "%s: %s rows repeat the date of another; the last of each date is kept",
            path.name,
            f"{repeated:,}",
        )
        frame = frame[~frame.index.duplicated(keep="last")]
    index = pd.DatetimeIndex(frame.index)
    if len(index) < 3:
        raise ReadError(f"it has rows of {len(index)} different dates; a series needs at least 3")
    frequency = infer_frequency(index)
    grid = pd.date_range(index[0], index[-1], freq=frequency).as_unit("s")
    off = int((~index.isin(grid)).sum())
    absent = int((~grid.isin(index)).sum())
    if len(grid) == 0 or off > MOST_OFF_GRID * len(index) or absent > (1 - FEWEST_ON_GRID) * len(grid):
        raise ReadError(
            f"its dates are not evenly spaced: {off:,} of {len(index):,} rows do not lie on a grid of "
            f"{frequency}, and {absent:,} of its {len(grid):,} places have no row"
        )
    if off:
        log.warning("%s: %s rows between two steps of %s left out", path.name, f"{off:,}", frequency)
    if absent:
        log.warning("%s: %s missing rows added, a step is %s", path.name, f"{absent:,}", frequency)
    return frame.reindex(grid), frequency


def infer_frequency(dates: pd.DatetimeIndex) -> str:
    """The step of sorted, different dates: pandas' own answer for a perfect series, else the commonest
    distance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas announces that the answer will no longer be a string
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
    """Cycles of the calendar worth telling a model: longer than a step, and seen at least twice in the `span`
    of the training part (of a year seen once it would learn the one year). Each has a sine and a cosine."""
    start = pd.Timestamp("2001-01-01")
    step = start + pd.tseries.frequencies.to_offset(frequency) - start
    cycles = [name for name, length in CYCLES.items() if step < length and 2 * length <= span]
    return tuple(f"{wave}({name})" for name in cycles for wave in ("sin", "cos"))


def calendar_features(dates: pd.DatetimeIndex, names: Sequence[str]) -> NDArray[np.float32]:
    """(T, F) values in [-1, 1] for the names that `calendar_names` gives."""
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
