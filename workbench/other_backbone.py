"""Experiments with another backbone: drops settings that only the original backbone's class accepts, and logs it."""

import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from workbench.conf_folders import conf_folders
from workbench.signatures import signature_of

log = logging.getLogger("widefield")


def leave_out_others_settings(cfg: DictConfig) -> None:
    """Remove settings from `cfg.backbone.model` that only backbones of another class accept.

    An experiment may set, e.g., `backbone.model.feature_norms` for its own network; `backbone=convnext_atto` has no
    such setting. Names that no backbone knows are kept, and refused when the network is built.
    """
    model = cfg.backbone.model
    signature = signature_of(str(model._target_))
    if signature is None or signature.any_keyword:
        return
    foreign = [
        key
        for key in map(str, model)
        if key not in signature.arguments and not key.startswith("_") and key in _known_settings()
    ]
    if foreign:
        with open_dict(cfg):
            for key in foreign:
                del model[key]
        log.info("backbone: %s has no %s: left out", cfg.backbone.name, ", ".join(foreign))


def _known_settings() -> frozenset[str]:
    return _settings_in(tuple(conf_folders()))


@lru_cache(maxsize=4)
def _settings_in(folders: tuple[Path, ...]) -> frozenset[str]:
    """Names of the settings in the YAML files of all backbones."""

    def named() -> Iterator[str]:
        for file in sorted(file for folder in folders for file in (folder / "backbone").glob("*.yaml")):
            node = OmegaConf.load(file)
            if isinstance(node, DictConfig) and isinstance(node.get("model"), DictConfig):
                yield from map(str, node["model"])

    return frozenset(named())
