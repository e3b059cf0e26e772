"""Base class of UCF101 and HMDB51: three official splits into training and test lists."""

from collections.abc import Callable

from typing_extensions import Unpack

from tasks.datasets.errors import DataError
from tasks.datasets.items import Item
from tasks.datasets.splits import held_out_groups
from tasks.datasets.video.files import VideoData, VideoSettings


class OfficialLists(VideoData):
    """A benchmark with three official splits; the validation split is a fraction of the training list.

    Args:
        split: 1, 2 or 3; published results are often the mean over all three.
        val_fraction: fraction of the training list for validation.
        **settings: see `VideoData` and `DataModule`.
    """

    def __init__(
        self, *, split: int = 1, val_fraction: float = 0.1, **settings: Unpack[VideoSettings]
    ) -> None:
        super().__init__(**settings)
        if split not in (1, 2, 3):
            raise DataError(f"split must be 1, 2 or 3, not {split}")
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction must be between 0 and 1, not {val_fraction}")
        self.split = split
        self.val_fraction = val_fraction


def carve_validation(
    train: list[Item], test: list[Item], group: Callable[[Item], str], val_fraction: float
) -> dict[str, list[Item]]:
    """Official train and test lists -> three splits; the validation split is whole groups of the training list."""
    held = held_out_groups(((str(item.target), group(item)) for item in train), val_fraction)
    return {
        "train": [item for item in train if group(item) not in held],
        "val": [item for item in train if group(item) in held],
        "test": test,
    }
