"""action=fit: trains, then tests the best checkpoint; resumes an interrupted run."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from tasks.datasets.base import DataModule
from tasks.datasets.joint import JointData
from tasks.task import Task, Training
from workbench.build import build_all_data, build_training
from workbench.callbacks.best import BestCheckpoint
from workbench.callbacks.compile_what_pays import CompileWhatPays
from workbench.callbacks.keep_config import KeepConfig
from workbench.callbacks.replan import Replan
from workbench.compiled import AUTO, compile_parts
from workbench.console import console, print_table, short
from workbench.cost import StepTimes, cost_of
from workbench.errors import UsageError
from workbench.going_on import going_on_said
from workbench.info import map_shape, number_of_parameters
from workbench.instantiation import check_settings
from workbench.members import resolved
from workbench.provenance import FIELD, known, note
from workbench.quoting import command
from workbench.results import write_config, write_result
from workbench.resume import resume_from, same_data
from workbench.sharding import is_sharded
from workbench.trainer import build_trainer
from workbench.transfer import freeze, start_from

log = logging.getLogger("widefield")

PHASES = 25  # maximum number of profiler phases shown, the longest


def fit(cfg: DictConfig) -> float | None:
    """Train, then test the best checkpoint; returns the best value of the monitored metric.

    Validation and test metrics of a result belong to the same weights, those of the checkpoint it names.
    """
    with going_on_said(Path(cfg.paths.run)):
        return _fit(cfg)


def _fit(cfg: DictConfig) -> float | None:
    started = time.monotonic()
    resume = resume_from(cfg)
    check_settings(cfg)
    data = build_all_data(cfg)
    if resume:
        same_data(cfg, data, resume)
    seed_everything(cfg.seed, verbose=False)
    task = build_training(cfg, data.info(), pretrained=resume is None)
    task.trained_on = data.record()
    trainer = build_trainer(cfg)
    if resume:
        trainer.callbacks.append(KeepConfig(cfg))  # type: ignore[attr-defined]
    elif trainer.is_global_zero:
        write_config(cfg)
    log_configuration(cfg, trainer)
    if cfg.init_from and resume is None:
        start_from(cfg, task)
    freeze(cfg, task)
    task.drawn = known()
    shapes = []
    for name, part in task.by_task().items():
        embedder: Any = part.network.embedder
        source = data.by_task()[name]
        if embedder.needs_statistics and resume is None:
            embedder.fit_statistics(source.training_raws())
        balance(part, source)
        part.augment.transforms = source.device_transforms()
        shapes.append(f"{name} {map_shape(embedder)}".strip())
    if cfg.compile == AUTO:
        trainer.callbacks.append(CompileWhatPays())  # type: ignore[attr-defined]
    else:
        compile_parts(task, cfg.compile, cfg.trainer.accumulate_grad_batches)
    params = number_of_parameters(task.trained_module())
    shown = f"{params / 1e6:.2f} M"
    log.info("model: %s, %s parameters, maps %s", cfg.backbone.name, shown, ", ".join(shapes))
    if resume:
        log.info(
            "resume: going on from %s, %d of %d epochs done",
            resume.path,
            resume.epochs,
            cfg.trainer.max_epochs,
        )
        if resume.planned != cfg.trainer.max_epochs:
            trainer.callbacks.append(Replan(resume.planned))  # type: ignore[attr-defined]
    times = StepTimes()
    trainer.callbacks.append(times)  # type: ignore[attr-defined]
    with refused_interval(cfg):
        trainer.fit(task, datamodule=data, ckpt_path=resume.path if resume else None)
    chosen = chosen_checkpoint(cfg, trainer, task)
    metrics = dict(chosen.metrics)
    if cfg.action.test_after:
        # Without a best checkpoint the final weights are tested.
        path = str(chosen.path) if chosen.epoch is not None else None
        if is_sharded(trainer.strategy):  # the trained network is sharded; test a whole one
            path = str(chosen.path)
            task = build_training(cfg, data.info(), pretrained=False)
            task.drawn = known()
        trainer.test(task, datamodule=data, ckpt_path=path, verbose=False)
        metrics |= metrics_of(trainer, "test")
    if trainer.is_global_zero:
        finish(cfg, data, task, trainer, metrics, chosen, params, time.monotonic() - started, times.median)
    return chosen.score


@contextmanager
def refused_interval(cfg: DictConfig) -> Iterator[None]:
    """Convert the trainer's `ValueError` for a validation interval longer than an epoch to a `UsageError`."""
    try:
        yield
    except ValueError as error:
        if "`val_check_interval`" not in str(error):
            raise
        raise UsageError(
            f"trainer.val_check_interval={cfg.trainer.val_check_interval} is more than the training batches of an "
            "epoch: with trainer.check_val_every_n_epoch=null it counts across epochs"
        ) from error


@dataclass
class Chosen:
    """The checkpoint whose metrics a result reports.

    Args:
        path: its file; None if none was written.
        metrics: validation metrics of its weights.
        score: value of the monitored metric.
        epoch: of the best checkpoint; None if it is the last one instead.
    """

    path: Path | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    epoch: int | None = None


def chosen_checkpoint(cfg: DictConfig, trainer: Trainer, task: Training) -> Chosen:
    """The best checkpoint; if none is kept (`callbacks.best=null`, no validation), the last one.

    The last one has validation metrics only if its weights were validated, which not every epoch may be.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    best = next((callback for callback in callbacks if isinstance(callback, BestCheckpoint)), None)
    if best is not None and best.epoch is not None:
        return Chosen(short(best.path), best.metrics, best.score, best.epoch)
    last = Path(cfg.paths.run) / "checkpoints" / "last.ckpt"
    current = task.validated_step in (None, trainer.global_step)
    metrics = dict(task.validated) if current else {}
    if not metrics:
        log.warning(
            "validation: the last weights were not validated (trainer.check_val_every_n_epoch, limit_val_batches), so "
            "that the result, which is theirs, has no %s%s",
            cfg.task.monitor,
            "" if best is None else " and they were not chosen by it",
        )
    return Chosen(short(last) if last.is_file() else None, metrics, metrics.get(cfg.task.monitor))


def balance(task: Task, data: DataModule) -> None:
    """Compute class weights on the training split if the loss needs them (`task.loss.weight=balanced`)."""
    loss: Any = getattr(task, "loss", None)
    if not getattr(loss, "needs_balance", False):
        return
    counted = data.class_counts()
    if counted is None:
        return
    positives_K, total = counted
    loss.fit_balance(torch.from_numpy(positives_K), total)
    rare, common = int(positives_K.argmin()), int(positives_K.argmax())
    names = data.info()["class_names"]
    log.info(
        "loss: class weights are balanced; of what is trained on, %s is %.3g %% and %s %.3g %%",
        *(names[rare], 100 * positives_K[rare] / total, names[common], 100 * positives_K[common] / total),
    )


def log_configuration(cfg: DictConfig, trainer: Trainer) -> None:
    """Log the whole resolved configuration to every logger (TensorBoard, W&B, MLflow)."""
    configuration: Any = OmegaConf.to_container(resolved(cfg))
    if said := note():
        configuration |= {FIELD: said}
    for logger in trainer.loggers:
        logger.log_hyperparams(configuration)


def metrics_of(trainer: Trainer, split: str) -> dict[str, float]:
    """The trainer's latest metrics of a split, by full name (`val/acc`)."""
    found = trainer.callback_metrics.items()
    return {name: float(value) for name, value in found if name.startswith(f"{split}/")}


def finish(
    cfg: DictConfig,
    data: DataModule | JointData,
    task: Training,
    trainer: Trainer,
    metrics: dict[str, float],
    chosen: Chosen,
    params: int,
    wall_s: float,
    step_s: float | None = None,
) -> None:
    """Write the result; print metrics, output files and the next commands."""
    # A joint run has no single kind of sample; a sharded network is not whole in any process.
    cost = None
    if isinstance(task, Task) and not is_sharded(trainer.strategy):
        cost = cost_of(task.network, trainer, step_s)
    result = write_result(
        cfg,
        source=data.source,
        data_dir=data.place,
        params=params,
        epochs=trainer.current_epoch,
        metrics=metrics,
        best=chosen.score,
        best_epoch=chosen.epoch,
        wall_s=wall_s,
        device=trainer.strategy.root_device,
        checkpoint=chosen.path,
        cost=cost,
    )
    rows = [(name, f"{value:.4f}" if value is not None else "–") for name, value in result["metrics"].items()]
    print_table(f"{cfg.task.name} with {cfg.backbone.name} ({data.source} data)", rows, ("metric", "value"))
    folder = Path(cfg.paths.run)
    console.print(f"took {wall_s:.0f} s; everything lies in {folder}", highlight=False, soft_wrap=True)
    written = [(file.name, "answers") for file in sorted(folder.glob("predictions*.csv"))]
    for name, what in (
        ("result.json", "numbers"),
        *written,
        ("figures", "pictures"),
        ("checkpoints", "weights"),
    ):
        if (folder / name).exists():
            console.print(f"  {what:9} {folder / name}", highlight=False, soft_wrap=True)
    show_profile(trainer)
    if chosen.path:
        console.print("next:", highlight=False)
        for line in next_commands(cfg, data, chosen.path):
            console.print(f"  {line}", highlight=False, soft_wrap=True)


def show_profile(trainer: Trainer) -> None:
    """Print the time of each phase if `trainer.profiler` is set."""
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]
    durations: dict[str, list[float]] | None = getattr(profiler, "recorded_durations", None)
    if durations is None:
        if text := profiler.summary():  # other profilers have a summary of their own
            console.print(text, highlight=False, soft_wrap=True)
        return
    spent = sorted(
        ((name, sum(times), len(times)) for name, times in durations.items()), key=lambda row: -row[1]
    )
    rows = [
        (
            _phase(name),
            f"{count:,}",
            f"{1e3 * total / count:.1f}",
            f"{total:.2f}",
        )
        for name, total, count in spent[:PHASES]
        if count
    ]
    print_table(
        "Where the time went (a phase contains those it calls)",
        rows,
        ("phase", "calls", "ms each", "s in all"),
    )


def _phase(name: str) -> str:
    """Name of a phase without the kind of its owner and without a callback's settings.

    >>> _phase("[Callback]ModelCheckpoint{'mode': 'min'}.on_train_end")
    'ModelCheckpoint.on_train_end'
    """
    return re.sub(r"\{.*\}", "", re.sub(r"^\[\w+\]", "", name))


def next_commands(cfg: DictConfig, data: DataModule | JointData, checkpoint: Path) -> list[str]:
    """Commands to run next; in a joint run one prediction for each task."""
    lines = []
    for name, part in data.by_task().items():
        which = {"task": cfg.task.members[name].task.name} if name else {}
        if file := part.example_file():
            lines.append(command(action="predict", ckpt=checkpoint, **which, input=file))
    lines.append(command(action="export", ckpt=checkpoint, **which))
    return lines
