"""What pip would install elsewhere and later, without installing it.

    python .ci/resolve.py targets [TEXT]   the tested set for each supported platform and Python; fails if one has none
    python .ci/resolve.py newest           what is newer than the tested set and allowed; a report, it never fails

pip chooses wheels for any platform (`--platform`), but evaluates environment markers for the interpreter it runs in.
So it is started here with the target's values in place of its own; one resolution then follows the whole closure.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORMS: dict[str, tuple[dict[str, str], list[str]]] = {
    "Linux x86_64": (
        {
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": "x86_64",
            "os_name": "posix",
        },
        [f"manylinux_2_{minor}_x86_64" for minor in range(31, 16, -1)]
        + ["manylinux2014_x86_64"]
        + ["manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"],
    ),
    "macOS arm64": (
        {
            "sys_platform": "darwin",
            "platform_system": "Darwin",
            "platform_machine": "arm64",
            "os_name": "posix",
        },
        ["macosx_14_0_arm64"],
    ),
    "Windows amd64": (
        {
            "sys_platform": "win32",
            "platform_system": "Windows",
            "platform_machine": "AMD64",
            "os_name": "nt",
        },
        ["win_amd64"],
    ),
}
# Released as source only. They are pure Python, so a wheel built here is the one that any machine would build.
SOURCE_ONLY = ("antlr4-python3-runtime",)

PIP = """
import json, sys
from pip._vendor.packaging import markers
here = markers.default_environment
there = json.loads(sys.argv.pop(1))
markers.default_environment = lambda: {**here(), **there}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Target:
    """A platform and a Python, such as macOS arm64 with 3.13."""

    platform: str
    python: str

    @property
    def environment(self) -> dict[str, str]:
        """The values of environment markers there."""
        here = {key: str(value) for key, value in default_environment().items()}
        version = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        cpython = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
        return (
            here
            | PLATFORMS[self.platform][0]
            | version
            | cpython
            | {"implementation_version": f"{self.python}.0"}
        )

    @property
    def options(self) -> list[str]:
        """What tells pip to choose wheels for it."""
        tag = "cp" + self.python.replace(".", "")
        words = ["--python-version", self.python, "--implementation", "cp"]
        for abi in (tag, "abi3", "none"):
            words += ["--abi", abi]
        for platform in PLATFORMS[self.platform][1]:
            words += ["--platform", platform]
        return words


TARGETS = [Target(platform, python) for platform in PLATFORMS for python in PYTHONS]
IN_FULL = (Target("Linux x86_64", "3.10"), Target("macOS arm64", "3.14"), Target("Windows amd64", "3.12"))


def requirements(environment: dict[str, str], *extras: str) -> list[str]:
    """The direct requirements of the project and of its extras that apply in an environment, without markers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    found: list[str] = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            found += requirements(environment, *requirement.extras)
        elif requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            found.append(str(requirement))
    return list(dict.fromkeys(found))


def constraints() -> dict[str, list[Requirement]]:
    """The lines of constraints.txt by name."""
    found: dict[str, list[Requirement]] = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def pip(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run pip with an environment's marker values and no constraint but the ones given."""
    quiet = {"PIP_CONSTRAINT": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PIP, json.dumps(environment), *words]
    return subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)


def reason(failed: subprocess.CompletedProcess[str]) -> str:
    """Pip's own lines of error."""
    return "\n".join(line for line in failed.stderr.splitlines() if not line.startswith("WARNING"))


def resolve(target: Target, source: Path) -> tuple[bool, str]:
    """Whether the tested set can be had for a target, and a line that says so.

    One Python of each platform is resolved in full, development included, the others in the project's direct
    requirements: a wheel that lacks is nearly always one of these, and all in full take four minutes of two cores.
    """
    began = time.monotonic()
    in_full = target in IN_FULL
    wanted = requirements(target.environment, *(["dev", "wandb"] if in_full else []))
    depth = [] if in_full else ["--no-deps"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = pip(
            target.environment,
            *["install", "--dry-run", "-q", "--only-binary=:all:", "--target", f"{folder}/nothing"],
            *[*target.options, "--find-links", str(source), "-c", str(CONSTRAINTS)],
            *["--report", str(report), *depth, *wanted],
        )
        name = f"{target.platform:14}Python {target.python:5}"
        if done.returncode != 0:
            return False, f"{name} cannot be had\n{reason(done)}"
        count = len(json.loads(report.read_text())["install"])
    return True, f"{name}{count:4} packages{' (direct)' if depth else '':10}{time.monotonic() - began:4.0f} s"


def resolve_targets(text: str = "") -> int:
    """Resolve every target whose name holds `text`, three at a time."""
    chosen = [target for target in TARGETS if text in f"{target.platform} {target.python}"]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(3) as pool:
        for name in SOURCE_ONLY:
            (pinned,) = constraints()[canonicalize_name(name)]
            built = pip({}, "wheel", "-q", "--no-deps", "-w", folder, str(pinned))
            if built.returncode != 0:
                print(reason(built))
                return 1
        good = True
        for fine, line in pool.map(lambda target: resolve(target, Path(folder)), chosen):
            print(line, flush=True)
            good &= fine
    return 0 if good else 1


def newest() -> int:
    """Print what the bounds of pyproject.toml admit here and constraints.txt holds back."""
    here = {key: str(value) for key, value in default_environment().items()}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = pip(
            here,
            *("install", "--dry-run", "--ignore-installed", "-q", "--report", str(report)),
            *requirements(here, "dev"),
        )
        if done.returncode != 0:
            print(f"the newest allowed set cannot be resolved:\n{reason(done)}")
            return 0
        found = {
            canonicalize_name(entry["metadata"]["name"]): entry["metadata"]["version"]
            for entry in json.loads(report.read_text())["install"]
        }
    held = constraints()
    newer = []
    for name, version in sorted(found.items()):
        for line in held.get(name, []):
            applies = line.marker is None or line.marker.evaluate()
            if applies and not line.specifier.contains(version, prereleases=True):
                newer.append(f"{name} {version} (tested{str(line.specifier).replace('==', ' ')})")
    free = sorted(name for name in found if name not in held and not name.startswith(("nvidia-", "cuda-")))
    print(f"newer than the tested set and allowed: {', '.join(newer) or 'nothing'}")
    if free:
        print(f"not in the tested set: {', '.join(free)}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["newest"]:
        sys.exit(newest())
    if sys.argv[1:2] != ["targets"]:
        sys.exit(__doc__)
    sys.exit(resolve_targets(*sys.argv[2:3]))
