"""Inspects a few files before a run, and reports what is read from them and how."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.items import spread
from tasks.datasets.point_cloud.formats.cloud import Cloud
from tasks.datasets.point_cloud.formats.columns import COLORS, color_scale

FILES = 8  # files inspected to infer the colour scale
SCALE_NAMES = {1.0: "0 to 1", 255.0: "8 bits", 65535.0: "16 bits"}


class Source(Protocol):
    """Interface of the reader of the files."""

    columns: tuple[str, ...]
    color_scale: float | None
    y_up: bool

    def read_cloud(self, path: Path) -> Cloud: ...


@dataclass
class Look:
    """Result: notes for the user, and the colour scale."""

    notes: list[str] = field(default_factory=list)
    color_scale: float | None = None


def look_at(paths: Sequence[Path], source: Source) -> Look:
    """Read one file of each format, and a few more if a colour scale must be inferred.

    Raises:
        DataError: the files have different colour scales.
    """
    look = Look(color_scale=source.color_scale)
    first = {path.suffix.lower(): path for path in reversed(paths)}
    wants_colors = bool(set(COLORS) & set(source.columns))
    more = spread(paths, FILES) if wants_colors and source.color_scale is None else ()
    scales: dict[float, Path] = {}
    for path in dict.fromkeys([*sorted(first.values()), *more]):
        try:
            cloud = source.read_cloud(path)
            scale = scale_of(cloud, source) if wants_colors else None
        except ReadError:  # counted and reported when it is loaded
            continue
        if scale is not None and cloud.color_scale is None:
            scales.setdefault(scale, path)
        if path in first.values():
            look.notes.append(f"{path.name}: {described(cloud, scale)}")
    if len(scales) > 1:
        found = " and ".join(f"{named(scale)} in {path.name}" for scale, path in sorted(scales.items()))
        raise DataError(f"colours seem to be of {found}: say which, task.data.color_scale=1, 255 or 65535")
    if scales and look.color_scale is None:
        look.color_scale = next(iter(scales))
    if look.notes:
        other = "z" if source.y_up else "y"
        look.notes.append(f"{'y' if source.y_up else 'z'} is up in the files (else task.data.up={other})")
    return look


def described(cloud: Cloud, scale: float | None) -> str:
    """Describes the content of a cloud, and how it was read."""
    kind = (
        f"a mesh of {len(cloud.triangles):,} triangles"
        if cloud.triangles is not None
        else f"{len(cloud.points):,} points"
    )
    columns = [*cloud.columns, *(name for name in cloud.face_columns if name not in cloud.columns)]
    parts = [f"{kind}, {' '.join(['x y z', *columns])}"]
    if scale is not None:
        parts.append(f"colours of {named(scale)}")
    if cloud.dropped:
        parts.append(f"{cloud.dropped:,} points without finite coordinates left out")
    if cloud.origin.any():
        parts.append("far from the origin, moved to its own centre")
    return "; ".join([*parts, *cloud.remarks])


def named(scale: float) -> str:
    """The name of a colour scale."""
    return SCALE_NAMES.get(scale, f"0 to {scale:g}")


def scale_of(cloud: Cloud, source: Source) -> float | None:
    """The colour scale of a cloud; ``None`` without colours. Raises `ReadError`."""
    known = cloud.face_columns | cloud.columns
    colors = [known[name] for name in COLORS if name in known]
    return color_scale(colors, cloud.color_scale, source.color_scale) if colors else None
