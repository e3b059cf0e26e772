"""`resume=RUN` and `resume=auto` need no other words, and take none that a folder may not say."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests_support import TINY

from workbench.errors import UsageError
from workbench.resume_words import expand_run

WORDS = ["task=audio_folder", "backbone.model.dims=[8,8,16,16]", "task.data.limit=24", "trainer.max_epochs=2"]


def run_folder(
    path: Path,
    words: list[str],
    task: str = "audio_folder",
    done: bool = False,
    backbone: str = "widefield_nano",
) -> Path:
    """What `expand_run` looks at of a run."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "last.ckpt").touch()
    (path / ".hydra").mkdir()
    (path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    names = {"modality": "audio", "task": task, "backbone": backbone, "action": "fit"}
    (path / "composition.json").write_text(json.dumps(names))
    if done:
        (path / "result.json").write_text("{}")
    return path


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_words_of_the_run_are_taken_unless_said_anew() -> None:
    run_folder(
        Path("runs/audio_folder/a b=1"), [*WORDS, "seed=3", "paths.samples=elsewhere", "download=true"]
    )
    expanded = expand_run(
        ["--config-dir", "x=y", "trainer.max_epochs=5", "resume=runs/audio_folder/a b=1", "seed=3"]
    )
    assert expanded == [
        *("--config-dir", "x=y", *WORDS[:3]),
        *("resume='runs/audio_folder/a b=1'", "trainer.max_epochs=5", "seed=3"),
    ]
    assert sorted(expand_run(expanded)) == sorted(expanded), "as a process started by this one sees it"
    assert expand_run(["resume=null", "seed=1"]) == ["resume=null", "seed=1"]


def test_auto_is_the_newest_unfinished_run_of_what_is_said() -> None:
    run_folder(Path("runs/esc50/2026-01-03_x"), [], "esc50", backbone="unireplknet_a")
    run_folder(Path("runs/audio_folder/2026-01-02_x"), WORDS)
    run_folder(Path("runs/audio_folder/2026-01-04_x"), WORDS, done=True)
    assert expand_run(["resume=auto"]) == ["resume='runs/esc50/2026-01-03_x'"]
    assert "resume='runs/audio_folder/2026-01-02_x'" in expand_run(["resume=auto", "task=audio_folder"])
    assert "resume='runs/audio_folder/2026-01-02_x'" in expand_run(["resume=auto", "backbone=widefield_nano"])
    nothing = ["resume=auto", "task=audio_folder", "backbone=unireplknet_a"]
    assert expand_run(nothing) == nothing, "a new run begins"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "+callbacks.x={_target_: os.system, command: 'touch owned'}",
            "is no class of the installed configuration",
        ),
        ("optimizer._target_=subprocess.run", "is no class of the installed configuration"),
        ("seed=${oc.env:SECRET}", "computes a value"),
        ("callbacks.best.path=/home/me/.bashrc", "callbacks.best.path names a place to write to"),
        ("callbacks.last.dirpath=here", "callbacks.last.dirpath names a place to write to"),
        ("+trainer.default_root_dir=here", "names a place to write to"),
        ("logger.csv={path: ../../x.csv}", "names a place to write to"),
        ("task.data.cache_dir=here", "names a place to write to"),
        ("data_dir=https://example.org/x", "or an address"),
        ("task.data={cache_dir: here}", "names a place to write to"),
    ],
)
def test_a_folder_does_not_say_what_runs_or_where_to_write(word: str, said: str, tmp_path: Path) -> None:
    run_folder(tmp_path / "runs/t/r", [*WORDS, word])
    with pytest.raises(UsageError, match=said):
        expand_run(["resume=runs/t/r"])
    key = word.lstrip("+").partition("=")[0]
    assert expand_run(["resume=runs/t/r", f"{key}=mine"])[-1] == f"{key}=mine", "said oneself it is one's own"


def test_what_this_command_alone_decides_is_not_taken(tmp_path: Path) -> None:
    words = ["paths.runs=/x", "hydra.job.chdir=true", "download=true", "ckpt=x", "sweep.report=false"]
    words += ["task.data.samples_dir=/x", "task.data.shards.storage.secret=x", "action=fit"]
    run_folder(tmp_path / "runs/t/r", [*words, "callbacks.early_stopping.monitor=val/loss"])
    assert expand_run(["resume=runs/t/r"])[:-1] == ["callbacks.early_stopping.monitor=val/loss"]


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "runs/t/r", [])
    for text in ("- !!python/object/apply:os.system [x]", "{a: 1}", "- [1]", "\x00"):
        (run / ".hydra" / "overrides.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"overrides\.yaml"):
            expand_run(["resume=runs/t/r"])


def test_a_typo_is_answered_with_the_nearest_run(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run_folder(tmp_path / "runs/audio_folder/2026-01-02_x", WORDS)
    began = os.times()
    done = command(tmp_path, "resume=runs/audio_folder/2026-01-02_y")
    spent = os.times()
    assert done.returncode == 1
    assert (
        "resume=runs/audio_folder/2026-01-02_y: there is no such folder: did you mean runs/audio_folder/2026-01-02_x?"
        in done.stderr
    )
    assert not (tmp_path / "runs/audio_folder/2026-01-02_y").exists()
    used = spent.children_user + spent.children_system - began.children_user - began.children_system
    assert used < 3, "seconds of work, however busy the machine is"
    (tmp_path / "runs/audio_folder/empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: this folder has no checkpoints/last.ckpt"):
        expand_run(["resume=runs/audio_folder/empty"])


@pytest.mark.slow  # four processes
def test_a_run_goes_on_without_its_words(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = (
        *TINY,
        "task=audio_folder",
        "task.data.limit=8",
        "task.data.batch_size=4",
        "callbacks=[]",
        "logger=csv",
    )
    done = command(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "audio_folder").iterdir()
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()
    done = command(tmp_path, "resume=auto")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads((run / "result.json").read_text())["metrics"] == before["metrics"]
    done = command(tmp_path, f"resume={run.relative_to(tmp_path)}", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 epochs instead of 1" in done.stdout + done.stderr
    assert json.loads((run / "result.json").read_text())["epochs"] == 2
    assert [path.name for path in (tmp_path / "runs" / "audio_folder").iterdir()] == [run.name]


def test_the_composition_is_that_of_the_run(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run_folder(tmp_path / "runs/audio_folder/r", [*WORDS, "scheduler=exponential"])
    done = command(tmp_path, "--cfg", "job", "resume=auto", "trainer.max_epochs=7")
    assert done.returncode == 0, done.stderr
    cfg = yaml.safe_load(done.stdout)
    assert (cfg["task"]["name"], cfg["scheduler"]["_target_"]) == (
        "audio_folder",
        "tasks.schedules.exponential",
    )
    assert (cfg["task"]["data"]["limit"], cfg["trainer"]["max_epochs"]) == (24, 7)
    assert cfg["resume"] == "runs/audio_folder/r"
