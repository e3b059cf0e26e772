"""debug=fast ends for every kind of experiment, debug=profile shows where the time went."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import TINY

Act = Callable[..., Path]
MEMBERS = ("task@task.members.audio.task=audio_folder", "~task.members.point_cloud", "~task.members.video")


def test_fast_measures_every_member_of_a_joint_run(act: Act) -> None:
    run = act(*TINY, "experiment=joint/four_modalities", *MEMBERS, "debug=fast")
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    for name in (
        "val/score",
        "val/audio/acc",
        "val/time_series/mse",
        "test/audio/acc",
        "test/time_series/mse",
    ):
        assert metrics[name] is not None, name


@pytest.mark.parametrize(
    "experiment",
    [
        "audio/esc50_s",
        pytest.param("image/cifar10_a", marks=pytest.mark.slow),
        "time_series/etth1_96",
        pytest.param("point_cloud/scanobjectnn_s", marks=pytest.mark.slow),
    ],
)
def test_fast_ends_with_a_result(act: Act, experiment: str) -> None:
    run = act(*TINY, f"experiment={experiment}", "backbone.pretrained=null", "debug=fast")
    assert json.loads((run / "result.json").read_text())["best"] is not None


def test_profile_prints_its_table(act: Act, capsys: pytest.CaptureFixture[str]) -> None:
    act(*TINY, "task=audio_folder", "debug=profile")
    said = capsys.readouterr().out
    for words in ("Where the time went", "ms each", "run_training_epoch", "training_step", "save_checkpoint"):
        assert words in said
    assert "[Callback]" not in said
