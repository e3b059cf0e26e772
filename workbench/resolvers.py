"""Values that the configuration asks for by name; imported by run.py before anything heavy."""

import json
import re
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

# Beginnings of metrics' names.
LESS_IS_BETTER = ("loss", "mse", "mae", "rmse", "error", "mape")
MORE_IS_BETTER = ("acc", "macc", "map", "miou", "score")


def register_resolvers() -> None:
    """Make `${run_folder:…}`, `${folder_name:…}`, `${mode_of:…}` and `${direction_of:…}` known to OmegaConf."""
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
        resume: `None`, a run folder, or `auto` for the newest run of this task and backbone without a result.
        source: the folder that a report is about; the report goes into it.
    """
    if action == "report":
        return str(Path(source or runs).expanduser() / "report")
    if resume and resume != "auto":
        return str(Path(resume).expanduser())
    parent = Path(runs) / (task if action == "fit" else action)
    if resume == "auto":
        unfinished = [folder for folder in sorted(parent.glob("*")) if _can_go_on(folder, backbone)]
        if unfinished:
            return str(unfinished[-1])
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}" + (f"_{backbone}" if action == "fit" else "")
    folder, count = parent / name, 2
    while folder.exists():
        folder, count = parent / f"{name}-{count}", count + 1
    return str(folder)


def folder_name(overrides: str) -> str:
    """One folder's name for a job of a sweep, at most 120 characters: none that a shell or an option would mind.

    >>> folder_name("modality=audio_backbone.dims=[8,16]")
    'modality-audio_backbone.dims-8-16'
    """
    return re.sub(r"[^\w.]+", "-", overrides).strip("-")[:120]


def mode_of(metric: str | None) -> str:
    """Whether more (`max`) or less (`min`) of a metric is better, by its name; `max` for a metric not yet chosen.

    >>> mode_of("val/loss"), mode_of("val/audio/acc")
    ('min', 'max')
    """
    return "min" if (metric or "").rpartition("/")[2].startswith(LESS_IS_BETTER) else "max"


def direction_of(mode: str) -> str:
    """Optuna's word for a task's `mode` (`max` or `min`)."""
    return {"max": "maximize", "min": "minimize"}[mode]


def _can_go_on(folder: Path, backbone: str) -> bool:
    composition = folder / "composition.json"
    if not (folder / "checkpoints" / "last.ckpt").is_file() or (folder / "result.json").is_file():
        return False
    try:
        names = json.loads(composition.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(names, dict) and names.get("backbone") == backbone
