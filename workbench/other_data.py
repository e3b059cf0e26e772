"""Data for testing a trained model: its own, or other data with the model's statistics and classes."""

import logging
from typing import Any

from omegaconf import DictConfig

from tasks.datasets.base import DataModule
from tasks.datasets.errors import DataError
from workbench.build import build_data, ready
from workbench.composition import built_from
from workbench.console import printable
from workbench.errors import UsageError
from workbench.instantiation import instantiate
from workbench.overrides import was_said
from workbench.restore import Restored
from workbench.resume import changed_data

log = logging.getLogger("widefield")

SPLITS = ("auto", "test", "all")


def data_to_test(cfg: DictConfig, restored: Restored[Any]) -> DataModule:
    """The data to test a checkpoint on, set up: those in `cfg.data_dir`, or the embedded sample.

    `action.split` selects the items: `test`, the test split as in training; `all`, every labelled item (or the test
    split that the data themselves define); `auto`, `test` for the data that the model was trained on and `all` for
    others.

    Raises:
        UsageError, DataError: the model cannot be tested on these data, e.g. they have classes unknown to it.
    """
    asked = str(cfg.action.split)
    if asked not in SPLITS:
        raise UsageError(f"action.split={asked} is none of {', '.join(SPLITS)}")
    with built_from(restored.checkpoint):
        data: DataModule = instantiate(restored.cfg.task.data)
    if data.source == "sample" and restored.trained_on.get("source") == "full":
        raise UsageError(
            f"{restored.checkpoint} was trained on real data, and without data_dir= the embedded sample is read: "
            "say data_dir=FOLDER, where they lie, or that of other data"
        )
    if data.source == "sample" and asked != "all":
        return _trained_on(restored)
    data.prepare_data()
    same = _is_that_of(data, restored)
    if asked == "test" or (asked == "auto" and same):
        return _test_split(restored, same)
    if not was_said(cfg, "task.data.limit="):
        data.limit = None  # the limit of the training
    whole = data.read_whole(restored.task.data_info)
    if whole is None:
        if asked == "all":
            raise UsageError(f"action.split=all: {data.name} has a test split of its own, leave it out")
        return _test_split(restored, same)
    data.take_whole(whole, restored.task.data_info)
    log.info(
        "%s is other data than the model was trained on: %s, with the model's own statistics and classes%s",
        *(printable(data.place), printable(whole.said)),
        "" if asked == "all" else " (action.split=test: only a test split as for training)",
    )
    return ready(data, {"": restored.cfg})


def _is_that_of(data: DataModule, restored: Restored[Any]) -> bool:
    """Whether the model was trained on these data, wherever they are now, or on this very folder."""
    record = restored.trained_on
    if record.get("place") == data.place_digest():
        return True
    try:
        data.setup()
    except DataError:  # e.g. too few samples for training; they may suffice when read as a whole
        return False
    same = not changed_data(restored.task.data_info, data.info(), {}, {})
    return same and (not record or record.get("digest") == data.digest())  # no record: an earlier version


def _trained_on(restored: Restored[Any]) -> DataModule:
    data = build_data(restored.cfg)
    same_facts(restored, data.info())
    return data


def _test_split(restored: Restored[Any], same: bool) -> DataModule:
    """The test split as in training, with the model's classes and statistics."""
    data = build_data(restored.cfg)
    data_info, known, record = data.info(), restored.task.data_info, restored.trained_on
    changes = changed_data(known, data_info, record, data.record())
    if not changes:
        return data
    data.adopt(known)
    log.warning(
        "%s %s (%s): its test split is tested with the model's own statistics and classes",
        printable(data.place),
        "has changed since the model was trained on it"
        if same
        else "is other data than the model was trained on",
        "; ".join(changes[:3]),
    )
    return data


def same_facts(restored: Restored[Any], data_info: dict[str, Any]) -> None:
    """Raise a `UsageError` if the data differ from those that a checkpoint was trained on."""
    changes = changed_data(restored.task.data_info, data_info, {}, {})
    if changes:
        raise UsageError(
            f"{restored.checkpoint} was trained on other data than this: {'; '.join(changes[:3])}"
        )
