"""A run goes on only with the data it was trained on, whatever they are of."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from omegaconf import DictConfig, OmegaConf
from tests_support import TINY

from workbench.members import resolved
from workbench.resume import _same_command, changed_data

Act = Callable[..., Path]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two classes of tones, each split in three."""
    root = tmp_path / "clips"
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for label, pitch in (("high", 0.5), ("low", 0.05)):
            (root / split / label).mkdir(parents=True)
            for index in range(count):
                wave = np.sin(np.arange(4000) * (pitch + 0.001 * index)) * 0.3
                soundfile.write(root / split / label / f"{index}.wav", wave, 16000)
    return root


def renamed_class(root: Path) -> None:
    for split in ("train", "val", "test"):
        (root / split / "high").rename(root / split / "shrill")


def one_more(root: Path) -> None:
    shutil.copy(root / "train" / "low" / "0.wav", root / "train" / "low" / "9.wav")


def swapped(root: Path) -> None:
    (root / "val" / "low" / "0.wav").rename(root / "val" / "low" / "other.wav")


CHANGES = {
    "class names: high gone, shrill new": renamed_class,
    "train had 16 samples, now 17": one_more,
    "as many samples as before, but others": swapped,
}


def test_changed_data_are_refused(
    act: Act, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (
        *TINY,
        "task=audio_folder",
        "task.data.num_workers=0",
        "task.data.seconds=0.25",
        "task.data.batch_size=8",
        "callbacks=[]",
        "logger=[]",
    )
    run = act(*words, f"data_dir={clips}")
    before = json.loads((run / "result.json").read_text())["metrics"]
    for number, (said, change) in enumerate(CHANGES.items()):
        moved = tmp_path / f"moved{number}"
        shutil.copytree(clips, moved)
        if not number:
            assert act(*words, f"data_dir={moved}", f"resume={run}") == run, (
                "elsewhere, but the same: tested again"
            )
            assert json.loads((run / "result.json").read_text())["metrics"] == before
        change(moved)
        with pytest.raises(SystemExit) as stopped:
            act(*words, f"data_dir={moved}", f"resume={run}")
        assert stopped.value.code == 1
        message = caplog.records[-1].getMessage()
        assert f"resume={run}: the data are not those the run was trained on: " in message
        assert said in message


def folder_of(ending: str) -> Callable[[Path], None]:
    """Files that are listed, not read."""

    def fill(root: Path) -> None:
        for label in ("ant", "bee"):
            (root / label).mkdir(parents=True)
            for index in range(40):
                (root / label / f"{index}{ending}").write_bytes(b"x")

    return fill


def series(root: Path) -> None:
    root.mkdir()
    dates = pd.date_range("2024-01-01", periods=400, freq="h")
    pd.DataFrame({"date": dates, "load": np.sin(np.arange(400) / 4)}).to_csv(root / "load.csv", index=False)


def _other_class(root: Path) -> None:
    (root / "bee").rename(root / "wasp")


def _one_row_less(root: Path) -> None:
    file = root / "load.csv"
    file.write_text("\n".join(file.read_text().strip().split("\n")[:-5]) + "\n")


def _other_value(root: Path) -> None:
    table = pd.read_csv(root / "load.csv")
    table.iloc[-1, -1] += 1  # of the test split: no statistic changes
    table.to_csv(root / "load.csv", index=False)


SERIES = ("modality=time_series", "task=csv_forecast")


@pytest.mark.parametrize(
    ("words", "fill", "change", "said"),
    [
        (
            ("modality=image", "task=image_folder"),
            folder_of(".png"),
            _other_class,
            "class names: bee gone, wasp new",
        ),
        (("modality=video", "task=video_folder"), folder_of(".mp4"), _other_class, "class names: bee gone"),
        (
            ("modality=point_cloud", "task=point_folder"),
            folder_of(".ply"),
            _other_class,
            "class names: bee gone",
        ),
        (SERIES, series, _one_row_less, "samples, now"),
        (SERIES, series, _other_value, "as many samples as before, but others"),
    ],
)
def test_changes_are_seen_in_every_modality(
    words: tuple[str, ...],
    fill: Callable[[Path], None],
    change: Callable[[Path], None],
    said: str,
    composed: Callable[..., DictConfig],
    tmp_path: Path,
) -> None:
    from workbench.build import build_data

    root = tmp_path / "data"
    fill(root)

    def read() -> tuple[dict[str, Any], dict[str, Any]]:
        data = build_data(composed(*words, f"data_dir={root}"))
        return data.info(), data.record()

    data_info, record = read()
    json.dumps(record, allow_nan=False)
    assert changed_data(data_info, data_info, record, read()[1]) == []
    change(root)
    now = read()
    assert any(said in sentence for sentence in changed_data(data_info, now[0], record, now[1]))


def test_runs_of_an_earlier_version_go_on(composed: Callable[..., DictConfig]) -> None:
    from workbench.errors import UsageError

    words = ("modality=image", "task=cifar10", "resume=x")
    now = composed(*words)
    old = OmegaConf.create(OmegaConf.to_container(resolved(now)))
    del old.task.data.limit, old["freeze"]
    _same_command(now, old)
    for word, said in (
        ("seed=1", "seed was 0"),
        ("+modality.augment.raw._target_=x", "augment.raw._target_ was None"),
    ):
        with pytest.raises(UsageError, match=said):
            _same_command(composed(*words, word), old)
    del old.scheduler
    old.scheduler = None
    with pytest.raises(UsageError, match="scheduler"):
        _same_command(now, old)
    data_info, record = {"classes": 2}, {"source": "real", "samples": {"train": 3}, "digest": "x"}
    assert changed_data(data_info, data_info | {"later": 1}, {"source": "real"}, record) == []
    assert changed_data(data_info, data_info, {"source": "real", "digest": "y"}, record)


def test_what_is_said_now_is_compared_with_an_earlier_version(composed: Callable[..., DictConfig]) -> None:
    from workbench.errors import UsageError
    from workbench.overrides import recorded

    now = composed("modality=image", "task=cifar10", "resume=x", "task.data.limit=5")
    old = OmegaConf.create(OmegaConf.to_container(resolved(now)))
    del old.task.data.limit
    _same_command(recorded(now, ["modality=image"]), old)
    recorded(now, ["modality=image", "task.data.limit=5"])
    with pytest.raises(UsageError, match="limit was None, now 5"):
        _same_command(now, old)


def test_a_changed_member_of_a_joint_run_is_named(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    from workbench.build import build_all_data
    from workbench.errors import UsageError
    from workbench.resume import Resumed, same_data

    folder_of(".wav")(tmp_path / "sounds")
    series(tmp_path / "table")
    cfg = composed(
        "experiment=joint/four_modalities",
        "task@task.members.audio.task=audio_folder",
        "task@task.members.time_series.task=csv_forecast",
        *("~task.members.point_cloud", "~task.members.video", "resume=RUN"),
        f"task.members.audio.data_dir={tmp_path / 'sounds'}",
        f"task.members.time_series.data_dir={tmp_path / 'table'}",
    )
    data = build_all_data(cfg)
    run = Resumed("last.ckpt", {"facts": data.info(), "trained_on": data.record()}, epochs=1, planned=2)
    same_data(cfg, data, run)
    _other_class(tmp_path / "sounds")
    with pytest.raises(
        UsageError, match=r"resume=RUN: the data of audio .*: class names: bee gone, wasp new"
    ):
        same_data(cfg, build_all_data(cfg), run)


EMA = ("callbacks=[default,ema]",)


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ((), ("trainer.gradient_clip_val=0.1",), "trainer.gradient_clip_val was 5.0, now 0.1"),
        ((), ("trainer.limit_train_batches=3",), "trainer.limit_train_batches was 1.0, now 3"),
        ((), ("+trainer.overfit_batches=1",), "trainer.overfit_batches was None, now 1"),
        ((), EMA, "callbacks.ema._target_ was None"),
        (EMA, (*EMA, "callbacks.ema.decay=0.5"), "callbacks.ema.decay was 0.999, now 0.5"),
        (EMA, ("callbacks=[default]",), "callbacks.ema._target_ was workbench"),
    ],
)
def test_settings_that_change_the_weights_are_refused(
    composed: Callable[..., DictConfig], first: tuple[str, ...], then: tuple[str, ...], said: str
) -> None:
    from workbench.errors import UsageError

    words = ("modality=image", "task=cifar10", "resume=x")
    old = OmegaConf.create(OmegaConf.to_container(resolved(composed(*words, *first))))
    with pytest.raises(UsageError, match=said):
        _same_command(composed(*words, *then), old)


def test_settings_of_where_and_what_is_shown_may_change(composed: Callable[..., DictConfig]) -> None:
    words = ("modality=image", "task=cifar10", "resume=x")
    old = OmegaConf.create(OmegaConf.to_container(resolved(composed(*words))))
    free = (
        "trainer.devices=2",
        "trainer.log_every_n_steps=3",
        "callbacks=[]",
        "trainer.check_val_every_n_epoch=2",
    )
    _same_command(composed(*words, *free), old)
