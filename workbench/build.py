"""Builds data, network and task from configuration nodes."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from hydra.utils import get_class
from omegaconf import DictConfig

from backbone import Backbone
from backbone.sharing import share
from modalities.embedder import Embedder
from tasks.datasets.base import DataModule
from tasks.datasets.joint import JointData
from tasks.datasets.shards.data import ReadsShards
from tasks.joint import JointTask, make_weighting
from tasks.network import Network, example_maps
from tasks.task import Augment, Task
from workbench.errors import UsageError
from workbench.instantiation import instantiate
from workbench.members import REPLACED, is_joint, member_cfgs
from workbench.monitor import settle
from workbench.pretrained import weights_file
from workbench.provenance import data_read
from workbench.shard_settings import check_settings
from workbench.stored_config import plain_config

log = logging.getLogger("widefield")
AnyData = TypeVar("AnyData", DataModule, JointData)


def build_data(cfg: DictConfig) -> DataModule:
    """Build the data module and set it up; logs a description of the data."""
    refuse_joint(cfg)
    data: DataModule = instantiate(cfg.task.data)
    return ready(data, {"": cfg})


def build_all_data(cfg: DictConfig) -> DataModule | JointData:
    """Build the data module of a single task, or the combined one of a joint run."""
    if not is_joint(cfg):
        return build_data(cfg)
    own = member_cfgs(cfg)
    members = {name: instantiate(member.task.data) for name, member in own.items()}
    options = {key: value for key, value in cfg.task.data.items() if key not in REPLACED}
    return ready(JointData(members, seed=cfg.seed, **options), own)


def ready(data: AnyData, cfgs: dict[str, DictConfig]) -> AnyData:
    """Prepare and set up the data, check shard settings and log a description."""
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
    """Raise a `UsageError` for a joint run; called by actions that handle a single task."""
    if is_joint(cfg):
        raise UsageError(
            f"action={cfg.action.name} is about one task, {cfg.task.name} trains several: "
            "leave experiment= out and say task=NAME"
        )


@contextmanager
def refused_settings() -> Iterator[None]:
    """Convert a `ValueError` or `TypeError` raised while constructing a component to a `UsageError`."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def refusing(make: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The factory of an optimiser or a schedule, which the trainer calls; its `ValueError` becomes a `UsageError`."""
    return None if make is None else partial(_made, make)


def _made(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with refused_settings():
        return make(*arguments, **options)


def build_network(cfg: DictConfig, data_info: dict[str, Any], pretrained: bool = True) -> Network:
    """Build embedder, backbone and head; each takes its sizes from the one before."""
    embedder_class = cast(type[Embedder], get_class(cfg.modality.embedder._target_))
    task_class = cast(type[Task], get_class(cfg.task.model._target_))
    # Sizes are passed as plain arguments: `instantiate` would convert long lists to configuration nodes.
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
    """Load `backbone.pretrained`; returns whether it held a classifier that fits and was loaded into the head."""
    report = network.backbone.load_pretrained(weights_file(cfg))
    head: Any = network.head
    answers = bool(head.load_official(report.left_out)) if hasattr(head, "load_official") else False
    log.info("pretrained: %s", report)
    return answers


def build_task(cfg: DictConfig, data_info: dict[str, Any], pretrained: bool = True) -> Task:
    """Build the task with its network, optimiser, scheduler and augmentation."""
    refuse_joint(cfg)
    task_class = cast(type[Task], get_class(cfg.task.model._target_))
    settle(cfg, [f"val/{name}" for name in task_class.metric_names(data_info)])
    augment = cfg.modality.augment
    # Called directly: `instantiate` would copy objects passed through it.
    make_task: Callable[..., Task] = instantiate(cfg.task.model, _partial_=True)
    network = build_network(cfg, data_info, pretrained)
    with refused_settings():
        return make_task(
            network=network,
            data_info=data_info,
            optimizer=refusing(instantiate(cfg.optimizer)),
            scheduler=refusing(instantiate(cfg.scheduler)),
            augment=Augment(**{place: instantiate(node) for place, node in augment.items()}),
            composition=plain_config(cfg),
        )


def build_training(cfg: DictConfig, data_info: dict[str, Any], pretrained: bool = True) -> Task | JointTask:
    """Build the task of a run, or the `JointTask` of a joint run, whose members share one backbone."""
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
        optimizer=refusing(instantiate(cfg.optimizer)),
        scheduler=refusing(instantiate(cfg.scheduler)),
        composition=plain_config(cfg),
    )
