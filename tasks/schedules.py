"""Learning-rate schedules, a factor of the peak rate per optimiser step."""

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 1.0,
    min_ratio: float = 0.01,
    from_zero: bool = False,
) -> LambdaLR:
    """Linear warm-up over `warmup_epochs`, then a half cosine from 1 down to `min_ratio`.

    The warm-up never takes more than half of the run, so that very short runs still reach the peak.

    Args:
        optimizer: whose groups' learning rates are the peak.
        total_steps, steps_per_epoch: optimiser steps of the run and of an epoch.
        warmup_epochs: length of the warm-up; its last step is at the peak.
        min_ratio: what is left of the peak at the end.
        from_zero: the first step's rate is 0, as in the scripts of ConvNeXt and UniRepLKNet, instead of a step above 0.
    """
    warmup = min(round(warmup_epochs * steps_per_epoch), total_steps // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(warmup - 1, 1) if from_zero else (step + 1) / warmup
        progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def exponential(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_steps: int = 0,
    start_epoch: int = 5,
    gamma: float = 0.85,
    every: int = 1,
) -> LambdaLR:
    """1 until `start_epoch`, then times `gamma` at that epoch and `every` so many later (UniRepLKNet's audio recipe).

    Over the first `warmup_steps` it rises linearly from 0.
    """

    def factor(step: int) -> float:
        begun = step // max(steps_per_epoch, 1) - start_epoch
        return min((step + 1) / (warmup_steps + 1), 1.0) * gamma ** max(0, begun // every + 1)

    return LambdaLR(optimizer, factor)


def poly(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_steps: int = 1500,
    warmup_ratio: float = 1e-6,
    power: float = 1.0,
    min_ratio: float = 0.0,
) -> LambdaLR:
    """From 1 down to `min_ratio` as (1 - step / total) to a power, in the warm-up times a line that rises to 1.

    As in the official recipes of segmentation (mmcv's `poly` policy, counted by steps). The warm-up never takes more
    than half of the run.

    Args:
        optimizer: whose groups' learning rates are the peak.
        total_steps, steps_per_epoch: optimiser steps of the run and of an epoch.
        warmup_steps: length of the warm-up.
        warmup_ratio: where its line begins.
        power: 1: a straight line.
        min_ratio: what is left at the end.
    """
    warmup = min(warmup_steps, total_steps // 2)

    def factor(step: int) -> float:
        left = max(1 - step / max(total_steps, 1), 0.0) ** power
        rise = 1 - (1 - step / warmup) * (1 - warmup_ratio) if step < warmup else 1.0
        return (min_ratio + (1 - min_ratio) * left) * rise

    return LambdaLR(optimizer, factor)


def milestones(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    epochs: Sequence[int] = (27, 33),
    gamma: float = 0.1,
    warmup_steps: int = 500,
    warmup_ratio: float = 0.001,
) -> LambdaLR:
    """1, times `gamma` from each of some epochs on; in the warm-up times a line that rises to 1.

    As in the official recipes of detection (mmcv's `step` policy, counted by epochs, its warm-up by steps). The warm-up
    never takes more than half of the run.

    Args:
        optimizer: whose groups' learning rates are the peak.
        total_steps, steps_per_epoch: optimiser steps of the run and of an epoch.
        epochs: those that begin with a lower rate, from 0.
        gamma: factor at each of them.
        warmup_steps: length of the warm-up.
        warmup_ratio: where its line begins.

    Raises:
        ValueError: epochs that do not rise.
    """
    begins = list(epochs)
    if begins != sorted(set(begins)) or (begins and begins[0] < 1):
        raise ValueError(
            f"scheduler.epochs takes rising numbers of at least 1, such as [27, 33], not {begins}"
        )
    warmup = min(warmup_steps, total_steps // 2)

    def factor(step: int) -> float:
        epoch = step // max(steps_per_epoch, 1)
        rise = 1 - (1 - step / warmup) * (1 - warmup_ratio) if step < warmup else 1.0
        return gamma ** sum(epoch >= begin for begin in begins) * rise

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int) -> LambdaLR:
    """The same learning rate throughout."""
    return LambdaLR(optimizer, lambda step: 1.0)
