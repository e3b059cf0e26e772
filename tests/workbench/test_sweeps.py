"""Sweeps: what they run, what they survive, and how they go on."""

import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf
from tests_support import ROOT, TINY

from workbench.errors import UsageError
from workbench.sweeps.devices import one_gpu, threads_each, visible_gpus
from workbench.sweeps.folder import SweepFolder, job_folder, write_record
from workbench.sweeps.job import _environment, _only_one, _verdict
from workbench.sweeps.words import expand_resume

SWEEPS = sorted(file.stem for file in (ROOT / "conf" / "sweep").glob("*.yaml"))
# Four epochs of a moment each: long enough to be killed in between.
SHORT = (
    *TINY,
    *("task=audio_folder", "trainer.max_epochs=4", "trainer.limit_train_batches=4", "task.data.batch_size=8"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "task.data.num_workers=0", "logger=csv"),
)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *words],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> Any:
    """Wait for something to happen while a process goes on."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return found


def process_of(run: str) -> int | None:
    """The process that makes a run, by its command line; not the one that waits for it."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(b"hydra.run.dir=") and run.encode() in word for word in words):
            return int(file.parent.name)
    return None


def records(sweep: Path) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(sweep.glob("*/job.json"))}


def test_a_killed_run_is_recorded_and_goes_on_from_the_snapshot(tmp_path: Path, samples: Path) -> None:
    """One run cannot be composed, one is killed; the YAML is edited before the sweep is continued."""
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    words = ("-m", "--config-path", str(conf), *SHORT, f"paths.samples={samples}", "optimizer=nosuch,adamw")
    process = start(tmp_path, *words)
    until(lambda: list(tmp_path.glob("runs/sweeps/*/1_*/checkpoints/last.ckpt")), process)
    victim = process_of("1_optimizer-adamw")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    said = records(sweep)
    assert [record["status"] for record in said.values()] == ["failed", "killed"]
    assert "nosuch" in said["0_optimizer-nosuch"]["error"]
    assert pd.read_csv(sweep / "report" / "runs.csv")["status"].tolist() == ["failed", "killed"]

    yaml = conf / "optimizer" / "adamw.yaml"
    yaml.write_text(yaml.read_text().replace("weight_decay: 0.05", "weight_decay: 0.77"))
    process = start(tmp_path, f"sweep.resume={sweep}", "sweep.report=false")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output  # the other cannot be composed
    assert [record["status"] for record in records(sweep).values()] == ["failed", "done"]
    run = sweep / "1_optimizer-adamw"
    assert OmegaConf.load(run / "config.yaml").optimizer.weight_decay == 0.05
    assert "resume: going on from" in (run / "run.log").read_text()
    assert pd.read_csv(run / "metrics.csv")["epoch"].tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_failed_and_killed_runs_do_not_stop_a_sweep_and_only_they_are_repeated(
    tmp_path: Path, samples: Path
) -> None:
    """Two at a time by joblib: one run is right, one wrong, one killed; meanwhile the YAML is edited."""
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    process = start(
        tmp_path,
        *("-m", "--config-path", str(conf), *SHORT, f"paths.samples={samples}", "optimizer.lr=1e-3,-1,2e-3"),
        *("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    )
    until(lambda: list(tmp_path.glob("runs/sweeps/*/conf/config.yaml")), process)
    until(lambda: list(tmp_path.glob("runs/sweeps/*/0_*")), process)
    yaml = conf / "optimizer" / "adamw.yaml"
    assert "weight_decay: 0.05" in yaml.read_text()
    yaml.write_text(yaml.read_text().replace("weight_decay: 0.05", "weight_decay: 0.77"))
    until(lambda: list(tmp_path.glob("runs/sweeps/*/2_*/checkpoints/last.ckpt")), process)
    victim = process_of("2_optimizer.lr-0.002")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    said = records(sweep)
    assert [record["status"] for record in said.values()] == ["done", "failed", "killed"]
    assert said["1_optimizer.lr-1"]["error"] == "ValueError: Invalid learning rate: -1"
    assert "SIGKILL" in said["2_optimizer.lr-0.002"]["error"]
    assert "1 done, 1 failed, 1 killed" in output
    assert f"sweep.resume=runs/sweeps/{sweep.name}" in output
    table = pd.read_csv(sweep / "report" / "runs.csv")
    assert table["status"].tolist() == ["done", "failed", "killed"]
    assert table["lr"].tolist() == [0.001, -1, 0.002]
    assert (sweep / "report" / "report.html").is_file()

    first = (sweep / "0_optimizer.lr-0.001" / "result.json").stat().st_mtime_ns
    process = start(tmp_path, f"sweep.resume={sweep}", "hydra/launcher=basic", "sweep.report=false")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output  # the wrong one is still wrong
    assert "2 of 3 runs to make" in output
    assert [record["status"] for record in records(sweep).values()] == ["done", "failed", "done"]
    assert (sweep / "0_optimizer.lr-0.001" / "result.json").stat().st_mtime_ns == first
    again = sweep / "2_optimizer.lr-0.002"
    assert "resume: going on from" in (again / "run.log").read_text()
    assert pd.read_csv(again / "metrics.csv")["epoch"].tolist() == [0, 1, 2, 3]
    for run in (sweep / "0_optimizer.lr-0.001", again):
        assert OmegaConf.load(run / "config.yaml").optimizer.weight_decay == 0.05, (
            "editing changed a running sweep"
        )


@pytest.mark.slow
def test_a_stopped_sweep_leaves_no_process_and_goes_on(tmp_path: Path, samples: Path) -> None:
    process = start(tmp_path, "-m", *SHORT, "trainer.max_epochs=40", f"paths.samples={samples}", "seed=0,1")
    until(lambda: list(tmp_path.glob("runs/sweeps/*/0_*/checkpoints/last.ckpt")), process)
    run = until(lambda: process_of("0_seed-0"), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"to go on with it: python {ROOT / 'run.py'} sweep.resume=runs/sweeps/" in output
    assert not Path(f"/proc/{run}").exists()
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert records(sweep)["0_seed-0"]["status"] == "killed"
    process = start(tmp_path, f"sweep.resume={sweep.relative_to(tmp_path)}")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("resume: going on from") == 1
    assert [record["status"] for record in records(sweep).values()] == ["done", "done"]
    history = pd.read_csv(sweep / "0_seed-0" / "metrics.csv")
    assert history["epoch"].tolist() == list(range(40))


@pytest.mark.slow
def test_a_run_dies_with_the_process_that_waits_for_it(tmp_path: Path, samples: Path) -> None:
    process = start(tmp_path, "-m", *SHORT, "trainer.max_epochs=400", f"paths.samples={samples}", "seed=0,1")
    run = until(lambda: process_of("0_seed-0"), process)
    until(lambda: list(tmp_path.glob("runs/sweeps/*/0_*/checkpoints/last.ckpt")), process)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{run}").exists():
        assert time.monotonic() < deadline, "the run was orphaned"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_study_goes_on(tmp_path: Path, samples: Path) -> None:
    pytest.importorskip("optuna")
    words = ("sweep=optuna_lr", *SHORT, f"paths.samples={samples}", "hydra.sweeper.n_trials=3")
    process = start(tmp_path, *words, "sweep.report=false")
    until(lambda: list(tmp_path.glob("runs/sweeps/*/1_*/checkpoints/last.ckpt")), process)
    process.kill()
    process.communicate(timeout=60)
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    before = json.loads((sweep / "sweep.json").read_text())["jobs"]
    process = start(tmp_path, f"sweep.resume={sweep}", "sweep.report=true")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    after = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert after[:2] == before
    assert len(after) == 3
    assert len({job["overrides"][-1] for job in after}) == 3, "the sampler repeated itself"
    assert [record["status"] for record in records(sweep).values()] == ["done"] * 3
    assert len(pd.read_csv(sweep / "report" / "runs.csv")) == 3


@pytest.mark.slow
def test_submitit_composes_from_the_snapshot(tmp_path: Path, samples: Path) -> None:
    process = start(
        tmp_path,
        *("-m", *SHORT, f"paths.samples={samples}", "seed=0,1", "hydra/launcher=submitit_local"),
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert [record["status"] for record in records(sweep).values()] == ["done", "done"]
    for run in sweep.glob("*_seed-*"):
        sources = OmegaConf.load(run / ".hydra" / "hydra.yaml").hydra.runtime.config_sources
        assert [source.path for source in sources if source.provider == "main"] == [str(sweep / "conf")]


def test_a_mistake_in_every_run_is_one_sentence(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "optimizer.lrr=1,2")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.count("lrr") >= 1
    assert "Traceback" not in output
    assert not list(tmp_path.glob("runs/sweeps/*"))


# -- what a sweep consists of ------------------------------------------------------------------------------


@pytest.fixture
def sweeper_of(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`sweeper_of("sweep=seeds", …)` -> the sweeper of that command line, as Hydra sets it up, its folder opened."""

    def make(*words: str) -> Any:
        loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
        words = (*words, f"hydra.sweep.dir='{tmp_path / 'sweep'}'", "hydra.runtime.output_dir=nowhere")
        cfg = loader.load_configuration("config", list(words), RunMode.MULTIRUN)
        sweeper: Any = Plugins.instance()._instantiate(cfg.hydra.sweeper)
        sweeper.setup(hydra_context=HydraContext(loader, None), task_function=print, config=cfg)  # type: ignore[arg-type]
        sweeper.folder = sweeper._open(tmp_path / "sweep", list(cfg.hydra.overrides.task), resumed=False)
        return sweeper

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield make
    GlobalHydra.instance().clear()


def overrides_of(sweeper: Any) -> list[Any]:
    said = list(sweeper.config.hydra.overrides.task)
    return sweeper._parse([f"{key}={value}" for key, value in sweeper.params.items()] + said)


def grid(sweeper: Any) -> tuple[list[str], list[Any]]:
    return sweeper._grid(overrides_of(sweeper))


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes(name: str, sweeper_of: Callable[..., Any]) -> None:
    sweeper = sweeper_of(f"sweep={name}")
    assert sweeper.config.hydra.mode == RunMode.MULTIRUN, "a sweep needs no -m"
    overrides = overrides_of(sweeper)
    sweeper.check(overrides)
    assert sum(override.is_sweep_override() for override in overrides) >= 1
    if name != "optuna_lr":
        _, jobs = sweeper._grid(overrides)
        assert len({job.folder for job in jobs}) == len(jobs)
        for job in jobs[:: max(len(jobs) // 5, 1)]:
            assert sweeper.misfit(job) is None
    assert f"sweep={name}" in (ROOT / "conf" / "sweep" / f"{name}.yaml").read_text(), (
        "the header gives the command"
    )


@pytest.mark.parametrize(
    ("name", "params", "macs"), [("backbones", (3, 6), (0.3, 1.2)), ("backbones_30m", (21.5, 32), (4, 5))]
)
def test_compared_backbones_are_of_a_size(
    name: str, params: tuple[float, float], macs: tuple[float, float], sweeper_of: Callable[..., Any]
) -> None:
    """By their headers, which `test_config` holds against the networks."""
    axes, jobs = grid(sweeper_of(f"sweep={name}"))
    assert axes == ["modality", "backbone", "seed"]
    backbones = {
        word.removeprefix("backbone=") for job in jobs for word in job.overrides if "backbone=" in word
    }
    assert len(backbones) >= 6
    for backbone in backbones:
        header = (ROOT / "conf" / "backbone" / f"{backbone}.yaml").read_text()
        assert params[0] <= float(re.findall(r"([\d.]+)M params", header)[0]) <= params[1], backbone
        assert macs[0] <= float(re.findall(r"([\d.]+) GMAC", header)[0]) <= macs[1], backbone


def test_kernel_size_is_the_papers_ablation(sweeper_of: Callable[..., Any]) -> None:
    sweeper = sweeper_of("sweep=kernel_size")
    axes, jobs = grid(sweeper)
    assert axes == ["modality", "backbone.kernel_size", "seed"]
    assert len(jobs) == 5 * 4 * 3
    assert jobs[0].folder == "00_modality-audio_backbone.kernel_size-3_seed-0"
    cfg = sweeper.context.config_loader.load_sweep_config(sweeper.config, jobs[-1].overrides)
    assert list(cfg.backbone.model.kernel_sizes) == [3, 13, 13, 13]
    assert (cfg.modality.name, cfg.seed) == ("video", 2)


def test_a_learning_curve_takes_as_many_steps_at_every_fraction(sweeper_of: Callable[..., Any]) -> None:
    sweeper = sweeper_of("sweep=learning_curve")
    axes, jobs = grid(sweeper)
    assert axes == ["task.data.train_fraction", "seed"]
    loader = sweeper.context.config_loader
    read = [loader.load_sweep_config(sweeper.config, job.overrides).task.data for job in jobs]
    assert [data.train_fraction for data in read[::3]] == [0.125, 0.25, 0.5, 1.0]
    assert {data.train_passes for data in read} == {None}


def test_the_command_line_narrows_a_sweep(sweeper_of: Callable[..., Any]) -> None:
    axes, jobs = grid(sweeper_of("sweep=kernel_size", "modality=audio,video", "seed=7"))
    assert axes == ["modality", "backbone.kernel_size"]
    assert len(jobs) == 2 * 4
    assert all("seed=7" in job.overrides for job in jobs)


def test_glob_finds_modalities_and_experiments(sweeper_of: Callable[..., Any], tmp_path: Path) -> None:
    _, jobs = grid(sweeper_of("modality=glob(*,exclude=[image,video])"))
    assert [job.overrides for job in jobs] == [
        ["modality=audio"],
        ["modality=point_cloud"],
        ["modality=time_series"],
    ]
    shutil.rmtree(tmp_path / "sweep")
    _, jobs = grid(sweeper_of("experiment=glob(*)"))
    files = (ROOT / "conf" / "experiment").rglob("[!_]*.yaml")
    names = sorted(str(file.relative_to(ROOT / "conf" / "experiment").with_suffix("")) for file in files)
    assert sorted(job.overrides[0] for job in jobs) == [f"experiment={name}" for name in names]
    shutil.rmtree(tmp_path / "sweep")
    _, jobs = grid(sweeper_of("backbone=glob(*)"))
    assert "backbone=_base" not in [job.overrides[0] for job in jobs]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("optimizer.lr=interval(0.1,1)",), "intervals are for hydra/sweeper=optuna"),
        (("experiment=glob(nothing*)",), "no file below conf/experiment fits"),
    ],
)
def test_what_is_no_grid(sweeper_of: Callable[..., Any], words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        grid(sweeper_of(*words))


def test_a_folder_holds_one_sweep(sweeper_of: Callable[..., Any]) -> None:
    sweeper_of("seed=0,1")
    with pytest.raises(UsageError, match="holds a sweep already"):
        sweeper_of("seed=0,1")


# -- a study -----------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


class Pretend:
    """A launcher that answers a study with (lr − 0.003)², fails in some runs and dies in another."""

    def __init__(self, sweeper: Any, fails: set[int] = frozenset(), dies: int | None = None) -> None:  # type: ignore[assignment]
        self.sweeper, self.fails, self.dies, self.seen = sweeper, fails, dies, list[str]()

    def __call__(self, jobs: list[Any]) -> list[float | None]:
        values: list[float | None] = []
        for job in jobs:
            self.seen.append(job.folder)
            number = int(job.folder.split("_")[0])
            if number == self.dies:
                raise Stopped
            lr = float(job.overrides[-1].partition("=")[2])
            values.append(None if number in self.fails else (lr - 0.003) ** 2)
        return values


def study_of(sweeper: Any, **pretend: Any) -> Pretend:
    launcher = Pretend(sweeper, **pretend)
    sweeper.launch = launcher  # type: ignore[method-assign, assignment]
    return launcher


def test_a_study_finishes_repeats_and_goes_on(sweeper_of: Callable[..., Any], tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    words = ("modality=time_series", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=12")
    sweeper = sweeper_of(*words, "optimizer.lr=tag(log,interval(1e-4,1e-1))")
    assert sweeper.direction == "minimize", "the task's error is to be small"
    first = study_of(sweeper, fails={2}, dies=6)
    with pytest.raises(Stopped):
        sweeper.run(overrides_of(sweeper), resumed=False)
    assert len(first.seen) == 7

    sweeper.folder = SweepFolder.load(tmp_path / "sweep")
    second = study_of(sweeper)
    sweeper.run(overrides_of(sweeper), resumed=True)
    assert sorted(second.seen[:2]) == sorted([first.seen[2], first.seen[6]]), (
        "the failed and the killed one first"
    )
    assert len(second.seen) == 2 + 5
    assert len(sweeper.folder.jobs) == 12
    assert len({job.overrides[-1] for job in sweeper.folder.jobs}) == 12, "no setting twice"
    study = optuna.load_study(study_name="widefield", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    assert sum(trial.value is not None for trial in study.trials) == 12
    assert all(0.0001 <= trial.params["optimizer.lr"] <= 0.1 for trial in study.trials)

    sweeper.folder = SweepFolder.load(tmp_path / "sweep")
    third = study_of(sweeper)
    sweeper.run(overrides_of(sweeper), resumed=True)
    assert third.seen == [], "a finished study has nothing to do"


def test_a_study_takes_hydras_words_for_a_space(sweeper_of: Callable[..., Any]) -> None:
    distributions = pytest.importorskip("optuna.distributions")
    from hydra_plugins.widefield.study import distribution

    sweeper = sweeper_of("hydra/sweeper=optuna", "seed=1")
    words = {
        "interval(0.1, 0.5)": distributions.FloatDistribution(0.1, 0.5),
        "tag(log, interval(1e-4, 1e-2))": distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "int(interval(2, 5))": distributions.IntDistribution(2, 5),
        "range(1, 8, step=2)": distributions.IntDistribution(1, 7, step=2),
        "range(0, 10, step=4)": distributions.IntDistribution(0, 8, step=4),
        "range(10, 0, step=-5)": distributions.CategoricalDistribution(["10", "5"]),
        "choice(3, 7, 13)": distributions.CategoricalDistribution(["3", "7", "13"]),
    }
    for said, meant in words.items():
        (override,) = sweeper._parse([f"seed={said}"])
        assert distribution(override) == meant
    with pytest.raises(UsageError, match="needs something to vary"):
        sweeper.check(sweeper._parse(["seed=1"]))


STUDY = ("modality=time_series", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20_000])


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage",
    [lambda file: file.write_bytes(b"no database" * 999), cut, lambda file: file.write_bytes(b""), as_folder],
    ids=["garbage", "cut", "empty", "folder"],
)
def test_a_damaged_study_is_one_sentence(
    damage: Callable[[Path], Any], sweeper_of: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    sweeper = sweeper_of(*STUDY, "optimizer.lr=interval(0.1,1.0)")
    study_of(sweeper, dies=1)
    with pytest.raises(Stopped):
        sweeper.run(overrides_of(sweeper), resumed=False)
    file = tmp_path / "sweep" / "study.db"
    damage(file)
    sweeper.folder = SweepFolder.load(tmp_path / "sweep")
    second = study_of(sweeper)
    with pytest.raises(UsageError, match=r"the study .*study\.db cannot be used \(.+\): ") as told:
        sweeper.run(overrides_of(sweeper), resumed=True)
    assert "\n" not in str(told.value)
    assert f"sweep.resume={tmp_path / 'sweep'}" in str(told.value)
    assert second.seen == [], "no run is made that nobody would remember"


def test_a_locked_study_is_one_sentence(sweeper_of: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = tmp_path / "study.db"
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    sweeper = sweeper_of(
        *STUDY, "optimizer.lr=interval(0.1,1.0)", f"hydra.sweeper.storage='sqlite:///{file}?timeout=0.1'"
    )
    study_of(sweeper)
    with pytest.raises(UsageError, match=r"storage cannot be used \(database is locked\): end the process"):
        sweeper.run(overrides_of(sweeper), resumed=False)
    holder.close()


@pytest.mark.parametrize(
    ("fault", "ends"), [(KeyboardInterrupt(), SystemExit), (UsageError("the study is locked"), UsageError)]
)
def test_a_sweep_that_ends_early_sums_up(
    fault: BaseException,
    ends: type[BaseException],
    sweeper_of: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sweeper = sweeper_of("seed=0,1", "sweep.report=false")
    caplog.set_level("INFO")
    sweeper.folder.axes, sweeper.folder.jobs = grid(sweeper)
    write_record(sweeper.folder.path / sweeper.folder.jobs[0].folder, status="done", value=0.5)
    with pytest.raises(ends), sweeper._stoppable(), sweeper._summed_up():
        raise fault
    assert caplog.text.count("sweep: 1 done, 1 missing") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_a_sweep_with_its_own_code(number: int, sweeper_of: Callable[..., Any]) -> None:
    sweeper = sweeper_of("seed=0,1")
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stop, sweeper._stoppable():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    assert stop.value.code == 128 + number


def test_nohup_is_heeded_by_a_sweep(sweeper_of: Callable[..., Any]) -> None:
    sweeper = sweeper_of("seed=0,1")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with sweeper._stoppable():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# -- sharing a machine -------------------------------------------------------------------------------------


def test_gpus_are_shared_out_evenly(tmp_path: Path) -> None:
    gpus = ["GPU-a", "GPU-b"]
    with one_gpu(gpus, tmp_path) as first, one_gpu(gpus, tmp_path) as second:
        assert {first, second} == {"GPU-a", "GPU-b"}
        with one_gpu(gpus, tmp_path) as third, one_gpu(gpus, tmp_path) as fourth:
            assert {third, fourth} == {"GPU-a", "GPU-b"}, "two on each, not three on one"
    with one_gpu([], tmp_path) as none:
        assert none is None


def test_a_killed_run_gives_its_gpu_back(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from workbench.sweeps.devices import one_gpu\n"
        "with one_gpu(['GPU-a', 'GPU-b'], Path(sys.argv[1])) as gpu: print(gpu, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "GPU-a"
    with one_gpu(["GPU-a", "GPU-b"], tmp_path) as other:
        assert other == "GPU-b"
    process.kill()
    process.wait()
    process.stdout.close()
    with one_gpu(["GPU-a", "GPU-b"], tmp_path) as gpu:
        assert gpu == "GPU-a"


def test_gpus_visible() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, GPU-x"}) == ["2", "GPU-x"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_gpus({"PATH": ""}) in ([], visible_gpus({}))


@pytest.mark.parametrize(
    ("trainer", "parallel", "given"),
    [
        ({"accelerator": "auto", "devices": 1}, 4, "7"),
        ({"accelerator": "cpu", "devices": 1}, 4, "7,8"),  # left as it was
        ({"accelerator": "gpu", "devices": "auto"}, 4, "7,8"),
        ({"accelerator": "auto", "devices": 1}, None, "7,8"),
    ],
)
def test_a_run_sees_its_gpu(
    trainer: dict[str, Any], parallel: int | None, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep = SweepFolder(tmp_path, "config", [], [], str(tmp_path))
    with _environment(OmegaConf.create({"trainer": trainer}), sweep, parallel) as environ:
        assert environ["CUDA_VISIBLE_DEVICES"] == given
        assert environ.get("OMP_NUM_THREADS") == (str(threads_each(4)) if parallel else None)


# -- records -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (0, "done", None),
        (-9, "killed", "stopped by SIGKILL (out of memory?)"),
        (143, "killed", "stopped by SIGTERM"),
        (1, "failed", "too hot"),
    ],
)
def test_verdict(code: int, status: str, error: str | None, tmp_path: Path) -> None:
    (tmp_path / "error.json").write_text('{"error": "too hot"}')
    assert _verdict(code, tmp_path) == (status, error)
    (tmp_path / "error.json").unlink()
    assert _verdict(3, tmp_path) == ("failed", "ended with exit code 3")


def test_folder_names_are_short_and_sorted() -> None:
    assert job_folder(7, 120, {"modality": "audio", "seed": "1"}) == "007_modality-audio_seed-1"
    assert job_folder(0, 1, {}) == "0"
    assert len(job_folder(0, 9, {"key": "x" * 500})) < 130
    assert "/" not in job_folder(0, 9, {"experiment": "audio/fsdd"})


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's folder with two of three runs done."""
    monkeypatch.chdir(tmp_path)
    words = ["task=esc50", "seed=0,1,2", "hydra.sweeper.n_trials=3"]
    sweep = SweepFolder(
        tmp_path / "old", "config", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], words, "."
    )
    sweep.take_snapshot([ROOT / "conf"])
    sweep.save()
    return sweep.path


def test_resume_repeats_the_command(finished: Path) -> None:
    words = expand_resume(["-m", f"sweep.resume={finished}"])
    assert words[:3] == ["--multirun", "--config-path", str(finished / "conf")]
    assert "task=esc50" in words
    assert "hydra.launcher.n_jobs=2" in words
    assert words[-2:] == ['hydra.sweep.dir="old"', 'sweep.resume="old"']
    changed = expand_resume([f"sweep.resume={finished}", "hydra/launcher=basic", "hydra.sweeper.n_trials=9"])
    assert "hydra/launcher=basic" in changed
    assert not [
        word for word in changed if "joblib" in word or "n_jobs" in word or word.endswith("n_trials=3")
    ]
    assert expand_resume(["seed=1"]) == ["seed=1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep.resume=/does/not/exist"], "it is no sweep's folder"),
        (["sweep.resume=old", "optimizer.lr=3"], "optimizer.lr=3 cannot be said beside it"),
    ],
)
def test_resume_refuses(finished: Path, words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        expand_resume(words)


def test_a_run_left_behind_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with _only_one(tmp_path / "run") as lock:
        left_behind = subprocess.Popen(["sleep", "1.5"], pass_fds=[lock])
    caplog.set_level("INFO")
    started = time.monotonic()
    with _only_one(tmp_path / "run"):
        assert left_behind.wait(timeout=0.5) == 0
    assert time.monotonic() - started > 0.5
    assert "waiting for the process that is still at it" in caplog.text


@pytest.mark.figures
def test_the_end_of_a_sweep_says_nothing_of_fonts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from workbench.sweeps.end import finish
    from workbench.sweeps.folder import Job

    jobs = [Job("a", ["seed=0"]), Job("b", ["seed=1"])]
    sweep = SweepFolder(tmp_path, "config", [], [], ".", jobs=jobs)
    sweep.save()
    result = {"task": "esc50", "modality": "audio", "backbone": "a", "monitor": "val/acc", "params": 1}
    for seed, job in enumerate(jobs):
        write_record(tmp_path / job.folder, status="done", overrides=job.overrides)
        whole = result | {"seed": seed, "metrics": {"test/acc": 0.5}, "wall_s": seed + 1.0}
        (tmp_path / job.folder / "result.json").write_text(json.dumps(whole))
    levels = {name: logging.getLogger(name).level for name in ("fontTools", "matplotlib")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.NOTSET)  # as in the process that only sweeps
        with caplog.at_level("INFO"):
            finish(sweep, report=True)
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert list((tmp_path / "report" / "figures").glob("*.pdf"))
    assert {record.name for record in caplog.records} == {"widefield"}


def test_unfinished_runs(tmp_path: Path) -> None:
    from workbench.sweeps.folder import Job

    jobs = [Job(name, [f"seed={name}"]) for name in "abcd"]
    sweep = SweepFolder(tmp_path, "config", [], [], ".", jobs=jobs)
    sweep.save()
    for name, status in (("a", "done"), ("b", "failed"), ("c", "running")):
        write_record(tmp_path / name, status=status)
    assert [job.folder for job in SweepFolder.load(tmp_path).unfinished()] == ["b", "c", "d"]
    sweep.mark_stopped()
    assert [sweep.record(job)["status"] for job in jobs] == ["done", "failed", "killed", "missing"]
