"""benchmarks/depthwise.py and benchmarks/model.py, small, on a CPU."""

import csv
import importlib
from pathlib import Path

import pytest
import torch
from tests_support import ROOT
from turns_support import fails_in_its_turn

from backbone import UniRepLKNet


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("WIDEFIELD_KERNELS", "off")


@pytest.mark.figures
def test_depthwise_writes_table_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    depthwise = importlib.import_module("depthwise")
    for name, values in (("NETWORK", ((16, 7, 5),)), ("KERNEL_SIZES", (3, 5)), ("MAP_SIDES", (5, 8))):
        monkeypatch.setattr(depthwise, name, values)
    rows = depthwise.main(["--device", "cpu", "--batch", "1", "--out", str(tmp_path)])
    assert [(row.series, row.side, row.kernel_size) for row in rows] == [
        ("network", 7, 5),
        ("kernel size", 14, 3),
        ("kernel size", 14, 5),
        ("map size", 5, 13),
        ("map size", 8, 13),
    ]
    for row in rows:
        assert row.f_ours > 0
        assert row.fb_ours > 0
        assert 0 < row.f_floor < row.fb_floor
        assert row.error < 1e-5
    with (tmp_path / "depthwise.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 5
    assert (tmp_path / "depthwise.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "ours is PyTorch's here" in shown
    assert "TB/s" in shown


def test_model_compares_forms_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = importlib.import_module("model")
    threads = torch.get_num_threads()
    try:
        rows = model.main(
            [
                "--device",
                "cpu",
                "--batch",
                "1",
                "--resolution",
                "32",
                "--models",
                "a",
                "--forms",
                "eager",
                "--out",
                str(tmp_path),
            ]
        )
    finally:
        torch.set_num_threads(threads)
    assert len(rows) == 8
    assert all(row.images_per_s > 0 for row in rows)
    with (tmp_path / "model.csv").open(newline="") as file:
        assert [row["model"] for row in csv.DictReader(file)] == [row.model for row in rows]
    assert "deploy form, channels last" in capsys.readouterr().out


@pytest.mark.slow
def test_networks_are_measured_in_turns_and_a_failure_stops_none() -> None:
    model, turns = importlib.import_module("model"), importlib.import_module("turns")
    settings = [
        model.Setting("training", network, "eager", "last", "fp32", 2, 32, "cpu")
        for network in ("unireplknet_a", "no_such_network", "unireplknet_a plain")
    ]
    answers = list(turns.in_turns(model.measure, settings, jobs=2))
    assert [setting for setting, _ in answers] == settings
    (_, ours), (_, failed), (_, plain) = answers
    assert ours[0] > 0
    assert plain[0] > 0
    assert "no_such_network" in failed


def test_a_measurement_may_fail_in_its_turn() -> None:
    turns = importlib.import_module("turns")
    answers = dict(turns.in_turns(fails_in_its_turn, [1, 0], jobs=2))
    assert answers == {1: 1, 0: "ZeroDivisionError: integer division or modulo by zero"}


def test_steps_on_a_cpu_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = importlib.import_module("model")
    tiny = lambda: UniRepLKNet(1, 3, (1, 1, 1, 1), (4, 4, 8, 8))  # noqa: E731
    monkeypatch.setattr(model, "STEPS", {"tiny": (2, (32, 24), tiny)})
    threads = torch.get_num_threads()
    rows = model.steps_on_cpu(repeats=1)
    torch.set_num_threads(threads)
    forms = {"tiny, 1 threads", "tiny plain, 1 threads", "tiny, 2 threads", "tiny plain, 2 threads"}
    assert {(row.model, row.best) for row in rows} == {(f, c) for f in forms for c in ("processor", "wall")}
    assert all(row.ms > 0 for row in rows)


def test_starts_are_cold_and_warm_and_a_failure_stops_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = importlib.import_module("start")
    words = ["--device", "cpu", "--dtype", "tf32", "--batch", "1", "--resolution", "32", "--forms", "eager"]
    rows = start.main([*words, "--models", "no_such_network", "convnext_atto", "--out", str(tmp_path)])
    assert [(row.model, row.caches) for row in rows] == [("convnext_atto", "cold"), ("convnext_atto", "warm")]
    assert all(0 < row.imports_s < row.first_step_s < row.fifth_step_s for row in rows)
    assert all(row.ms > 0 for row in rows)
    assert len((tmp_path / "start.csv").read_text().splitlines()) == 3
    assert (
        "no_such_network, eager, cold failed: RuntimeError: Unknown model (no_such_network)"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_processes_train_together_with_ddp(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ddp = importlib.import_module("ddp")
    words = [
        "--device",
        "cpu",
        "--model",
        "unireplknet_a",
        "--batch",
        "2",
        "--resolution",
        "32",
        "--forms",
        "eager",
    ]
    words += ["--dtype", "tf32", "--steps", "1", "--repeats", "1", "--out", str(tmp_path)]
    one, two = ddp.main(words)
    assert (one.processes, two.processes) == (1, 2)
    assert (one.ratio, one.average_ms) == (1, 0)
    assert two.average_ms > 0  # gradients were averaged over processes
    assert two.ratio == pytest.approx(two.images_per_s / one.images_per_s)
    with (tmp_path / "ddp.csv").open(newline="") as file:
        assert [row["processes"] for row in csv.DictReader(file)] == ["1", "2"]


@pytest.mark.slow
def test_whole_dense_networks_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = importlib.import_module("dense")
    words = [
        "--device",
        "cpu",
        "--only",
        "segmentation",
        "--size",
        "64",
        "--batch",
        "2",
        "--out",
        str(tmp_path),
    ]
    rows = dense.main([*words, "--models", "unireplknet_a"])
    settings = [(row.mode, row.form) for row in rows]
    assert settings == [(mode, form) for mode in dense.MODES for form in ("eager", "recorded")]
    assert all(row.ms > 0 for row in rows)
    assert "segmentation, training, recorded" in capsys.readouterr().out
