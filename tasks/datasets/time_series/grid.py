"""Regularises rows to a fixed step: sorting, repeated dates, jitter and missing rows, in bounded memory."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError
from tasks.datasets.time_series.dates import Dates, wall_offsets
from tasks.datasets.time_series.text import Format, check_memory

log = logging.getLogger("widefield")

MOST_OFF_GRID = 0.01  # maximum fraction of rows off the series' own grid
MOST_REPEATED = 0.1  # maximum fraction of repeated dates; more means several series in one file
MOST_JITTER = 0.1  # maximum deviation of inexact times, in steps
STEPS_S = (
    1,
    2,
    5,
    10,
    15,
    20,
    30,
    60,
    120,
    300,
    600,
    900,
    1200,
    1800,
    3600,
    7200,
    10800,
    14400,
    21600,
    43200,
    86400,
)
LONG_STEP = pd.Timedelta(
    hours=20
)  # steps of at least this are calendar steps, which daylight saving time does not shift

Infer = Callable[[pd.DatetimeIndex], str]


@dataclass(frozen=True)
class Grid:
    """Evenly spaced rows, their dates and UTC offsets (`None` without a zone), their step, and notes on the repairs."""

    frame: pd.DataFrame
    dates: pd.DatetimeIndex
    offsets_T: NDArray[np.int64] | None
    frequency: str
    said: str = ""


def even_out(frame: pd.DataFrame, dates: Dates, infer: Infer, form: Format, label: str) -> Grid:
    """Regularises rows to one step, without repetitions; new rows are NaN.

    Args:
        frame, dates: the rows.
        infer: infers the step of ascending dates.
        form: limits of missing rows and of memory.
        label: name of the series in messages.

    Raises:
        ReadError: irregular steps, too few rows, or too large a grid.
    """
    frame, dates = _sorted(frame, dates, label)
    index = dates.times
    local = dates.offsets_T is not None and (index[1:] - index[:-1]).to_series().median() >= LONG_STEP
    if local:
        index = index + pd.to_timedelta(dates.offsets_T, unit="s")
    said = ""
    frequency = infer(index)
    grid = _grid(index, frequency, form, frame.shape[1])
    off, absent = _apart(index, grid)
    if off > MOST_OFF_GRID * len(index):
        snapped = _without_jitter(index)
        if snapped is not None:
            moved = int(np.abs((snapped - index).total_seconds()).max())
            said = f", times up to {moved} s off their step moved to it"
            index = snapped
            keep = ~index.duplicated(keep="last")
            frame, index = frame[keep], index[keep]
            dates = _taken(dates, np.flatnonzero(keep))
            frequency = infer(index)
            grid = _grid(index, frequency, form, frame.shape[1])
            off, absent = _apart(index, grid)
    if grid is None or off or absent:
        _refuse_uneven(index, grid, off, absent, frequency, form)
    assert grid is not None
    if off:
        log.warning("%s: %s rows between two steps of %s left out", label, f"{off:,}", frequency)
    if absent:
        log.warning("%s: %s missing rows added, a step is %s", label, f"{absent:,}", frequency)
    frame = frame.set_axis(index)
    frame = frame.reindex(grid) if off or absent else frame
    if dates.offsets_T is None:
        return Grid(frame, grid, None, frequency, said)
    offsets = pd.Series(dates.offsets_T, index=index).reindex(grid)
    offsets_T = offsets.ffill().bfill().to_numpy(np.int64)
    if local and dates.zone:
        offsets_T = wall_offsets(grid, dates.zone)
    utc = grid - pd.to_timedelta(offsets_T, unit="s") if local else grid
    return Grid(frame, utc.as_unit("s"), offsets_T, frequency, said)


def _taken(dates: Dates, rows: NDArray[np.intp]) -> Dates:
    offsets_T = None if dates.offsets_T is None else dates.offsets_T[rows]
    return replace(dates, times=dates.times[rows], offsets_T=offsets_T)


def _sorted(frame: pd.DataFrame, dates: Dates, label: str) -> tuple[pd.DataFrame, Dates]:
    """Sorts by time and keeps the last row of each date."""
    order = np.argsort(dates.times.asi8, kind="stable")
    if not dates.times.is_monotonic_increasing:
        log.warning("%s: rows sorted by date", label)
    repeated_T = dates.times[order].duplicated(keep="last")
    repeated, different = int(repeated_T.sum()), int((~repeated_T).sum())
    if different < 3:
        raise ReadError(f"it has rows of {different} different dates; a series needs at least 3")
    if repeated > MOST_REPEATED * len(order):
        raise ReadError(
            f"{repeated:,} of its {len(order):,} rows repeat the date of another: where it holds several series, say "
            "which column names them with task.data.series=COLUMN"
        )
    if repeated:
        log.warning(
            "%s: %s rows repeat the date of another; the last of each date is kept", label, f"{repeated:,}"
        )
    order = order[~repeated_T]
    return frame.iloc[order], _taken(dates, order)


def _grid(index: pd.DatetimeIndex, frequency: str, form: Format, columns: int) -> pd.DatetimeIndex | None:
    """All steps from the first to the last date; `None` if far more rows than allowed would be missing."""
    offset = pd.tseries.frequencies.to_offset(frequency)
    start = (
        pd.Timestamp("2001-01-01") + offset
    )  # on the grid: e.g. a Tuesday for weeks that begin on Tuesdays
    step = start + offset - start
    places = (index[-1] - index[0]).total_seconds() / step.total_seconds()
    if places > 2 * len(index) / max(1 - form.max_missing, 1e-9) + 1000:
        return None
    check_memory(8 * places * (columns + 1), form, f"the table with all steps of {frequency}")
    return pd.date_range(index[0], index[-1], freq=frequency).as_unit("s")


def _apart(index: pd.DatetimeIndex, grid: pd.DatetimeIndex | None) -> tuple[int, int]:
    """Number of dates off the grid, and of grid steps without a date; without a grid, all dates."""
    if grid is None:
        return len(index), 0
    if index.equals(grid):  # the common case; looking up every date takes longer than parsing it
        return 0, 0
    return int((~index.isin(grid)).sum()), int((~grid.isin(index)).sum())


def _without_jitter(index: pd.DatetimeIndex) -> pd.DatetimeIndex | None:
    """Snaps the dates to a grid of a usual step; `None` if some are too far off."""
    typical = float(np.median(np.diff(index.asi8)))
    step = min(STEPS_S, key=lambda seconds: abs(seconds - typical))
    if abs(step - typical) > MOST_JITTER * step:
        return None
    seconds = index.asi8
    # The phase within a step is a circular mean, since a time just before the next step is close to it.
    turn = 2 * np.pi * (seconds % step) / step
    phase = round(float(np.angle(np.exp(1j * turn).mean())) / (2 * np.pi) * step)
    snapped = np.round((seconds - phase) / step).astype(np.int64) * step + phase
    if np.abs(snapped - seconds).max() > MOST_JITTER * step:
        return None
    if (np.diff(snapped) == 0).mean() > MOST_OFF_GRID:
        return None
    return pd.DatetimeIndex(pd.to_datetime(snapped, unit="s")).as_unit("s")


def _refuse_uneven(
    index: pd.DatetimeIndex,
    grid: pd.DatetimeIndex | None,
    off: int,
    absent: int,
    frequency: str,
    form: Format,
) -> None:
    gaps = np.diff(index.asi8)
    widest = int(gaps.argmax())
    between = f"the widest gap lies between {index[widest]} and {index[widest + 1]}"
    if grid is None or len(grid) == 0:
        raise ReadError(
            f"its dates are not evenly spaced: of the steps of {frequency} from {index[0]} to {index[-1]} more than "
            f"{form.max_missing:.0%} have no row ({between}); mend the dates, or allow more with task.data.max_missing"
        )
    if off > MOST_OFF_GRID * len(index) or absent > form.max_missing * len(grid):
        raise ReadError(
            f"its dates are not evenly spaced: {off:,} of {len(index):,} rows do not lie on a grid of "
            f"{frequency}, and {absent:,} of its {len(grid):,} places have no row ({between})"
        )
