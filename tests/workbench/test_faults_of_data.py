"""Files that vanish, shrink or become unreadable after they were listed: named and counted, no traceback."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig
from tests_support import TINY

from tasks.datasets.base import DataModule
from tasks.datasets.batch import Failure, Sample

TASKS = {
    "audio_folder": "audio",
    "image_folder": "image",
    "cifar10": "image",
    "point_folder": "point_cloud",
    "modelnet10": "point_cloud",
    "hmdb51": "video",
}
FAST = ("audio_folder",)


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def as_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


FAULTS: dict[str, Callable[[Path], object]] = {
    "deleted": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: max(file.stat().st_size // 3, 20)]),
    "garbage": lambda file: file.write_bytes(bytes(range(255, 0, -1)) * 9),
    "folder": as_folder,
    "loop": as_loop,
}


@pytest.fixture(scope="module")
def drawn(
    samples: Path, composed: Callable[..., DictConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[DataModule, Path]]:
    def make(task: str) -> tuple[DataModule, Path]:
        """A data module, its items listed, of a copy of a task's sample."""
        words = (f"modality={TASKS[task]}", f"task={task}", "task.data.num_workers=0")
        own: DataModule = instantiate(composed(*words, f"paths.samples={samples}").task.data)
        own.prepare_data()
        folder = tmp_path_factory.mktemp("copy") / task
        shutil.copytree(own.root, folder)
        cache = folder.parent / "cache"
        more = [f"task.data.cache_dir={cache}"] if task in ("point_folder", "modelnet10", "hmdb51") else []
        data: DataModule = instantiate(composed(*words, *more, f"data_dir={folder}").task.data)
        data.setup()
        return data, folder

    return make


@pytest.mark.parametrize(
    "task", [task if task in FAST else pytest.param(task, marks=pytest.mark.slow) for task in TASKS]
)
def test_files_that_change_after_they_were_listed(
    task: str, drawn: Callable[[str], tuple[DataModule, Path]]
) -> None:
    data, _ = drawn(task)
    dataset = data.loader("train", batch_size=4).dataset
    files = list(dict.fromkeys(item.path for item in data.splits["train"]))
    if len(files) < len(FAULTS):  # a few large files, which were read when they were listed
        pytest.skip(f"{task} keeps {len(files)} files")
    chosen = dict(zip(FAULTS, files, strict=False))
    for fault, file in chosen.items():
        FAULTS[fault](file)
    for fault, file in chosen.items():
        index = next(i for i, item in enumerate(data.splits["train"]) if item.path == file)
        sample = dataset[index, 0]
        if fault == "cut" and isinstance(sample, Sample):  # what is left of some formats can be read
            continue
        assert isinstance(sample, Failure), (fault, sample)
        assert str(file) in sample.said, fault
        assert "\n" not in sample.said, fault


def test_files_deleted_during_training_are_named_and_the_checkpoint_is_kept(
    act: Callable[..., Path],
    drawn: Callable[[str], tuple[DataModule, Path]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, folder = drawn("audio_folder")
    with pytest.raises(SystemExit) as stop:
        act(
            *(*TINY, "task=audio_folder", f"data_dir={folder}", "trainer.max_epochs=3", "logger=csv"),
            *("trainer.limit_val_batches=1", "callbacks.pictures=null", "task.data.num_workers=1"),
            *("+callbacks.empty._target_=callbacks_support.Empties", f"+callbacks.empty.folder={folder}"),
        )
    assert stop.value.code == 1
    said = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1
    assert "files cannot be read (1% or more), the first: " in said[0]
    assert str(folder) in said[0]
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
