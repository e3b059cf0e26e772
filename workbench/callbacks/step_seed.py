"""Seeds every training step separately, so that a resumed run is identical to an uninterrupted one."""

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seed all generators before each training step from (seed, epoch, batch, rank).

    Dropout, drop path, mixup and masks then do not depend on earlier steps, and no generator state has to be
    saved. Likewise, datasets seed from (seed, epoch, index), see `tasks.datasets.base`.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        words = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        value = int(np.random.SeedSequence(words).generate_state(1)[0])
        seed_torch(value)
        random.seed(value)
        np.random.seed(value)  # noqa: NPY002  timm's mixup draws from the global generator


def seed_torch(value: int) -> None:
    """`torch.manual_seed` for the CPU and the accelerator that is there.

    For those that are not there, `torch.manual_seed` keeps a note with a formatted traceback each time, which takes one
    to three milliseconds of a training step.
    """
    torch.default_generator.manual_seed(value)
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        module = torch.get_device_module(kind)
        getattr(module, "manual_seed_all", module.manual_seed)(value)
