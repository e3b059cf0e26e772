"""A sweep's folder: its list of jobs, its configuration snapshot, and the status of each job.

    sweep.json          the command, its start time and working directory, the jobs
    conf/               snapshot of the YAML, including plug-ins; every run of the sweep is composed from it
    NUMBER_AXES/        one run each: an ordinary run folder, plus job.json with its status
    report/             see workbench/report

Imports are kept light because the processes that wait for a run use this module too.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.disk import writing
from workbench.errors import UsageError
from workbench.files import ELSEWHERE, write_json
from workbench.resolvers import folder_name
from workbench.secret_words import refuse_literals

SWEEP, JOB, SNAPSHOT = "sweep.json", "job.json", "conf"
DONE, FAILED, KILLED, RUNNING, MISSING = "done", "failed", "killed", "running", "missing"
DAMAGED = "damaged"  # report status of a finished run with a corrupt file
STATES = (DONE, FAILED, KILLED, RUNNING, MISSING)
STOPPED = "stopped with the sweep"


@dataclass
class Job:
    """One run of a sweep: its folder name and its overrides."""

    folder: str
    overrides: list[str]


@dataclass
class SweepFolder:
    """The record of a sweep, stored in `sweep.json`.

    Args:
        path: the folder.
        config_name: name of the primary configuration.
        hydra_words: overrides of Hydra itself, e.g. `hydra/launcher=joblib`.
        words: all other overrides.
        cwd: working directory of the command; relative paths in the overrides refer to it.
        axes: keys that vary.
        jobs: in start order.
    """

    path: Path
    config_name: str
    hydra_words: list[str]
    words: list[str]
    cwd: str
    axes: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    started: str = field(default_factory=lambda: now())

    @property
    def snapshot(self) -> Path:
        return self.path / SNAPSHOT

    def save(self) -> None:
        content = {key: value for key, value in vars(self).items() if key not in ("path", "jobs")}
        write_json(self.path / SWEEP, content | {"jobs": [vars(job) for job in self.jobs]})

    @classmethod
    def load(cls, path: Path) -> "SweepFolder":
        """Load the sweep of a folder.

        Raises:
            UsageError: its record cannot be read or is invalid.
        """
        try:
            content = json.loads((path / SWEEP).read_bytes())
            jobs = [Job(**job) for job in content.pop("jobs")]
            sweep = cls(path=path, jobs=jobs, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UsageError(f"{path / SWEEP} is damaged or no record of a sweep") from error
        words = [sweep.config_name, sweep.cwd, *sweep.hydra_words, *sweep.words, *sweep.axes]
        words += [word for job in jobs for word in (job.folder, *job.overrides)]
        if not all(isinstance(word, str) for word in words):
            raise UsageError(f"{path / SWEEP} is damaged or no record of a sweep")
        return sweep

    def create(self, folders: Sequence[Path]) -> None:
        """Create the folder with a copy of the YAML below `folders` and the record; removed again on failure.

        Args:
            folders: our `conf/` and those of plug-ins, in the order of Hydra's search path.

        Raises:
            UsageError: another sweep has just been started there.
            WriteError: writing failed.
        """
        with writing(self.path, ELSEWHERE):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                (self.path / SWEEP).open("x").close()
            except FileExistsError:  # another sweep was started in the same second
                raise UsageError(f"{self.path} holds a sweep already: start this one again") from None
            try:
                self.take_snapshot(folders)
                self.save()
            except Exception:
                shutil.rmtree(self.path, ignore_errors=True)
                raise

    def take_snapshot(self, folders: Sequence[Path]) -> None:
        """Merge the YAML files below some folders into the snapshot; as in Hydra, the first file of a name wins.

        Raises:
            UsageError: a file contains a secret.
        """
        files = {file.relative_to(top): file for top in reversed(folders) for file in top.rglob("*.yaml")}
        for below, file in sorted(files.items()):
            refuse_literals(file)
            target = self.snapshot / below
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)

    def record(self, job: Job) -> dict[str, Any]:
        """The record of a job."""
        return read_record(self.path / job.folder)

    def mark_stopped(self) -> None:
        """Mark jobs still recorded as running as killed."""
        for job in self.jobs:
            record = self.record(job)
            if record["status"] == RUNNING:
                write_record(self.path / job.folder, **record | {"status": KILLED, "error": STOPPED})

    def any_ended(self) -> bool:
        """Whether any job is done or failed."""
        return any(self.record(job)["status"] in (DONE, FAILED) for job in self.jobs)

    def unfinished(self) -> list[Job]:
        """Jobs that are not done."""
        return [job for job in self.jobs if self.record(job)["status"] != DONE]


def job_folder(number: int, count: int, axes: dict[str, str]) -> str:
    """Folder name of a run: its number and its axis values, e.g. `03_modality-audio_seed-1`."""
    width = len(str(max(count - 1, 0)))
    name = "_".join(f"{key}={value}" for key, value in axes.items())
    return f"{number:0{width}d}_{folder_name(name)}".rstrip("_")


def read_record(folder: Path) -> dict[str, Any]:
    """Read a run's `job.json`; the status is missing if there is no file, and failed if the file is damaged."""
    file = folder / JOB
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {"status": MISSING}
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("status") not in STATES:
        return {"status": FAILED, "value": None, "error": f"damaged: {file}"}
    return {"value": None} | record


def write_record(folder: Path, **content: Any) -> None:
    """Write a run's `job.json`."""
    write_json(folder / JOB, content)


def now() -> str:
    """The current time in ISO 8601, to the second."""
    return datetime.now().isoformat(timespec="seconds")
