"""Builds Lightning's trainer from the configuration."""

import os
from collections.abc import Callable
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from omegaconf import DictConfig
from torch import nn

from backbone.cross_process_norm import across_processes, within_process
from workbench.build import refused_settings
from workbench.checkpoint_files import AtomicCheckpoints
from workbench.errors import UsageError
from workbench.instantiation import instantiate
from workbench.loggers import telling
from workbench.members import is_joint
from workbench.sharding import SyncBatchNorms, fsdp
from workbench.stopping import STARTED_BY, STARTED_FOR_A_RUN, STOP, TOLD


def build_trainer(cfg: DictConfig) -> Trainer:
    """Build the trainer with its callbacks and loggers."""
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UsageError("this trainer needs a GPU and none was found: take trainer=cpu")
    if cfg.trainer.strategy == "fsdp" and not torch.cuda.is_available():
        raise UsageError("trainer=fsdp needs GPUs: take trainer=ddp with trainer.accelerator=cpu")
    callbacks = [instantiate(node) for node in (cfg.get("callbacks") or {}).values() if node]
    nodes = [node for node in (cfg.get("logger") or {}).values() if node]
    loggers = [telling(instantiate(node), cfg.paths.run) for node in nodes]
    make_trainer: Callable[..., Trainer] = instantiate(cfg.trainer, _partial_=True)
    plugins: list[Any] = [AtomicCheckpoints()]
    without_gpus = cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available()
    if cfg.trainer.sync_batchnorm:
        plugins.append(SyncOnCPU() if without_gpus else SyncBatchNorms())
    with refused_settings():
        trainer = make_trainer(
            **_limits(cfg),
            **({"strategy": fsdp()} if cfg.trainer.strategy == "fsdp" else {}),
            callbacks=callbacks,
            # By default the trainer adds a checkpoint callback of its own if ours is switched off.
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            logger=loggers or False,
            plugins=plugins,
            sync_batchnorm=False,  # done by the plugins
            default_root_dir=cfg.paths.run,
        )
    refuse_folders(trainer.strategy)
    heed_signals_together(trainer)
    return trainer


def refuse_folders(strategy: Strategy) -> None:
    """Raise a `UsageError` for a strategy whose checkpoints are folders, written by every process separately.

    They could not be written atomically, and reading one executes its pickles.
    """
    sharded = getattr(strategy, "_state_dict_type", "full") != "full"
    if sharded or isinstance(strategy, ModelParallelStrategy | DeepSpeedStrategy):
        raise UsageError(
            f"trainer.strategy: the checkpoints of this {type(strategy).__name__} are folders of shards, and a "
            "checkpoint here is one file: take trainer=fsdp, which puts the shards together to save them"
        )


def heed_signals_together(trainer: Trainer) -> None:
    """Let `workbench.stopping` handle signals, in all processes that the trainer starts; one notifies the others.

    The trainer's own handler stops a run at any point without saving, and with several processes it waits in a
    collective operation that may never return.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    launcher: Any = trainer.strategy.launcher
    start = getattr(launcher, "_call_children_scripts", None)
    if start is not None:  # it starts subprocesses

        def start_followers() -> None:
            os.environ[STARTED_BY] = str(os.getpid())
            try:
                start()
            finally:  # later subprocesses are not part of the run
                del os.environ[STARTED_BY]

        launcher._call_children_scripts = start_followers

    def tell() -> None:
        for process in getattr(launcher, "procs", ()):
            process.send_signal(TOLD)
        if STARTED_FOR_A_RUN:
            os.kill(os.getppid(), TOLD)

    STOP.tell = tell


def _limits(cfg: DictConfig) -> dict[str, int]:
    """In a joint run, a limit on validation or test batches counts for each member; the members take turns."""
    if not is_joint(cfg):
        return {}
    said = {key: cfg.trainer[key] for key in ("limit_val_batches", "limit_test_batches")}
    return {key: limit * len(cfg.task.members) for key, limit in said.items() if type(limit) is int}


class SyncOnCPU(LayerSync):
    """Synchronised batch norm across the processes of a distributed run on CPUs."""

    def apply(self, model: nn.Module) -> nn.Module:
        return across_processes(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return within_process(model)
