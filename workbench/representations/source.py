"""The network from which features are extracted, and its data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import seed_everything
from omegaconf import DictConfig

from tasks.datasets.base import DataModule
from tasks.datasets.drawn import is_drawn
from tasks.datasets.targets import ClassTargets
from tasks.task import Task
from workbench.build import build_data, build_task
from workbench.composition import built_from
from workbench.console import printable
from workbench.errors import UsageError
from workbench.instantiation import instantiate
from workbench.other_data import same_facts
from workbench.provenance import data_read, model_read, provenance
from workbench.restore import Restored, restore
from workbench.resume import changed_data

log = logging.getLogger("widefield")

FORMS = ("deploy", "train")
UNTRAINED = "untrained"


@dataclass
class Source:
    """A frozen network and its data.

    Args:
        cfg: its configuration.
        task: in evaluation mode, on the CPU.
        data: fully read if splits are requested; for files, only their reader.
        weights: description of the origin of its weights.
        checkpoint: the checkpoint file; None for published or untrained weights.
        measured: whether the network depends on statistics of these data (its embedder's statistics).
    """

    cfg: DictConfig
    task: Task
    data: DataModule
    weights: str
    checkpoint: Path | None = None
    measured: bool = False

    @property
    def name(self) -> str:
        return f"{self.cfg.backbone.name}, {self.weights}"

    def params(self) -> int:
        """Number of parameters of embedder and backbone."""
        network = self.task.network
        return sum(
            weight.numel() for part in (network.embedder, network.backbone) for weight in part.parameters()
        )


def source_of_splits(cfg: DictConfig) -> Source:
    """The network of `cfg.ckpt`, or else the composed one (published or untrained weights), and its data, read.

    Data and classes may differ from those the network was trained on, since features do not depend on classes.

    Raises:
        UsageError: the network cannot read these data, e.g. a forecaster with another series.
    """
    if cfg.ckpt is not None:
        restored = restore(cfg)
        return _restored(restored, _data_for(restored))
    return _composed(cfg, build_data(cfg))


def source_of_files(cfg: DictConfig) -> Source:
    """The network and its file reader, as used by `action=predict`."""
    if cfg.ckpt is None:
        with provenance():  # the files may be real even if the composed data are synthetic
            data = build_data(cfg)
        source = _composed(cfg, data)
        if source.measured:
            model_read(data.drawn)
        return source
    restored = restore(cfg)
    with built_from(restored.checkpoint):
        reader: DataModule = instantiate(restored.cfg.task.data)
        reader.recall(restored.task.data_info)
    return _restored(restored, reader)


def say_drawn(data: DataModule, files: list[Path]) -> None:
    """Record in the provenance if any of the files is synthetic."""
    if any(is_drawn(folder) for folder in {file.parent for file in files}):
        data_read([data.title])


def check_reading(action: DictConfig) -> None:
    """Raise a `UsageError` for invalid `form` or `batch_size` settings."""
    if action.form not in FORMS:
        raise UsageError(f"action.form must be one of {', '.join(FORMS)}, not {action.form}")
    size = action.batch_size
    if size is not None and (type(size) is not int or size < 1):
        raise UsageError(f"action.batch_size must be at least 1, not {size}")


def _restored(restored: Restored[Task], data: DataModule) -> Source:
    within = f" within {restored.joint}" if restored.joint else ""
    weights = f"trained on {restored.cfg.task.name}{within}"
    return Source(restored.cfg, restored.task.eval(), data, weights, restored.checkpoint)


def _composed(cfg: DictConfig, data: DataModule) -> Source:
    seed_everything(cfg.seed, verbose=False)
    task = build_task(cfg, data.info()).eval()
    embedder: Any = task.network.embedder
    measured = embedder.needs_statistics or not isinstance(data.targets, ClassTargets)
    if embedder.needs_statistics:
        embedder.fit_statistics(data.training_raws())
    pretrained = cfg.backbone.pretrained
    if not pretrained:
        log.info("no ckpt: the network is untrained")
    weights = f"pretrained ({pretrained})" if pretrained else UNTRAINED
    return Source(cfg, task, data, weights, measured=measured)


def _data_for(restored: Restored[Task]) -> DataModule:
    """The data of this command, read with the facts stored in the checkpoint, but with their own class names."""
    data = build_data(restored.cfg)
    known = restored.task.data_info
    if not isinstance(data.targets, ClassTargets):
        same_facts(restored, data.info())
        return data
    changes = changed_data(known, data.info(), {}, {})
    if changes:
        log.warning(
            "%s is other data than the model was trained on: %s; its features are taken as they are",
            printable(data.place),
            "; ".join(changes[:3]),
        )
        names = list(data.class_names)
        data.recall(known)
        data.class_names = names
    return data
