"""What a continued run measures: epochs count as a whole, and the last validation is not forgotten."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests_support import TINY

Act = Callable[..., Path]

SHORT = (
    *TINY,
    "task.data.batch_size=4",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.max_epochs=2",
    "callbacks=[]",
    "logger=csv",
)
AUDIO = (*SHORT, "task=audio_folder")
SERIES = (*SHORT, "modality=time_series", "task=csv_forecast")
JOINT = (
    *TINY,
    "experiment=joint/four_modalities",
    "task@task.members.audio.task=audio_folder",
    *("~task.members.point_cloud", "~task.members.video"),
    *("task.data.limit=12", "task.data.batch_size=4", "trainer.max_epochs=2", "callbacks=[]", "logger=csv"),
)


def stop(epoch: int, batch: int) -> str:
    return (
        f"+callbacks.stop={{_target_: callbacks_support.StopAt, epoch: {epoch}, batch: {batch}, "
        "hook: on_train_batch_start}"
    )


def stopped_and_continued(act: Act, words: tuple[str, ...], *where: str) -> Path:
    with pytest.raises(SystemExit) as stopped:
        act(*words, *where, folder="stopped")
    assert stopped.value.code == 128 + signal.SIGTERM
    return act(*words, "resume=stopped", folder="stopped")


def result(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())["metrics"]
    return content


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(AUDIO, marks=pytest.mark.slow, id="classes"),
        pytest.param(SERIES, marks=pytest.mark.slow, id="series"),
        pytest.param(JOINT, marks=pytest.mark.slow, id="joint"),
        pytest.param(
            (*AUDIO, "task.data.csv=labels.csv", "task.data.multilabel=true", "task/loss=bce"),
            marks=pytest.mark.slow,
            id="several labels",
        ),
    ],
)
def test_an_epoch_continued_in_its_middle_counts_as_a_whole(
    act: Act, words: tuple[str, ...], tmp_path: Path, samples: Path
) -> None:
    if "task.data.multilabel=true" in words:
        words = (*words, f"data_dir={tmp_path / 'data'}", "task.data.num_workers=0")
        tagged(act, samples, tmp_path / "data")
    whole = act(*words, folder="whole")
    continued = stopped_and_continued(act, words, stop(1, 2))
    table, other = (pd.read_csv(run / "metrics.csv") for run in (whole, continued))
    assert other["epoch"].tolist() == [0, 1]
    pd.testing.assert_frame_equal(other, table, check_exact=True)
    assert result(continued) == result(whole)


def tagged(act: Act, samples: Path, root: Path) -> None:
    """The embedded sample's files with one or two labels each."""
    if not (samples / "audio_folder").is_dir():
        act(*TINY, "action=info", "task=audio_folder", folder="info")
    shutil.copytree(samples / "audio_folder", root)
    files = sorted(root.rglob("*.wav"))
    lines = [
        f"{file.relative_to(root)},{file.parent.name}{';often' if number % 3 else ''}"
        for number, file in enumerate(files)
    ]
    (root / "labels.csv").write_text("path,label\n" + "\n".join(lines) + "\n")


def test_the_last_validation_is_kept(act: Act) -> None:
    words = (*AUDIO, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", "~callbacks.best")
    whole = act(*words, folder="whole")
    continued = stopped_and_continued(act, words, stop(2, 1))
    stored = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["widefield"]
        for run in (whole, continued)
    ]
    assert {"val/acc", "val/loss"} <= stored[0]["validated"].keys()
    for key in ("validated", "validated_step"):
        assert stored[1][key] == stored[0][key]
    assert result(continued) == result(whole)
    assert not any(name.startswith("val/") for name in result(whole)), "those of earlier weights"
    table, other = (pd.read_csv(run / "metrics.csv") for run in (whole, continued))
    pd.testing.assert_frame_equal(other, table, check_exact=True)
