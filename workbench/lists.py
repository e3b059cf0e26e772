"""Settings of an action that are lists; a single value counts as a list of one.

`name` is the setting's, with dots for one inside another: `severities.noise`.
"""

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from workbench.errors import UsageError


def _listed(cfg: DictConfig, name: str) -> list[Any]:
    given = OmegaConf.select(cfg.action, name)
    return list(given) if isinstance(given, ListConfig | list | tuple) else [given]


def names_of(cfg: DictConfig, name: str) -> list[str]:
    """A setting that is a name or a list of names; null is an empty list. Raises `UsageError` otherwise."""
    found = _listed(cfg, name)
    found = [] if found == [None] else found
    if not all(isinstance(value, str) for value in found):
        raise UsageError(f"action.{name}={OmegaConf.select(cfg.action, name)}: it must list names")
    return found


def numbers(cfg: DictConfig, name: str) -> list[float]:
    """A setting that is a number or a list of numbers; raises `UsageError` otherwise."""
    found = _listed(cfg, name)
    if not all(type(value) in (int, float) for value in found):
        raise UsageError(f"action.{name}={OmegaConf.select(cfg.action, name)}: it must list numbers")
    return found


def whole_numbers(cfg: DictConfig, name: str) -> list[int]:
    """Like `numbers`, for integers."""
    found = numbers(cfg, name)
    if not all(type(value) is int for value in found):
        raise UsageError(f"action.{name}={OmegaConf.select(cfg.action, name)}: it must list whole numbers")
    return [int(value) for value in found]
