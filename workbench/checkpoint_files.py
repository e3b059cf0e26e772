"""Locates, writes (atomically) and reads checkpoint files; reading executes no code from a file."""

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

TRAINING_STATE = ("optimizer_states", "loops", "callbacks")  # what the trainer needs to resume


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoint I/O with atomic writes; reading executes no code from a file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        def write(draft: Path) -> None:
            # Given a path, `torch.save` opens the file in C++, which hides why a write failed.
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
    """Resolve a checkpoint name to its file and, for a joint run, the selected member.

    Args:
        name: a file, a run folder (its `best.ckpt`, else `last.ckpt`), or `hf://OWNER/NAME`, a Hugging Face Hub
            repository; `NAME@PART` selects one member of a joint run.
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
    if (whole / DESCRIPTION).is_file():  # a published model
        return whole / DESCRIPTION, None
    raise UsageError(f"there is no checkpoint in the folder {name}")


def read_checkpoint(path: Path, cfg: DictConfig) -> dict[str, Any]:
    """Read and validate a checkpoint of this project; every use of its content goes through here.

    Args:
        path: the file.
        cfg: this command's composition; classes that it names are accepted in the file, too.

    Raises:
        CheckpointError: damaged, not of this project, or not a valid model description (`workbench.composition`).
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
    """The checkpoint to resume a run from: `last.ckpt`, or `best.ckpt` if the last one is damaged.

    Raises:
        CheckpointError: both are damaged, or one is refused.
    """
    last, best = (folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    if (
        last.is_dir()
    ):  # sharded, by another program or an earlier version: reading it would execute its pickles
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
    """Raise if a checkpoint cannot be resumed; returns its epoch."""
    content = read_checkpoint(path, cfg)
    lacking = [key for key in TRAINING_STATE if not content.get(key)]
    if lacking:
        raise CheckpointError(f"{path} cannot be resumed: it lacks {', '.join(lacking)}")
    # The trainer deletes the last file named in a callback's state; on disk only below the callback's own folder.
    if _names_address(content["callbacks"]):
        raise CheckpointError(f"{path} is refused: the state of its callbacks names an address")
    return int(content["epoch"])


def _names_address(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_names_address, value.keys())) or any(map(_names_address, value.values()))
    if isinstance(value, (list, tuple, set)):
        return any(map(_names_address, value))
    return isinstance(value, str) and "://" in value
