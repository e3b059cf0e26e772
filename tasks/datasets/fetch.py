"""Downloads and unpacks archives."""

import shutil
import tempfile
from pathlib import Path

from tasks.datasets.download import TIMEOUT, Source, download
from tasks.datasets.unpack import unpack

SCRATCH = ".unpack-"


def download_and_unpack(source: Source, folder: Path, timeout: float = TIMEOUT) -> None:
    """Download a ``.tar``, ``.tar.gz`` or ``.zip`` and unpack it into ``folder``, completely or not at all.

    The archive is stored in ``folder``, or beside it if the folder does not exist yet, and deleted afterwards; an
    archive that was already there is used and kept. Existing files in ``folder`` are not overwritten.

    Raises:
        DataError: no connection, an incomplete or altered file, no archive, or a member outside the folder.
    """
    home = folder if folder.is_dir() else folder.parent
    home.mkdir(parents=True, exist_ok=True)
    archive = home / source.file
    theirs = archive.is_file()
    download(source, archive, timeout)
    for left in home.glob(f"{SCRATCH}*"):  # left by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    # In the same folder, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=home, prefix=SCRATCH) as scratch:
        unpacked = Path(scratch) / "unpacked"
        try:
            unpack(archive, unpacked, source.most)
        finally:
            if not theirs:
                archive.unlink()
        if not folder.exists():
            unpacked.rename(folder)
            return
        for member in unpacked.iterdir():
            if not (folder / member.name).exists():
                member.rename(folder / member.name)
