"""What the recipes of detection do, beyond what their files say."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from workbench.build import build_network
from workbench.callbacks.averaging import ExponentialAverage

Compose = Callable[..., DictConfig]
SIZES = ("t", "s", "b", "l", "xl")
MILLIONS = {"t": 88.45, "s": 112.99, "b": 155.2, "l": 275.4, "xl": 443.2}
DATA_INFO = {"class_names": [str(index) for index in range(80)], "has_masks": True}


@pytest.mark.parametrize("size", SIZES)
def test_a_step_sees_16_pictures(composed: Compose, size: str) -> None:
    name = f"experiment=detection/coco_cascade_{size}"
    one = composed(name)
    assert one.task.data.batch_size * one.trainer.accumulate_grad_batches == 16
    eight = composed(name, "trainer=ddp", "trainer.devices=8", "task.data.batch_size=2")
    assert eight.trainer.devices * eight.task.data.batch_size * eight.trainer.accumulate_grad_batches == 16
    assert eight.trainer.sync_batchnorm is True
    assert eight.trainer.max_epochs == 36


@pytest.mark.parametrize("size", SIZES)
def test_the_network_is_the_published_one(composed: Compose, size: str) -> None:
    cfg = composed(
        f"experiment=detection/coco_cascade_{size}",
        "+backbone.model.deploy=true",
        "modality.embedder.size=64",
    )
    with torch.device("meta"):
        network = build_network(cfg, DATA_INFO, pretrained=False)
    count = sum(p.numel() for part in (network.backbone, network.head) for p in part.parameters())
    assert count / 1e6 == pytest.approx(MILLIONS[size], rel=1e-3)
    assert network.head.has_masks


def official_layer(name: str) -> int:
    """`get_num_layer_layer_wise` of the release with num_layers 12, at every size."""
    if found := re.match(r"backbone\.downsample_layers\.(\d)", name):
        return {0: 0, 1: 2, 2: 3, 3: 12}[int(found[1])]
    if found := re.match(r"backbone\.stages\.(\d)\.(\d+)", name):
        stage, block = int(found[1]), int(found[2])
        return {0: 1, 1: 2, 2: 3 + block // 3, 3: 12}[stage]
    return 13


@pytest.mark.parametrize(("size", "decay"), [("t", 0.8), ("s", 0.8), ("l", 0.7)])
def test_layers_learn_as_in_the_official_script(composed: Compose, size: str, decay: float) -> None:
    cfg = composed(f"experiment=detection/coco_cascade_{size}", "modality.embedder.size=64")
    with torch.device("meta"):
        network = build_network(cfg, DATA_INFO, pretrained=False)
        optimizer = instantiate(cfg.optimizer)(network)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == pytest.approx(1e-4 * decay ** (13 - official_layer(name))), name


def test_rates_are_the_official_schedule(composed: Compose) -> None:
    """mmcv's: the rate of the step policy, in the first 500 steps times a line from 0.001."""
    cfg = composed("experiment=detection/coco_cascade_s")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = instantiate(cfg.scheduler)(optimizer, total_steps=36 * 7330, steps_per_epoch=7330)
    (factor,) = schedule.lr_lambdas
    for step in (0, 1, 250, 499, 500, 27 * 7330 - 1, 27 * 7330, 33 * 7330 - 1, 33 * 7330, 36 * 7330 - 1):
        epoch = step // 7330
        regular = 1.0 if epoch < 27 else 0.1 if epoch < 33 else 0.01
        if step < 500:
            k = (1 - step / 500) * (1 - 0.001)
            regular *= 1 - k
        assert factor(step) == pytest.approx(regular, rel=1e-12)


@pytest.mark.parametrize("epochs", [[33, 27], [0, 5], [5, 5]])
def test_epochs_of_lower_rates_rise(epochs: list[int]) -> None:
    from tasks.schedules import milestones

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    with pytest.raises(ValueError, match="rising numbers of at least 1"):
        milestones(optimizer, total_steps=10, steps_per_epoch=1, epochs=epochs)


@pytest.mark.parametrize("size", SIZES)
def test_networks_from_22k_weights_are_averaged(composed: Compose, size: str) -> None:
    cfg = composed(f"experiment=detection/coco_cascade_{size}", "paths.run=run")
    averages: list[Any] = [instantiate(node) for name, node in cfg.callbacks.items() if name == "ema"]
    assert [(type(each), each.decay, each.warmup) for each in averages] == (
        [(ExponentialAverage, 0.9999, False)] if size in ("b", "l", "xl") else []
    )
