"""What was made of a file, kept on disk under a key of the file and of how it was made."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.base import ReadError

CACHE_VERSION = 2


def cached(
    path: Path, folder: Path, settings: dict[str, Any], make: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """``make()``, kept in ``folder`` as NPY under a key of the file (path, size, time) and ``settings``.

    Any number of processes may fill the cache at once: an entry appears in one step or not at all. A cache
    that cannot be written costs time, nothing else. The array is mapped into memory, not read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ReadError("there is no such file") from error
    about = [CACHE_VERSION, str(path.resolve()), stat.st_size, stat.st_mtime_ns, settings]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    entry = folder / key[:2] / f"{key}.npy"
    try:
        return np.asarray(np.load(entry, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        array = make()
    draft = entry.with_name(f".{key}-{uuid.uuid4().hex}.npy")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        np.save(draft, array, allow_pickle=False)
        os.replace(draft, entry)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
    return array
