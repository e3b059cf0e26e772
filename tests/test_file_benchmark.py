"""benchmarks/files.py on two small kinds of file."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests_support import ROOT


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("file_benchmark", ROOT / "benchmarks" / "files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_two_checkouts_take_turns(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--only",
        "17,420 hours",
        "--against",
        str(ROOT),
        "--turns",
        "1",
        "--out",
        str(tmp_path / "a.csv"),
    ]
    (row,) = benchmark.main(words)
    assert (row.modality, row.kind) == ("time_series", "csv, 17,420 hours, 7 columns")
    assert row.before_ms > 0
    assert 0.1 < row.ratio < 10, "the same code, in two processes"
    assert "| time_series | csv, 17,420 hours, 7 columns |" in capsys.readouterr().out
    assert (tmp_path / "a.csv").read_text().startswith("modality,kind,size_kb,before_ms,now_ms\n")


def test_every_modality_is_measured(benchmark: ModuleType) -> None:
    kinds = benchmark.kinds()
    assert {modality for modality, _ in kinds} == {"audio", "image", "point_cloud", "time_series", "video"}
    assert len({name for name, _ in kinds.values()}) == len(kinds), "a file for each kind"


def test_what_is_no_checkout_is_refused(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--against", str(tmp_path)])


def test_a_kind_that_only_one_reads_has_no_ratio(benchmark: ModuleType, tmp_path: Path) -> None:
    other = tmp_path / "tasks" / "datasets"
    other.mkdir(parents=True)
    for folder in (other, other.parent):  # before a checkout of this environment's
        (folder / "__init__.py").touch()
    (other / "series_table.py").write_text("def read_csv(path):\n    raise ValueError('unknown')\n")
    (row,) = benchmark.measure(["17,420 hours"], tmp_path, 1)
    assert row.before_ms is None
    assert row.ratio is None
