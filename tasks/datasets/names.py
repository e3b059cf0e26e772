"""Validates file names from untrusted sources (an index, an archive, a server)."""

from pathlib import PurePosixPath

from tasks.datasets.errors import DataError

LONGEST = 255  # bytes, the limit of common file systems


def plain_name(name: object) -> str:
    r"""Returns the name if it is a plain file name without folders.

    Raises:
        DataError: it is empty, hidden, too long, or holds a separator, a drive or a control character.

    >>> plain_name("train-000000.tar")
    'train-000000.tar'
    >>> plain_name("../train.tar")
    Traceback (most recent call last):
    tasks.datasets.errors.DataError: '../train.tar' is no plain name of a file
    """
    fine = (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= LONGEST
        and not name.startswith(".")
        and not any(mark in name for mark in "/\\:")
        and name.isprintable()
    )
    if not fine:
        raise DataError(f"{str(name)[:80]!r} is no plain name of a file")
    return str(name)


def inside(name: str) -> PurePosixPath:
    """The relative path of an archive member, which stays inside the folder that it is unpacked into.

    Raises:
        DataError: it is absolute, names a drive, leads out of its folder or holds a control character.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if (
        path.is_absolute()
        or ".." in path.parts
        or ":" in "".join(path.parts[:1])
        or any(ord(mark) < 32 for mark in name)
    ):
        raise DataError(
            f"the archive holds {name[:80]!r}, which would land outside its folder; it was not unpacked"
        )
    return path
