"""What every forecasting source shares: windows cut from one series in memory.

A window is `look_back` rows the model sees and the `horizon` rows after them. Windows of the validation and
test part begin in the part before, so that every row of a part is forecast; no row is forecast in two parts.

Shapes: T rows, N variates, F calendar features, L look-back, H horizon, X = L + H.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from modalities.time_series import find_period
from tasks.datasets.base import CommonSettings, DataError, DataModule, Item, ReadError, Whole
from tasks.datasets.series_table import Table, calendar_features, calendar_names, future_dates, read_csv

log = logging.getLogger("widefield")

Parts = tuple[int, int, int]  # where training, validation and testing end, in rows


class SeriesData(DataModule):
    """A source whose items are windows of one series.

    A raw sample is `{"values": (L, N), "calendar": (X, F), "date": (X,)}`, its target (H, N): values in the
    data's own units, dates in seconds since 1970. Mean, standard deviation and periods come from the training
    rows alone.

    A subclass says how the series is read (`read_table`) and where its parts end (`parts`).

    Args:
        look_back, horizon: L and H, in rows.
        season: rows after which the seasonal-naive forecast repeats; `None` takes the strongest period found
            in the training part, or 1 where none stands out.
        **common: see `DataModule`.
    """

    modality = "time_series"
    unit = "windows"
    extensions = (".csv",)
    file: Path | None = None  # the CSV the series was read from
    positions: list[list[float]] | None = None  # coordinates of the variates, where they have a place

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

    # -- what a subclass implements --------------------------------------------------------------------------

    def read_table(self, root: Path) -> Table:
        """The whole series; raises `DataError`."""
        raise NotImplementedError

    def parts(self, table: Table) -> Parts:
        """Where training, validation and testing end, in rows of the table."""
        raise NotImplementedError

    def window_starts(self, table: Table) -> dict[str, range]:
        """First rows of the windows of each part."""
        train, val, test = self.parts(table)
        length = self.look_back + self.horizon
        return {
            "train": range(train - length + 1),
            "val": range(train - self.look_back, val - length + 1),
            "test": range(val - self.look_back, test - length + 1),
        }

    # -- what the base class asks for ------------------------------------------------------------------------

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        table = self.read_table(root)
        train = self.parts(table)[0]
        starts = self.window_starts(table)
        if any(len(windows) == 0 for windows in starts.values()):
            raise DataError(
                f"{len(table.dates):,} rows in {root} are too few for windows of {self.look_back} + "
                f"{self.horizon} rows in each part: take a smaller look_back or horizon"
            )
        self._learn_facts(table, train)
        self._take(table)
        return {split: [self._window(root, start) for start in windows] for split, windows in starts.items()}

    def _take(self, table: Table) -> None:
        """Make this the series that windows are cut from."""
        self.values_TN = torch.from_numpy(table.values_TN.astype(np.float32))
        self.calendar_TF = torch.from_numpy(calendar_features(table.dates, self.known["calendar"]))
        self.dates_T = torch.from_numpy(table.dates.as_unit("s").asi8.copy())

    def _learn_facts(self, table: Table, train: int) -> None:
        """Everything measured here comes from the first `train` rows."""
        rows_TN = table.values_TN[:train]
        std_N = rows_TN.std(axis=0)
        flat = [name for name, std in zip(table.variates, std_N, strict=True) if std < 1e-12]
        if flat:
            log.warning("%s: constant in the training part: %s", self.name, ", ".join(flat[:5]))
        season = self.season or find_period(rows_TN, longest=self.look_back) or 1
        self.known = {
            "variates": list(table.variates),
            "mean": [_short(value) for value in rows_TN.mean(axis=0)],
            "std": [_short(value) if value >= 1e-12 else 1.0 for value in std_N],
            "look_back": self.look_back,
            "horizon": self.horizon,
            "frequency": table.frequency,
            "calendar": list(calendar_names(table.frequency, table.dates[train - 1] - table.dates[0])),
            "season": season,
            "period": season if season > 1 else None,
        }
        if self.positions is not None:
            self.known["positions"] = self.positions

    def _window(self, root: Path, start: int) -> Item:
        future = slice(start + self.look_back, start + self.look_back + self.horizon)
        return Item(self.file or root, self.values_TN[future], {"row": start})

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> dict[str, Tensor]:
        start = item.where["row"]
        end = start + self.look_back + self.horizon
        return {
            "values": self.values_TN[start : start + self.look_back],
            "calendar": self.calendar_TF[start:end],
            "date": self.dates_T[start:end],
        }

    def facts(self) -> dict[str, Any]:
        return self.known

    def recall(self, facts: dict[str, Any]) -> None:
        self.known = facts

    def adopt(self, facts: dict[str, Any]) -> None:
        for key in ("variates", "frequency", "look_back", "horizon"):
            own, known = self.known[key], facts[key]
            if own != known:
                raise DataError(f"the {key} of {self.place} are {_shown(own)}, the model's {_shown(known)}")
        dates = pd.DatetimeIndex(self.dates_T.numpy().astype("datetime64[s]"))
        self.calendar_TF = torch.from_numpy(calendar_features(dates, facts["calendar"]))
        self.known = facts

    def digest(self) -> str:
        found = hashlib.sha256(self.values_TN.numpy().tobytes())
        found.update(self.dates_T.numpy().tobytes())
        return found.hexdigest()[:32]

    def whole(self, table: Table, facts: dict[str, Any]) -> Whole:
        """All windows of a table for a model of these facts: its columns by name, or where none is there by order."""
        known, own = list(facts["variates"]), list(table.variates)
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
        if table.frequency != facts["frequency"]:
            raise DataError(
                f"a step is {table.frequency} in {self.place} and was {facts['frequency']} in the data the model was "
                "trained on"
            )
        windows = range(len(table.dates) - facts["look_back"] - facts["horizon"] + 1)
        if not windows:
            raise DataError(
                f"{self.place} has {len(table.dates):,} rows; a window of the model is {facts['look_back']} + "
                f"{facts['horizon']} rows"
            )
        self.look_back, self.horizon, self.known = facts["look_back"], facts["horizon"], facts
        self._take(replace(table, values_TN=table.values_TN[:, columns], variates=tuple(known)))
        items = [self._window(self.root, start) for start in windows]
        return Whole(items, f"all {len(table.dates):,} rows are tested, {len(items):,} windows{renamed}")

    def read_file(self, path: Path) -> dict[str, Tensor]:
        """The last `look_back` rows of a user's CSV, and the calendar of the rows to come."""
        known = self.known
        table = read_csv(path, known["variates"])
        length = known["look_back"]
        if len(table.dates) < length:
            raise ReadError(f"it has {len(table.dates)} rows; the model looks {length} rows back")
        if table.frequency != known["frequency"]:
            raise ReadError(
                f"a step is {table.frequency} in it and was {known['frequency']} in the data the model was "
                "trained on"
            )
        dates = table.dates[-length:].append(future_dates(table.dates[-1], table.frequency, known["horizon"]))
        return {
            "values": torch.from_numpy(table.values_TN[-length:].astype(np.float32)),
            "calendar": torch.from_numpy(calendar_features(dates, known["calendar"])),
            "date": torch.from_numpy(dates.as_unit("s").asi8.copy()),
        }

    def example_file(self) -> Path | None:
        return self.file

    def details(self) -> str:
        known = self.known
        season = f"{known['season']} steps" if known["season"] > 1 else "none, so 1 step"
        return (
            f" of {len(known['variates'])} variates, {self.look_back} -> {self.horizon} steps of "
            f"{known['frequency']}, season of the seasonal-naive forecast: {season}"
        )

    def _workers(self) -> int:
        return self.num_workers or 0  # windows are slices of memory: a worker would only copy them


def _shown(value: Any) -> str:
    """The first of several names, or a value."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    return ", ".join(map(str, value[:5])) + (f", … ({len(value)} in all)" if len(value) > 5 else "")


def _short(value: float) -> float:
    """Seven significant digits, so that two machines agree on a statistic."""
    return float(f"{value:.7g}")


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
