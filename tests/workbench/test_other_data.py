"""A trained model measured on data of one's own: all of them, with the model's own statistics and class names."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tests_support import TINY

from tasks.datasets.base import DataError, DataModule
from workbench.errors import UsageError
from workbench.other_data import data_to_test
from workbench.restore import restore

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
Trained = Callable[..., Path]
DataOf = Callable[..., DataModule]

PITCHES = {"high": 0.5, "low": 0.05, "mid": 0.2}


def tones(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for index in range(start, start + count):
            wave = np.sin(np.arange(4000) * (PITCHES[label] + 0.001 * index)) * 0.3
            soundfile.write(root / label / f"{index}.wav", wave, 16000)
    return root


def table(path: Path, name: str, rows: int, start: str = "2024-01-01", level: float = 5.0) -> Path:
    dates = pd.date_range(start, periods=rows, freq="h")
    values = level + np.sin(np.arange(rows) / 24 * 2 * np.pi) + 0.1 * np.sin(np.arange(rows))
    pd.DataFrame({"date": dates, name: values}).to_csv(path, index=False)
    return path


def fit_in(composed: Compose, samples: Path, folder: Path, *words: str) -> Path:
    from workbench.actions import run_action

    small = ("callbacks=[]", "logger=[]", "action.test_after=false", "task.data.num_workers=0")
    run_action(composed(*TINY, *words, *small, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.fixture(scope="module")
def sounds(composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of three classes, and the folder it was trained on."""
    folder = tmp_path_factory.mktemp("sounds")
    data = tones(folder / "data", dict.fromkeys(PITCHES, 16))
    words = ("task=audio_folder", f"data_dir={data}", "task.data.seconds=0.25", "task.data.limit=40")
    return fit_in(
        composed, samples, folder / "fit", *words, "task.data.batch_size=8", "optimizer.lr=0.01"
    ), data


@pytest.fixture(scope="module")
def forecaster(
    composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("forecaster")
    data = table(folder / "data.csv", "kw", 600)
    words = ("modality=time_series", "task=csv_forecast", f"data_dir={data}", "task.data.look_back=28")
    return fit_in(composed, samples, folder / "fit", *words, "task.data.horizon=7"), data


@pytest.fixture
def measured(act: Act, caplog: pytest.LogCaptureFixture) -> Trained:
    """`measured(RUN, "data_dir=…")` tests that run there; what is said is in `caplog`."""

    def test(run: Path, *words: str) -> Path:
        caplog.set_level("INFO", "widefield")
        caplog.clear()
        return act("trainer=cpu", "action=test", f"ckpt={run}", "action.predictions=true", *words)

    return test


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())["metrics"]
    return content


@pytest.fixture
def data_of(composed: Compose, samples: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., DataModule]:
    """`data_of(RUN, "data_dir=…")`: the data that a test would run on; what is said is in `caplog`."""

    def read(run: Path, *words: str) -> DataModule:
        caplog.set_level("INFO", "widefield")
        caplog.clear()
        cfg = composed("trainer=cpu", "action=test", f"ckpt={run}", f"paths.samples={samples}", *words)
        OmegaConf.set_struct(cfg, True)
        return data_to_test(cfg, restore(cfg))

    return read


def test_all_of_another_folder_is_tested(
    sounds: tuple[Path, Path], measured: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tones(tmp_path / "other", {"low": 30, "mid": 25}, start=20)
    (other / "mid" / "20.wav").write_bytes(b"RIFF broken")
    caplog.set_level("INFO")
    folder = measured(sounds[0], f"data_dir={other}", "callbacks.broken_files.most=0.5")
    assert "all 55 files are tested; there is nothing of high, which it knows" in caplog.text
    rows = rows_of(folder)
    assert [row["error"] != "" for row in rows] == [False] * 54 + [True]
    good = rows[:-1]
    assert {Path(row["path"]).parent.name == row["label"] for row in good} == {True}
    assert [row["label"] for row in good] == ["low"] * 30 + ["mid"] * 24
    right = np.mean([row["label"] == row["prediction"] for row in good])
    assert result(folder)["test/acc"] == pytest.approx(right)
    for row in good:
        chances = {name: float(row[f"p({name})"]) for name in PITCHES}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert max(chances, key=lambda name: chances[name]) == row["prediction"]
        assert float(row["probability"]) == max(chances.values())
    counted = json.loads((folder / "test_report.json").read_text())["confusion"]
    assert [sum(row) for row in counted] == [0, 30, 24], "the model's own class order"


def test_a_folder_with_splits_is_tested_on_its_test_split(
    sounds: tuple[Path, Path], data_of: DataOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, count in (("train", 5), ("test", 4)):
        tones(tmp_path / "other" / split, {"low": count, "high": count})
    data = data_of(sounds[0], f"data_dir={tmp_path / 'other'}")
    assert "of 18 files the 8 of its test split are tested" in caplog.text
    assert {item.path.parts[-3] for item in data.splits["test"]} == {"test"}


def test_unknown_classes_are_refused_by_name(
    sounds: tuple[Path, Path], data_of: DataOf, tmp_path: Path
) -> None:
    other = tones(tmp_path / "other", {"low": 3, "high": 3})
    (other / "high").rename(other / "shrill")
    said = "other has classes that the model does not know: shrill; it knows high, low, mid"
    for split in ("auto", "all"):
        with pytest.raises(DataError, match=said):
            data_of(sounds[0], f"data_dir={other}", f"action.split={split}")


def test_the_training_data_are_tested_on_their_test_split(
    sounds: tuple[Path, Path], data_of: DataOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, data = sounds

    def names(root: Path, *words: str) -> list[str]:
        read = data_of(run, f"data_dir={root}", *words)
        return [str(item.path.relative_to(root)) for item in read.splits["test"]]

    before = names(data)
    assert 0 < len(before) < 15
    shutil.copytree(data, tmp_path / "moved")
    assert names(tmp_path / "moved") == before, "wherever they lie"
    assert "other data" not in caplog.text
    shutil.copy(data / "low" / "0.wav", tmp_path / "moved" / "low" / "99.wav")
    assert len(names(tmp_path / "moved")) == 49, "a copy with more in it is other data"
    trained_in = data / "low" / "another.wav"
    shutil.copy(data / "low" / "0.wav", trained_in)
    try:
        grown = names(data)
    finally:
        trained_in.unlink()
    assert "has changed since the model was trained on it" in caplog.text
    assert set(grown) - {"low/another.wav"} == set(before), "no training file is tested"
    assert len(names(data, "action.split=all")) == 48
    with pytest.raises(UsageError, match=r"action.split=most is none of auto, test, all"):
        names(data, "action.split=most")


def test_all_rows_of_another_series_are_tested(
    forecaster: tuple[Path, Path], measured: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = forecaster
    shorter = table(tmp_path / "shorter.csv", "kw", 80, start="2024-06-01", level=6.0)
    folder = measured(run, f"data_dir={shorter}")
    assert "all 80 rows are tested, 46 windows" in caplog.text
    rows = pd.read_csv(folder / "predictions.csv")
    assert len(rows) == 46 * 7
    assert rows["step"].tolist() == [1, 2, 3, 4, 5, 6, 7] * 46
    data_info = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["widefield"]["facts"]
    errors = (rows["kw forecast"] - rows["kw"]) / data_info["std"][0]
    assert result(folder)["test/mse"] == pytest.approx((errors**2).mean(), rel=1e-4)
    truth = pd.read_csv(shorter)["kw"].to_numpy()
    assert rows.loc[rows["step"] == 1, "kw"].to_numpy() == pytest.approx(truth[28:-6], rel=1e-5)
    assert rows["date"][0] == "2024-06-02 04:00:00"


def test_columns_rows_and_steps_of_another_series(
    forecaster: tuple[Path, Path], data_of: DataOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, trained_on = forecaster
    data_info = data_of(run, f"data_dir={trained_on}").info()
    assert "other data" not in caplog.text
    renamed = table(tmp_path / "renamed.csv", "power", 80, level=6.0)
    data = data_of(run, f"data_dir={renamed}")
    assert "its columns power are taken for kw" in caplog.text
    assert (data.info(), len(data.splits["test"])) == (data_info, 46)
    frame = pd.read_csv(renamed)
    more = frame.assign(kw=frame["power"] + 1)
    for name, rows, said in (
        ("short", frame[:20], "has 20 rows; a window of the model is 28 . 7 rows"),
        ("two", frame.assign(other=1.0), "has the columns power, other, the model forecasts kw"),
        ("daily", frame.assign(date=pd.date_range("2024-01-01", periods=80, freq="D")), "a step is D in"),
    ):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        with pytest.raises(DataError, match=said):
            data_of(run, f"data_dir={tmp_path / f'{name}.csv'}")
    more.to_csv(tmp_path / "more.csv", index=False)
    chosen: Any = data_of(run, f"data_dir={tmp_path / 'more.csv'}")
    assert chosen.values_TN[:, 0].numpy() == pytest.approx(more["kw"].to_numpy(), rel=1e-6), (
        "by name, not by place"
    )


def listed(root: Path, ending: str, labels: tuple[str, ...]) -> Path:
    for label in labels:
        (root / label).mkdir(parents=True)
        for index in range(12):
            (root / label / f"{index}{ending}").write_bytes(b"x")
    return root


@pytest.mark.parametrize(
    ("task", "modality", "ending"),
    [
        ("image_folder", "image", ".png"),
        ("point_folder", "point_cloud", ".ply"),
        ("video_folder", "video", ".mp4"),
        ("audio_folder", "audio", ".wav"),
    ],
)
def test_folders_of_every_modality_as_a_whole(
    task: str, modality: str, ending: str, composed: Compose, tmp_path: Path
) -> None:
    data_info = {"class_names": ["ant", "bee", "cow"], "multilabel": False}

    def whole(root: Path) -> tuple[list[Any], str]:
        data = instantiate(composed(f"modality={modality}", f"task={task}", f"data_dir={root}").task.data)
        found = data.read_whole(data_info)
        data.take_whole(found, data_info)
        assert data.info() == data_info
        assert f"{len(found.items)} test" in data.describe()
        return [(item.path.relative_to(root).parts, item.target) for item in data.splits["test"]], found.said

    items, said = whole(listed(tmp_path / "flat", ending, ("bee", "cow")))
    assert len(items) == 24
    assert {(parts[0], target) for parts, target in items} == {("bee", 1), ("cow", 2)}
    assert said == "all 24 files are tested; there is nothing of ant, which it knows"
    for split in ("train", "test"):
        listed(tmp_path / "split" / split, ending, ("ant", "cow"))
    items, said = whole(tmp_path / "split")
    assert {(parts[0], target) for parts, target in items} == {("test", 0), ("test", 2)}
    assert said.startswith("of 48 files the 24 of its test split are tested")
    with pytest.raises(DataError, match=r"does not know: dog, wasp; it knows ant, bee, cow"):
        whole(listed(tmp_path / "wrong", ending, ("ant", "dog", "wasp")))
    with pytest.raises(DataError, match=r"does not know: val"):
        whole(listed(tmp_path / "odd", ending, ("ant", "val")))


def test_tables_of_labels(composed: Compose, tmp_path: Path) -> None:
    root = listed(tmp_path, ".png", ("x", "y"))
    (root / "new.csv").write_text("path,label\nx/0.png,bee\ny/1.png,cow;ant\n")
    (root / "test.csv").write_text("path,label,split\nx/0.png,bee,train\ny/1.png,cow,test\n")
    words = ("modality=image", "task=image_folder", f"data_dir={root}")
    several = instantiate(composed(*words, "task.data.csv=new.csv", "task.data.multilabel=true").task.data)
    found = several.read_whole({"class_names": ["ant", "bee", "cow", "dog"], "multilabel": True})
    assert [item.target.tolist() for item in found.items] == [[0, 1, 0, 0], [1, 0, 1, 0]]
    stated = instantiate(composed(*words, "task.data.csv=test.csv").task.data)
    found = stated.read_whole({"class_names": ["bee", "cow"], "multilabel": False})
    assert [(item.path.name, item.target) for item in found.items] == [("1.png", 1)]


def test_the_sample_is_not_read_in_place_of_real_data(sounds: tuple[Path, Path], data_of: DataOf) -> None:
    said = r"was trained on real data, and without data_dir= the embedded sample is read: say data_dir=FOLDER"
    with pytest.raises(UsageError, match=said):
        data_of(sounds[0])
