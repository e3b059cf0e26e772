"""PLY: points or meshes, text or binary, with any elements and properties.

The header is checked against the file size before any allocation.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import (
    Cloud,
    Indices,
    ReadOptions,
    check_count,
    check_size,
    fans,
    mesh,
)
from tasks.datasets.point_cloud.formats.columns import COLORS, from_named, known_name
from tasks.datasets.point_cloud.formats.numbers import Lines, polygons, table

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8", "long": "i8", "int64": "i8", "ulong": "u8", "uint64": "u8",
}  # fmt: skip
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
CORNERS = ("vertex_indices", "vertex_index")
LONGEST_HEADER = 1 << 20  # bytes
LONGEST_LIST = 1 << 16
STRUCT = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d", "i8": "q",
          "u8": "Q"}  # fmt: skip


@dataclass
class Property:
    """A scalar property of an element, or a list property with the type of its length."""

    name: str
    kind: str
    length: str | None = None


@dataclass
class Element:
    """An element: a number of records with the same properties."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    @property
    def is_flat(self) -> bool:
        return not any(part.length for part in self.properties)

    @property
    def least(self) -> int:
        """Minimum bytes of a binary record."""
        return sum(int((part.length or part.kind)[1:]) for part in self.properties)


@dataclass
class Faces:
    """Triangles (T, 3), the face of each, (T,), and the colours of all faces, name -> (F,)."""

    triangles: Indices
    owner: Indices
    colors: dict[str, NDArray[Any]]


def read_ply(path: Path, options: ReadOptions) -> Cloud:
    with path.open("rb") as file:
        head = file.read(LONGEST_HEADER)
        form, elements, start = _header(head)
        for element in elements:
            check_count(element.count, options if element.name == "vertex" else _more(options), element.name)
        file.seek(start)
        if form == "ascii":
            check_size(path.stat().st_size, options)
            parts = _from_text(file.read(), elements)
        else:
            parts = _from_bytes(file.read(), elements, ORDERS[form])
    vertices = parts.get("vertex")
    if not isinstance(vertices, dict) or not vertices:
        raise ReadError("it holds no points: its header announces no vertices")
    cloud = from_named(vertices)
    faces = parts.get("face")
    if not isinstance(faces, Faces) or not len(faces.triangles):
        return cloud
    colors = {name: values[faces.owner] for name, values in faces.colors.items()}
    return mesh(
        cloud.points,
        faces.triangles,
        columns=cloud.columns,
        face_columns=colors,
        color_scale=_scale([*cloud.columns.items(), *colors.items()]),
    )


def _more(options: ReadOptions) -> ReadOptions:
    return ReadOptions(max_points=4 * options.max_points)


def _scale(columns: list[tuple[str, NDArray[Any]]]) -> float | None:
    colors = [values for name, values in columns if name in COLORS]
    return 255.0 if colors and all(values.dtype == np.uint8 for values in colors) else None


def _header(head: bytes) -> tuple[str, list[Element], int]:
    """Format, elements, and the offset of the data."""
    if head[:3] != b"ply" or head[3:4] not in (b"\n", b"\r", b" "):
        raise ReadError("it holds no points: it does not begin with the line ply")
    place, form, elements = 0, "", list[Element]()
    while True:
        end = head.find(b"\n", place)
        if end < 0:
            raise ReadError("it holds no points: its header has no end_header")
        words = head[place:end].decode("ascii", errors="replace").split()
        place = end + 1
        if words[:1] == ["end_header"]:
            break
        try:
            form = _header_line(words, elements) or form
        except (IndexError, KeyError, ValueError) as error:
            line = " ".join(words)[:60]
            raise ReadError(f"it cannot be read as a point cloud (its header holds {line!r})") from error
    if form != "ascii" and form not in ORDERS:
        raise ReadError(f"it cannot be read as a point cloud (its format is {form[:40]!r})")
    return form, elements, place


def _header_line(words: list[str], elements: list[Element]) -> str | None:
    """Parse a header line into `elements`; returns the file format if the line defines it."""
    if words[:1] == ["format"]:
        return words[1]
    if words[:1] == ["element"]:
        elements.append(Element(words[1], int(words[2])))
    elif words[:2] == ["property", "list"]:
        elements[-1].properties.append(Property(words[4], TYPES[words[3]], TYPES[words[2]]))
        if TYPES[words[2]][0] == "f":
            raise ValueError("a length is a whole number")
    elif words[:1] == ["property"]:
        elements[-1].properties.append(Property(words[2], TYPES[words[1]]))
    return None


# -- text -----------------------------------------------------------------------------------------------


def _from_text(text: bytes, elements: list[Element]) -> dict[str, Any]:
    lines = Lines(text)
    place, parts = 0, dict[str, Any]()
    for element in elements:
        own = lines[place : place + element.count]
        if len(own) < element.count:
            raise ReadError(
                f"it breaks off: {element.count:,} {element.name} lines are announced, {len(own):,} are there"
            )
        place += element.count
        if element.name == "vertex":
            parts["vertex"] = _text_vertices(element, own)
        elif element.name == "face":
            parts["face"] = _text_faces(element, own)
    return parts


def _text_vertices(element: Element, lines: Sequence[str]) -> dict[str, NDArray[Any]]:
    if not element.is_flat:
        raise ReadError("it cannot be read as a point cloud (its vertices have lists)")
    rows = table(lines, "vertex")
    if lines and rows.shape[1] != len(element.properties):
        raise ReadError(
            f"it cannot be read as a point cloud (a vertex has {rows.shape[1]} values, its header names "
            f"{len(element.properties)})"
        )
    typed = zip(element.properties, rows.T, strict=False)
    return {part.name: _as_type(values, part.kind) for part, values in typed}


def _as_type(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """Casts numbers to the type of their column; raises `ReadError` if one is out of range."""
    if kind[0] == "f":
        return values
    limits = np.iinfo(kind)
    if len(values) and not (limits.min <= values.min() <= values.max() <= limits.max):
        raise ReadError(
            f"it cannot be read as a point cloud (values from {values.min():g} to {values.max():g} where the "
            f"header announces {limits.min} to {limits.max})"
        )
    return values.astype(kind)


def _text_faces(element: Element, lines: Sequence[str]) -> Faces | None:
    names = [part.name for part in element.properties]
    if not names or names[0] not in CORNERS or any(part.length for part in element.properties[1:]):
        corners = next((name for name in names if name in CORNERS), None)
        if corners is None:
            return None
        lines = [_own_list(element, corners, line) for line in lines]
        names = [corners]
    triangles, owner, behind = polygons(lines)
    colors: dict[str, NDArray[Any]] = {}
    if behind is not None:
        kinds = {part.name: part.kind for part in element.properties}
        found = {known_name(name): _as_type(values, kinds[name]) for name, values in zip(names[1:], behind.T)}  # noqa: B905
        colors = {name: found[name] for name in COLORS if set(COLORS) <= set(found)}
    return Faces(triangles, owner, colors)


def _own_list(element: Element, wanted: str, line: str) -> str:
    """The words of one list property in a line with several."""
    words, place = line.split(), 0
    for part in element.properties:
        try:
            size = 1 + int(words[place]) if part.length else 1
        except (IndexError, ValueError) as error:
            raise ReadError(f"it breaks off in the face {line[:40]!r}") from error
        if part.name == wanted:
            return " ".join(words[place : place + size])
        place += size
    return ""


# -- binary ---------------------------------------------------------------------------------------------


def _from_bytes(data: bytes, elements: list[Element], order: str) -> dict[str, Any]:
    place, parts = 0, dict[str, Any]()
    for element in elements:
        if element.count * element.least > len(data) - place:
            raise ReadError(
                f"it breaks off: {element.count:,} {element.name} records are announced, more than "
                f"{len(data) - place:,} bytes hold"
            )
        groups, place = _records(data, place, element, order)
        if element.name == "vertex":
            if not element.is_flat:
                raise ReadError("it cannot be read as a point cloud (its vertices have lists)")
            rows = groups[0][1]
            parts["vertex"] = {name: rows[name] for name in rows.dtype.names or ()}
        elif element.name == "face":
            parts["face"] = _binary_faces(element, groups)
    return parts


def _records(
    data: bytes, place: int, element: Element, order: str
) -> tuple[list[tuple[Indices, NDArray[Any]]], int]:
    """The records of an element, grouped by layout, with their indices, and the end offset."""
    numbers = np.arange(element.count)
    if element.is_flat or not element.count:
        kind = _layout(element, (), order)
        rows = np.frombuffer(data, kind, element.count if element.properties else 0, place)
        return [(numbers, rows)], place + element.count * kind.itemsize
    sizes = _sizes_at(data, place, element, order)
    kind = _layout(element, sizes, order)
    if element.count * kind.itemsize <= len(data) - place:
        rows = np.frombuffer(data, kind, element.count, place)
        lengths = [name for name in kind.names or () if name.startswith("#")]
        if all((rows[name] == size).all() for name, size in zip(lengths, sizes, strict=True)):
            return [(numbers, rows)], place + element.count * kind.itemsize
    return _walk(data, place, element, order)


def _walk(
    data: bytes, place: int, element: Element, order: str
) -> tuple[list[tuple[Indices, NDArray[Any]]], int]:
    """`_records` for lists of different lengths."""
    if sum(part.length is not None for part in element.properties) == 1:
        return _walk_one_list(data, place, element, order)
    layouts: dict[tuple[int, ...], tuple[np.dtype[Any], list[int], list[int]]] = {}
    for number in range(element.count):
        sizes = _sizes_at(data, place, element, order)
        if sizes not in layouts:
            layouts[sizes] = (_layout(element, sizes, order), [], [])
        kind, numbers, starts = layouts[sizes]
        if place + kind.itemsize > len(data):
            raise ReadError(f"it breaks off in {element.name} {number + 1:,} of {element.count:,}")
        numbers.append(number)
        starts.append(place)
        place += kind.itemsize
    groups = []
    for kind, numbers, starts in layouts.values():
        joined = b"".join(data[start : start + kind.itemsize] for start in starts)
        groups.append((np.asarray(numbers), np.frombuffer(joined, kind)))
    return groups, place


def _walk_one_list(
    data: bytes, place: int, element: Element, order: str
) -> tuple[list[tuple[Indices, NDArray[Any]]], int]:
    """`_walk` for the common case of one list: only the record offsets are found sequentially."""
    own = next(place for place, part in enumerate(element.properties) if part.length)
    part = element.properties[own]
    assert part.length is not None
    before = sum(int(other.kind[1:]) for other in element.properties[:own])
    fixed = element.least - int(part.length[1:])  # bytes beside the list and its length
    each, wide = int(part.kind[1:]), int(part.length[1:])
    at = np.zeros(2, np.int64)
    if part.length == "u1":
        longest = (
            255 - fixed - wide
        ) // each  # the step to the next record then fits in a byte, as for nearly all polygons
        steps = bytes(fixed + wide + each * size if size <= longest else 0 for size in range(256))
        step_at = data[place + before :].translate(steps)
        here = 0
        try:
            walked = [here := here + step_at[here] for _ in repeat(None, element.count)]
        except IndexError as error:
            raise ReadError(f"it breaks off in one of {element.count:,} records of {element.name}") from error
        at = place + np.append(0, np.fromiter(walked, np.int64, element.count))
    if at[-1] == at[-2]:  # it stopped at another length type, or at a longer list
        starts = [place]
        for _ in range(element.count):
            starts.append(starts[-1] + fixed + wide + each * _sizes_at(data, starts[-1], element, order)[0])
        at = np.asarray(starts)
    if at[-1] > len(data):
        broken = int(np.searchsorted(at, len(data), side="right"))
        raise ReadError(f"it breaks off in {element.name} {broken:,} of {element.count:,}")
    sizes = (np.diff(at) - fixed - wide) // each
    content = np.frombuffer(data, np.uint8)
    groups = []
    for size in np.flatnonzero(np.bincount(sizes)):
        numbers = np.flatnonzero(sizes == size)
        kind = _layout(element, (int(size),), order)
        records = sliding_window_view(content, kind.itemsize)[at[numbers]]
        groups.append((numbers, records.view(kind)[:, 0]))
    return groups, int(at[-1])


def _sizes_at(data: bytes, place: int, element: Element, order: str) -> tuple[int, ...]:
    """The list lengths of the record at offset ``place``."""
    sizes = []
    for part in element.properties:
        if part.length is None:
            place += int(part.kind[1:])
            continue
        try:
            (size,) = struct.unpack_from(order + STRUCT[part.length], data, place)
        except struct.error as error:
            raise ReadError(f"it breaks off in a {element.name}") from error
        if not 0 <= size <= LONGEST_LIST:
            raise ReadError(f"it cannot be read as a point cloud (a {element.name} has {size:,} corners)")
        sizes.append(size)
        place += int(part.length[1:]) + size * int(part.kind[1:])
    return tuple(sizes)


def _layout(element: Element, sizes: tuple[int, ...], order: str) -> np.dtype[Any]:
    """The dtype of a record with these list lengths; a length field is named # plus its list's name."""
    left = list(sizes)
    fields: list[Any] = []
    for part in element.properties:
        if part.length is None:
            fields.append((part.name, order + part.kind))
        else:
            fields += [(f"#{part.name}", order + part.length), (part.name, order + part.kind, (left.pop(0),))]
    try:
        return np.dtype(fields)
    except ValueError as error:
        raise ReadError("it cannot be read as a point cloud (two properties have one name)") from error


def _binary_faces(element: Element, groups: list[tuple[Indices, NDArray[Any]]]) -> Faces | None:
    lists = {part.name for part in element.properties if part.length}
    corners = next((name for name in CORNERS if name in lists), None)
    if corners is None:
        return None
    triangles, owner = fans([(numbers, rows[corners].astype(np.int64)) for numbers, rows in groups])
    names = {known_name(part.name): part.name for part in element.properties if part.length is None}
    colors: dict[str, NDArray[Any]] = {}
    for name in COLORS if set(COLORS) <= set(names) else ():
        kind = next(part.kind for part in element.properties if part.name == names[name])
        colors[name] = np.zeros(element.count, kind)
        for numbers, rows in groups:
            colors[name][numbers] = rows[names[name]]
    return Faces(triangles, owner, colors)
