"""What every source of data shares: where it lies, its splits, how a batch is drawn and what a broken file does.

A source with `data_dir=null` is its embedded sample: a small, deterministic imitation written once in the real
benchmark's file format and folder layout, and read by the very reader that reads the real thing.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate
from typing_extensions import Unpack

from tasks.datasets.mixing import Mixup, multi_hot
from tasks.datasets.sampling import (
    BalancedBatches,
    EpochBatches,
    Key,
    ResumableLoader,
    label_weights,
    labels_of,
)

SPLITS = ("train", "val", "test")
BALANCES = ("none", "labels")


class DataError(ValueError):
    """Data that cannot be used as asked; the message is one sentence for the user."""


class ReadError(DataError):
    """One file that cannot be read; the message says why, without the file's name."""


class UnreadableItem(DataError):
    """One item that cannot be read; the message names it."""


@dataclass(frozen=True)
class Item:
    """One sample on disk: its file, its target (class index, multi-hot array, …) and where in the file it lies."""

    path: Path
    target: Any = None
    where: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What a message calls it."""
        return str(self.path)


class CommonSettings(TypedDict, total=False):
    """Arguments every data module takes, passed on to `DataModule`."""

    name: str
    data_dir: str | None
    samples_dir: str
    download: bool
    batch_size: int
    eval_batch_size: int | None
    num_workers: int | None
    seed: int
    limit: int | None


class ClassificationSettings(CommonSettings, total=False):
    """Arguments every source of classes takes, passed on to `ClassificationData`."""

    balance: str
    mixup: Mixup | None


class Copies(list[Any]):
    """Several raw samples of one item, e.g. differently augmented; each is a sample of the batch by itself."""


class ItemDataset(Dataset[dict[str, Any]]):
    """Reads the items of one split; every random choice depends on (seed, epoch, index) alone."""

    def __init__(
        self, items: Sequence[Item], read: Callable[[Item, np.random.Generator], Any], seed: int
    ) -> None:
        self.items = items
        self.read = read
        self.seed = seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        index, epoch, *before = key
        rng = np.random.default_rng((self.seed, epoch, index, *(count for count in before if count)))
        try:
            return self.sample(index, rng)
        except UnreadableItem as error:
            return {"error": str(error)}
        except DataError as error:  # a reader process could only hand on a traceback
            return {"stop": str(error)}

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One sample; raises `UnreadableItem`, or `DataError` where the data as a whole cannot be used."""
        item = self.items[index]
        sample = {"raw": self.raw(item, rng), "index": index}
        if item.target is not None:
            sample["target"] = item.target
        return sample

    def raw(self, item: Item, rng: np.random.Generator) -> Any:
        """The raw sample of an item; raises `UnreadableItem`."""
        try:
            return self.read(item, rng)
        except ReadError as error:
            raise UnreadableItem(f"{item.name}: {error}") from error


class MixedDataset(ItemDataset):
    """Training items mixed with each other; a sample has `mixed_target`, (K,), beside its own `target`.

    Args:
        items, read, seed: see `ItemDataset`.
        mixup: draws the partners.
        classes: K.
    """

    def __init__(
        self,
        items: Sequence[Item],
        read: Callable[[Item, np.random.Generator], Any],
        seed: int,
        *,
        mixup: Mixup,
        classes: int,
    ) -> None:
        super().__init__(items, read, seed)
        self.mixup = mixup
        self.classes = classes

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        sample = super().sample(index, rng)

        def other(partner: int) -> tuple[Any, Any]:
            item = self.items[partner]
            return self.raw(item, rng), multi_hot(item.target, self.classes)

        own_K = multi_hot(sample["target"], self.classes)
        try:
            raw, mixed_K = self.mixup(sample["raw"], own_K, len(self), other, rng)
        except TypeError as error:
            raise DataError(f"task.data.mixup: {error}") from error
        return sample | {"raw": raw, "mixed_target": mixed_K}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the readable samples, copies of an item one after the other; list the others under `errors`. `raw` is
    absent when none was readable.

    Where the data as a whole turned out unusable, the batch is `{"stop": why}`.
    """
    stops = [sample["stop"] for sample in samples if "stop" in sample]
    if stops:
        return {"stop": stops[0]}
    good = [one for sample in samples if "error" not in sample for one in _apart(sample)]
    batch = dict(default_collate(good)) if good else {}
    batch["errors"] = [sample["error"] for sample in samples if "error" in sample]
    return batch


def _apart(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of one item."""
    raw = sample["raw"]
    return [sample | {"raw": one} for one in raw] if isinstance(raw, Copies) else [sample]


def usable(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch; raises the `DataError` that a reader ran into."""
    if "stop" in batch:
        raise DataError(batch["stop"])
    return batch


class ItemLoader(ResumableLoader):
    """The batches of `collate`; a `DataError` of a reader process arises in this one, as one sentence."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            yield usable(batch)


Loader = TypeVar("Loader", bound=ResumableLoader)


def limited(loader: Loader, data: LightningDataModule) -> Loader:
    """The loader, which knows how much of an epoch the trainer of its data module draws."""
    if data.trainer is not None:
        loader.limit = data.trainer.limit_train_batches
    return loader


T = TypeVar("T")


def spread(items: Sequence[T], most: int | None) -> Sequence[T]:
    """At most ``most`` items, evenly spread: items lie class by class, and the first ones would be of one class."""
    if most is None or most >= len(items):
        return items
    return [items[position * len(items) // most] for position in range(most)]


class DataModule(LightningDataModule):
    """One source of data for one modality.

    A subclass states `modality`, `layout` (what `data_dir` must look like), `homepage`, `extensions`, and implements
    `write_sample`, `read_splits`, `read_item`, `read_file`; `fetch` too where an official download exists.

    Args:
        name: name of the task; the embedded sample lies in `samples_dir/name`.
        data_dir: folder of the real data, or `None` for the embedded sample.
        samples_dir: folder that holds the embedded samples of all tasks.
        download: fetch the real data into `data_dir` when it is not there.
        batch_size: training batch per device.
        eval_batch_size: batch for validation and test; `None` means `batch_size`.
        num_workers: reader processes; `None` means 0 for the sample and up to 8 for real data.
        seed: seeds order, crops and augmentation.
        limit: use only so many items of every split, evenly spread (quick trials).

    Raises:
        DataError: missing or unusable data, in one sentence.
    """

    modality: ClassVar[str]
    layout: ClassVar[str]
    homepage: ClassVar[str | None] = None
    extensions: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "files"
    sample_version: ClassVar[int] = 1  # raised when write_sample changes: old samples are drawn anew

    def __init__(
        self,
        *,
        name: str,
        data_dir: str | None = None,
        samples_dir: str = "data/samples",
        download: bool = False,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        for what, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("limit", limit),
        ):
            if value is not None and value < 1:
                raise DataError(f"{what} must be at least 1, not {value}")
        if download and data_dir is None:
            raise DataError("download=true needs data_dir=PATH, the folder to download into")
        self.name = name
        self.root = Path(samples_dir) / name if data_dir is None else Path(data_dir).expanduser()
        self.source = "sample" if data_dir is None else "full"
        self.download = download
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.limit = limit
        self.splits: dict[str, Sequence[Item]] = {}

    # -- what a subclass implements -----------------------------------------------------------------------------

    def write_sample(self, root: Path) -> None:
        """Write the embedded sample below `root`, deterministically, in the real layout."""
        raise NotImplementedError

    def read_splits(self, root: Path) -> Mapping[str, Sequence[Item]]:
        """The items of `train`, `val` and `test` below `root`; raises `DataError` (see `bad_layout`)."""
        raise NotImplementedError

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Any:
        """Read one item as a raw sample (no batch dimension); raises `ReadError`."""
        raise NotImplementedError

    def read_file(self, path: Path) -> Any:
        """Read a user's file for prediction, as `read_item` does at test time; raises `ReadError`."""
        raise NotImplementedError

    def fetch(self, root: Path) -> None:
        """Download the real data into `root`; raises `DataError`."""
        raise DataError(f"{self.name} has no official download; place it by hand: {self.layout}")

    def looks_complete(self, root: Path) -> bool:
        """Whether `root` already holds the real data, so that nothing is downloaded."""
        return root.is_dir() and any(root.iterdir())

    # -- what Lightning and the workbench call ------------------------------------------------------------------

    def prepare_data(self) -> None:
        if self.source == "sample":
            self._draw_sample()
        elif self.download and not self.looks_complete(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self.fetch(self.root)

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        if not self.root.exists():
            raise self.bad_layout(f"{self.root} does not exist")
        splits = self.read_splits(self.root)
        for split in SPLITS:
            if not splits.get(split):
                raise self.bad_layout(f"no {split} {self.unit} in {self.root}")
        self.splits = {split: spread(splits[split], self.limit) for split in SPLITS}

    def by_task(self) -> "dict[str, DataModule]":
        """The sources in it, by name; the name of an only one is empty."""
        return {"": self}

    def facts(self) -> dict[str, Any]:
        """What a model must know of the data to answer (plain values; kept in every checkpoint)."""
        return {}

    def recall(self, facts: dict[str, Any]) -> None:
        """Take over the facts of a checkpoint before `read_file`, where a reader needs them (names of columns, …)."""

    def describe(self) -> str:
        """One line: what data this is and where it lies."""
        kind = "embedded sample of " if self.source == "sample" else ""
        sizes = " / ".join(f"{len(self.splits[split]):,} {split}" for split in SPLITS)
        return f"{kind}{self.name} ({sizes} {self.unit}{self.details()}) in {self.place}"

    @property
    def place(self) -> str:
        """Where the data lie: a folder, or the address of one."""
        return str(self.root)

    def example_file(self) -> Path | None:
        """A file to try a prediction on."""
        return self.splits["test"][0].path if self.splits else None

    def details(self) -> str:
        """What `describe` adds after the sizes, beginning with a comma."""
        return ""

    def bad_layout(self, problem: str) -> DataError:
        """The error for a `data_dir` that is not what the reader expects."""
        where = f" (get it from {self.homepage})" if self.homepage else ""
        return DataError(f"{problem}; {self.name} expects {self.layout}{where}")

    def loader(
        self, split: str, *, train: bool | None = None, batch_size: int | None = None
    ) -> ResumableLoader:
        """The batches of a split: shuffled and augmented for training, every item once in order otherwise."""
        train = split == "train" if train is None else train
        items = self.splits[split]
        if batch_size is None:
            batch_size = min(self.batch_size, len(items)) if train else self.eval_batch_size
        dataset = self._dataset(items, train)
        workers = self._workers()
        return ItemLoader(
            dataset,
            batch_sampler=self._batches(split, train, batch_size),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def train_dataloader(self) -> ResumableLoader:
        return limited(self.loader("train"), self)

    def val_dataloader(self) -> ResumableLoader:
        return self.loader("val")

    def test_dataloader(self) -> ResumableLoader:
        return self.loader("test")

    def training_raws(self, most: int = 2000) -> Iterator[Any]:
        """Raw batches of the training part, un-augmented, at most about `most` samples spread over it."""
        items = self.splits["train"]
        chosen = items[:: max(1, len(items) // most)][:most]
        dataset = ItemDataset(chosen, self._reader(train=False), self.seed)
        for start in range(0, len(chosen), self.batch_size):
            stop = min(start + self.batch_size, len(chosen))
            batch = usable(collate([dataset[index, 0] for index in range(start, stop)]))
            if "raw" in batch:
                yield batch["raw"]

    # -- helpers ------------------------------------------------------------------------------------------------

    def _dataset(self, items: Sequence[Item], train: bool) -> ItemDataset:
        """What reads these items."""
        return ItemDataset(items, self._reader(train), self.seed)

    def _batches(self, split: str, train: bool, batch_size: int) -> EpochBatches:
        """Which items make up each batch."""
        count = len(self.splits[split])
        return EpochBatches(count, batch_size, shuffle=train, drop_last=train, seed=self.seed)

    def _reader(self, train: bool) -> Callable[[Item, np.random.Generator], Any]:
        """`read_item` with the train flag fixed, in a form that reader processes can be given."""
        return _Reader(self, train)

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return 0 if self.source == "sample" else min(8, max((os.cpu_count() or 1) - 1, 1))

    def _draw_sample(self) -> None:
        draw_once(self.root, {"task": self.name, "version": self.sample_version}, self.write_sample)


def draw_once(root: Path, stamp: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Let `write` fill the folder `root`, unless it already holds what `stamp` says.

    An older sample gives way to the new one; nothing else does.

    Raises:
        DataError: something lies there that was not drawn by us.
    """
    root = root.resolve()
    marker = root / "SAMPLE.json"
    if _stamp(marker) == stamp:
        return
    refuse_strangers(root)
    # Drawn beside its place and moved there in one step: a kill or a parallel run never leaves half a sample.
    draft = root.with_name(f".{root.name}-{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        write(draft)
        (draft / "SAMPLE.json").write_text(json.dumps(stamp))
        if root.exists():
            refuse_strangers(root)
            root.rename(draft.with_name(f"{draft.name}-old"))
        draft.rename(root)
    except OSError:
        if not marker.is_file():  # otherwise a parallel run was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(draft.with_name(f"{draft.name}-old"), ignore_errors=True)


def _stamp(marker: Path) -> dict[str, Any] | None:
    """What a drawn sample says of itself; None: it is none."""
    try:
        said = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and {"task", "version"} <= set(said) else None


def refuse_strangers(root: Path) -> None:
    """Raise a `DataError` where `root` holds anything but a sample drawn by us."""
    if not root.exists() or _stamp(root / "SAMPLE.json") or (root.is_dir() and not any(root.iterdir())):
        return
    raise DataError(
        f"{root} is where the embedded sample goes, but holds something else: move it, say paths.samples=FOLDER to "
        f"draw elsewhere, or data_dir={root} to read it as your data"
    )


def check_file(path: Path) -> None:
    """Raise a `ReadError` unless a regular file with content is there; a pipe or a device could block for ever."""
    if not path.is_file():
        what = " (it is a folder, pipe or device)" if path.exists() else ""
        raise ReadError(f"there is no such file{what}")
    if path.stat().st_size == 0:
        raise ReadError("the file is empty (0 bytes)")


class _Reader:
    """`read_item` of a data module with the train flag fixed (a class, so that workers can pickle it)."""

    def __init__(self, data: DataModule, train: bool) -> None:
        self.data = data
        self.train = train

    def __call__(self, item: Item, rng: np.random.Generator) -> Any:
        return self.data.read_item(item, self.train, rng)


class ClassificationData(DataModule):
    """A data module whose targets are classes.

    `class_names` is set by `setup` (order stable across machines); `multilabel` sources give multi-hot float
    targets of shape (classes,), the others an int.

    Args:
        balance: how training items are drawn: `none`, each once an epoch; `labels`, with replacement, in proportion to
            the rarity of their labels (`tasks.datasets.sampling.label_weights`).
        mixup: mixes training items with each other as they are read; a batch then has soft `mixed_target`s (B, K).
        **common: see `DataModule`.
    """

    class_names: list[str]
    multilabel: bool = False

    def __init__(
        self, *, balance: str = "none", mixup: Mixup | None = None, **common: Unpack[CommonSettings]
    ) -> None:
        super().__init__(**common)
        if balance not in BALANCES:
            raise DataError(f"balance must be {' or '.join(BALANCES)}, not {balance!r}")
        self.balance = balance
        self.mixup = mixup
        self._weights: NDArray[np.float64] | None = None  # of the training items, once they were asked for

    def facts(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names), "multilabel": self.multilabel}

    def details(self) -> str:
        balanced = ", drawn by the rarity of their labels" if self.balance == "labels" else ""
        return f", {len(self.class_names)} classes{balanced}"

    def labels(self, split: str) -> Iterator[NDArray[Any]]:
        """The classes of each item of a split."""
        return (labels_of(item.target) for item in self.splits[split])

    def _dataset(self, items: Sequence[Item], train: bool) -> ItemDataset:
        if not train or self.mixup is None:
            return super()._dataset(items, train)
        classes = len(self.class_names)
        return MixedDataset(items, self._reader(train), self.seed, mixup=self.mixup, classes=classes)

    def _batches(self, split: str, train: bool, batch_size: int) -> EpochBatches:
        if not train or self.balance == "none":
            return super()._batches(split, train, batch_size)
        if self._weights is None or len(self._weights) != len(self.splits[split]):
            self._weights = label_weights(self.labels(split), len(self.class_names))
        return BalancedBatches(self._weights, batch_size, seed=self.seed)
