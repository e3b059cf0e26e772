"""On-disk cache of arrays computed from files, keyed by the file and the settings."""

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
    """Returns ``make()``, cached in ``folder`` as NPY; the key is the file (path, size, time) and ``settings``.

    Writes are atomic, so concurrent processes are safe. A cache that cannot be written is no error. Cached arrays are
    memory-mapped.
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
