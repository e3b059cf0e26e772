"""Safe unpacking of untrusted archives: no path traversal, bounded size, no partial results."""

import errno
import shutil
import tarfile
import zipfile
from pathlib import Path

from tasks.datasets.errors import DataError
from tasks.datasets.names import inside

CHUNK = 1 << 20  # bytes
MOST_GB = 50.0
MOST_MEMBERS = 1_000_000
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # not the archive's fault


def unpack(archive: Path, folder: Path, most: int = round(MOST_GB * 1e9)) -> None:
    """Unpack a tar or zip file into ``folder``, which is created.

    Only files and folders are unpacked: links and devices have no place in a data set and allow path traversal. No
    member may be outside the folder; the total size is at most ``most`` bytes and fits on the disk. Sparse files are
    refused.

    Raises:
        DataError: any of these, a damaged archive, or one of more than `MOST_MEMBERS` members.
    """
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                _unzip(zipped, archive, folder, most)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tarred:
                _untar(tarred, archive, folder, most)
        else:
            raise DataError(f"{archive.name} is neither a tar nor a zip file")
    except DataError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # A damaged archive may raise anything; only errors of the disk are not the archive's fault.
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise
        raise DataError(f"{archive.name} is damaged ({error})") from error


def need_room(folder: Path, needed: int, what: str) -> None:
    """Raise a `DataError` if the disk has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{what} needs {needed / 1e9:,.3g} GB, and {folder} has {free / 1e9:,.3g} GB free")


def _unzip(zipped: zipfile.ZipFile, archive: Path, folder: Path, most: int) -> None:
    members = [member for member in zipped.infolist() if not member.is_dir()]
    _few(len(members), archive)
    for member in members:
        inside(member.filename)
    size = sum(member.file_size for member in members)
    if size > most:
        raise _too_large(archive, most)
    need_room(folder, size, f"what {archive.name} holds")
    zipped.extractall(folder)


def _untar(tarred: tarfile.TarFile, archive: Path, folder: Path, most: int) -> None:
    left = most
    for number, member in enumerate(tarred, start=1):
        _few(number, archive)
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


def _few(members: int, archive: Path) -> None:
    if members > MOST_MEMBERS:
        raise DataError(
            f"{archive.name} holds more than {MOST_MEMBERS:,} members, the most it may; it was not unpacked"
        )


def _too_large(archive: Path, most: int) -> DataError:
    return DataError(
        f"{archive.name} holds more than {most:,} bytes, the most it may have; it was not unpacked"
    )
