"""Archives, downloaded and unpacked in one go."""

import shutil
import tempfile
from pathlib import Path

from tasks.datasets.download import TIMEOUT, Source, download
from tasks.datasets.unpack import unpack

SCRATCH = ".unpack-"


def download_and_unpack(source: Source, folder: Path, timeout: float = TIMEOUT) -> None:
    """Download a ``.tar``, ``.tar.gz`` or ``.zip`` and unpack it into ``folder``, all or nothing.

    The archive lies in ``folder`` while it is needed, or beside it where there is no such folder yet; one that
    somebody has put there is taken, and stays. Files that are in ``folder`` already are kept as they are.

    Raises:
        DataError: no connection, a cut or altered file, no such archive, or a member that would land elsewhere.
    """
    home = folder if folder.is_dir() else folder.parent
    home.mkdir(parents=True, exist_ok=True)
    archive = home / source.file
    theirs = archive.is_file()
    download(source, archive, timeout)
    for left in home.glob(f"{SCRATCH}*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    # In the same folder: the last step is then a rename on one file system.
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
