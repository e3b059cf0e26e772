"""Hydra's composition of a primary file and its groups, remembered: tests compose the same few of them again and again.

What is said of single settings is applied each time. Only compositions of the project's own `conf/` are remembered,
which no test changes; its files are read once, too.
"""

import pickle
from typing import Any

from hydra._internal import config_loader_impl as hydras
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from workbench.conf_folders import CONF

_listed: dict[Any, DefaultsList] = {}  # sources, primary file and groups -> the files composed
_composed: dict[int, bytes] = {}  # id of such a list -> what they make, pickled
_read: dict[str, bytes] = {}  # file -> its content, pickled

Plugins.instance()  # registers the kinds of sources
FileSource: Any = SourcesRegistry.instance().resolve("file")

_list = hydras.create_defaults_list
_compose = hydras.ConfigLoaderImpl._compose_config_from_defaults_list
_load = FileSource.load_config


def _is_ours(source: Any) -> bool:
    return bool(source.path == str(CONF.absolute()))


def remember_compositions() -> None:
    """From now on, in this process."""
    hydras.create_defaults_list = _list_once  # type: ignore[assignment]
    hydras.ConfigLoaderImpl._compose_config_from_defaults_list = _compose_once  # type: ignore[method-assign]
    FileSource.load_config = _load_once


def _list_once(
    repo: Any, config_name: str | None, overrides_list: list[Any], prepend_hydra: bool, skip_missing: bool
) -> DefaultsList:
    sources = tuple((source.scheme(), source.path) for source in repo.get_sources())
    if not all(source.scheme() != "file" or _is_ours(source) for source in repo.get_sources()):
        return _list(repo, config_name, overrides_list, prepend_hydra, skip_missing)
    overrides = Overrides(repo, overrides_list)
    settings = {id(override) for override in overrides.config_overrides}
    groups = tuple(override.input_line for override in overrides_list if id(override) not in settings)
    key = (sources, config_name, groups, prepend_hydra, skip_missing)
    if key not in _listed:
        _listed[key] = _list(repo, config_name, overrides_list, prepend_hydra, skip_missing)
    known = _listed[key]
    return DefaultsList(known.defaults, known.defaults_tree, overrides.config_overrides, known.overrides)


def _compose_once(self: Any, defaults: list[Any], repo: Any) -> DictConfig:
    if not any(defaults is known.defaults for known in _listed.values()):
        return _compose(self, defaults, repo)
    if id(defaults) not in _composed:
        _composed[id(defaults)] = pickle.dumps(_compose(self, defaults, repo))
    made: DictConfig = pickle.loads(_composed[id(defaults)])
    return made


def _load_once(self: Any, config_path: str) -> ConfigResult:
    if not _is_ours(self):
        return _load(self, config_path)
    if config_path not in _read:
        _read[config_path] = pickle.dumps(_load(self, config_path))
    made: ConfigResult = pickle.loads(_read[config_path])
    return made
