"""What the recipes of video, point clouds and time series do, beyond what their files say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from workbench.build import build_network
from workbench.callbacks.averaging import AveragedWeights

Compose = Callable[..., DictConfig]

POINTS = ["point_cloud/modelnet40_s", "point_cloud/scanobjectnn_s"]
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


@pytest.mark.parametrize("experiment", POINTS + VIDEO + SERIES)
def test_no_recipe_clips(composed: Compose, experiment: str) -> None:
    """A trainer of the recipe keeps a gradient of any size."""
    cfg = composed(f"experiment={experiment}", "trainer=cpu")
    trainer: Any = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    assert not trainer.gradient_clip_val


@pytest.mark.parametrize("experiment", POINTS + VIDEO + SERIES)
def test_no_recipe_averages_weights(composed: Compose, experiment: str) -> None:
    cfg = composed(f"experiment={experiment}", "paths.run=run")
    callbacks = [instantiate(node) for node in cfg.callbacks.values()]
    assert not any(isinstance(callback, AveragedWeights) for callback in callbacks)


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


@pytest.mark.parametrize(
    ("words", "places"),
    [
        (("task=point_folder", "task.data.columns=[r,g,b,nx,ny,nz]"), (6, 7, 8)),
        (("task=point_folder", "task.data.columns=[nx,ny,nz]"), (3, 4, 5)),
        (("task=point_folder",), ()),
        (("task=radhar",), ()),
        (("task=point_folder", "task.data.columns=[nx,ny,nz]", "+modality.augment.raw.normals=false"), ()),
    ],
)
def test_normals_turn_with_the_points(
    composed: Compose, words: tuple[str, ...], places: tuple[int, ...]
) -> None:
    cfg = composed("modality=point_cloud", "modality.augment.raw.turn=any", *words)
    assert instantiate(cfg.modality.augment.raw).normals == places


@pytest.mark.parametrize("experiment", POINTS)
def test_point_rates(composed: Compose, experiment: str) -> None:
    """From 5e-4 at once, half a cosine down to 1e-6, all layers alike."""
    cfg = composed(f"experiment={experiment}")
    found = rates(cfg, 300)
    assert found[0][0] == pytest.approx(5e-4)
    assert found[150][0] == pytest.approx((5e-4 + 1e-6) / 2)
    assert found[-1][-1] == pytest.approx(1e-6, rel=0.01)
    assert {group["lr"] for group in instantiate(cfg.optimizer)(Layers()).param_groups} == {5e-4}


@pytest.mark.parametrize("experiment", POINTS)
def test_all_point_parameters_decay(composed: Compose, experiment: str) -> None:
    """AdamW without a gradient: every parameter, biases too, loses lr · decay of itself."""
    still = after_a_step(composed(f"experiment={experiment}"), 0.0)
    assert set(still) == {"stem.weight", "head.weight", "head.bias"}
    for value in still.values():
        torch.testing.assert_close(value, torch.full_like(value, 1 - 5e-4 * 0.05))


def test_point_smoothing_is_over_the_other_classes(composed: Compose) -> None:
    loss = instantiate(composed("experiment=point_cloud/modelnet40_s").task.loss)
    logits = torch.randn(3, 40)
    official = torch.full((3, 40), 0.2 / 39)
    official[:, 7] = 0.8
    target = torch.nn.functional.one_hot(torch.tensor([7, 7, 7]), 40).float()
    expected = -(official * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(logits, target), expected)


def test_point_augmentation_turns_stretches_and_does_no_more(composed: Compose) -> None:
    """Points lose nothing and get no noise: the map from original to posed places is linear but for the shift."""
    cfg = composed("experiment=point_cloud/modelnet40_s")
    torch.manual_seed(0)
    raw = torch.randn(8, 100, 3)
    out = instantiate(cfg.modality.augment.raw)(raw)
    place, original = out[..., :3], out[..., 3:]
    assert torch.equal(original, raw)
    one = torch.cat([raw, torch.ones(8, 100, 1)], dim=-1)
    fitted = torch.linalg.lstsq(one, place).solution
    torch.testing.assert_close(one @ fitted, place, rtol=1e-3, atol=1e-4)
    stretch = fitted[:, :3].norm(dim=1)  # the stretch comes after the turn
    assert stretch.min() > 0.66
    assert stretch.max() < 1.51
    assert stretch.std() > 0.1
    tilt = torch.rad2deg(torch.asin(-(fitted[:, :3] / stretch[:, None])[:, 2, 0]))
    assert tilt.min() > 35
    assert tilt.max() < 73


def test_the_point_network_gets_pictures_and_joins_four_views(composed: Compose) -> None:
    cfg = composed(
        "experiment=point_cloud/modelnet40_s",
        "modality.embedder.out_size=28",
        "backbone.model.depths=[1,1,1,1]",
        "backbone.model.dims=[8,8,8,16]",
    )
    network = build_network(cfg, {"class_names": [str(k) for k in range(40)], "multilabel": False}).eval()
    assert network.backbone.downsample_layers[0][0].in_channels == 3  # type: ignore[index, union-attr]
    assert network.head.norm.weight.shape == (64,)  # type: ignore[union-attr]
    assert network(torch.randn(2, 50, 3)).shape == (2, 40)
