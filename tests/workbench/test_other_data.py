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
from omegaconf import DictConfig
from tests_support import TINY

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
Trained = Callable[..., Path]

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
    return fit_in(composed, samples, folder / "fit", *words, "task.data.batch_size=8", "optimizer.lr=0.01"), data


@pytest.fixture(scope="module")
def forecaster(composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
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


def refused(measured: Trained, caplog: pytest.LogCaptureFixture, run: Path, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        measured(run, *words)
    assert stopped.value.code == 1
    return caplog.records[-1].getMessage()


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
    sounds: tuple[Path, Path], measured: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, count in (("train", 5), ("test", 4)):
        tones(tmp_path / "other" / split, {"low": count, "high": count})
    folder = measured(sounds[0], f"data_dir={tmp_path / 'other'}")
    assert "of 18 files the 8 of its test split are tested" in caplog.text
    assert {Path(row["path"]).parts[-3] for row in rows_of(folder)} == {"test"}


def test_unknown_classes_are_refused_by_name(
    sounds: tuple[Path, Path], measured: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tones(tmp_path / "other", {"low": 3, "high": 3})
    (other / "high").rename(other / "shrill")
    said = refused(measured, caplog, sounds[0], f"data_dir={other}")
    assert f"{other} has classes that the model does not know: shrill; it knows high, low, mid" in said


def test_the_training_data_are_tested_on_their_test_split(
    sounds: tuple[Path, Path], measured: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, data = sounds
    before = rows_of(measured(run, f"data_dir={data}"))
    assert 0 < len(before) < 15
    assert "other data" not in caplog.text
    shutil.copytree(data, tmp_path / "moved")
    moved = rows_of(measured(run, f"data_dir={tmp_path / 'moved'}"))
    assert [row["p(low)"] for row in moved] == [row["p(low)"] for row in before], "wherever they lie"
    extra = data / "low" / "another.wav"
    shutil.copy(data / "low" / "0.wav", extra)
    try:
        grown = rows_of(measured(run, f"data_dir={data}", "action.split=auto"))
    finally:
        extra.unlink()
    assert "has changed since the model was trained on it" in caplog.text
    assert len(grown) - len(before) in (0, 1), "no training file is tested"
    everything = rows_of(measured(run, f"data_dir={data}", "action.split=all"))
    assert len(everything) == 48


def test_all_rows_of_another_series_are_tested(
    forecaster: tuple[Path, Path], measured: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, data = forecaster
    shorter = table(tmp_path / "shorter.csv", "kw", 80, start="2024-06-01", level=6.0)
    folder = measured(run, f"data_dir={shorter}")
    assert "all 80 rows are tested, 46 windows" in caplog.text
    rows = pd.read_csv(folder / "predictions.csv")
    assert len(rows) == 46 * 7
    assert rows["step"].tolist() == [1, 2, 3, 4, 5, 6, 7] * 46
    facts = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["widefield"]["facts"]
    errors = (rows["kw forecast"] - rows["kw"]) / facts["std"][0]
    assert result(folder)["test/mse"] == pytest.approx((errors**2).mean(), rel=1e-4)
    truth = pd.read_csv(shorter)
    assert rows.loc[rows["step"] == 1, "kw"].to_numpy() == pytest.approx(truth["kw"][28:-6].to_numpy(), rel=1e-5)
    assert rows["date"][0] == "2024-06-02 04:00:00"
    renamed = table(tmp_path / "renamed.csv", "power", 80, start="2024-06-01", level=6.0)
    again = measured(run, f"data_dir={renamed}")
    assert "its columns power are taken for kw" in caplog.text
    assert result(again) == result(folder)
    assert len(pd.read_csv(measured(run, f"data_dir={data}") / "predictions.csv")) < 7 * 130, "the test split"
    table(tmp_path / "short.csv", "kw", 20)
    assert "has 20 rows; a window" in refused(measured, caplog, run, f"data_dir={tmp_path / 'short.csv'}")
    pd.read_csv(shorter).assign(more=1.0).rename(columns={"kw": "x"}).to_csv(tmp_path / "two.csv", index=False)
    said = refused(measured, caplog, run, f"data_dir={tmp_path / 'two.csv'}")
    assert "has the columns x, more, the model forecasts kw" in said
    daily = pd.read_csv(shorter)
    daily["date"] = pd.date_range("2024-01-01", periods=80, freq="D")
    daily.to_csv(tmp_path / "daily.csv", index=False)
    said = refused(measured, caplog, run, f"data_dir={tmp_path / 'daily.csv'}")
    assert "a step is D in" in said


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
    from hydra.utils import instantiate

    from tasks.datasets.base import DataError

    facts = {"class_names": ["ant", "bee", "cow"], "multilabel": False}

    def whole(root: Path) -> tuple[list[Any], str]:
        data = instantiate(composed(f"modality={modality}", f"task={task}", f"data_dir={root}").task.data)
        found = data.read_whole(facts)
        data.take_whole(found, facts)
        assert data.facts() == facts
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
    from hydra.utils import instantiate

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
