"""Checkpoint files: found, written whole or not at all, read without running code."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from omegaconf import DictConfig

from backbone import CheckpointError, DamagedCheckpoint, read_safely
from workbench.composition import check_content
from workbench.errors import UsageError
from workbench.files import write_atomically
from workbench.hub import DESCRIPTION, SCHEME, fetch, read_description
from workbench.provenance import model_read
from workbench.quoting import typed
from workbench.stopping import STOP

log = logging.getLogger("widefield")

TRAINING_STATE = ("optimizer_states", "loops", "callbacks")  # what the trainer goes on with


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, and are read without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        def write(draft: Path) -> None:
            # Opened here, for a name is opened by C++, which hides why a write failed.
            with draft.open("wb") as file:
                torch.save(checkpoint, file)

        with STOP.writing():
            write_atomically(Path(path), write)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        content: dict[str, Any] = read_safely(Path(path), map_location)
        return content


def find_checkpoint(name: str) -> tuple[Path, str | None]:
    """A checkpoint's file, and the part of a joint run that is meant.

    Args:
        name: a file, a run's folder, whose best checkpoint is taken, or `hf://OWNER/NAME`, a repository of a hub;
            `NAME@PART` means one part of a joint run.
    """
    if name.startswith(SCHEME):
        address, _, part = name.partition("@")
        return fetch(address), part or None
    whole = Path(name).expanduser()
    if "@" in name and not whole.exists():
        before, _, part = name.rpartition("@")
        return find_checkpoint(before)[0], part
    if not whole.is_dir():
        return whole, None
    for file in ("best.ckpt", "last.ckpt"):
        for place in (whole / "checkpoints" / file, whole / file):
            if place.is_file():
                return place, None
    if (whole / DESCRIPTION).is_file():  # a model as it is published
        return whole / DESCRIPTION, None
    raise UsageError(f"there is no checkpoint in the folder {name}")


def read_checkpoint(path: Path, cfg: DictConfig) -> dict[str, Any]:
    """Read one of our checkpoints; the one way to what such a file says.

    Args:
        path: the file.
        cfg: this command's composition: the classes it names may be named by the file too.

    Raises:
        CheckpointError: damaged, not ours, or saying anything but what a model is (`workbench.composition`).
    """
    if not path.is_file():
        raise CheckpointError(f"ckpt: there is no file {path}")
    content = read_description(path) if path.name == DESCRIPTION else read_safely(path)
    if not isinstance(content, dict) or "widefield" not in content:
        raise CheckpointError(
            f"{path} is no checkpoint of this workbench; official weights are given as "
            f"{typed('backbone.pretrained', path)}"
        )
    checked = check_content(content, path, cfg)
    model_read(checked["widefield"]["drawn"])
    return checked


def point_to_resume(folder: Path, cfg: DictConfig) -> Path:
    """The checkpoint in a run's folder to go on from: the last one, or where that is damaged the best one.

    Raises:
        CheckpointError: both are damaged, or one is refused.
    """
    last, best = (folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    if (
        last.is_dir()
    ):  # in shards, by another program or an earlier version: its reader would run what is in it
        raise CheckpointError(f"resume: {last} is a folder, and a checkpoint that is read here is one file")
    try:
        _check_resumable(last, cfg)
        return last
    except DamagedCheckpoint as damage:
        if not best.is_file():
            raise CheckpointError(
                f"resume: {damage}; there is no best.ckpt beside it to go on from"
            ) from damage
        try:
            epoch = _check_resumable(best, cfg)
        except DamagedCheckpoint as other:
            raise CheckpointError(f"resume: {damage}; and {other}: start a new run") from other
        log.warning("resume: %s; going on from %s, at the end of epoch %d", damage, best, epoch)
        return best


def _check_resumable(path: Path, cfg: DictConfig) -> int:
    """Raise for a checkpoint that cannot be gone on from; returns its epoch."""
    content = read_checkpoint(path, cfg)
    lacking = [key for key in TRAINING_STATE if not content.get(key)]
    if lacking:
        raise CheckpointError(f"{path} cannot be resumed: it lacks {', '.join(lacking)}")
    # The trainer deletes what a restored callback calls its last file; on the disk only below its own folder.
    if _names_address(content["callbacks"]):
        raise CheckpointError(f"{path} is refused: the state of its callbacks names an address")
    return int(content["epoch"])


def _names_address(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_names_address, value.keys())) or any(map(_names_address, value.values()))
    if isinstance(value, (list, tuple, set)):
        return any(map(_names_address, value))
    return isinstance(value, str) and "://" in value
