"""Downloading and unpacking, so that an interrupted or damaged download never looks like data."""

import hashlib
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.datasets.base import DataError

CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Source:
    """A file to download.

    Args:
        url: http, https or file.
        sha256: checksum in hexadecimal; `None` where the publisher's archive is not fixed, then only its
            length and its own integrity are checked.
    """

    url: str
    sha256: str | None = None


def download_and_unpack(source: Source, folder: Path, timeout: float = 60.0) -> None:
    """Download a ``.tar``, ``.tar.gz`` or ``.zip`` and unpack it into ``folder``, all or nothing.

    Raises:
        DataError: no connection, a cut or altered file, no such archive, or a member that would land
            elsewhere.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: the last step is then a rename on one file system.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
        archive = Path(scratch) / "archive"
        unpacked = Path(scratch) / "unpacked"
        download(source, archive, timeout)
        unpack(archive, unpacked)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if not folder.exists():
            unpacked.rename(folder)
            return
        for member in unpacked.iterdir():
            if not (folder / member.name).exists():
                member.rename(folder / member.name)


def download(source: Source, path: Path, timeout: float = 60.0) -> None:
    """Download to ``path``; the file appears only when it is whole and its checksum is right."""
    draft = path.with_name(f"{path.name}.part")
    digest = hashlib.sha256()
    received = 0
    try:
        with urllib.request.urlopen(source.url, timeout=timeout) as reply, draft.open("wb") as file:
            expected = reply.headers.get("Content-Length")
            while chunk := reply.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
        if expected is not None and received != int(expected):
            raise DataError(
                f"{source.url} broke off after {received:,} of {int(expected):,} bytes; try again"
            )
        if source.sha256 is not None and digest.hexdigest() != source.sha256:
            raise DataError(f"{source.url} has checksum {digest.hexdigest()}, not {source.sha256}; try again")
        draft.replace(path)
    except urllib.error.HTTPError as error:
        raise DataError(f"{source.url} answered {error.code} ({error.reason})") from error
    except urllib.error.URLError as error:
        raise DataError(f"{source.url} cannot be reached ({error.reason})") from error
    except (TimeoutError, ConnectionError) as error:
        raise DataError(f"{source.url} stopped answering after {received:,} bytes; try again") from error
    finally:
        draft.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip file into ``folder``, which is created; no member may land outside it."""
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                for name in zipped.namelist():
                    _refuse_outside(name)
                zipped.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tarred:
                for member in tarred:
                    _refuse_outside(member.name)
                    # Links and devices have no place in a data set, and are how archives escape their folder.
                    if member.isfile():
                        target = folder / member.name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        packed = tarred.extractfile(member)
                        assert packed is not None  # a file has contents
                        with packed, target.open("wb") as file:
                            shutil.copyfileobj(packed, file, CHUNK)
        else:
            raise DataError(f"{archive.name} is neither a tar nor a zip file")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:  # a full disk is not a bad archive
            raise
        raise DataError(f"{archive.name} is damaged ({error})") from error
    except DataError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _refuse_outside(name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0:1]:
        raise DataError(
            f"the archive holds {name!r}, which would land outside its folder; it was not unpacked"
        )
