"""A disk that refuses: one sentence with the file, the reason and the cure; what was there before is still there."""

import errno
import io
import json
import logging
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from disk_support import WHY, left_in, refusing, small_files
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from tests_support import TINY
from torch import nn

from backbone import CheckpointError
from tasks.datasets.array_cache import keep_array, read_array
from tasks.datasets.base import draw_once
from tasks.datasets.download import Source, download
from tasks.datasets.fetch import download_and_unpack
from tasks.datasets.image.cue_conflict import drawn_sample
from tasks.datasets.shards.cache import ShardCache
from tasks.datasets.shards.storage import Storage
from tasks.disk import WriteError, writing
from workbench import figures
from workbench.actions import run_action
from workbench.checking import tasks_of
from workbench.checkpoint_files import AtomicCheckpoints, point_to_resume
from workbench.errors import UsageError, kept_errors, sentence
from workbench.export import write_onnx, write_torch_export
from workbench.files import write_json, write_table
from workbench.loggers import MetricsCsv, telling
from workbench.predict import write_rows
from workbench.probes.erf import keep_scores
from workbench.report.write import write_report
from workbench.results import write_config, write_result
from workbench.sweeps.folder import SweepFolder, write_record
from workbench.trainer import build_trainer
from workbench.words import plain_words

Write = Callable[[Path], Any]
RUNS, SAMPLES = "paths.runs=FOLDER", "paths.samples=FOLDER"


def config(folder: Path) -> DictConfig:
    parts = {group: {"name": "x"} for group in ("modality", "backbone", "action")}
    rest = {"task": {"name": "x", "monitor": "val/acc"}, "seed": 0, "trainer": {"precision": 32}}
    return OmegaConf.create(parts | rest | {"paths": {"run": str(folder)}})


def result(folder: Path) -> None:
    about: dict[str, Any] = {"source": "sample", "data_dir": "x", "params": 1, "epochs": 1, "metrics": {}}
    about |= {"best": 0.5, "best_epoch": 0, "wall_s": 1.0, "device": torch.device("cpu"), "checkpoint": None}
    write_result(config(folder), **about)


def metrics(folder: Path) -> None:
    MetricsCsv(str(folder / "metrics.csv")).log_metrics({"epoch": 0, "val/acc": 0.5}, 1)


def curves(folder: Path) -> None:
    history = folder.parent / "history.csv"
    history.write_text("epoch,step,train/loss,val/loss\n0,1,2.0,3.0\n1,2,1.0,2.0\n")
    figures.draw_curves(history, folder / "figures" / "curves.png")


class Raw(nn.Module):
    """A network as the exporter calls it."""

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return raw * 2


def arrays_of_a_probe(folder: Path) -> None:
    keep_scores(folder / "erf.npz", {"network": np.random.default_rng(0).random((60, 60))})


def report(folder: Path) -> None:
    run = folder / "runs" / "a"
    run.mkdir(parents=True, exist_ok=True)
    (run / "result.json").write_text('{"metrics": {"test/acc": 0.5}, "monitor": "val/acc", "task": "esc50"}')
    write_report(folder / "runs")


def cues(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tasks.datasets.image.cue_conflict_sample.cue_conflict", lambda root: root.mkdir(parents=True)
        )
        drawn_sample(folder)


def archive(folder: Path) -> Source:
    packed = folder.parent / "packed.tar"
    member = tarfile.TarInfo("sound.wav")  # the same bytes whenever it is made
    member.size = 9000
    with tarfile.open(packed, "w") as file:
        file.addfile(member, io.BytesIO(b"x" * 9000))
    return Source(packed.as_uri())


def fetched(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    download(archive(folder), folder / "a.tar")


def cached_shard(folder: Path) -> None:
    there = folder.parent / "there"
    there.mkdir(exist_ok=True)
    (there / "train-000000.tar").write_bytes(b"x" * 9000)
    ShardCache(Storage(str(there)), folder / "cache" / "set", 10**9).path("train-000000.tar", 9000)


def sweep(folder: Path) -> SweepFolder:
    return SweepFolder(folder / "sweep", "config", [], [], ".")


def new_sweep(folder: Path) -> None:
    conf = folder.parent / "conf" / "task"
    conf.mkdir(parents=True, exist_ok=True)
    (conf / "x.yaml").write_text("name: x\n")
    sweep(folder).create([conf.parent])


# What writes, the file that is refused, the setting that the sentence names.
PLACES: dict[str, tuple[Write, str, str]] = {
    "config": (lambda folder: write_config(config(folder)), "config.yaml", RUNS),
    "composition": (lambda folder: write_config(config(folder)), "composition.json", RUNS),
    "checkpoint": (
        lambda folder: AtomicCheckpoints().save_checkpoint({"a": torch.ones(9)}, folder / "last.ckpt"),
        "last.ckpt",
        RUNS,
    ),
    "result": (result, "result.json", RUNS),
    "metrics": (metrics, "metrics.csv", RUNS),
    "test report": (lambda folder: write_json(folder / "test_report.json", {}), "test_report.json", RUNS),
    "figure": (curves, "figures/curves.png", RUNS),
    "predictions": (
        lambda folder: write_rows(folder / "predictions.csv", [{"path": "a.wav"}]),
        "predictions.csv",
        RUNS,
    ),
    "forecast": (
        lambda folder: write_table(folder / "0_a" / "forecast.csv", [{"y": 1}], ["y"]),
        "0_a/forecast.csv",
        RUNS,
    ),
    "export": (
        lambda folder: write_torch_export(nn.Linear(2, 2), torch.ones(3, 2), folder / "export" / "model.pt2"),  # type: ignore[arg-type]
        "export/model.pt2",
        RUNS,
    ),
    "onnx": (
        lambda folder: write_onnx(Raw(), torch.ones(3, 2), folder / "export" / "model.onnx"),  # type: ignore[arg-type]
        "export/model.onnx",
        RUNS,
    ),
    "probe's figure": (
        lambda folder: figures.save(figures.plt.figure(), folder / "figures" / "erf.png"),
        "figures/erf.png",
        RUNS,
    ),
    "probe's arrays": (arrays_of_a_probe, "erf.npz", RUNS),
    "report": (report, "runs/report/runs.csv", "input=COPY_OF_runs"),
    "report's page": (report, "runs/report/report.html", "input=COPY_OF_runs"),
    "sweep": (new_sweep, "sweep", RUNS),
    "sweep's YAML": (new_sweep, "sweep/conf/task*", RUNS),
    "sweep's list": (lambda folder: sweep(folder).save(), "sweep/sweep.json", RUNS),
    "sweep's run": (lambda folder: write_record(folder / "0", status="done"), "0/job.json", RUNS),
    "sample": (
        lambda folder: draw_once(folder / "x", {"task": "x", "version": 1}, lambda root: None),
        "x",
        SAMPLES,
    ),
    "pictures of cues": (cues, "cue_conflict_1", SAMPLES),
    "download": (
        fetched,
        "a.tar",
        "data_dir=FOLDER",
    ),
    "unpacked": (
        lambda folder: download_and_unpack(archive(folder), folder / "set"),
        ".unpack-*/unpacked/sound.wav",
        "data_dir=FOLDER",
    ),
    "shard cache": (cached_shard, "cache/set/train-000000.tar", "task.data.shards.cache_dir=FOLDER"),
}


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *((place, errno.ENOSPC) for place in PLACES),
        *(("result", number) for number in WHY),
        ("shard cache", 13),
    ],
)
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_every_writing_place(place: str, number: int, tmp_path: Path) -> None:
    write, name, option = PLACES[place]
    folder = tmp_path / "new"
    pattern = folder / Path(name).parent / f"*{Path(name).name}*"
    with (
        pytest.raises(WriteError) as refused,
        refusing(pattern, number),
        writing(folder, "or choose another folder with data_dir=FOLDER"),  # as whoever downloads says
    ):
        write(folder)
    said = sentence(refused.value)
    assert said is not None
    assert WHY[number] in said
    assert option in said
    assert str(folder / "" if "*" in name else folder / name).rstrip("/") in said or "data_dir" in option
    assert "\n" not in said
    made = [name for name in left_in(folder) if "/." in f"/{name}"] if folder.is_dir() else []
    assert made == [], "drafts are left"
    write(folder)  # once there is room again
    assert list(folder.glob(name if ".unpack" not in name else "set/sound.wav"))


def test_what_was_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"epoch": 1}, file)
    before = file.read_bytes()
    content = {"epoch": 2, "state_dict": {"a": torch.ones(10_000)}}
    with pytest.raises(WriteError, match=r"last\.ckpt cannot be written"), small_files():
        AtomicCheckpoints().save_checkpoint(content, file)
    assert file.read_bytes() == before
    assert left_in(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize(
    "place",
    ["checkpoint", "export", "onnx", "probe's arrays", "probe's figure", "metrics", "sweep's list"],
)
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_a_file_that_is_cut_off(place: str, tmp_path: Path) -> None:
    """Refused in its middle, not when it is opened: archives then fail once more when they are closed.

    Of `torch.export.save` into a file that ended the process, in C++.
    """
    write, name, option = PLACES[place]
    folder = tmp_path / "new"
    with pytest.raises(WriteError, match=rf"{name} cannot be written: .* {option}"), small_files(20):
        write(folder)
    assert left_in(folder) == []
    write(folder)
    assert left_in(folder) == [name]


class Asked:
    """A trainer that keeps what it is made of."""

    def __init__(self, strategy: Any, **options: Any) -> None:
        kept: Any = "sharded" if strategy == "sharded" else "full"
        self.strategy, self.plugins = FSDPStrategy(state_dict_type=kept), options["plugins"]
        self._signal_connector = SimpleNamespace()


@pytest.fixture
def asked(composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """`asked("trainer=fsdp")`: the trainer of that command, as if there were GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("workbench.trainer.instantiate", lambda node, **_: partial(Asked, **node))

    def trainer(*words: str) -> Asked:
        cfg = composed(*words, "logger=[]", "paths.run=x")
        cfg.callbacks = {}
        made: Any = build_trainer(cfg)
        assert isinstance(made, Asked)
        return made

    return trainer


def test_parameters_in_shards_are_saved_as_one_file(asked: Callable[..., Asked], tmp_path: Path) -> None:
    trainer = asked("trainer=fsdp")
    trainer.strategy.checkpoint_io = next(p for p in trainer.plugins if isinstance(p, AtomicCheckpoints))
    file = tmp_path / "last.ckpt"
    trainer.strategy.save_checkpoint({"epoch": 1}, file)
    before = file.read_bytes()
    content = {"epoch": 2, "state_dict": {"a": torch.ones(10_000)}}
    with pytest.raises(WriteError, match=r"last\.ckpt cannot be written: .* paths\.runs"), small_files():
        trainer.strategy.save_checkpoint(content, file)
    assert file.read_bytes() == before
    assert left_in(tmp_path) == ["last.ckpt"]


def test_checkpoints_in_folders_are_refused(asked: Callable[..., Asked], tmp_path: Path) -> None:
    """Their writers leave halves, their readers run what is in them: neither is done."""
    with pytest.raises(UsageError, match=r"FSDPStrategy are folders of shards.*: take trainer=fsdp"):
        asked("trainer=ddp", "trainer.strategy=sharded")
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.mkdir(parents=True)
    (last / "meta.pt").touch()
    with pytest.raises(CheckpointError, match=r"last\.ckpt is a folder"):
        point_to_resume(tmp_path, OmegaConf.create())


# -- libraries that write by themselves ----------------------------------------------------------------------


def sound(root: Path) -> None:
    soundfile.write(root / "a.wav", np.zeros(8000), 8000)


def jpeg(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(root / "a.jpg", "JPEG")


def video(root: Path) -> None:
    with av.open(str(root / "a.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (64, 64, 3), np.uint8))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def arrays(root: Path) -> None:
    np.save(root / "a.npy", np.zeros(1000))


@pytest.mark.parametrize("write", [sound, jpeg, video, arrays])
def test_a_sample_is_drawn_whole_or_not_at_all(write: Write, tmp_path: Path) -> None:
    """C libraries hide why a write failed, or even that it did: Pillow cuts a JPEG short without a word."""
    stamp = {"task": "x", "version": 1}
    with pytest.raises(WriteError, match=r"samples/x cannot be written: .* paths\.samples"), small_files():
        draw_once(tmp_path / "samples" / "x", stamp, write)
    assert left_in(tmp_path) == []
    draw_once(tmp_path / "samples" / "x", stamp, write)
    assert len(left_in(tmp_path)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [*tasks_of("audio"), *tasks_of("image"), *tasks_of("point_cloud"), *tasks_of("video"), "etth1"]
)
def test_every_sample(task: str, composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    modality = (
        next(name for name in ("audio", "image", "video", "point_cloud") if task in tasks_of(name))
        if (task != "etth1")
        else "time_series"
    )
    cfg = composed(f"modality={modality}", f"task={task}", f"paths.samples={tmp_path}/samples")
    data = instantiate(cfg.task.data)
    with pytest.raises(WriteError, match=r"cannot be written: .* paths\.samples=FOLDER"), small_files(300):
        data.prepare_data()
    assert left_in(tmp_path) == []


def test_a_cache_that_cannot_be_kept_costs_time_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = np.arange(100_000)
    for _ in range(2):
        with small_files():
            keep_array(tmp_path / "a" / "b.npy", kept, tmp_path)
        assert left_in(tmp_path) == []
        assert read_array(tmp_path / "a" / "b.npy") is None
    assert caplog.text.count("going on without it") == 1
    keep_array(tmp_path / "a" / "b.npy", kept, tmp_path)
    assert np.array_equal(read_array(tmp_path / "a" / "b.npy"), kept)  # type: ignore[arg-type]


# -- loggers of other libraries ------------------------------------------------------------------------------


def event_file(folder: Path) -> Logger:
    return TensorBoardLogger(folder, "tensorboard", version="", default_hp_metric=False)


def log_epochs(logger: Logger) -> None:
    logger.log_hyperparams({"seed": 0})
    for epoch in range(4):
        logger.log_metrics({"epoch": epoch, "val/loss": 1.0}, epoch)
    logger.finalize("success")


@pytest.mark.parametrize("part", [0, 0.3, 0.6, 0.999])
def test_an_event_file_that_is_cut_off_is_told(
    part: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_epochs(telling(event_file(tmp_path / "whole"), str(tmp_path)))
    (whole,) = (tmp_path / "whole" / "tensorboard").glob("events*")
    logger = telling(event_file(tmp_path / "cut"), str(tmp_path))
    said = rf"cut/tensorboard cannot be written: .* {RUNS}"
    with pytest.raises(WriteError, match=said), small_files(int(part * whole.stat().st_size)):
        log_epochs(logger)
    assert capfd.readouterr().err == "", "no traceback of a thread"


def test_an_event_file_whose_thread_is_slow_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is asked when the queue is empty, and keeps its error a moment later: then nobody asks again."""
    run = _AsyncWriterThread._run

    def slow(thread: _AsyncWriterThread) -> None:
        try:
            run(thread)
        except OSError:
            time.sleep(0.5)
            raise

    monkeypatch.setattr(_AsyncWriterThread, "_run", slow)
    logger = telling(event_file(tmp_path), str(tmp_path))
    logger.log_metrics({"val/loss": 1.0}, 0)
    logger.save()
    with small_files(50):
        logger.log_metrics({"val/loss": 1.0}, 1)
        with pytest.raises(WriteError, match="tensorboard cannot be written"):
            logger.finalize("success")


class OfAService(Logger):
    """Like W&B's: another process writes, and an error of the library's own says that this one has ended."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    name, version = "service", ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self.folder.mkdir(exist_ok=True)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        try:
            with (self.folder / "log").open("ab") as file:
                file.write(b"x" * 300)
        except OSError:
            raise self.Ended("the service has gone") from None

    class Ended(Exception): ...


class OfAFileStore(OfAService):
    """Like MLflow's: a file for each metric, and the system's own errors, which name no file."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with (self.folder / "loss").open("ab") as file:
            file.write(b"x" * 300)


@pytest.mark.parametrize("kind", [OfAService, OfAFileStore])
def test_any_logger_tells(kind: type[OfAService], tmp_path: Path) -> None:
    log_epochs(telling(kind(tmp_path / "a"), str(tmp_path)))
    logger = telling(kind(tmp_path / "b"), str(tmp_path))
    with pytest.raises(WriteError, match=rf"{tmp_path}/b cannot be written: .* {RUNS}"), small_files():
        log_epochs(logger)
    (tmp_path / "c" / "log").mkdir(parents=True)
    with pytest.raises(OfAService.Ended, match="gone"):  # where the disk takes more, an error stays itself
        log_epochs(telling(OfAService(tmp_path / "c"), str(tmp_path)))


def test_a_run_that_ends_already_is_not_told_of_its_loggers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = telling(event_file(tmp_path), str(tmp_path))
    logger.save()
    with small_files(50):
        with suppress(WriteError):  # where the thread is quick
            logger.log_metrics({"val/loss": 1.0}, 1)
        logger.finalize("failed")  # the trainer is about to raise why
    assert "tensorboard cannot be written" in caplog.text


# -- whole commands ------------------------------------------------------------------------------------------

FIT = (
    *(*TINY, "task=audio_folder", "trainer.max_epochs=2", "trainer.limit_train_batches=2"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "logger=csv", "task.data.num_workers=0"),
)


class FullAfter:
    """A disk on which `last.ckpt` is written so many times."""

    def __init__(self, times: int) -> None:
        self.left, self.save = times, AtomicCheckpoints.save_checkpoint

    def __call__(self, own: AtomicCheckpoints, content: Any, path: Any, storage_options: Any = None) -> None:
        self.left -= Path(path).name == "last.ckpt"
        if self.left >= 0:
            return self.save(own, content, path, storage_options)
        with small_files():
            return self.save(own, content, path, storage_options)


def test_a_full_disk_during_training_costs_an_epoch(
    act: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = (*FIT, "callbacks.pictures=null", "action.test_after=false")
    unbroken = act(*words, folder="unbroken") / "checkpoints" / "last.ckpt"
    full, save = FullAfter(1), AtomicCheckpoints.save_checkpoint
    monkeypatch.setattr(AtomicCheckpoints, "save_checkpoint", lambda *args, **options: full(*args, **options))
    with pytest.raises(SystemExit) as stop:
        act(*words)
    monkeypatch.setattr(AtomicCheckpoints, "save_checkpoint", save)
    assert stop.value.code == 1
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    (line,) = (record.message for record in caplog.records if record.levelno == logging.ERROR)
    assert line.startswith(f"error: {last} cannot be written: ")
    assert line.endswith(f"and go on from {last} with resume={run}")
    assert json.loads((run / "error.json").read_text())["error"] == line.removeprefix("error: ")
    assert not [name for name in left_in(run) if "ckpt-" in name]
    assert torch.load(last, weights_only=True)["epoch"] == 0, "the one before is kept"
    act(*words, f"resume={run}")
    ours, theirs = (torch.load(file, weights_only=True)["state_dict"] for file in (last, unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (run / "error.json").exists()


def test_the_last_event_of_a_run(
    act: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a test measures is written last: a disk that is full by then loses it, and the run says so."""
    words = (*FIT, "trainer.max_epochs=1", "logger=tensorboard", "callbacks.pictures=null")
    with refusing(f"{tmp_path}/whole/tensorboard/events*", after=10**6) as events:
        act(*words, folder="whole")
    with (
        pytest.raises(SystemExit) as stop,
        refusing(f"{tmp_path}/run/tensorboard/events*", after=events.asked - 1),
    ):
        act(*words)
    assert stop.value.code == 1
    (line,) = (record.message for record in caplog.records if record.levelno == logging.ERROR)
    run = tmp_path / "run"
    assert line.startswith(f"error: {run}/tensorboard cannot be written: the disk is full; free some space")
    assert line.endswith(f"go on from {run}/checkpoints/last.ckpt with resume={run}")
    assert json.loads((run / "error.json").read_text())["error"] == line.removeprefix("error: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("config.yaml", "composition.json", "metrics.csv", "best.ckpt", "inputs.png"),
        *("curves.png", "test_report.json", "result.json", "confusion.png", "tensorboard"),
    ],
)
def test_every_file_of_a_run(
    name: str, act: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them refused: the run says which, and ends with an exit code that is not 0."""
    with pytest.raises(SystemExit) as stop, refusing(f"{tmp_path}/run/*{name}*"):
        act(*FIT, "trainer.max_epochs=1", "logger=[csv,tensorboard]")
    assert stop.value.code == 1
    (line,) = (record.message for record in caplog.records if record.levelno == logging.ERROR)
    assert name.rstrip("*") in line
    assert "cannot be written: the disk is full; free some space" in line
    assert not [file for file in left_in(tmp_path / "run") if f".{name}-" in file]


CLIPS = ("action.inputs=2", "action.batch_size=2")


@pytest.fixture(scope="module")
def trained(
    composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = (*FIT, "trainer.max_epochs=1", "callbacks.pictures=null", "logger=[]")
    run_action(composed(*words, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("export",), ("model.pt2", "model.onnx", "model.json")),
        (("probe_erf", *CLIPS), ("erf.json", "erf.csv", "erf.npz", "erf.png")),
        (("probe_kernels",), ("kernels.json", "kernels.csv", "kernels.png", "kernel_energy.png")),
        (
            ("probe_cka", "action.inputs=4", "action.batch_size=4", "action.against=[untrained]"),
            ("cka.json", "cka.csv"),
        ),
        (
            (
                *("probe_robustness", "action.corruptions=[noise]", "+action.severities.noise=[0.1]"),
                "trainer.limit_test_batches=1",
            ),
            ("robustness.json", "robustness.csv", "robustness.png"),
        ),
        (("test",), ("config.yaml", "result.json", "test_report.json", "confusion.png")),
    ],
)
def test_every_file_of_an_action(
    words: tuple[str, ...],
    names: tuple[str, ...],
    trained: Path,
    act: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each refused when it is opened: one sentence that names it, no draft, and the next attempt writes it."""
    for name in names:
        caplog.clear()
        pattern = f"{tmp_path}/{name}/*{name}*"
        with pytest.raises(SystemExit) as stop, refusing(pattern) as refused:
            act("trainer=cpu", f"action={words[0]}", *words[1:], f"ckpt={trained}", folder=name)
        assert refused.asked, f"{name} is not written at all"
        assert stop.value.code == 1
        (line,) = (record.message for record in caplog.records if record.levelno == logging.ERROR)
        assert name.split("*")[0] in line
        assert "cannot be written: the disk is full; free some space" in line
        assert not [file for file in left_in(tmp_path / name) if f".{name}-" in file]
    folder = act("trainer=cpu", f"action={words[0]}", *words[1:], f"ckpt={trained}", folder="whole")
    assert all(list(folder.rglob(name)) for name in names)


def test_what_hydra_cannot_write() -> None:
    """It makes the run's folder, its log and its record of the command before the program has a say."""
    log = ValueError("Unable to configure handler 'file'")
    log.__cause__ = OSError(errno.EROFS, "Read-only file system", "runs/x/run.log")
    for error, said in (
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs/x"), "a file lies where its folder goes"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "the disk is full; free some space"),
        (log, "runs/x/run.log cannot be written: it lies on a read-only file system"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{said}.* paths.runs=FOLDER"), plain_words():
            raise error
    with pytest.raises(ValueError, match="mine"), plain_words():
        raise ValueError("mine")


@pytest.mark.slow
def test_a_run_folder_that_cannot_be_made(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "runs").write_text("a file")
    done = command(tmp_path, *TINY, "task=audio_folder")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = (line for line in done.stderr.splitlines() if "error" in line)
    assert "runs" in line


def test_the_log_of_a_full_disk_is_silent(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    code = (
        "import logging, workbench.command_line\n"
        "handler = logging.FileHandler('/dev/full')\n"
        "logging.getLogger('widefield').addHandler(handler)\n"
        "logging.getLogger('widefield').warning('hello')\n"
    )
    import sys

    from tests_support import ROOT

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr


def test_errors_of_other_kinds_stay(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes differ"), KeyError("x"), FileNotFoundError(2, "gone", "/data/a.wav")):
        with pytest.raises(type(error)), writing(tmp_path / "a", "or"):
            raise error
    assert sentence(FileNotFoundError(2, "No such file or directory", "/data/a.wav")) == (
        "/data/a.wav: no such file or directory"
    )
    assert sentence(RuntimeError("shapes differ")) is None


def test_ctrl_c_in_any_action_is_one_sentence(
    act: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.info.build_data", stop)
    with pytest.raises(SystemExit) as stopped:
        act("action=info", *TINY)
    assert stopped.value.code == 130
    assert caplog.messages[-1] == "stopped by SIGINT"


def test_a_disk_that_takes_no_error_file_hides_no_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), refusing(f"{tmp_path}/*"), kept_errors(tmp_path / "run"):
        raise ValueError("mine")
    shutil.rmtree(tmp_path)
