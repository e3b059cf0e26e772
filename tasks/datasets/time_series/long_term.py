"""The other benchmarks of long-term forecasting, as CSV files with a date column (Wu et al. 2021, Autoformer,
arXiv 2106.13008): weather, electricity, traffic, exchange rates and influenza-like illness."""

from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.base import CommonSettings
from tasks.datasets.errors import DataError
from tasks.datasets.time_series.benchmarks import BENCHMARKS
from tasks.datasets.time_series.table import Table
from tasks.datasets.time_series.windows import Parts, SeriesData, find_file, read_named


class LongTerm(SeriesData):
    """One of the five: the first 70 % of the rows for training, the last 20 % for testing, the rest for validation.

    Args:
        benchmark: weather, electricity, traffic, exchange or ili.
        look_back, horizon, season: see `SeriesData`.
        **common: see `DataModule`.
    """

    layout = (
        "the CSV file of the benchmark (weather, electricity, traffic, exchange_rate or national_illness), "
        "or a folder that holds it, with a date column and numeric columns"
    )
    homepage = "https://github.com/thuml/Time-Series-Library (folder of data sets linked there)"

    def __init__(
        self,
        *,
        benchmark: str,
        look_back: int = 96,
        horizon: int = 96,
        season: int | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(look_back=look_back, horizon=horizon, season=season, **common)
        if benchmark not in BENCHMARKS:
            raise DataError(f"benchmark must be one of {', '.join(BENCHMARKS)}, not {benchmark!r}")
        self.benchmark = BENCHMARKS[benchmark]
        self.folder = Path(self.benchmark.file).stem

    @property
    def title(self) -> str:
        return self.benchmark.title

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.time_series.sample import long_term

        long_term(root / self.benchmark.file, self.benchmark)

    def read_table(self, root: Path) -> Table:
        self.file = find_file(root, (self.benchmark.file, f"{self.folder}/{self.benchmark.file}"))
        if self.file is None:
            raise self.bad_layout(f"there is no {self.benchmark.file} in {root}")
        return read_named(self.file, even=False)

    def parts(self, table: Table) -> Parts:
        rows = len(table.dates)
        return int(0.7 * rows), rows - int(0.2 * rows), rows
