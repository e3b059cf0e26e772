"""What the recipes of segmentation do, beyond what their files say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from workbench.build import build_network

Compose = Callable[..., DictConfig]
SIZES = ("t", "s", "b", "l", "xl")
MILLIONS = {"t": 60.98, "s": 86.38, "b": 130.3, "l": 253.9, "xl": 425.1}
LAYERS = {"t": 11, "s": 14, "b": 14, "l": 14, "xl": 14}


@pytest.mark.parametrize("size", SIZES)
def test_a_step_sees_16_pictures(composed: Compose, size: str) -> None:
    name = f"experiment=segmentation/ade20k_upernet_{size}"
    one = composed(name)
    assert one.task.data.batch_size * one.trainer.accumulate_grad_batches == 16
    eight = composed(name, "trainer=ddp", "trainer.devices=8", "task.data.batch_size=2")
    assert eight.trainer.devices * eight.task.data.batch_size * eight.trainer.accumulate_grad_batches == 16
    assert eight.trainer.sync_batchnorm is True
    assert eight.trainer.max_steps == 160_000


@pytest.mark.parametrize("size", SIZES)
def test_the_network_is_the_published_one(composed: Compose, size: str) -> None:
    """Built as the experiment says; the deploy form without the auxiliary head has the published size."""
    cfg = composed(f"experiment=segmentation/ade20k_upernet_{size}", "+backbone.model.deploy=true")
    data_info = {"class_names": [str(index) for index in range(150)], "palette": [[0, 0, 0]] * 150}
    with torch.device("meta"):
        network = build_network(cfg, data_info, pretrained=False)
    head: Any = network.head
    parts: tuple[nn.Module, ...] = (network.backbone, head.decode_head)
    count = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert count / 1e6 == pytest.approx(MILLIONS[size], rel=1e-3)
    assert max(network.parameter_layers().values()) + 1 == LAYERS[size]


def test_rates_are_the_official_schedule(composed: Compose) -> None:
    """mmcv's: the rate of the poly policy, in the first 1,500 steps times a line from 1e-6."""
    cfg = composed("experiment=segmentation/ade20k_upernet_s")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = instantiate(cfg.scheduler)(optimizer, total_steps=160_000, steps_per_epoch=1250)
    (factor,) = schedule.lr_lambdas
    for step in (0, 1, 750, 1499, 1500, 80_000, 159_999):
        regular = (1 - step / 160_000) ** 1.0
        if step < 1500:
            k = (1 - step / 1500) * (1 - 1e-6)
            regular *= 1 - k
        assert factor(step) == pytest.approx(regular, rel=1e-12)
    assert factor(160_000) == 0


def test_the_trainer_stops_after_its_steps(composed: Compose) -> None:
    cfg = composed("experiment=segmentation/ade20k_upernet_t", "trainer=cpu")
    trainer: Any = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    assert trainer.max_steps == 160_000
    assert trainer.max_epochs * 1250 > 160_000
    assert not trainer.gradient_clip_val
