"""Learning-rate schedules: factors of the peak learning rate, updated every optimiser step."""

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
        optimizer: the learning rates of its groups are the peak rates.
        total_steps, steps_per_epoch: optimiser steps of the run and of an epoch.
        warmup_epochs: length of the warm-up; its last step is at the peak.
        min_ratio: ratio of the final to the peak rate.
        from_zero: start the warm-up at 0, as in the scripts of ConvNeXt and UniRepLKNet, instead of one step above 0.

    Raises:
        ValueError: a setting out of its range.
    """
    _at_least_0(warmup_epochs=warmup_epochs)
    _ratios(min_ratio=min_ratio)
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
    """Constant until `start_epoch`, then multiplied by `gamma` at that epoch and every `every` epochs (UniRepLKNet's
    audio recipe), with a linear warm-up from 0 over the first `warmup_steps`.

    Raises:
        ValueError: a setting out of its range.
    """
    _at_least_0(warmup_steps=warmup_steps, start_epoch=start_epoch)
    _above_0(gamma=gamma)
    if every < 1:
        raise ValueError(f"scheduler.every must be at least 1, not {every}")

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
    """Polynomial decay (1 - step / total) ** power from 1 to `min_ratio`, multiplied by a linear warm-up.

    As in the official segmentation recipes (mmcv's `poly` policy, by steps). The warm-up never takes more than half of
    the run.

    Args:
        optimizer: the learning rates of its groups are the peak rates.
        total_steps, steps_per_epoch: optimiser steps of the run and of an epoch.
        warmup_steps: length of the warm-up.
        warmup_ratio: initial factor of the warm-up.
        power: exponent; 1 is linear decay.
        min_ratio: ratio of the final to the peak rate.

    Raises:
        ValueError: a setting out of its range.
    """
    _at_least_0(warmup_steps=warmup_steps)
    _ratios(warmup_ratio=warmup_ratio, min_ratio=min_ratio)
    _above_0(power=power)
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
    """Multi-step decay by `gamma` at the start of each of some epochs, multiplied by a linear warm-up.

    As in the official detection recipes (mmcv's `step` policy, by epochs, with a warm-up by steps). The warm-up never
    takes more than half of the run.

    Args:
        optimizer: the learning rates of its groups are the peak rates.
        total_steps, steps_per_epoch: optimiser steps of the run and of an epoch.
        epochs: the epochs at whose start the rate decays, counted from 0.
        gamma: factor at each of them.
        warmup_steps: length of the warm-up.
        warmup_ratio: initial factor of the warm-up.

    Raises:
        ValueError: epochs that are not strictly increasing, or below 1; a setting out of its range.
    """
    _at_least_0(warmup_steps=warmup_steps)
    _ratios(warmup_ratio=warmup_ratio)
    _above_0(gamma=gamma)
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
    """A constant learning rate."""
    return LambdaLR(optimizer, lambda step: 1.0)


def _at_least_0(**settings: float) -> None:
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"scheduler.{name} must be at least 0, not {value}")


def _above_0(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"scheduler.{name} must be above 0, not {value}")


def _ratios(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ValueError(f"scheduler.{name} must lie in [0, 1], not {value}")
