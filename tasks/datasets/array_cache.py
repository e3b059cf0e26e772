"""On-disk cache of arrays that are expensive to compute: decoded frames, sampled points."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.disk import WriteError, draft_of, writing

log = logging.getLogger("widefield")

_said: set[Path] = set()  # cache folders for which this process has logged a write error


def read_array(entry: Path) -> NDArray[Any] | None:
    """Returns a cached array, memory-mapped; None if it is missing or damaged."""
    try:
        return np.asarray(np.load(entry, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None


def keep_array(entry: Path, array: NDArray[Any], folder: Path) -> None:
    """Cache an array as NPY. Writes are atomic, so concurrent processes are safe.

    A cache that cannot be written is no error; a warning is logged once.

    Args:
        entry: the cache file.
        array: the array.
        folder: root folder of the cache.
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
