"""Electricity transformer temperature (Zhou et al. 2021, arXiv 2012.07436): six loads and the oil temperature
of two transformers, hourly (h) or every 15 minutes (m)."""

from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.base import CommonSettings
from tasks.datasets.download import Source, download
from tasks.datasets.errors import DataError
from tasks.datasets.time_series.table import Table
from tasks.datasets.time_series.windows import Parts, SeriesData, find_file, read_named

ADDRESS = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/{name}.csv"
SHA256 = {
    "ETTh1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "ETTh2": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
    "ETTm1": "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",
    "ETTm2": "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd",
}
STEPS_AN_HOUR = {"ETTh1": 1, "ETTh2": 1, "ETTm1": 4, "ETTm2": 4}
MONTHS = (12, 16, 20)  # ends of the splits; a month is 30 days in the published protocol


class ETT(SeriesData):
    """One of the four files: 12 months for training, 4 for validation, 4 for testing (Informer's protocol).

    The rest of the file, about three and a half months, is not used, as usual in the literature. A file shorter than
    20 months, such as the embedded sample, is split in the same proportions.

    Args:
        variant: ETTh1, ETTh2, ETTm1 or ETTm2.
        look_back, horizon, season: see `SeriesData`.
        **common: see `DataModule`.
    """

    layout = (
        "ETTh1.csv (or ETTh2, ETTm1, ETTm2), or a folder that holds it, with the columns "
        "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"
    )
    homepage = "https://github.com/zhouhaoyi/ETDataset"

    def __init__(
        self,
        *,
        variant: str = "ETTh1",
        look_back: int = 96,
        horizon: int = 96,
        season: int | None = None,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(look_back=look_back, horizon=horizon, season=season, **common)
        if variant not in STEPS_AN_HOUR:
            raise DataError(f"variant must be one of {', '.join(STEPS_AN_HOUR)}, not {variant!r}")
        self.variant = variant

    @property
    def title(self) -> str:
        return self.variant

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.time_series.sample import ett

        ett(root / f"{self.variant}.csv", STEPS_AN_HOUR[self.variant])

    def looks_complete(self, root: Path) -> bool:
        return self._find(root) is not None

    def fetch(self, root: Path) -> None:
        source = Source(ADDRESS.format(name=self.variant), SHA256[self.variant], most_gb=0.1)
        download(source, root / f"{self.variant}.csv")

    def _find(self, root: Path) -> Path | None:
        return find_file(root, (f"{self.variant}.csv", f"ETT-small/{self.variant}.csv"))

    def read_table(self, root: Path) -> Table:
        self.file = self._find(root)
        if self.file is None:
            raise self.bad_layout(f"there is no {self.variant}.csv in {root}")
        return read_named(self.file, even=False)

    def parts(self, table: Table) -> Parts:
        rows = len(table.dates)
        month = min(30 * 24 * STEPS_AN_HOUR[self.variant], rows // MONTHS[-1])
        train, val, test = (months * month for months in MONTHS)
        return train, val, test
