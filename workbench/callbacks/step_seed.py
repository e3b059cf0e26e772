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
        torch.manual_seed(value)
        random.seed(value)
        np.random.seed(value)  # noqa: NPY002  timm's mixup draws from the global generator
