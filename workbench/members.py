"""Members of a joint run: several tasks in one composition, and one of them extracted from it.

`cfg.task.members` holds a modality and a task for each member. Their interpolations (`${task.data.seconds}`,
`${modality.embedder.size}`, …) are written for a single-task run, so `member_cfg` resolves them in a configuration
where the member is the modality and the task.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tasks.joint import member_state
from workbench.errors import UsageError
from workbench.overrides import overrides, was_said, without_words
from workbench.secret_words import hidden

REPLACED = (
    "batch_size",
    "eval_batch_size",
    "limit",
)  # settings of the joint data that replace every member's
BATCH_NORMS = ("per_modality", "shared")
STEMS = ("per_modality", "shared")


def is_joint(cfg: DictConfig) -> bool:
    """Whether a composition has several tasks."""
    return "members" in cfg.task


def member_cfg(cfg: DictConfig, name: str) -> DictConfig:
    """The configuration of one member, as if it ran on its own."""
    member = cfg.task.members[name]
    own = cfg.copy()
    OmegaConf.set_struct(own, False)
    own.modality = _raw(member.modality)
    own.task = _raw(member.task)
    own.data_dir = member.data_dir
    own.download = bool(cfg.download and member.data_dir)
    for key in REPLACED:
        if cfg.task.data[key] is not None:
            own.task.data[key] = cfg.task.data[key]
    for place, node in cfg.modality.augment.items():
        own.modality.augment[place] = _raw(node)
    OmegaConf.set_struct(own, True)
    return own


def member_cfgs(cfg: DictConfig) -> dict[str, DictConfig]:
    """Every member's configuration, by name."""
    return {str(name): member_cfg(cfg, str(name)) for name in cfg.task.members}


def resolved(cfg: DictConfig) -> DictConfig:
    """The configuration without interpolations and secrets; each member is resolved in its own `member_cfg`."""
    whole = without_words(cfg.copy())
    if is_joint(cfg):
        OmegaConf.set_struct(whole, False)
        for name, own in member_cfgs(cfg).items():
            for group in ("modality", "task"):
                whole.task.members[name][group] = OmegaConf.to_container(own[group], resolve=True)
    OmegaConf.resolve(whole)
    return hidden(whole)


def check_members(cfg: DictConfig) -> None:
    """Raise a `UsageError` if the parts of a joint run are incompatible."""
    members = cfg.task.members
    if not members:
        raise UsageError("task.members is empty: a joint run needs at least one modality and task")
    for name, member in members.items():
        missing = [key for key in ("modality", "task", "data_dir", "weight") if key not in member]
        if missing:
            raise UsageError(f"task.members.{name} lacks {', '.join(missing)}")
        if "." in str(name) or "@" in str(name):
            raise UsageError(f"task.members.{name}: a member's name has neither dots nor @")
        if member.task.modality != member.modality.name:
            raise UsageError(
                f"task.members.{name}: task {member.task.name} reads {member.task.modality}, not "
                f"{member.modality.name}"
            )
    for key, allowed in (("batch_norm", BATCH_NORMS), ("stem", STEMS)):
        if cfg.task[key] not in allowed:
            raise UsageError(f"task.{key} must be one of {', '.join(allowed)}, not {cfg.task[key]}")
    if cfg.task.stem_chans < 1:
        raise UsageError(f"task.stem_chans must be at least 1, not {cfg.task.stem_chans}")
    if cfg.init_from and cfg.task.stem == "shared":
        raise UsageError("init_from gives each member a stem of its own: it goes with task.stem=per_modality")
    if cfg.data_dir is not None:
        named = " or ".join(f"task.members.{name}.data_dir=PATH" for name in list(members)[:2])
        raise UsageError(f"a joint run has data for each member: say {named}, not data_dir={cfg.data_dir}")
    if cfg.trainer.strategy == "ddp":
        raise UsageError(
            "a step of a joint run trains one member and leaves weights of the others out: "
            "say trainer.strategy=ddp_find_unused_parameters_true"
        )


# -- one member out of a checkpoint ----------------------------------------------------------------------------------


def members_of(content: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Maps member names to modality and task nodes; None if a checkpoint is not of a joint run."""
    members: dict[str, dict[str, Any]] | None = content["widefield"]["composition"]["task"].get("members")
    return members


def member_content(content: dict[str, Any], name: str) -> dict[str, Any]:
    """One member of a joint checkpoint, in the form of a single-task checkpoint."""
    stored = content["widefield"]
    joint = stored["composition"]
    member = joint["task"]["members"][name]
    replaced = {key: joint["task"]["data"][key] for key in REPLACED}
    data = member["task"]["data"] | {key: value for key, value in replaced.items() if value is not None}
    composition = {
        "modality": member["modality"],
        "task": member["task"] | {"data": data},
        "backbone": joint["backbone"],
    }
    return {
        "widefield": {
            **stored,
            "composition": composition,
            "facts": stored["facts"][name],
            "trained_on": (stored.get("trained_on") or {}).get(name, {}),
        },
        "state_dict": member_state(content["state_dict"], name),
        "epoch": content.get("epoch", 0),
    }


def matching(members: dict[str, dict[str, Any]], task: str | None, modality: str | None) -> str | None:
    """The only member with this task, else the only one of this modality, else None."""
    for group, wanted in (("task", task), ("modality", modality)):
        found = [name for name, member in members.items() if member[group]["name"] == wanted]
        if len(found) == 1:
            return found[0]
    return None


def asked_member(cfg: DictConfig, path: Path, content: dict[str, Any], part: str | None) -> str | None:
    """The member of a joint checkpoint that this command selects, or None.

    It is selected by `@PART` after the checkpoint's name, by `task=`, or by `modality=`.
    """
    members = members_of(content)
    if members is None:
        if part is not None:
            raise UsageError(f"{path} is not of a joint run, so it has no part {part}")
        return None
    if part is not None:
        if part not in members:
            raise UsageError(f"{path} has no part {part}: it holds {listed(members)}")
        return part
    if is_joint(cfg) or not _says_which(cfg):
        return None
    said_task = overrides(cfg) is None or was_said(cfg, "task=", "experiment=")
    name = matching(members, cfg.task.name, None if said_task else cfg.modality.name)
    if name is None:
        raise UsageError(f"{path} does not hold {cfg.task.name}: it holds {listed(members)}")
    return name


def one_member(
    cfg: DictConfig, path: Path, content: dict[str, Any], part: str | None
) -> tuple[dict[str, Any], str | None]:
    """The content of a single-task checkpoint, or that of the selected member of a joint one and its name."""
    name = asked_member(cfg, path, content, part)
    if name is not None:
        return member_content(content, name), name
    members = members_of(content)
    if members is not None:
        words = " or ".join(f"task={member['task']['name']}" for member in members.values())
        raise UsageError(f"{path} holds several tasks: say {words}")
    return content, None


def listed(members: dict[str, dict[str, Any]]) -> str:
    """The members as text."""
    return ", ".join(f"{name} ({member['task']['name']})" for name, member in members.items())


def _raw(node: Any) -> Any:
    """A copy of a node, interpolations unresolved."""
    if isinstance(node, DictConfig):
        return OmegaConf.create(OmegaConf.to_container(node, resolve=False))
    return node


def _says_which(cfg: DictConfig) -> bool:
    """Whether a command selects a member; a configuration without recorded overrides selects the task it holds."""
    return overrides(cfg) is None or was_said(cfg, "task=", "modality=", "experiment=")
