"""action=test: measure a checkpoint on the test part."""

import time

from omegaconf import DictConfig

from workbench.build import build_data, build_trainer, restore
from workbench.errors import UsageError
from workbench.fit import finish
from workbench.results import write_config


def test(cfg: DictConfig) -> float | None:
    """Test `cfg.ckpt`; returns the test value of the monitored metric."""
    started = time.monotonic()
    restored = restore(cfg)
    own, task = restored.cfg, restored.task
    data = build_data(own)
    facts = data.facts()
    if facts != task.facts:
        raise UsageError(
            f"{cfg.ckpt} was trained on other data than this: "
            f"{', '.join(key for key in facts if facts[key] != task.facts.get(key))} differ"
        )
    own.logger = {}
    trainer = build_trainer(own)
    write_config(own)
    trainer.test(task, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    value = metrics.get(own.task.monitor.replace("val/", "test/"))
    finish(own, data, task, trainer, metrics, value, restored.checkpoint, time.monotonic() - started)
    return value
