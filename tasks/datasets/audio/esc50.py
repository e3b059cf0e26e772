"""ESC-50 (Piczak 2015): 2,000 five-second recordings of 50 everyday sounds, in five official folds."""

import csv
from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.audio.files import AudioData
from tasks.datasets.base import DataError, Item
from tasks.datasets.download import Source
from tasks.datasets.fetch import download_and_unpack
from tasks.datasets.listing import usual_place
from tasks.datasets.shards.data import ShardableSettings
from tasks.datasets.splits import held_out_groups

SOURCE = Source(url="https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip", most_gb=5)
FOLDERS = (".", "ESC-50-master", "ESC-50")
META = Path("meta/esc50.csv")
COLUMNS = ("filename", "fold", "target", "category", "src_file")
FOLDS = (1, 2, 3, 4, 5)


class ESC50(AudioData):
    """ESC-50 with one official fold for testing; the published accuracy is the mean over ``fold=1..5``.

    The validation split is a fixed fraction of the other four folds, grouped by source recording. The test fold is not
    used for model selection.

    Args:
        fold: the test fold, 1 to 5.
        val_fraction: fraction of the training folds used for validation.
        sample_rate, seconds, test_crops: see `AudioData`.
        **common: see `ShardableData` and `DataModule`.
    """

    title = "ESC-50"
    layout = "meta/esc50.csv and audio/*.wav (the unpacked ESC-50 repository, or the folder that holds it)"
    homepage = "https://github.com/karolpiczak/ESC-50"
    unit = "clips"

    def __init__(
        self,
        *,
        fold: int = 1,
        val_fraction: float = 0.1,
        sample_rate: int = 16000,
        seconds: float = 5.0,
        test_crops: int | str = 1,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(sample_rate=sample_rate, seconds=seconds, test_crops=test_crops, **common)
        if fold not in FOLDS:
            raise DataError(f"fold must be 1, 2, 3, 4 or 5, not {fold}")
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
        self.fold = fold
        self.val_fraction = val_fraction

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.audio.sample import esc50

        esc50(root)

    def details(self) -> str:
        return f"{super().details()}, tested on fold {self.fold}"

    def looks_complete(self, root: Path) -> bool:
        return _find(root) is not None

    def fetch(self, root: Path) -> None:
        download_and_unpack(SOURCE, root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        found = _find(root)
        if found is None:
            raise self.bad_layout(f"no {META} in {root}")
        rows = _read_meta(found / META)
        self.class_names = _class_names(found / META, rows)
        training = [row for row in rows if int(row["fold"]) != self.fold]
        held = held_out_groups(((row["category"], row["src_file"]) for row in training), self.val_fraction)
        splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        missing = []
        for row in rows:
            path = found / "audio" / row["filename"]
            if not path.is_file():
                missing.append(row["filename"])
            in_test = int(row["fold"]) == self.fold
            split = "test" if in_test else "val" if row["src_file"] in held else "train"
            splits[split].append(Item(path, int(row["target"])))
        if missing:
            raise DataError(
                f"{len(missing):,} of the {len(rows):,} clips in {found / META} are not in {found / 'audio'} "
                f"(first: {missing[0]}): the download is incomplete"
            )
        return splits


def _read_meta(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as text:
        reader = csv.DictReader(text)
        absent = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if absent:
            raise DataError(f"{file} lacks the column(s) {', '.join(absent)}")
        rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if row["fold"] not in map(str, FOLDS) or not (row["target"] or "").isdecimal():
            raise DataError(f"line {number} of {file} needs a fold of 1 to 5 and a whole number as target")
    return rows


def _class_names(file: Path, rows: list[dict[str, str]]) -> list[str]:
    """Names in the order of the targets, which must be 0, 1, 2, …"""
    names = {int(row["target"]): row["category"] for row in rows}
    if len(names) < 2 or sorted(names) != list(range(len(names))):
        raise DataError(f"the targets in {file} must number at least two classes as 0, 1, 2, …")
    return [names[target] for target in range(len(names))]


def _find(root: Path) -> Path | None:
    return usual_place(root, FOLDERS, lambda place: (place / META).is_file())
