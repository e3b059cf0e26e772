"""Base class of all data modules: location, splits, batching, and handling of unreadable files.

With `data_dir=null` a data module uses its embedded sample: a small, deterministic imitation written once in the real
benchmark's file format and folder layout, and read by the same reader as the real data.
"""

import hashlib
import logging
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import default_collate

from tasks.datasets.batch import collate, usable
from tasks.datasets.class_names import not_there as not_there
from tasks.datasets.class_names import refuse_unknown as refuse_unknown
from tasks.datasets.drawn import draw_once as draw_once
from tasks.datasets.drawn import is_drawn as is_drawn
from tasks.datasets.errors import DataError as DataError
from tasks.datasets.errors import ReadError as ReadError
from tasks.datasets.errors import UnreadableItem as UnreadableItem
from tasks.datasets.in_memory import MemoryDataset
from tasks.datasets.item_dataset import ItemDataset as ItemDataset
from tasks.datasets.item_dataset import Reader as Reader
from tasks.datasets.items import SPLITS as SPLITS
from tasks.datasets.items import Item as Item
from tasks.datasets.items import Whole as Whole
from tasks.datasets.items import share_of
from tasks.datasets.items import spread as spread
from tasks.datasets.lazy_items import ChosenItems
from tasks.datasets.locks import locked
from tasks.datasets.mixing import Mixup
from tasks.datasets.reading import check_file as check_file
from tasks.datasets.reading import unexpected as unexpected
from tasks.datasets.sampling import EpochBatches, ResumableLoader
from tasks.datasets.targets import ClassTargets, Kind, Targets
from tasks.disk import writing

log = logging.getLogger("widefield")

DIGESTED = 10_000  # maximum number of items per split, evenly spaced, that the digest of a data set covers


class CommonSettings(TypedDict, total=False):
    """Arguments of every data module, passed to `DataModule`."""

    name: str
    data_dir: str | None
    samples_dir: str
    download: bool
    batch_size: int
    eval_batch_size: int | None
    num_workers: int | None
    seed: int
    limit: int | None
    train_fraction: float
    train_passes: int | None
    in_memory: bool | None


class ClassificationSettings(CommonSettings, total=False):
    """Arguments of every classification data module, passed to `ClassTargets`."""

    balance: str
    mixup: Mixup | None


Loader = TypeVar("Loader", bound=ResumableLoader)


def limited(loader: Loader, data: LightningDataModule) -> Loader:
    """Sets the loader's `limit` to the trainer's `limit_train_batches`; returns the loader."""
    if data.trainer is not None:
        loader.limit = data.trainer.limit_train_batches
    return loader


class DataModule(LightningDataModule):
    """One data set of one modality.

    A subclass defines `modality`, `layout` (what `data_dir` must look like), `homepage`, `extensions`, and implements
    `write_sample`, `read_splits`, `read_item`, `read_file`, and `fetch` where an official download exists. The
    semantics of its targets are defined by its `targets` object, which `kind` constructs.

    Args:
        name: name of the task; the embedded sample is in `samples_dir/name`.
        data_dir: folder of the real data, or `None` for the embedded sample.
        samples_dir: folder of the embedded samples of all tasks.
        download: download the real data into `data_dir` if missing.
        batch_size: training batch size per device.
        eval_batch_size: batch size for validation and test; `None` means `batch_size`.
        num_workers: `DataLoader` workers; `None` means 0 for the sample and up to 8 for real data.
        seed: seed of the order, crops and augmentation.
        limit: maximum number of items per split, evenly spaced (for quick trials).
        train_fraction: share of the training split that is used, chosen by `training_share` with the seed; validation
            and test stay whole.
        train_passes: number of passes over the used training items that an epoch consists of; `None`: as many draws
            as the training split has items without `train_fraction`.
        in_memory: read the training and validation splits once and keep them in memory; `None`: those of the embedded
            sample, if it is read from files and reading is not random, or `draws_apart`.
        **targets: arguments of `kind`.

    Raises:
        DataError: missing or unusable data, in one sentence.
    """

    modality: ClassVar[str]
    layout: ClassVar[str]
    homepage: ClassVar[str | None] = None
    extensions: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "files"
    format: str = "files"  # `ReadsShards` has another
    targets: Targets
    kind: ClassVar[Kind] = Targets  # constructs `targets` from its arguments
    draws: bool = True  # whether `read_item` is random in training
    draws_apart: ClassVar[bool] = False  # whether `read_pair` in training is `decode`, then `augmented`
    read_alike: ClassVar[str] = (
        ""  # end of the sentence that refuses `in_memory`: the setting without which it is not
    )
    sample_version: ClassVar[int] = 1  # incremented when write_sample changes: old samples are regenerated

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "multilabel" in vars(cls):
            raise TypeError(
                f"{cls.__name__}: say kind = partial(ClassTargets, multilabel=True), not multilabel"
            )

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
        train_fraction: float = 1.0,
        train_passes: int | None = 1,
        in_memory: bool | None = False,
        **targets: Any,
    ) -> None:
        super().__init__()
        for what, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("limit", limit),
            ("train_passes", train_passes),
        ):
            _refuse_no_count(what, value)
        if not isinstance(train_fraction, int | float) or not 0 < train_fraction <= 1:
            raise DataError(f"train_fraction must be above 0 and at most 1, not {train_fraction}")
        if download and data_dir is None:
            raise DataError("download=true needs data_dir=PATH, the folder to download into")
        self.targets = type(self).kind(**targets)
        self.name = name
        self.root = Path(samples_dir) / name if data_dir is None else Path(data_dir).expanduser()
        self.source = "sample" if data_dir is None else "full"
        self.download = download
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.limit = limit
        self.train_fraction = train_fraction
        self.train_passes = train_passes
        self.in_memory = in_memory
        self._in_memory: dict[tuple[str, bool], MemoryDataset] = {}
        self.splits: dict[str, Sequence[Item]] = {}
        self.whole_train = 0  # number of training items without `train_fraction`, set with `splits`
        self.notes: list[str] = []  # what was inferred or skipped while reading; logged at the start

    # -- what a subclass implements -----------------------------------------------------------------------------

    def write_sample(self, root: Path) -> None:
        """Write the embedded sample to `root`, deterministically, in the real layout."""
        raise NotImplementedError

    def read_splits(self, root: Path) -> Mapping[str, Sequence[Item]]:
        """The items of `train`, `val` and `test` below `root`; raises `DataError` (see `bad_layout`)."""
        raise NotImplementedError

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Any:
        """Read one item as a raw sample (no batch dimension); raises `ReadError`."""
        raise NotImplementedError

    def read_pair(self, item: Item, train: bool, rng: np.random.Generator) -> tuple[Any, Any]:
        """Read one item as a raw sample and its target, cropped alike; raises `ReadError`. By default: `read_item`, and
        the item's target from `read_splits`."""
        return self.read_item(item, train, rng), item.target

    def decode(self, item: Item) -> tuple[Any, Any]:
        """With `draws_apart`, what is the same in every epoch: raw sample and target; raises `ReadError`."""
        raise NotImplementedError

    def augmented(self, raw: Any, target: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        """With `draws_apart`, the random transforms of what `decode` returned, which stays unchanged."""
        raise NotImplementedError

    def join_targets(self, targets: list[Any]) -> Any:
        """Collates targets to the target of a batch (`Targets.join`)."""
        return self.targets.join(targets)

    def join_raws(self, raws: list[Any]) -> Any:
        """Collates raw samples to a raw batch. By default they are stacked."""
        return default_collate(raws)

    def read_file(self, path: Path) -> Any:
        """Read a user's file for prediction, like `read_item` at test time; raises `ReadError`."""
        raise NotImplementedError

    def device_transforms(self) -> nn.Module | None:
        """Training transforms that run on the device, (raw batch, target) -> the same pair; None if the reader makes
        them all."""
        return None

    def files_listed_in(self, path: Path) -> list[Path] | None:
        """The files to predict that a file of annotations names; None: `path` is no such file.

        Raises:
            DataError: it is one, but cannot be used.
        """
        return None

    def fetch(self, root: Path) -> None:
        """Download the real data into `root`; raises `DataError`."""
        raise DataError(f"{self.name} has no official download; place it by hand: {self.layout}")

    def looks_complete(self, root: Path) -> bool:
        """Whether `root` already contains the real data, so that nothing is downloaded."""
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
        used = {split: self._used(split, splits[split]) for split in SPLITS}
        self.splits = {split: spread(items, self.limit) for split, items in used.items()}
        self.whole_train = len(spread(splits["train"], self.limit))

    def training_share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The training items that `train_fraction` leaves: the same share of each class, drawn with the seed."""

        def stratum(place: int) -> Hashable:
            return self.targets.stratum(items[place])

        places = share_of(range(len(items)), self.train_fraction, self.seed, stratum)
        return ChosenItems(items, places)

    def _used(self, split: str, items: Sequence[Item]) -> Sequence[Item]:
        """The items of a split, reduced to `train_fraction` for training."""
        if split != "train" or self.train_fraction == 1:
            return items
        used = self.training_share(items)
        self.notes.append(
            f"{len(used):,} of {len(items):,} training {self.unit} are used (task.data.train_fraction="
            f"{self.train_fraction:g})"
        )
        return used

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of their indices; empty for targets without classes."""
        return self.targets.class_names

    @class_names.setter
    def class_names(self, names: list[str]) -> None:
        self.targets.class_names = names

    @property
    def multilabel(self) -> bool:
        """Whether an item may have several classes."""
        return self.targets.multilabel

    @multilabel.setter
    def multilabel(self, several: bool) -> None:
        self.targets.multilabel = several

    def by_task(self) -> "dict[str, DataModule]":
        """Maps a task name to its data module; a single task has the key `''`."""
        return {"": self}

    def class_counts(self) -> tuple[NDArray[np.int64], int] | None:
        """Number of occurrences of each class in the training split, (K,), and the total; None without classes."""
        return self.targets.class_counts(self.splits["train"])

    def info(self) -> dict[str, Any]:
        """What a model needs to know about the data to predict (plain values; saved in every checkpoint)."""
        return self.targets.info()

    def recall(self, data_info: dict[str, Any]) -> None:
        """Restore `info()` of a checkpoint before `read_file`, where a reader needs it (columns, …)."""
        self.targets.recall(data_info)

    def adopt(self, data_info: dict[str, Any]) -> None:
        """Convert the test split for a model that was trained on other data.

        Raises:
            DataError: the model cannot be tested on these data, e.g. it lacks some of their classes (by name).
        """
        items = self.splits.get("test", [])
        adopted = self.targets.adopt(items, self.info(), data_info, self.place)
        if adopted is not items:
            self.splits = {"test": adopted}

    def read_whole(self, data_info: dict[str, Any]) -> Whole | None:
        """Returns all labelled items for testing a model with this `data_info`, or those of a test split that the data
        define themselves; None if the only test split is that of `setup` (benchmarks).

        Raises:
            DataError: as `adopt`.
        """
        return None

    def take_whole(self, whole: Whole, data_info: dict[str, Any]) -> None:
        """Make these items the test split, and drop the other splits."""
        self.recall(data_info)
        self.splits = {"test": spread(whole.items, self.limit)}

    def record(self) -> dict[str, Any]:
        """Fingerprint of the data, for later comparison (plain values; saved in every checkpoint beside the data_info).

        `place` and `digest` are hashes: of the folder's path, and of the names and targets of the items.
        """
        return {
            "source": self.source,
            "place": self.place_digest(),
            "samples": {split: len(self.splits[split]) for split in SPLITS},
            "digest": self.digest(),
        }

    def place_digest(self) -> str:
        """Hash of the location of the data."""
        place = self.place if "://" in self.place else str(Path(self.place).resolve())
        return hashlib.sha256(place.encode()).hexdigest()[:32]

    def digest(self) -> str:
        """Hash of the items of all splits: their names relative to the folder, and their targets."""
        found, root = hashlib.sha256(), f"{self.root}{os.sep}"
        for split in SPLITS:
            for item in spread(self.splits[split], DIGESTED):
                target = b"" if item.target is None else np.asarray(item.target).tobytes()
                found.update(f"{split}\0{item.name.removeprefix(root)}\0".encode("utf-8", "surrogateescape"))
                found.update(target)
        return found.hexdigest()[:32]

    def describe(self) -> str:
        """One-line description of the data and their location."""
        kind = "embedded sample of " if self.source == "sample" else ""
        sizes = " / ".join(f"{len(self.splits[split]):,} {split}" for split in SPLITS if split in self.splits)
        return f"{kind}{self.name} ({sizes} {self.unit}{self.details()}) in {self.place}"

    @property
    def title(self) -> str:
        """Display name of the data set."""
        return str(self.name)

    @property
    def drawn(self) -> list[str]:
        """The title of the data set that these synthetic data imitate; empty for real data.

        A folder of embedded samples that is passed as `data_dir` counts as synthetic, too.
        """
        return [self.title] if self.source == "sample" or is_drawn(self.root) else []

    @property
    def place(self) -> str:
        """Location of the data: a folder, or a URL."""
        return str(self.root)

    def example_file(self) -> Path | None:
        """A file to try a prediction on."""
        return self.splits["test"][0].path if self.splits else None

    def details(self) -> str:
        """Suffix of `describe` after the sizes, beginning with a comma."""
        return self.targets.details()

    def bad_layout(self, problem: str) -> DataError:
        """The error for a `data_dir` that is not what the reader expects."""
        where = f" (get it from {self.homepage})" if self.homepage else ""
        return DataError(f"{problem}; {self.name} expects {self.layout}{where}")

    def loader(
        self, split: str, *, train: bool | None = None, batch_size: int | None = None
    ) -> ResumableLoader:
        """The loader of a split: shuffled and augmented for training, else every item once in order."""
        train = split == "train" if train is None else train
        items = self.splits[split]
        if batch_size is None:
            batch_size = min(self.batch_size, self._draws(split, train)) if train else self.eval_batch_size
        dataset = self._kept(split, train) if self._keeps(split) else self._dataset(items, train)
        kept = isinstance(dataset, MemoryDataset) and self.num_workers is None
        workers = 0 if kept else self._workers()
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
        """Raw batches of the training split without augmentation: at most about `most` samples, evenly spaced."""
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
        """The reader of these items."""
        return self.targets.dataset(items, self._reader(train), train=train, seed=self.seed, draws=self.draws)

    def _keeps(self, split: str) -> bool:
        """Whether a split is kept in memory."""
        if split == "test":
            return False
        if self.in_memory is None:
            steady = self.draws_apart or not self.draws
            return self.source == "sample" and self.format == "files" and steady
        return self.in_memory

    def _kept(self, split: str, train: bool) -> MemoryDataset:
        """The data set of a split, read once and kept in memory."""
        source = self._dataset(self.splits[split], train)
        draw = self.augmented if train and self.draws and self.draws_apart else None
        if self.format != "files":
            raise DataError("task.data.in_memory=true keeps files in memory: say task.data.format=files")
        if train and ((self.draws and draw is None) or type(source) is not ItemDataset):
            raise DataError(
                f"task.data.in_memory=true keeps samples as they were read, and training samples of {self.name} are "
                f"read differently each time: say task.data.in_memory=false{self.read_alike if self.draws else ''}"
            )
        kept = self._in_memory.get((split, train))
        if kept is None or kept.items is not source.items:
            if draw is not None:
                source.read = _Decoder(self)
            kept = self._in_memory[split, train] = MemoryDataset(source, split, self.join_targets, draw)
        return kept

    def _batches(self, split: str, train: bool, batch_size: int) -> EpochBatches:
        """The batch sampler of a split."""
        return self.targets.batches(
            self.splits[split],
            train=train,
            batch_size=batch_size,
            seed=self.seed,
            draws=self._draws(split, train),
        )

    def _draws(self, split: str, train: bool) -> int:
        """The number of items drawn in an epoch."""
        items = len(self.splits[split])
        if not train or split != "train":
            return items
        return self.whole_train if self.train_passes is None else items * self.train_passes

    def _reader(self, train: bool) -> Reader:
        """`read_pair` with the train flag fixed, picklable for workers."""
        return _Reader(self, train)

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return 0 if self.source == "sample" else min(8, max((os.cpu_count() or 1) - 1, 1))

    def _fetch_once(self) -> None:
        """Call `fetch` in one of several concurrent processes; the others wait."""

        def waiting() -> None:
            log.info("download: another process is fetching %s; waiting for it", self.name)

        with locked(self.root / ".fetch.lock", keep=False, waiting=waiting):
            if not self.looks_complete(self.root):
                self.fetch(self.root)

    def _draw_sample(self) -> None:
        draw_once(self.root, {"task": self.name, "version": self.sample_version}, self.write_sample)


def _refuse_no_count(what: str, value: Any) -> None:
    """Raise a `DataError` unless a setting is a whole number of at least 1, or None."""
    if value is not None and not isinstance(value, Integral):
        raise DataError(f"{what} must be a whole number, not {value}")
    if value is not None and int(value) < 1:
        raise DataError(f"{what} must be at least 1, not {value}")


def _of_a_download(path: Path) -> bool:
    return path.name.startswith(".") or path.name.endswith((".part", ".part.json", ".sha256"))


class _Reader:
    """`read_pair` of a data module with the train flag fixed (a class, so that workers can pickle it)."""

    def __init__(self, data: DataModule, train: bool) -> None:
        self.data = data
        self.train = train

    def __call__(self, item: Item, rng: np.random.Generator) -> tuple[Any, Any]:
        return self.data.read_pair(item, self.train, rng)


class _Decoder:
    """`decode` of a data module as a reader (a class, so that workers can pickle it)."""

    def __init__(self, data: DataModule) -> None:
        self.data = data

    def __call__(self, item: Item, rng: np.random.Generator) -> tuple[Any, Any]:
        return self.data.decode(item)


class ClassificationData(DataModule):
    """A data module whose targets are classes; see `ClassTargets` for its settings."""

    kind: ClassVar[Kind] = ClassTargets
