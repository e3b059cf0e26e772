"""action=shard: writes the files of a task to shards, in a local folder or remote storage."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tasks.datasets.items import SPLITS
from tasks.datasets.shards.data import ReadsShards
from tasks.datasets.shards.layout import Shard
from tasks.datasets.shards.storage import Storage
from tasks.datasets.shards.write import write_shards
from tasks.disk import writing
from workbench.build import build_data
from workbench.conf_folders import find_yaml
from workbench.console import console, print_table
from workbench.errors import UsageError
from workbench.quoting import command
from workbench.shard_settings import split_settings


def shard(cfg: DictConfig) -> None:
    """Write all splits to `cfg.action.out`, print what was written and how to train from it."""
    action = cfg.action
    if not action.out:
        raise UsageError("action=shard needs action.out=FOLDER, or an address such as s3://bucket/name")
    if action.shard_mb <= 0 or (action.shard_samples is not None and action.shard_samples < 1):
        raise UsageError("action.shard_mb must be above 0 and action.shard_samples at least 1")
    data = build_data(cfg)
    if not isinstance(data, ReadsShards):
        raise UsageError(
            f"action=shard writes sounds and videos with classes, and pictures with classes, masks or boxes, not "
            f"{cfg.task.name} ({cfg.modality.name})"
        )
    data.check_targets()
    if data.storage is not None:
        raise UsageError("action=shard reads files: leave task.data.format out")
    options = OmegaConf.to_container(action.storage, resolve=True)
    assert isinstance(options, dict)
    target = Storage(action.out, {str(key): value for key, value in options.items()})
    settings = split_settings(cfg)
    place = target.folder or Path(tempfile.gettempdir())  # remote storage: made here, then uploaded
    with writing(
        place, f"or choose another folder with {'action.out' if target.folder else 'TMPDIR'}=FOLDER"
    ):
        shards = write_shards(
            data,
            data.splits,
            target,
            shard_bytes=round(action.shard_mb * 1e6),
            shard_samples=action.shard_samples,
            shuffle=action.shuffle,
            settings=settings,
            replace=action.replace,
        )
    print_table(f"shards of {cfg.task.name} in {target}", rows(shards), ("split", "samples", "shards", "MB"))
    file = find_yaml("task", cfg.task.name)
    default = OmegaConf.load(file) if file else OmegaConf.create()
    changed = {
        f"task.data.{key}": value
        for key, value in settings.items()
        if OmegaConf.select(default, f"data.{key}") != value
    }
    words = {"task.data.format": "webdataset", "data_dir": target, **changed}
    line = command(modality=cfg.modality.name, task=cfg.task.name, **words)
    console.print(f"next:\n  {line}", highlight=False, soft_wrap=True)


def rows(shards: Sequence[Shard]) -> list[tuple[str, ...]]:
    """Rows of the table: split, samples, shards and megabytes."""
    table: list[tuple[str, ...]] = []
    for split in SPLITS:
        part = [shard for shard in shards if shard.split == split]
        size = sum(shard.size for shard in part) / 1e6
        table.append((split, f"{sum(shard.samples for shard in part):,}", f"{len(part):,}", f"{size:,.1f}"))
    return table
