"""What the wheel holds, and that it runs where there is no checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests_support import ROOT
from wheel_support import copy_of_project, pip, wheel_of

from tasks import program
from workbench import results

CODE = ("modalities", "backbone", "tasks", "workbench", "hydra_plugins/widefield")


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with one commit, and a file of the user's own that no wheel may hold."""
    folder = copy_of_project(tmp_path_factory.mktemp("project"))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    (folder / "conf" / "local").mkdir()
    (folder / "conf" / "local" / "default.yaml").write_text("data_dir: /private\n")
    return folder


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(project, tmp_path_factory.mktemp("dist"))


def test_the_wheel_holds_everything_and_nothing_of_the_users(wheel: Path, project: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        commit = archive.read("workbench/commit.txt").decode().strip()
        scripts = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    code = {file.relative_to(ROOT).as_posix() for top in CODE for file in (ROOT / top).rglob("*.py")}
    yaml = {file.relative_to(ROOT / "conf").as_posix() for file in (ROOT / "conf").rglob("*.yaml")}
    yaml = {name for name in yaml if not name.startswith("local/")}
    markers = {f"{top}/py.typed" for top in ("modalities", "backbone", "tasks", "workbench", "widefield")}
    pages = {f"workbench/report/page.{ending}" for ending in ("css", "html", "js")}
    records = {"workbench/start/run.py", "workbench/constraints.txt", "workbench/commit.txt"}
    wanted = code | {f"workbench/conf/{name}" for name in yaml} | markers | pages | records
    wanted |= {"widefield/__init__.py"}
    assert inside - {"workbench/api/py.typed"} == wanted
    assert commit == git(project, "describe", "--always", "--abbrev=12", "--exclude=*")
    assert "widefield = workbench.main:main" in scripts


@pytest.mark.slow
def test_an_installed_wheel_runs_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """`pip install`, then `widefield` for training, a sweep, its continuation and a question; inside another
    repository, whose commit is not ours."""
    home, outer = tmp_path / "site", tmp_path / "outer"
    pip("install", "--no-deps", "--target", home, wheel)
    outer.mkdir()
    git(outer, "init", "-q")
    git(outer, "commit", "-q", "--allow-empty", "-m", "of another project")
    environ = os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def widefield(*words: str) -> str:
        command = [sys.executable, str(home / "bin" / "widefield"), *words]
        done = subprocess.run(
            command, cwd=outer, env=environ, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    small = ("trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "task.data.limit=70")
    said = widefield("modality=audio", *small)
    assert "  widefield action=predict ckpt=runs/speech_commands/" in said
    assert "run.py" not in said
    (run,) = (outer / "runs" / "speech_commands").iterdir()
    result = json.loads((run / "result.json").read_text())
    with zipfile.ZipFile(wheel) as archive:
        assert result["git"] == archive.read("workbench/commit.txt").decode().strip()
    assert (outer / "data" / "samples" / "speech_commands").is_dir()
    clip = next((outer / "data" / "samples" / "speech_commands").glob("*/*.wav"))
    assert clip.name in widefield("action=predict", f"ckpt={run}", f"input={clip}")
    said = widefield("-m", "modality=audio", "seed=0,1", *small)
    assert said.count("  widefield action=export ckpt=runs/sweeps/") == 2
    (sweep,) = (outer / "runs" / "sweeps").iterdir()
    assert "2 done" in (said + widefield(f"sweep.resume={sweep}"))
    assert (sweep / "report" / "report.html").is_file()
    assert "widefield task=audio_folder" in widefield("--help")
    code = "import widefield, workbench; print(widefield.__file__, workbench.__file__)"
    places = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=outer, env=environ, capture_output=True, text=True, check=True
    )
    assert places.stdout.split() == [str(home / name / "__init__.py") for name in ("widefield", "workbench")]


# -- commits -------------------------------------------------------------------------------------------------


def test_a_repository_around_the_project_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "of another project")
    inner = tmp_path / "vendored"
    inner.mkdir()
    monkeypatch.setattr(results, "ROOT", inner)
    assert results.git_state() is None
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.git_state() == git(tmp_path, "rev-parse", "--short=12", "HEAD")


def test_an_installed_package_says_the_commit_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "INSTALLED", True)
    assert results.git_state() is None
    (tmp_path / "workbench").mkdir()
    (tmp_path / "workbench" / "commit.txt").write_text("0123456789ab\n")
    assert results.git_state() == "0123456789ab"


# -- how it is called ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("started", "installed", "said"),
    [
        ("/venv/bin/widefield", False, ("widefield",)),
        ("C:/venv/Scripts/widefield.exe", False, ("widefield",)),
        ("run.py", False, ("python", "run.py")),
        ("/site-packages/workbench/start/run.py", True, ("widefield",)),
        ("/usr/lib/ipykernel_launcher.py", True, ("widefield",)),
        ("/usr/lib/ipykernel_launcher.py", False, ("python", "run.py")),
    ],
)
def test_commands_say_how_the_program_was_started(
    monkeypatch: pytest.MonkeyPatch, started: str, installed: bool, said: tuple[str, ...]
) -> None:
    monkeypatch.setattr(program, "INSTALLED", installed)
    monkeypatch.setattr(sys, "argv", [started])
    assert program.program() == said
