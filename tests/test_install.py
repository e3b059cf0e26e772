"""What pyproject.toml, constraints.txt, CI and the README say of an install agrees, and holds where readers lack."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from tests_support import ROOT

from tasks.datasets.audio.files import read_crop
from tasks.datasets.base import ReadError
from tasks.datasets.point_cloud.choice import open3d
from tasks.datasets.point_cloud.formats.reading import read_cloud
from tasks.datasets.reading import MissingLibrary
from tasks.datasets.shards.layout import write_index
from tasks.libraries import EXTRAS, OUTSIDE_THE_SET, complaint, complaint_of, cure


def resolver() -> ModuleType:
    """`.ci/resolve.py` as a module."""
    spec = importlib.util.spec_from_file_location("ci_resolve", ROOT / ".ci" / "resolve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ci_resolve"] = module
    spec.loader.exec_module(module)
    return module


CI = resolver()
TARGETS = [pytest.param(target, id=f"{target.platform}-{target.python}") for target in CI.TARGETS]
PROJECT = CI.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def direct(environment: dict[str, str], *extras: str) -> dict[str, Requirement]:
    """Name -> direct requirement in an environment."""
    found = map(Requirement, CI.requirements(environment, *extras))
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def versions_held(environment: dict[str, str]) -> dict[str, str]:
    """Name -> version of constraints.txt in an environment."""
    found = {}
    for name, lines in CI.constraints().items():
        fitting = [line for line in lines if line.marker is None or line.marker.evaluate(environment)]
        assert len(fitting) <= 1, f"{name} is held at two versions at once"
        for line in fitting:
            (one,) = line.specifier
            assert one.operator == "==", line
            assert "*" not in one.version, line
            found[name] = one.version
    return found


# -- versions ----------------------------------------------------------------------------------------------


def test_torch_and_its_companions_are_exact() -> None:
    lines = {Requirement(line).name: line for line in PROJECT["dependencies"]}
    for name, number in (("torch", "2.11.0"), ("torchvision", "0.26.0"), ("torchaudio", "2.11.0")):
        assert lines[name] == f"{name}=={number}", "a later torchaudio 2.11 does not load beside torch 2.11.0"


def test_what_breaks_by_minor_releases_is_bounded() -> None:
    specifiers = {Requirement(line).name: Requirement(line).specifier for line in PROJECT["dependencies"]}
    assert "2.4.0" not in specifiers["omegaconf"]
    assert "1.3.7" not in specifiers["hydra-core"]
    calendar = {"fsspec"}  # its numbers are dates
    for name, specifier in specifiers.items():
        if name not in calendar:
            assert any(one.operator in ("<", "==") for one in specifier), f"{name} has no bound from above"


@pytest.mark.parametrize("target", TARGETS)
def test_the_tested_set_is_admitted_and_whole(target: object) -> None:
    environment = target.environment  # type: ignore[attr-defined]
    versions = versions_held(environment)
    inside = [extra for extra in PROJECT["optional-dependencies"] if extra not in OUTSIDE_THE_SET]
    for name, requirement in direct(environment, *inside).items():
        assert name in versions, f"constraints.txt says nothing of {name}"
        assert requirement.specifier.contains(versions[name]), f"{requirement} forbids {versions[name]}"


def test_the_set_holds_neither_the_project_nor_the_libraries_of_one_platform() -> None:
    names = set(CI.constraints())
    assert PROJECT["name"] not in names
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))], "torch names those itself"
    assert len(names) > 150, "the whole closure"


def test_this_environment_is_asked_for_the_versions_it_has() -> None:
    doctor = pytest.importorskip("workbench.doctor")
    environment = {key: str(value) for key, value in CI.default_environment().items()}
    assert doctor.tested_set() == versions_held(environment), (
        "the doctor reads constraints.txt without `packaging`"
    )


# -- platforms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_readers_are_asked_for_where_they_have_wheels(target: object) -> None:
    names = direct(target.environment)  # type: ignore[attr-defined]
    platform, python = target.platform, target.python  # type: ignore[attr-defined]
    assert ("decord" in names) == (platform != "macOS arm64")
    assert "av" in names
    if python in ("3.10", "3.11", "3.12"):
        assert str(names["open3d"].specifier) == "==0.19.0"
    elif platform == "Linux x86_64":
        assert "open3d" not in names, "0.20 needs libusb and glibc 2.35 there"
        assert str(direct(target.environment, "open3d")["open3d"].specifier) == "==0.20.0"  # type: ignore[attr-defined]
    else:
        assert str(names["open3d"].specifier) == "==0.20.0"


def test_pythons_agree_everywhere() -> None:
    said = {
        line.rsplit(" ", 1)[-1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)
    }
    assert said == set(CI.PYTHONS)
    admitted = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 17) if f"3.{minor}" in admitted] == list(CI.PYTHONS)
    readme = (ROOT / "README.md").read_text()
    assert f"Python {CI.PYTHONS[0]} to {CI.PYTHONS[-1]}" in readme
    for platform in CI.PLATFORMS:
        assert platform in readme


def test_ci_installs_the_set_and_resolves_it() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "PIP_CONSTRAINT" in script
    assert "resolve.py targets" in script
    assert "resolve.py newest || true" in script, "what is newer is news, no failure"


def test_ci_builds_the_reference_with_warnings_as_errors() -> None:
    (line,) = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "mkdocs build" in line]
    assert "--strict" in line
    assert "quiet" not in line, "what is not shown is not counted either"


def test_pip_sees_the_markers_of_the_target() -> None:
    program = CI.PIP.split("from pip._internal.cli", 1)[0]
    program += "print(markers.Marker(\"sys_platform == 'win32' and python_version == '3.14'\").evaluate())"
    for target in (CI.Target("Windows amd64", "3.14"), CI.Target("Linux x86_64", "3.14")):
        words = [sys.executable, "-c", program, CI.json.dumps(target.environment)]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        assert said == str(target.platform == "Windows amd64")


# -- without some libraries --------------------------------------------------------------------------------


def in_a_process(
    code: str,
    *hidden: str,
    said: str = 'ModuleNotFoundError("No module named " + repr(__name__), name=__name__)',
) -> subprocess.CompletedProcess[str]:
    """Run Python with some libraries hidden."""
    hide = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, __name__, path=None, target=None):\n"
        f"        if __name__.split('.')[0] in {hidden!r}: raise {said}\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", hide + code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_backbone_needs_no_reader() -> None:
    code = "import backbone; assert backbone.unireplknet_a"
    done = in_a_process(code, "decord", "open3d", "av", "soundfile", "h5py", "torchaudio")
    assert done.returncode == 0, done.stderr


def test_a_start_without_file_locks_as_on_windows() -> None:
    done = in_a_process("import run, workbench.command_line", "fcntl")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("library", ["hydra", "omegaconf"])
def test_a_start_without_a_library_is_one_sentence(library: str) -> None:
    start = "sys.argv = ['run.py']; import runpy; runpy.run_path('run.py', run_name='__main__')"
    done = in_a_process(start, library)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {library} is not installed: pip install -c constraints.txt -e .")


# -- what is said of a library that does not import ----------------------------------------------------------


def test_a_broken_library_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbol = "/usr/lib/site-packages/torchaudio/lib/libtorchaudio.so: undefined symbol: aoti_torch_abi"
    said = complaint_of(OSError(symbol))
    assert said is not None
    assert said.startswith("torchaudio does not import (libtorchaudio.so: undefined symbol: aoti_torch_abi)")
    assert "pip install -c constraints.txt -e ." in said
    assert "action=doctor" in said
    assert "/usr" not in said
    missing = complaint_of(ModuleNotFoundError("No module named 'timm'", name="timm"))
    assert missing is not None
    assert missing.startswith("timm is not installed")


@pytest.mark.parametrize(
    "error",
    [
        OSError(2, "No such file or directory", "clip.wav"),
        ValueError("undefined symbol"),
        ImportError("cannot import name 'x' from 'tasks.task'", name="tasks.task"),
    ],
)
def test_other_errors_are_no_broken_library(error: Exception) -> None:
    assert complaint_of(error) is None


def test_cures_fit_the_library() -> None:
    assert cure("soundfile") == "pip install -c constraints.txt -e ."
    assert cure("wandb") == "pip install -c constraints.txt -e '.[wandb]'"
    assert cure("mlflow") == "pip install -e '.[mlflow]'"
    assert set(EXTRAS) <= set(PROJECT["optional-dependencies"])
    assert "Linux or macOS" in complaint(
        "fcntl", ModuleNotFoundError("No module named 'fcntl'", name="fcntl")
    )


@pytest.mark.parametrize(
    ("library", "file"),
    [
        ("open3d", "a.ply"),
        ("h5py", "a.h5"),
        ("laspy", "a.las"),
        ("soundfile", "a.wav"),
        ("pyarrow", "a.parquet"),
    ],
)
def test_a_reader_that_lacks_is_no_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, file: str
) -> None:
    path = tmp_path / file
    path.write_bytes(b"content")
    monkeypatch.setitem(sys.modules, library, None)
    read: dict[str, Callable[[], object]] = {
        "open3d": open3d,
        "h5py": lambda: read_cloud(path),
        "laspy": lambda: read_cloud(path),
        "soundfile": lambda: read_crop(path, 16000, 1.0),
        "pyarrow": lambda: write_index(path, {}),
    }
    with pytest.raises(
        MissingLibrary, match=f"^{library} is not installed, and .* need it: pip install"
    ) as caught:
        read[library]()
    assert not isinstance(caught.value, ReadError)


def fake(folder: Path, library: str, body: str) -> dict[str, str]:
    """An environment whose `library` is a package of that body."""
    (folder / library).mkdir(parents=True)
    (folder / library / "__init__.py").write_text(body)
    return os.environ | {"PYTHONPATH": str(folder)}


UNDEFINED = 'raise OSError("/opt/site-packages/torchaudio/lib/_torchaudio.so: undefined symbol: of_torch")'


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_ends_in_a_sentence_where_resampling_is_broken(
    tmp_path: Path, samples: Path, workers: int
) -> None:
    words = ["modality=audio", "debug=fast", "task.data.sample_rate=8000", f"task.data.num_workers={workers}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words, f"paths.samples={samples}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=fake(tmp_path / "fake", "torchaudio", UNDEFINED),
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in said
    assert "error: torchaudio does not import (_torchaudio.so: undefined symbol: of_torch)" in said
    assert "pip install -c constraints.txt -e ." in said
