"""action=doctor: reports what works in an installation, and the command that fixes what does not.

Every library is imported in a subprocess: one that is broken, aborts or hangs is only reported. So this module imports
nothing but the standard library.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tasks.libraries import EXTRAS, INSTALL, cure, extra_cure
from tasks.program import INSTALLED, ROOT

WIDTH = 100
PATIENCE = 180  # timeout of one check in seconds; a first import is slow on a cold disk or a busy machine
HUB_PATIENCE = 3
FINE = "fine:"  # what a check that succeeds prints

TORCH = """
import torch
assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        said = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}"
        print("gpu:" + said)
elif torch.backends.mps.is_available():
    print("gpu:Apple (mps)")
print("cuda:" + (torch.version.cuda or "none"))
"""
RESAMPLE = """
import torch
from torchaudio.transforms import Resample
assert Resample(8000, 16000)(torch.zeros(80)).shape == (160,)
"""
VISION = """
import torch, torchvision
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
"""
SOUND = """
import io, numpy, soundfile
file = io.BytesIO()
soundfile.write(file, numpy.zeros(80, numpy.float32), 8000, format="WAV")
assert len(soundfile.read(io.BytesIO(file.getvalue()))[0]) == 80
"""
VIDEO = """
import io, av, numpy
file = io.BytesIO()
with av.open(file, "w", format="avi") as out:
    stream = out.add_stream("mpeg4", rate=25)
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    for packet in [*stream.encode(av.VideoFrame.from_ndarray(numpy.zeros((32, 32, 3), numpy.uint8))), *stream.encode()]:
        out.mux(packet)
file.seek(0)
with av.open(file) as back:
    assert len(list(back.decode(video=0))) == 1
"""
HDF5 = """
import io, h5py
with h5py.File(io.BytesIO(), "w") as file:
    file["x"] = [1, 2]
    assert file["x"][1] == 2
"""
ARROW = """
import io, pyarrow, pyarrow.parquet
file = io.BytesIO()
pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), file)
assert pyarrow.parquet.read_table(io.BytesIO(file.getvalue())).num_rows == 1
"""
MESHES = """
import os
os.environ["OPEN3D_DISABLE_WEB_VISUALIZER"] = "true"
import open3d
assert len(open3d.geometry.TriangleMesh.create_box().sample_points_uniformly(9).points) == 9
"""
HUB = f"""
import os, urllib.request, urllib.error
try:
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout={HUB_PATIENCE})
except urllib.error.HTTPError:
    pass
"""


@dataclass(frozen=True)
class Library:
    """A library to check: module, package, test code, whether training requires it, and its purpose."""

    module: str
    package: str = ""
    code: str = ""
    needed: bool = False
    purpose: str = ""

    @property
    def distribution(self) -> str:
        return self.package or self.module


CORE = (
    Library("torch", code=TORCH, needed=True),
    Library("torchvision", code=VISION, needed=True),
    Library("torchaudio", code=RESAMPLE, needed=True),
    Library("lightning", code="import lightning, torchmetrics", needed=True),
    Library("timm", needed=True),
    Library("hydra", "hydra-core", "import hydra, omegaconf", needed=True),
    Library("numpy", needed=True),
    Library("pandas", needed=True),
    Library("matplotlib", code="import matplotlib.figure", needed=True),
    Library("rich", code="import rich.table", needed=True),
)
READERS = (
    Library("soundfile", code=SOUND, needed=True, purpose="audio"),
    Library("av", code=VIDEO, purpose="video"),
    Library("decord", purpose="video, faster"),
    Library("PIL", "pillow", "import PIL.Image", purpose="images"),
    Library("open3d", code=MESHES, purpose="meshes, PLY, PCD"),
    Library("h5py", code=HDF5, purpose="HDF5"),
    Library("pycocotools", code="import pycocotools.mask", purpose="average precision of boxes"),
    Library("pyarrow", code=ARROW, purpose="shards"),
)
TRITON = Library("triton")


@dataclass(frozen=True)
class Answer:
    """Result of a check: `error` is empty on success, `lines` is its output."""

    error: str
    lines: tuple[str, ...] = ()

    def get(self, key: str) -> list[str]:
        """The output lines that begin with `key:`, without this prefix."""
        return [line.removeprefix(f"{key}:") for line in self.lines if line.startswith(f"{key}:")]


def doctor(cfg: Any) -> None:
    """Print the report; exits with code 1 if the installation cannot train."""
    good = examine(str(cfg.paths.samples), str(cfg.paths.runs))
    # Hydra's output folder, see `run_folder`.
    shutil.rmtree(Path(tempfile.gettempdir()) / f"widefield-doctor-{os.getpid()}", ignore_errors=True)
    if not good:
        sys.exit(1)


def examine(samples: str = "data/samples", runs: str = "runs") -> bool:
    """Print the report; returns whether the installation can train."""
    libraries = [*CORE, *READERS, TRITON]
    with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool:
        driver = pool.submit(_driver)
        hub = pool.submit(_hub)
        # The slow ones first.
        order = sorted(
            libraries, key=lambda library: library.module not in ("open3d", "lightning", "timm", "torch")
        )
        answers = {library.module: pool.submit(try_library, library) for library in order}
        found = {name: answer.result() for name, answer in answers.items()}
    cures: dict[str, str] = {}
    where, system = _tilde(ROOT.resolve()), f"{platform.system()} {platform.machine()}"
    print(f"Widefield in {where}, Python {platform.python_version()}, {system}")
    _show_versions(found)
    _show_devices(found, driver.result())
    _show_readers(found, cures)
    _show_extras(cures)
    _show_places(samples, runs)
    _row("hub", hub.result())
    for what, command in cures.items():
        _row("cure" if what == next(iter(cures)) else "", f"{what}: {command}")
    broken = {library.module: found[library.module].error for library in libraries if library.needed}
    broken = {name: error for name, error in broken.items() if error}
    if broken:
        name, error = next(iter(broken.items()))
        others = f" (and {', '.join(list(broken)[1:])})" if len(broken) > 1 else ""
        print(f"NOT READY: {name}{others}: {error}: {INSTALL}")
        return False
    idle = [library.module for library in READERS if found[library.module].error]
    print("READY: this install can train" + (f"; without {', '.join(idle)}" if idle else ""))
    return True


# -- checks --------------------------------------------------------------------------------------------------------


def try_library(library: Library) -> Answer:
    """Import and test a library in a subprocess."""
    return run_check(library.code or f"import {library.module}", library.module)


def run_check(code: str, module: str = "", patience: float = PATIENCE) -> Answer:
    """Run Python code in a subprocess; a crash, an abort or a timeout is returned as an error."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"{code}\nprint({FINE!r}, flush=True)\nimport os\nos._exit(0)"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(f"no answer within {patience:.0f} s")
    lines = tuple(done.stdout.splitlines())
    if FINE in lines:
        return Answer("", lines)
    if done.returncode < 0:
        return Answer(f"ended by signal {-done.returncode} while it was imported", lines)
    return Answer(_why(done.stderr, module), lines)


def _why(stderr: str, module: str) -> str:
    """The line of a traceback that names the error, without folders in paths."""
    named = [line for line in stderr.splitlines() if re.match(r"[A-Za-z_.]+(Error|Exception)\b", line)]
    line = named[-1] if named else (stderr.strip().splitlines() or ["no reason given"])[-1]
    kind, _, said = line.partition(": ")
    if kind == "ModuleNotFoundError" and said == f"No module named {module!r}":
        return "not installed"
    return f"{kind}: {re.sub(r'(/[^/ :]+)+/', '', said)[:120]}".rstrip(": ")


def _driver() -> str:
    """Version of the NVIDIA driver; empty if there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip() if done.returncode == 0 else ""


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "not asked (HF_HUB_OFFLINE); published weights must lie in the cache"
    # Resolving the name may take longer than the socket's timeout.
    answer = run_check(HUB, patience=HUB_PATIENCE + 1)
    return "no answer; published weights must lie in the cache" if answer.error else "answers"


# -- versions --------------------------------------------------------------------------------------------------------


def tested_set() -> dict[str, str]:
    """Maps packages to their versions in constraints.txt for this Python; empty without that file."""
    file = (ROOT / "workbench" if INSTALLED else ROOT) / "constraints.txt"
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        match = re.match(r"([\w.-]+)==([^;\s]+)(?:; python_version (<|>=) '3\.(\d+)')?$", line)
        if match:
            name, number, sign, minor = match.groups()
            if sign is None or (sys.version_info[1] < int(minor)) == (sign == "<"):
                found[_plain(name)] = number
    return found


def installed(package: str) -> str | None:
    """The version of a package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _differs(package: str, tested: dict[str, str]) -> bool:
    number, wanted = installed(package), tested.get(_plain(package))
    return None not in (number, wanted) and str(number).split("+")[0] != wanted


def _with_version(library: Library, answer: Answer, tested: dict[str, str]) -> str:
    number = installed(library.distribution)
    said = f"{library.distribution} {number or ''}".strip()
    if _differs(library.distribution, tested):
        said += f" [tested {tested[_plain(library.distribution)]}]"
    return f"{said} FAILS ({answer.error})" if answer.error else said


# -- the screen ------------------------------------------------------------------------------------------------------


def _row(head: str, said: str) -> None:
    """Print a row of the report, at most three lines long."""
    lines = textwrap.wrap(said, WIDTH - 12, max_lines=3, placeholder=" …", break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        print(f"  {head if number == 0 else '':10}{line}")


def _show_versions(found: dict[str, Answer]) -> None:
    tested = tested_set()
    for head, group in (("torch", CORE[:3]), ("libraries", CORE[3:])):
        _row(head, ", ".join(_with_version(library, found[library.module], tested) for library in group))
    if not tested:
        _row("tested", "unknown: there is no constraints.txt beside the project")
        return
    other = [f"{name} {installed(name)} (tested {tested[name]})" for name in tested if _differs(name, tested)]
    if other:
        _row("tested", f"{len(other)} of {len(tested)} versions differ: {', '.join(other)}: {INSTALL}")
    else:
        _row("tested", "every package that is installed has its version of constraints.txt")


def _show_devices(found: dict[str, Answer], driver: str) -> None:
    torch, triton = found["torch"], found["triton"]
    gpus = torch.get("gpu")
    if gpus:
        more = f" and {len(gpus) - 1} more" if len(gpus) > 1 else ""
        _row("GPU", f"{gpus[0]}{more}; driver {driver or 'none'}, CUDA {(torch.get('cuda') or ['none'])[0]}")
    elif driver:
        _row("GPU", f"driver {driver}, but PyTorch sees no card (CUDA {(torch.get('cuda') or ['none'])[0]})")
    else:
        _row("GPU", f"none (driver none); {os.cpu_count()} CPU cores")
    setting = os.environ.get("WIDEFIELD_KERNELS", "on").lower()
    if triton.error:
        state = f"off: Triton {triton.error}"
    elif setting not in ("on", "always", "interpret"):
        state = f"off; Triton {installed('triton')} imports"
    else:
        state = f"on for GPUs; Triton {installed('triton')} imports"
        state += "" if gpus else "; without a GPU PyTorch's convolutions are used"
    _row("kernels", f"{state} (WIDEFIELD_KERNELS={setting})")


def _show_readers(found: dict[str, Answer], cures: dict[str, str]) -> None:
    tested = tested_set()
    said = []
    for library in READERS:
        answer = found[library.module]
        if library.module == "decord" and answer.error == "not installed":
            said.append("video: no decord, PyAV alone")
            continue
        said.append(f"{library.purpose}: {_with_version(library, answer, tested)}")
        if answer.error:
            cures[library.module] = cure(library.module)
    said.insert(1, "resampling: " + ("torchaudio FAILS" if found["torchaudio"].error else "torchaudio"))
    for number in range(0, len(said), 2):
        _row("readers" if number == 0 else "", "; ".join(said[number : number + 2]))


def _show_extras(cures: dict[str, str]) -> None:
    there, absent = [], []
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if installed(package) is None]
        if not missing:
            there.append(extra)
            continue
        absent.append(f"{extra} ({', '.join(missing)})")
        cures[f"for {extra}"] = extra_cure(extra)
    _row("extras", f"there: {', '.join(there) or 'none'}; missing: {', '.join(absent) or 'none'}")


def _show_places(samples: str, runs: str) -> None:
    home = Path.home() / ".cache"
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home / "huggingface") / "hub"
    torch = os.environ.get("TORCH_HOME") or home / "torch"
    _row("data", f"{_place('samples', samples)}; {_place('runs', runs)}")
    _row("caches", f"{_place('hub', hub)}; {_place('torch', torch)}")


def _tilde(path: Path) -> str:
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _place(name: str, where: str | Path) -> str:
    """Describe a location: its path, whether it is writable, and the free disk space."""
    path = Path(where).expanduser()
    nearest: Iterable[Path] = (path.absolute(), *path.absolute().parents)
    folder = next(place for place in nearest if place.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            state = "writable"
        state += f", {shutil.disk_usage(folder).free / 1e9:.0f} GB free"
    except OSError as error:
        state = f"NOT writable ({error.strerror})"
    return f"{name} {_tilde(path)} ({state})"
