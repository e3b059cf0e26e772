"""Local cache of remote shards, with a size limit."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from tasks.datasets.errors import DataError
from tasks.datasets.locks import locked
from tasks.datasets.shards.storage import Storage
from tasks.disk import WriteError, draft_of, writing

ELSEWHERE = "or choose another folder with task.data.shards.cache_dir=FOLDER"
AT_ONCE = 4  # concurrent background downloads
STALE = 3600.0  # seconds after which partial downloads of killed processes are removed


class ShardCache:
    """Cache of whole shards in a folder shared by all processes of this machine; each shard is downloaded once.

    Args:
        storage: source of the shards.
        folder: cache folder, one for each set of shards.
        limit: maximum size in bytes of the parent of ``folder``, over all sets; least recently used shards are removed.
    """

    def __init__(self, storage: Storage, folder: Path, limit: int) -> None:
        self.storage = storage
        self.folder = folder
        self.limit = limit

    def path(self, file: str, size: int) -> Path:
        """Local path of the shard ``file`` of ``size`` bytes, downloaded if missing.

        Raises:
            DataError: it cannot be downloaded completely.
            WriteError: the disk cannot be written.
        """
        path = self.folder / file
        if not path.is_file():
            with writing(path, ELSEWHERE):
                self.folder.mkdir(parents=True, exist_ok=True)
                with locked(self.folder / f".{file}.lock"):
                    if not path.is_file():  # another process may have been faster
                        self._fetch(path, size)
        return path

    def read(self, file: str, size: int, start: int, length: int) -> bytes:
        """Read ``length`` bytes at offset ``start`` of a shard of ``size`` bytes."""
        while True:
            path = self.path(file, size)
            try:
                with path.open("rb") as shard:
                    shard.seek(start)
                    content = shard.read(length)
                os.utime(path)
                return content
            except FileNotFoundError:  # another process has just evicted it
                continue

    def drop(self, file: str) -> None:
        """Remove a damaged copy."""
        (self.folder / file).unlink(missing_ok=True)

    def _fetch(self, path: Path, size: int) -> None:
        self._make_room(size)
        draft = draft_of(path)
        try:
            self.storage.download(path.name, draft, size)
            received = draft.stat().st_size
            if received != size:
                raise DataError(wrong_size(self.storage.name(path.name), received, size))
            os.replace(draft, path)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        now, kept = time.time(), []
        for file in self.folder.parent.glob("*/*"):
            with suppress(FileNotFoundError):
                about = file.stat()
                if file.name.endswith(".tar"):
                    kept.append((about.st_mtime, about.st_size, file))
                elif file.name.startswith(".") and now - about.st_mtime > STALE and about.st_size:
                    file.unlink()
        spare = self.limit - size - sum(bytes_ for _, bytes_, _ in kept)
        for _, bytes_, file in sorted(kept):
            if spare >= 0:
                break
            file.unlink(missing_ok=True)
            spare += bytes_


class Prefetch:
    """Downloads shards in the background before they are read."""

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        self.turns = threading.Semaphore(AT_ONCE)

    def __call__(self, file: str, size: int) -> None:
        if not (self.cache.folder / file).is_file():
            # A daemon: a run that ends does not wait for downloads.
            threading.Thread(target=self._fetch, args=(file, size), daemon=True).start()

    def _fetch(self, file: str, size: int) -> None:
        # Errors are ignored here: they recur, and are reported, when the shard is read.
        with self.turns, suppress(DataError, WriteError, OSError):
            self.cache.path(file, size)


def wrong_size(name: str, found: int, expected: int) -> str:
    """Error message for a shard of the wrong size."""
    return (
        f"the shard {name} has {found:,} bytes instead of {expected:,}: it is damaged or was copied in part"
    )
