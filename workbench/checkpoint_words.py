"""Completes `ckpt=RUN` with the run's modality and task, so that their settings can be overridden beside it.

Without them `action=test ckpt=RUN task.model.inference.flip=true` would be checked against the settings of the default
task. A run folder is untrusted data (docs/SECURITY.md): only names of installed configuration files are taken from it.
"""

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from workbench.quoting import plain
from workbench.typed_words import ABOUT_FOLDERS, is_sweep
from workbench.words import HUB, options
from workbench.yaml_targets import read_yaml

GROUPS = ("modality", "task")
MOST_BYTES = 10**6  # maximum size of a run's config.yaml
_SAID = re.compile(r"[+~]*(modality|task|experiment)(=|$)")


def with_groups_of_checkpoint(words: list[str]) -> list[str]:
    """Add `modality=` and `task=` of the run in `ckpt=`, unless the command sets modality, task or experiment."""
    typed = [word for place, word in enumerate(words) if not (place and words[place - 1] in ABOUT_FOLDERS)]
    asked = [word.partition("=")[2] for word in typed if word.startswith("ckpt=")]
    if not asked or is_sweep(words) or any(map(_SAID.match, typed)):
        return words
    name = plain(asked[-1])
    path = Path(name).expanduser()
    if name.startswith(HUB) or not path.exists():
        return words
    folder = path if path.is_dir() else path.parent.parent
    return [*words, *(f"{group}={name}" for group, name in _groups_of(folder / "config.yaml").items())]


def take_checkpoint_words() -> None:
    """Apply `with_groups_of_checkpoint` to `sys.argv`."""
    sys.argv[1:] = with_groups_of_checkpoint(sys.argv[1:])


def _groups_of(file: Path) -> dict[str, str]:
    """Modality and task names from a run's `config.yaml`; empty unless both have a configuration file."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return {}
        content: Any = read_yaml(file.read_text(encoding="utf-8"))
        names = {group: content[group]["name"] for group in GROUPS}
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError, RecursionError):
        return {}
    return names if all(names[group] in options(group) for group in GROUPS) else {}
