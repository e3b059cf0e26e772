"""Any collection of video files with a folder per class.

Examples:
    Split by name, or below train/, val/ and test/::

        python run.py task=video_folder data_dir=PATH

    Five-fold cross-validation::

        python run.py -m task=video_folder data_dir=PATH task.data.fold=1,2,3,4,5
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Unpack

from tasks.datasets.base import DataError, Item, Whole, not_there, refuse_unknown
from tasks.datasets.splits import stable_fraction
from tasks.datasets.video_files import VideoData, VideoSettings

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
FOLDS_BY = ("number", "block")


class VideoFolder(VideoData):
    """Video files of your own, a folder per class.

    The parts are, in this order of preference: the folders ``train``, ``val`` and ``test`` where there are
    any; with ``fold``, a part of each class by its files' order; else a hash of each file's path below
    ``data_dir``, so that they are the same on every machine and a new file never moves another.

    Folds go through the files of each class in the order of the numbers in their names: ``number`` deals them
    out in turn, ``block`` cuts the order into consecutive stretches. Where neighbouring files were cut from
    one recording, dealing puts the same scene into training and test; blocks mostly do not, and their figure
    is the more honest one.

    Args:
        test_fraction, val_fraction: parts of the files, where the parts are not given otherwise;
            ``val_fraction`` is also the validation part of what a fold leaves.
        fold: 1 to ``folds``, the fold to test on; ``None`` for no cross-validation.
        folds: how many.
        folds_by: ``number`` or ``block``.
        **settings: see `VideoData` and `DataModule`.
    """

    layout = "a folder of video files per class, or train/, val/ and test/ with such folders"

    def __init__(
        self,
        *,
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
        fold: int | None = None,
        folds: int = 5,
        folds_by: str = "number",
        **settings: Unpack[VideoSettings],
    ) -> None:
        super().__init__(**settings)
        if min(test_fraction, val_fraction) <= 0 or test_fraction + val_fraction >= 1:
            raise DataError("test_fraction and val_fraction must be above 0 and leave something to train on")
        if folds < 2 or (fold is not None and not 1 <= fold <= folds):
            raise DataError(f"fold must be between 1 and folds={folds} (at least 2), not {fold}")
        if folds_by not in FOLDS_BY:
            raise DataError(f"folds_by must be one of {', '.join(FOLDS_BY)}, not {folds_by!r}")
        self.test_fraction = test_fraction
        self.val_fraction = val_fraction
        self.fold = fold
        self.folds = folds
        self.folds_by = folds_by

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.samples.video import video_folder

        video_folder(root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        if not root.is_dir():
            raise self.bad_layout(f"{root} is not a folder")
        given = {SPLIT_NAMES[path.name]: path for path in folders(root) if path.name in SPLIT_NAMES}
        if "train" not in given or len(given) == 1:
            given = {"": root}
        elif self.fold is not None:
            raise DataError(f"{root} has {' and '.join(sorted(given))}: its parts are fixed, leave fold out")
        found = {
            split: {path.name: self._videos(path) for path in folders(top)} for split, top in given.items()
        }
        self.class_names = sorted({name for part in found.values() for name, files in part.items() if files})
        if len(self.class_names) < 2:
            raise self.bad_layout(f"{root} holds videos of {len(self.class_names)} classes")
        splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        for split, part in found.items():
            for label, name in enumerate(self.class_names):
                for path, drawn in self._split(root, part.get(name, []), split, set(given)):
                    splits[drawn].append(Item(path, label))
        untrained = set(range(len(self.class_names))) - {item.target for item in splits["train"]}
        if untrained:
            names = ", ".join(self.class_names[label] for label in sorted(untrained)[:5])
            raise DataError(f"no training file of the class(es) {names}: more files are needed")
        return splits

    def read_whole(self, facts: dict[str, Any]) -> Whole | None:
        root, known = self.root, list(facts["class_names"])
        if self.format != "files":
            return None
        if not root.is_dir():
            raise self.bad_layout(f"{root} is not a folder")
        names = set(SPLIT_NAMES) - set(known)
        tops = {SPLIT_NAMES[path.name]: path for path in folders(root) if path.name in names}
        if not tops or any(path.name in known for path in folders(root)):
            tops = {"": root}
        found = {
            split: [(file, path.name) for path in folders(top) for file in self._videos(path)]
            for split, top in tops.items()
        }
        every = [pair for part in found.values() for pair in part]
        if not every:
            raise self.bad_layout(f"no videos in folders of classes in {root}")
        refuse_unknown([name for _, name in every], known, str(root))
        tested = found.get("test") or every
        which = f"all {len(every):,} files are tested"
        if found.get("test"):
            which = f"of {len(every):,} files the {len(tested):,} of its test split are tested"
        absent = not_there((name for _, name in tested), known)
        return Whole([Item(file, known.index(name)) for file, name in tested], which + absent)

    def _split(self, root: Path, files: list[Path], split: str, given: set[str]) -> list[tuple[Path, str]]:
        """The part of every file of one class found below the folder of ``split`` (``""``: of none)."""
        if split in ("val", "test"):
            return [(path, split) for path in files]
        if self.fold is not None and not split:
            return list(zip(files, self._fold(len(files), self.fold - 1), strict=True))
        drawn = []
        test_below = 0.0 if "test" in given else self.test_fraction
        val_below = test_below + (0.0 if "val" in given else self.val_fraction)
        for path in files:
            place = stable_fraction(path.relative_to(root).as_posix())
            drawn.append((path, "test" if place < test_below else "val" if place < val_below else "train"))
        return drawn

    def _fold(self, count: int, fold: int) -> list[str]:
        """The parts of ``count`` files in the order of their numbers, for ``fold`` from 0."""
        places = np.arange(count)
        dealt = self.folds_by == "number"
        tested = (places % self.folds if dealt else places * self.folds // count) == fold
        rest = places[~tested]
        held = round(self.val_fraction * len(rest))
        if dealt:  # spread over the rest, as the fold is
            chosen = rest[(2 * np.arange(held) + 1) * len(rest) // max(2 * held, 1)]
        else:  # the stretch behind the tested one, or the first one
            behind = rest[rest > places[tested].max(initial=-1)]
            chosen = np.concatenate([behind, rest])[:held]
        return ["test" if tested[place] else "val" if place in chosen else "train" for place in places]

    def _videos(self, folder: Path) -> list[Path]:
        return sorted(
            (
                path
                for path in folder.rglob("*")
                if path.suffix.lower() in self.extensions and not path.name.startswith(".") and path.is_file()
            ),
            key=by_number,
        )


def by_number(path: Path) -> tuple[list[int], str]:
    """Order of files: by the numbers in their names, then by the names."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.as_posix()


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, in alphabetical order, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
