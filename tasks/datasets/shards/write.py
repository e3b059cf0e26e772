"""Writes the files of a data set to shards, deterministically."""

import hashlib
import io
import json
import logging
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from tasks.datasets.base import SPLITS, DataError, Item
from tasks.datasets.shards.layout import ABOUT, COLUMNS, FORMAT, INDEX, Shard, write_index
from tasks.datasets.shards.storage import Storage

log = logging.getLogger("widefield")

PLACES = ("row", "start")  # keys of `Item.where` for the place of a sample in a file that holds several


class ShardSource(Protocol):
    """Interface of a data module whose files can be written to shards."""

    modality: ClassVar[str]
    beside: ClassVar[bool]
    name: str | None
    class_names: list[str]

    def info(self) -> dict[str, Any]:
        """What a model needs to know about the data."""

    @property
    def root(self) -> Path:
        """The folder of its files."""

    @property
    def drawn(self) -> list[str]:
        """The data sets that it imitates, if it is synthetic."""

    def pack(self, item: Item) -> tuple[str, bytes]:
        """An item as a file: its extension without the dot, and its bytes."""

    def pack_beside(self, item: Item) -> tuple[str, bytes]:
        """The item's target as a file beside it, with `beside`: its extension and its bytes."""


def write_shards(
    data: ShardSource,
    splits: Mapping[str, Sequence[Item]],
    target: Storage,
    *,
    shard_bytes: int = 256 * 2**20,
    shard_samples: int | None = None,
    shuffle: bool = True,
    replace: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> list[Shard]:
    """Write splits of ``data`` to shards.

    Every split has its own shards. A sample is the unmodified file beside its target: ``.cls`` with the class index,
    ``.json`` with the class names if multi-label, or the target's own file. `ABOUT` is written last: shards without
    it are incomplete.

    Args:
        data: the data module, with `format=files`.
        splits: the items of its ``train``, ``val`` and ``test``.
        target: destination.
        shard_bytes: a shard is closed when it reaches this size.
        shard_samples: maximum number of samples per shard.
        shuffle: shuffle every split first, with a fixed seed: files are sorted by class, and reading shuffles only
            within a window.
        replace: overwrite existing shards.
        settings: plain values that determined the splits, saved as metadata.

    Raises:
        DataError: shards exist already, or a file cannot be read.
    """
    if not replace and target.exists(ABOUT):
        raise DataError(f"{target} holds shards already: choose another folder, or say action.replace=true")
    if target.folder is not None:
        target.folder.mkdir(parents=True, exist_ok=True)
    shards: list[Shard] = []
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    with tempfile.TemporaryDirectory(dir=target.folder, prefix=".shards-") as scratch:
        for split in SPLITS:
            items = splits[split]
            order = np.random.default_rng(0).permutation(len(items)) if shuffle else np.arange(len(items))
            keyed = [(f"{number:09d}", int(index)) for number, index in enumerate(order)]
            while keyed:
                file = f"{split}-{sum(shard.split == split for shard in shards):06d}.tar"
                draft = Path(scratch) / file
                written = _write_shard(data, items, keyed[: shard_samples or None], draft, shard_bytes, rows)
                rows["shard"] += [len(shards)] * written
                shards.append(Shard(file, split, written, draft.stat().st_size))
                _place(draft, target)
                log.info("shard: %s, %d samples", target.name(file), written)
                keyed = keyed[written:]
        index = Path(scratch) / INDEX
        write_index(index, rows)
        said = {
            "format": FORMAT,
            "task": data.name,
            "modality": data.modality,
            "class_names": list(data.class_names),
            "multilabel": _multilabel(data),
            **({"beside": True, "data_info": data.info()} if data.beside else {}),
            "settings": dict(settings or {}),
            **({"drawn": data.drawn} if data.drawn else {}),
            "shuffled": shuffle,
            "digest": hashlib.sha256(index.read_bytes()).hexdigest(),
            "shards": [asdict(shard) for shard in shards],
        }
        _place(index, target)
        (Path(scratch) / ABOUT).write_text(
            json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        _place(Path(scratch) / ABOUT, target)
    return shards


def _place(draft: Path, target: Storage) -> None:
    if target.folder is not None:
        os.replace(draft, target.folder / draft.name)
    else:
        target.upload(draft, draft.name)
        draft.unlink()


def _write_shard(
    data: ShardSource,
    items: Sequence[Item],
    keyed: Sequence[tuple[str, int]],
    path: Path,
    most: int,
    rows: dict[str, list[Any]],
) -> int:
    """Write samples until the shard has ``most`` bytes; returns their number."""
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for count, (key, index) in enumerate(keyed):
            if count and tar.offset >= most:
                return count
            item = items[index]
            extension, content = data.pack(item)
            if data.beside:
                begin, content = _add_both(tar, key, (extension, content), data.pack_beside(item))
            else:
                begin = _add(tar, f"{key}.{extension}", content)
            rows["offset"].append(begin)
            rows["size"].append(len(content))
            rows["crc32"].append(zlib.crc32(content))
            rows["key"].append(key)
            rows["extension"].append(extension)
            rows["file"].append(_origin(data.root, item))
            rows["target"].append(_in_index(data, item))
            for name, label in _label(data, item):
                _add(tar, f"{key}.{name}", label)
    return len(keyed)


def _multilabel(data: ShardSource) -> bool:
    return bool(getattr(data, "multilabel", False))


def _in_index(data: ShardSource, item: Item) -> Any:
    """An item's classes; a placeholder 0 if its target is a file beside it."""
    if data.beside:
        return 0
    return item.target.tolist() if _multilabel(data) else item.target


def _label(data: ShardSource, item: Item) -> Iterator[tuple[str, bytes]]:
    if data.beside:
        return
    if _multilabel(data):
        names = [name for name, on in zip(data.class_names, item.target, strict=True) if on]
        yield "json", json.dumps({"labels": names}, ensure_ascii=False).encode()
    else:
        yield "cls", str(item.target).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member without owner or date; returns the offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    begin = tar.offset + tarfile.BLOCKSIZE  # after its header
    tar.addfile(member, io.BytesIO(content))
    return begin


def _add_both(tar: tarfile.TarFile, key: str, *files: tuple[str, bytes]) -> tuple[int, bytes]:
    """Add the files of a sample in sequence; returns the offset of the first header, and all bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as small:
        for extension, content in files:
            _add(small, f"{key}.{extension}", content)
        together = packed.getvalue()[: small.offset]
    begin = tar.offset
    assert tar.fileobj is not None
    tar.fileobj.write(together)
    tar.offset += len(together)
    return begin, together


def _origin(root: Path, item: Item) -> str:
    path = item.path.relative_to(root) if item.path.is_relative_to(root) else item.path
    return path.as_posix() + "".join(f"#{item.where[key]}" for key in PLACES if key in item.where)
