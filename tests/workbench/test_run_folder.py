"""Every run has a folder of its own; the processes of a distributed one share it."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from workbench import resolvers
from workbench.resolvers import run_folder


class Frozen(datetime):
    @classmethod
    def now(cls, tz: object = None) -> "Frozen":
        return cls(2026, 1, 2, 3, 4, 5)


@pytest.fixture(autouse=True)
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "datetime", Frozen)
    for key in [key for key in os.environ if key.startswith(("SLURM", "TORCHELASTIC"))]:
        monkeypatch.delenv(key)


def ask(runs: Path, times: int) -> list[str]:
    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(lambda _: run_folder(str(runs), "fit", "esc50", "nano", None), range(times)))


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "esc50").mkdir()
    (tmp_path / "esc50" / "2026-01-02_03-04-05_nano").touch()  # a file in the way
    folders = ask(tmp_path, 8)
    assert len(set(folders)) == 8
    names = {f"2026-01-02_03-04-05_nano-{number}" for number in range(2, 10)}
    assert {Path(folder).name for folder in folders} == names
    assert all(Path(folder).is_dir() for folder in folders)


@pytest.mark.parametrize(
    "job",
    [
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"},
        {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "MASTER_PORT": "29500"},
    ],
)
def test_processes_of_one_run_share_its_folder(
    tmp_path: Path, job: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in job.items():
        monkeypatch.setenv(key, value)
    folders = ask(tmp_path, 8)
    assert len(set(folders)) == 1
    assert [str(path) for path in (tmp_path / "esc50").iterdir()] == folders[:1]
    claim = next((tmp_path / ".jobs").iterdir())
    os.utime(claim, (0, 0))  # an earlier job that was called the same
    (later,) = ask(tmp_path, 1)
    assert later not in folders
    assert {str(path) for path in (tmp_path / "esc50").iterdir()} == {folders[0], later}


def test_a_disk_that_takes_no_folders_is_not_our_error(tmp_path: Path) -> None:
    (tmp_path / "esc50").write_text("a file")
    assert run_folder(str(tmp_path), "fit", "esc50", "nano", None).endswith("2026-01-02_03-04-05_nano")
