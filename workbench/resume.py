"""Resuming a run: finds the checkpoint, and checks that command and data match the original ones."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from backbone import CheckpointError
from tasks.datasets.base import DataModule
from tasks.datasets.joint import JointData
from workbench.callbacks.replan import refuse_kept_plan
from workbench.checkpoint_files import point_to_resume, read_checkpoint
from workbench.composition import check_record, read_run_config
from workbench.console import printable, speaks
from workbench.errors import UsageError
from workbench.files import remove_drafts
from workbench.instantiation import instantiate
from workbench.members import resolved
from workbench.overrides import overrides

log = logging.getLogger("widefield")

SHOWN = 3  # maximum number of changes named in a message
FILLED = (".modality.augment", ".task.members", ".callbacks")  # nodes whose keys each command chooses
#: Of the trainer, what changes the weights; the rest says where and how fast, and what is shown and kept of a run.
TRAINS = (
    "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "limit_train_batches",
    "overfit_batches", "sync_batchnorm", "max_steps",
)  # fmt: skip
AVERAGES = "workbench.callbacks.averaging."  # callbacks that change the weights that are tested and kept


@dataclass
class Resumed:
    """A run to resume.

    Args:
        path: its checkpoint.
        stored: the checkpoint's record of the run: `data_info`, `trained_on`, `max_epochs`.
        epochs: number of completed epochs.
        planned: number of epochs originally planned.
    """

    path: str
    stored: dict[str, Any]
    epochs: int
    planned: int


def resume_from(cfg: DictConfig) -> Resumed | None:
    """The run that `cfg.resume` names; None for a new one.

    Raises:
        UsageError: there is no such run, or it was made by another command.
    """
    if not cfg.resume:
        return None
    folder = Path(cfg.paths.run)
    if speaks():  # one process alone
        remove_drafts(folder)
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        if cfg.resume == "auto":
            log.info("resume: no unfinished run of this kind; starting a new one in %s", folder)
            return None
        raise UsageError(f"resume={cfg.resume}: there is no checkpoint {last} to go on from")
    before = OmegaConf.create(read_run_config(folder / "config.yaml"))
    _same_command(cfg, before)
    path = point_to_resume(folder, cfg)
    content = read_checkpoint(path, cfg)
    try:
        stored = content["widefield"]
        check_record(stored, path)
        planned = stored.get("max_epochs") or OmegaConf.select(before, "trainer.max_epochs")
        resumed = Resumed(str(path), stored, _complete(content), int(planned))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be resumed: it does not say how far the run has come"
        ) from error
    if cfg.trainer.max_epochs != resumed.planned:
        _more_epochs(cfg, resumed)
    return resumed


def _complete(content: dict[str, Any]) -> int:
    """Number of completed epochs in a checkpoint."""
    progress = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    return int(progress["processed"])


def _more_epochs(cfg: DictConfig, resumed: Resumed) -> None:
    if cfg.trainer.max_epochs <= resumed.epochs:
        raise UsageError(
            f"trainer.max_epochs={cfg.trainer.max_epochs}: {resumed.epochs} epochs of this run are complete, "
            "so there is nothing to go on with: say more"
        )
    if cfg.scheduler:
        refuse_kept_plan(instantiate(cfg.scheduler), cfg.trainer.max_epochs)


def _same_command(cfg: DictConfig, before: Any) -> None:
    """Raise a `UsageError` if settings that affect training differ from those that made the run."""
    now, said = resolved(cfg), _said(cfg)
    # A metric chosen by the task is null in the command and named in the run's own configuration.
    chosen = ("task.monitor", "task.mode") if cfg.task.monitor is None else ()
    changed = [
        key
        for key in dict.fromkeys([*_settings(now), *_averages(before)])
        if key not in chosen
        and OmegaConf.select(before, key) != OmegaConf.select(now, key)
        and not _is_new(key, before, said)
    ]
    if changed:
        words = "; ".join(
            f"{key} was {printable(str(OmegaConf.select(before, key)))}, now {OmegaConf.select(now, key)}"
            for key in changed[:SHOWN]
        )
        raise UsageError(f"resume={cfg.resume}: the command differs from the one that made this run: {words}")


def _is_new(key: str, before: Any, said: list[str]) -> bool:
    """Whether a setting did not exist in the version that made the run and is not overridden now."""
    node, place, parts = before, "", key.split(".")
    while isinstance(node, DictConfig) and parts and parts[0] in node:
        place, node = f"{place}.{parts[0]}", node[parts[0]]
        parts = parts[1:]
    if not parts or not isinstance(node, DictConfig) or place.endswith(FILLED):
        return False
    return not any(key == word or key.startswith(f"{word}.") for word in said)


def _said(cfg: DictConfig) -> list[str]:
    """The keys that this command overrides individually or as a dictionary."""
    words = OverridesParser.create().parse_overrides(overrides(cfg) or [])
    return [
        word.key_or_group
        for word in words
        if "." in word.key_or_group or word.is_delete() or not isinstance(word.value(), str | list)
    ]


def _settings(cfg: DictConfig) -> list[str]:
    """Configuration keys that affect the weights; `trainer.max_epochs` may change, see `_more_epochs`."""
    groups = ("modality", "task", "backbone", "optimizer", "scheduler")
    free = ("data.num_workers", "data.samples_dir", "data.data_dir", "data.download")
    elsewhere = ("data.shards.cache_", "data.shards.storage")
    leaves = [leaf for group in groups for leaf in _leaves(cfg[group], group)]
    leaves += ["seed", "init_from", "freeze"]
    leaves += [f"trainer.{key}" for key in TRAINS if key in cfg.trainer]
    leaves += _averages(cfg)
    return [
        leaf for leaf in leaves if not leaf.endswith(free) and not any(part in leaf for part in elsewhere)
    ]


def _averages(cfg: DictConfig) -> list[str]:
    """The keys of callbacks that average weights."""
    nodes = {f"callbacks.{name}": node for name, node in (cfg.get("callbacks") or {}).items()}
    return [
        leaf
        for path, node in nodes.items()
        if isinstance(node, DictConfig) and str(node.get("_target_")).startswith(AVERAGES)
        for leaf in _leaves(node, path)
    ]


def _leaves(node: Any, path: str) -> list[str]:
    if isinstance(node, DictConfig):
        return [leaf for key in map(str, node) for leaf in _leaves(node[key], f"{path}.{key}")]
    return [path]


# -- the data --------------------------------------------------------------------------------------------------------


def same_data(cfg: DictConfig, data: DataModule | JointData, resumed: Resumed) -> None:
    """Raise a `UsageError` if the data differ from those that the run has been trained on so far."""
    data_info, record = data.info(), data.record()
    stored_info, stored_record = resumed.stored["facts"], resumed.stored.get("trained_on") or {}
    for name in data.by_task():
        if name:
            known, was = stored_info.get(name, {}), stored_record.get(name, {})
            changes = changed_data(known, data_info[name], was, record[name])
        else:
            changes = changed_data(stored_info, data_info, stored_record, record)
        if changes:
            of = f" of {name}" if name else ""
            raise UsageError(
                f"resume={cfg.resume}: the data{of} are not those the run was trained on: "
                f"{'; '.join(changes[:SHOWN])}"
            )


COUNTED = ("test_crops",)  # data info that depend on the test clips only; not compared


def changed_data(
    known: dict[str, Any], data_info: dict[str, Any], was: dict[str, Any], record: dict[str, Any]
) -> list[str]:
    """Describes the differences between two datasets.

    Args:
        known, data_info: data info of a checkpoint and of the current data (`DataModule.data_info`).
        was, record: records of their items (`DataModule.record`); those of earlier versions lack some keys.
    """
    changes = [
        _changed(key, known.get(key), data_info.get(key))
        for key in known  # a later version may have more keys
        if key not in COUNTED and known.get(key) != data_info.get(key)
    ]
    if not was:
        return changes
    if was.get("source", record["source"]) != record["source"]:
        changes.append(f"they were {_kind(was.get('source'))}, now {_kind(record['source'])}")
    for split, count in record["samples"].items():
        before = was.get("samples", {}).get(split, count)
        if before != count:
            changes.append(f"{split} had {before} samples, now {count}")
    if not changes and was.get("digest", record["digest"]) != record["digest"]:
        changes.append("as many samples as before, but others, or with other labels")
    return changes


def _changed(key: str, before: Any, now: Any) -> str:
    name = key.replace("_", " ")
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)):
        texts = [value for value in (*before, *now) if isinstance(value, str)]
        if texts:
            gone, new = ([str(v) for v in a if v not in b] for a, b in ((before, now), (now, before)))
            words = [f"{_few(gone)} gone"] * bool(gone) + [f"{_few(new)} new"] * bool(new)
            return f"{name}: {', '.join(words) or 'in another order'}"
        return f"{name} differ"
    return f"{name} was {_short(before)}, now {_short(now)}"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(printable(name) for name in names[:3])}{more}"


def _short(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= 60 else f"{text[:57]}…"


def _kind(source: Any) -> str:
    return "the embedded sample" if source == "sample" else "real data"
