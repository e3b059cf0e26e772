"""action=test: measure a checkpoint, or official weights as they are, on the test part."""

import time
from pathlib import Path

from omegaconf import DictConfig

from tasks.datasets.base import DataModule
from tasks.task import Task
from workbench.build import build_data, build_task, build_trainer, restore, take_pretrained
from workbench.errors import UsageError
from workbench.fit import finish, metrics_of
from workbench.results import write_config


def test(cfg: DictConfig) -> float | None:
    """Test `cfg.ckpt`, or without it `cfg.backbone.pretrained`; returns the test value of what is monitored."""
    started = time.monotonic()
    as_published = cfg.ckpt is None and cfg.backbone.pretrained is not None
    own, data, task, checkpoint = _published(cfg) if as_published else trained(cfg)
    own.logger = {}
    trainer = build_trainer(own)
    write_config(own)
    trainer.test(task, datamodule=data, verbose=False)
    metrics = metrics_of(trainer, "test")
    value = metrics.get(own.task.monitor.replace("val/", "test/"))
    finish(own, data, task, trainer, metrics, value, checkpoint, time.monotonic() - started)
    return value


def trained(cfg: DictConfig) -> tuple[DictConfig, DataModule, Task, Path]:
    restored = restore(cfg)
    data = build_data(restored.cfg)
    facts, known = data.facts(), restored.task.facts
    if facts != known:
        raise UsageError(
            f"{cfg.ckpt} was trained on other data than this: "
            f"{', '.join(key for key in facts if facts[key] != known.get(key))} differ"
        )
    return restored.cfg, data, restored.task, restored.checkpoint


def _published(cfg: DictConfig) -> tuple[DictConfig, DataModule, Task, None]:
    data = build_data(cfg)
    task = build_task(cfg, data.facts(), pretrained=False)
    if not take_pretrained(cfg, task.network):
        raise UsageError(
            f"backbone.pretrained={cfg.backbone.pretrained} holds no classifier of as many classes as "
            f"{cfg.task.name} has here: train first, then test with ckpt=PATH"
        )
    return cfg, data, task, None
