"""Kinetics-400 (Kay et al. 2017, arXiv 1705.06950): ten-second clips of 400 human actions, from lists."""

import csv
import re
from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.errors import DataError
from tasks.datasets.items import Item
from tasks.datasets.splits import stable_fraction
from tasks.datasets.video.files import VideoData, VideoSettings

LISTS = {"train": "train.csv", "val": "val.csv", "test": "test.csv"}
NAMES = ("kinetics_400_labels.csv", "label_map_k400.txt", "label_map.txt")
PROBED = (
    20  # first files of a list whose existence is checked at the start; the others are checked on reading
)


class Kinetics400(VideoData):
    """Kinetics-400 from lists ``train.csv``, ``val.csv`` and ``test.csv``, as VideoMAE and others use them.

    A line is ``path label`` (or ``path,label``), with labels from 0 and paths that are absolute or relative to
    ``data_dir``. The labels of the official test split are not used, so ``test.csv`` is often a copy of ``val.csv`` or
    missing: then the clips of ``val.csv`` are the test split, and the validation split is a fraction of ``train.csv``,
    by a hash of the paths. The test split is never used for model selection.

    Class names are read from ``kinetics_400_labels.csv`` (``id,name``) or ``label_map_k400.txt`` (a name per line) if
    present, else they are numbers.

    Args:
        val_fraction: fraction of ``train.csv`` for validation, if ``val.csv`` is the test split.
        **settings: see `VideoData` and `DataModule`.
    """

    title = "Kinetics-400"
    layout = (
        "train.csv and val.csv (and perhaps test.csv) with lines 'path label', "
        "paths absolute or below that folder"
    )
    homepage = "https://github.com/cvdfoundation/kinetics-dataset"

    def __init__(self, *, val_fraction: float = 0.02, **settings: Unpack[VideoSettings]) -> None:
        super().__init__(**settings)
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction must be between 0 and 1, not {val_fraction}")
        self.val_fraction = val_fraction

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.video.sample import kinetics400

        kinetics400(root)

    def looks_complete(self, root: Path) -> bool:
        return all((root / LISTS[split]).is_file() for split in ("train", "val"))

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        for split in ("train", "val"):
            if not (root / LISTS[split]).is_file():
                raise self.bad_layout(f"there is no {LISTS[split]} in {root}")
        listed = {split: read_list(root / name) for split, name in LISTS.items() if (root / name).is_file()}
        for split, entries in listed.items():
            probed = list(entries)[:PROBED]
            if probed and not any((root / path).is_file() for path in probed):
                raise self.bad_layout(
                    f"{root / LISTS[split]} names files that are not there (first: {probed[0]})"
                )
        if not listed.get("test") or listed["test"].keys() & listed["val"].keys():
            train = listed["train"]
            held = {path for path in train if stable_fraction(path) < self.val_fraction}
            listed = {
                "train": {path: label for path, label in train.items() if path not in held},
                "val": {path: label for path, label in train.items() if path in held},
                "test": listed["val"] | listed.get("test", {}),
            }
        for split in ("val", "test"):
            both = listed["train"].keys() & listed[split].keys()
            if both:
                raise DataError(
                    f"{len(both):,} clips are in {LISTS['train']} and for {split} too: {min(both)}"
                )
        highest = max(max(part.values(), default=0) for part in listed.values())
        self.class_names = self._names(root, highest + 1)
        return {
            split: [Item(root / path, label) for path, label in entries.items()]
            for split, entries in listed.items()
        }

    def _names(self, root: Path, classes: int) -> list[str]:
        file = next((root / name for name in NAMES if (root / name).is_file()), None)
        if file is None:
            return [str(label) for label in range(classes)]
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if file.suffix == ".csv":
            rows = list(csv.reader(lines))[1:]
            try:
                numbered = sorted((int(row[0]), row[1]) for row in rows)
            except (ValueError, IndexError) as error:
                raise DataError(f"{file} must have the columns id,name") from error
            names = [name for _, name in numbered]
            if [number for number, _ in numbered] != list(range(len(names))):
                raise DataError(
                    f"{file} must have a header, id,name, and number the classes as 0, 1, 2, …, like the lists"
                )
        else:
            names = [line.strip() for line in lines]
        if len(names) < classes:
            raise DataError(
                f"{file} names {len(names)} classes, but the lists have labels up to {classes - 1}"
            )
        return names


def read_list(file: Path) -> dict[str, int]:
    """Path -> label of a list, in its order; empty lines are skipped. Raises `DataError`."""
    listed: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        found = re.fullmatch(r"(.*\S)[\s,]+(\d+)", line.strip())  # a path may contain blanks and commas
        if found is None:
            raise DataError(f"line {number} of {file} is not 'path label': {line.strip()[:60]}")
        path, label = found[1].rstrip(", "), int(found[2])
        if listed.setdefault(path, label) != label:
            raise DataError(
                f"line {number} of {file} gives {path} the label {label}, an earlier one {listed[path]}"
            )
    return listed
