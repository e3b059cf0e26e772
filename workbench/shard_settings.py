"""Task settings that determine the training and test data (folds, labels, …); in shards they are fixed."""

from inspect import signature
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from tasks.datasets.shards.data import ReadsShards, ShardableData, ShardableSettings
from workbench.errors import UsageError
from workbench.quoting import typed, value_text

HELD_OUT = ("val_part", "test_part")  # determine the splits, whichever class takes them


def split_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings of `task.data` that are specific to a dataset (folds, labels, …), not those for reading files or
    common to all datasets."""
    source = get_class(cfg.task.data._target_)
    modality = next(
        parent for parent in source.__mro__ if {ShardableData, ReadsShards} & set(parent.__bases__)
    )
    reading = {"_target_", *signature(modality).parameters, *ShardableSettings.__annotations__} - {*HELD_OUT}
    plain = OmegaConf.to_container(cfg.task.data, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in reading}


def check_settings(cfg: DictConfig, data: ReadsShards, member: str = "") -> None:
    """Raise a `UsageError` if shards were written with settings other than the command's.

    Args:
        cfg: configuration of the run, or of one member as if it ran on its own.
        data: the data module that reads the shards.
        member: its name, in a joint run.
    """
    written = data.shard_set.settings if data.shard_set else {}
    now = split_settings(cfg)
    other = [key for key, value in written.items() if key in now and now[key] != value]
    if other:
        task = f"task.members.{member}.task" if member else "task"
        said = ", ".join(f"{key}={value_text(written[key])} (not {value_text(now[key])})" for key in other)
        words = " ".join(typed(f"{task}.data.{key}", written[key]) for key in other)
        raise UsageError(f"{data.place} was written with {said}: add {words}, or write other shards")
