"""Recordings with events: how tables are read, what of them is refused, and what windows hold."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.datasets.audio.event_table import merged
from tasks.datasets.audio.events import SoundEvents, events_between
from tasks.datasets.audio.sample import write_wav
from tasks.datasets.base import DataError

RATE = 8000
HEAD = "path,onset,offset,label\n"


def folder(
    root: Path, table: str | bytes, lengths: dict[str, float] | None = None, name: str = "events.csv"
) -> Path:
    """Recordings whose samples say their own time, and a table."""
    for file, seconds in (lengths or {"a.wav": 4.0, "b.wav": 4.0, "c.wav": 4.0}).items():
        write_wav(root / file, np.arange(round(seconds * RATE)) / RATE / 100, RATE)
    (root / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return root


def source(root: Path, **settings: object) -> SoundEvents:
    options: dict[str, object] = {"sample_rate": RATE, "seconds": 2.0, "num_workers": 0, **settings}
    return SoundEvents(name="sound_events", data_dir=str(root), **options)  # type: ignore[arg-type]


def read(root: Path, **settings: object) -> SoundEvents:
    data = source(root, **settings)
    data.setup()
    return data


STATED = (
    "path,onset,offset,label,split\n"
    "a.wav,0.5,1.5,dog,train\na.wav,2,3,cat,train\nb.wav,1,2,dog,val\nc.wav,0,4,cat,test\nc.wav,1,2,dog,test\n"
)


def test_what_a_table_says(tmp_path: Path) -> None:
    data = read(folder(tmp_path, STATED))
    assert data.class_names == ["cat", "dog"]
    (test,) = data.splits["test"]
    assert test.target.tolist() == [[0, 4, 0], [1, 2, 1]]
    assert [item.where["start"] for item in data.splits["train"]] == [0.0, 2.0]
    assert data.describe().startswith(
        "sound_events (2 train / 1 val / 1 test windows and recordings, 2 classes"
    )


@pytest.mark.parametrize(
    ("encoding", "separator", "header"),
    [
        ("utf-8", ",", ("path", "onset", "offset", "label", "split")),
        ("utf-8-sig", ";", ("File Name", "Start", "End", "Event Label", "Subset")),
        ("utf-16", "\t", ("filename", "begin time (s)", "END TIME (s)", "species", "set")),
        ("cp1252", ";", ("file", "start_time", "stop", "Class", "split")),
    ],
)
def test_encodings_separators_and_headers(
    encoding: str, separator: str, header: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [
        ("a.wav", 0.5, 1.5, "Käuzchen", "train"),
        ("b.wav", 1.25, 2, "Käuzchen", "val"),
        ("c.wav", 0, 1, "Käuzchen", "test"),
    ]
    comma = separator != ","
    lines = [separator.join(header)] + [
        separator.join(
            str(cell).replace(".", ",") if comma and isinstance(cell, float) else str(cell) for cell in row
        )
        for row in rows
    ]
    data = read(folder(tmp_path, "\n".join(lines).encode(encoding)))
    assert data.class_names == ["Käuzchen"]
    assert data.splits["val"][0].target.tolist() == [[1.25, 2.0, 0.0]]
    said = " ".join(data.notes)
    assert ("columns of events.csv" in said) == (header[0] != "path")


def test_a_table_without_headers_and_one_with_names_of_its_own(tmp_path: Path) -> None:
    rows = "".join(
        f"{split}/x.wav,1,2,dog\n{split}/x.wav,0.5,1.5,cat\n" for split in ("train", "val", "test")
    )
    lengths = {f"{split}/x.wav": 3.0 for split in ("train", "val", "test")}
    data = read(folder(tmp_path, rows, lengths))
    assert any("has no header" in note for note in data.notes)
    assert any("splits are those of the folders" in note for note in data.notes)
    assert data.splits["test"][0].path.parent.name == "test"
    folder(tmp_path, "where,from,to,what\n" + rows, lengths, "mine.txt")
    with pytest.raises(
        DataError, match=r"lacks a column for the path and onset and offset and label: it has where"
    ):
        read(tmp_path, csv="mine.txt")
    names = {"path": "where", "onset": "from", "offset": "to", "label": "what"}
    assert read(tmp_path, csv="mine.txt", csv_columns=names).class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.wav,2,1,dog", "line 3 ends at 1 s, not after it begins at 2 s"),
        ("a.wav,1,1,dog", "line 3 ends at 1 s, not after it begins at 1 s"),
        ("a.wav,-0.5,1,dog", "line 3 begins at -0.5 s, before its recording"),
        ("a.wav,3,4.2,dog", "line 3 lasts from 3 to 4.2 s, but a.wav ends at 4 s"),
        ("a.wav,7,8,dog", "line 3 lasts from 7 to 8 s, but a.wav ends at 4 s"),
        ("z.wav,1,2,dog", "line 3 names .*z.wav, which does not exist"),
        ("a.wav,one,2,dog", "line 3 has the onset 'one', which is no number of seconds"),
        ("a.wav,1,inf,dog", "line 3 has the offset 'inf', which is no number of seconds"),
        ("a.wav,1,,dog", "line 3 has no offset"),
        ("a.wav,1,2,", "line 3 has times, but no label"),
        (",1,2,dog", "line 3 lacks a path"),
        ("a.wav,1,2,dog,x", "line 3 of .* has 5 cells, the header 4"),
        ("bad.wav,1,2,dog", r"line 3 names .*bad\.wav: it cannot be read as audio"),
    ],
)
def test_a_row_that_cannot_be_true_is_named(row: str, message: str, tmp_path: Path) -> None:
    folder(tmp_path, f"{HEAD}a.wav,0,1,cat\n{row}\n")
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_all_bad_rows_are_named_in_one_sentence(tmp_path: Path) -> None:
    folder(
        tmp_path,
        HEAD + "a.wav,0,1,dog\n" + "a.wav,2,1,dog\n" * 4 + "b.wav,-1,1,dog\nz.wav,0,1,dog\nz.wav,2,3,dog\n",
    )
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    said = str(caught.value)
    for line in (3, 4, 5, 6, 7):
        assert f"line {line} " in said
    assert said.endswith("; and 1 more rows"), "a file that is not there is said once"


def test_two_splits_of_one_recording_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, "path,onset,offset,label,split\na.wav,0,1,dog,train\na.wav,2,3,dog,test\n")
    with pytest.raises(
        DataError, match=r"line 3 puts .*a\.wav into the split test, a line before into train"
    ):
        read(tmp_path)
    folder(tmp_path, "path,onset,offset,label,split\na.wav,0,1,dog,mine\n")
    with pytest.raises(DataError, match="has the split 'mine'; it takes train, val or test"):
        read(tmp_path)


def test_events_of_a_class_that_overlap_are_merged_and_said(tmp_path: Path) -> None:
    table = STATED + "c.wav,1.5,2.5,dog,test\nc.wav,2.5,3,dog,test\n"
    data = read(folder(tmp_path, table))
    assert data.splits["test"][0].target.tolist() == [[0, 4, 0], [1, 2.5, 1], [2.5, 3, 1]]
    assert any(note.startswith("1 events overlap one of their own class") for note in data.notes)
    array, gone = merged([(0, 5, "a"), (1, 2, "a"), (4, 6, "a"), (6, 7, "a")], {"a": 3})
    assert (array.tolist(), gone) == ([[0, 6, 3], [6, 7, 3]], 2)


def test_an_event_that_ends_just_behind_its_recording_is_cut_and_said(tmp_path: Path) -> None:
    data = read(folder(tmp_path, STATED.replace("c.wav,0,4,", "c.wav,0,4.04,")))
    assert data.splits["test"][0].target[0].tolist() == [0, 4, 0]
    assert any("1 events of events.csv end up to 0.05 s behind" in note for note in data.notes)


def test_recordings_without_events_and_those_that_are_not_listed(tmp_path: Path) -> None:
    data = read(
        folder(
            tmp_path,
            STATED + "d.wav,,,,train\n",
            {"a.wav": 4, "b.wav": 4, "c.wav": 4, "d.wav": 4, "e.wav": 4},
        )
    )
    silent = [item for item in data.splits["train"] if item.path.name == "d.wav"]
    assert [len(item.target) for item in silent] == [0, 0]
    assert any(note.startswith("1 sound files are not in events.csv") for note in data.notes)
    _, target = data.read_pair(silent[0], True, np.random.default_rng(0))
    assert target.shape == (0, 3)


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (HEAD, {}, "names no recording"),
        ("", {}, "is empty"),
        (HEAD + "a.wav,,,\nb.wav,,,\nc.wav,,,\n", {}, "has no event"),
        (STATED.replace("a.wav,2,3,cat", "a.wav,2,3,dog"), {}, "no training recording has the class"),
        (
            STATED,
            {"csv": "other.csv"},
            "other.csv does not exist; sound_events expects audio files and a table",
        ),
        (STATED, {"csv_columns": {"onset": "begin"}}, "has no column 'begin'"),
        (STATED, {"csv_columns": {"start": "onset"}}, "csv_columns takes path, onset"),
        (STATED, {"seconds": 0.0}, "must be positive"),
    ],
)
def test_data_that_cannot_be_used(
    table: str, settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read(folder(tmp_path, table), **settings)


def test_splits_by_name_keep_recordings_whole(tmp_path: Path) -> None:
    lengths = {f"r{number:02d}.wav": 5.0 for number in range(40)}
    table = HEAD + "".join(
        f"{name},{onset},{onset + 1},{kind}\n" for name in lengths for onset, kind in ((0, "x"), (2, "y"))
    )
    data = read(folder(tmp_path, table, lengths), test_fraction=0.3, val_fraction=0.2)
    names = {split: {item.path.name for item in items} for split, items in data.splits.items()}
    assert set.union(*names.values()) == set(lengths)
    assert sum(map(len, names.values())) == 40
    other = read(tmp_path, test_from=r"r0\d")
    assert {item.path.name for item in other.splits["test"]} == {f"r{number:02d}.wav" for number in range(10)}


def test_folders_of_training_and_validation_are_splits(tmp_path: Path) -> None:
    lengths = {f"train/{n}.wav": 2.0 for n in range(20)} | {f"val/{n}.wav": 2.0 for n in range(3)}
    table = HEAD + "".join(f"{name},0,1,dog\n" for name in lengths)
    data = read(folder(tmp_path, table, lengths), test_fraction=0.3)
    found = {split: {item.path.parent.name for item in items} for split, items in data.splits.items()}
    assert found == {"train": {"train"}, "val": {"val"}, "test": {"train"}}
    assert "splits are those of the folders that paths begin with: train, val" in data.notes


def test_a_recording_without_a_fold_is_refused(tmp_path: Path) -> None:
    table = "path,onset,offset,label,fold\na.wav,0,1,dog,1\nb.wav,0,1,dog,2\nc.wav,0,1,dog,\n"
    with pytest.raises(DataError, match=r"line 4 of .*events\.csv lacks a fold"):
        read(folder(tmp_path, table))


def test_a_recording_is_one_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    folder(tmp_path, STATED + f"{tmp_path}/a.wav,0,1,dog,test\n")
    with pytest.raises(DataError, match=r"puts .*a\.wav into the split test, a line before into train"):
        read(Path(tmp_path.name))


# -- windows -------------------------------------------------------------------------------------------------------


def test_windows_cover_a_recording_and_hold_its_events(tmp_path: Path) -> None:
    folder(
        tmp_path,
        STATED.replace("a.wav,2,3,cat", "a.wav,6.5,7.25,cat"),
        {"a.wav": 9.0, "b.wav": 4.0, "c.wav": 4.0},
    )
    data = read(tmp_path)
    items = data.splits["train"]
    assert [item.where["start"] for item in items] == pytest.approx([0, 1.75, 3.5, 5.25, 7])
    rng = np.random.default_rng(0)
    begins = []
    for item in items * 20:
        raw, events = data.read_pair(item, True, rng)
        begin = float(raw["waveform"][0]) * 100
        begins.append(begin)
        assert abs(begin - item.where["start"]) <= 0.5 * 1.75 + 1e-3
        assert 0 <= begin <= 7.001
        assert raw["waveform"].shape == (2 * RATE,)
        assert int(raw["length"]) == 2 * RATE
        wanted = [
            (max(a, begin) - begin, min(b, begin + 2) - begin, k)
            for a, b, k in ((0.5, 1.5, 1.0), (6.5, 7.25, 0.0))
            if min(b, begin + 2) - max(a, begin) > 2e-3
        ]
        assert np.allclose(
            [event for event in events.tolist() if event[1] - event[0] > 2e-3],
            np.array(wanted).reshape(-1, 3) if wanted else [],
            atol=2e-3,
        )
    assert len({round(begin, 2) for begin in begins}) > 50
    still = read(tmp_path, move=False)
    assert float(still.read_pair(items[1], True, rng)[0]["waveform"][0]) * 100 == pytest.approx(
        1.75, abs=1e-2
    )


def test_short_and_long_recordings(tmp_path: Path) -> None:
    folder(
        tmp_path,
        STATED.replace("a.wav,2,3,cat", "a.wav,0.2,0.4,cat").replace("0.5,1.5", "0.5,0.9"),
        {"a.wav": 1.0, "b.wav": 4.0, "c.wav": 11.0},
    )
    data = read(tmp_path)
    (item,) = data.splits["train"]
    raw, events = data.read_pair(item, True, np.random.default_rng(0))
    assert int(raw["length"]) == RATE
    assert raw["waveform"].shape == (2 * RATE,)
    assert not raw["waveform"][RATE:].any()
    assert events.tolist() == [[0.2, 0.4, 0], [0.5, 0.9, 1]]
    whole, events = data.read_pair(data.splits["test"][0], False, np.random.default_rng(0))
    assert whole["waveform"].shape == (11 * RATE,)
    assert events.tolist() == [[0, 4, 0], [1, 2, 1]]
    batch = next(iter(data.loader("val", batch_size=2)))
    assert batch.raw["waveform"].shape == (1, 4 * RATE)
    joined = data.join_raws([raw, whole])
    assert joined["length"].tolist() == [RATE, 11 * RATE]
    targets = data.join_targets([np.zeros((0, 3)), events])
    assert torch.equal(targets[0], torch.full((2, 3), -1.0, dtype=torch.float64))
    assert data.read_file(tmp_path / "c.wav")["waveform"].equal(whole["waveform"])


def test_events_between_two_times() -> None:
    events = np.array([[0.0, 1.0, 0.0], [0.5, 3.0, 1.0], [3.0, 4.0, 0.0]])
    assert events_between(events, 1.0, 3.0).tolist() == [[0, 2, 1]]
    assert events_between(events, 0.75, 3.5).tolist() == [[0, 0.25, 0], [0, 2.25, 1], [2.25, 2.75, 0]]


# -- for a model of other data -------------------------------------------------------------------------------------


def test_classes_are_those_of_the_model(tmp_path: Path) -> None:
    folder(tmp_path, STATED)
    known = {"class_names": ["ant", "cat", "dog"], "seconds": 3.0}
    data = source(tmp_path)
    whole = data.read_whole(known)
    assert whole is not None
    assert whole.items[0].target.tolist() == [[0, 4, 1], [1, 2, 2]]
    assert "of 3 recordings the 1 of its test split" in whole.said
    assert "nothing of ant" in whole.said
    adopting = read(tmp_path)
    adopting.adopt(known)
    assert adopting.splits["test"][0].target.tolist() == [[0, 4, 1], [1, 2, 2]]
    assert adopting.info() == known
    with pytest.raises(DataError, match="classes that the model does not know: cat"):
        source(tmp_path).read_whole({"class_names": ["dog"], "seconds": 3.0})
