"""Runs from shards: written by the action, trained on as on files, stopped and continued in the middle of an epoch."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from tests_support import TINY, weights

from workbench.build import build_data
from workbench.errors import UsageError
from workbench.shard import shard

Act = Callable[..., Path]

RUN = (*TINY, "task=audio_folder", "trainer.max_epochs=2", "task.data.num_workers=0", "logger=csv")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_from_shards_is_the_run_from_files(
    act: Act, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unmixed shards and a buffer that holds all: the same samples in the same order, down to the last bit."""
    shards = tmp_path / "shards"
    act(
        "task=audio_folder",
        "action=shard",
        f"action.out={shards}",
        "action.shard_samples=40",
        "action.shuffle=false",
    )
    said = capsys.readouterr().out
    assert f"task=audio_folder task.data.format=webdataset data_dir={shards}" in said.replace("\n", " ")
    assert len(list(shards.glob("train-*.tar"))) > 3
    files = act(*RUN, folder="files")
    from_shards = act(*RUN, "task.data.format=webdataset", f"data_dir={shards}", folder="from_shards")
    assert same(files, from_shards)
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (files, from_shards))
    assert theirs["metrics"] == ours["metrics"]
    assert theirs["data"] == {"source": "full", "data_dir": str(shards)}


def test_stopped_in_the_middle_of_an_epoch_and_continued(act: Act) -> None:
    """A buffer of a tenth of the training split, two reader processes after the restart and none before."""
    words = (*RUN, "task.data.format=webdataset", "task.data.shards.buffer=30", "task.data.batch_size=8")
    whole = act(*words, folder="whole")
    stop = "+callbacks.stop={_target_: callbacks_support.StopAt, epoch: 1, batch: 13}"
    with pytest.raises(SystemExit) as stopped:
        act(*words, stop, folder="stopped")
    assert stopped.value.code == 143
    run = whole.with_name("stopped")
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 36 + 14
    assert not (run / "result.json").exists()
    assert act(*words, "task.data.num_workers=2", f"resume={run}", folder="stopped") == run
    assert same(whole, run)
    assert pd.read_csv(run / "metrics.csv")["epoch"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "action=shard needs action.out=FOLDER, or an address"),
        (("action.out=x", "action.shard_mb=0"), "action.shard_mb must be above 0"),
        (
            ("action.out=x", "task.data.format=webdataset"),
            "action=shard reads files: leave task.data.format out",
        ),
        (
            ("action.out=x", "modality=time_series"),
            "pictures with classes, masks or boxes, not etth1",
        ),
    ],
)
def test_wrong_commands_get_one_sentence(
    composed: Callable[..., DictConfig], samples: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    task = () if "modality=time_series" in words else ("task=audio_folder",)
    cfg = composed(*task, "action=shard", *words, f"paths.samples={samples}", f"paths.run={tmp_path}")
    with pytest.raises(UsageError, match=message):
        shard(cfg)


def test_a_broken_shard_ends_a_run_with_one_sentence(
    act: Act, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = tmp_path / "shards"
    act("task=audio_folder", "action=shard", f"action.out={shards}", "action.shard_samples=40")
    path = shards / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit):
        act(*RUN, "task.data.format=webdataset", f"data_dir={shards}", folder="broken")
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith(f"error: the shard {path} has 1,000 bytes instead of ")
    assert "\n" not in said


def test_what_decided_the_splits_must_be_repeated(
    act: Act, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Else five folds could be trained from the shards of one."""
    shards = tmp_path / "shards"
    act("task=esc50", "action=shard", f"action.out={shards}", "task.data.fold=2")
    assert "task=esc50 task.data.format=webdataset" in (said := capsys.readouterr().out.replace("\n", " "))
    assert said.rstrip().endswith("task.data.fold=2")
    info = ("action=info", "task=esc50", "task.data.format=webdataset", f"data_dir={shards}")
    act(*info, "task.data.fold=2", "task.data.batch_size=7", "task.data.test_crops=3")
    with pytest.raises(SystemExit):
        act(*info, "task.data.fold=3")
    message = f"error: {shards} was written with fold=2 (not 3): add task.data.fold=2, or write other shards"
    assert caplog.records[-1].getMessage() == message
    joint = (
        "action=info",
        "experiment=joint/four_modalities",
        "task@task.members.audio.task=esc50",
        "task.members.audio.task.data.format=webdataset",
        f"task.members.audio.data_dir={shards}",
    )
    with pytest.raises(SystemExit):
        act(*joint, *(f"~task.members.{name}" for name in ("time_series", "point_cloud", "video")))
    message = message.replace("not 3", "not 1").replace("add task.", "add task.members.audio.task.")
    assert caplog.records[-1].getMessage() == message


def test_pictures_with_masks_go_into_shards_and_back(
    act: Act,
    composed: Callable[..., DictConfig],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards = tmp_path / "shards"
    act("modality=image", "task=ade20k", "task.data.val_part=0.2", "action=shard", f"action.out={shards}")
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"task=ade20k task.data.format=webdataset data_dir={shards} task.data.val_part=0.2" in said
    words = ("modality=image", "task=ade20k", "task.data.format=webdataset", f"data_dir={shards}")
    read = build_data(composed(*words, "task.data.val_part=0.2", f"paths.samples={samples}"))
    files = build_data(composed(*words[:2], "task.data.val_part=0.2", f"paths.samples={samples}"))
    assert {split: len(items) for split, items in read.splits.items()} == {
        split: len(items) for split, items in files.splits.items()
    }
    assert read.info() == files.info()
    assert read.drawn == ["ADE20K"]
    with pytest.raises(UsageError, match=r"was written with val_part=0\.2 \(not 0\.01\)"):
        build_data(composed(*words, f"paths.samples={samples}"))


@pytest.mark.slow
def test_segmentation_from_shards_is_segmentation_from_files(act: Act, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    task = ("modality=image", "task=camvid")
    act(*task, "action=shard", f"action.out={shards}", "action.shuffle=false")
    small = ("task.data.batch_size=4", "task.data.transforms.size=64", "task.head.channels=8", "logger=csv")
    words = (*TINY, *task, *small, "trainer.max_epochs=1")
    files = act(*words, folder="files")
    from_shards = act(*words, "task.data.format=webdataset", f"data_dir={shards}", folder="from_shards")
    assert same(files, from_shards)
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (files, from_shards))
    assert theirs["metrics"] == ours["metrics"]
