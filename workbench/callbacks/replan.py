"""Resuming a run with another number of epochs: the effect on the learning-rate schedule."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from tasks.optimizers import learning_rates
from tasks.task import Training
from workbench.errors import UsageError

log = logging.getLogger("widefield")

# Keys of a scheduler's state that hold its progress; the others hold its plan.
STANDING = ("last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial", "base_lrs")


class Replan(Callback):
    """Recompute the schedule of a resumed run for another number of epochs, as if it had been set from the start.

    A schedule of `tasks.schedules` is a function of the step and the planned number of steps, so it continues with the
    new plan. One that stores its plan in the checkpoint cannot be changed (`refuse_kept_plan`).

    Args:
        planned: number of epochs for which the checkpoint was planned.
    """

    def __init__(self, planned: int) -> None:
        self.planned = planned

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = f"{trainer.max_epochs} epochs instead of {self.planned}"
        if not trainer.lr_scheduler_configs:
            log.info("resume: %s; there is no schedule", epochs)
            return
        schedule: Any = trainer.lr_scheduler_configs[0].scheduler
        optimizer = trainer.optimizers[0]
        before = learning_rates(optimizer)["lr"]
        if not isinstance(schedule, LambdaLR):
            log.info(
                "resume: %s; the schedule does not depend on them, the learning rate is %.3g", epochs, before
            )
            return
        assert isinstance(pl_module, Training)
        step, total = schedule.last_epoch, pl_module.planned_steps()[0]
        for group, rate in zip(optimizer.param_groups, rates_at(schedule, step), strict=True):
            group["lr"] = rate
        now, half, end = (max(rates_at(schedule, at)) for at in (step, (step + total) // 2, total - 1))
        how = "goes on as it was" if now == before else "is that of a run planned so from the beginning"
        log.info(
            "resume: %s; the schedule %s: the learning rate was %.3g, it is now %.3g, halfway through the rest %.3g, "
            "at the end %.3g",
            *(epochs, how, before, now, half, end),
        )


def refuse_kept_plan(make_scheduler: Callable[..., LRScheduler], max_epochs: int) -> None:
    """Raise a `UsageError` for a scheduler whose checkpoint state depends on the planned number of steps."""
    plans = []
    for steps in (100, 200):
        schedule = make_scheduler(SGD([torch.zeros(1)], lr=1.0), total_steps=steps, steps_per_epoch=10)
        plans.append({key: value for key, value in schedule.state_dict().items() if key not in STANDING})
    kept = [key for key, value in plans[0].items() if value != plans[1][key]]
    if kept:
        raise UsageError(
            f"trainer.max_epochs={max_epochs}: {type(schedule).__name__} keeps in the checkpoint what it was planned "
            f"for ({kept[0]}), so this run cannot be given another number of epochs; start a new one from its weights "
            "with init_from=RUN"
        )


def rates_at(schedule: LambdaLR, step: int) -> list[float]:
    """The learning rate of each parameter group at a step."""
    return [
        float(base * factor(step))
        for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
