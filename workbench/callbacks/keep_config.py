"""Writes the configuration of a run that goes on."""

from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from workbench.results import write_config


class KeepConfig(Callback):
    """Writes `config.yaml` anew when every process of a run has read the one before, by which it goes on.

    The trainer's processes wait for each other before they are set up; until then some may not even be started.

    Args:
        cfg: this command's configuration.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            write_config(self.cfg)
