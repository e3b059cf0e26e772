"""Where YAML lies: our own `conf/`, that of installed plug-ins, and the folders that a command names.

A plug-in is a distribution with an entry point of the group `widefield.plugins`; its value is the dotted path of a
folder of YAML in a package, such as `widefield_tactile.conf`. Neither the package nor anything heavy is imported here.
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
PROVIDER = "widefield-plugin"  # what Hydra's search path calls a plug-in's folder


@dataclass(frozen=True)
class Plugin:
    """An installed plug-in: the name of its entry point, its distribution, its folder of YAML (None: not there)."""

    name: str
    distribution: str
    value: str
    folder: Path | None


@cache
def plugins() -> tuple[Plugin, ...]:
    """The installed plug-ins, by name."""
    found = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    return tuple(_plugin(found[key]) for key in sorted(found))


def _plugin(point: EntryPoint) -> Plugin:
    distribution = point.dist.name if point.dist else "an unknown distribution"
    return Plugin(point.name, distribution, point.value, _folder(point.value))


def _folder(value: str) -> Path | None:
    """The folder with a dotted path; of a package on top nothing is imported."""
    top, *below = value.replace(":", ".").split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    places = spec.submodule_search_locations if spec else None
    folders = (Path(place, *below) for place in places or ())
    return next((folder for folder in folders if folder.is_dir()), None)


def check_plugins() -> None:
    """End with one sentence where a plug-in lacks its folder: what it adds would only seem to be unknown."""
    for plugin in plugins():
        if plugin.folder is None:
            sys.exit(
                f"error: the plug-in {plugin.name} of {plugin.distribution} says that its YAML lies in {plugin.value}, "
                f"and there is no such folder: install {plugin.distribution} again, or uninstall it"
            )


def typed_folders() -> list[Path]:
    """The folders of YAML that this command names (`--config-dir`, `--config-path`)."""
    folders = []
    for before, word in zip(sys.argv, sys.argv[1:], strict=False):
        flag, equals, value = word.partition("=")
        if before in FOLDERS:
            folders.append(Path(word))
        elif equals and flag in FOLDERS:
            folders.append(Path(value))
    return folders


def conf_folders() -> list[Path]:
    """Every folder of YAML of this command; all of them are trusted."""
    return [CONF, *(plugin.folder for plugin in plugins() if plugin.folder), *typed_folders()]


def source_folders(sources: Iterable[Any]) -> list[Path]:
    """The folders of YAML among the sources of Hydra's search path, first what is looked through first.

    Of Hydra's own configuration and that of its plug-ins nothing is among them.
    """
    ours = (source for source in sources if _is_ours(source.provider))
    return [folder for source in ours if (folder := source_folder(source)) is not None]


def _is_ours(provider: str) -> bool:
    return provider in ("main", "command-line") or provider.startswith((PROVIDER, "hydra.searchpath"))


def source_folder(source: Any) -> Path | None:
    """Where a source of Hydra's search path lies on the disk; None: nowhere."""
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
    """The file of a choice, e.g. `("task", "esc50")`; None: there is none."""
    files = (folder / group / f"{name}.yaml" for folder in conf_folders())
    return next((file for file in files if file.is_file()), None)
