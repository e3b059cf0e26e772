"""AudioSet (Gemmeke et al. 2017): ten-second clips from videos, multi-label with 527 classes."""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from tasks.datasets.audio.files import EXTENSIONS, AudioData
from tasks.datasets.errors import DataError
from tasks.datasets.items import Item
from tasks.datasets.lazy_items import LazyItems
from tasks.datasets.shards.data import ShardableSettings
from tasks.datasets.splits import stable_fraction
from tasks.datasets.targets import ClassTargets

LABELS = "class_labels_indices.csv"
TRAIN = {"full": ("balanced", "unbalanced"), "balanced": ("balanced",), "unbalanced": ("unbalanced",)}
TABLES = {
    "balanced": "balanced_train_segments.csv",
    "unbalanced": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}
FOLDERS = {
    "balanced": ("balanced_train_segments", "bal_train", "balanced_train"),
    "unbalanced": ("unbalanced_train_segments", "unbal_train", "unbalanced_train"),
    "eval": ("eval_segments", "eval"),
}
BELOW = (".", "audios", "audio", "clips")  # parent folders of the clip folders
# File names of clips contain the video id: ID, YID, ID_START_END or YID_START_END.
CLIP = re.compile(r"Y?(?P<video>[\w-]{11})(?:_[\d.]+_[\d.]+)?", re.ASCII)


@dataclass(frozen=True)
class Segment:
    """A row of a segment table: a video id and its classes."""

    video: str
    labels: tuple[int, ...]


class Clips(LazyItems):
    """Items created on access: two million of them, with 527 numbers each, would take gigabytes.

    Args:
        folders: folders of clips.
        found: folder index, relative path and classes of each clip.
        classes: number of classes, K.
    """

    def __init__(
        self, folders: Sequence[Path], found: Sequence[tuple[int, str, tuple[int, ...]]], classes: int
    ) -> None:
        self.folders = list(folders)
        self.classes = classes
        self.folder = np.array([folder for folder, _, _ in found], dtype=np.int8)
        self.names = np.array([os.fsencode(name) for _, name, _ in found])
        self.labels = np.array([label for _, _, labels in found for label in labels], dtype=np.int16)
        self.ends = np.cumsum([0] + [len(labels) for _, _, labels in found])

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int) -> Item:
        target: NDArray[np.float32] = np.zeros(self.classes, dtype=np.float32)
        target[self.labels[self.ends[index] : self.ends[index + 1]]] = 1
        return Item(self.folders[self.folder[index]] / os.fsdecode(bytes(self.names[index])), target)


class AudioSet(AudioData):
    """AudioSet with its official tables; missing clips (deleted videos) are skipped and counted.

    There is no official validation split: a fraction of the training clips is held out, by a hash of the video id.
    The test split is the evaluation segments.

    Args:
        train: training segments: ``full`` (balanced and unbalanced, about two million), ``balanced`` (22,160) or
            ``unbalanced``.
        val_fraction: fraction of the training clips used for validation.
        sample_rate, seconds, test_crops: see `AudioData`.
        **common: see `ShardableData`, `ClassificationData` and `DataModule`.
    """

    title = "AudioSet"
    layout = (
        f"{LABELS}, {', '.join(TABLES.values())} (the official tables), and the clips in the folders "
        "balanced_train_segments (or bal_train), unbalanced_train_segments (unbal_train) and eval_segments (eval), "
        "named after their videos: ID.wav, YID.wav or ID_START_END.flac"
    )
    homepage = "https://research.google.com/audioset/download.html"
    unit = "clips"
    kind = partial(ClassTargets, multilabel=True)

    def __init__(
        self,
        *,
        train: str = "full",
        val_fraction: float = 0.1,
        sample_rate: int = 16000,
        seconds: float = 10.0,
        test_crops: int | str = 1,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(sample_rate=sample_rate, seconds=seconds, test_crops=test_crops, **common)
        if train not in TRAIN:
            raise DataError(f"train must be one of {', '.join(TRAIN)}, not {train!r}")
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
        self.train = train
        self.val_fraction = val_fraction
        self.listed = 0  # clips listed in the tables
        self.found = 0  # clips found on disk

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.audio.sample import audioset

        audioset(root)

    def details(self) -> str:
        held = f", {self.val_fraction:.0%} of the training clips held out for validation"
        there = f", {self.found:,} of {self.listed:,} clips are there" if self.listed else ""
        return f"{super().details()}{held}{there}"

    def read_splits(self, root: Path) -> Mapping[str, Sequence[Item]]:
        if not (root / LABELS).is_file():
            raise self.bad_layout(f"no {LABELS} in {root}")
        numbers, self.class_names = read_labels(root / LABELS)
        train = [self._clips(root, part, numbers) for part in TRAIN[self.train]]
        folder, tested = self._clips(root, "eval", numbers)
        folders = [part for part, _ in train]
        named = [
            (number, name, segment) for number, (_, clips) in enumerate(train) for name, segment in clips
        ]
        # By video id, not by file name: the same split for everybody.
        places = [stable_fraction(segment.video) for _, _, segment in named]
        first = min(places)  # at least one
        held = [place < self.val_fraction or place == first for place in places]
        classes = len(self.class_names)

        def part(wanted: bool) -> Clips:
            chosen = zip(named, held, strict=True)
            found = [
                (number, name, segment.labels) for (number, name, segment), out in chosen if out == wanted
            ]
            return Clips(folders, found, classes)

        return {
            "train": part(False),
            "val": part(True),
            "test": Clips([folder], [(0, name, segment.labels) for name, segment in tested], classes),
        }

    def _clips(
        self, root: Path, part: str, numbers: Mapping[str, int]
    ) -> tuple[Path, list[tuple[str, Segment]]]:
        """The folder of a subset, and the clips of its table found on disk: relative path, segment."""
        table = root / TABLES[part]
        if not table.is_file():
            raise self.bad_layout(f"no {table.name} in {root}")
        places = [root / below / name for below in BELOW for name in FOLDERS[part]]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise self.bad_layout(f"no folder {' or '.join(FOLDERS[part])} in {root}")
        files = clip_files(folder)
        listed = list(read_segments(table, numbers))
        there = [(files[segment.video], segment) for segment in listed if segment.video in files]
        if not there:
            raise self.bad_layout(f"none of the {len(listed):,} clips in {table} is in {folder}")
        self.listed += len(listed)
        self.found += len(there)
        return folder, there


def read_labels(file: Path) -> tuple[dict[str, int], list[str]]:
    """Maps label ids (`/m/09x0r`) to class indices; also returns the class names."""
    with file.open(newline="", encoding="utf-8") as text:
        reader = csv.DictReader(text)
        columns = ("index", "mid", "display_name")
        absent = [column for column in columns if column not in (reader.fieldnames or [])]
        if absent:
            raise DataError(f"{file} lacks the column(s) {', '.join(absent)}")
        rows = list(reader)
    if [row["index"] for row in rows] != [str(number) for number in range(len(rows))] or len(rows) < 2:
        raise DataError(f"the column index in {file} must number at least two labels as 0, 1, 2, …")
    numbers = {row["mid"]: number for number, row in enumerate(rows)}
    names = [row["display_name"] for row in rows]
    if len(numbers) < len(rows) or len(set(names)) < len(rows):
        raise DataError(f"a label is twice in {file}")
    return numbers, names


def read_segments(table: Path, numbers: Mapping[str, int]) -> Iterator[Segment]:
    """The rows of a segment table: comments with #, then video, start, end, "id,id,…"."""
    seen: set[str] = set()
    with table.open(newline="", encoding="utf-8") as text:
        for line, row in enumerate(csv.reader(text, skipinitialspace=True), start=1):
            if not row or row[0].startswith("#"):
                continue
            if len(row) != 4 or not row[3]:
                raise DataError(f'line {line} of {table} is not: video, start, end, "label,label,…"')
            video, labels = row[0], row[3].split(",")
            if unknown := [label for label in labels if label not in numbers]:
                raise DataError(f"line {line} of {table} has the label {unknown[0]}, which {LABELS} lacks")
            if video in seen:
                raise DataError(f"line {line} of {table} has the video {video} for the second time")
            seen.add(video)
            yield Segment(video, tuple(sorted({numbers[label] for label in labels})))


def clip_files(folder: Path) -> dict[str, str]:
    """Maps video ids to the paths of their clips, relative to ``folder`` (searched recursively)."""
    files: dict[str, str] = {}
    for place, below, names in os.walk(folder):
        below.sort()
        inside = Path(place).relative_to(folder).as_posix()
        before = "" if inside == "." else f"{inside}/"
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            found = CLIP.fullmatch(stem) if suffix.lower() in EXTENSIONS else None
            if found:
                files.setdefault(found["video"], before + name)
    return files
