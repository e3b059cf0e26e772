"""Collects every `_target_` in YAML, with its place in the composition as Hydra would determine it.

Imports nothing heavy: `sweep.resume=DIR` checks a sweep's YAML before Hydra starts.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_MEMBER = re.compile(r"^task\.members\.[^.]+\.(?=(task|modality)(\.|$))")
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)\s*$", re.MULTILINE)

Slots = dict[str, set[str]]  # slot -> names of classes there


@cache
def slots_below(folder: Path) -> Slots:
    """Every `_target_` in the YAML files below a folder, by slot."""
    found: Slots = defaultdict(set)
    for file in sorted(folder.rglob("*.yaml")):
        try:
            text = file.read_text(encoding="utf-8")
            content = read_yaml(text) if "_target_" in text else None
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue  # not a configuration; Hydra reports it when it loads the file
        add_targets(content, package_of(text[:2000], file.parent.relative_to(folder)), found)
    return found


def package_of(text: str, group: Path) -> str:
    """The package of a YAML file: its group, unless its `@package` line says otherwise.

    >>> package_of("# @package _global_", Path("experiment/audio")), package_of("", Path("task/loss"))
    ('', 'task.loss')
    """
    found = _PACKAGE.search(text)
    return placed(found[1] if found else None, group)


def placed(package: str | None, group: Path) -> str:
    """Like `package_of`, for a known `@package`."""
    if package in (None, "_group_"):
        return ".".join(group.parts)
    return "" if package == "_global_" else str(package).removeprefix("_global_.")


def slots_of(content: Any) -> Slots:
    """Every `_target_` of a whole composition, by slot."""
    found: Slots = defaultdict(set)
    add_targets(content, "", found)
    return found


def add_targets(content: Any, place: str, found: Slots) -> None:
    """Add the `_target_`s of a node at a place to `found`."""
    for slot, node in targets_in(content, place):
        if isinstance(node["_target_"], str):
            found[slot].add(node["_target_"])


def targets_in(content: Any, place: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every node with a `_target_`, with its slot; members of a joint run have the slots of a task, items of a list
    share one."""
    if isinstance(content, dict):
        if "_target_" in content:
            yield slot_of(place), content
        for key, value in content.items():
            yield from targets_in(value, f"{place}.{key}".lstrip("."))
    elif isinstance(content, list):
        for value in content:
            yield from targets_in(value, f"{place}.*")


def slot_of(place: str) -> str:
    """The slot of a place in the composition.

    >>> slot_of("task.members.audio.task.loss")
    'task.loss'
    """
    return _MEMBER.sub("", place)


def read_yaml(text: str) -> Any:
    """Parse YAML as plain values; tags that create objects are refused."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
