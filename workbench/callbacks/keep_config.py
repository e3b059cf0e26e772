"""Writes the configuration and the record of a resumed run."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from workbench.results import write_config
from workbench.run_record import write_held


class KeepConfig(Callback):
    """Overwrites `config.yaml` and Hydra's record once every process of a resumed run has read the previous ones.

    From then on the run is unfinished, and without a result: that of its previous end is about weights that the best
    checkpoint will not hold for long.

    The trainer's processes synchronise before `setup`; until then some may not have started yet.

    Args:
        cfg: this command's configuration.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            write_config(self.cfg)
            write_held()
            result = Path(self.cfg.paths.run) / "result.json"
            if result.is_file():
                result.unlink()
