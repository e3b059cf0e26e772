"""PCD files of the Point Cloud Library: text, binary or compressed.

The header is checked against the file size before any allocation.
"""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import ReadError
from tasks.datasets.point_cloud.formats.cloud import Cloud, ReadOptions, check_count, check_shape, check_size
from tasks.datasets.point_cloud.formats.columns import from_named
from tasks.datasets.point_cloud.formats.numbers import table
from tasks.datasets.reading import require

KINDS = {"F": "f", "I": "i", "U": "u"}
PACKED = ("rgb", "rgba")  # a colour packed in four bytes: blue, green, red, alpha
LONGEST_HEADER = 1 << 20  # bytes
MOST_PACKED = 100  # maximum compression ratio of LZF: 264 bytes from 3


def read_pcd(path: Path, options: ReadOptions) -> Cloud:
    with path.open("rb") as file:
        header, form, start = _header(file.read(LONGEST_HEADER))
        fields = _fields(header)
        count = _count(header)
        check_count(count, options)
        check_shape((count, sum(repeats for _, _, repeats in fields)), options)
        file.seek(start)
        if form == "ascii":
            check_size(path.stat().st_size, options)
            arrays = _from_text(file.read().decode("ascii", errors="replace"), fields, count)
        elif form == "binary":
            arrays = _from_rows(file.read(), fields, count)
        elif form == "binary_compressed":
            arrays = _from_columns(file.read(), fields, count)
        else:
            raise ReadError(f"it cannot be read as a point cloud (its DATA are {form[:40]!r})")
    return from_named(_unpacked(arrays))


Field = tuple[str, str, int]  # name, type, values


def _header(head: bytes) -> tuple[dict[str, list[str]], str, int]:
    """The header's values by keyword, the data format, and the offset of the data."""
    place, header = 0, dict[str, list[str]]()
    while True:
        end = head.find(b"\n", place)
        if end < 0:
            raise ReadError("it holds no points: its header has no line DATA")
        words = head[place:end].decode("ascii", errors="replace").split()
        place = end + 1
        if words[:1] == ["DATA"]:
            return header, words[1].lower() if len(words) > 1 else "", place
        if words and not words[0].startswith("#"):
            header[words[0]] = words[1:]


def _fields(header: dict[str, list[str]]) -> list[Field]:
    names = header.get("FIELDS") or header.get("COLUMNS") or []
    try:
        kinds = [
            KINDS[kind] + str(int(size))
            for kind, size in zip(header.get("TYPE", []), header.get("SIZE", []), strict=True)
        ]
        repeats = [int(count) for count in header.get("COUNT", ["1"] * len(names))]
        for kind in kinds:
            np.dtype(kind)
        if min(repeats, default=1) < 1:
            raise ValueError("a COUNT is at least 1")
        return list(zip(names, kinds, repeats, strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise ReadError(
            "it cannot be read as a point cloud (FIELDS, SIZE, TYPE and COUNT of its header do not fit)"
        ) from error


def _count(header: dict[str, list[str]]) -> int:
    try:
        if "POINTS" in header:
            return int(header["POINTS"][0])
        return int(header["WIDTH"][0]) * int(header.get("HEIGHT", ["1"])[0])
    except (KeyError, IndexError, ValueError) as error:
        raise ReadError("it holds no points: its header does not say how many (POINTS)") from error


def _from_text(text: str, fields: list[Field], count: int) -> dict[str, NDArray[Any]]:
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    if len(lines) < count:
        raise ReadError(f"it breaks off: {count:,} points are announced, {len(lines):,} are there")
    rows = table(lines[:count], "point")
    width = sum(repeats for _, _, repeats in fields)
    if count and rows.shape[1] != width:
        raise ReadError(
            f"it cannot be read as a point cloud (a point has {rows.shape[1]} values, its header names {width})"
        )
    arrays: dict[str, NDArray[Any]] = {}
    place = 0
    for name, kind, repeats in fields:
        if repeats == 1 and name != "_" and count:
            arrays[name] = rows[:, place].astype(kind) if name in PACKED else rows[:, place]
        place += repeats
    return arrays


def _from_rows(data: bytes, fields: list[Field], count: int) -> dict[str, NDArray[Any]]:
    kind = np.dtype([(str(n), f"<{kind}", (repeats,)) for n, (_, kind, repeats) in enumerate(fields)])
    if len(data) < count * kind.itemsize:
        whole = len(data) // kind.itemsize
        raise ReadError(f"it breaks off: {count:,} points are announced, {whole:,} are there")
    rows = np.frombuffer(data, kind, count)
    return {
        name: rows[str(n)][:, 0]
        for n, (name, _, repeats) in enumerate(fields)
        if repeats == 1 and name != "_"
    }


def _from_columns(data: bytes, fields: list[Field], count: int) -> dict[str, NDArray[Any]]:
    """Split decompressed data, which are stored column by column."""
    if len(data) < 8:
        raise ReadError("it breaks off before its first point")
    packed, size = struct.unpack_from("<II", data)
    wanted = count * sum(np.dtype(kind).itemsize * repeats for _, kind, repeats in fields)
    if size != wanted or packed > len(data) - 8:
        raise ReadError(
            f"it breaks off: {packed:,} bytes are announced, {len(data) - 8:,} are there, for {size:,} of the "
            f"{wanted:,} that its points need"
        )
    whole = unpacked_lzf(data[8 : 8 + packed], size)
    arrays: dict[str, NDArray[Any]] = {}
    place = 0
    for name, kind, repeats in fields:
        if repeats == 1 and name != "_":
            arrays[name] = np.frombuffer(whole, f"<{kind}", count, place)
        place += count * np.dtype(kind).itemsize * repeats
    return arrays


def unpacked_lzf(data: bytes, size: int) -> bytes:
    """Decompress LZF data (Marc Lehmann's format, literal runs and back references) to ``size`` bytes.

    HDF5 has LZF as a chunk filter, so h5py decompresses an in-memory file with one chunk. Since it does not report the
    decompressed size, a marker is appended to the data.

    Raises:
        ReadError: invalid data, or another size.
    """
    h5py = require("h5py", "compressed PCD files")
    damaged = ReadError("it cannot be read as a point cloud (its compressed data are damaged)")
    if size > MOST_PACKED * len(data):
        raise damaged
    mark = os.urandom(16)
    whole = np.empty(size + len(mark), np.uint8)
    try:
        with h5py.File("memory", "w", driver="core", backing_store=False) as file:
            chunks = file.create_dataset(
                "lzf", whole.shape, np.uint8, chunks=whole.shape, compression="lzf", fillvalue=0
            )
            chunks.id.write_direct_chunk((0,), data + bytes([len(mark) - 1]) + mark)  # a literal run
            chunks.read_direct(whole)
    except OSError:
        raise damaged from None
    if whole[size:].tobytes() != mark:
        raise damaged
    return whole[:size].tobytes()


def _unpacked(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The columns, with packed colours unpacked."""
    found: dict[str, NDArray[Any]] = {}
    for name, values in arrays.items():
        if name in PACKED and values.dtype.itemsize == 4:
            parts = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 4)
            found |= {"b": parts[:, 0], "g": parts[:, 1], "r": parts[:, 2]}
        else:
            found[name] = values
    return found
