"""Resolvers for OmegaConf; imported by run.py before anything heavy."""

import itertools
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

# Prefixes of metric names.
LESS_IS_BETTER = ("loss", "mse", "mae", "rmse", "error", "mape")
MORE_IS_BETTER = ("acc", "macc", "map", "miou", "score", "event_f1", "segment_f1", "frame_f1", "psds")
DEVIATION = "_sd"  # suffix of standard deviations


TOGETHER = 600.0  # seconds within which all processes of a distributed run ask for their folder


def register_resolvers() -> None:
    """Register `${run_folder:…}`, `${folder_name:…}`, `${mode_of:…}` and `${direction_of:…}` with OmegaConf."""
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
    OmegaConf.register_new_resolver("direction_of", direction_of, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)


def run_folder(
    runs: str, action: str, task: str, backbone: str, resume: str | None, source: str | None = None
) -> str:
    """The folder of this run: a new one, or the one `resume` names.

    Args:
        runs: parent of all runs.
        action, task, backbone: names; a fit goes to `runs/<task>/`, any other action to `runs/<action>/`.
        resume: `None`, a run folder, or `auto` for the newest run of this task and backbone without a result; of a fit
            alone.
        source: the folder that a report covers; the report is written into it.
    """
    if action == "doctor":  # it keeps no files, and must work where `runs` is not writable
        return str(Path(tempfile.gettempdir()) / f"widefield-doctor-{os.getpid()}")
    if action == "report":
        return str(Path(source or runs).expanduser() / "report")
    resume = resume if action == "fit" else None
    if resume and resume != "auto":
        return str(Path(resume).expanduser())
    parent = Path(runs) / (task if action == "fit" else action)
    if resume == "auto":
        unfinished = [
            folder for folder in sorted(parent.glob("*")) if can_go_on(folder, {"backbone": backbone})
        ]
        if unfinished:
            return str(unfinished[-1])
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}" + (f"_{backbone}" if action == "fit" else "")
    try:
        return str(_shared_folder(parent / name, Path(runs) / ".jobs"))
    except OSError:  # folder cannot be created: the first write reports it
        return str(parent / name)


def new_folder(path: Path) -> Path:
    """Create the folder `path`, or `path-2`, … if it exists; concurrent callers get different folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for count in itertools.count(1):
        folder = path if count == 1 else path.with_name(f"{path.name}-{count}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError


def _shared_folder(path: Path, claims: Path) -> Path:
    """Like `new_folder`, but the same folder for all processes that SLURM or torchrun has started together.

    The first process to link its folder's name to the job's file below `claims` decides; only one process can create a
    link, also on network file systems. (Processes started by the trainer receive the folder from it.)
    """
    job = _job_of(os.environ)
    if job is None:
        return new_folder(path)
    claims.mkdir(parents=True, exist_ok=True)
    claim = claims / re.sub(r"[^\w.-]+", "-", job)
    if claim.is_file() and time.time() - claim.stat().st_mtime > TOGETHER:  # from an earlier job of this name
        claim.unlink(missing_ok=True)
    folder = new_folder(path)
    draft = claims / f".{uuid.uuid4().hex}"
    draft.write_text(str(folder), encoding="utf-8")
    try:
        os.link(draft, claim)
    except FileExistsError:
        folder.rmdir()
        return Path(claim.read_text(encoding="utf-8"))
    finally:
        draft.unlink()
    return folder


def _job_of(environ: Mapping[str, str]) -> str | None:
    """An identifier shared by the processes of a distributed run; None for a single process.

    >>> _job_of({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"})
    'slurm-7-0-0'
    """
    if "TORCHELASTIC_RUN_ID" in environ and int(environ.get("WORLD_SIZE", 1)) > 1:
        keys: tuple[str, ...] = (
            "TORCHELASTIC_RUN_ID",
            "MASTER_ADDR",
            "MASTER_PORT",
            "TORCHELASTIC_RESTART_COUNT",
        )
        alone = environ.get("GROUP_WORLD_SIZE", "1") == "1"  # one machine: all are children of one process
        return "-".join(
            ["torchrun", *(environ.get(key, "0") for key in keys), *([str(os.getppid())] if alone else [])]
        )
    if (
        int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    ):  # set by srun, not in a script that starts runs one by one
        keys = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return "-".join(["slurm", *(environ.get(key, "0") for key in keys)])
    return None


def folder_name(overrides: str) -> str:
    """Folder name of a sweep job: at most 120 characters, none of them special to a shell or an option parser.

    >>> folder_name("modality=audio_backbone.dims=[8,16]")
    'modality-audio_backbone.dims-8-16'
    """
    return re.sub(r"[^\w.]+", "-", overrides).strip("-")[:120]


def mode_of(metric: str | None) -> str:
    """Whether a metric is better when larger (`max`) or smaller (`min`), by its name; `max` if not yet chosen.

    >>> mode_of("val/loss"), mode_of("val/audio/acc"), mode_of("test/few_shot_5_acc_sd")
    ('min', 'max', 'min')
    """
    name = (metric or "").rpartition("/")[2]
    return "min" if name.startswith(LESS_IS_BETTER) or name.endswith(DEVIATION) else "max"


def direction_of(mode: str) -> str:
    """Optuna's direction for a task's `mode` (`max` or `min`)."""
    return {"max": "maximize", "min": "minimize"}[mode]


def can_go_on(folder: Path, wanted: Mapping[str, str]) -> bool:
    """Whether a folder holds an unfinished fit with these parts (`backbone` -> its name, …)."""
    if not (folder / "checkpoints" / "last.ckpt").exists() or (folder / "result.json").is_file():
        return False
    try:
        names = json.loads((folder / "composition.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(names, dict) and all(names.get(group) == name for group, name in wanted.items())
