"""A joint run from end to end: what it leaves, and that each member goes on as an ordinary checkpoint."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from figures_support import is_drawn, rendered
from omegaconf import DictConfig, OmegaConf
from tests_support import TINY, weights

from tasks.joint import JointTask
from workbench.members import matching, member_cfg, resolved

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
TWO = (
    *TINY,
    "experiment=joint/four_modalities",
    "task@task.members.audio.task=audio_folder",
    "~task.members.point_cloud",
    "~task.members.video",
)
SMALL = (*TWO, "task.data.limit=12", "task.data.batch_size=4", "logger=csv", "trainer.max_epochs=2")


def run_in(composed: Compose, samples: Path, folder: Path, *words: str) -> Path:
    from workbench.actions import run_action

    run_action(composed(*words, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.fixture(scope="module")
def run(composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with rendered():
        return run_in(composed, samples, tmp_path_factory.mktemp("runs") / "joint", *SMALL)


def result_of(run: Path) -> dict:  # type: ignore[type-arg]
    content: dict = json.loads((run / "result.json").read_text())  # type: ignore[type-arg]
    return content


def test_what_a_joint_run_leaves(run: Path) -> None:
    files = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert files >= {
        "config.yaml",
        "result.json",
        "metrics.csv",
        "test_report.json",
        "checkpoints/best.ckpt",
        "figures/curves.png",
        "figures/audio/inputs.png",
        "figures/audio/confusion.png",
        "figures/time_series/inputs.png",
        "figures/time_series/forecasts.png",
    }
    assert all(is_drawn(file) for file in (run / "figures").rglob("*.png"))
    result = result_of(run)
    assert (result["modality"], result["task"], result["monitor"]) == (
        "joint",
        "four_modalities",
        "val/score",
    )
    assert result["data"]["source"] == "sample"
    metrics = result["metrics"]
    assert {"test/audio/acc", "test/time_series/mse", "test/score", "test/loss", "val/score"} <= set(metrics)
    score = (metrics["test/audio/acc"] + 1 - metrics["test/time_series/mse"]) / 2
    assert metrics["test/score"] == pytest.approx(score, abs=1e-6)
    history = pd.read_csv(run / "metrics.csv")
    assert history["epoch"].tolist() == [0, 1]
    assert {"train/loss", "train/audio/acc", "val/time_series/mse", "val/score"} <= set(history)
    report = json.loads((run / "test_report.json").read_text())
    assert "confusion" in report["audio"]
    assert len(report["time_series"]["forecasts"]) == 4


def test_info_counts_what_is_shared_once(act: Act, capsys: pytest.CaptureFixture[str], run: Path) -> None:
    act(*SMALL, "action=info", folder="info")
    shown = capsys.readouterr().out
    together, alone = re.findall(r"(\d\.\d+) M parameters; as 2 networks it would be (\d\.\d+) M", shown)[0]
    assert float(together) * 1e6 == pytest.approx(result_of(run)["params"], abs=1e4)
    assert float(together) < float(alone)
    assert "7×6×8×24" in shown


def test_config_is_resolved_as_each_member_means_it(run: Path, composed: Compose, samples: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    members = config.task.members
    assert "${" not in (run / "config.yaml").read_text()
    assert members.audio.modality.embedder.seconds == members.audio.task.data.seconds
    assert members.audio.task.data.name == "audio_folder"
    assert members.time_series.task.data.batch_size == 4
    cfg = composed(*TWO, "task.members.audio.task.data.seconds=0.5", "paths.run=nowhere")
    assert resolved(cfg).task.members.audio.modality.embedder.seconds == 0.5
    alone = composed(*TINY, "modality=time_series", "task=etth1", "paths.run=nowhere")
    own = member_cfg(cfg, "time_series")
    for group in ("modality", "task"):
        assert OmegaConf.to_container(own[group], resolve=True) == OmegaConf.to_container(
            alone[group], resolve=True
        )


def test_members_share_the_stages_and_keep_their_stems(run: Path) -> None:
    state = weights(run)
    audio, series = ("members.audio.network.backbone.", "members.time_series.network.backbone.")
    linear = "stages.2.0.pwconv1.1.weight"
    assert state[audio + linear].data_ptr() == state[series + linear].data_ptr()
    assert not torch.equal(state[audio + "stages.2.0.norm.weight"], state[series + "stages.2.0.norm.weight"])
    assert state[audio + "downsample_layers.0.0.weight"].shape[1] == 1
    assert state[series + "downsample_layers.0.0.weight"].shape[1] == 6


def test_tested_again_whole_and_by_member(run: Path, act: Act) -> None:
    before = result_of(run)["metrics"]
    best = f"ckpt={run}"
    whole = result_of(act(*SMALL, "action=test", best, folder="whole"))["metrics"]
    for name in ("test/audio/acc", "test/time_series/mse", "test/score"):
        assert whole[name] == pytest.approx(before[name], rel=1e-5)
    words = ("trainer=cpu", "action=test", "modality=time_series", "task=etth1")
    part = result_of(act(*words, best, folder="part"))
    assert (part["modality"], part["task"]) == ("time_series", "etth1")
    assert part["metrics"]["test/mse"] == pytest.approx(before["test/time_series/mse"], rel=1e-5)
    assert part["checkpoint"].endswith("best.ckpt@time_series")


def test_predict_and_export_a_member(run: Path, act: Act, samples: Path) -> None:
    clips = sorted((samples / "audio_folder").rglob("*.wav"))[:3]
    words = ("trainer=cpu", "task=audio_folder", f"ckpt={run}")
    folder = act(*words, "action=predict", f"input={clips[0].parent}", folder="predict")
    table = pd.read_csv(folder / "predictions.csv")
    assert table["probability"].between(0, 1).all()
    folder = (
        act("trainer=cpu", f"ckpt={run}@time_series", "action=export", "action.formats=[torch_export]")
        / "export"
    )
    about = json.loads((folder / "model.json").read_text())
    assert about["task"] == "etth1"
    assert about["checkpoint"].endswith("best.ckpt@time_series")
    program = torch.export.load(folder / "model.pt2").module()
    raw = {key: torch.randn(3, *shape[1:]) for key, shape in about["input"].items()}
    assert program(raw).shape == (3, *about["output"][1:])


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_fine_tuning_from_a_member(run: Path, act: Act) -> None:
    words = (*TINY, "task=audio_folder", "task.data.limit=12", "optimizer.lr=0", f"init_from={run}")
    tuned = act(*words, folder="same")
    taken = json.loads((tuned / "init_from.json").read_text())
    assert (taken["part"], taken["task"]) == ("audio", "audio_folder")
    assert "linear.weight" in taken["head"]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name in ("backbone.stages.3.0.norm.weight", "head.linear.weight", "embedder.normalize.mean"):
        assert torch.equal(weights(tuned)[f"network.{name}"], best[f"members.audio.network.{name}"])
    image = (*TINY, "modality=image", "task.data.transforms.size=32", "task.data.limit=8", "freeze=all")
    other = act(*image, f"init_from={run}@time_series", folder="other")
    taken = json.loads((other / "init_from.json").read_text())
    assert taken["backbone"]["adapted"] == ["downsample_layers.0.0.weight (6 -> 3 input channels)"]
    assert taken["head"] == []


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        (("task.batch_norm=shared", "task.stem=shared", "task.weighting=uncertainty"), True),
        (("task.data.sampling=round_robin", "task.data.steps_per_epoch=3", "freeze=stages.0-2"), False),
    ],
)
def test_other_ways_to_share(settings: tuple[str, ...], same: bool, act: Act) -> None:
    made = act(*SMALL, *settings)
    state = weights(made)
    audio, series = ("members.audio.network.backbone.", "members.time_series.network.backbone.")
    norm = "stages.2.0.norm.running_mean"
    assert (state[audio + norm].data_ptr() == state[series + norm].data_ptr()) == same
    history = pd.read_csv(made / "metrics.csv")
    assert ("train/audio/weight" in history) == same
    if same:
        assert state[audio + "downsample_layers.0.0.adapter"].shape == (3, 1)
        again = act("trainer=cpu", "action=test", "task=audio_folder", f"ckpt={made}", folder="part")
        assert result_of(again)["metrics"]["test/acc"] == result_of(made)["metrics"]["test/audio/acc"]
    else:
        assert history["step"].tolist() == [2, 5]


def test_stopped_in_the_middle_and_continued(
    run: Path, act: Act, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(self: JointTask, outputs: object, batch: object, batch_idx: int) -> None:
        if self.trainer.global_step == 8:  # of 2 × 6, the second of the second epoch
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JointTask, "on_train_batch_end", stop)
    with pytest.raises(SystemExit) as stopped:
        act(*SMALL, folder="stopped")
    assert stopped.value.code == 128 + signal.SIGINT
    monkeypatch.undo()
    (folder,) = re.findall(r"resume=(\S+)", caplog.text)
    act(*SMALL, f"resume={folder}", folder="stopped")
    whole, continued = weights(run), weights(Path(folder))
    assert not [name for name in whole if not torch.equal(whole[name], continued[name])]
    assert result_of(run)["metrics"] == result_of(Path(folder))["metrics"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("task.batch_norm=none",), "task.batch_norm must be one of per_modality, shared, not none"),
        (("task.stem=both",), "task.stem must be one of per_modality, shared"),
        (("task.weighting=learnt",), "task.weighting must be one of fixed, uncertainty, not learnt"),
        (("task.data.sampling=any",), "task.data.sampling must be one of round_robin, proportional"),
        (("task.data.steps_per_epoch=1",), "an epoch of 1 steps is too short for 2 tasks"),
        (("task.members.audio.weight=0",), "the weight of a task must be positive"),
        (("data_dir=x",), "say task.members.audio.data_dir=PATH"),
        (("task.members.audio.data_dir=/none",), "/none does not exist; audio_folder expects"),
        (
            ("task@task.members.audio.task=cifar10",),
            "task.members.audio: task cifar10 reads image, not audio",
        ),
        (("trainer.strategy=ddp",), "trainer.strategy=ddp_find_unused_parameters_true"),
        (("init_from=x", "task.stem=shared"), "it goes with task.stem=per_modality"),
        (("action=predict", "ckpt={run}"), "holds several tasks: say task=audio_folder or task=etth1"),
        (("action=probe_erf",), "is about one task"),
    ],
)
def test_wrong_input_gets_one_sentence(
    words: tuple[str, ...], said: str, run: Path, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        act(*SMALL, *(word.format(run=run) for word in words))
    (error,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("task=esc50", "ckpt={run}"),
            "does not hold esc50: it holds audio (audio_folder), time_series (etth1)",
        ),
        (("ckpt={run}@video",), "has no part video: it holds"),
    ],
)
def test_a_part_that_is_not_there(
    words: tuple[str, ...], said: str, run: Path, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        act("trainer=cpu", "action=export", *(word.format(run=run) for word in words))
    assert said in caplog.text


def test_a_part_must_be_named(
    command: Callable[..., subprocess.CompletedProcess[str]], run: Path, tmp_path: Path
) -> None:
    done = command(tmp_path, "action=predict", f"ckpt={run}", "input=x.wav")
    assert done.returncode == 1
    assert "holds several tasks: say task=audio_folder or task=etth1" in done.stdout + done.stderr


def test_a_part_by_task_or_by_the_only_one_of_its_modality() -> None:
    parts = {"a": ("fsdd", "audio"), "b": ("esc50", "audio"), "c": ("etth1", "time_series")}
    members = {
        key: {"task": {"name": task}, "modality": {"name": kind}} for key, (task, kind) in parts.items()
    }
    assert matching(members, "esc50", None) == "b"
    assert matching(members, "ili", "time_series") == "c"
    assert matching(members, "ili", None) is None
    assert matching(members, "speech_commands", "audio") is None, "two could be meant"
