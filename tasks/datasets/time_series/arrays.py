"""Tables as arrays in memory: series are concatenated, gaps are filled from the past only.

Shapes: T rows of all series, N variates, K known and P past covariates, S static covariates, F calendar features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.datasets.time_series.table import Table, calendar_features

LARGE_LEVEL = 1e5  # ratio of values to the standard deviation of differences beyond which float32 loses them


def fill_from_past(values_TN: NDArray[np.float64], first_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Forward-fills missing values; leading ones are filled with `first_N`."""
    if not np.isnan(values_TN).any():
        return values_TN
    filled_TN = pd.DataFrame(values_TN).ffill().to_numpy(np.float64)
    return np.where(np.isnan(filled_TN), first_N, filled_TN)


def between_neighbours(values_TN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolates missing values linearly; for statistics of the training split, such as its period."""
    if not np.isnan(values_TN).any():
        return values_TN
    return pd.DataFrame(values_TN).interpolate(limit_direction="both").fillna(0.0).to_numpy(np.float64)


def moments(values_TN: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of every column over time, with gaps interpolated, so that densely observed periods
    do not outweigh sparse ones."""
    filled_TN = between_neighbours(values_TN)
    return filled_TN.mean(axis=0), filled_TN.std(axis=0)


def has_large_level(values_TN: NDArray[np.float64]) -> bool:
    """Whether single precision would lose the differences between steps of a series."""
    filled_TN = between_neighbours(values_TN)
    step_N = np.diff(filled_TN, axis=0).std(axis=0)
    return bool((np.abs(filled_TN).max(axis=0) > LARGE_LEVEL * step_N)[step_N > 0].any())


@dataclass(frozen=True)
class Arrays:
    """All rows of all series, concatenated.

    Args:
        values_TN: NaN where missing.
        filled_TN: with gaps filled from the past.
        dates_T: seconds since 1970, in UTC if the time zone is known, else in local time.
        calendar_TF: calendar features of local time.
        offsets_T: UTC offset in seconds.
        known_TK, past_TP: covariates without gaps.
        static_RS: static covariates of each series.
        unit_RN: standard deviation of each series' training rows.
        starts: first row of each series.
    """

    values_TN: NDArray[np.float64]
    filled_TN: NDArray[np.float64]
    dates_T: NDArray[np.int64]
    calendar_TF: NDArray[np.float32]
    offsets_T: NDArray[np.int64] | None
    known_TK: NDArray[np.float32] | None
    past_TP: NDArray[np.float32] | None
    static_RS: NDArray[np.float32]
    unit_RN: NDArray[np.float64]
    starts: tuple[int, ...]


def join(tables: Sequence[Table], trains: Sequence[slice], calendar: Sequence[str]) -> Arrays:
    """Concatenates tables.

    Args:
        tables: tables with the same variates and covariates.
        trains: the training rows of each.
        calendar: names of the calendar features.
    """
    measured = [moments(table.values_TN[train]) for table, train in zip(tables, trains, strict=True)]
    filled = [
        fill_from_past(table.values_TN, mean_N) for table, (mean_N, _) in zip(tables, measured, strict=True)
    ]
    dates = [table.dates.as_unit("s").asi8 for table in tables]
    offsets = [table.offsets_T for table in tables if table.offsets_T is not None]
    lengths = np.cumsum([0, *(len(table.dates) for table in tables)])
    return Arrays(
        values_TN=_behind([table.values_TN for table in tables]),
        filled_TN=_behind(filled),
        dates_T=_behind(dates),
        calendar_TF=_behind([calendar_features(table.wall, calendar) for table in tables]),
        offsets_T=_behind(offsets).copy() if len(offsets) == len(tables) else None,
        known_TK=_covariates([table.known_TK for table in tables], trains),
        past_TP=_covariates([table.past_TP for table in tables], trains),
        static_RS=np.array([list(table.static.values()) for table in tables], dtype=np.float32),
        unit_RN=np.array([positive(std_N) for _, std_N in measured]),
        starts=tuple(int(start) for start in lengths[:-1]),
    )


def positive(std_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviations for division: 1 for constant variates."""
    return np.where(std_N < 1e-12, 1.0, std_N)


def covariate(values_TK: NDArray[np.float64], train: slice = slice(None)) -> NDArray[np.float32]:
    """Forward-fills a covariate; leading gaps are filled with the mean of the rows `train`."""
    return fill_from_past(values_TK, moments(values_TK[train])[0]).astype(np.float32)


def _covariates(
    parts: Sequence[NDArray[np.float64] | None], trains: Sequence[slice]
) -> NDArray[np.float32] | None:
    given = [covariate(part, train) for part, train in zip(parts, trains, strict=True) if part is not None]
    return _behind(given) if given else None


def _behind(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
