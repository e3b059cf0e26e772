"""Runs the action that a composed configuration selects."""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from workbench.checking import check_composition
from workbench.console import quiet_libraries, short
from workbench.errors import kept_errors, plain_errors
from workbench.old_names import take_current_names
from workbench.other_backbone import leave_out_others_settings
from workbench.provenance import provenance
from workbench.secret_words import give_back
from workbench.stopping import STOP

log = logging.getLogger("widefield")


def run_action(cfg: DictConfig) -> float | None:
    """Run `cfg.action`; returns the monitored metric, or None if the action has none.

    `cfg.paths.run` is the run folder: with `run.py` Hydra's output directory; a notebook or a test sets it.
    """
    with STOP.heeded(), plain_errors(), provenance():
        quiet_libraries()
        OmegaConf.set_struct(cfg, True)
        if OmegaConf.is_missing(cfg.paths, "run"):
            cfg.paths.run = str(short(Path(HydraConfig.get().runtime.output_dir)))
        with kept_errors(Path(cfg.paths.run)):
            take_current_names(cfg)
            give_back(cfg)
            leave_out_others_settings(cfg)
            check_composition(cfg)
            value: float | None = get_method(cfg.action._target_)(cfg)
    return value
