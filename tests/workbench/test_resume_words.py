"""`resume=RUN` and `resume=auto` need no other words, and take none that a folder may not say."""

import importlib
import json
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import read_write
from tests_support import ROOT, TINY

from workbench.errors import UsageError
from workbench.resume_words import expand_run
from workbench.run_record import RunRecord, write_held

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
        *('resume="runs/audio_folder/a b=1"', "trainer.max_epochs=5", "seed=3"),
    ]
    assert sorted(expand_run(expanded)) == sorted(expanded), "as a process started by this one sees it"
    assert expand_run(["resume=null", "seed=1"]) == ["resume=null", "seed=1"]


def test_auto_is_the_newest_unfinished_run_of_what_is_said() -> None:
    run_folder(Path("runs/esc50/2026-01-03_x"), [], "esc50", backbone="unireplknet_a")
    run_folder(Path("runs/audio_folder/2026-01-02_x"), WORDS)
    run_folder(Path("runs/audio_folder/2026-01-04_x"), WORDS, done=True)
    assert expand_run(["resume=auto"]) == ['resume="runs/esc50/2026-01-03_x"']
    assert 'resume="runs/audio_folder/2026-01-02_x"' in expand_run(["resume=auto", "task=audio_folder"])
    assert 'resume="runs/audio_folder/2026-01-02_x"' in expand_run(["resume=auto", "backbone=widefield_nano"])
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
        ("task.data.cache_dir=here", "names a place to write to"),
        ("data_dir=https://example.org/x", "or an address"),
        ("task.data={cache_dir: here}", "names a place to write to"),
        ("task.data={samples_dir:/home/me/x,download:true}", "names a place to write to"),
        ("task={data:{samples_dir:x}}", "names a place to write to"),
        ("task.data.shards={storage:{endpoint_url:x}}", "names a place to write to"),
        ("init_from='//example.org/x'", "or an address"),
        ("task.name=${data_dir}", "refers to another value"),
        ("data_dir='https:${init_from}/${secret:a}'", "refers to another value"),
        (
            "+modality.augment.raw={_target_: workbench.shard.shard}",
            "is no class of the installed configuration",
        ),
        ("+optimizer._args_=[1]", "without their names"),
        ("+trainer.out=x", "names a place to write to"),
        ("experiment=../../runs/t/r/mine", "outside the configuration"),
        ("seed=choice(1,2)", "no single value"),
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
    words += ["action._target_=workbench.shard.shard", "optimizer@action=adamw", "callbacks@task.data=ema"]
    words += ["+logger.wandb.entity=x", "logger=[csv,wandb]", "logger.csv={path: ../../x.csv}"]
    run_folder(tmp_path / "runs/t/r", [*words, "callbacks.early_stopping.monitor=val/loss"])
    assert expand_run(["resume=runs/t/r"])[:-1] == ["callbacks.early_stopping.monitor=val/loss"]


def test_a_secret_of_the_environment_stays_a_reference() -> None:
    word = "+task.data.token=${secret:task.data.token}"
    run_folder(Path("runs/t/r"), ["logger=[csv]", word, "~logger.tensorboard"])
    assert expand_run(["resume=runs/t/r"])[:-1] == ["logger=[csv]", word, "~logger.tensorboard"]


@pytest.mark.parametrize("words", [["task=eesc50"], ["--config-dir=nowhere", "task=of_mine"]])
def test_auto_is_no_run_of_another_kind(words: list[str]) -> None:
    run_folder(Path("runs/esc50/2026-01-03_x"), [], "esc50")
    assert expand_run([*words, "resume=auto"]) == [*words, "resume=auto"], "Hydra says what is wrong"


def test_auto_takes_paths_as_they_are_typed() -> None:
    run_folder(Path("runs/esc50/2026-01-03_x"), [], "esc50")
    run_folder(Path("runs/audio_folder/2026-01-02_x"), WORDS)
    words = ["task=audio_folder", "data_dir=my sounds (2)", "resume=auto"]
    assert 'resume="runs/audio_folder/2026-01-02_x"' in expand_run(words)


def test_yaml_of_ones_own_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    plug = Path("plug/task")
    plug.mkdir(parents=True)
    (plug / "of_mine.yaml").write_text("defaults: [esc50]\nname: of_mine\n")
    run_folder(Path("runs/esc50/2026-01-03_x"), [], "esc50")
    run_folder(Path("runs/of_mine/2026-01-02_x"), ["task=of_mine"], "of_mine")
    words = ["--config-dir=plug", "task=of_mine", "resume=auto"]
    monkeypatch.setattr("sys.argv", ["run.py", *words])
    assert any("runs/of_mine/2026-01-02_x" in word for word in expand_run(words))


@pytest.mark.parametrize(
    "word", ["-m", "--multi", "sweep=kernel_size", "hydra.mode=MULTIRUN", "hydra/sweeper=optuna"]
)
def test_the_runs_of_a_sweep_decide_for_themselves(word: str) -> None:
    run_folder(Path("runs/esc50/2026-01-03_x"), ["seed=3"], "esc50")
    assert expand_run([word, "resume=auto"]) == [word, "resume=auto"]


@pytest.mark.parametrize("value", ["~nobodyx/a", "x" * 300])
@pytest.mark.parametrize(
    "take", [("resume", "resume_words.take_run_words"), ("sweep.resume", "sweeps.words.take_arguments")]
)
def test_a_folder_that_cannot_be_is_one_sentence(
    value: str, take: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, (module, _, name) = take[0], take[1].rpartition(".")
    monkeypatch.setattr("sys.argv", ["run.py", f"{key}={value}"])
    with pytest.raises(SystemExit, match=rf"^error: {key}={value[:90]}"):
        getattr(importlib.import_module(f"workbench.{module}"), name)()


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


def test_words_are_read_while_they_are_written(tmp_path: Path) -> None:
    """As the processes of a distributed run do, each started by SLURM: one writes what the others read."""
    run = run_folder(tmp_path / "runs/t/r", WORDS)
    new = [*WORDS, f"resume={run}", "seed=3"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [*new, f"hydra.runtime.output_dir={run}"], return_hydra_config=True)
    with read_write(cfg.hydra):
        cfg.hydra.overrides.task = new
    record = RunRecord()
    record.on_run_start(cfg)
    assert cfg.hydra.output_subdir is None, "Hydra itself writes nothing"
    expected = expand_run([f"resume={run}", "seed=3"])
    stop = threading.Event()
    before = (run / ".hydra" / "overrides.yaml").read_text()
    record.on_job_start(cfg)
    assert (run / ".hydra" / "overrides.yaml").read_text() == before, "the command may be refused"

    def write() -> None:
        while not stop.is_set():
            record.on_job_start(cfg)
            write_held()

    with ThreadPoolExecutor() as pool:
        written = pool.submit(write)
        try:
            found = [expand_run([f"resume={run}", "seed=3"]) for _ in range(60)]
        finally:
            stop.set()
        written.result()
    assert found == [expected] * 60
    assert yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text()) == new
    assert yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text())["hydra"]["output_subdir"] == ".hydra"
    assert "hydra" not in yaml.safe_load((run / ".hydra" / "config.yaml").read_text())


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_PROCID"])
def test_one_process_writes_the_record(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"hydra.runtime.output_dir={tmp_path}/run"], return_hydra_config=True)
    record = RunRecord()
    record.on_run_start(cfg)
    monkeypatch.setenv(name, "1")
    record.on_job_start(cfg)
    assert not (tmp_path / "run").exists()


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


def test_the_words_of_a_refused_command_are_not_those_of_the_run(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = (
        *TINY,
        "task=audio_folder",
        "task.data.limit=8",
        "action.test_after=false",
        "callbacks=[]",
        "logger=csv",
    )
    done = command(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "audio_folder").iterdir()
    record = run / ".hydra" / "overrides.yaml"
    before = record.read_text()
    done = command(tmp_path, f"resume={run}", "freeze=stem", "trainer.max_epochs=2")
    assert done.returncode == 1
    assert "freeze was none, now stem" in done.stdout + done.stderr
    assert record.read_text() == before
    assert not (run / "error.json").exists(), "the run itself has come to its end"
    done = command(tmp_path, "action=test", f"ckpt={run}/checkpoints/best.ckpt", f"resume={run}")
    assert done.returncode == 1
    assert "resume= goes on with a run's training: for action=test say ckpt=RUN" in done.stdout + done.stderr
    done = command(tmp_path, f"resume={run}", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "trainer.max_epochs=2" in yaml.safe_load(record.read_text())


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
