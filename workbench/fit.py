"""action=fit: train, then test the best checkpoint; goes on where a killed run stopped."""

import logging
import time
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from tasks.datasets.base import DataModule
from tasks.datasets.joint import JointData
from tasks.task import Training
from workbench.build import build_all_data, build_trainer, build_training, command
from workbench.compiled import compiled
from workbench.console import console, print_table, short
from workbench.errors import UsageError
from workbench.info import map_shape, size
from workbench.members import resolved
from workbench.results import write_config, write_result
from workbench.transfer import freeze, start_from

log = logging.getLogger("widefield")


def fit(cfg: DictConfig) -> float | None:
    """Train and test; returns the best value of the monitored metric."""
    started = time.monotonic()
    resume = _resume_from(cfg)
    data = build_all_data(cfg)
    seed_everything(cfg.seed, verbose=False)
    task = build_training(cfg, data.facts(), pretrained=resume is None)
    trainer = build_trainer(cfg)
    if trainer.is_global_zero:
        write_config(cfg)
    if cfg.init_from and resume is None:
        start_from(cfg, task)
    freeze(cfg, task)
    shapes = []
    for name, part in task.by_task().items():
        embedder: Any = part.network.embedder
        if embedder.needs_statistics and resume is None:
            embedder.fit_statistics(data.by_task()[name].training_raws())
        shapes.append(f"{name} {map_shape(embedder)}".strip())
        if cfg.compile:  # what training, validation and test all run
            forward = compiled(part.network.forward_maps, cfg.compile, cfg.trainer.accumulate_grad_batches)
            part.network.forward_maps = forward  # type: ignore[method-assign]
    parameters = size(task.trained_module())
    log.info("model: %s, %s parameters, maps %s", cfg.backbone.name, parameters, ", ".join(shapes))
    if resume:
        log.info("resume: going on from %s", resume)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    metrics = metrics_of(trainer, "val")
    checkpoint: Any = trainer.checkpoint_callback
    best_path = short(Path(checkpoint.best_model_path)) if checkpoint and checkpoint.best_model_path else None
    best = float(checkpoint.best_model_score) if best_path else None
    if cfg.action.test_after:
        trainer.test(task, datamodule=data, ckpt_path=str(best_path) if best_path else None, verbose=False)
        metrics |= metrics_of(trainer, "test")
    if trainer.is_global_zero:
        finish(cfg, data, task, trainer, metrics, best, best_path, time.monotonic() - started)
    return best


def metrics_of(trainer: Trainer, split: str) -> dict[str, float]:
    """What the trainer last measured on a split, by full name (`val/acc`)."""
    found = trainer.callback_metrics.items()
    return {name: float(value) for name, value in found if name.startswith(f"{split}/")}


def finish(
    cfg: DictConfig,
    data: DataModule | JointData,
    task: Training,
    trainer: Trainer,
    metrics: dict[str, float],
    best: float | None,
    checkpoint: Path | None,
    wall_s: float,
) -> None:
    """Write the result and show it: numbers, where things lie, what to type next."""
    result = write_result(
        cfg,
        source=data.source,
        data_dir=data.place,
        params=sum(parameter.numel() for parameter in task.trained_module().parameters()),
        epochs=trainer.current_epoch,
        metrics=metrics,
        best=best,
        wall_s=wall_s,
        device=trainer.strategy.root_device,
        checkpoint=checkpoint,
    )
    rows = [(name, f"{value:.4f}" if value is not None else "–") for name, value in result["metrics"].items()]
    print_table(f"{cfg.task.name} with {cfg.backbone.name} ({data.source} data)", rows, ("metric", "value"))
    folder = Path(cfg.paths.run)
    console.print(f"took {wall_s:.0f} s; everything lies in {folder}", highlight=False, soft_wrap=True)
    for name, what in (("result.json", "numbers"), ("figures", "pictures"), ("checkpoints", "weights")):
        if (folder / name).exists():
            console.print(f"  {what:9} {folder / name}", highlight=False, soft_wrap=True)
    if checkpoint:
        console.print("next:", highlight=False)
        for line in next_commands(cfg, data, checkpoint):
            console.print(f"  {line}", highlight=False, soft_wrap=True)


def next_commands(cfg: DictConfig, data: DataModule | JointData, checkpoint: Path) -> list[str]:
    """What to type next, of a joint run for each of its tasks."""
    lines = []
    for name, part in data.by_task().items():
        which = {"task": cfg.task.members[name].task.name} if name else {}
        if file := part.example_file():
            lines.append(command(action="predict", ckpt=checkpoint, **which, input=file))
    lines.append(command(action="export", ckpt=checkpoint, **which))
    return lines


def _resume_from(cfg: DictConfig) -> str | None:
    """The checkpoint to go on from; checks that the run was made by the same command."""
    if not cfg.resume:
        return None
    folder = Path(cfg.paths.run)
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        if cfg.resume == "auto":
            log.info("resume: no unfinished run of this kind; starting a new one in %s", folder)
            return None
        raise UsageError(f"resume={cfg.resume}: there is no checkpoint {last} to go on from")
    before, now = OmegaConf.load(folder / "config.yaml"), resolved(cfg)
    assert isinstance(before, DictConfig)
    changed = [key for key in _settings(now) if OmegaConf.select(before, key) != OmegaConf.select(now, key)]
    if changed:
        words = "; ".join(
            f"{key} was {OmegaConf.select(before, key)}, now {OmegaConf.select(now, key)}"
            for key in changed[:3]
        )
        raise UsageError(f"resume={cfg.resume}: the command differs from the one that made this run: {words}")
    return str(last)


def _settings(cfg: DictConfig) -> list[str]:
    """Leaves of the configuration that decide what is learnt."""
    groups = ("modality", "task", "backbone", "optimizer", "scheduler")
    free = ("data.num_workers", "data.samples_dir", "data.data_dir", "data.download")
    elsewhere = ("data.shards.cache_", "data.shards.storage")
    leaves = [leaf for group in groups for leaf in _leaves(cfg[group], group)]
    leaves += ["seed", "init_from", "freeze"]
    leaves += ["trainer.max_epochs", "trainer.precision", "trainer.accumulate_grad_batches"]
    return [
        leaf for leaf in leaves if not leaf.endswith(free) and not any(part in leaf for part in elsewhere)
    ]


def _leaves(node: Any, path: str) -> list[str]:
    if isinstance(node, DictConfig):
        return [leaf for key in map(str, node) for leaf in _leaves(node[key], f"{path}.{key}")]
    return [path]
