"""Which classes a file may name: those of its slot, looked up by name, never imported because a file says so.

A slot is a place in the composition where a `_target_` may stand, such as `task.loss`. A name is allowed there
- if the trusted configuration names it at that slot: this command, `conf/`, and whatever else is on Hydra's search path
  (plug-ins, `--config-dir`); or
- if it is a public class of `modalities`, `backbone` or `tasks`, or a loss of `torch.nn`, and of the slot's base.
"""

import importlib
import importlib.resources
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from torch import nn

from modalities.embedder import Embedder
from tasks.datasets.base import DataModule
from tasks.task import Task

CONF = Path(__file__).parent.parent / "conf"
PACKAGES = ("modalities", "backbone", "tasks")
#: The slots that our own classes fill, each with its base. Any other slot must stand in the trusted configuration.
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
_MEMBER = re.compile(r"^task\.members\.[^.]+\.(?=(task|modality)(\.|$))")
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)\s*$", re.MULTILINE)

Slots = dict[str, set[str]]  # slot -> names that stand there


def is_allowed(name: Any, slot: str, cfg: DictConfig) -> bool:
    """Whether a file may name this class at this slot; `cfg` is the command's own composition, which is trusted."""
    if not isinstance(name, str) or not _DOTTED.fullmatch(name):
        return False
    base = BASES.get(slot)
    if base is not None and _is_class_of(name, base):
        return True
    own = OmegaConf.to_container(cfg, resolve=False)
    return name in _slots_of(own)[slot] or any(name in slots[slot] for slots in _search_path())


def _is_class_of(name: str, base: type) -> bool:
    """Whether it is a public class of ours, defined in the package that the name says, or a loss of torch's."""
    place, _, last = name.rpartition(".")
    if place == "torch.nn":
        found = vars(torch.nn).get(last)
        return isinstance(found, type) and issubclass(found, torch.nn.modules.loss._Loss) and base is nn.Module
    parts = name.split(".")
    if parts[0] not in PACKAGES or any(part.startswith("_") for part in parts):
        return False
    try:
        module = importlib.import_module(place)  # a module of ours, or nothing: no attribute is walked through
    except ImportError:
        return False
    found = vars(module).get(last)
    ours = isinstance(found, type) and found.__module__.partition(".")[0] == parts[0]
    return ours and issubclass(found, base)


# -- the trusted configuration -----------------------------------------------------------------------------------------


def _search_path() -> Iterator[Slots]:
    """The slots of `conf/` and of everything else on Hydra's search path, where Hydra is at work."""
    yield slots_below(CONF)
    if not GlobalHydra.instance().is_initialized():
        return
    for source in GlobalHydra.instance().config_loader().get_sources():
        folder = _folder(source)
        if folder is not None and folder.resolve() != CONF.resolve():
            yield slots_below(folder)
        elif folder is None:
            yield _slots_in(source)


def _folder(source: Any) -> Path | None:
    """Where a source of the search path lies on the disk."""
    if source.scheme() == "file":
        return Path(source.path)
    if source.scheme() != "pkg":
        return None
    package, _, below = source.path.partition("/")
    try:
        folder = importlib.resources.files(package) / below
    except (ImportError, TypeError, ValueError):
        return None
    return folder if isinstance(folder, Path) and folder.is_dir() else None


@cache
def slots_below(folder: Path) -> Slots:
    """Every `_target_` in the YAML below a folder, by the place where Hydra would put it."""
    found: Slots = defaultdict(set)
    for file in sorted(folder.rglob("*.yaml")):
        try:
            text = file.read_text(encoding="utf-8")
            content = _yaml(text) if "_target_" in text else None
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue  # not a configuration; Hydra says so where it is asked for
        _add(content, package_of(text[:2000], file.parent.relative_to(folder)), found)
    return found


def _slots_in(source: Any, group: str = "") -> Slots:
    """Likewise for a source that is no folder, such as the store of structured configurations."""
    found: Slots = defaultdict(set)
    for name in source.list(group, ObjectType.CONFIG):
        loaded = source.load_config(f"{group}/{name}".lstrip("/"))
        content = OmegaConf.to_container(loaded.config, resolve=False)
        package = (loaded.header or {}).get("package")
        _add(content, _placed(package, Path(group)), found)
    for name in source.list(group, ObjectType.GROUP):
        for slot, names in _slots_in(source, f"{group}/{name}".lstrip("/")).items():
            found[slot] |= names
    return found


def package_of(text: str, group: Path) -> str:
    """Where the content of a YAML file belongs: below its group, unless its `@package` line says otherwise.

    >>> package_of("# @package _global_", Path("experiment/audio")), package_of("", Path("task/loss"))
    ('', 'task.loss')
    """
    found = _PACKAGE.search(text)
    return _placed(found[1] if found else None, group)


def _placed(package: str | None, group: Path) -> str:
    if package in (None, "_group_"):
        return ".".join(group.parts)
    return "" if package == "_global_" else str(package).removeprefix("_global_.")


def _slots_of(content: Any) -> Slots:
    found: Slots = defaultdict(set)
    _add(content, "", found)
    return found


def _add(content: Any, place: str, found: Slots) -> None:
    for slot, node in targets_in(content, place):
        if isinstance(node["_target_"], str):
            found[slot].add(node["_target_"])


def targets_in(content: Any, place: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every node with a `_target_`, with its slot: a member's is that of a task on its own, a list's items share one."""
    if isinstance(content, dict):
        if "_target_" in content:
            yield slot_of(place), content
        for key, value in content.items():
            yield from targets_in(value, f"{place}.{key}".lstrip("."))
    elif isinstance(content, list):
        for value in content:
            yield from targets_in(value, f"{place}.*")


def slot_of(place: str) -> str:
    """The slot at a place of the composition.

    >>> slot_of("task.members.audio.task.loss")
    'task.loss'
    """
    return _MEMBER.sub("", place)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
