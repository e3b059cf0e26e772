"""Names that come from elsewhere (an index, an archive, a server) and become files of this machine, checked once."""

from pathlib import PurePosixPath

from tasks.datasets.errors import DataError

LONGEST = 255  # bytes, what common file systems allow


def plain_name(name: object) -> str:
    r"""The name, if it is that of a file directly in a folder.

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
    """The path of a member of an archive, which stays below the folder that it is unpacked into.

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
