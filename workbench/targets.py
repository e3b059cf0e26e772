"""Classes that a file may name: those of its slot, looked up by name, never imported because a file names them.

A slot is a place in the composition that may hold a `_target_`, such as `task.loss`. A name is allowed there
- if the trusted configuration names it at that slot: this command, `conf/`, and whatever else is on Hydra's search path
  (plug-ins, `--config-dir`); or
- if it is a public class of `modalities`, `backbone` or `tasks`, or a loss of `torch.nn`, and a subclass of the slot's
  base.
"""

import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from torch import nn

from modalities.embedder import Embedder
from tasks.datasets.base import DataModule
from tasks.task import Task
from workbench.conf_folders import conf_folders, source_folder
from workbench.yaml_targets import Slots, add_targets, placed, slots_below, slots_of

PACKAGES = ("modalities", "backbone", "tasks")
#: Slots of this project's classes, with their base class. Any other slot must be in the trusted configuration.
BASES: dict[str, type] = {
    "modality.embedder": Embedder,
    "modality.augment.raw": nn.Module,
    "modality.augment.mixup": nn.Module,
    "modality.augment.maps": nn.Module,
    "task.model": Task,
    "task.model.loss": nn.Module,
    "task.head": nn.Module,
    "task.loss": nn.Module,
    "task.data": DataModule,
    "backbone.model": nn.Module,
}

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def stands_at(name: Any, slot: str, cfg: DictConfig) -> bool:
    """Whether the trusted configuration, or this command's own composition, names a class at a slot."""
    if not _is_dotted(name):
        return False
    own = OmegaConf.to_container(cfg, resolve=False)
    return name in slots_of(own)[slot] or any(name in slots[slot] for slots in _search_path())


def _is_dotted(name: Any) -> bool:
    return isinstance(name, str) and _DOTTED.fullmatch(name) is not None


def is_class_of(name: Any, base: type | None) -> bool:
    """Whether a name is a public class of this project, or a loss of `torch.nn`, with this base class."""
    if base is None or not _is_dotted(name):
        return False
    place, _, last = name.rpartition(".")
    if place == "torch.nn":
        found = vars(torch.nn).get(last)
        return (
            isinstance(found, type) and issubclass(found, torch.nn.modules.loss._Loss) and base is nn.Module
        )
    parts = name.split(".")
    if parts[0] not in PACKAGES or any(part.startswith("_") for part in parts):
        return False
    try:
        module = importlib.import_module(place)  # a module of this project only; attributes are not traversed
    except ImportError:
        return False
    found = vars(module).get(last)
    if not isinstance(found, type) or found.__module__.partition(".")[0] != parts[0]:
        return False
    return issubclass(found, base)


# -- the trusted configuration -----------------------------------------------------------------------------------------


def _search_path() -> Iterator[Slots]:
    """The slots of `conf/`, of plug-ins and, if Hydra is initialised, of everything else on its search path."""
    ours = conf_folders()
    yield from map(slots_below, ours)
    if not GlobalHydra.instance().is_initialized():
        return
    for source in GlobalHydra.instance().config_loader().get_sources():
        folder = source_folder(source)
        if folder is not None and folder not in ours:
            yield slots_below(folder)
        elif folder is None:
            yield _slots_in(source)


def _slots_in(source: Any, group: str = "") -> Slots:
    """The slots of a source that is not a folder, such as Hydra's config store."""
    found: Slots = defaultdict(set)
    for name in source.list(group, ObjectType.CONFIG):
        loaded = source.load_config(f"{group}/{name}".lstrip("/"))
        content = OmegaConf.to_container(loaded.config, resolve=False)
        package = (loaded.header or {}).get("package")
        add_targets(content, placed(package, Path(group)), found)
    for name in source.list(group, ObjectType.GROUP):
        for slot, names in _slots_in(source, f"{group}/{name}".lstrip("/")).items():
            found[slot] |= names
    return found
