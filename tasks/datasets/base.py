"""What every source of data shares: where it lies, its splits, how a batch is drawn and what a broken file does.

A source with `data_dir=null` is its embedded sample: a small, deterministic imitation written once in the real
benchmark's file format and folder layout, and read by the very reader that reads the real thing.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate
from typing_extensions import Unpack

from tasks.datasets.batch import Failure, Read, Sample, Unusable, collate, usable
from tasks.datasets.errors import DataError as DataError
from tasks.datasets.errors import ReadError as ReadError
from tasks.datasets.errors import UnreadableItem as UnreadableItem
from tasks.datasets.locks import locked
from tasks.datasets.mixing import Mixup, multi_hot
from tasks.datasets.sampling import (
    BalancedBatches,
    EpochBatches,
    Key,
    ResumableLoader,
    label_weights,
    labels_of,
)
from tasks.disk import WriteError, draft_of, filling, writing

log = logging.getLogger("widefield")

SPLITS = ("train", "val", "test")
DIGESTED = 10_000  # items of a split, evenly spread, that the digest of a data set looks at
BALANCES = ("none", "labels")
ELSEWHERE = "or draw the sample elsewhere with paths.samples=FOLDER"


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


@dataclass(frozen=True)
class Whole:
    """Labelled items for a test of a model that was trained on other data.

    Args:
        items: their targets are those of the model.
        said: which they are, in words that follow the sentence's subject (`all 60 files are tested`).
    """

    items: Sequence[Item]
    said: str


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


Reader = Callable[[Item, np.random.Generator], tuple[Any, Any]]  # -> (raw, target)


class ItemDataset(Dataset[Read]):
    """Reads the items of one split; every random choice depends on (seed, epoch, index) alone.

    Args:
        items: of the split.
        read: reads one.
        seed: of its random choices.
        draws: whether there are any; a generator for each item takes longer than a slice of memory.
    """

    def __init__(self, items: Sequence[Item], read: Reader, seed: int, draws: bool = True) -> None:
        self.items = items
        self.read = read
        self.seed = seed
        self.only = None if draws else np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Read:
        index, epoch, *before = key
        rng = self.only
        if rng is None:
            rng = np.random.default_rng((self.seed, epoch, index, *(count for count in before if count)))
        try:
            return self.sample(index, rng)
        except UnreadableItem as error:
            return Failure(str(error))
        except (DataError, WriteError) as error:  # a reader process could only hand on a traceback
            return Unusable(str(error))

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """One sample; raises `UnreadableItem`, or `DataError` where the data as a whole cannot be used."""
        raw, target = self.pair(self.items[index], rng)
        return Sample(raw, target, index)

    def pair(self, item: Item, rng: np.random.Generator) -> tuple[Any, Any]:
        """Raw data and target of an item; raises `UnreadableItem`."""
        try:
            return self.read(item, rng)
        except ReadError as error:
            raise UnreadableItem(f"{item.name}: {error}") from error
        except OSError as error:  # deleted, or made unreadable, since it was listed
            raise UnreadableItem(f"{item.name}: {(error.strerror or str(error)).lower()}") from error
        except (DataError, WriteError):  # the data as a whole cannot be used, or a disk refuses
            raise
        except Exception as error:  # one file never takes the others along, whatever its reader comes across
            raise UnreadableItem(f"{item.name}: {unexpected(error)}") from error


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
        read: Reader,
        seed: int,
        *,
        mixup: Mixup,
        classes: int,
    ) -> None:
        super().__init__(items, read, seed)
        self.mixup = mixup
        self.classes = classes

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super().sample(index, rng)

        def other(partner: int) -> tuple[Any, Any]:
            raw, target = self.pair(self.items[partner], rng)
            return raw, multi_hot(target, self.classes)

        own_K = multi_hot(sample.target, self.classes)
        try:
            raw, mixed_K = self.mixup(sample.raw, own_K, len(self), other, rng)
        except TypeError as error:
            raise DataError(f"task.data.mixup: {error}") from error
        return replace(sample, raw=raw, mixed_target=mixed_K)


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
    format: str = "files"  # a source of shards has another
    draws: ClassVar[bool] = True  # whether `read_item` makes random choices
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
        self.notes: list[str] = []  # what was inferred or left out in reading; said in the first lines

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

    def read_pair(self, item: Item, train: bool, rng: np.random.Generator) -> tuple[Any, Any]:
        """Read one item as a raw sample and its target, which lies where the raw sample was cropped; raises
        `ReadError`. As it is: `read_item`, and the target that the item has from `read_splits`."""
        return self.read_item(item, train, rng), item.target

    def join_targets(self, targets: list[Any]) -> Any:
        """The targets of some samples -> the target of their batch: stacked, unless their kind wants otherwise."""
        return default_collate(targets)

    def join_raws(self, raws: list[Any]) -> Any:
        """The raw data of some samples -> the raw batch: stacked, unless their sizes differ."""
        return default_collate(raws)

    def read_file(self, path: Path) -> Any:
        """Read a user's file for prediction, as `read_item` does at test time; raises `ReadError`."""
        raise NotImplementedError

    def fetch(self, root: Path) -> None:
        """Download the real data into `root`; raises `DataError`."""
        raise DataError(f"{self.name} has no official download; place it by hand: {self.layout}")

    def looks_complete(self, root: Path) -> bool:
        """Whether `root` already holds the real data, so that nothing is downloaded."""
        return root.is_dir() and any(not _of_a_download(path) for path in root.iterdir())

    # -- what Lightning and the workbench call ------------------------------------------------------------------

    def prepare_data(self) -> None:
        if self.source == "sample":
            self._draw_sample()
        elif self.download and not self.looks_complete(self.root):
            with writing(self.root, "or choose another folder with data_dir=FOLDER"):
                self.root.mkdir(parents=True, exist_ok=True)
                self._fetch_once()

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

    def class_counts(self) -> tuple[NDArray[np.int64], int] | None:
        """How often each class occurs in what is trained on, (K,), and how much that is; None: there are no classes."""
        return None

    def info(self) -> dict[str, Any]:
        """What a model must know of the data to answer (plain values; kept in every checkpoint)."""
        return {}

    def recall(self, data_info: dict[str, Any]) -> None:
        """Take over what a checkpoint says of its data before `read_file`, where a reader needs it (columns, …)."""

    def adopt(self, data_info: dict[str, Any]) -> None:
        """Make the test split one for a model of this data, which was trained on other data.

        Raises:
            DataError: the model cannot be asked about these data, e.g. classes that it does not know, by name.
        """
        if data_info != self.info():
            raise DataError(f"{self.place} is other data than the model was trained on, and of another kind")

    def read_whole(self, data_info: dict[str, Any]) -> Whole | None:
        """All labelled items to test a model of this data on, or those of a test split that the data themselves
        state; None: the source has but one test split, that of `setup` (benchmarks).

        Raises:
            DataError: as `adopt`.
        """
        return None

    def take_whole(self, whole: Whole, data_info: dict[str, Any]) -> None:
        """Make these items the test split, and the only one."""
        self.recall(data_info)
        self.splits = {"test": spread(whole.items, self.limit)}

    def record(self) -> dict[str, Any]:
        """What data these are, to be compared later (plain values; kept in every checkpoint beside the data_info).

        `place` and `digest` are hashes: of the folder's path, and of the names and targets of the items.
        """
        return {
            "source": self.source,
            "place": self.place_digest(),
            "samples": {split: len(self.splits[split]) for split in SPLITS},
            "digest": self.digest(),
        }

    def place_digest(self) -> str:
        """A hash of where the data lie."""
        place = self.place if "://" in self.place else str(Path(self.place).resolve())
        return hashlib.sha256(place.encode()).hexdigest()[:32]

    def digest(self) -> str:
        """A hash of the items of all splits: their names below the folder and their targets."""
        found, root = hashlib.sha256(), f"{self.root}{os.sep}"
        for split in SPLITS:
            for item in spread(self.splits[split], DIGESTED):
                target = b"" if item.target is None else np.asarray(item.target).tobytes()
                found.update(f"{split}\0{item.name.removeprefix(root)}\0".encode("utf-8", "surrogateescape"))
                found.update(target)
        return found.hexdigest()[:32]

    def describe(self) -> str:
        """One line: what data this is and where it lies."""
        kind = "embedded sample of " if self.source == "sample" else ""
        sizes = " / ".join(f"{len(self.splits[split]):,} {split}" for split in SPLITS if split in self.splits)
        return f"{kind}{self.name} ({sizes} {self.unit}{self.details()}) in {self.place}"

    @property
    def title(self) -> str:
        """What people call the data set."""
        return str(self.name)

    @property
    def drawn(self) -> list[str]:
        """The title of the data set that these data, drawn by us, only imitate; empty: the data are real.

        A folder of samples that is given as `data_dir` is a drawn one, too.
        """
        return [self.title] if self.source == "sample" or is_drawn(self.root) else []

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
        return ResumableLoader(
            dataset,
            batch_sampler=self._batches(split, train, batch_size),
            num_workers=workers,
            collate_fn=partial(collate, join=self.join_targets, join_raws=self.join_raws),
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
        dataset = self._dataset(chosen, train=False)
        for start in range(0, len(chosen), self.batch_size):
            stop = min(start + self.batch_size, len(chosen))
            read = [dataset[index, 0] for index in range(start, stop)]
            batch = usable(collate(read, self.join_targets, self.join_raws))
            if len(batch):
                yield batch.raw

    # -- helpers ------------------------------------------------------------------------------------------------

    def _dataset(self, items: Sequence[Item], train: bool) -> ItemDataset:
        """What reads these items."""
        return ItemDataset(items, self._reader(train), self.seed, self.draws)

    def _batches(self, split: str, train: bool, batch_size: int) -> EpochBatches:
        """Which items make up each batch."""
        count = len(self.splits[split])
        return EpochBatches(count, batch_size, shuffle=train, drop_last=train, seed=self.seed)

    def _reader(self, train: bool) -> Reader:
        """`read_pair` with the train flag fixed, in a form that reader processes can be given."""
        return _Reader(self, train)

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return 0 if self.source == "sample" else min(8, max((os.cpu_count() or 1) - 1, 1))

    def _fetch_once(self) -> None:
        """`fetch`, in one of the processes that want it at the same time."""

        def waiting() -> None:
            log.info("download: another process is fetching %s; waiting for it", self.name)

        with locked(self.root / ".fetch.lock", keep=False, waiting=waiting):
            if not self.looks_complete(self.root):
                self.fetch(self.root)

    def _draw_sample(self) -> None:
        draw_once(self.root, {"task": self.name, "version": self.sample_version}, self.write_sample)


def _of_a_download(path: Path) -> bool:
    return path.name.startswith(".") or path.name.endswith((".part", ".part.json", ".sha256"))


def draw_once(root: Path, stamp: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Let `write` fill the folder `root`, unless it already holds what `stamp` says.

    An older sample gives way to the new one; nothing else does.

    Raises:
        DataError: something lies there that was not drawn by us.
        WriteError: the disk refuses; nothing is left of the attempt.
    """
    root = root.resolve()
    marker = root / "SAMPLE.json"
    if _stamp(marker) == stamp:
        return
    refuse_strangers(root)
    # Drawn beside its place and moved there in one step: a kill or a parallel run never leaves half a sample.
    draft = draft_of(root)
    try:
        with writing(root, ELSEWHERE):
            draft.mkdir(parents=True)
            with filling(root, ELSEWHERE):
                write(draft)
            (draft / "SAMPLE.json").write_text(json.dumps(stamp))
            if root.exists():
                refuse_strangers(root)
                root.rename(draft.with_name(f"{draft.name}-old"))
            draft.rename(root)
    except (OSError, WriteError):
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


def is_drawn(path: Path) -> bool:
    """Whether a file or folder is a sample drawn by us, or lies in one."""
    return any(_stamp(folder / "SAMPLE.json") for folder in (path, *path.absolute().parents))


def refuse_strangers(root: Path) -> None:
    """Raise a `DataError` where `root` holds anything but a sample drawn by us."""
    if not root.exists() or _stamp(root / "SAMPLE.json") or (root.is_dir() and not any(root.iterdir())):
        return
    raise DataError(
        f"{root} is where the embedded sample goes, but holds something else: move it, say paths.samples=FOLDER to "
        f"draw elsewhere, or {shlex.quote(f'data_dir={root}')} to read it as your data"
    )


def unexpected(error: Exception) -> str:
    """One sentence for an error that the reader of a file did not foresee."""
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return f"it cannot be read ({type(error).__name__}{f': {reason}' if reason else ''})"


def check_file(path: Path) -> None:
    """Raise a `ReadError` unless a regular file with content is there; a pipe or a device could block for ever."""
    if not path.is_file():
        what = " (it is a folder, pipe or device)" if path.exists() else ""
        raise ReadError(f"there is no such file{what}")
    if path.stat().st_size == 0:
        raise ReadError("the file is empty (0 bytes)")


class _Reader:
    """`read_pair` of a data module with the train flag fixed (a class, so that workers can pickle it)."""

    def __init__(self, data: DataModule, train: bool) -> None:
        self.data = data
        self.train = train

    def __call__(self, item: Item, rng: np.random.Generator) -> tuple[Any, Any]:
        return self.data.read_pair(item, self.train, rng)


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

    def info(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names), "multilabel": self.multilabel}

    def recall(self, data_info: dict[str, Any]) -> None:
        self.class_names = list(data_info["class_names"])

    def adopt(self, data_info: dict[str, Any]) -> None:
        own, known = list(self.class_names), list(data_info["class_names"])
        if self.multilabel != data_info["multilabel"]:
            raise DataError(
                f"the model gives each sample {'several labels' if data_info['multilabel'] else 'one label'}, "
                f"{self.place} {'several' if self.multilabel else 'one'}"
            )
        refuse_unknown(own, known, self.place)
        places = np.array([known.index(name) for name in own], dtype=np.int64)

        def translated(target: Any) -> Any:
            if not np.ndim(target):
                return int(places[int(target)])
            moved: NDArray[np.float32] = np.zeros(len(known), dtype=np.float32)
            moved[places] = target
            return moved

        if own != known:
            items = self.splits["test"]
            self.splits = {"test": [replace(item, target=translated(item.target)) for item in items]}
        self.class_names = known

    def details(self) -> str:
        balanced = ", drawn by the rarity of their labels" if self.balance == "labels" else ""
        return f", {len(self.class_names)} classes{balanced}"

    def class_counts(self) -> tuple[NDArray[np.int64], int]:
        """Training samples of each class, (K,), and all training samples."""
        positives_K = np.zeros(len(self.class_names), dtype=np.int64)
        for labels in self.labels("train"):
            positives_K[labels] += 1
        return positives_K, len(self.splits["train"])

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


def refuse_unknown(own: Sequence[str], known: Sequence[str], place: str) -> None:
    """Raise a `DataError` for classes that a model does not know."""
    unknown = sorted(set(own) - set(known))
    if unknown:
        raise DataError(
            f"{place} has classes that the model does not know: {_listed(unknown)}; it knows {_listed(known)}"
        )


def not_there(own: Iterable[str], known: Sequence[str]) -> str:
    """The classes of a model that its test data lack, in words; empty where there are none.

    >>> not_there(["cat"], ["cat", "cow", "dog"])
    '; there is nothing of cow, dog, which it knows'
    """
    there = set(own)
    absent = [name for name in known if name not in there]
    return f"; there is nothing of {_listed(absent)}, which it knows" if absent else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"
