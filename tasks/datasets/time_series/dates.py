"""Detects and parses the dates of a table: their column, format and time zone.

Times with a zone are stored in UTC with their UTC offsets, so that local time can be restored.
"""

import re
import warnings
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError
from tasks.datasets.time_series.text import Format, Text, is_text, shown

DATE_COLUMNS = ("date", "datetime", "timestamp", "time", "ds")
STEP_COLUMNS = ("year", "month", "day")  # used if no column has a better name
TIME_COLUMNS = ("time", "hour", "clock")
NO_ZONE = -(2**31)  # offset value for an unknown zone
EVEN = 0.95  # fraction of equal differences from which dates count as evenly spaced
DAY_S = 86400
UNITS = {
    "s": 1e8,
    "ms": 1e11,
    "us": 1e14,
    "ns": 1e17,
}  # minimum of timestamps since 1970 (i.e. from 1973 on)
DIGITS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
NUMBER = r"[+-]?\d+(\.0*)?"
NUMERIC = re.compile(r"^\s*(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})(?!\d)(.*)$")
PLAIN_ISO = re.compile(r"\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2})?)?")
FIRST_YEAR = np.datetime64("0001-01-01", "s")
OFFSET = r":\d{2}(?:\.\d+)?\s*(?:[AaPp][Mm])?\s*(?:[zZ]|UTC|GMT|([+-])(\d{2})(?::?(\d{2}))?)$"


@dataclass(frozen=True)
class Dates:
    """The dates of the rows.

    Args:
        times: naive; in UTC if `offsets_T` is given.
        columns: names of their columns.
        offsets_T: UTC offsets in seconds; `None` if the zone is unknown.
        zone: name of the requested zone, if any.
        said: short description of how they were read.
    """

    times: pd.DatetimeIndex
    columns: tuple[str, ...]
    offsets_T: NDArray[np.int64] | None
    zone: str | None
    said: str


def read_dates(text: Text, form: Format) -> Dates:
    """Find and read the dates; raises `ReadError` if they are ambiguous."""
    columns = _columns(text, form)
    column = text.frame[columns[0]]
    if column.isna().any():
        row = int(column.isna().to_numpy().argmax())
        raise ReadError(f"its column {shown(columns[0])} has no date in line {text.line(row)}")
    if _is_numbers(column):
        times, said = _from_numbers(column, columns[0])
        offsets = np.zeros(len(times), np.int64) if "since 1970" in said else None  # counted in UTC
    elif len(columns) == 1 and (plain := _plain_iso(column)) is not None:
        times, offsets, said = plain, None, "dates year first"
    else:
        cells = column.astype(str).str.strip()
        if len(columns) > 1:
            cells = cells + " " + text.frame[columns[1]].astype(str).str.strip()
        times, offsets, said = _from_texts(cells, text, columns[0], form.date_order)
    if form.time_zone:
        times, offsets = _into_zone(times, offsets, form.time_zone)
    return Dates(times, columns, offsets, form.time_zone, said)


def _columns(text: Text, form: Format) -> tuple[str, ...]:
    frame = text.frame
    if form.date is not None:
        wanted = (form.date,) if isinstance(form.date, str) else tuple(form.date)
        absent = [name for name in wanted if name not in frame.columns]
        if absent or not 1 <= len(wanted) <= 2:
            raise ReadError(
                f"task.data.date names {', '.join(wanted)}; wanted is a column, or one of dates and one of times; "
                f"it has {', '.join(map(str, frame.columns[:20]))}"
            )
        return wanted
    names = {str(column).lower(): str(column) for column in reversed(frame.columns)}
    found = [names[name] for name in DATE_COLUMNS if name in names]
    column = found[0] if found else str(frame.columns[0])
    if not found and _is_numbers(frame[column]) and not _rises(frame[column]):
        found = [names[name] for name in STEP_COLUMNS if name in names]
        column = found[0] if found else column
    if not found and _is_numbers(frame[column]) and not _rises(frame[column]):
        raise ReadError(
            f"its first column, {shown(column)}, holds numbers; a column named date with dates is needed, or say "
            "task.data.date=COLUMN"
        )
    clock = next((names[name] for name in TIME_COLUMNS if name in names and names[name] != column), None)
    if clock is not None and _is_clock(frame[clock]):
        return column, clock
    return (column,)


def _is_clock(column: pd.Series) -> bool:
    return is_text(column) and bool(column.astype(str).str.strip().str.match(r"\d{1,2}:\d{2}").all())


def _is_numbers(column: pd.Series) -> bool:
    if not is_text(column):
        return True
    if not re.fullmatch(NUMBER, str(column.iloc[0]).strip()):  # a first cell that is not a number decides
        return False
    return bool(column.astype(str).str.strip().str.fullmatch(NUMBER).all())


def _rises(column: pd.Series) -> bool:
    """Whether a column with any name has numbers that can only be dates: yyyymmdd or longer, ascending."""
    numbers = pd.to_numeric(column)
    return bool((numbers >= 10_000_000).all() and numbers.is_monotonic_increasing and numbers.is_unique)


# -- numbers that are dates ----------------------------------------------------------------------------------


def _from_numbers(column: pd.Series, name: str) -> tuple[pd.DatetimeIndex, str]:
    """Parses years, yyyymm, yyyymmdd (with hours, minutes, seconds), or (milli-, micro-, nano-)seconds since 1970."""
    numbers = pd.to_numeric(column)
    whole = (numbers % 1 == 0).all()
    texts = numbers.astype(np.int64).astype(str) if whole else numbers.astype(str)
    lengths = texts.str.len()
    if whole and lengths.nunique() == 1 and int(lengths.iloc[0]) in DIGITS and (numbers > 0).all():
        pattern = DIGITS[int(lengths.iloc[0])]
        times = pd.to_datetime(texts, format=pattern, errors="coerce")
        if times.notna().all() and times.dt.year.between(1000, 2200).all():
            return pd.DatetimeIndex(times).as_unit("s"), f"dates written {pattern.replace('%', '')}"
    for unit, least in UNITS.items():
        if (numbers >= least).all() and (numbers < 42 * least).all():
            times = pd.DatetimeIndex(pd.to_datetime(numbers, unit=unit)).as_unit("s")
            return times, f"dates counted in {unit} since 1970"
    raise ReadError(
        f"its column {shown(name)} holds numbers, from {column.iloc[0]} to {column.iloc[-1]}, that are no dates: read "
        "are years, yyyymm, yyyymmdd with or without hours, minutes and seconds, and seconds (ms, us, ns) since 1970; "
        "another column is named with task.data.date=COLUMN"
    )


# -- texts that are dates ------------------------------------------------------------------------------------


def _from_texts(
    cells: pd.Series, text: Text, name: str, order: str | None
) -> tuple[pd.DatetimeIndex, NDArray[np.int64] | None, str]:
    said = "dates year first"
    plain = _plain_iso(cells)
    if plain is not None:
        return plain, None, said
    long = cells.str.len() > 100
    if long.any():
        raise _no_date(text, name, int(long.to_numpy().argmax()), int(long.sum()))
    parts = cells.str.extract(NUMERIC)
    numeric = parts[0].notna()
    if numeric.all():
        order = order or _order(parts, cells, text, name)
        cells = _year_first(parts, order)
        said = f"dates {order} first"
    else:
        wrong = numeric if numeric.any() else ~cells.str.contains(r"\d{4}", regex=True)
        if wrong.any() or numeric.any():
            bad = wrong if not numeric.any() else (~numeric if numeric.mean() > 0.5 else numeric)
            raise _no_date(text, name, int(bad.to_numpy().argmax()), int(bad.sum()))
    zoned = cells.str.fullmatch(f".*{OFFSET}")
    if zoned.any() and not zoned.all():
        row = int((~zoned).to_numpy().argmax())
        raise ReadError(
            f"some times of its column {shown(name)} have a zone and others none, the first in line "
            f"{text.line(row)}: {shown(cells.iloc[row])}"
        )
    times = _parse(cells)
    wrong = times.isna()
    if wrong.any():
        raise _no_date(text, name, int(wrong.to_numpy().argmax()), int(wrong.sum()))
    utc = pd.DatetimeIndex(times).as_unit("s").tz_localize(None)
    return utc, _offsets(cells) if zoned.all() else None, said


def _plain_iso(cells: pd.Series) -> pd.DatetimeIndex | None:
    """Fast path for the common case: dates of equal length, year-month-day with or without a time."""
    if not PLAIN_ISO.fullmatch(str(cells.iloc[0])):
        return None
    import pyarrow
    from pyarrow import compute

    array = pyarrow.array(cells, from_pandas=True)
    lengths = compute.min_max(compute.utf8_length(array)).as_py()
    if lengths["min"] != lengths["max"]:
        return None
    try:
        seconds = array.cast(pyarrow.timestamp("s")).to_numpy(zero_copy_only=False)
    except pyarrow.ArrowInvalid:  # another format, or with a zone
        return None
    return pd.DatetimeIndex(seconds) if len(seconds) and seconds.min() >= FIRST_YEAR else None


def _parse(cells: pd.Series) -> pd.Series:
    """Parses to UTC; invalid cells become NaT."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pandas' warnings, e.g. about an unknown zone name
        try:
            return pd.to_datetime(cells, errors="coerce", utc=True, format="mixed")
        except Warning:
            return pd.Series(pd.NaT, index=cells.index)


def _no_date(text: Text, name: str, row: int, count: int) -> ReadError:
    value = text.frame[name].iloc[row]
    return ReadError(
        f"{count:,} entries of its column {shown(name)} are no dates, the first in line {text.line(row)}: "
        f"{shown(value)} (a date has a year of four digits, and all must be written alike)"
    )


def _year_first(parts: pd.DataFrame, order: str) -> pd.Series:
    """Reorders the groups of `NUMERIC` to year-month-day."""
    places = {"day": (3, 2, 0), "month": (3, 0, 2), "year": (0, 2, 3)}[order]
    year, month, day = (parts[place] for place in places)
    century = np.where(pd.to_numeric(year) < 70, "20", "19")
    year = year.where(year.str.len() == 4, century + year.str.zfill(2))
    return year + "-" + month.str.zfill(2) + "-" + day.str.zfill(2) + parts[4]


def _order(parts: pd.DataFrame, cells: pd.Series, text: Text, name: str) -> str:
    """The order of day and month in `03/04/2021`: the only one in which all cells are valid dates, or else the only one
    in which they are evenly spaced."""
    orders = ["day", "month"] if (parts[3].str.len() == 4).all() else ["day", "month", "year"]
    found: dict[str, pd.Series] = {}
    for order in orders:
        days = _year_first(parts, order).str.slice(0, 10)
        times = pd.to_datetime(days, format="%Y-%m-%d", errors="coerce")
        if times.notna().all():
            found[order] = times
    if not found:
        # Name the first line that is valid in none of the orders that fit the lines before.
        raise ReadError(
            f"its column {shown(name)} holds dates with the day first and others with the month first, or no dates: "
            f"{shown(cells.iloc[0])} … {shown(cells.iloc[-1])}"
        )
    if len(found) == 1:
        return next(iter(found))
    even = {order: evenness(_parse(_year_first(parts, order))) for order in found}
    for least in (1.0, EVEN):
        chosen = [order for order, share in even.items() if share >= least]
        if len(chosen) == 1:
            return chosen[0]
    row = int((parts[0] != parts[2]).to_numpy().argmax())
    raise ReadError(
        f"{shown(cells.iloc[row])} in its column {shown(name)}, line {text.line(row)}, may have the day or the month "
        "first, and no date of the file settles it: say task.data.date_order=day or task.data.date_order=month"
    )


def evenness(times: pd.Series) -> float:
    """Fraction of equal differences between ascending dates, in days or in months; 0 for other dates."""
    times = times[times.ne(times.shift())]
    if times.isna().any() or len(times) < 3 or not times.is_monotonic_increasing:
        return 0.0
    distances = times.diff().dropna()
    months = (12 * times.dt.year + times.dt.month).diff().dropna()
    shares = [distances.value_counts(normalize=True).iloc[0]]
    if times.dt.day.nunique() == 1 and (months > 0).all():
        shares.append(months.value_counts(normalize=True).iloc[0])
    if distances.mode().iloc[0] == pd.Timedelta(days=1):  # working days
        shares.append(distances.isin([pd.Timedelta(days=1), pd.Timedelta(days=3)]).mean())
    return float(max(shares))


# -- time zones ----------------------------------------------------------------------------------------------


def _offsets(cells: pd.Series) -> NDArray[np.int64]:
    """UTC offsets in seconds, (T,)."""
    parts = cells.str.extract(OFFSET)
    hours, minutes = pd.to_numeric(parts[1]).fillna(0), pd.to_numeric(parts[2]).fillna(0)
    sign = np.where(parts[0] == "-", -1, 1)
    return np.asarray(sign * (3600 * hours + 60 * minutes), dtype=np.int64)


def _into_zone(
    times: pd.DatetimeIndex, offsets_T: NDArray[np.int64] | None, zone: str
) -> tuple[pd.DatetimeIndex, NDArray[np.int64]]:
    """UTC times and offsets in the zone; naive times are taken as local times of the zone."""
    find_zone(zone)
    if offsets_T is None:
        try:
            utc = times.tz_localize(zone, ambiguous="infer").tz_convert("UTC").tz_localize(None)
        except ValueError as error:
            first = str(error).split("\n")[0]
            raise ReadError(
                f"its times are not those of a clock in {zone}, where one hour is missing in spring and comes twice in "
                f"autumn ({first})"
            ) from error
        times = utc.as_unit("s")
    return times, offsets_of(times, zone)


def find_zone(name: str) -> ZoneInfo:
    """Look up a zone by name; raises `ReadError`."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ReadError(f"there is no time zone named {name!r}; such a name is Europe/Berlin") from error


def offsets_of(utc: pd.DatetimeIndex, zone: str) -> NDArray[np.int64]:
    """UTC offsets of a zone in seconds at these UTC times, (T,)."""
    wall = utc.tz_localize("UTC").tz_convert(zone).tz_localize(None)
    return np.asarray((wall.as_unit("s") - utc).total_seconds(), dtype=np.int64)


def wall_offsets(wall: pd.DatetimeIndex, zone: str) -> NDArray[np.int64]:
    """UTC offsets at local times, (T,): the first occurrence of a repeated hour, the hour after a missing one."""
    utc = wall.tz_localize(zone, ambiguous=np.ones(len(wall), dtype=bool), nonexistent="shift_forward")
    return offsets_of(utc.tz_convert("UTC").tz_localize(None).as_unit("s"), zone)
