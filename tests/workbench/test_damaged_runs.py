"""One damaged run is a row of the report that says what is damaged; the others are reported as ever."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.loggers import MetricsCsv
from workbench.report.gather import gather
from workbench.report.write import write_report
from workbench.sweeps.folder import Job, SweepFolder, read_record, write_record
from workbench.sweeps.job import _value, _verdict

RESULT = {
    **{"modality": "audio", "task": "esc50", "backbone": "nano", "seed": 0},
    **{"data": {"source": "sample", "data_dir": "x"}, "params": 10, "epochs": 2, "monitor": "val/acc"},
    **{"metrics": {"test/acc": 0.5, "val/acc": 0.5}, "best": 0.5, "wall_s": 1.0, "device": "cpu"},
    **{"precision": "32-true", "git": "abc"},
}
FILES = (
    *("result.json", "job.json", "composition.json", "config.yaml", "metrics.csv", "test_report.json"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt", ".hydra/overrides.yaml"),
)
GARBAGE = bytes(range(255, 0, -1)) * 40


def put_run(folder: Path, score: float) -> None:
    """Every file of a run, as it leaves them."""
    (folder / "checkpoints").mkdir(parents=True)
    result = RESULT | {"metrics": RESULT["metrics"] | {"test/acc": score}}  # type: ignore[operator]
    record = {"status": "done", "error": None, "value": 0.5, "overrides": ["optimizer.lr=0.1"], "axes": []}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "job.json").write_text(json.dumps(record))
    (folder / "composition.json").write_text('{"modality": "audio", "task": "esc50", "backbone": "nano"}')
    (folder / "config.yaml").write_text("task:\n  mode: max\n")
    (folder / "metrics.csv").write_text("epoch,step,val/acc\n0,1,0.25\n1,2,0.5\n")
    (folder / "test_report.json").write_text('{"confusion": [[1, 0], [0, 1]]}')
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("- optimizer.lr=0.1\n")
    for name in ("best", "last"):
        with zipfile.ZipFile(folder / "checkpoints" / f"{name}.ckpt", "w") as file:
            file.writestr("archive/data.pkl", b"x")


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").touch()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(GARBAGE),
    "zeros": lambda file: file.write_bytes(b"\0" * 5000),
    "folder": as_folder,
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number in range(3):
        put_run(tmp_path / "runs" / f"{number}", 0.5 + number / 10)
    return tmp_path / "runs"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_a_row(runs: Path, name: str, damage: str) -> None:
    if name == ".hydra/overrides.yaml":  # the words of a sweep's run stand in its job.json too
        (runs / "1" / "job.json").unlink()
    DAMAGES[damage](runs / "1" / name)
    found = gather(runs)
    table = found.table.set_index("run")
    assert table["status"].tolist() == ["done", "damaged", "done"]
    assert table.loc["1", "error"].startswith(f"damaged: {name}")
    assert len(found.done) == 2
    assert found.maximise["test/acc"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_with_nothing_but_damage(runs: Path, damage: str) -> None:
    for name in FILES:
        DAMAGES[damage](runs / "1" / name)
    page = write_report(runs)
    text = page.with_name("report.md").read_text()
    assert "3 runs: 2 done, 1 damaged" in text
    (line,) = (line for line in text.splitlines() if line.startswith("- `1`"))
    assert all(name in line for name in FILES if name != ".hydra/overrides.yaml")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "[1, 2]"),
        ("result.json", json.dumps(RESULT | {"metrics": [1]})),
        ("result.json", json.dumps(RESULT | {"metrics": {"test/acc": "much"}})),
        ("result.json", json.dumps(RESULT | {"metrics": {"run": 1.0}})),
        ("result.json", json.dumps(RESULT | {"metrics": {"test/acc": float("nan")}})),
        ("result.json", json.dumps(RESULT | {"best": 10**400})),
        ("result.json", json.dumps(RESULT | {"seed": {"a": 1}})),
        ("result.json", json.dumps(RESULT | {"task": ["esc50"]})),
        ("result.json", json.dumps(RESULT | {"data": "sample"})),
        ("job.json", '{"status": 7}'),
        ("job.json", '{"status": "done", "overrides": [1, {"a": 2}]}'),
        (".hydra/overrides.yaml", "a: b: c"),
    ],
)
def test_files_that_say_something_else(runs: Path, name: str, content: str) -> None:
    if name == ".hydra/overrides.yaml":
        (runs / "1" / "job.json").unlink()
    (runs / "1" / name).write_text(content)
    table = gather(runs).table.set_index("run")
    assert table["status"].tolist() == ["done", "damaged", "done"]
    assert f"damaged: {name}" in table.loc["1", "error"]


def test_half_a_character_is_written(runs: Path) -> None:
    (runs / "1" / "result.json").write_text(json.dumps(RESULT | {"backbone": "\ud800"}))
    assert write_report(runs).is_file()


def test_a_damaged_run_that_failed_says_both(runs: Path) -> None:
    record = {"status": "failed", "error": "too hot", "overrides": []}
    (runs / "1" / "job.json").write_text(json.dumps(record))
    (runs / "1" / "checkpoints" / "last.ckpt").write_bytes(GARBAGE)
    table = gather(runs).table.set_index("run")
    assert table.loc["1", "status"] == "failed"
    assert table.loc["1", "error"] == "too hot; damaged: checkpoints/last.ckpt (no checkpoint)"


# -- sweeps ------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(runs: Path) -> SweepFolder:
    made = SweepFolder(runs, "config", [], [], ".", jobs=[Job(str(number), []) for number in range(4)])
    made.save()
    return made


@pytest.mark.parametrize(
    "damage",
    ["garbage", "gone", *(pytest.param(one, marks=pytest.mark.slow) for one in DAMAGES if one != "garbage")],
)
def test_a_sweep_keeps_its_summary(sweep: SweepFolder, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    from workbench.sweeps.end import finish

    caplog.set_level("INFO")
    if damage == "gone":
        shutil.rmtree(sweep.path / "1")
        (sweep.path / "1").touch()  # a file where a run's folder was
    else:
        DAMAGES[damage](sweep.path / "1" / "job.json")
    assert finish(sweep, report=True) == 1
    assert "2 done, 1 failed, 1 missing" in caplog.text
    assert f"damaged: {sweep.path / '1' / 'job.json'}" in caplog.text
    assert (sweep.path / "report" / "report.html").is_file()
    assert [job.folder for job in sweep.unfinished()] == ["1", "3"], "it is made again"


def test_a_sweep_without_its_report_keeps_its_summary(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from workbench.sweeps.end import finish

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "report/runs.csv")

    caplog.set_level("INFO")
    monkeypatch.setattr("workbench.report.write.write_report", full)
    assert finish(sweep, report=True) == 1
    assert "there is no report: report/runs.csv cannot be written: the disk is full" in caplog.text
    assert "3 done, 1 missing" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_records_of_a_damaged_run(runs: Path, damage: str) -> None:
    for name in ("job.json", "result.json"):
        DAMAGES[damage](runs / "1" / name)
    DAMAGES["garbage"](runs / "1" / "metrics.csv")
    (runs / "1" / "error.json").write_text("[1]")
    assert read_record(runs / "1")["status"] == "failed"
    assert _value(runs / "1") is None
    assert _verdict(1, runs / "1") == ("failed", "ended with exit code 1")
    write_record(runs / "2", status="done")
    assert read_record(runs / "2") == {"status": "done", "value": None}


def test_jobs_elsewhere_are_no_rows(runs: Path) -> None:
    jobs = [Job("../../elsewhere", []), Job("/etc", []), Job("9", [])]
    SweepFolder(runs, "config", [], [], ".", jobs=jobs).save()
    assert gather(runs).table["run"].tolist() == ["0", "1", "2", "9"]


def test_a_resumed_run_says_that_its_history_is_damaged(tmp_path: Path) -> None:
    from workbench.errors import UsageError

    for content in (GARBAGE, b"epoch,step\nx,1\n", b"nothing\n1\n"):
        (tmp_path / "metrics.csv").write_bytes(content)
        with pytest.raises(UsageError, match=r"metrics\.csv is damaged"):
            MetricsCsv(str(tmp_path / "metrics.csv"))
