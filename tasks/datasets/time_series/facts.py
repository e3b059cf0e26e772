"""What a model needs to know about its training series: names, statistics, season, calendar, covariates.

Shapes: T rows, N variates, K covariates of one kind, R series, S static covariates.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.time_series import find_period
from tasks.datasets.errors import DataError
from tasks.datasets.time_series.arrays import between_neighbours, has_large_level, moments, positive
from tasks.datasets.time_series.table import Columns, Table, calendar_names

log = logging.getLogger("widefield")


def learn_facts(
    tables: Sequence[Table],
    trains: Sequence[slice],
    *,
    name: str,
    look_back: int,
    horizon: int,
    season: int | None,
    columns: Columns,
    positions: list[list[float]] | None,
) -> dict[str, Any]:
    """The data info of series (see `SeriesData`); all statistics are computed on the training rows.

    Args:
        tables: the series.
        trains: the training rows of each.
        name: name of the task, for messages.
        look_back, horizon, season: see `SeriesData`.
        columns: the covariates.
        positions: coordinates of the variates, if any.

    Raises:
        DataError: incompatible series, or a variate without values in the training rows.
    """
    first, train = tables[0], trains[0]
    _refuse_unlike(tables)
    for table, rows in zip(tables, trains, strict=True):
        gone_N = np.isnan(table.values_TN[rows]).all(axis=0)
        if gone_N.any():
            where = f" of the series {table.name}" if table.name else ""
            raise DataError(
                f"{first.variates[int(gone_N.argmax())]} has no value in the training split{where}"
            )
    pooled_TN = _pooled([table.values_TN for table in tables], trains)
    mean_N, std_N = moments(pooled_TN)
    flat = [variate for variate, std in zip(first.variates, std_N, strict=True) if std < 1e-12]
    if flat:
        log.warning("%s: constant in the training split: %s", name, ", ".join(flat[:5]))
    season = season or _find_season(tables, trains, look_back) or 1
    known: dict[str, Any] = {
        "variates": list(first.variates),
        "mean": [_short(value) for value in mean_N],
        "std": [_short(value) if value >= 1e-12 else 1.0 for value in std_N],
        "look_back": look_back,
        "horizon": horizon,
        "frequency": first.frequency,
        "calendar": list(calendar_names(first.frequency, first.dates[train][-1] - first.dates[train][0])),
        "season": season,
        "period": season if season > 1 else None,
    }
    if positions is not None:
        known["positions"] = positions
    if gaps_of(tables)[0]:
        known["gaps"] = True
    if len(tables) > 1:
        known["series"] = len(tables)
    if len(tables) > 1 or has_large_level(pooled_TN):
        known["scaled"] = True
    if first.offsets_T is not None:
        known["time_zone"] = first.zone or "as written"
    covariates = _covariate_facts(tables, trains, columns)
    if covariates:
        known["covariates"] = covariates
    return known


def gaps_of(tables: Sequence[Table]) -> tuple[int, int]:
    """Number of missing values of all series, and the total number of values."""
    return (
        sum(int(np.isnan(table.values_TN).sum()) for table in tables),
        sum(table.values_TN.size for table in tables),
    )


def _refuse_unlike(tables: Sequence[Table]) -> None:
    first = tables[0]
    for table in tables[1:]:
        unlike = {
            "variates": (table.variates, first.variates),
            "steps": (table.frequency, first.frequency),
            "time zones": (table.offsets_T is None, first.offsets_T is None),
        }
        for what, (one, other) in unlike.items():
            if one != other:
                raise DataError(
                    f"the series {table.name} and {first.name} have different {what} ({one} and {other}); one "
                    "model is trained on series that are alike in them"
                )


def _find_season(tables: Sequence[Table], trains: Sequence[slice], longest_period: int) -> int | None:
    """The period of the series with the most training rows."""
    longest = max(range(len(tables)), key=lambda number: trains[number].stop - trains[number].start)
    rows_TN = between_neighbours(tables[longest].values_TN[trains[longest]])
    return find_period(rows_TN, longest=longest_period)


def _covariate_facts(tables: Sequence[Table], trains: Sequence[slice], columns: Columns) -> dict[str, Any]:
    """Names, means and standard deviations of the covariates, by kind."""
    found = {}
    static_RS = np.array([list(table.static.values()) for table in tables], dtype=np.float64)
    measured = {
        "known": (columns.known, _pooled([table.known_TK for table in tables], trains)),
        "past": (columns.past, _pooled([table.past_TP for table in tables], trains)),
        "static": (columns.static, static_RS),
    }
    for kind, (names, values_TK) in measured.items():
        if names:
            mean_K, std_K = moments(values_TK)
            found[kind] = {
                "names": list(names),
                "mean": [_short(value) for value in mean_K],
                "std": [_short(value) for value in positive(std_K)],
            }
    return found


def _pooled(parts: Sequence[NDArray[np.float64] | None], trains: Sequence[slice]) -> NDArray[np.float64]:
    """The training rows of all series, with gaps interpolated."""
    rows = [
        between_neighbours(part[train]) for part, train in zip(parts, trains, strict=True) if part is not None
    ]
    if not rows:
        return np.zeros((0, 0))
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _short(value: float) -> float:
    """Rounds to seven significant digits, so that statistics agree between machines."""
    return float(f"{value:.7g}")
