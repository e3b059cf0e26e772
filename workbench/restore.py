"""Rebuilds a model from its checkpoint."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from backbone import CheckpointError
from tasks.joint import JointTask
from tasks.task import Task, Training
from workbench.build import build_task, build_training
from workbench.checkpoint_files import find_checkpoint, read_checkpoint
from workbench.composition import GROUPS as MODEL_GROUPS
from workbench.composition import MODE, built_from
from workbench.errors import UsageError
from workbench.members import asked_member, members_of, one_member
from workbench.overrides import overrides, was_said

SomeTask = TypeVar("SomeTask", Task, JointTask)
log = logging.getLogger("widefield")

AnyTask = TypeVar("AnyTask", bound=Training)


@dataclass
class Restored(Generic[AnyTask]):
    """A model read from a checkpoint, with the composition it was trained in.

    Args:
        cfg: the composition, with this command's paths and options.
        task: in evaluation mode.
        checkpoint: its file; `FILE@PART` for a member of a joint run.
        epoch: the epoch it was saved in.
        joint: name of the joint run that it is a member of.
        trained_on: the record of its training data (`DataModule.record`); empty in checkpoints of earlier versions.
    """

    cfg: DictConfig
    task: AnyTask
    checkpoint: Path
    epoch: int
    joint: str | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)


def restore(cfg: DictConfig) -> Restored[Task]:
    """Rebuild the model of `cfg.ckpt`: its modality, task and backbone, with this command's paths and options.

    Of a joint run, the member is selected by `task=`, `modality=`, or `ckpt=RUN@PART`.
    """
    path, content, part = _read_asked(cfg)
    joint = content["widefield"]["composition"]["task"]["name"]
    content, member = one_member(cfg, path, content, part)
    with built_from(path):
        own = _merge(cfg, content["widefield"]["composition"], member)
        task = build_task(own, content["widefield"]["facts"], pretrained=False)
    restored = Restored(own, _filled(task, content, path), path, int(content.get("epoch", 0)))
    restored.trained_on = content["widefield"].get("trained_on") or {}
    if member is not None:
        restored.checkpoint, restored.joint = Path(f"{path}@{member}"), joint
    return restored


def restore_all(cfg: DictConfig) -> Restored[Task] | Restored[JointTask]:
    """Like `restore`, but a joint run is restored as a whole unless this command selects a member."""
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


def _merge(cfg: DictConfig, stored: dict[str, Any], member: str | None = None) -> DictConfig:
    """This command's configuration with the checkpoint's modality, task and backbone in it.

    Args:
        cfg: this command's configuration; its overrides take precedence over the checkpoint.
        stored: the checkpoint's composition.
        member: its name, if it is a member of a joint run.
    """
    own = cfg.copy()
    OmegaConf.set_struct(own, False)
    if overrides(cfg) is None:
        log.warning(
            "%s: modality, task and backbone are those of the checkpoint; to change settings of them beside ckpt=, "
            "compose with workbench.overrides.compose",
            cfg.ckpt,
        )
    words = OverridesParser.create().parse_overrides(overrides(cfg) or [])
    for group in MODEL_GROUPS:
        asked = [override.value() for override in words if override.key_or_group == group]
        names = [cfg[group].name, *asked[-1:]]
        if asked and stored[group]["name"] not in names:
            raise UsageError(
                f"{cfg.ckpt} is of {group} {stored[group]['name']}, not {cfg[group].name}: leave {group}= out"
            )
        own[group] = stored[group]
    for override in words:
        key = _own_key(override.key_or_group, stored, member)
        if key is not None and not override.is_delete():
            OmegaConf.update(own, key, override.value())
    if was_said(cfg, "task.monitor=") and not was_said(cfg, "task.mode="):
        own.task.mode = MODE
    OmegaConf.set_struct(own, True)
    return own


def _own_key(key: str, stored: dict[str, Any], member: str | None) -> str | None:
    """The key of the checkpoint's composition that an override sets; None if it sets none.

    For a member of a joint run, `task.members.NAME.task.data.limit` is its own `task.data.limit`.
    """
    if key.startswith("task.members.") and "members" not in stored["task"]:
        _, _, name, key = key.split(".", 3) if key.count(".") > 2 else (*key.split("."), "")
        if name != member:
            return None
    return key if key.split(".")[0] in MODEL_GROUPS and "." in key else None
