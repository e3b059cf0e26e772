"""The part of a configuration that a checkpoint stores."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from tasks.secrets import hide
from workbench.composition import GROUPS as MODEL_GROUPS
from workbench.composition import MODE, is_plain_reference
from workbench.members import is_joint, member_cfgs


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The model's part of the composition as plain containers.

    References within it and to a command's paths are kept; resolver calls are replaced by their values, because no
    resolver runs when a checkpoint is read. Secrets are hidden.
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
    """A node as plain containers; `raw`: the content to store, if `node` serves only to resolve its values."""
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
