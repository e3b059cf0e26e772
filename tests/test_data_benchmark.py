"""benchmarks/data.py on one small task."""

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tests_support import ROOT, TINY


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_benchmark", ROOT / "benchmarks" / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_one_task(
    benchmark: ModuleType, tmp_path: Path, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "data.csv"
    words = [*TINY, f"paths.samples={samples}", "task.data.batch_size=4", "--tasks", "tiny_imagenet"]
    rows = benchmark.main(
        [*words, "--workers", "0", "1", "--seconds", "0.2", "--device", "cpu", "--out", str(out)]
    )
    assert [(row.task, row.modality, row.workers, row.batch) for row in rows] == [
        ("tiny_imagenet", "image", 0, 4),
        ("tiny_imagenet", "image", 1, 4),
    ]
    for row in rows:
        assert row.read_per_s > 0
        assert row.step_ms > 0
        assert 0 <= row.waiting <= 1
    with out.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["read_per_s"]) for row in written] == pytest.approx(
        [row.read_per_s for row in rows], abs=1e-3
    )
    shown = capsys.readouterr().out
    assert "tiny_imagenet" in shown
    assert "waiting" in shown


def test_an_unknown_task_is_named(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--tasks", "nothing"])
    assert "no such task: nothing (there are " in capsys.readouterr().err


def test_all_tasks_are_found(benchmark: ModuleType) -> None:
    found = {task for modality in benchmark.modalities() for task in benchmark.tasks_of(modality)}
    assert {"speech_commands", "image_folder", "cifar10"} <= found
