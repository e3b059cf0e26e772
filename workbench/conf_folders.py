"""Configuration folders: this project's `conf/`, those of installed plug-ins, and those named by the command.

A plug-in is a distribution with an entry point of the group `widefield.plugins`; its value is the dotted path of a
folder of YAML files in a package, such as `widefield_tactile.conf`. Neither the package nor anything heavy is imported
here.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.program import INSTALLED, ROOT
from workbench.typed_words import FOLDERS

CONF = ROOT / "workbench" / "conf" if INSTALLED else ROOT / "conf"
RUN = ROOT / "workbench" / "start" / "run.py" if INSTALLED else ROOT / "run.py"
GROUP = "widefield.plugins"
PROVIDER = "widefield-plugin"  # provider name of a plug-in's folder in Hydra's search path


@dataclass(frozen=True)
class Plugin:
    """An installed plug-in: name and value of its entry point, its distribution, its YAML folder (None if missing)."""

    name: str
    distribution: str
    value: str
    folder: Path | None


@cache
def plugins() -> tuple[Plugin, ...]:
    """The installed plug-ins, sorted by name."""
    found = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    return tuple(_plugin(found[key]) for key in sorted(found))


def _plugin(point: EntryPoint) -> Plugin:
    distribution = point.dist.name if point.dist else "an unknown distribution"
    return Plugin(point.name, distribution, point.value, _folder(point.value))


def _folder(value: str) -> Path | None:
    """The folder at a dotted path; the top-level package is not imported."""
    top, *below = value.replace(":", ".").split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    places = spec.submodule_search_locations if spec else None
    folders = (Path(place, *below) for place in places or ())
    return next((folder for folder in folders if folder.is_dir()), None)


def check_plugins() -> None:
    """Exit with an error if the folder of a plug-in is missing; its options would only be reported as unknown."""
    for plugin in plugins():
        if plugin.folder is None:
            sys.exit(
                f"error: the plug-in {plugin.name} of {plugin.distribution} says that its YAML lies in {plugin.value}, "
                f"and there is no such folder: install {plugin.distribution} again, or uninstall it"
            )


def typed_folders() -> list[Path]:
    """The configuration folders that this command names (`--config-dir`, `--config-path`)."""
    folders = []
    for before, word in zip(sys.argv, sys.argv[1:], strict=False):
        flag, equals, value = word.partition("=")
        if before in FOLDERS:
            folders.append(Path(word))
        elif equals and flag in FOLDERS:
            folders.append(Path(value))
    return folders


def conf_folders() -> list[Path]:
    """All configuration folders of this command; all of them are trusted."""
    return [CONF, *(plugin.folder for plugin in plugins() if plugin.folder), *typed_folders()]


def source_folders(sources: Iterable[Any]) -> list[Path]:
    """The configuration folders in Hydra's search path, in search order.

    Hydra's own configuration and that of its plug-ins are excluded.
    """
    ours = (source for source in sources if _is_ours(source.provider))
    return [folder for source in ours if (folder := source_folder(source)) is not None]


def _is_ours(provider: str) -> bool:
    return provider in ("main", "command-line") or provider.startswith((PROVIDER, "hydra.searchpath"))


def source_folder(source: Any) -> Path | None:
    """The folder of a source in Hydra's search path; None if it is not on disk."""
    if source.scheme() == "file":
        return Path(source.path)
    if source.scheme() != "pkg":
        return None
    package, _, below = source.path.partition("/")
    try:
        folder = resources.files(package) / below
    except (ImportError, TypeError, ValueError):
        return None
    return folder if isinstance(folder, Path) and folder.is_dir() else None


def find_yaml(group: str, name: str) -> Path | None:
    """The YAML file of a group option, e.g. `("task", "esc50")`; None if there is none."""
    files = (folder / group / f"{name}.yaml" for folder in conf_folders())
    return next((file for file in files if file.is_file()), None)
