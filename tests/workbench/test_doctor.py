"""action=doctor: one screen, true of this install and of broken ones."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests_support import ROOT

from tasks.libraries import INSTALL
from workbench import doctor
from workbench.doctor import Answer, Library, examine, installed, run_check, try_library
from workbench.resolvers import run_folder

ABSENT = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)"
UNDEFINED = 'raise OSError("/opt/lib/libtorchaudio.so: undefined symbol: of_torch")'


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`fake("torchaudio", "raise OSError()")` puts a package of that body before the real one, in new processes."""

    def write(library: str, body: str) -> None:
        (tmp_path / "fake" / library).mkdir(parents=True)
        (tmp_path / "fake" / library / "__init__.py").write_text(body)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))

    return write


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`only("soundfile")`: that library is really tried, the others are taken to be fine."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def choose(*names: str) -> None:
        def answer(library: Library) -> Answer:
            return try_library(library) if library.module in names else Answer("")

        monkeypatch.setattr(doctor, "try_library", answer)

    return choose


def test_a_whole_install_is_one_screen(
    new_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = new_command(tmp_path, "action=doctor", f"paths.runs={tmp_path / 'runs'}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= max(100, len(lines[0]))
    assert lines[-1].startswith("READY: ")
    for said in (
        *(
            f"torch {installed('torch')}",
            f"torchaudio {installed('torchaudio')}",
            f"timm {installed('timm')}",
        ),
        *("GPU", "kernels", "WIDEFIELD_KERNELS=on", "not asked (HF_HUB_OFFLINE)", "extras", "writable"),
        *("soundfile", "resampling: torchaudio", "av ", "h5py", "pyarrow"),
    ):
        assert said in done.stdout
    assert "FAILS" not in done.stdout
    assert not (tmp_path / "runs").exists(), "it leaves no run"


def test_a_torchaudio_that_does_not_load(
    fake: Callable[[str, str], None], only: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake("torchaudio", UNDEFINED)
    only("torchaudio")
    assert not examine()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"NOT READY: torchaudio: OSError: libtorchaudio.so: undefined symbol: of_torch: {INSTALL}"


def test_no_audio_reader(
    fake: Callable[[str, str], None], only: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake("soundfile", ABSENT)
    only("soundfile")
    assert not examine()
    said = capsys.readouterr().out
    assert "FAILS (not installed)" in said
    assert f"soundfile: {INSTALL}" in said
    assert said.splitlines()[-1] == f"NOT READY: soundfile: not installed: {INSTALL}"


def test_a_reader_that_some_data_need_does_not_stop_training(
    fake: Callable[[str, str], None], only: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake("open3d", "import os; os.abort()")
    fake("h5py", "raise ImportError('DLL load failed')")
    only("open3d", "h5py")
    assert examine()
    said = capsys.readouterr().out
    assert "ended by signal 6" in said
    assert said.splitlines()[-1] == "READY: this install can train; without open3d, h5py"


@pytest.mark.parametrize("library", ["torchaudio", "hydra"])
def test_the_command_answers_whatever_is_broken(
    fake: Callable[[str, str], None], tmp_path: Path, library: str
) -> None:
    # The command as typed, with the checks cut short: only the library in question is tried.
    fake(library, UNDEFINED if library == "torchaudio" else ABSENT)
    start = (
        "import sys, runpy; from workbench import doctor; real = doctor.try_library\n"
        f"doctor.try_library = lambda it: real(it) if it.module == {library!r} else doctor.Answer('')\n"
        f"sys.argv = ['run.py', 'action=doctor']; sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')"
    )
    file = tmp_path / "start.py"
    file.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{start}")
    done = subprocess.run(
        [sys.executable, str(file)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"NOT READY: {library}: ")


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from workbench import doctor; "
        "sys.exit(', '.join({'torch', 'lightning', 'hydra', 'rich', 'numpy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_version_that_is_not_the_tested_one_is_said(
    only: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only()
    monkeypatch.setattr(doctor, "tested_set", lambda: {"torch": "1.0", "timm": str(installed("timm"))})
    assert examine()
    said = capsys.readouterr().out
    assert f"torch {installed('torch')} [tested 1.0]" in said
    assert "1 of 2 versions differ" in said


def test_folders_that_cannot_be_written(
    only: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only()

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert examine(), "they may be elsewhere in a run"
    assert "NOT writable (Permission denied)" in capsys.readouterr().out
    assert not run_folder("runs", "doctor", "t", "b", None, None).startswith("runs"), "it starts all the same"


def test_a_check_that_hangs_ends() -> None:
    assert run_check("import time; time.sleep(60)", patience=0.5).error.startswith("no answer within")


def test_a_hub_that_does_not_answer_is_no_failure(
    only: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert examine()
    assert "no answer" in capsys.readouterr().out
