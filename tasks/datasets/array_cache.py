"""Arrays kept beside the data, so that they are made once: decoded frames, sampled points."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.disk import WriteError, draft_of, writing

log = logging.getLogger("widefield")

_said: set[Path] = set()  # folders whose refusal this process has told


def read_array(entry: Path) -> NDArray[Any] | None:
    """A kept array, mapped into memory; None: there is none, or it is damaged."""
    try:
        return np.asarray(np.load(entry, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None


def keep_array(entry: Path, array: NDArray[Any], folder: Path) -> None:
    """Keep an array as NPY; any number of processes may do so at once: an entry appears in one step or not at all.

    A cache that cannot be written costs time, nothing else; it is said once.

    Args:
        entry: the file.
        array: what to keep.
        folder: of the whole cache.
    """
    draft = draft_of(entry)
    try:
        with writing(entry, "or keep no cache there; going on without it"):
            entry.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            os.replace(draft, entry)
    except (OSError, WriteError) as error:
        if folder not in _said:
            _said.add(folder)
            log.warning("cache: %s", error)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
