"""Hydra overrides of a command, recorded in the configuration composed from them.

A configuration does not tell which of its values were set explicitly. With a checkpoint this matters: an override
(`task.data.limit=7`) takes precedence over the checkpoint's value, a default does not. So the overrides are recorded in
the configuration, by the command line and by `compose` for a notebook or a test.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from workbench.checkpoint_words import with_groups_of_checkpoint
from workbench.conf_folders import CONF
from workbench.quoting import word
from workbench.registered import register_plugins
from workbench.resolvers import register_resolvers
from workbench.secret_words import words_of

KEY = "overrides"

register_resolvers()
register_plugins()


def compose(*words: str, config_name: str = "config", config_dir: str | Path | None = None) -> DictConfig:
    """Compose the configuration of the command `python run.py WORDS`.

    Args:
        words: overrides in Hydra's grammar, `group=NAME` or `group.key=VALUE`.
        config_name: the primary configuration file.
        config_dir: an additional configuration folder, as with `--config-dir`.

    Example:
        >>> compose("modality=time_series", "task.data.limit=7").task.data.limit
        7
    """
    words = tuple(with_groups_of_checkpoint([*words]))
    folders = [word("hydra.searchpath", [_address(config_dir)])] if config_dir is not None else []
    with _another_hydra(), hydra.initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        return recorded(hydra.compose(config_name, overrides=[*words, *folders]), words)


def recorded(cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """Record overrides in a configuration; returns the same object."""
    with open_dict(cfg):
        cfg[KEY] = list(words)
    return cfg


def without_words(cfg: DictConfig) -> DictConfig:
    """Remove the recorded overrides from a configuration; returns the same object."""
    with open_dict(cfg):
        cfg.pop(KEY, None)
    return cfg


def overrides(cfg: DictConfig) -> list[str] | None:
    """The overrides recorded in a configuration, references unresolved; None if none were recorded."""
    node: Any = cfg._get_node(KEY) if KEY in cfg else None
    return None if node is None else words_of(node)


def was_said(cfg: DictConfig, *beginnings: str) -> bool:
    """Whether one of the recorded overrides begins with one of these strings."""
    return any(said.startswith(beginnings) for said in overrides(cfg) or [])


def _address(folder: str | Path) -> str:
    return f"file://{Path(folder).expanduser().absolute()}"


@contextmanager
def _another_hydra() -> Iterator[None]:
    """Set aside and restore Hydra's global state, so that a Hydra in use is not affected."""
    before, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().hydra = HydraConfig.instance().cfg = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = before, config
