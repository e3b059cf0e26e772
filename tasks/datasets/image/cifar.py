"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 60,000 images of 32 × 32 pixels in Python pickles."""

import codecs
import io
import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from tasks.datasets.download import Source
from tasks.datasets.errors import DataError
from tasks.datasets.fetch import download_and_unpack
from tasks.datasets.image.files import ImageData, ImageTransforms
from tasks.datasets.image.imagenet import check_val_part
from tasks.datasets.items import Item
from tasks.datasets.shards.data import ShardableSettings
from tasks.datasets.splits import held_out_files

if TYPE_CHECKING:
    from PIL import Image

PLANES = 3 * 32 * 32


class Cifar10(ImageData):
    """CIFAR-10, the Python version, with the official 50,000 / 10,000 images.

    A fraction of the training images of every class is held out for validation, by a hash of the names.

    Args:
        val_part: fraction of the training images used for validation.
        transforms: see `ImageData`.
        **common: see `ShardableData` and `DataModule`.
    """

    title = "CIFAR-10"
    layout = (
        "data_batch_1 … data_batch_5, test_batch and batches.meta "
        "(the unpacked cifar-10-python.tar.gz, or its folder)"
    )
    homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"

    archive: ClassVar[Source] = Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    )
    folder: ClassVar[str] = "cifar-10-batches-py"
    train_files: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{number}" for number in range(1, 6))
    test_file: ClassVar[str] = "test_batch"
    meta_file: ClassVar[str] = "batches.meta"
    labels_key: ClassVar[str] = "labels"
    names_key: ClassVar[str] = "label_names"

    def __init__(
        self,
        *,
        val_part: float = 0.1,
        transforms: ImageTransforms | None = None,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(transforms=transforms, **common)
        self.val_part = check_val_part(val_part)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.sample import cifar10

        cifar10(root)

    def looks_complete(self, root: Path) -> bool:
        return self._find(root) is not None

    def fetch(self, root: Path) -> None:
        download_and_unpack(self.archive, root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        found = self._find(root)
        if found is None:
            raise self.bad_layout(f"no {self.meta_file} in {root}")
        names = read_pickle(found / self.meta_file).get(self.names_key)
        if not isinstance(names, list) or len(names) < 2:
            raise DataError(f"{found / self.meta_file} holds no {self.names_key}")
        self.class_names = [str(name) for name in names]
        training = [self._rows(found / name) for name in self.train_files]
        testing = self._rows(found / self.test_file)
        named = (
            (str(label), f"{label}/{name}")
            for rows in training
            for label, name in zip(rows.labels, rows.names, strict=True)
        )
        held = held_out_files(named, self.val_part)
        splits: dict[str, list[Item]] = {"train": [], "val": [], "test": testing.items()}
        for rows in training:
            for item, name in zip(rows.items(), rows.names, strict=True):
                splits["val" if f"{item.target}/{name}" in held else "train"].append(item)
        return splits

    def example_file(self) -> Path | None:
        return None  # a batch file has ten thousand images; prediction takes one image

    def pack(self, item: Item) -> tuple[str, bytes]:
        picture = io.BytesIO()
        self.open_item(item).save(picture, format="png")
        return "png", picture.getvalue()

    def open_item(self, item: Item) -> "Image.Image":
        from PIL import Image

        if "row" not in item.where:  # a single image file, from a shard
            return super().open_item(item)
        return Image.fromarray(self._rows(item.path).pixels[item.where["row"]])

    def _rows(self, file: Path) -> "Rows":
        return read_rows(file, self.labels_key, len(self.class_names))

    def _find(self, root: Path) -> Path | None:
        wanted = (*self.train_files, self.test_file, self.meta_file)
        places = (root, root / self.folder)
        return next((place for place in places if all((place / name).is_file() for name in wanted)), None)


class Cifar100(Cifar10):
    """CIFAR-100, the Python version, with the 100 fine classes; otherwise like `Cifar10`."""

    title = "CIFAR-100"
    layout = "train, test and meta (the unpacked cifar-100-python.tar.gz, or its folder)"

    archive = Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    )
    folder = "cifar-100-python"
    train_files = ("train",)
    test_file = "test"
    meta_file = "meta"
    labels_key = "fine_labels"
    names_key = "fine_label_names"

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.sample import cifar100

        cifar100(root)


@dataclass(frozen=True)
class Rows:
    """One batch file: pixels (count, 32, 32, 3) uint8, labels and file names."""

    file: Path
    pixels: NDArray[np.uint8]
    labels: list[int]
    names: list[str]

    def items(self) -> list[Item]:
        return [Item(self.file, label, {"row": row}) for row, label in enumerate(self.labels)]


@lru_cache(maxsize=16)  # forked workers share what was read before they started
def read_rows(file: Path, labels_key: str, classes: int) -> Rows:
    """Read one batch file; raises `DataError` if it is not a CIFAR file."""
    content = read_pickle(file)
    pixels, labels, names = (content.get(key) for key in ("data", labels_key, "filenames"))
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (PLANES,)):
        raise DataError(f"{file} holds no array data of {PLANES} bytes a row")
    if not (
        isinstance(labels, list) and isinstance(names, list) and len(labels) == len(names) == len(pixels)
    ):
        raise DataError(f"{file} needs {labels_key} and filenames, one for each of its {len(pixels)} rows")
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise DataError(f"{file} has labels outside 0 … {classes - 1}")
    return Rows(
        file, np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels, names
    )


def read_pickle(file: Path) -> dict[str, Any]:
    """Unpickle a CIFAR file safely: only NumPy arrays are constructed.

    Raises:
        DataError: the file is damaged, or contains other objects.
    """
    try:
        with file.open("rb") as pickled:
            content = _ArraysOnly(pickled, encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{file} is refused: {error}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{file} is damaged, or no pickle ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, not a dictionary")
    return content


class _ArraysOnly(pickle.Unpickler):
    """Resolves only the names that a pickled NumPy array needs, in NumPy 1 and 2."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _latin1
        raise DataError(f"it would run code ({module}.{name}), not only read arrays")


def _empty_array(kind: Any, shape: Any, letter: Any) -> NDArray[Any]:
    return np.ndarray((0,), np.uint8)  # __setstate__ sets its shape, type and bytes


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise DataError(f"it would encode text as {encoding}")
    return codecs.encode(text, "latin1")
