"""`ckpt=RUN`: the run's modality and task are taken along, so that their settings can be said."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.checkpoint_words import with_groups_of_checkpoint

CONFIG = "seed: 0\nmodality:\n  name: {}\ntask:\n  name: {}\n  data: ${{data_dir}}\n"


def run_of(folder: Path, modality: str = "image", task: str = "mask_folder") -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"")
    (folder / "config.yaml").write_text(CONFIG.format(modality, task))
    return folder


@pytest.mark.parametrize("name", ["run", "run/checkpoints/best.ckpt"])
def test_groups_of_a_run(name: str, tmp_path: Path) -> None:
    run_of(tmp_path / "run")
    words = ["action=test", f"ckpt={tmp_path / name}", "task.model.inference.flip=true"]
    assert with_groups_of_checkpoint(words) == [*words, "modality=image", "task=mask_folder"]


@pytest.mark.parametrize("word", ["task=camvid", "modality=image", "experiment=segmentation/camvid", "-m"])
def test_what_is_said_is_left_as_it_is(word: str, tmp_path: Path) -> None:
    words = [word, f"ckpt={run_of(tmp_path / 'run')}"]
    assert with_groups_of_checkpoint(words) == words


@pytest.mark.parametrize(
    ("modality", "task"),
    [("image", "no_such"), ("../audio", "camvid"), ("[image]", "camvid"), ("image", "")],
)
def test_only_installed_names_are_taken(modality: str, task: str, tmp_path: Path) -> None:
    words = [f"ckpt={run_of(tmp_path / 'run', modality, task)}"]
    assert with_groups_of_checkpoint(words) == words


@pytest.mark.parametrize("content", ["", "[1, 2]", "modality: 3", "{", "a: &a [*a]", "x" * 10**6 + "y"])
def test_a_damaged_record_is_passed_over(content: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (run / "config.yaml").write_text(content)
    words = [f"ckpt={run}", "action=test"]
    assert with_groups_of_checkpoint(words) == words
    assert with_groups_of_checkpoint(["ckpt=none", "ckpt=hf://a/b"]) == ["ckpt=none", "ckpt=hf://a/b"]


def test_settings_of_a_checkpoints_task_are_known(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """A typing error is held against the run's own task, not against the default one."""
    run = run_of(tmp_path / "run")
    done = command(tmp_path, "action=test", f"ckpt={run}", "task.model.inference.flop=true")
    assert done.returncode == 1
    assert "task.model.inference has no flop" in done.stderr, done.stderr
    assert "flip" in done.stderr
