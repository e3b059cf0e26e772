"""Base class of the forecasting data modules: windows of series in memory.

A window is `look_back` input rows and the `horizon` rows after them. Windows of the validation and test splits begin in
the split before, so that every row of a split is forecast; no row is forecast in two splits, and no window extends from
one series into another.

Shapes: T rows, N variates, F calendar features, L look-back, H horizon, X = L + H, K known and P past covariates, S
static ones.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from tasks.datasets.base import CommonSettings, DataModule
from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.items import Item, Whole
from tasks.datasets.time_series.arrays import (
    covariate,
    fill_from_past,
    has_large_level,
    join,
    moments,
    positive,
)
from tasks.datasets.time_series.dates import NO_ZONE
from tasks.datasets.time_series.facts import gaps_of, learn_facts
from tasks.datasets.time_series.table import (
    Columns,
    Table,
    calendar_features,
    future_rows,
    read_csv,
    wall_clock,
)
from tasks.datasets.time_series.text import Format

log = logging.getLogger("widefield")

Parts = tuple[int, int, int]  # end rows of the training, validation and test splits


class SeriesData(DataModule):
    """Base class of data modules whose items are windows of one series, or of several with the same variates.

    A raw sample is `{"values": (L, N), "calendar": (X, F), "date": (X,)}`, its target (H, N): values in original
    units, dates in seconds since 1970. Mean, standard deviation and periods are computed on the training rows only.
    Optional properties, given by keys of the data info, add entries to the sample:

    - gaps (`gaps`): `observed` (L, N), 1 where a value is known; missing values are forward-filled, missing targets
      are NaN.
    - several series, or a level too large for single precision (`scaled`): `level` and `unit` (N,), in double
      precision; values and targets are (original - level) / unit, where the level is the window's last observed
      values and the unit the standard deviation of the series.
    - a time zone (`time_zone`): dates are in UTC, `offset` (X,) is the UTC offset in seconds.
    - covariates (`covariates`): `known` (X, K), `past` (L, P), `static` (S,), in original units.

    A subclass implements the reading (`read_table`, or `read_tables` for several series) and the ends of the splits
    (`parts`).

    Args:
        look_back, horizon: L and H, in rows.
        season: period of the seasonal-naive forecast in rows; `None`: the strongest period found in the training
            split, or 1 if there is none.
        **common: see `DataModule`.
    """

    modality = "time_series"
    draws = False
    unit = "windows"
    extensions = (".csv",)
    file: Path | None = None  # the CSV the series was read from
    positions: list[list[float]] | None = None  # coordinates of the variates, if any
    form = Format()  # format of a user's file
    columns = Columns()  # the covariates; the targets are those of the data info

    def __init__(
        self,
        *,
        look_back: int = 96,
        horizon: int = 96,
        season: int | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(**common)
        if look_back < 2 or horizon < 1:
            raise DataError(
                f"look_back must be at least 2 and horizon at least 1, not {look_back} and {horizon}"
            )
        if season is not None and not 1 <= season <= look_back:
            raise DataError(f"season={season} does not lie in the look-back of {look_back} rows")
        self.look_back = look_back
        self.horizon = horizon
        self.season = season
        self.known: dict[str, Any] = {}
        self.gaps = (0, 0)  # number of missing values, and the total

    # -- what a subclass implements --------------------------------------------------------------------------

    def read_table(self, root: Path) -> Table:
        """The whole series; raises `DataError`."""
        raise NotImplementedError

    def read_tables(self, root: Path) -> list[Table]:
        """All series; raises `DataError`."""
        return [self.read_table(root)]

    def parts(self, table: Table) -> Parts:
        """End rows of the training, validation and test splits."""
        raise NotImplementedError

    def window_starts(self, table: Table) -> dict[str, range]:
        """First rows of the windows of each split."""
        train, val, test = self.parts(table)
        length = self.look_back + self.horizon
        return {
            "train": range(train - length + 1),
            "val": range(train - self.look_back, val - length + 1),
            "test": range(val - self.look_back, test - length + 1),
        }

    # -- what the base class asks for ------------------------------------------------------------------------

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        tables = self._long_enough(self.read_tables(root), root)
        trains = [self._training_rows(table) for table in tables]
        self.known = learn_facts(
            tables,
            trains,
            name=str(self.name),
            look_back=self.look_back,
            horizon=self.horizon,
            season=self.season,
            columns=self.columns,
            positions=self.positions,
        )
        self.gaps = gaps_of(tables)
        self._say_what_was_read(tables)
        self._take(tables, trains)
        return self._windows(root)

    def _training_rows(self, table: Table) -> slice:
        """The last `train_fraction` of the training rows, with room for one window at least."""
        end = self.parts(table)[0]
        kept = max(round(self.train_fraction * end), self.look_back + self.horizon)
        return slice(max(end - kept, 0), end)

    def training_share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The windows in the last `train_fraction` of each series' training rows, of which the statistics are, too."""
        firsts = [start + rows.start for start, rows in zip(self.arrays.starts, self.trains, strict=True)]
        return [item for item in items if item.where["row"] >= firsts[item.where.get("number", 0)]]

    def _take(self, tables: Sequence[Table], trains: Sequence[slice]) -> None:
        """Set the series that windows are taken from, in the form given by the data info."""
        self.series, self.trains = tables, trains
        self.arrays = join(tables, trains, self.known["calendar"])
        kind = np.float64 if self.known.get("scaled") else np.float32
        self.values_TN = torch.from_numpy(self.arrays.filled_TN.astype(kind))
        self.masked = bool(self.known.get("gaps")) or bool(np.isnan(self.arrays.values_TN).any())
        self.truth_TN = (
            torch.from_numpy(self.arrays.values_TN.astype(kind)) if self.masked else self.values_TN
        )
        if self.masked:
            self.observed_TN = (~torch.isnan(self.truth_TN)).float()  # 1 where a value is known
        self.covariates = (
            self.arrays.known_TK is not None
            or self.arrays.past_TP is not None
            or self.arrays.static_RS.shape[1] > 0
        )
        self.calendar_TF = torch.from_numpy(self.arrays.calendar_TF)
        self.dates_T = torch.from_numpy(self.arrays.dates_T.copy())

    def _take_as_known(
        self, tables: Sequence[Table], trains: Sequence[slice], data_info: dict[str, Any]
    ) -> None:
        """Set the series for a model with this data info, with the scale of its training data."""
        self.known = data_info
        for table in tables:
            refusal = _too_large(table, data_info)
            if refusal:
                raise DataError(f"{self.place}: {refusal}")
        self._take(tables, trains)
        if data_info.get("scaled") and "series" not in data_info:  # the one series that the model knows
            unit_N = positive(np.array(data_info["std"], dtype=np.float64))
            self.arrays = replace(self.arrays, unit_RN=np.tile(unit_N, (len(tables), 1)))

    def _windows(self, root: Path) -> dict[str, list[Item]]:
        splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        for number, (table, first) in enumerate(zip(self.series, self.arrays.starts, strict=True)):
            for split, windows in self.window_starts(table).items():
                splits[split] += [self._window(root, table, number, first + start) for start in windows]
        return splits

    def _long_enough(self, tables: list[Table], root: Path) -> list[Table]:
        """The series with windows in all splits; series that are too short are counted and named."""
        short = [
            table
            for table in tables
            if any(len(starts) == 0 for starts in self.window_starts(table).values())
        ]
        if len(short) == len(tables):
            longest = max(len(table.dates) for table in tables)
            raise DataError(
                f"{longest:,} rows in {root} are too few for windows of {self.look_back} + "
                f"{self.horizon} rows in each part: take a smaller look_back or horizon"
            )
        if short:
            log.warning(
                "%s: %s of %s series are too short for windows of %s + %s rows in each part and left out: %s",
                self.name, f"{len(short):,}", f"{len(tables):,}", self.look_back, self.horizon,
                ", ".join(table.name for table in short[:5]),
            )  # fmt: skip
        return [table for table in tables if not any(table is other for other in short)]

    def _say_what_was_read(self, tables: Sequence[Table]) -> None:
        if not tables[0].said or self.file is None:
            return
        season = self.known["season"]
        period = f"period {season} steps" if season > 1 else "no period found"
        log.info(
            "read: %s: %s, a step is %s, %s",
            self.file.name, tables[0].said, self.known["frequency"],
            period if self.season is None else f"season {season} steps as asked",
        )  # fmt: skip

    def _window(self, root: Path, table: Table, series: int, start: int) -> Item:
        future = slice(start + self.look_back, start + self.look_back + self.horizon)
        where = {"row": start, "series": table.name, "number": series} if table.name else {"row": start}
        return Item(table.path or self.file or root, self.truth_TN[future], where)

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> dict[str, Tensor]:
        start = item.where["row"]
        now, end = start + self.look_back, start + self.look_back + self.horizon
        arrays, known = self.arrays, self.known
        raw = {
            "values": self.values_TN[start:now],
            "calendar": self.calendar_TF[start:end],
            "date": self.dates_T[start:end],
        }
        if self.masked:
            raw["observed"] = self.observed_TN[start:now]
        if arrays.offsets_T is not None:
            raw["offset"] = torch.from_numpy(arrays.offsets_T[start:end])
        series = item.where.get("number", 0)
        if known.get("scaled"):
            raw |= {"level": raw["values"][-1], "unit": torch.from_numpy(arrays.unit_RN[series])}
            raw["values"] = in_units(raw["values"], raw)
        if self.covariates:
            raw |= self._covariates(arrays.known_TK, arrays.past_TP, arrays.static_RS[series], start)
        return raw

    def read_pair(self, item: Item, train: bool, rng: np.random.Generator) -> tuple[Any, Any]:
        """A window, and its target on the scale of its values."""
        raw = self.read_item(item, train, rng)
        return raw, in_units(item.target, raw) if "level" in raw else item.target

    def _covariates(
        self,
        known_TK: NDArray[np.float32] | None,
        past_TP: NDArray[np.float32] | None,
        static_S: NDArray[np.float32],
        start: int,
    ) -> dict[str, Tensor]:
        """The covariates of the window that begins at row `start`."""
        now, end = start + self.look_back, start + self.look_back + self.horizon
        raw = {}
        if known_TK is not None:
            raw["known"] = torch.from_numpy(known_TK[start:end])
        if past_TP is not None:
            raw["past"] = torch.from_numpy(past_TP[start:now])
        if len(static_S):
            raw["static"] = torch.from_numpy(static_S)
        return raw

    def info(self) -> dict[str, Any]:
        return self.known

    def recall(self, data_info: dict[str, Any]) -> None:
        self.known = data_info
        self.look_back, self.horizon = data_info["look_back"], data_info["horizon"]

    def adopt(self, data_info: dict[str, Any]) -> None:
        for key in ("variates", "frequency", "look_back", "horizon"):
            own, known = self.known[key], data_info[key]
            if own != known:
                raise DataError(f"the {key} of {self.place} are {_shown(own)}, the model's {_shown(known)}")
        self._take_as_known(self.series, self.trains, data_info)
        self.splits = {"test": self._windows(self.root)["test"]}

    def digest(self) -> str:
        found = hashlib.sha256(self.truth_TN.numpy().tobytes())
        found.update(self.dates_T.numpy().tobytes())
        return found.hexdigest()[:32]

    def whole(self, tables: Sequence[Table], data_info: dict[str, Any]) -> Whole:
        """All windows of series for a model with this data info. Columns are matched by name, else by order."""
        self.look_back, self.horizon = data_info["look_back"], data_info["horizon"]
        length = self.look_back + self.horizon
        found = [self._as_known(table, data_info) for table in tables]
        fitting = [table for table, _ in found if len(table.dates) >= length]
        if not fitting:
            raise DataError(
                f"{self.place} has {max(len(table.dates) for table in tables):,} rows; a window of the model is "
                f"{self.look_back} + {self.horizon} rows"
            )
        self._take_as_known(fitting, [slice(0, len(table.dates)) for table in fitting], data_info)
        self._say_what_was_read(fitting)
        items = [
            self._window(self.root, table, number, first + start)
            for number, (table, first) in enumerate(zip(fitting, self.arrays.starts, strict=True))
            for start in range(len(table.dates) - length + 1)
        ]
        rows = sum(len(table.dates) for table in fitting)
        short = len(tables) - len(fitting)
        left_out = f"; {short:,} of {len(tables):,} series are too short" if short else ""
        return Whole(items, f"all {rows:,} rows are tested, {len(items):,} windows{found[0][1]}{left_out}")

    def _as_known(self, table: Table, data_info: dict[str, Any]) -> tuple[Table, str]:
        """A series with the model's variates, and a note about the columns used if their names differ."""
        known, own = list(data_info["variates"]), list(table.variates)
        renamed = ""
        if set(known) <= set(own):
            columns = [own.index(name) for name in known]
        elif len(own) == len(known) and not set(known) & set(own):
            columns = list(range(len(own)))
            renamed = f"; its columns {_shown(own)} are taken for {_shown(known)}"
        else:
            raise DataError(
                f"{self.place} has the columns {_shown(own)}, the model forecasts {_shown(known)}"
            )
        if table.frequency != data_info["frequency"]:
            raise DataError(
                f"a step is {table.frequency} in {self.place} and was {data_info['frequency']} in the data the model "
                "was trained on"
            )
        return replace(table, values_TN=table.values_TN[:, columns], variates=tuple(known)), renamed

    def read_file(self, path: Path) -> dict[str, Tensor]:
        """The last `look_back` rows of a user's CSV, and the calendar features of the forecast rows.

        With known covariates, trailing rows without targets are the forecast rows.
        """
        covariates = self.known.get("covariates", {})
        names = {
            kind: tuple(covariates.get(kind, {}).get("names", ())) for kind in ("known", "past", "static")
        }
        columns = Columns(target=tuple(self.known["variates"]), **names)
        return self.last_window(read_csv(path, form=self.form, columns=columns))

    def last_window(self, table: Table) -> dict[str, Tensor]:
        """A raw sample whose horizon follows the last row; it always has `observed` and `offset`, whether or not the
        training data had gaps and a zone. Raises `ReadError`."""
        known, length, horizon = self.known, self.look_back, self.horizon
        rows = len(table.dates)
        if table.known_TK is not None:
            rows = last_observed(table.values_TN) + 1
            given = min(len(table.dates) - rows, horizon)
            if given < horizon or np.isnan(table.known_TK[rows : rows + horizon]).any():
                raise ReadError(
                    f"the model must know {', '.join(self.columns.known or ('its known covariates',))} of the "
                    f"{horizon} rows after the last value; add them as rows without a value: there are {given}"
                )
        if rows < length:
            raise ReadError(f"it has {rows} rows; the model looks {length} rows back")
        if table.frequency != known["frequency"]:
            raise ReadError(
                f"a step is {table.frequency} in it and was {known['frequency']} in the data the model "
                "was trained on"
            )
        window = slice(rows - length, rows)
        if np.isnan(table.values_TN[window]).all():
            raise ReadError(f"none of its last {length} rows has a value")
        dates, offsets_T = future_rows(first_rows(table, rows), horizon)
        dates = dates[rows - length :]
        offsets_T = None if offsets_T is None else offsets_T[rows - length :]
        if refusal := _too_large(table, known):
            raise ReadError(refusal)
        mean_N, std_N = moments(table.values_TN[:rows])
        if "series" not in known:  # the one series that the model knows
            std_N = np.array(known["std"], dtype=np.float64)
        filled_TN = fill_from_past(table.values_TN[:rows], mean_N)
        raw = {
            "values": torch.from_numpy(
                filled_TN[window].astype(np.float64 if known.get("scaled") else np.float32)
            ),
            "calendar": torch.from_numpy(calendar_features(wall_clock(dates, offsets_T), known["calendar"])),
            "date": torch.from_numpy(dates.as_unit("s").asi8.copy()),
            "observed": torch.from_numpy((~np.isnan(table.values_TN[window])).astype(np.float32)),
            "offset": torch.from_numpy(
                np.full(length + horizon, NO_ZONE) if offsets_T is None else offsets_T
            ),
        }
        if known.get("scaled"):
            raw |= {"level": raw["values"][-1], "unit": torch.from_numpy(positive(std_N))}
            raw["values"] = in_units(raw["values"], raw)
        known_TK = None if table.known_TK is None else covariate(table.known_TK)
        past_TP = None if table.past_TP is None else covariate(table.past_TP)
        static_S = np.array(list(table.static.values()), dtype=np.float32)
        return raw | self._covariates(known_TK, past_TP, static_S, rows - length)

    def example_file(self) -> Path | None:
        return self.file

    def details(self) -> str:
        known = self.known
        season = f"{known['season']} steps" if known["season"] > 1 else "none, so 1 step"
        series = f" of {len(self.arrays.starts):,} series" if len(self.arrays.starts) > 1 else ""
        missing, total = self.gaps
        gaps = f", {missing:,} of {total:,} values missing: they do not count" if missing else ""
        return (
            f"{series} of {len(known['variates'])} variates, {self.look_back} -> {self.horizon} steps of "
            f"{known['frequency']}, season of the seasonal-naive forecast: {season}{gaps}"
        )

    def _workers(self) -> int:
        return self.num_workers or 0  # windows are slices of memory: a worker would only copy them


def _too_large(table: Table, data_info: dict[str, Any]) -> str | None:
    """Message if a series has a level too large for the model's single precision, else None."""
    if data_info.get("scaled") or not has_large_level(table.values_TN):
        return None
    return (
        f"its level is too large for a model trained on values near {_shown(data_info['mean'])}, which reads in single "
        "precision: train on these data"
    )


def _shown(value: Any) -> str:
    """The first of several values, or a single value, for messages."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    return ", ".join(map(str, value[:5])) + (f", … ({len(value)} in all)" if len(value) > 5 else "")


def in_units(values_TN: Tensor, raw: dict[str, Tensor]) -> Tensor:
    """Converts original units in double precision to (original - level) / unit in single precision."""
    return ((values_TN - raw["level"]) / raw["unit"]).float()


def last_observed(values_TN: NDArray[np.float64]) -> int:
    """Index of the last row with a value."""
    return int(np.flatnonzero((~np.isnan(values_TN)).any(axis=1))[-1])


def first_rows(table: Table, rows: int) -> Table:
    """The first `rows` rows of a series."""
    if rows == len(table.dates):
        return table
    return replace(
        table,
        values_TN=table.values_TN[:rows],
        dates=table.dates[:rows],
        offsets_T=None if table.offsets_T is None else table.offsets_T[:rows],
        known_TK=None if table.known_TK is None else table.known_TK[:rows],
        past_TP=None if table.past_TP is None else table.past_TP[:rows],
    )


def find_file(root: Path, names: Sequence[str]) -> Path | None:
    """`root` itself if it is a file, else the first of `names` that is a file in it."""
    candidates = [root] if root.is_file() else [root / name for name in names]
    return next((path for path in candidates if path.is_file()), None)


def read_named(path: Path, target: Sequence[str] | None = None, even: bool = True) -> Table:
    """`read_csv` with the file's name in the error."""
    try:
        return read_csv(path, target, even)
    except ReadError as error:
        raise DataError(f"{path}: {error}") from error
