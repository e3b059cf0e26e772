"""The columns of a point cloud that turn with its points; without PyTorch, since readers of files use it, too."""

from collections.abc import Sequence

NORMALS = ("nx", "ny", "nz")


def normal_places(columns: Sequence[str]) -> tuple[int, ...]:
    """Where nx, ny and nz stand among the 3 + F values of a point; empty without normals.

    Args:
        columns: names of the F columns after x, y, z.

    Raises:
        ValueError: some of the three are missing or repeated, so that they cannot be turned.
    """
    found = [name for name in columns if name in NORMALS]
    if not found:
        return ()
    if sorted(found) != sorted(NORMALS):
        raise ValueError(
            f"columns name {', '.join(found)} of the normals, which turn with the points: name each of nx, ny, nz "
            "once, or none"
        )
    return tuple(3 + list(columns).index(name) for name in NORMALS)
