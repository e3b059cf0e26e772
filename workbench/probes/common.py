"""Shared by the probes: the probed network, its input maps, and output files."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._pytree import tree_map

from backbone import Backbone
from modalities.embedder import by_size, in_order
from tasks.datasets.base import DataModule
from tasks.datasets.batch import collate, usable
from tasks.task import Task
from workbench.build import build_data, build_task
from workbench.console import console
from workbench.errors import UsageError
from workbench.overrides import recorded
from workbench.restore import restore

log = logging.getLogger("widefield")

UNTRAINED = "untrained"


@dataclass
class Probed:
    """A probed network.

    Args:
        cfg: its configuration.
        task: in evaluation mode, on the device.
        name: for tables and titles: the backbone and its training data, or "untrained".
        trained: whether its weights are trained.
    """

    cfg: DictConfig
    task: Task
    name: str
    trained: bool

    @property
    def backbone(self) -> Backbone:
        """The backbone of its network."""
        return self.task.network.backbone


def from_checkpoint(cfg: DictConfig, path: str) -> Probed:
    """The network of a checkpoint file or run folder."""
    asking = cfg.copy()
    asking.ckpt = path
    if path != cfg.ckpt:  # this command's overrides apply to the network of `ckpt=` only
        recorded(asking, [])
    restored = restore(asking)
    name = f"{restored.cfg.backbone.name}, trained on {restored.cfg.task.name}"
    name += f" within {restored.joint}" if restored.joint else ""
    return Probed(restored.cfg, restored.task.to(device_of(cfg)).eval(), name, True)


def composed_network(cfg: DictConfig, data_info: dict[str, Any]) -> Probed:
    """The network composed by this command: official weights if `backbone.pretrained` is set, else untrained."""
    seed_everything(cfg.seed, verbose=False)
    task = build_task(cfg, data_info).to(device_of(cfg)).eval()
    pretrained = cfg.backbone.pretrained
    name = f"{cfg.backbone.name}, {f'pretrained ({pretrained})' if pretrained else UNTRAINED}"
    return Probed(cfg, task, name, bool(pretrained))


def asked_about(cfg: DictConfig) -> tuple[Probed, DataModule]:
    """The network of `ckpt`, or the composed one if it is not set, and its data."""
    if cfg.ckpt is not None:
        probed = from_checkpoint(cfg, cfg.ckpt)
        return probed, build_data(probed.cfg)
    data = build_data(cfg)
    probed = composed_network(cfg, data.info())
    embedder: Any = probed.task.network.embedder
    if embedder.needs_statistics:
        embedder.fit_statistics(data.training_raws())
    if not probed.trained:
        log.info("no ckpt: the network is untrained")
    return probed, data


def device_of(cfg: DictConfig) -> torch.device:
    """The GPU if there is one and the trainer may use it, else the CPU."""
    return torch.device("cuda" if cfg.trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def test_raws(data: DataModule, task: Task, most: int, batch_size: int) -> Iterator[Any]:
    """Raw batches of the test split on the task's device, at most ``most`` evenly spaced samples."""
    if most < 1 or batch_size < 1:
        raise UsageError(
            f"action.inputs and action.batch_size must be at least 1, not {most} and {batch_size}"
        )
    dataset = data.loader("test").dataset
    count = len(dataset)  # type: ignore[arg-type]
    most = min(most, count)
    chosen = [position * count // most for position in range(most)]
    for start in range(0, most, batch_size):
        read = [dataset[index, 0] for index in chosen[start : start + batch_size]]
        batch = usable(collate(read, data.join_targets, data.join_raws))
        for error in batch.failures:
            log.warning("broken file: %s", error)
        if len(batch):
            yield task.transfer_batch_to_device(batch.raw, task.device, 0)


@torch.no_grad()
def maps_of(task: Task, raw: Any) -> Tensor:
    """Raw batch -> maps (B, V, C, H, W); only the first crop if a sample has several.

    Of samples of several sizes the middle of each map, as large as the smallest one, so that no map has padding.
    """
    network = task.network
    samples = network.embedder.unpadded(raw)
    if samples is None:
        return network.maps(raw[:, 0] if network.crops(raw) else raw)
    found = [(places, network.maps(part)) for places, part in by_size(samples)]
    alike = middles([maps for _, maps in found])
    return in_order([(places, maps) for (places, _), maps in zip(found, alike, strict=True)])


def middles(maps: list[Tensor]) -> list[Tensor]:
    """The middle of each batch of maps (…, H, W), of the smallest height and of the smallest width of all."""
    height, width = (min(each.shape[side] for each in maps) for side in (-2, -1))
    tops = [(each.shape[-2] - height) // 2 for each in maps]
    lefts = [(each.shape[-1] - width) // 2 for each in maps]
    return [
        each[..., top : top + height, left : left + width]
        for each, top, left in zip(maps, tops, lefts, strict=True)
    ]


def to_channels(maps_NCHW: Tensor, channels: int) -> Tensor:
    """Adapt maps to another number of channels: the mean for one channel, otherwise the channels repeated cyclically.

    >>> to_channels(torch.zeros(2, 1, 8, 8), 3).shape
    torch.Size([2, 3, 8, 8])
    """
    have = maps_NCHW.shape[1]
    if channels == have:
        return maps_NCHW
    if channels == 1:
        return maps_NCHW.mean(dim=1, keepdim=True)
    return maps_NCHW[:, torch.arange(channels, device=maps_NCHW.device) % have]


def plain(value: Any) -> Any:
    """Values for JSON: non-finite floats become null."""
    return tree_map(lambda leaf: None if isinstance(leaf, float) and not _finite(leaf) else leaf, value)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def show_files(*files: Path) -> None:
    """Print the paths of the written files."""
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
