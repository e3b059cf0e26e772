"""What the recipes of video, point clouds and time series do, beyond what their files say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig
from torch import nn

Compose = Callable[..., DictConfig]

VIDEO = ["video/kinetics400_s", "video/kinetics400_b"]
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


@pytest.mark.parametrize("experiment", VIDEO + SERIES)
def test_no_recipe_clips(composed: Compose, experiment: str) -> None:
    """A trainer of the recipe keeps a gradient of any size."""
    cfg = composed(f"experiment={experiment}", "trainer=cpu")
    trainer: Any = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    assert not trainer.gradient_clip_val


@pytest.mark.parametrize("experiment", VIDEO + SERIES)
def test_no_recipe_averages_weights(composed: Compose, experiment: str) -> None:
    cfg = composed(f"experiment={experiment}", "paths.run=run")
    callbacks = [instantiate(node) for node in cfg.callbacks.values()]
    assert not any(isinstance(callback, WeightAveraging) for callback in callbacks)


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


@pytest.mark.parametrize("experiment", VIDEO)
def test_video_rates(composed: Compose, experiment: str) -> None:
    """Five epochs up to 1e-3, a half cosine down to 2.5e-7; the stem 0.75^13 as fast as the head."""
    cfg = composed(f"experiment={experiment}")
    found = rates(cfg, 90)
    assert found[4][-1] == pytest.approx(1e-3)
    assert found[0][0] == pytest.approx(1e-3 / 20)
    half = 2.5e-7 + (1e-3 - 2.5e-7) * 0.5
    assert found[47][2] == pytest.approx(half, rel=1e-6)  # halfway from step 20 to 360
    assert found[-1][-1] == pytest.approx(2.5e-7, rel=0.1)
    groups = instantiate(cfg.optimizer)(Layers()).param_groups
    by_layer = {(group["layer"], group["weight_decay"]): group["lr"] for group in groups}
    assert by_layer == {
        (0, 0.05): pytest.approx(1e-3 * 0.75**13),
        (13, 0.05): pytest.approx(1e-3),
        (13, 0.0): pytest.approx(1e-3),
    }


def test_a_video_step_sees_64_clips_twice(composed: Compose) -> None:
    cfg = composed("experiment=video/kinetics400_s")
    clips = cfg.task.data.batch_size * cfg.trainer.accumulate_grad_batches * cfg.trainer.devices
    assert clips == 64
    assert cfg.optimizer.lr == pytest.approx(4e-3 * clips / 256)
    assert cfg.task.data.repeats * cfg.task.data.batch_size == 8  # clips that a batch norm and a mixing see


@pytest.mark.parametrize("experiment", VIDEO)
def test_the_video_network_is_the_scripts_but_for_its_widths(composed: Compose, experiment: str) -> None:
    with torch.device("meta"):
        backbone = instantiate(composed(f"experiment={experiment}").backbone.model, in_chans=3)
    sizes = [[torch.tensor(block.dwconv.kernel_size).max() for block in stage] for stage in backbone.stages]
    kernels = [[int(size) for size in stage] for stage in sizes]
    assert kernels == [[3] * 3, [13] * 3, [13, 3, 3] * 9, [11] * 3]
    assert backbone.num_features == {"s": 768, "b": 1024}[experiment[-1]]
