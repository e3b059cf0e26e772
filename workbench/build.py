"""From configuration nodes to objects, and from a checkpoint back to the model that made it."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class, instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from backbone import Backbone, CheckpointError
from backbone.cross_process_norm import across_processes, within_process
from backbone.sharing import share
from modalities.embedder import Embedder
from tasks.datasets.base import DataModule
from tasks.datasets.joint import JointData
from tasks.datasets.shards.data import ReadsShards
from tasks.joint import JointTask, make_weighting
from tasks.network import Network, example_maps
from tasks.secrets import hide
from tasks.task import Augment, Task, Training
from workbench.checkpoint_files import AtomicCheckpoints, find_checkpoint, read_checkpoint
from workbench.composition import GROUPS as MODEL_GROUPS
from workbench.composition import MODE, built_from, is_plain_reference
from workbench.conf_folders import conf_folders
from workbench.errors import UsageError
from workbench.extras import need
from workbench.loggers import telling
from workbench.members import (
    REPLACED,
    asked_member,
    check_members,
    is_joint,
    member_cfgs,
    members_of,
    one_member,
)
from workbench.monitor import settle
from workbench.pretrained import weights_file
from workbench.provenance import data_read
from workbench.registered import register_plugins
from workbench.resolvers import register_resolvers
from workbench.secret_words import words_of
from workbench.shard_settings import check_settings
from workbench.sharding import SyncBatchNorms, fsdp
from workbench.stopping import STARTED_BY, STARTED_FOR_A_RUN, STOP, TOLD

log = logging.getLogger("widefield")

# Whoever builds from a configuration, a notebook say, can also read it.
register_resolvers()
register_plugins()

AnyData = TypeVar("AnyData", DataModule, JointData)
SomeTask = TypeVar("SomeTask", Task, JointTask)
AnyTask = TypeVar("AnyTask", bound=Training)


def tasks_of(modality: str) -> list[str]:
    """Names of the tasks that read a modality."""
    names = set()
    for file in sorted(file for folder in conf_folders() for file in (folder / "task").glob("*.yaml")):
        node = OmegaConf.load(file)
        if file.stem[0] != "_" and isinstance(node, DictConfig) and node.get("modality") == modality:
            names.add(str(node.get("name")))
    return sorted(names)


def check_composition(cfg: DictConfig) -> None:
    """Raise a `UsageError` where the parts cannot go together."""
    if OmegaConf.is_missing(cfg.backbone, "name"):
        raise UsageError("which of timm's networks? Say backbone.name=NAME, e.g. backbone.name=convnext_atto")
    if is_joint(cfg):
        check_members(cfg)
    # With a checkpoint `task=` only says which one is meant: the modality is the checkpoint's.
    if cfg.ckpt is None and cfg.task.modality != cfg.modality.name:
        raise UsageError(
            f"task {cfg.task.name} reads {cfg.task.modality}, not {cfg.modality.name}: "
            f"say modality={cfg.task.modality}, or take one of {cfg.modality.name}'s tasks "
            f"({', '.join(tasks_of(cfg.modality.name))})"
        )
    if not isinstance(cfg.trainer.max_epochs, int) or cfg.trainer.max_epochs < 1:
        raise UsageError(
            f"trainer.max_epochs must be a whole number of at least 1, not {cfg.trainer.max_epochs}"
        )
    for extra in ("wandb", "mlflow"):
        if extra in (cfg.get("logger") or {}):
            need(extra, f"logger={extra}")


def build_data(cfg: DictConfig) -> DataModule:
    """The data module, ready to read; its first line says what data it is."""
    refuse_joint(cfg)
    data: DataModule = instantiate(cfg.task.data)
    return ready(data, {"": cfg})


def build_all_data(cfg: DictConfig) -> DataModule | JointData:
    """The data module of one task, or that of all tasks of a joint run."""
    if not is_joint(cfg):
        return build_data(cfg)
    own = member_cfgs(cfg)
    members = {name: instantiate(member.task.data) for name, member in own.items()}
    options = {key: value for key, value in cfg.task.data.items() if key not in REPLACED}
    return ready(JointData(members, seed=cfg.seed, **options), own)


def ready(data: AnyData, cfgs: dict[str, DictConfig]) -> AnyData:
    """Read what the data hold, unless they have already, and say what they are."""
    data.prepare_data()
    data.setup()
    for name, part in data.by_task().items():
        if isinstance(part, ReadsShards):
            check_settings(cfgs[name], part, member=name)
    data_read(data.drawn)
    log.info("data: %s", data.describe())
    for name, part in data.by_task().items():
        for note in part.notes:
            log.info("data: %s%s", f"{name}: " if name else "", note)
    return data


def refuse_joint(cfg: DictConfig) -> None:
    """Raise a `UsageError` for a joint composition, where an action is about one task."""
    if is_joint(cfg):
        raise UsageError(
            f"action={cfg.action.name} is about one task, {cfg.task.name} trains several: "
            "leave experiment= out and say task=NAME"
        )


@contextmanager
def refused_settings() -> Iterator[None]:
    """Settings that a part refuses are the user's to change, also where the part is called by hand."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def build_network(cfg: DictConfig, data_info: dict[str, Any], pretrained: bool = True) -> Network:
    """Embedder, backbone and head; each takes its sizes from the one before."""
    embedder_class = cast(type[Embedder], get_class(cfg.modality.embedder._target_))
    task_class = cast(type[Task], get_class(cfg.task.model._target_))
    # Sizes are handed over by hand: through `instantiate` long lists would become configuration nodes.
    with refused_settings():
        embedder = instantiate(cfg.modality.embedder, _partial_=True)(
            **embedder_class.data_arguments(data_info)
        )
        backbone: Backbone = instantiate(cfg.backbone.model, in_chans=embedder.out_chans)
        if task_class.wants_pyramid(embedder):
            backbone.make_pyramid()
        with torch.random.fork_rng(devices=[]):
            height, width = example_maps(embedder).shape[-2:]
        if change := backbone.fit_input(height, width):
            log.info("backbone: maps of %d×%d pixels %s", height, width, change)
        head = instantiate(cfg.task.head, _partial_=True)(
            **task_class.head_sizes(data_info, embedder, backbone)
        )
    network = Network(embedder, backbone, head)
    if pretrained and cfg.backbone.pretrained:
        take_pretrained(cfg, network)
    return network


def take_pretrained(cfg: DictConfig, network: Network) -> bool:
    """Load `backbone.pretrained`; returns whether it held a classifier that fits and is now the head's."""
    report = network.backbone.load_pretrained(weights_file(cfg))
    head: Any = network.head
    answers = bool(head.load_official(report.left_out)) if hasattr(head, "load_official") else False
    log.info("pretrained: %s", report)
    return answers


def build_task(cfg: DictConfig, data_info: dict[str, Any], pretrained: bool = True) -> Task:
    """The whole task, ready to train."""
    refuse_joint(cfg)
    task_class = cast(type[Task], get_class(cfg.task.model._target_))
    settle(cfg, [f"val/{name}" for name in task_class.metric_names(data_info)])
    augment = cfg.modality.augment
    # Called by hand: objects passed through `instantiate` would be copied.
    make_task: Callable[..., Task] = instantiate(cfg.task.model, _partial_=True)
    network = build_network(cfg, data_info, pretrained)
    with refused_settings():
        return make_task(
            network=network,
            data_info=data_info,
            optimizer=instantiate(cfg.optimizer),
            scheduler=instantiate(cfg.scheduler),
            augment=Augment(**{place: instantiate(node) for place, node in augment.items()}),
            composition=plain_config(cfg),
        )


def build_training(cfg: DictConfig, data_info: dict[str, Any], pretrained: bool = True) -> Task | JointTask:
    """The task of a run, or all tasks of a joint run around one backbone."""
    if not is_joint(cfg):
        return build_task(cfg, data_info, pretrained)
    own = member_cfgs(cfg)
    members = {name: build_task(member, data_info[name], pretrained) for name, member in own.items()}
    backbones = [member.network.backbone for member in members.values()]
    with refused_settings():
        share(
            backbones,
            batch_norm=cfg.task.batch_norm == "shared",
            stem_chans=cfg.task.stem_chans if cfg.task.stem == "shared" else 0,
        )
        weights = {name: float(cfg.task.members[name].weight) for name in members}
        weighting = make_weighting(cfg.task.weighting, weights)
    measured = ["val/score", "val/loss"]
    for name, member in members.items():
        measured += [f"val/{name}/{metric}" for metric in member.metric_names(data_info[name])]
    settle(cfg, measured)
    return JointTask(
        members,
        {name: (member.task.monitor.removeprefix("val/"), member.task.mode) for name, member in own.items()},
        weighting,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        composition=plain_config(cfg),
    )


def build_trainer(cfg: DictConfig) -> Trainer:
    """The trainer with its callbacks and loggers."""
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
    trainer = make_trainer(
        **_limits(cfg),
        **({"strategy": fsdp()} if cfg.trainer.strategy == "fsdp" else {}),
        callbacks=callbacks,
        # Of itself the trainer would keep checkpoints of its own where ours are switched off.
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        logger=loggers or False,
        plugins=plugins,
        sync_batchnorm=False,  # by the plugins
        default_root_dir=cfg.paths.run,
    )
    refuse_folders(trainer.strategy)
    heed_signals_together(trainer)
    return trainer


def refuse_folders(strategy: Strategy) -> None:
    """Raise a `UsageError` for a strategy whose checkpoints are folders, which each process fills by itself.

    They would be neither whole nor not there, and reading one runs what its pickles say.
    """
    sharded = getattr(strategy, "_state_dict_type", "full") != "full"
    if sharded or isinstance(strategy, ModelParallelStrategy | DeepSpeedStrategy):
        raise UsageError(
            f"trainer.strategy: the checkpoints of this {type(strategy).__name__} are folders of shards, and a "
            "checkpoint here is one file: take trainer=fsdp, which puts the shards together to save them"
        )


def heed_signals_together(trainer: Trainer) -> None:
    """Leave signals to `workbench.stopping`, in all processes that the trainer starts; one tells the others.

    The trainer's own handler ends a run wherever it is and saves nothing, and of several processes it waits in a
    collective operation, from which none may come back.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    launcher: Any = trainer.strategy.launcher
    start = getattr(launcher, "_call_children_scripts", None)
    if start is not None:  # by subprocesses

        def start_followers() -> None:
            os.environ[STARTED_BY] = str(os.getpid())
            try:
                start()
            finally:  # other commands that this process starts belong to nobody
                del os.environ[STARTED_BY]

        launcher._call_children_scripts = start_followers

    def tell() -> None:
        for process in getattr(launcher, "procs", ()):
            process.send_signal(TOLD)
        if STARTED_FOR_A_RUN:
            os.kill(os.getppid(), TOLD)

    STOP.tell = tell


def _limits(cfg: DictConfig) -> dict[str, int]:
    """Of a joint run a number of batches to validate or test on means so many of every member, which take turns."""
    if not is_joint(cfg):
        return {}
    said = {key: cfg.trainer[key] for key in ("limit_val_batches", "limit_test_batches")}
    return {key: limit * len(cfg.task.members) for key, limit in said.items() if type(limit) is int}


class SyncOnCPU(LayerSync):
    """Batch norm across the processes of a distributed run on CPUs."""

    def apply(self, model: nn.Module) -> nn.Module:
        return across_processes(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return within_process(model)


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The model's part of the composition as plain containers.

    References to itself and to a command's paths are kept; what a resolver gives is written as a value, because none
    is asked when a checkpoint is read. Secrets are hidden.
    """
    stored: dict[str, Any] = {group: _storable(cfg[group], group) for group in MODEL_GROUPS}
    if is_joint(cfg):
        for name, own in member_cfgs(cfg).items():
            member = OmegaConf.to_container(cfg.task.members[name], resolve=False)
            assert isinstance(member, dict)
            groups = {group: _storable(own[group], group, member[group]) for group in ("modality", "task")}
            stored["task"]["members"][name] |= groups
    without: dict[str, Any] = hide(stored)
    return without


def _storable(node: Any, place: str, raw: Any = None) -> Any:
    """A node as plain containers; `raw`: what is to be stored, where the node only says what it resolves to."""
    if raw is None:
        raw = OmegaConf.to_container(node, resolve=False)
    if isinstance(raw, dict):
        if place == "task" and raw.get("monitor") is None:  # of a member: chosen by the task when it is built
            return {
                key: value if value == MODE else _item(node, key, place, value) for key, value in raw.items()
            }
        return {key: _item(node, key, place, value) for key, value in raw.items()}
    return [_item(node, index, place, value) for index, value in enumerate(raw)]


def _item(node: Any, key: Any, place: str, raw: Any) -> Any:
    if isinstance(raw, (dict, list)) and place != "task.members":
        return _storable(node[key], f"{place}.{key}", raw)
    if not isinstance(raw, str) or "${" not in raw or is_plain_reference(raw):
        return raw
    value = node[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


@dataclass
class Restored(Generic[AnyTask]):
    """A model read from a checkpoint, with the composition it was trained in.

    Args:
        cfg: the composition, with this command's paths and options.
        task: in evaluation mode.
        checkpoint: its file; `FILE@PART` where it is a part of a joint run.
        epoch: the one it was saved in.
        joint: name of the joint run that it is a part of.
        trained_on: the record of its data (`DataModule.record`); empty in checkpoints of earlier versions.
    """

    cfg: DictConfig
    task: AnyTask
    checkpoint: Path
    epoch: int
    joint: str | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)


def restore(cfg: DictConfig) -> Restored[Task]:
    """Rebuild the model of `cfg.ckpt`: its own modality, task and backbone, this command's paths and options.

    Of a joint run it is the member that this command says: by `task=`, `modality=`, or `ckpt=RUN@PART`.
    """
    path, content, part = _read_asked(cfg)
    joint = content["widefield"]["composition"]["task"]["name"]
    content, member = one_member(cfg, path, content, part)
    with built_from(path):
        own = _merge(cfg, content["widefield"]["composition"])
        task = build_task(own, content["widefield"]["facts"], pretrained=False)
    restored = Restored(own, _filled(task, content, path), path, int(content.get("epoch", 0)))
    restored.trained_on = content["widefield"].get("trained_on") or {}
    if member is not None:
        restored.checkpoint, restored.joint = Path(f"{path}@{member}"), joint
    return restored


def restore_all(cfg: DictConfig) -> Restored[Task] | Restored[JointTask]:
    """Like `restore`; a joint run as a whole, unless this command says which member."""
    path, content, part = _read_asked(cfg)
    if members_of(content) is None or asked_member(cfg, path, content, part) is not None:
        return restore(cfg)
    with built_from(path):
        own = _merge(cfg, content["widefield"]["composition"])
        task = build_training(own, content["widefield"]["facts"], pretrained=False)
    assert isinstance(task, JointTask)
    return Restored(own, _filled(task, content, path), path, int(content.get("epoch", 0)))


def _read_asked(cfg: DictConfig) -> tuple[Path, dict[str, Any], str | None]:
    if cfg.ckpt is None:
        raise UsageError(f"action={cfg.action.name} needs ckpt=PATH, a checkpoint of an earlier run")
    path, part = find_checkpoint(str(cfg.ckpt))
    return path, read_checkpoint(path, cfg), part


def _filled(task: SomeTask, content: dict[str, Any], path: Path) -> SomeTask:
    try:
        task.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own description: {error}") from error
    return task.eval()


def _merge(cfg: DictConfig, stored: dict[str, Any]) -> DictConfig:
    """This command's configuration with the checkpoint's modality, task and backbone in it."""
    own = cfg.copy()
    OmegaConf.set_struct(own, False)
    for group in MODEL_GROUPS:
        asked = HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None
        if (
            was_said(f"{group}=")
            and asked != stored[group]["name"]
            and cfg[group].name != stored[group]["name"]
        ):
            raise UsageError(
                f"{cfg.ckpt} is of {group} {stored[group]['name']}, not {cfg[group].name}: leave {group}= out"
            )
        own[group] = stored[group]
    for override in OverridesParser.create().parse_overrides(_overrides()):
        key = override.key_or_group
        if key.split(".")[0] in MODEL_GROUPS and "." in key and not override.is_delete():
            OmegaConf.update(own, key, override.value())
    if was_said("task.monitor=") and not was_said("task.mode="):
        own.task.mode = MODE
    OmegaConf.set_struct(own, True)
    return own


def _overrides() -> list[str]:
    return words_of(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def was_said(beginning: str) -> bool:
    """Whether this command has a word that begins so."""
    return any(override.startswith(beginning) for override in _overrides())
