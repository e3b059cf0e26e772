"""What the recipes of video, point clouds and time series do, beyond what their files say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

Compose = Callable[..., DictConfig]

SERIES = ["time_series/global_temp_s", "time_series/global_wind_s"]


class Layers(nn.Module):
    """A parameter that decays and one that may not, in the layers of a backbone's official groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2, bias=False)
        self.head = nn.Linear(2, 2)

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        return {"stem.weight": 0, "head.weight": 13, "head.bias": 13}


def rates(cfg: DictConfig, epochs: int, per_epoch: int = 4) -> list[list[float]]:
    """Learning rate of the fastest layer at every step, by epoch."""
    optimizer = instantiate(cfg.optimizer)(Layers())
    schedule = instantiate(cfg.scheduler)(
        optimizer, total_steps=epochs * per_epoch, steps_per_epoch=per_epoch
    )
    found: list[list[float]] = []
    for _ in range(epochs):
        found.append([])
        for _ in range(per_epoch):
            found[-1].append(max(group["lr"] for group in optimizer.param_groups))
            optimizer.step()
            schedule.step()
    return found


def after_a_step(cfg: DictConfig, gradient: float) -> dict[str, torch.Tensor]:
    """Parameters, all 1 before, after a step with the same gradient everywhere."""
    module = Layers()
    optimizer = instantiate(cfg.optimizer)(module)
    for parameter in module.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("experiment", SERIES)
def test_no_recipe_clips(composed: Compose, experiment: str) -> None:
    """A trainer of the recipe keeps a gradient of any size."""
    cfg = composed(f"experiment={experiment}", "trainer=cpu")
    trainer: Any = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    assert not trainer.gradient_clip_val


@pytest.mark.parametrize("experiment", SERIES)
def test_the_series_rate_is_halved_from_the_third_epoch(composed: Compose, experiment: str) -> None:
    found = rates(composed(f"experiment={experiment}"), 10)
    official = [1e-4 * 0.5 ** max(0, epoch - 1) for epoch in range(10)]
    assert found == [pytest.approx([rate] * 4) for rate in official]


@pytest.mark.parametrize("experiment", SERIES)
def test_series_weights_are_not_pulled_to_zero(composed: Compose, experiment: str) -> None:
    cfg = composed(f"experiment={experiment}")
    still = after_a_step(cfg, 0.0)
    assert all(bool((value == 1).all()) for value in still.values())
    # Adam's first step has the length of the learning rate, whatever the gradient.
    moved = after_a_step(cfg, 7.0)
    assert all(torch.allclose(value, torch.tensor(1 - 1e-4)) for value in moved.values())


@pytest.mark.parametrize("experiment", SERIES)
def test_series_stop_after_three_epochs_without_progress(composed: Compose, experiment: str) -> None:
    stopping: Any = instantiate(composed(f"experiment={experiment}").callbacks.early_stopping)

    class Run:
        should_stop = False
        callback_metrics: dict[str, torch.Tensor]
        strategy: Any = type("Alone", (), {"reduce_boolean_decision": staticmethod(lambda stop, all: stop)})
        current_epoch = 0
        fast_dev_run = False
        world_size = 1

    run: Any = Run()
    stopped = []
    for loss in (5.0, 4.0, 4.5, 4.4, 4.3):
        run.callback_metrics = {"val/loss": torch.tensor(loss)}
        stopping._run_early_stopping_check(run)
        stopped.append(run.should_stop)
    assert stopped == [False, False, False, False, True]
