"""What pyproject.toml cannot say of a wheel: `conf/` lies in it beside the code, and it knows the commit it is from."""

import shutil
import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CODE = ["modalities*", "backbone*", "tasks*", "workbench*", "hydra_plugins*"]
# Packages whose folder has another name in the repository: the public `widefield`, and the YAML.
MAPPED = {"widefield": "workbench/api", "workbench.conf": "conf"}


class BuildWithRecord(build_py):
    """Adds the start file of sweeps' runs, the tested versions, and the commit."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        folder = Path(self.build_lib, "workbench")
        (folder / "start").mkdir(exist_ok=True)
        shutil.copyfile(ROOT / "run.py", folder / "start" / "run.py")
        if (ROOT / "constraints.txt").is_file():
            shutil.copyfile(ROOT / "constraints.txt", folder / "constraints.txt")
        if commit := _commit():
            (folder / "commit.txt").write_text(f"{commit}\n", encoding="utf-8")


def _commit() -> str:
    """The commit that is built, `-dirty` where files differ; empty outside a checkout of this project."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        if not (top := git("rev-parse", "--show-toplevel")) or Path(top).resolve() != ROOT:
            return ""
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except OSError:
        return ""


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=CODE), "hydra_plugins.widefield", *MAPPED],
        package_dir=MAPPED,
        package_data={
            "workbench.report": ["page.*"],
            "workbench.conf": ["*.yaml", "**/*.yaml"],
            "": ["py.typed"],
        },
        exclude_package_data={"workbench.conf": ["local/*"]},
        cmdclass={"build_py": BuildWithRecord},
    )
