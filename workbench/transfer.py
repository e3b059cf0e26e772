"""init_from=RUN and freeze=…: begin with what another run has learnt, and keep a part of it as it is."""

import logging
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from backbone import UniRepLKNet, load_weights
from tasks.freezing import frozen_modules
from tasks.task import Task
from workbench.build import MODEL_GROUPS, refused_settings
from workbench.checkpoint_files import find_checkpoint, read_checkpoint
from workbench.errors import UsageError
from workbench.files import write_json

log = logging.getLogger("widefield")

RECORD = "init_from.json"


def start_from(cfg: DictConfig, task: Task) -> dict[str, Any]:
    """Give `task` what the run `cfg.init_from` has learnt; says what was taken, also in `init_from.json`.

    The backbone's weights are always taken, the first convolution adapted to the maps' channels. Of an embedder of
    the same class its learnt weights are taken; with the same settings and the same data also its statistics. The
    head is taken where task, data and shapes are the same (fine-tuning); else it starts anew.

    Raises:
        CheckpointError: a checkpoint that cannot be read, or of another backbone.
    """
    path, _ = find_checkpoint(str(cfg.init_from))
    content = read_checkpoint(path)
    stored = content["widefield"]
    source = source_composition(cfg, stored["composition"])
    state: dict[str, Tensor] = content["state_dict"]
    label = f"{path} ({source.task.name})"
    backbone = cast(UniRepLKNet, task.network.backbone)
    loaded = load_weights(backbone, part_of(state, "network.backbone."), label)
    same_data = source.task.name == cfg.task.name and stored["facts"] == task.facts
    same_settings = resolved(source, "modality.embedder") == resolved(cfg, "modality.embedder")
    embedder: list[str] = []
    if source.modality.embedder._target_ == cfg.modality.embedder._target_:
        everything = same_data and same_settings
        embedder = take_fitting(
            task.network.embedder, part_of(state, "network.embedder."), parameters_only=not everything
        )
    head: list[str] = []
    head_state = part_of(state, "network.head.")
    if same_data and shapes(task.network.head.state_dict()) == shapes(head_state):
        head = take_fitting(task.network.head, head_state)
    taken = {
        "checkpoint": str(path),
        "modality": source.modality.name,
        "task": source.task.name,
        "backbone": {"tensors": loaded.loaded, "adapted": loaded.adapted},
        "embedder": embedder,
        "head": head,
    }
    write_json(Path(cfg.paths.run) / RECORD, taken)
    log.info(
        "init_from: %s; taken: %d tensors of the backbone%s, %s, %s",
        label,
        loaded.loaded,
        "".join(f", adapted: {change}" for change in loaded.adapted),
        f"{len(embedder)} of the embedder" if embedder else "nothing of the embedder",
        "the head" if head else "not the head, which starts anew",
    )
    return taken


def source_composition(cfg: DictConfig, composition: dict[str, Any]) -> DictConfig:
    """This command's configuration with the modality, task and backbone of another run, to resolve those in."""
    source = cfg.copy()
    OmegaConf.set_struct(source, False)
    for group in MODEL_GROUPS:
        source[group] = composition[group]
    return source


def resolved(cfg: DictConfig, key: str) -> Any:
    """A node as plain values."""
    return OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(value.shape) for name, value in state.items()}


def take_fitting(module: nn.Module, state: dict[str, Tensor], parameters_only: bool = False) -> list[str]:
    """Load the entries that fit in name and shape; returns their names."""
    own = dict(module.named_parameters()) if parameters_only else module.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    module.load_state_dict(fitting, strict=False)
    return sorted(fitting)


def freeze(cfg: DictConfig, task: Task) -> None:
    """Keep the parts that `cfg.freeze` names as they are; says what is left to train."""
    spec = cfg.freeze if isinstance(cfg.freeze, str) else list(cfg.freeze or [])
    with refused_settings():
        names = frozen_modules(spec)
    if not names:
        return
    network = task.network
    network.freeze(names)
    total = sum(parameter.numel() for parameter in network.parameters())
    left = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    if left == 0:
        raise UsageError(f"freeze={cfg.freeze} leaves nothing to train")
    log.info("freeze: %s; %s of %s parameters are trained", ", ".join(names), f"{left:,}", f"{total:,}")
    if cfg.init_from is None and cfg.backbone.pretrained is None:
        log.warning("freeze: without init_from=RUN or backbone.pretrained the frozen weights are untrained")
