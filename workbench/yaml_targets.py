"""Where classes stand in YAML: every `_target_`, with the place in the composition that Hydra would put it at.

Nothing heavy is imported here: `sweep.resume=DIR` looks at a sweep's YAML before Hydra starts.
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

Slots = dict[str, set[str]]  # slot -> names that stand there


@cache
def slots_below(folder: Path) -> Slots:
    """Every `_target_` in the YAML below a folder, by the place where Hydra would put it."""
    found: Slots = defaultdict(set)
    for file in sorted(folder.rglob("*.yaml")):
        try:
            text = file.read_text(encoding="utf-8")
            content = read_yaml(text) if "_target_" in text else None
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue  # not a configuration; Hydra says so where it is asked for
        add_targets(content, package_of(text[:2000], file.parent.relative_to(folder)), found)
    return found


def package_of(text: str, group: Path) -> str:
    """Where the content of a YAML file belongs: below its group, unless its `@package` line says otherwise.

    >>> package_of("# @package _global_", Path("experiment/audio")), package_of("", Path("task/loss"))
    ('', 'task.loss')
    """
    found = _PACKAGE.search(text)
    return placed(found[1] if found else None, group)


def placed(package: str | None, group: Path) -> str:
    """Likewise, the `@package` known."""
    if package in (None, "_group_"):
        return ".".join(group.parts)
    return "" if package == "_global_" else str(package).removeprefix("_global_.")


def slots_of(content: Any) -> Slots:
    """Every `_target_` of a whole composition, by its slot."""
    found: Slots = defaultdict(set)
    add_targets(content, "", found)
    return found


def add_targets(content: Any, place: str, found: Slots) -> None:
    """Note the `_target_`s of a node at a place."""
    for slot, node in targets_in(content, place):
        if isinstance(node["_target_"], str):
            found[slot].add(node["_target_"])


def targets_in(content: Any, place: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every node with a `_target_`, with its slot: a member's is a task's own, a list's items share one."""
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


def read_yaml(text: str) -> Any:
    """YAML as plain values; tags that would make objects are refused."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
