"""Writes result.json: the settings, metrics and environment of a run."""

import math
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tasks.program import INSTALLED, ROOT
from workbench.cost import Cost
from workbench.files import write_atomically, write_findings, write_json
from workbench.members import resolved

PACKAGES = (
    "torch",
    "torchvision",
    "torchaudio",
    "lightning",
    "timm",
    "torchmetrics",
    "scikit-learn",
    "hydra-core",
    "widefield",
)


def write_config(cfg: DictConfig) -> None:
    """Write the resolved configuration and the names of its parts into the run folder."""
    folder, whole = Path(cfg.paths.run), resolved(cfg)
    write_atomically(folder / "config.yaml", lambda path: OmegaConf.save(whole, path))
    names = {group: cfg[group].name for group in ("modality", "task", "backbone", "action")}
    write_json(folder / "composition.json", names)


def write_result(
    cfg: DictConfig,
    *,
    source: str,
    data_dir: str,
    params: int,
    epochs: int,
    metrics: dict[str, float],
    best: float | None,
    best_epoch: int | None,
    wall_s: float,
    device: torch.device,
    checkpoint: Path | None,
    cost: Cost | None = None,
) -> dict[str, Any]:
    """Write `result.json` (contract: README, "What a run leaves behind") and return its content."""
    result = {
        "modality": cfg.modality.name,
        "task": cfg.task.name,
        "backbone": cfg.backbone.name,
        "seed": cfg.seed,
        "data": {"source": source, "data_dir": data_dir},
        "params": params,
        **(cost or Cost()).plain(),
        "epochs": epochs,
        "metrics": {name: _finite(value) for name, value in sorted(metrics.items())},
        "monitor": cfg.task.monitor,
        "best": _finite(best),
        "best_epoch": best_epoch,
        "wall_s": round(wall_s, 2),
        "device": device_name(device),
        "precision": str(cfg.trainer.precision),
        "git": git_state(),
        "versions": versions(),
        "checkpoint": str(checkpoint) if checkpoint else None,
    }
    write_findings(Path(cfg.paths.run) / "result.json", result)
    return result


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_state() -> str | None:
    """The commit of this project, with `-dirty` when files differ from it.

    It is read from git in a checkout, from the record of the build in an installed package; `None` if neither is
    available. A repository around the project or around an environment is ignored: its commit does not describe this
    project.
    """
    if INSTALLED:
        record = ROOT / "workbench" / "commit.txt"
        return record.read_text(encoding="utf-8").strip() or None if record.is_file() else None
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT.resolve():
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
