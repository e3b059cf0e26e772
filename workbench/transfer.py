"""init_from=RUN and freeze=…: initialises from the weights of another run, and freezes parts of the network."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from tasks.freezing import frozen_modules
from tasks.task import Task, Training
from workbench.build import refused_settings
from workbench.checkpoint_files import find_checkpoint, read_checkpoint
from workbench.composition import GROUPS as MODEL_GROUPS
from workbench.composition import built_from
from workbench.errors import UsageError
from workbench.files import write_findings
from workbench.members import listed, matching, member_cfg, member_content, members_of
from workbench.quoting import typed

log = logging.getLogger("widefield")

RECORD = "init_from.json"


def start_from(cfg: DictConfig, task: Training) -> dict[str, Any]:
    """Initialise `task` from the run `cfg.init_from`; logs what was loaded, also to `init_from.json`.

    The backbone is always loaded, its first convolution adapted to the maps' channels. Of an embedder of the same class
    the parameters are loaded, and with the same settings and data also the statistics. The head is loaded if task, data
    and shapes are the same; otherwise it is newly initialised, except for the norm before a classifier of the same
    modality, as in official fine-tuning. Of a joint run, the member with the same task is used, else the one of the
    same modality, or the one that `RUN@PART` names.

    Raises:
        CheckpointError: a checkpoint that cannot be read, or of another backbone.
        UsageError: a joint run with no such member, or with several.
    """
    path, part = find_checkpoint(str(cfg.init_from))
    content = read_checkpoint(path, cfg)
    if (pretrained := cfg.backbone.get("pretrained")) is not None:
        log.warning(
            "init_from: the backbone starts from the weights of %s, not from those of backbone.pretrained=%s",
            path,
            pretrained,
        )
    taken: dict[str, Any] = {}
    for name, member in task.by_task().items():
        own = member_cfg(cfg, name) if name else cfg
        with built_from(path):
            taken[name] = _take(own, member, path, *_source(own, path, content, part))
    record: dict[str, Any] = taken.get("", taken)
    write_findings(Path(cfg.paths.run) / RECORD, record)
    return record


def _source(
    cfg: DictConfig, path: Path, content: dict[str, Any], part: str | None
) -> tuple[dict[str, Any], str | None]:
    """The content of the single-task checkpoint to start from, and its member's name in a joint run."""
    members = members_of(content)
    if members is None:
        if part is not None:
            raise UsageError(f"init_from: {path} is not of a joint run, so it has no part {part}")
        return content, None
    name = part if part in members else matching(members, cfg.task.name, cfg.modality.name)
    if name is None or part not in (None, name):
        raise UsageError(
            f"init_from: {path} holds {listed(members)}: say which to start from, "
            f"e.g. {typed('init_from', f'{path}@{next(iter(members))}')}"
        )
    return member_content(content, name), name


def _take(
    cfg: DictConfig, task: Task, path: Path, content: dict[str, Any], part: str | None
) -> dict[str, Any]:
    stored = content["widefield"]
    source = source_composition(cfg, stored["composition"])
    state: dict[str, Tensor] = content["state_dict"]
    label = f"{path} ({source.task.name})"
    loaded = task.network.backbone.load_weights(below(state, "network.backbone."), label)
    same_data = source.task.name == cfg.task.name and stored["facts"] == task.data_info
    same_settings = plain(source, "modality.embedder") == plain(cfg, "modality.embedder")
    embedder: list[str] = []
    if source.modality.embedder._target_ == cfg.modality.embedder._target_:
        everything = same_data and same_settings
        embedder = take_fitting(
            task.network.embedder, below(state, "network.embedder."), parameters_only=not everything
        )
    head: list[str] = []
    head_state = below(state, "network.head.")
    whole = same_data and shapes(task.network.head.state_dict()) == shapes(head_state)
    if whole:
        head = take_fitting(task.network.head, head_state)
    elif source.modality.name == cfg.modality.name and source.task.head._target_ == cfg.task.head._target_:
        # As in official fine-tuning: the norm belongs to the features, only the classifier depends on the old classes.
        norm = {name: value for name, value in head_state.items() if name.startswith("norm.")}
        head = take_fitting(task.network.head, norm)
    log.info(
        "init_from: %s; %s takes %d tensors of the backbone%s, %s, %s",
        label,
        cfg.task.name,
        loaded.loaded,
        "".join(f", adapted: {change}" for change in loaded.adapted),
        f"{len(embedder)} of the embedder" if embedder else "nothing of the embedder",
        "the head" if whole else "of the head only its norm" if head else "not the head, which starts anew",
    )
    return {
        "checkpoint": str(path),
        "part": part,
        "modality": source.modality.name,
        "task": source.task.name,
        "backbone": {"tensors": loaded.loaded, "adapted": loaded.adapted},
        "embedder": embedder,
        "head": head,
    }


def source_composition(cfg: DictConfig, composition: dict[str, Any]) -> DictConfig:
    """This command's configuration with modality, task and backbone of another run, to resolve them in."""
    source = cfg.copy()
    OmegaConf.set_struct(source, False)
    for group in MODEL_GROUPS:
        source[group] = composition[group]
    return source


def plain(cfg: DictConfig, key: str) -> Any:
    """A node as plain values."""
    return OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below a prefix, with the prefix removed from their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Maps names to shapes."""
    return {name: tuple(value.shape) for name, value in state.items()}


def take_fitting(module: nn.Module, state: dict[str, Tensor], parameters_only: bool = False) -> list[str]:
    """Load the entries whose names and shapes match; returns their names."""
    own = dict(module.named_parameters()) if parameters_only else module.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    module.load_state_dict(fitting, strict=False)
    return sorted(fitting)


def freeze(cfg: DictConfig, task: Training) -> None:
    """Freeze the parts that `cfg.freeze` names; logs the number of parameters left to train."""
    spec = cfg.freeze if isinstance(cfg.freeze, str) else list(cfg.freeze or [])
    for member in task.by_task().values():
        with refused_settings():
            names = frozen_modules(spec, member.network.backbone)
        member.network.freeze(names)
    if not names:
        return
    parameters = list(task.trained_module().parameters())
    total = sum(parameter.numel() for parameter in parameters)
    left = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    log.info("freeze: %s; %s of %s parameters are trained", ", ".join(names), f"{left:,}", f"{total:,}")
    if cfg.init_from is None and cfg.backbone.pretrained is None:
        log.warning("freeze: without init_from=RUN or backbone.pretrained the frozen weights are untrained")
