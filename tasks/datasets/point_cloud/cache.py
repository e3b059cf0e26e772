"""What was made of a file, kept on disk under a key of the file and of how it was made."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tasks.datasets.array_cache import keep_array, read_array
from tasks.datasets.errors import ReadError

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
    kept = read_array(entry)
    if kept is None:
        kept = make()
        keep_array(entry, kept, folder)
    return kept
