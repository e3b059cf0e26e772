"""Meaning of the columns of a file: from its header, the given order, or the values.

Shapes: P points, C columns of a file, E columns besides x, y and z.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.point_columns import NORMALS
from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.point_cloud.formats.cloud import VALUES_PER_POINT, Cloud, Doubles, ReadOptions

XYZ = ("x", "y", "z")
COLORS = ("r", "g", "b")
SCALES = (1.0, 255.0, 65535.0)
LOOKED_AT = 4_000  # rows inspected to infer a column's meaning
ALIASES = {
    "r": ("red", "diffuse_red", "rf"),
    "g": ("green", "diffuse_green", "gf"),
    "b": ("blue", "diffuse_blue", "bf"),
    "a": ("alpha", "diffuse_alpha"),
    "nx": ("normal_x", "normalx", "n_x"),
    "ny": ("normal_y", "normaly", "n_y"),
    "nz": ("normal_z", "normalz", "n_z"),
    "x": ("coord_x", "x_coord", "x_coordinate", "easting", "east"),
    "y": ("coord_y", "y_coord", "y_coordinate", "northing", "north"),
    "z": ("coord_z", "z_coord", "z_coordinate", "elevation", "height", "altitude"),
    "intensity": ("i", "scalar_intensity", "reflectance"),
}
OURS = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
ORDER = "say task.data.file_columns=[x,y,z,…] with a name for every column"


def known_name(name: str) -> str:
    """Normalises a column name: ``Red`` -> ``r``, ``Scalar field`` -> ``scalar_field``."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    plain = re.sub(r"^([xyz])_(?:k|c|m)?m$|^([xyz])_ft$", r"\1\2", plain)  # with a unit
    return OURS.get(plain, plain)


def check_order(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Normalised column names for `ReadOptions.order`; raises `DataError` if x, y or z is missing."""
    if names is None:
        return None
    order = tuple(known_name(str(name)) for name in names)
    if not set(XYZ) <= set(order) or len(set(order)) < len(order):
        raise DataError(
            f"file_columns names every column once, x, y and z among them, such as [x,y,z,r,g,b], not {list(names)}"
        )
    return order


def from_named(arrays: Mapping[str, NDArray[Any]], **more: Any) -> Cloud:
    """A cloud from named arrays (P,).

    Raises:
        ReadError: x, y or z is missing, or a name is duplicated.
    """
    columns: dict[str, NDArray[Any]] = {}
    for name, values in arrays.items():
        known = known_name(name)
        if known in columns:
            raise ReadError(f"it has two columns {known} ({name} is one)")
        columns[known] = values
    absent = [axis for axis in XYZ if axis not in columns]
    if absent:
        found = ", ".join(str(name) for name in arrays) or "none"
        raise ReadError(f"it has no column {', '.join(absent)}; its columns are {found}: {ORDER}")
    points = np.column_stack([columns.pop(axis) for axis in XYZ])
    more.setdefault("color_scale", _scale_by_type([columns[name] for name in COLORS if name in columns]))
    return Cloud(points, columns, **more)


def from_table(table: NDArray[Any], options: ReadOptions, names: Sequence[str] | None = None) -> Cloud:
    """A cloud from a table of numbers (P, C).

    Args:
        table: the numbers.
        options: its `order` takes precedence over ``names``.
        names: column names in the file's header.

    Raises:
        ReadError: fewer than three columns, more than `VALUES_PER_POINT` without names, or a number that differs from
            that of the names.
    """
    if table.ndim == 3 and len(table) == 1:
        table = table[0]
    if table.ndim != 2 or (table.size and table.shape[1] < 3) or table.dtype.kind not in "fiu":
        raise ReadError(
            f"it holds {table.dtype} numbers of shape {table.shape}, not a row x, y, z … per point"
        )
    if options.order is not None:
        if len(options.order) != table.shape[1]:
            raise ReadError(
                f"it has {table.shape[1]} columns, task.data.file_columns names {len(options.order)}"
            )
        names = options.order
    if names is not None:
        return from_named(dict(zip(names, table.T, strict=True)))
    if table.shape[1] > VALUES_PER_POINT and table.shape[1] != 3 + len(options.wanted):
        raise ReadError(
            f"it has {table.shape[0]:,} rows of {table.shape[1]:,} columns without names, and a point has a row: if "
            f"its points are columns, transpose it, else {ORDER}"
        )
    scale = _scale_by_type([table]) if table.dtype.kind == "u" else None
    points = table[:, :3]
    return Cloud(points, name_columns(table[:, 3:], options.wanted), color_scale=scale)


def name_columns(extra_PE: NDArray[Any], wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Names for unnamed columns: the ones wanted, if the number matches; else normals and colours where the values are
    unambiguous. Other columns are dropped.
    """
    width = extra_PE.shape[1]
    if width and width == len(wanted) and not _contradicts(extra_PE, wanted):
        return dict(zip(wanted, extra_PE.T, strict=True))
    names: dict[str, NDArray[Any]] = {}
    for start in range(0, width - 2, 3):
        triple = extra_PE[:, start : start + 3]
        kind = kind_of(triple)
        sure = width in (3, 6) or is_unit(triple) or (width == 4 and _opaque(extra_PE[:, 3]))
        if kind is None or kind[0] in names or not sure:
            break
        names |= dict(zip(kind, triple.T, strict=True))
    return names


def kind_of(triple_P3: NDArray[Any]) -> tuple[str, ...] | None:
    """`NORMALS`, `COLORS` or ``None``: the meaning of three columns by their values."""
    values = _some_rows(triple_P3)
    if not len(values):
        return None
    if is_unit(values) or values.min() < 0:
        return NORMALS
    whole = (values == np.floor(values)).all()
    return COLORS if values.max() <= (SCALES[-1] if whole else SCALES[1]) else None


def is_unit(triple_P3: NDArray[Any]) -> bool:
    """Whether rows are unit vectors (some may be zero)."""
    lengths = np.linalg.norm(_some_rows(triple_P3), axis=1)
    return bool(((np.abs(lengths - 1) < 0.02) | (lengths == 0)).all() and (lengths > 0).any())


def color_scale(colors: Sequence[NDArray[Any]], known: float | None, stated: float | None) -> float:
    """The maximum colour value.

    Args:
        colors: colour columns.
        known: scale defined by the file's format.
        stated: scale given by the user, for other files.

    Raises:
        ReadError: values beyond it, or an ambiguous scale.
    """
    if known is not None:
        return known
    values = np.concatenate([np.asarray(color, np.float64).ravel() for color in colors])
    values = values[np.isfinite(values)]
    low, top = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if stated is not None:
        if low < 0 or top > stated:
            raise ReadError(
                f"its colours reach from {low:g} to {top:g}, color_scale={stated:g} says 0 to {stated:g}"
            )
        return stated
    if low < 0 or top > SCALES[-1]:
        raise ReadError(f"its columns r, g, b reach from {low:g} to {top:g}, which are no colours: {ORDER}")
    if top == 1 and (values == np.floor(values)).all():
        raise ReadError(
            "its colours are 0 and 1 only, which may be black and white or nearly black: say "
            "task.data.color_scale=1 or 255"
        )
    return next(scale for scale in SCALES if top <= scale)


def _scale_by_type(colors: Sequence[NDArray[Any]]) -> float | None:
    """255 for uint8; unknown for other types."""
    return 255.0 if colors and all(color.dtype == np.uint8 for color in colors) else None


def _contradicts(extra_PE: NDArray[Any], names: Sequence[str]) -> bool:
    """Whether values contradict the names: negative colours, normals that look like colours."""
    for kind in (NORMALS, COLORS):
        places = [names.index(name) for name in kind if name in names]
        if len(places) != 3:
            continue
        triple: Doubles = np.asarray(extra_PE[:, places], np.float64)
        by_value = kind_of(triple)
        if kind == NORMALS and by_value == COLORS and np.nanmax(triple, initial=0) > 1:
            return True
        if kind == COLORS and np.nanmin(triple, initial=0) < 0:
            return True
    return False


def _opaque(alpha_P: NDArray[Any]) -> bool:
    return bool(len(alpha_P)) and float(alpha_P[0]) in (1.0, 255.0) and bool((alpha_P == alpha_P[0]).all())


def _some_rows(table: NDArray[Any]) -> Doubles:
    rows = np.asarray(table[:: max(1, len(table) // LOOKED_AT)], np.float64)
    return rows[np.isfinite(rows).all(axis=1)]
