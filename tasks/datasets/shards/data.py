"""Data modules with one file per sample, read from a folder or from shards by the same reader."""

import hashlib
import io
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from typing_extensions import Unpack

from tasks.datasets.base import ClassificationSettings, CommonSettings, DataModule
from tasks.datasets.drawn import draw_once
from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.item_dataset import Reader
from tasks.datasets.items import SPLITS, Item, spread
from tasks.datasets.lazy_items import ChosenItems
from tasks.datasets.sampling import EpochBatches
from tasks.datasets.shards.cache import Prefetch, ShardCache
from tasks.datasets.shards.layout import (
    FORMAT,
    INDEX_MB,
    Shard,
    ShardItem,
    ShardItems,
    ShardSet,
    read_shard_set,
)
from tasks.datasets.shards.order import ShardBatches
from tasks.datasets.shards.storage import Storage
from tasks.datasets.targets import ClassTargets, Kind

FORMATS = ("files", "webdataset")
PARTS = 2  # files of a sample whose target is a file
AHEAD = 2  # shards prefetched
SAMPLE_SHARD = 64  # samples per shard of the embedded sample, which is small but should have several shards


@dataclass(frozen=True)
class ShardOptions:
    """How shards are read.

    Args:
        buffer: size of the shuffle buffer in samples; splits that are no larger are shuffled completely.
        cache_dir: cache folder of remote shards; ``None`` disables the cache and reads every sample with a range
            request, which http servers must support.
        cache_gb: maximum size of the cache in gigabytes (10^9 bytes).
        index_mb: maximum size of ``shards.json`` and of the index in megabytes (10^6 bytes).
        storage: options for fsspec, such as ``{anon: true}`` or ``{endpoint_url: …}`` for s3.

    Raises:
        DataError: invalid settings.
    """

    buffer: int = 10_000
    cache_dir: str | None = "data/shards"
    cache_gb: float = 20.0
    index_mb: float = INDEX_MB
    storage: Mapping[str, Any] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.buffer < 1 or self.cache_gb <= 0 or self.index_mb <= 0:
            raise DataError("shards.buffer must be at least 1, shards.cache_gb and shards.index_mb above 0")


class ShardSettings(CommonSettings, total=False):
    """Arguments of every data module that can read shards, besides the common ones."""

    format: str
    shards: ShardOptions | None


class ShardableSettings(ClassificationSettings, total=False):
    """Arguments of every classification data module that can read shards, passed to `ShardableData`."""

    format: str
    shards: ShardOptions | None


class ReadsShards(DataModule):
    """A data module that can read shards, with any kind of target.

    A subclass calls `open_shards` and implements `know`; if its targets are files, it sets `beside` and implements
    `pack_beside` and `read_packed`.
    """

    #: Whether a sample's target is a file beside it in the shard, instead of classes in the index.
    beside: ClassVar[bool] = False

    storage: Storage | None = None
    shard_set: ShardSet | None = None
    cache: ShardCache | None = None

    def open_shards(self, format: str, shards: ShardOptions | None, data_dir: str | None) -> None:
        """Store and check the settings.

        Args:
            format: ``files``, or ``webdataset``: then ``data_dir`` is the folder or URL of shards written by
                ``action=shard``, or with ``data_dir=None`` shards of the embedded sample are used.
            shards: options for reading shards; ``None``: the defaults of `ShardOptions`.
            data_dir: as in `DataModule`.

        Raises:
            DataError: incompatible settings.
        """
        if format not in FORMATS:
            raise DataError(f"format must be {' or '.join(FORMATS)}, not {format!r}")
        self.format = format
        self.options = shards or ShardOptions()
        if format == "webdataset":
            self.check_targets()
            if self.targets.in_any_order:
                raise DataError(
                    f"shards are read one after the other: {self.targets.in_any_order}, which ask for any "
                    "sample at any time, need task.data.format=files"
                )
            if self.train_passes != 1:
                raise DataError("an epoch passes over shards once: say task.data.train_passes=1")
            if self.download:
                raise DataError("download=true fetches files; shards are written from them with action=shard")
            place = str(self.root.with_name(f"{self.name}-shards")) if data_dir is None else data_dir
            self.storage = Storage(place, self.options.storage)

    def check_targets(self) -> None:
        """Raise a `DataError` for targets that shards cannot store."""
        if not self.beside and not isinstance(self.targets, ClassTargets):
            raise DataError(
                f"shards hold classes, and the targets of {self.name} are none: take format=files"
            )

    def know(self, found: ShardSet) -> None:
        """Restore the metadata of the targets, such as class names, from a shard set; raises `DataError`."""
        raise NotImplementedError

    def pack(self, item: Item) -> tuple[str, bytes]:
        """An item as a file for a shard: its extension without the dot, and its bytes."""
        try:
            return item.path.suffix.lower().lstrip("."), item.path.read_bytes()
        except OSError as error:
            raise DataError(f"{item.path} cannot be read ({error.strerror})") from error

    def pack_beside(self, item: Item) -> tuple[str, bytes]:
        """The target of an item as a file beside it: its extension without the dot, and its bytes."""
        raise NotImplementedError

    def read_packed(
        self, item: Item, parts: Mapping[str, bytes], train: bool, rng: np.random.Generator
    ) -> tuple[Any, Any]:
        """`read_pair` for a sample in a shard. `parts` maps extensions to contents; `item.path` is the source file."""
        raise NotImplementedError

    @property
    def drawn(self) -> list[str]:
        return (self.shard_set.drawn if self.shard_set else []) or super().drawn

    @property
    def place(self) -> str:
        return super().place if self.storage is None else str(self.storage)

    def prepare_data(self) -> None:
        super().prepare_data()
        if self.storage is None or self.source != "sample":
            return
        from tasks.datasets.shards.write import write_shards

        splits = {split: spread(items, None) for split, items in self.read_splits(self.root).items()}
        names = {split: [item.name for item in items] for split, items in splits.items()}
        stamp = {
            "task": self.name,
            "version": self.sample_version,
            "format": FORMAT,
            "splits": digest_of(names),
        }

        def write(root: Path) -> None:
            write_shards(self, splits, Storage(str(root)), shard_samples=SAMPLE_SHARD)

        draw_once(Path(str(self.storage)), stamp, write)

    def setup(self, stage: str | None = None) -> None:
        if self.storage is None:
            super().setup(stage)
        elif not self.splits:
            found = read_shard_set(self.storage, self.options.index_mb)
            if (found.task, found.modality) != (self.name, self.modality):
                raise DataError(
                    f"{self.storage} holds shards of {found.task} ({found.modality}), not of {self.name}"
                )
            if found.beside != self.beside:
                raise DataError(
                    f"{self.storage} holds samples of another kind: write them again with action=shard"
                )
            self.know(found)
            self.shard_set = found
            self.cache = self._make_cache(self.storage, found)
            self.splits = {
                split: found.some(cast(ShardItems, self._used(split, found.splits[split])), self.limit)
                for split in SPLITS
            }

    def training_share(self, items: Sequence[Item]) -> Sequence[Item]:
        share = super().training_share(items)
        if isinstance(items, ShardItems) and isinstance(share, ChosenItems):
            return cast(Sequence[Item], items.take(share.places))
        return share

    def details(self) -> str:
        return f"{super().details()}{self.in_shards}"

    @property
    def in_shards(self) -> str:
        """Suffix of `details` about shards."""
        return f" in {len(self.shard_set.shards):,} shards" if self.shard_set else ""

    def example_file(self) -> Path | None:
        return super().example_file() if self.storage is None else None

    def training_raws(self, most: int = 2000) -> Iterator[Any]:
        if self.shard_set is None or not self.shard_set.shuffled:
            yield from super().training_raws(most)
            return
        whole = self.splits["train"]
        self.splits["train"] = whole[:most]  # shuffled, and from a few shards instead of a little from each
        try:
            yield from super().training_raws(most)
        finally:
            self.splits["train"] = whole

    def content(self, item: ShardItem) -> bytes:
        """Read the bytes of a sample from its shard and verify their checksum.

        Raises:
            ReadError: wrong checksum.
            DataError: the shard cannot be read.
        """
        assert self.storage is not None
        assert self.shard_set is not None
        shard = self.shard_set.shards[item.shard]
        content = self._read(shard, item)
        if self.cache and zlib.crc32(content) != item.crc32:
            self.cache.drop(shard.file)
            content = self._read(shard, item)
        if zlib.crc32(content) != item.crc32:
            raise ReadError("its bytes are not those that were written (wrong checksum)")
        return content

    def _read(self, shard: Shard, item: ShardItem) -> bytes:
        assert self.storage is not None
        if self.cache:
            return self.cache.read(shard.file, shard.size, item.offset, item.size)
        folder = self.storage.folder
        if folder is None:
            return self.storage.read_range(shard.file, item.offset, item.size)
        try:
            with (folder / shard.file).open("rb") as file:
                file.seek(item.offset)
                return file.read(item.size)
        except OSError as error:
            raise DataError(f"the shard {folder / shard.file} cannot be read ({error.strerror})") from error

    def _batches(self, split: str, train: bool, batch_size: int) -> EpochBatches:
        if self.shard_set is None:
            return super()._batches(split, train, batch_size)
        items, shards = self.splits[split], self.shard_set.shards
        numbers = (
            items.shards if isinstance(items, ShardItems) else np.array([shard_of(item) for item in items])
        )
        prefetch = Prefetch(self.cache) if self.cache else None

        def announce(number: int) -> None:
            assert prefetch is not None
            prefetch(shards[number].file, shards[number].size)

        return ShardBatches(
            numbers,
            batch_size,
            shuffle=train,
            drop_last=train,
            seed=self.seed,
            buffer=self.options.buffer,
            ahead=AHEAD * self.shard_set.samples_a_shard,
            announce=announce if prefetch else None,
        )

    def _reader(self, train: bool) -> Reader:
        return super()._reader(train) if self.storage is None else _ShardReader(self, train)

    def _make_cache(self, storage: Storage, found: ShardSet) -> ShardCache | None:
        folder, limit = self.options.cache_dir, round(self.options.cache_gb * 1e9)
        if storage.folder is not None or folder is None:
            return None
        # Shards of the shuffle buffer, prefetched shards, and a partly read shard at either end.
        at_once = self.options.buffer // found.samples_a_shard + AHEAD + 2
        sizes = sorted((shard.size for shard in found.shards), reverse=True)
        needed = sum(sizes[:at_once])
        if needed > limit:
            raise DataError(
                f"mixing {self.options.buffer:,} samples of {storage} takes {needed / 1e9:,.3g} GB of shards at a "
                f"time: raise task.data.shards.cache_gb={self.options.cache_gb:g} or lower task.data.shards.buffer"
            )
        return ShardCache(storage, Path(folder).expanduser() / found.digest[:16], limit)


class ShardableData(ReadsShards):
    """A classification data module that can read shards.

    Args:
        format, shards: see `ReadsShards.open_shards`.
        **common: see `ClassTargets` and `DataModule`.
    """

    kind: ClassVar[Kind] = ClassTargets

    def __init__(
        self,
        *,
        format: str = "files",
        shards: ShardOptions | None = None,
        **common: Unpack[ClassificationSettings],
    ) -> None:
        super().__init__(**common)
        self.open_shards(format, shards, common.get("data_dir"))

    def know(self, found: ShardSet) -> None:
        self.targets.class_names, self.targets.multilabel = found.class_names, found.multilabel


class _ShardReader:
    """`read_pair` of a data module, with the sample's bytes as a file (a class, so that workers can pickle it)."""

    def __init__(self, data: ReadsShards, train: bool) -> None:
        self.data = data
        self.train = train

    def __call__(self, item: Item, rng: np.random.Generator) -> tuple[Any, Any]:
        assert isinstance(item, ShardItem)
        content = self.data.content(item)
        if self.data.beside:
            return self.data.read_packed(item, parts_of(content), self.train, rng)
        with as_file(content, item.path.suffix) as path:
            return self.data.read_pair(replace(item, path=path), self.train, rng)


def parts_of(content: bytes) -> dict[str, bytes]:
    """Maps the extensions (with the dot) of a sample's files to their contents.

    Raises:
        ReadError: the sample does not consist of two files.
    """
    parts: dict[str, bytes] = {}
    try:
        # The end-of-archive blocks are appended: the shard has them only once, at its end.
        with tarfile.open(fileobj=io.BytesIO(content + bytes(2 * tarfile.BLOCKSIZE)), mode="r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if file is None or len(parts) == PARTS:
                    raise ReadError("it holds something else than a file and its target")
                parts[f".{member.name.partition('.')[2]}"] = file.read()
    except (tarfile.TarError, ValueError, OSError) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"it is no sample of several files ({error})") from error
    if len(parts) != PARTS:
        raise ReadError("it holds something else than a file and its target")
    return parts


def shard_of(item: Item) -> int:
    """The index of an item's shard."""
    assert isinstance(item, ShardItem)
    return item.shard


@contextmanager
def as_file(content: bytes, suffix: str) -> Iterator[Path]:
    """A temporary file with this content; in memory where the system supports it.

    Readers open paths. A file in memory needs no clean-up if the process is killed.
    """
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("sample"), "wb") as file:
            file.write(content)
            file.flush()
            yield Path(f"/proc/self/fd/{file.fileno()}")
    else:
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            file.write(content)
            file.flush()
            yield Path(file.name)


def digest_of(names: Mapping[str, list[str]]) -> str:
    """Hash of all names, their order and their splits."""
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()
