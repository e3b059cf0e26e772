"""Training from Python, e.g. in a notebook: takes a composed configuration, returns a trained model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, open_dict

from tasks.datasets.base import DataModule
from tasks.task import Task
from workbench.build import build_data
from workbench.checking import check_composition
from workbench.console import console, quiet_libraries
from workbench.errors import UsageError, kept_errors
from workbench.fit import fit
from workbench.members import is_joint, member_cfgs
from workbench.other_backbone import leave_out_others_settings
from workbench.overrides import recorded
from workbench.provenance import provenance
from workbench.resolvers import run_folder
from workbench.restore import restore


@dataclass
class Trained:
    """Result of :func:`train`, or of one member of :func:`train_jointly`.

    Args:
        task: the best checkpoint's model, in evaluation mode, on the CPU.
        data: the data module it was trained on, set up.
        result: the content of `result.json`: metrics, parameters, wall time in seconds, …
        history: `metrics.csv`, one row per epoch.
        folder: the run's folder.
    """

    task: Task
    data: DataModule
    result: dict[str, Any]
    history: pd.DataFrame
    folder: Path


def train(cfg: DictConfig) -> Trained:
    """Train as `python run.py` does with this composition, without terminal output.

    The run folder and its files are the same as those of the command. `cfg` is not modified.

    Raises:
        UsageError, TrainingError, DataError: the request cannot be carried out; also written to `error.json`.

    Example:
        >>> run = train(compose("modality=audio", "trainer.max_epochs=2"))  # doctest: +SKIP
        >>> run.result["metrics"]["test/acc"]  # doctest: +SKIP
    """
    if is_joint(cfg):
        raise UsageError(f"{cfg.task.name} trains several tasks: train_jointly returns them all")
    cfg = _fitted(cfg)
    return _trained(cfg, build_data(cfg))


def train_jointly(cfg: DictConfig) -> dict[str, Trained]:
    """Like :func:`train`, for several tasks around one backbone; maps each member's name to its result.

    Every member has its own model and data; result, history and folder are those of the whole run.

    Raises:
        UsageError, TrainingError, DataError: the request cannot be carried out; also written to `error.json`.
    """
    if not is_joint(cfg):
        raise UsageError(f"{cfg.task.name} is one task: train returns it")
    cfg = _fitted(cfg)
    return {name: _trained(cfg, build_data(own), f"@{name}") for name, own in member_cfgs(cfg).items()}


def _fitted(cfg: DictConfig) -> DictConfig:
    """Train without terminal output; returns the configuration with the run folder filled in."""
    quiet_libraries()
    cfg = cfg.copy()
    if cfg.action.name != "fit":
        raise UsageError(f"training needs action=fit, not {cfg.action.name}")
    with open_dict(cfg):
        cfg.paths.run = run_folder(cfg.paths.runs, "fit", cfg.task.name, cfg.backbone.name, cfg.resume)
        cfg.trainer.enable_progress_bar = False
        if cfg.get("callbacks"):
            cfg.callbacks.pop("progress", None)
    with kept_errors(Path(cfg.paths.run)), silence(), provenance():
        leave_out_others_settings(cfg)
        check_composition(cfg)
        fit(cfg)
    return cfg


def _trained(cfg: DictConfig, data: DataModule, part: str = "") -> Trained:
    """Read a finished run, or one member of it, back from its folder."""
    folder = Path(cfg.paths.run)
    checkpoints = [folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    checkpoint = next((file for file in checkpoints if file.is_file()), None)
    if checkpoint is None:
        raise UsageError(f"there is no checkpoint in {folder}: keep callbacks=[default]")
    asking = cfg.copy()
    with open_dict(asking):
        asking.ckpt = f"{checkpoint}{part}"
    recorded(asking, [])  # no overrides: the checkpoint decides everything
    history = folder / "metrics.csv"
    return Trained(
        task=restore(asking).task,
        data=data,
        result=json.loads((folder / "result.json").read_text()),
        history=pd.read_csv(history) if history.is_file() else pd.DataFrame(),
        folder=folder,
    )


@contextmanager
def silence() -> Iterator[None]:
    """Suppress tables and messages on the terminal; errors and warnings are still shown."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
