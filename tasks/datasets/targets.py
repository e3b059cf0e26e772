"""Kinds of target: class indices, multi-hot arrays, ….

A data module is composed with one (`DataModule.targets`), constructed by `DataModule.kind`: images may have classes,
masks or boxes as targets, audio classes or events.

Shapes: K classes.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import default_collate

from tasks.datasets.class_names import refuse_unknown
from tasks.datasets.errors import DataError
from tasks.datasets.item_dataset import ItemDataset, MixedDataset, Reader
from tasks.datasets.items import Item
from tasks.datasets.mixing import Mixup
from tasks.datasets.sampling import BalancedBatches, EpochBatches, label_weights, labels_of

BALANCES = ("none", "labels")


class Targets:
    """Base class: targets are tensors or numbers of one shape, stacked in a batch."""

    def __init__(self) -> None:
        self.class_names: list[str] = []  # set when the data are read; empty without classes
        self.multilabel = False  # whether an item may have several classes, or none

    def join(self, targets: list[Any]) -> Any:
        """Collates targets to the target of a batch."""
        return default_collate(targets)

    def info(self) -> dict[str, Any]:
        """What a model needs to know about the targets to predict (plain values; saved in every checkpoint)."""
        return {}

    def recall(self, data_info: dict[str, Any]) -> None:
        """Restore `info()` of a checkpoint."""

    def adopt(
        self, items: Sequence[Item], info: dict[str, Any], data_info: dict[str, Any], place: str
    ) -> Sequence[Item]:
        """Converts the targets of test items for a model that was trained on other data.

        Args:
            items: items of the test split.
            info: `DataModule.info` of the test data.
            data_info: that of the model's training data.
            place: name of the data in messages.

        Raises:
            DataError: the model cannot be tested on these data.
        """
        if data_info != info:
            raise DataError(f"{place} is other data than the model was trained on, and of another kind")
        return items

    def details(self) -> str:
        """Suffix for `DataModule.describe`, beginning with a comma."""
        return ""

    def class_counts(self, items: Sequence[Item]) -> tuple[NDArray[np.int64], int] | None:
        """Number of occurrences of each class in these items, (K,), and the total; None without classes."""
        return None

    @property
    def in_any_order(self) -> str:
        """Names of the active settings that need random access, which shards do not support; empty if none."""
        return ""

    def stratum(self, item: Item) -> Hashable:
        """What a share of the items keeps the proportions of: the class, if an item has one."""
        return None

    def dataset(
        self, items: Sequence[Item], read: Reader, *, train: bool, seed: int, draws: bool
    ) -> ItemDataset:
        """The data set of a split's items; see `ItemDataset`."""
        return ItemDataset(items, read, seed, draws)

    def batches(
        self, items: Sequence[Item], *, train: bool, batch_size: int, seed: int, draws: int
    ) -> EpochBatches:
        """The batch sampler of a split; see `EpochBatches`."""
        return EpochBatches(len(items), batch_size, shuffle=train, drop_last=train, seed=seed, draws=draws)


#: Constructs the targets of a data module from their settings: a class, or a function.
Kind = Callable[..., Targets]


class ClassTargets(Targets):
    """Classes: an index, or with `multilabel` a multi-hot float array (K,).

    The order of `class_names` is the same on every machine.

    Args:
        balance: sampling of training items: `none`, each once per epoch; `labels`, with replacement, weighted by the
            rarity of their labels (`tasks.datasets.sampling.label_weights`).
        mixup: mixes training items as they are read; a batch then has soft `mixed_target`s (B, K).
        multilabel: whether an item may have several classes.
    """

    def __init__(
        self, *, balance: str = "none", mixup: Mixup | None = None, multilabel: bool = False
    ) -> None:
        super().__init__()
        if balance not in BALANCES:
            raise DataError(f"balance must be {' or '.join(BALANCES)}, not {balance!r}")
        self.balance = balance
        self.mixup = mixup
        self.multilabel = multilabel
        self._weights: NDArray[np.float64] | None = None  # of the training items, computed on first use

    def info(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names), "multilabel": self.multilabel}

    def recall(self, data_info: dict[str, Any]) -> None:
        self.class_names = list(data_info["class_names"])

    def adopt(
        self, items: Sequence[Item], info: dict[str, Any], data_info: dict[str, Any], place: str
    ) -> Sequence[Item]:
        own, known = list(self.class_names), list(data_info["class_names"])
        if self.multilabel != data_info["multilabel"]:
            raise DataError(
                f"the model gives each sample {'several labels' if data_info['multilabel'] else 'one label'}, "
                f"{place} {'several' if self.multilabel else 'one'}"
            )
        refuse_unknown(own, known, place)
        self.class_names = known
        if own == known:
            return items
        translated = translation(own, known)
        return [replace(item, target=translated(item.target)) for item in items]

    def details(self) -> str:
        balanced = ", drawn by the rarity of their labels" if self.balance == "labels" else ""
        return f", {len(self.class_names)} classes{balanced}"

    @property
    def in_any_order(self) -> str:
        asked = self.balance != "none" or self.mixup is not None
        return "task.data.balance and task.data.mixup" if asked else ""

    def dataset(
        self, items: Sequence[Item], read: Reader, *, train: bool, seed: int, draws: bool
    ) -> ItemDataset:
        if not train or self.mixup is None:
            return super().dataset(items, read, train=train, seed=seed, draws=draws)
        return MixedDataset(items, read, seed, mixup=self.mixup, classes=len(self.class_names))

    def stratum(self, item: Item) -> Hashable:
        return None if self.multilabel or item.target is None else int(item.target)

    def batches(
        self, items: Sequence[Item], *, train: bool, batch_size: int, seed: int, draws: int
    ) -> EpochBatches:
        if not train or self.balance == "none":
            return super().batches(items, train=train, batch_size=batch_size, seed=seed, draws=draws)
        if self._weights is None or len(self._weights) != len(items):
            self._weights = label_weights(labels_in(items), len(self.class_names))
        return BalancedBatches(self._weights, batch_size, seed=seed, draws=draws)

    def class_counts(self, items: Sequence[Item]) -> tuple[NDArray[np.int64], int]:
        """Number of items of each class, (K,), and of all items."""
        positives_K: NDArray[np.int64] = np.zeros(len(self.class_names), dtype=np.int64)
        for labels in labels_in(items):
            positives_K[labels] += 1
        return positives_K, len(items)


def labels_in(items: Sequence[Item]) -> Iterator[NDArray[Any]]:
    """The classes of each item."""
    return (labels_of(item.target) for item in items)


def translation(own: Sequence[str], known: Sequence[str]) -> Callable[[Any], Any]:
    """A function that maps a target for the classes `own` to one for the classes `known`, a superset.

    >>> translation(["cow", "dog"], ["cat", "cow", "dog"])(1)
    2
    """
    places = np.array([known.index(name) for name in own], dtype=np.int64)

    def translated(target: Any) -> Any:
        if not np.ndim(target):
            return int(places[int(target)])
        moved: NDArray[np.float32] = np.zeros(len(known), dtype=np.float32)
        moved[places] = target
        return moved

    return translated
