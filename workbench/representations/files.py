"""Feature files: `embeddings.parquet` with one row per sample, and `embeddings.npz` with the same data as arrays.

Rows are written in groups as they arrive, and the arrays are copied from them group by group, so that the features
never have to fit in memory at once.
"""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workbench import provenance
from workbench.errors import UsageError
from workbench.files import write_atomically
from workbench.representations.extract import Embedded
from workbench.representations.samples import Place

GROUP_BYTES = 16 << 20  # maximum size of the features in a row group
GROUP_ROWS = 4096
ABOUT = b"widefield"  # key of the parquet file's metadata; its value is JSON
TEXTS = ("split", "path", "where", "label")


@dataclass
class Written:
    """Summary of the written features.

    Args:
        shape: shape of a sample's features.
        rows: split -> number of samples with features.
        errors: split, index, path and error of each sample without features.
    """

    shape: tuple[int, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return sum(self.rows.values())


def label_of(target: Any, class_names: Sequence[str]) -> str | None:
    """Class name of a target, or several joined by semicolons; None if the target is not a class.

    >>> label_of(1, ["cat", "dog"]), label_of(np.array([1.0, 1.0]), ["cat", "dog"]), label_of(None, [])
    ('dog', 'cat;dog', None)
    """
    if target is None or not class_names:
        return None
    if np.ndim(target) == 0:
        return class_names[int(target)]
    return ";".join(name for name, on in zip(class_names, target, strict=True) if on)


def write_parquet(
    path: Path, parts: Iterable[Embedded], class_names: Sequence[str], about: dict[str, Any]
) -> Written:
    """Write one row per sample; rows without features have an empty `features` and an `error`.

    Columns: split, index, path, where, label, target (class index; empty for multi-label data), features (flattened;
    the shape is in the file's metadata), error, and `drawn` (provenance note) for embedded (synthetic) samples.

    Raises:
        UsageError: no sample has features, or their shapes differ.
    """
    written = Written()

    def write(draft: Path) -> None:
        group = _Group(draft, class_names, about, written)
        try:
            for part in parts:
                group.add(part)
            group.flush()
        finally:
            group.close()
        if not written.kept:
            first = (
                written.errors[0] if written.errors else {"path": "input", "error": "there are no samples"}
            )
            raise UsageError(
                f"none of the samples could be embedded; the first, {first['path']}: {first['error']}"
            )

    write_atomically(path, write)
    return written


class _Group:
    """Buffer of rows that are written together as a row group."""

    def __init__(
        self, draft: Path, class_names: Sequence[str], about: dict[str, Any], written: Written
    ) -> None:
        self.draft = draft
        self.class_names = class_names
        self.about = about
        self.written = written
        self.note = provenance.note()
        self.rows: list[tuple[Place, NDArray[np.float32] | None, str | None]] = []
        self.writer: pq.ParquetWriter | None = None

    def add(self, part: Embedded) -> None:
        found = dict(zip(part.kept, part.features, strict=True))
        for position, place in enumerate(part.places):
            feature, error = found.get(position), part.errors.get(position)
            if feature is not None:
                self._count(place, feature)
            else:
                said = {"split": place.split, "index": place.index, "path": place.path, "error": error}
                self.written.errors.append(said)
            self.rows.append((place, feature, error))
        if self.written.shape and len(self.rows) >= self._most():
            self.flush()

    def _count(self, place: Place, feature: NDArray[np.float32]) -> None:
        shape = self.written.shape or feature.shape
        if feature.shape != shape:
            raise UsageError(
                f"{place.path}: features of shape {feature.shape} after others of {shape}; maps of one size are "
                "needed, or action.pool=true"
            )
        self.written.shape = shape
        self.written.rows[place.split] = self.written.rows.get(place.split, 0) + 1

    def _most(self) -> int:
        return max(1, min(GROUP_ROWS, GROUP_BYTES // (4 * math.prod(self.written.shape))))

    def flush(self) -> None:
        if not self.rows or not self.written.shape:
            return
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.draft, self._schema())
        self.writer.write_table(pa.table(self._columns(), schema=self._schema()))
        self.rows = []

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _schema(self) -> pa.Schema:
        size = math.prod(self.written.shape)
        fields = [
            *((name, pa.string()) for name in TEXTS),
            *(("index", pa.int64()), ("target", pa.int64()), ("features", pa.list_(pa.float32(), size))),
            ("error", pa.string()),
            *([(provenance.FIELD, pa.string())] if self.note else []),
        ]
        said = {**self.about, "shape": self.written.shape, "class_names": list(self.class_names)}
        said |= {provenance.FIELD: self.note} if self.note else {}
        return pa.schema(fields, metadata={ABOUT: json.dumps(said).encode()})

    def _columns(self) -> dict[str, Any]:
        size = math.prod(self.written.shape)
        places = [place for place, _, _ in self.rows]
        values = np.zeros((len(self.rows), size), dtype=np.float32)
        for row, (_, feature, _) in zip(values, self.rows, strict=True):
            if feature is not None:
                row[:] = feature.reshape(-1)
        lacking = np.array([feature is None for _, feature, _ in self.rows])
        targets = [
            int(place.target) if place.target is not None and np.ndim(place.target) == 0 else None
            for place in places
        ]
        return {
            "split": [place.split for place in places],
            "path": [place.path for place in places],
            "where": [place.where or None for place in places],
            "label": [label_of(place.target, self.class_names) for place in places],
            "index": [place.index for place in places],
            "target": targets if self.class_names else [None] * len(places),
            "features": pa.FixedSizeListArray.from_arrays(
                pa.array(values.reshape(-1)), size, mask=pa.array(lacking)
            ),
            "error": [error for _, _, error in self.rows],
            **({provenance.FIELD: [self.note] * len(places)} if self.note else {}),
        }


def write_npz(path: Path, table: Path, written: Written, class_names: Sequence[str]) -> None:
    """Write the rows with features of a parquet file as arrays, to be read with `numpy.load`.

    Arrays: features (M, …), split, path, where and label (M,), index (M,), target (M,) with -1 for none, class_names;
    failed_path and failed_error of the samples without features; drawn (provenance note) for synthetic samples.
    """
    small: dict[str, NDArray[Any]] = {
        "class_names": np.array(list(class_names), dtype=np.str_),
        "failed_path": np.array([error["path"] for error in written.errors], dtype=np.str_),
        "failed_error": np.array([error["error"] for error in written.errors], dtype=np.str_),
    }
    if said := provenance.note():
        small[provenance.FIELD] = np.array(said)

    def write(draft: Path) -> None:
        widths = _widths(table)
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            _stream(archive, table, "features", "<f4", (written.kept, *written.shape))
            for name in ("index", "target"):
                _stream(archive, table, name, "<i8", (written.kept,))
            for name in TEXTS:
                _stream(archive, table, name, f"<U{max(widths[name], 1)}", (written.kept,))
            for name, array in small.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)

    write_atomically(path, write)


def _stream(archive: zipfile.ZipFile, table: Path, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Copy one column of the rows with features into the archive, as an array."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        _header(file, dtype, shape)
        for rows in _with_features(table, [name] if name == "features" else [name, "features"]):
            file.write(_CONVERTED.get(name, _texts)(rows.column(name), dtype).tobytes())


def _header(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_2_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})


def _with_features(table: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(table) as file:
        for number in range(file.num_row_groups):
            for rows in file.read_row_group(number, columns=columns).to_batches():
                yield rows.filter(rows.column("features").is_valid())


def _widths(table: Path) -> dict[str, int]:
    """Maximum text length of each column, in characters."""
    widths = dict.fromkeys(TEXTS, 0)
    for rows in _with_features(table, [*TEXTS, "features"]):
        for name in TEXTS:
            widths[name] = max([widths[name], *(len(text or "") for text in rows.column(name).to_pylist())])
    return widths


def _numbers(column: pa.Array, dtype: str) -> NDArray[Any]:
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=dtype)


def _integers(column: pa.Array, dtype: str) -> NDArray[Any]:
    return np.asarray(column.fill_null(-1).to_numpy(zero_copy_only=False), dtype=dtype)


def _texts(column: pa.Array, dtype: str) -> NDArray[Any]:
    return np.array([text or "" for text in column.to_pylist()], dtype=dtype)


_CONVERTED: dict[str, Callable[[pa.Array, str], NDArray[Any]]] = {
    "features": _numbers,
    "index": _integers,
    "target": _integers,
}
