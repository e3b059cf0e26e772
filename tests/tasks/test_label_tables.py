"""Tables of labels as people write them: read, said, or refused with the line."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.base import DataError
from tasks.datasets.label_table import read_label_table
from tasks.datasets.video.folder import VideoFolder

CLASSES = ("bell", "horn")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for number in range(40):
        soundfile.write(tmp_path / "clips" / f"{number}.wav", np.zeros(80, np.float32), 8000)
    return tmp_path


def rows(write: Callable[[int], str], header: str = "path,label", count: int = 40) -> str:
    return "\n".join([header, *(write(number) for number in range(count))]) + "\n"


PLAIN = rows(lambda n: f"clips/{n}.wav,{CLASSES[n % 2]}")


def opened(root: Path, table: str | bytes, **options: object) -> AudioFolder:
    (root / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    data = AudioFolder(name="audio_folder", data_dir=str(root), csv="labels.csv", **options)  # type: ignore[arg-type]
    data.setup()
    return data


def parts(data: AudioFolder) -> dict[str, list[tuple[str, object]]]:
    return {
        split: [
            (item.path.name, item.target if isinstance(item.target, int) else item.target.tolist())
            for item in items
        ]
        for split, items in data.splits.items()
    }


@pytest.mark.parametrize(
    ("table", "note"),
    [
        (PLAIN.replace("path,label", "Path, Label"), None),
        (PLAIN.replace(",", " , "), None),
        (PLAIN.replace(",", ";"), "separated by semicolons"),
        (PLAIN.replace(",", "\t"), "separated by tabs"),
        ("sep=;\n" + PLAIN.replace(",", ";"), "separated by semicolons"),
        (PLAIN.replace("\n", "\r\n"), None),
        (PLAIN.replace("path,label", "File Name,CLASS"), "File Name = path, CLASS = label"),
        (PLAIN.split("\n", 1)[1], "has no header: its columns are taken as path, label"),
        (PLAIN.replace("clips/", "clips\\"), None),
        (PLAIN.encode("utf-8-sig"), None),
        (PLAIN.encode("utf-16"), "read as UTF-16"),
        (PLAIN + "\n\n , \n", None),
        (PLAIN + "clips/3.wav,horn\n", "1 rows of labels.csv name a file again"),
        (PLAIN.replace("label", "label,notes").replace("bell", "bell,x"), None),
    ],
)  # fmt: skip
def test_any_dress_of_a_table_gives_the_same_data(clips: Path, table: str | bytes, note: str | None) -> None:
    wanted = opened(clips, PLAIN)
    data = opened(clips, table)
    assert parts(data) == parts(wanted)
    assert data.class_names == ["bell", "horn"]
    assert note in "\n".join(data.notes) if note else not data.notes


def test_the_notes_are_in_the_first_lines(
    clips: Path, caplog: pytest.LogCaptureFixture, composed: Callable[..., object]
) -> None:
    from workbench.build import build_data

    (clips / "labels.csv").write_text(PLAIN.replace(",", ";"))
    with caplog.at_level(logging.INFO, "widefield"):
        build_data(
            composed("modality=audio", "task=audio_folder", f"data_dir={clips}", "task.data.csv=labels.csv")
        )  # type: ignore[arg-type]
    assert "data: labels.csv is separated by semicolons" in caplog.messages


def test_accents_of_an_old_encoding(clips: Path) -> None:
    table = PLAIN.replace("bell", "clé").encode("cp1252")
    data = opened(clips, table)
    assert data.class_names == ["clé", "horn"]
    assert "Windows-1252" in data.notes[0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,kind\n1,2\n", r"lacks a column for the path and label: it has name, kind; .*csv_columns="),
        ("path,label\nclips/1.wav,bell,horn\n", "line 2 of .* has 3 cells, the header 2"),
        ("path,label,path\nclips/1.wav,bell,x\n", "two columns 'path'"),
        (b"path,label\n\0\0", "is no text"),
        (b"path,label\n\x81\x8d\n", "is no text"),
        (b"\xff\xfep", "is no text"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        (PLAIN + "clips/3.wav,bell\n", r"lines 5 and 42 of .* label clips/3.wav|label .*3.wav as horn and as bell"),
        (rows(lambda n: f"clips/{n}.wav,bell,{n % 3}", "path,label,fold") + "clips/3.wav,bell,1\n",
         "put clips/3.wav into two folds, 0 and 1"),
        (rows(lambda n: f"clips/{n}.wav,{CLASSES[n % 2]},train", "path,label,split") + "./clips/3.wav,horn,test\n",
         "lines 5 and 42 .* into two splits, train and test"),
        (rows(lambda n: f"clips/{n}.wav,bell,{n % 3 or ''}", "path,label,fold"), "line 2 of .* lacks a fold"),
        ('path,label\n"' + "x" * 200_000 + '",bell\n', "cannot be read .*field larger"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_told_is_refused(clips: Path, table: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        opened(clips, table)
    assert "\n" not in str(caught.value)


def test_rows_of_one_file_are_one_item_of_several_labels(clips: Path) -> None:
    table = PLAIN + "clips/0.wav,horn\nclips/1.wav,bell\n"
    data = opened(clips, table, multilabel=True)
    found = {name: target for part in parts(data).values() for name, target in part}
    assert len(found) == sum(map(len, data.splits.values())) == 40
    assert found["0.wav"] == found["1.wav"] == [1.0, 1.0]
    assert found["2.wav"] == [1.0, 0.0]


def test_columns_are_named_by_hand(clips: Path) -> None:
    table = rows(lambda n: f"clips/{n}.wav,{CLASSES[n % 2]},{n % 2}", "sound,kind,label")
    wanted = {"path": "sound", "label": "kind"}
    assert opened(clips, table, csv_columns=wanted).class_names == ["bell", "horn"]
    with pytest.raises(DataError, match=r"has no column 'sounds' \(path\); it has sound, kind, label"):
        opened(clips, table, csv_columns={"path": "sounds"})
    with pytest.raises(DataError, match="takes path, label, split, fold, group, not file"):
        opened(clips, table, csv_columns={"file": "sound"})


US8K = rows(
    lambda n: f"clips/{n}.wav,{n % 5 + 1},{n % 2},{CLASSES[n % 2]}", "slice_file_name,fold,classID,class"
)


def test_folds_of_a_table_are_used(clips: Path) -> None:
    data = opened(clips, US8K)
    assert data.class_names == ["bell", "horn"]
    assert {int(item.path.stem) % 5 for item in data.splits["test"]} == {0}
    assert len(data.splits["test"]) == 8
    assert "tested on fold 1 of 1, 2, 3, 4, 5" in data.notes[-1]
    other = opened(clips, US8K, fold=5)
    assert {int(item.path.stem) % 5 for item in other.splits["test"]} == {4}
    with pytest.raises(DataError, match="fold=6 is none of"):
        opened(clips, US8K, fold=6)
    with pytest.raises(DataError, match="leave fold out"):
        opened(clips, rows(lambda n: f"clips/{n}.wav,{CLASSES[n % 2]},{('train', 'val', 'test')[n % 3]}",
                           "path,label,split"), fold=1)  # fmt: skip


def test_groups_of_a_table_stay_together(clips: Path) -> None:
    table = rows(lambda n: f"clips/{n}.wav,{CLASSES[n % 2]},speaker {n // 2 % 10}", "path,label,speaker")
    data = opened(clips, table, test_fraction=0.3, val_fraction=0.3)
    who = [{int(item.path.stem) // 2 % 10 for item in items} for items in data.splits.values()]
    assert sum(map(len, who)) == 10
    folded = opened(clips, table, fold=2)
    who = [{int(item.path.stem) // 2 % 10 for item in items} for items in folded.splits.values()]
    assert sum(map(len, who)) == 10
    assert folded.notes == ["columns of labels.csv: speaker = group"]


def test_a_group_lies_in_one_split_or_fold(clips: Path) -> None:
    stated = rows(lambda n: f"clips/{n}.wav,{CLASSES[n % 2]},{'test' if n < 4 else ''},g{n % 20 // 2}",
                  "path,label,split,group")  # fmt: skip
    data = opened(clips, stated, val_fraction=0.3)
    who = [{int(item.path.stem) % 20 // 2 for item in items} for items in data.splits.values()]
    assert sum(map(len, who)) == 10, "what is not stated follows its group"
    assert who[2] == {0, 1}
    with pytest.raises(DataError, match=r"the group g0 lies in test and train: a group belongs to one"):
        opened(clips, stated.replace("clips/20.wav,bell,,", "clips/20.wav,bell,train,"))
    folded = rows(lambda n: f"clips/{n}.wav,{CLASSES[n % 2]},{n % 3},g{n % 4}", "path,label,fold,group")
    with pytest.raises(DataError, match=r"the group g0 lies in fold 0 and fold 1 and fold 2"):
        opened(clips, folded)


def test_an_empty_column_of_splits_leaves_the_folds(clips: Path) -> None:
    data = opened(clips, rows(lambda n: f"clips/{n}.wav,{CLASSES[n % 2]},,{n % 3}", "path,label,split,fold"))
    assert data.notes == ["tested on fold 0 of 0, 1, 2 (task.data.fold=…)"]


def test_a_column_that_only_has_the_name_of_a_role(clips: Path) -> None:
    table = rows(lambda n: f"clips/{n}.wav,{CLASSES[n % 2]},A", "path,label,set")
    with pytest.raises(DataError, match=r"csv_columns=\{split: null\}"):
        opened(clips, table)
    assert parts(opened(clips, table, csv_columns={"split": None})) == parts(opened(clips, PLAIN))


def test_classes_that_differ_in_capitals_are_said(clips: Path) -> None:
    data = opened(clips, rows(lambda n: f"clips/{n}.wav,{('Bell', 'bell')[n % 2]}"))
    assert data.notes == ["classes that differ in capital letters only stay apart: Bell, bell"]


def test_a_table_of_videos(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.mp4").touch()
    (tmp_path / "labels.csv").write_text(
        rows(lambda n: f"{n}.mp4,{CLASSES[n % 2]},{n % 4}", "path,label,fold", 20)
    )
    data = VideoFolder(
        name="video_folder", data_dir=str(tmp_path), csv="labels.csv", fold=2, val_fraction=0.3
    )
    data.setup()
    assert {int(item.path.stem) % 4 for item in data.splits["test"]} == {2}


FOLDED = {"train": 12, "val": 4, "test": 4}


def folded(root: Path, table: bool, counts: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Clips below folders of splits labelled in their names and, perhaps, a table; returns options to read them."""
    paths = [
        f"{folder}/{CLASSES[n % 2]}_{folder.replace('/', '_')}{n}.wav"
        for folder, count in (counts or FOLDED).items()
        for n in range(count)
    ]
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / path, np.zeros(80, np.float32), 8000)
    if not table:
        return {"label_from": "^(?P<label>[a-z]+)_"}
    lines = [f"{path},{Path(path).name.partition('_')[0]}" for path in paths]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]))
    return {"csv": "labels.csv"}


def read(root: Path, **options: Any) -> AudioFolder:
    data = AudioFolder(name="audio_folder", data_dir=str(root), **options)
    data.setup()
    return data


def folders_of(data: AudioFolder) -> dict[str, set[str]]:
    return {split: {item.path.parent.name for item in items} for split, items in data.splits.items()}


@pytest.mark.parametrize("table", [False, True])
def test_folders_that_paths_begin_with_are_splits(tmp_path: Path, table: bool) -> None:
    data = read(tmp_path, **folded(tmp_path, table))
    assert folders_of(data) == {split: {split} for split in FOLDED}
    assert data.notes == ["splits are those of the folders that paths begin with: test, train, val"]


@pytest.mark.parametrize("table", [False, True])
def test_a_split_that_no_folder_states_is_drawn_from_training(tmp_path: Path, table: bool) -> None:
    counts = {"clips/train2017": 30, "clips/Test_Set": 4, "clips/extra": 2, "clips": 1}
    data = read(tmp_path, **folded(tmp_path, table, counts), val_fraction=0.3)
    assert folders_of(data) == {"train": {"train2017"}, "val": {"train2017"}, "test": {"Test_Set"}}
    assert data.notes == [
        "splits are those of the folders that paths begin with: Test_Set (test), train2017 (train)",
        "3 files lie in none of these folders and are not read",
    ]


def test_a_row_outside_the_folder_leaves_its_splits(tmp_path: Path) -> None:
    folded(tmp_path / "data", True)
    soundfile.write(tmp_path / "other.wav", np.zeros(80, np.float32), 8000)
    with (tmp_path / "data" / "labels.csv").open("a") as table:
        table.write(f"\n{tmp_path}/other.wav,bell\n")
    data = read(tmp_path / "data", csv="labels.csv")
    assert folders_of(data) == {split: {split} for split in FOLDED}
    assert data.notes[-1] == "1 files lie in none of these folders and are not read"


@pytest.mark.parametrize("table", [False, True])
def test_patterns_and_folds_come_before_folders(tmp_path: Path, table: bool) -> None:
    options = folded(tmp_path, table, {"train": 30, "test": 10})
    data = read(tmp_path, **options, val_from="[01].wav")
    assert folders_of(data)["train"] == {"train"}
    assert {item.path.stem[-1] for item in data.splits["val"]} == {"0", "1"}
    data = read(tmp_path, **options, fold=1)
    assert folders_of(data)["test"] == {"train", "test"}
    assert data.notes == [
        "there are folds: folders named as splits (train, test, …) are not taken for splits"
    ]


@pytest.mark.parametrize("table", [False, True])
def test_a_trained_model_is_tested_on_the_folder_of_tests(tmp_path: Path, table: bool) -> None:
    data = AudioFolder(name="audio_folder", data_dir=str(tmp_path), **folded(tmp_path, table))
    whole = data.read_whole({"class_names": list(CLASSES)})
    assert whole is not None
    assert {item.path.parent.name for item in whole.items} == {"test"}


def test_columns_of_splits_come_before_folders(tmp_path: Path) -> None:
    folded(tmp_path, True)
    rows = (tmp_path / "labels.csv").read_text().splitlines()[1:]
    roles = ("train", "train", "val", "test")
    stated = [f"{row},{roles[n // 2 % 4]}" for n, row in enumerate(rows)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *stated]))
    data = read(tmp_path, csv="labels.csv")
    assert folders_of(data)["train"] == {"train", "test"}
    assert data.notes == []
    folds = [f"{row},{n // 2 % 3}" for n, row in enumerate(rows)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,fold", *folds]))
    assert folders_of(read(tmp_path, csv="labels.csv", val_fraction=0.3))["test"] == {"train", "val", "test"}


@pytest.mark.parametrize("spelling", ["{here}/clips/0.wav", "clips/../clips/0.wav", "link/0.wav"])
def test_a_file_is_one_item_however_it_is_spelt(
    clips: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(clips.parent)
    (clips / "link").symlink_to(clips / "clips")
    again = spelling.format(here=clips)
    with pytest.raises(DataError, match=r"label clips/0\.wav as bell and as horn"):
        opened(Path(clips.name), PLAIN + f"{again},horn\n")
    assert sum(map(len, opened(Path(clips.name), PLAIN + f"{again},bell\n").splits.values())) == 40


@pytest.mark.parametrize("mark", [",", "|"])
def test_labels_that_are_separated_otherwise(clips: Path, mark: str) -> None:
    table = rows(lambda n: f'clips/{n}.wav,"{f"horn{mark}bell" if n % 2 else "bell"}"')
    with pytest.raises(DataError, match=r"has labels such as 'horn.bell': separate several labels by ';'"):
        opened(clips, table, multilabel=True)
    assert opened(clips, table, multilabel=True, label_separator=mark).class_names == ["bell", "horn"]
    assert opened(clips, table, multilabel=True, label_separator=";").class_names == [
        "bell",
        f"horn{mark}bell",
    ]
    assert opened(clips, table).class_names == ["bell", f"horn{mark}bell"]
    names = table.replace("horn" + mark, f"brass{mark} ").replace(f"{mark} bell", f"{mark} wind")
    assert opened(clips, names, multilabel=True).class_names == ["bell", f"brass{mark} wind"]
    with pytest.raises(DataError, match="needs multilabel=true"):
        opened(clips, table, label_separator=mark)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_table_or_a_sentence(folder: Path, raw: bytes) -> None:
    (folder / "labels.csv").write_bytes(raw)
    with suppress(DataError):  # any other error is a fault
        read_label_table(folder / "labels.csv", folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def put(root: Path, counts: Mapping[str, int]) -> None:
    """Clips in folders."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            soundfile.write(root / folder / f"{number}.wav", np.zeros(80, np.float32), 8000)


def test_folders_of_classes_may_hold_the_splits(tmp_path: Path) -> None:
    counts = {f"{label}/{split}": 5 for label in CLASSES for split in ("train", "Validation", "test_set")}
    put(tmp_path, {**counts, "horn/other": 2})
    data = read(tmp_path)
    assert data.class_names == list(CLASSES)
    assert folders_of(data) == {"train": {"train"}, "val": {"Validation"}, "test": {"test_set"}}
    assert data.notes == [
        "splits are those of the folders within the folders of classes",
        "2 files lie in none of these folders and are not read",
    ]
    whole = AudioFolder(name="audio_folder", data_dir=str(tmp_path)).read_whole(
        {"class_names": list(CLASSES)}
    )
    assert whole is not None
    assert {item.path.parent.name for item in whole.items} == {"test_set"}
    data = read(tmp_path, fold=1)
    assert folders_of(data)["test"] > {"train", "test_set"}
    assert data.notes == [
        "there are folds: folders named as splits (train, test, …) are not taken for splits"
    ]


@pytest.mark.parametrize(
    "beside", [{}, {"extra": 3}, {"extra/a": 3}, {"more/train/bell": 3, "more/test/bell": 3}]
)
def test_a_data_set_is_no_class(tmp_path: Path, beside: dict[str, int]) -> None:
    counts = {f"audio/{split}/{label}": 3 for label in CLASSES for split in ("train", "val")}
    put(tmp_path, {**counts, **beside})
    with pytest.raises(
        DataError,
        match=r"audio holds train/, val/, so that it seems to be a data set, .*: say data_dir=\S+audio, or",
    ):
        read(tmp_path)


def test_a_class_may_hold_other_folders(tmp_path: Path) -> None:
    put(tmp_path, {"bell/train": 8, "bell/car": 8, "horn/a": 8})  # no other split: a kind of bell
    assert read(tmp_path).notes == []
