"""Layout of a folder of shards, and its items.

    shards.json            metadata: modality, class names, the shards with their sizes; written last
    index.parquet          a row for each sample: its location, target, checksum and original file
    train-000000.tar …     samples in WebDataset format: 000000042.wav beside 000000042.cls, or
                           000000042.jpg beside its mask 000000042.mask.png or its boxes 000000042.json
    val-000000.tar …  test-000000.tar …

With the index, samples can be counted and located without opening a shard.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import DataError
from tasks.datasets.items import SPLITS, Item, spread
from tasks.datasets.names import LONGEST, plain_name
from tasks.datasets.reading import require
from tasks.datasets.shards.storage import MissingFile, Storage

ABOUT = "shards.json"
INDEX = "index.parquet"
FORMAT = 2
ENDING = ".tar"
LONGEST_PATH = 4096  # bytes
INDEX_MB = 1024.0  # maximum size of an index in megabytes: about 20 million samples
LEAST = 1024  # minimum bytes of a sample in a tar file: two headers
COLUMNS = ("shard", "offset", "size", "crc32", "key", "extension", "file", "target")


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        file: file name.
        split: ``train``, ``val`` or ``test``.
        samples: number of samples.
        size: size in bytes.

    Raises:
        DataError: a name that is not a plain file name, or impossible numbers.
    """

    file: str
    split: str
    samples: int
    size: int

    def __post_init__(self) -> None:
        if not plain_name(self.file).endswith(ENDING):  # the cache counts and removes files by this extension
            raise DataError(f"{self.file!r} is no plain name of a shard: it does not end in {ENDING}")
        counts = (self.samples, self.size)
        if not all(type(count) is int and count >= 0 for count in counts) or self.split not in SPLITS:
            raise DataError(f"the shard {self.file!r} has an impossible size or split")
        if self.samples * LEAST > self.size:
            raise DataError(
                f"the shard {self.file!r} of {self.size:,} bytes cannot hold {self.samples:,} samples"
            )


@dataclass(frozen=True)
class ShardItem(Item):
    """A sample in a shard; ``path`` is the original file, which need not exist.

    Args:
        shard: index of the shard in `ShardSet.shards`.
        offset, size: position of the sample in the shard, in bytes; if its target is a file, both files.
        crc32: checksum of these bytes.
        title: name in messages.
    """

    shard: int = 0
    offset: int = 0
    size: int = 0
    crc32: int = 0
    title: str = ""

    @property
    def name(self) -> str:
        return self.title


class ShardItems(Sequence[Item]):
    """Items created on access from the columns of the index, since millions of objects would exhaust memory.

    Args:
        columns: arrays of `COLUMNS`, all of one length.
        shards: all shards of the set.
        place: location of the set, for messages.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]], shards: Sequence[Shard], place: str) -> None:
        self.columns = dict(columns)
        self.all_shards = shards
        self.place = place

    @property
    def shards(self) -> NDArray[np.int32]:
        """The shard index of each item."""
        return self.columns["shard"]

    def __len__(self) -> int:
        return len(self.columns["shard"])

    def take(self, positions: Any) -> "ShardItems":
        """A subset of the items."""
        columns = {name: column[positions] for name, column in self.columns.items()}
        return ShardItems(columns, self.all_shards, self.place)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> "ShardItems": ...

    def __getitem__(self, index: int | slice) -> "Item | ShardItems":
        if isinstance(index, slice):
            return self.take(index)
        row = {name: column[index] for name, column in self.columns.items()}
        shard, target = int(row["shard"]), row["target"]
        member = f"{bytes(row['key']).decode()}.{bytes(row['extension']).decode()}"
        return ShardItem(
            Path(bytes(row["file"]).decode()),
            target if np.ndim(target) else int(target),
            shard=shard,
            offset=int(row["offset"]),
            size=int(row["size"]),
            crc32=int(row["crc32"]),
            title=f"{self.place}/{self.all_shards[shard].file}/{member}",
        )


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards.

    Args:
        task: name of the task it was written from.
        modality: ``audio``, ``image`` or ``video``.
        settings: settings of the task that determined the splits.
        class_names: in the order of the targets.
        multilabel: whether targets are multi-hot.
        shards: all shards: train, then val, then test.
        splits: split -> its items.
        shuffled: whether each split was shuffled before writing.
        digest: hash of the index.
        drawn: titles of the data sets that the samples, if synthetic, imitate.
        beside: whether targets are files beside the samples, instead of classes in the index.
        data_info: with `beside`, the `info()` of the data module; not yet validated.
    """

    task: str
    modality: str
    settings: dict[str, Any]
    class_names: list[str]
    multilabel: bool
    shards: list[Shard]
    splits: dict[str, ShardItems]
    shuffled: bool
    digest: str
    drawn: list[str] = field(default_factory=list)
    beside: bool = False
    data_info: dict[str, Any] = field(default_factory=dict)

    @property
    def samples_a_shard(self) -> int:
        """Average number of samples per shard, at least 1."""
        return max(sum(shard.samples for shard in self.shards) // len(self.shards), 1)

    def some(self, items: ShardItems, most: int | None) -> ShardItems:
        """At most ``most`` items of a split: the first ones if they are shuffled, else evenly spaced."""
        if most is None or most >= len(items):
            return items
        return items[:most] if self.shuffled else items.take(np.asarray(spread(range(len(items)), most)))


def write_index(path: Path, rows: Mapping[str, Sequence[Any]]) -> None:
    """Write the index with the columns `COLUMNS`."""
    pa, pq = require("pyarrow", "shards"), require("pyarrow.parquet", "shards")
    types = {"shard": pa.int32(), "offset": pa.int64(), "size": pa.int64(), "crc32": pa.int64()}
    table = {name: pa.array(rows[name], types.get(name)) for name in COLUMNS}
    pq.write_table(pa.table(table), path)


def read_shard_set(storage: Storage, index_mb: float = INDEX_MB) -> ShardSet:
    """Read the metadata and the index of a folder of shards and check them against the shards.

    Nothing is trusted: names must be plain file names, and every sample must be inside its shard.

    Args:
        index_mb: maximum size of `ABOUT` and of `INDEX`, each, in megabytes (10^6 bytes).

    Raises:
        DataError: no shards, or damaged, incomplete, too large or of another version.
    """
    most = round(index_mb * 1e6)
    try:
        content = storage.read(ABOUT, most)
    except MissingFile as error:
        raise DataError(
            f"{storage} holds no shards (no {ABOUT}): write some with action=shard, or leave task.data.format out"
        ) from error
    damaged = DataError(f"{storage.name(ABOUT)} is damaged, or not of this version: write the shards again")
    try:
        said = json.loads(content)
        shards = [Shard(**shard) for shard in said["shards"]]
        known = said["format"] == FORMAT and {shard.split for shard in shards} == set(SPLITS)
        known &= len({shard.file for shard in shards}) == len(shards)
        names, multilabel = list(said["class_names"]), bool(said["multilabel"])
        task, modality, settings = str(said["task"]), str(said["modality"]), dict(said["settings"])
        shuffled, digest = bool(said["shuffled"]), str(said["digest"])
        drawn = list(said.get("drawn", []))
        beside, data_info = bool(said.get("beside", False)), dict(said.get("data_info", {}))
        known &= all(isinstance(name, str) for name in [*names, *drawn])
    except DataError as error:
        raise DataError(f"{storage.name(ABOUT)} is damaged: {error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged from error
    if not known:
        raise damaged
    content = storage.read(INDEX, most)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{storage.name(INDEX)} does not belong to {ABOUT}: copy or write the shards again")
    _check_sizes(storage, shards)
    try:
        columns = _read_index(content, sum(shard.samples for shard in shards))
        _check_index(columns, shards, len(names), multilabel)
    except Exception as error:  # a damaged parquet file may raise anything
        raise DataError(f"{storage.name(INDEX)} is damaged ({_first_line(error)})") from error
    whole = ShardItems(columns, shards, str(storage))
    of_split = np.array([SPLITS.index(shard.split) for shard in shards])[columns["shard"]]
    splits = {split: whole.take(of_split == number) for number, split in enumerate(SPLITS)}
    about = (task, modality, settings, names, multilabel)
    return ShardSet(*about, shards, splits, shuffled, digest, drawn, beside, data_info)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read_index(content: bytes, rows: int) -> dict[str, NDArray[Any]]:
    pa, pq = require("pyarrow", "shards"), require("pyarrow.parquet", "shards")
    pc = require("pyarrow.compute", "shards")
    file = pq.ParquetFile(pa.BufferReader(content))
    if (
        file.metadata.num_rows != rows
    ):  # checked before reading: a few bytes can encode any number of repeated rows
        raise DataError(f"{file.metadata.num_rows:,} rows instead of {rows:,}")
    table = file.read(columns=list(COLUMNS))
    columns = {}
    for name in COLUMNS:
        values = table[name]
        if pa.types.is_string(
            values.type
        ):  # fixed-width bytes, without an object for each of millions of names
            if rows and pc.max(pc.binary_length(values)).as_py() > LONGEST_PATH:
                raise DataError(f"a {name} of more than {LONGEST_PATH} bytes")
            columns[name] = np.array([value.encode() for value in values.to_pylist()])
        elif pa.types.is_list(values.type):
            columns[name] = np.array(values.to_pylist(), dtype=np.float32)
        else:
            columns[name] = values.to_numpy()
    return columns


def _check_index(
    columns: Mapping[str, NDArray[Any]], shards: Sequence[Shard], classes: int, multilabel: bool
) -> None:
    """Raise a `DataError` if a sample is outside its shard, or has an invalid name or target."""
    shard, offset, size = columns["shard"], columns["offset"], columns["size"]
    if len(shard) and not 0 <= shard.min() <= shard.max() < len(shards):
        raise DataError("samples of a shard that is not there")
    if np.bincount(shard, minlength=len(shards)).tolist() != [one.samples for one in shards]:
        raise DataError("other numbers of samples than the shards have")
    ends = np.array([one.size for one in shards])[shard]
    if ((offset < 0) | (size < 0) | (offset > ends) | (size > ends - offset)).any():
        raise DataError("samples outside their shard")
    for name in ("key", "extension"):
        if columns[name].dtype.itemsize > LONGEST:
            raise DataError(f"a {name} of more than {LONGEST} bytes")
        # All at once, since there may be millions; they are padded with zeros.
        marks = (
            bytes(np.unique(np.frombuffer(columns[name].tobytes(), np.uint8))).strip(b"\0").decode("latin-1")
        )
        plain_name(f"a{marks}")
    target = columns["target"]
    if multilabel and (target.ndim != 2 or target.shape[1] != classes):
        raise DataError("targets of another number of classes")
    if not multilabel and len(target) and not 0 <= target.min() <= target.max() < classes:
        raise DataError("targets of classes that are not there")


def _check_sizes(storage: Storage, shards: Sequence[Shard]) -> None:
    from tasks.datasets.shards.cache import wrong_size

    sizes = storage.sizes([shard.file for shard in shards])
    for shard, size in zip(shards, sizes, strict=True):
        if size is not None and size != shard.size:
            raise DataError(wrong_size(storage.name(shard.file), size, shard.size))
