"""Writes the configuration of a resumed run."""

from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from workbench.results import write_config


class KeepConfig(Callback):
    """Overwrites `config.yaml` once every process of a resumed run has read the previous one.

    The trainer's processes synchronise before `setup`; until then some may not have started yet.

    Args:
        cfg: this command's configuration.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            write_config(self.cfg)
