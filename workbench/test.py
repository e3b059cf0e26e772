"""action=test: evaluates a checkpoint, or published weights as they are, on the test split."""

import time
from pathlib import Path

from omegaconf import DictConfig

from tasks.datasets.base import DataModule
from tasks.datasets.joint import JointData
from tasks.joint import JointTask
from tasks.task import Task
from workbench.build import build_all_data, build_data, build_task, take_pretrained
from workbench.callbacks.predictions import Predictions
from workbench.errors import UsageError
from workbench.fit import Chosen, finish, metrics_of
from workbench.info import number_of_parameters
from workbench.other_data import data_to_test, same_facts
from workbench.restore import restore, restore_all
from workbench.results import write_config
from workbench.trainer import build_trainer


def test(cfg: DictConfig) -> float | None:
    """Test `cfg.ckpt`, or without it `cfg.backbone.pretrained`; returns the test value of the monitored metric."""
    started = time.monotonic()
    as_published = cfg.ckpt is None and cfg.backbone.pretrained is not None
    own, data, task, checkpoint = _published(cfg) if as_published else _trained(cfg)
    own.logger = {}
    trainer = build_trainer(own)
    if cfg.action.predictions:
        trainer.callbacks.append(Predictions(cfg.paths.run))  # type: ignore[attr-defined]
    write_config(own)
    params = number_of_parameters(task.trained_module())
    trainer.test(task, datamodule=data, verbose=False)
    metrics = metrics_of(trainer, "test")
    value = metrics.get(own.task.monitor.replace("val/", "test/"))
    chosen = Chosen(checkpoint, metrics, value)
    finish(own, data, task, trainer, metrics, chosen, params, time.monotonic() - started)
    return value


Found = tuple[DictConfig, DataModule | JointData, Task | JointTask, Path | None]


def trained(cfg: DictConfig) -> tuple[DictConfig, DataModule, Task, Path]:
    """The model of a checkpoint (of a joint one, the selected member) and its data."""
    restored = restore(cfg)
    data = build_data(restored.cfg)
    same_facts(restored, data.info())
    return restored.cfg, data, restored.task, restored.checkpoint


def _trained(cfg: DictConfig) -> Found:
    restored = restore_all(cfg)
    if not isinstance(restored.task, JointTask):
        return restored.cfg, data_to_test(cfg, restored), restored.task, restored.checkpoint
    data = build_all_data(restored.cfg)
    same_facts(restored, data.info())
    return restored.cfg, data, restored.task, restored.checkpoint


def _published(cfg: DictConfig) -> Found:
    data = build_data(cfg)
    task = build_task(cfg, data.info(), pretrained=False)
    if not take_pretrained(cfg, task.network):
        raise UsageError(
            f"backbone.pretrained={cfg.backbone.pretrained} holds no classifier of as many classes as "
            f"{cfg.task.name} has here: train first, then test with ckpt=PATH"
        )
    return cfg, data, task, None
