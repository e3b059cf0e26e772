"""Hourly global temperature and wind of 3,850 weather stations (Corrformer, Wu et al. 2023, Nature Machine
Intelligence), the benchmark of the UniRepLKNet paper: 48 hours of all stations -> the next 24."""

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from typing_extensions import Unpack

from tasks.datasets.base import CommonSettings
from tasks.datasets.errors import DataError
from tasks.datasets.items import SPLITS
from tasks.datasets.time_series.table import Table, infer_frequency
from tasks.datasets.time_series.windows import Parts, SeriesData

log = logging.getLogger("widefield")

RAW_UNIT = 0.1  # the files are in tenths of a degree Celsius and of a metre per second
# The published files are pickled arrays; only these names may be resolved while unpickling.
HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("datetime", "datetime"),
    ("_codecs", "encode"),
    ("pandas._libs.tslibs.timestamps", "_unpickle_timestamp"),
}


class GlobalStations(SeriesData):
    """`<quantity>_global_hourly_{train,val,test}.npy` (hours, stations, measurements), of which the first
    measurement is used, `data_time_{train,val,test}.npy` (hours,) and `stations_sorted.npy` (stations,
    coordinates).

    The splits are separate files: no window extends from one into another.

    Args:
        quantity: temp or wind.
        look_back, horizon, season: see `SeriesData`.
        **common: see `DataModule`.
    """

    layout = (
        "a folder with temp_global_hourly_train.npy (or wind_…) and data_time_train.npy, the same for val "
        "and test, and stations_sorted.npy"
    )
    homepage = "https://github.com/thuml/Corrformer (data sets linked there)"
    ends: Parts

    def __init__(
        self,
        *,
        quantity: str = "temp",
        look_back: int = 48,
        horizon: int = 24,
        season: int | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(look_back=look_back, horizon=horizon, season=season, **common)
        if quantity not in ("temp", "wind"):
            raise DataError(f"quantity must be temp or wind, not {quantity!r}")
        self.quantity = quantity

    @property
    def title(self) -> str:
        return f"Global {self.quantity.capitalize()}"

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.time_series.sample import stations

        stations(root, self.quantity)

    def read_table(self, root: Path) -> Table:
        places = self._load(root, "stations_sorted.npy").astype(np.float64)
        values: list[NDArray[np.float64]] = []
        dates: list[pd.DatetimeIndex] = []
        ends: list[int] = []
        for split in SPLITS:
            part = self._load(root, f"{self.quantity}_global_hourly_{split}.npy")
            part = part[:, :, 0] if part.ndim == 3 else part
            if part.ndim != 2 or part.shape[1] != len(places):
                raise DataError(
                    f"{self.quantity}_global_hourly_{split}.npy has the shape {part.shape}, which does not "
                    f"fit the {len(places)} stations of stations_sorted.npy"
                )
            times = self._load(root, f"data_time_{split}.npy")
            if len(times) != len(part):
                raise DataError(
                    f"data_time_{split}.npy has {len(times)} entries for {len(part)} hours of values"
                )
            values.append(self._without_gaps(part.astype(np.float64) * RAW_UNIT, split))
            dates.append(pd.DatetimeIndex(pd.to_datetime(times.ravel())).as_unit("s"))
            ends.append(len(part) + (ends[-1] if ends else 0))
        self.ends = (ends[0], ends[1], ends[2])
        self.positions = [[float(f"{number:.7g}") for number in place] for place in places]
        names = tuple(f"station_{number}" for number in range(len(places)))
        return Table(np.concatenate(values), dates[0].append(dates[1:]), names, infer_frequency(dates[0]))

    def parts(self, table: Table) -> Parts:
        return self.ends

    def window_starts(self, table: Table) -> dict[str, range]:
        length = self.look_back + self.horizon
        firsts = (0, *self.ends[:2])
        return {
            split: range(first, end - length + 1)
            for split, first, end in zip(SPLITS, firsts, self.ends, strict=True)
        }

    def _without_gaps(self, values_TN: NDArray[np.float64], split: str) -> NDArray[np.float64]:
        missing = ~np.isfinite(values_TN)
        if missing.any():
            log.warning(
                "%s: %s missing %s values filled between neighbours", self.name, f"{missing.sum():,}", split
            )
            frame = pd.DataFrame(np.where(missing, np.nan, values_TN)).interpolate(limit_direction="both")
            values_TN = frame.fillna(0.0).to_numpy()
        return values_TN

    def _load(self, root: Path, name: str) -> NDArray[Any]:
        path = root / name
        if not path.is_file():
            raise self.bad_layout(f"there is no {path}")
        return load_npy(path)


def load_npy(path: Path) -> NDArray[Any]:
    """Read a .npy file, pickled or not, without executing code from it.

    Raises:
        DataError: damaged, or a pickle with anything but numbers, strings and dates.
    """
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        if "allow_pickle" not in str(error):
            raise DataError(f"{path} is no readable .npy file ({error})") from error
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, _ = read_header(file)
            return np.asarray(_HarmlessUnpickler(file).load()).reshape(shape)
    except (OSError, ValueError, EOFError, pickle.UnpicklingError, AttributeError, ImportError) as error:
        raise DataError(f"{path} cannot be read safely ({error})") from error


class _HarmlessUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return super().find_class(module, name)
