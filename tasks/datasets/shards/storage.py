"""A local or remote folder, through fsspec; every failure is a one-sentence error."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tasks.datasets.errors import DataError
from tasks.disk import refusal, writing
from tasks.secrets import learn, mask

ATTEMPTS = 4
SMALL = 10**9  # bytes
PAUSE = 0.5  # seconds before the second attempt; doubled after each
FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)  # permanent: not retried

T = TypeVar("T")


class MissingFile(DataError):
    """A file that does not exist."""


class Storage:
    """A folder of files.

    Args:
        address: a path, or any URL that fsspec opens: ``https://…``, ``s3://bucket/…``, ``gs://…``, ``memory://…``.
        options: options of fsspec, e.g. ``{"anon": True}`` or ``{"endpoint_url": …}`` for s3.

    `folder` is the path of a local folder, else ``None``.

    Raises:
        DataError: unknown protocol, or its package is missing.
    """

    def __init__(self, address: str, options: Mapping[str, Any] | None = None) -> None:
        self.address = address.rstrip("/") if "://" in address else str(Path(address).expanduser())
        self.options = dict(options or {})
        learn({"storage": self.options, "address": address})
        from fsspec.implementations.local import LocalFileSystem

        files, base = self._open()
        self.folder = Path(base) if isinstance(files, LocalFileSystem) else None

    def __str__(self) -> str:
        return mask(self.address)

    def name(self, file: str) -> str:
        """The full address of a file."""
        return f"{self}/{file}"

    def read(self, file: str, most: int) -> bytes:
        """Read a whole file.

        Raises:
            DataError: it has more than ``most`` bytes, or is a pipe or a device.
        """
        with (
            writing(Path(tempfile.gettempdir()), "or choose another folder with TMPDIR=FOLDER"),
            tempfile.TemporaryDirectory() as scratch,
        ):
            draft = Path(scratch) / "file"
            self.download(file, draft, most)
            return draft.read_bytes()

    def read_range(self, file: str, start: int, size: int) -> bytes:
        """Read ``size`` bytes of a file at offset ``start``."""
        part = self._ask(file, lambda files, path: files.cat_file(path, start=start, end=start + size))
        if len(part) != size:
            raise DataError(
                f"{self.name(file)}: asked for {size:,} bytes, got {len(part):,}; the file is cut off, or its "
                "server cannot send parts of files: set task.data.shards.cache_dir=FOLDER"
            )
        return part

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Sizes in bytes; ``None`` if the server does not report it.

        Raises:
            DataError: a file does not exist.
        """
        files, base = self._open()
        try:
            return list(files.sizes([f"{base}/{name}" for name in names]))
        except Exception:  # query each file, to name the one that fails
            return [self._ask(name, lambda files, path: files.size(path)) for name in names]

    def download(self, file: str, to: Path, most: int) -> None:
        """Copy a file to this machine.

        Raises:
            DataError: it has more than ``most`` bytes, or is a pipe or a device.
        """
        too_much = DataError(
            f"{self.name(file)} sends more than the {most:,} bytes it was said to have at most"
        )
        if self.folder is not None:
            path = self.folder / file
            if path.exists() and not path.is_file():
                raise DataError(f"{path} is no regular file")
            if path.is_file() and path.stat().st_size > most:
                raise too_much

        def get(files: Any, path: str) -> None:
            files.get_file(path, str(to), callback=_at_most(most, too_much))

        with to.open("wb"):  # an error of the local disk is raised here, not as a server's failure
            pass
        self._ask(file, get)

    def upload(self, path: Path, file: str) -> None:
        """Copy a local file to this folder."""

        def put(files: Any, target: str) -> None:
            files.makedirs(files._parent(target), exist_ok=True)
            files.put_file(str(path), target)

        self._ask(file, put)

    def exists(self, file: str) -> bool:
        """Whether a small file exists; it is read completely, since only that is reliable over http."""
        try:
            self.read(file, SMALL)
        except MissingFile:
            return False
        return True

    def _open(self) -> tuple[Any, str]:
        """The file system and the path in it; opened on each call, since it must not be shared between processes."""
        from fsspec.core import url_to_fs

        try:
            files, base = url_to_fs(self.address, **self.options)
        except ImportError as error:
            raise DataError(f"{self}: {error} (pip install -e '.[shards]' brings http and s3)") from error
        except (ValueError, TypeError) as error:
            raise DataError(f"{self} cannot be opened ({_reason(error)})") from error
        return files, str(base).rstrip("/")

    def _ask(self, file: str, question: Callable[[Any, str], T]) -> T:
        pause = PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            files, base = self._open()
            try:
                return question(files, f"{base}/{file}")
            except DataError:
                raise
            except FINAL as error:
                raise MissingFile(f"{self.name(file)} is not there, or may not be read") from error
            except OSError as error:
                if refusal(error) or (error.errno is not None and self.folder is not None):
                    raise  # a local error, such as a full disk
                failed: Exception = error
            except Exception as error:  # every protocol's package has its own exceptions
                failed = error
            if attempt < ATTEMPTS:
                time.sleep(pause)
                pause *= 2
        raise DataError(
            f"{self.name(file)} cannot be read ({_reason(failed)}; {ATTEMPTS} attempts)"
        ) from failed


def _at_most(most: int, too_much: DataError) -> Any:
    """An fsspec callback that aborts a transfer of more than ``most`` bytes."""
    from fsspec.callbacks import Callback

    class AtMost(Callback):
        def call(self, *args: Any, **kwargs: Any) -> None:
            if max(self.value, self.size or 0) > most:
                raise too_much

    return AtMost()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return mask(lines[0])[:200].rstrip(" .") if lines else type(error).__name__
