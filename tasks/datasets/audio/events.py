r"""Recordings with sound events: a folder and a table of events with onset and offset.

Examples:
    Recordings anywhere below a folder and `events.csv` with the columns path, onset, offset (seconds), label and
    optionally split::

        python run.py task=sound_events data_dir=PATH

    Another table with other headers, recordings whose names begin with `2024-06` for testing::

        python run.py task=sound_events data_dir=PATH task.data.csv=labels.txt \
            'task.data.csv_columns={onset: from, offset: to}' 'task.data.test_from="2024-06"'
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from tasks.datasets.audio.event_table import Recording, merged, read_event_table
from tasks.datasets.audio.files import EXTENSIONS, length_of, read_crop
from tasks.datasets.base import (
    SPLITS,
    CommonSettings,
    DataError,
    DataModule,
    Item,
    ReadError,
    Whole,
    not_there,
    refuse_unknown,
)
from tasks.datasets.labelled_files import LabelledFiles, label_settings
from tasks.datasets.listing import list_files

Events = NDArray[np.float64]  # (E, 3): onset and offset in seconds, class index
FILL = -1.0  # padding value of events in a batch


class SoundEventSettings(CommonSettings, total=False):
    """Arguments that `SoundEvents` passes on."""

    test_from: str | None
    val_from: str | None
    test_fraction: float
    val_fraction: float
    fold: int | str | None
    folds: int
    folds_by: str


class SoundEvents(DataModule):
    """Recordings of any length with sound events, possibly overlapping.

    A raw sample is `{"waveform": (T,) float32 in [-1, 1], "length": T}`, its target the events in it, `(E, 3)`: onset
    and offset in seconds from its start, class index. Training reads windows: as many as cover a recording, each
    shifted at random by up to half the hop; shorter recordings are padded with silence. Validation, testing and
    prediction read whole recordings. In a batch, waveforms are padded with silence, events with -1.

    Data info: `class_names`, `seconds` (window length).

    Args:
        csv: the event table, relative to `data_dir` (`tasks.datasets.audio.event_table`). Splits are given by its
            column `split`, else by the folders that paths begin with (`train/…`), else drawn as in `LabelledFiles`. A
            recording is never divided between splits.
        csv_columns: role -> column name, where the names are not the usual ones.
        sample_rate: in Hz; files at another rate are resampled.
        seconds: window length.
        move: whether training windows are shifted at random.
        **settings: see `LabelledFiles` (splits and folds) and `DataModule`.
    """

    modality = "audio"
    extensions = EXTENSIONS
    unit = "windows and recordings"
    title = "recordings of your own with events"
    layout = (
        "audio files and a table events.csv (task.data.csv=FILE) with the columns "
        "path,onset,offset,label[,split|fold|group]"
    )

    def __init__(
        self,
        *,
        csv: str = "events.csv",
        csv_columns: Mapping[str, str | None] | None = None,
        sample_rate: int = 16000,
        seconds: float = 10.0,
        move: bool = True,
        **settings: Unpack[SoundEventSettings],
    ) -> None:
        labels, common = label_settings(settings)
        super().__init__(**common)
        if sample_rate < 1 or seconds * sample_rate < 1:
            raise DataError("sample_rate and seconds must be positive")
        self.csv = csv
        self.csv_columns = csv_columns
        self.sample_rate = sample_rate
        self.seconds = float(seconds)
        self.move = move
        self.files = LabelledFiles(self.extensions, **labels)
        self.class_names: list[str] = []

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.audio.event_sample import sound_events

        sound_events(root)

    # -- recordings and splits -------------------------------------------------------------------------------------

    def read_splits(self, root: Path) -> Mapping[str, Sequence[Item]]:
        recordings = self._recordings(root)
        names = {label for recording in recordings for _, _, label in recording.events}
        if not names:
            raise DataError(f"{root / self.csv} has no event")
        self.class_names = sorted(names)
        parts = self.files.split(root, [recording.entry for recording in recordings])
        by_path = {recording.entry.path: recording for recording in recordings}
        splits = {split: [by_path[entry.path] for entry in entries] for split, entries in parts.items()}
        trained = {label for recording in splits["train"] for _, _, label in recording.events}
        if untrained := [name for name in self.class_names if name not in trained]:
            raise DataError(
                f"no training recording has the class(es) {', '.join(untrained[:5])}: more recordings are needed"
            )
        self.notes += self.files.notes
        targets = self._targets(recordings)
        return {
            split: [
                item
                for recording in splits[split]
                for item in (self._windows if split == "train" else self._whole)(
                    recording, targets[recording.entry.path]
                )
            ]
            for split in SPLITS
        }

    def _recordings(self, root: Path, whole: bool = False) -> list[Recording]:
        if not root.is_dir():
            raise self.bad_layout(f"{root} is not a folder")
        table = root / Path(self.csv).expanduser()
        if not table.is_file():
            raise self.bad_layout(f"the table {table} does not exist")
        found = read_event_table(table, root, length_of, self.csv_columns)
        if not found.recordings:
            raise DataError(f"the table {table} names no recording")
        self.files.notes = []
        self.notes = list(found.notes)
        listed = {recording.entry.path.resolve() for recording in found.recordings}
        others = sum(path.resolve() not in listed for path in list_files(root, self.extensions))
        if others:
            self.notes.append(
                f"{others:,} sound files are not in {table.name} and are not read (one without events needs a row with "
                "its path alone)"
            )
        return self._split_by_folders(
            root, sorted(found.recordings, key=lambda one: one.entry.path.parts), whole=whole
        )

    def _split_by_folders(self, root: Path, recordings: list[Recording], whole: bool) -> list[Recording]:
        """Adds the splits of the folders that paths begin with, see `FileSplits.by_folders`."""
        entries = [recording.entry for recording in recordings]
        placed = {
            entry.path: entry for entry in self.files.splits.by_folders(root, entries, self.notes, whole)
        }
        return [
            replace(recording, entry=placed[recording.entry.path])
            for recording in recordings
            if recording.entry.path in placed
        ]

    def _targets(self, recordings: Sequence[Recording]) -> dict[Path, Events]:
        """The events of each recording; adds a note about merged events."""
        index = {name: number for number, name in enumerate(self.class_names)}
        targets, gone = {}, 0
        for recording in recordings:
            targets[recording.entry.path], more = merged(recording.events, index)
            gone += more
        if gone:
            self.notes.append(
                f"{gone:,} events overlap one of their own class in the same recording and were merged with it"
            )
        return targets

    def _whole(self, recording: Recording, events: Events) -> list[Item]:
        return [Item(recording.entry.path, events, {"seconds": recording.seconds})]

    def _windows(self, recording: Recording, events: Events) -> list[Item]:
        """Evenly spaced windows that cover a recording."""
        spare = max(recording.seconds - self.seconds, 0.0)
        count = math.ceil(spare / self.seconds - 1e-9) + 1
        where = {"seconds": recording.seconds, "apart": spare / max(count - 1, 1)}
        return [
            Item(recording.entry.path, events, {**where, "start": spare * number / max(count - 1, 1)})
            for number in range(count)
        ]

    # -- reading ---------------------------------------------------------------------------------------------------

    def read_pair(
        self, item: Item, train: bool, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], Events]:
        whole = float(item.where["seconds"])
        if "start" not in item.where:
            return self._read(item.path, whole), item.target
        spare = max(whole - self.seconds, 0.0)
        start = float(item.where["start"])
        if train and self.move:
            start += (rng.random() - 0.5) * item.where["apart"]
        start = min(max(start, 0.0), spare)
        # Relative position of the crop in a longer file, from 0 to 1; a shorter one is placed at the start.
        waveform = read_crop(item.path, self.sample_rate, self.seconds, place=start / spare if spare else 0.0)
        length = min(round((whole - start) * self.sample_rate), len(waveform))
        return _raw(waveform, length), events_between(
            item.target, start, start + min(self.seconds, whole - start)
        )

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.read_pair(item, train, rng)[0]

    def read_file(self, path: Path) -> dict[str, Tensor]:
        seconds = length_of(path)
        if not seconds:
            raise ReadError("it does not say how long it is: save it as WAV or FLAC")
        return self._read(path, seconds)

    def _read(self, path: Path, seconds: float) -> dict[str, Tensor]:
        waveform = read_crop(path, self.sample_rate, max(seconds, 1 / self.sample_rate), place=0.0)
        return _raw(waveform, len(waveform))

    def join_raws(self, raws: list[Any]) -> dict[str, Tensor]:
        """Collates to waveforms (B, T), padded with silence, and lengths (B,); also accepts bare waveforms."""
        raws = [_raw(raw, len(raw)) if isinstance(raw, Tensor) else raw for raw in raws]
        waveforms = [raw["waveform"] for raw in raws]
        return {
            "waveform": torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
            "length": torch.stack([raw["length"] for raw in raws]),
        }

    def join_targets(self, targets: list[Any]) -> Tensor:
        """Events (B, E, 3) padded with -1."""
        events = [torch.from_numpy(np.asarray(target, dtype=np.float64)) for target in targets]
        return torch.nn.utils.rnn.pad_sequence(events, batch_first=True, padding_value=FILL)

    # -- models trained on other data ------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names), "seconds": self.seconds}

    def recall(self, data_info: dict[str, Any]) -> None:
        self.class_names = list(data_info["class_names"])
        self.seconds = float(data_info["seconds"])

    def adopt(self, data_info: dict[str, Any]) -> None:
        own, known = list(self.class_names), list(data_info["class_names"])
        refuse_unknown(own, known, self.place)
        places = np.array([known.index(name) for name in own], dtype=np.float64)
        self.splits = {
            "test": [
                replace(
                    item, target=np.column_stack([item.target[:, :2], places[item.target[:, 2].astype(int)]])
                )
                for item in self.splits["test"]
            ]
        }
        self.recall(data_info)

    def read_whole(self, data_info: dict[str, Any]) -> Whole | None:
        recordings = self._recordings(self.root, whole=True)
        known = list(data_info["class_names"])
        refuse_unknown([label for one in recordings for _, _, label in one.events], known, str(self.root))
        tested = [one for one in recordings if one.entry.split == "test"]
        said = f"of {len(recordings):,} recordings the {len(tested):,} of its test split are tested"
        if not tested:
            tested, said = recordings, f"all {len(recordings):,} recordings are tested"
        said += not_there((label for one in tested for _, _, label in one.events), known)
        self.class_names = known
        targets = self._targets(recordings)
        return Whole([item for one in tested for item in self._whole(one, targets[one.entry.path])], said)

    def details(self) -> str:
        return f", {len(self.class_names)} classes, windows of {self.seconds:g} s"


def events_between(events: Events, start: float, end: float) -> Events:
    """Events clipped to an interval, with times relative to its start."""
    inside = events[(events[:, 0] < end) & (events[:, 1] > start)].copy()
    inside[:, :2] = inside[:, :2].clip(start, end) - start
    return inside


def _raw(waveform: Tensor, length: int) -> dict[str, Tensor]:
    return {"waveform": waveform, "length": torch.tensor(length)}
