"""Weight averaging: validation, test and checkpoints use the average instead of the last step's weights."""

import logging
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from workbench.errors import UsageError

log = logging.getLogger("widefield")

Pair = tuple[Tensor, Tensor]  # an entry of the average, and the model's
TRAINING_STATE = "training_state_dict"  # checkpoint key of the weights from which training resumes


class AveragedWeights(Callback):
    """Keeps an average of all weights and batch-norm statistics beside the trained weights.

    The average is swapped into the model for validation and after training. A checkpoint's `state_dict` is the average,
    i.e. the validated weights; the weights from which training resumes are stored beside it. The average is updated
    after optimiser steps, not batches, so that an interrupted and resumed run computes the same averages. A weight with
    several names, such as one that the tasks of a joint run share, has one average.

    Subclasses define the weight of the new parameters in `share`.
    """

    def __init__(self) -> None:
        self.updates = 0
        # The average or, while the average is in the model, the trained weights; one tensor for all names of a weight.
        self.average: dict[str, Tensor] = {}
        self.in_model = False

    def share(self, trainer: Trainer) -> float | None:
        """Weight in [0, 1] of the parameters after this optimiser step in the average; None skips the update."""
        raise NotImplementedError

    # -- updating the average -------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UsageError(
                "averaged weights (callbacks=ema, weight_average) need all weights on every device: "
                "take trainer=ddp instead of fsdp"
            )
        if sum(isinstance(callback, AveragedWeights) for callback in _callbacks(trainer)) > 1:
            raise UsageError("callbacks: of ema and weight_average a run can have one, not both")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.in_model = False
        copies: dict[Hashable, Tensor] = {}
        for name, value in pl_module.state_dict().items():
            place = _place(value)
            if place not in copies:
                copies[place] = self.average.get(name, value).detach().to(value.device, copy=True)
            self.average[name] = copies[place]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Collected once: traversing all modules at every step takes longer than the averaging.
        pairs = [(self.average[name], value) for name, value in self._state(pl_module).items()]
        real = [pair for pair in pairs if pair[1].is_floating_point()]
        counts = [pair for pair in pairs if not pair[1].is_floating_point()]
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self._update(trainer, real, counts))

    @torch.no_grad()
    def _update(self, trainer: Trainer, real: Sequence[Pair], counts: Sequence[Pair]) -> None:
        share = self.share(trainer)
        if share is None:
            return
        self.updates += 1
        torch._foreach_lerp_([kept for kept, _ in real], [value for _, value in real], share)
        for kept, value in counts:
            kept.copy_(value)

    @staticmethod
    def _state(pl_module: LightningModule) -> dict[str, Tensor]:
        """Every weight and statistic of the model, under the first of its names."""
        state = pl_module.state_dict()
        names: dict[Hashable, str] = {}
        for name, value in state.items():
            names.setdefault(_place(value), name)
        return {name: state[name] for name in names.values()}

    @torch.no_grad()
    def _exchange(self, pl_module: LightningModule) -> None:
        # In place: compiled networks and CUDA graphs keep the addresses of the weights.
        for name, value in self._state(pl_module).items():
            before = value.clone()
            value.copy_(self.average[name])
            self.average[name].copy_(before)
        self.in_model = not self.in_model

    # -- swapping the average into the model ----------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average and not self.in_model:
            self._exchange(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.in_model:
            self._exchange(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.in_model:
            self._exchange(pl_module)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        other = dict(self.average)
        own = checkpoint["state_dict"]
        checkpoint["state_dict"], checkpoint[TRAINING_STATE] = (own, other) if self.in_model else (other, own)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":  # a test uses the average, which is already in the model
            return
        self.average = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
        pl_module.load_state_dict(checkpoint.get(TRAINING_STATE, checkpoint["state_dict"]))


def _place(value: Tensor) -> Hashable:
    """The same for all names of one tensor."""
    return (value.data_ptr(), value.shape, value.stride()) if value.numel() else object()


def _callbacks(trainer: Trainer) -> Sequence[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


class ExponentialAverage(AveragedWeights):
    """Exponential moving average (Polyak & Juditsky 1992): `average = d · average + (1 - d) · weights` each step.

    Args:
        decay: d.
        warmup: use a lower d in the first steps, `min(decay, (1 + n) / (10 + n))` after n updates; otherwise the
            average stays close to the initial weights early on (with 0.999 for about 2,000 steps).
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {decay}")
        self.decay = decay
        self.warmup = warmup

    def share(self, trainer: Trainer) -> float | None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        return 1 - decay


class EpochAverage(AveragedWeights):
    """Uniform average of the weights at the end of every epoch from `start_epoch` on (as in the recipes of AST).

    Before that epoch, validation and checkpoints use the current weights.

    Args:
        start_epoch: the first epoch to average, counted from 0.
    """

    def __init__(self, start_epoch: int = 0) -> None:
        super().__init__()
        if start_epoch < 0:
            raise ValueError(f"start_epoch must be at least 0, not {start_epoch}")
        self.start_epoch = start_epoch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        epochs = trainer.max_epochs
        if epochs is not None and 0 < epochs <= self.start_epoch + 1:
            log.warning(
                "weight_average: this run has %d epochs and averages from epoch %d on, counted from 0, so that "
                "nothing is averaged (callbacks.weight_average.start_epoch)",
                epochs,
                self.start_epoch,
            )

    def share(self, trainer: Trainer) -> float | None:
        if not trainer.is_last_batch:
            return None
        return 1 / max(trainer.current_epoch - self.start_epoch + 1, 1)
