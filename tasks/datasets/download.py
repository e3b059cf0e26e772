"""Downloading and unpacking, so that an interrupted or damaged download never looks like data."""

import errno
import hashlib
import http.client
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tasks.datasets.base import DataError
from tasks.datasets.names import inside

CHUNK = 1 << 20  # bytes
MOST_GB = 50.0
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # no fault of an archive


@dataclass(frozen=True)
class Source:
    """A file to download.

    Args:
        url: http, https or file.
        sha256: checksum in hexadecimal; `None` where the publisher's archive is not fixed, then only its
            length and its own integrity are checked.
        most_gb: most gigabytes (10^9 bytes) of the file, and of what it unpacks to.
    """

    url: str
    sha256: str | None = None
    most_gb: float = MOST_GB

    @property
    def most(self) -> int:
        """``most_gb`` in bytes."""
        return round(self.most_gb * 1e9)


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
        unpack(archive, unpacked, source.most)
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
            if expected is not None and not expected.isdecimal():
                raise DataError(f"{source.url} answered without a length that can be read; try again")
            too_much = DataError(f"{source.url} is larger than {source.most:,} bytes, the most it may have")
            if expected is not None and int(expected) > source.most:
                raise too_much
            while chunk := reply.read(CHUNK):
                if received + len(chunk) > source.most:
                    raise too_much
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
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise DataError(f"{source.url} stopped answering after {received:,} bytes; try again") from error
    finally:
        draft.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path, most: int = round(MOST_GB * 1e9)) -> None:
    """Unpack a tar or zip file into ``folder``, which is created.

    Only files and folders are: links and devices have no place in a data set, and are how archives escape their
    folder. No member may land outside, and all of them together hold at most ``most`` bytes, whatever is said of
    each; files with holes, which fill a disk out of nothing, are refused.
    """
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                members = [member for member in zipped.infolist() if not member.is_dir()]
                for member in members:
                    inside(member.filename)
                if sum(member.file_size for member in members) > most:
                    raise _too_large(archive, most)
                zipped.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tarred:
                _untar(tarred, archive, folder, most)
        else:
            raise DataError(f"{archive.name} is neither a tar nor a zip file")
    except DataError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # Whatever a decompressor comes across in a spoilt archive; only a full disk is not the archive's fault.
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise
        raise DataError(f"{archive.name} is damaged ({error})") from error


def _untar(tarred: tarfile.TarFile, archive: Path, folder: Path, most: int) -> None:
    left = most
    for member in tarred:
        path = inside(member.name)
        if not member.isfile():
            continue
        if member.issparse():
            raise DataError(
                f"{archive.name} holds {member.name[:80]!r}, a file with holes; it was not unpacked"
            )
        left -= member.size
        if left < 0 or member.size < 0:
            raise _too_large(archive, most)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        packed = tarred.extractfile(member)
        assert packed is not None  # a file has contents
        with packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, CHUNK)


def _too_large(archive: Path, most: int) -> DataError:
    return DataError(
        f"{archive.name} holds more than {most:,} bytes, the most it may have; it was not unpacked"
    )
