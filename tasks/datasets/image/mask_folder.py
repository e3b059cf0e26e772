r"""Any collection of images with masks.

Examples:
    Images and masks of the same name in images/ and masks/ (with train/, val/ and test/ inside or around them),
    classes in classes.csv (name,r,g,b)::

        python run.py modality=image task=mask_folder data_dir=PATH

    Masks with class indices as pixel values, with class names::

        python run.py modality=image task=mask_folder data_dir=PATH 'task.data.classes=[ground,road,tree]'

    A table with the columns image, mask and optionally split::

        python run.py modality=image task=mask_folder data_dir=PATH task.data.csv=pairs.csv
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from tasks.datasets.base import DataError, ReadError, spread
from tasks.datasets.image.dense_transforms import VOID, SegmentationTransforms
from tasks.datasets.image.mask_data import MaskData, Pair, paired
from tasks.datasets.image.masks import ENDINGS, TABLES, MaskCoding, numbered, read_class_table
from tasks.datasets.image.reading import open_unchanged
from tasks.datasets.label_table import existing, read_label_table
from tasks.datasets.listing import Listing, list_files
from tasks.datasets.shards.data import ShardSettings
from tasks.datasets.split_folders import SPLIT_NAMES, split_of_folder, splits_by_folders

PICTURES = ("images", "image", "imgs", "img", "pictures", "JPEGImages")
MASKS = ("masks", "mask", "labels", "annotations", "annots", "SegmentationClass")
LOOKED_AT = 500  # masks inspected for their values if no class names are given


class MaskFolder(MaskData):
    """Your own images with masks.

    Args:
        classes: names of the mask values 0, 1, …; or a class table (`tasks.datasets.image.masks.read_class_table`)
            below `data_dir`; `None`: `classes.csv`, `classes.json` or `class_dict.csv` if present, else the values
            found in the masks.
        csv: a table with the columns `image`, `mask` and optionally `split` (else by the folders that paths begin with,
            if these state any); `None`: by folders and names.
        mask_suffix: suffix of a mask's file name relative to its image's, e.g. `_L`.
        reduce_zero_label: mask value 0 is void, and the first class has the value 1.
        void: further void values; 255 always is one.
        transforms, val_part, test_part: see `MaskData`.
        **common: see `DataModule`.
    """

    title = "pictures with masks of your own"
    layout = (
        "images/ and masks/ with files of the same names (below train/, val/ and test/ or with these below them), or "
        "task.data.csv=FILE with the columns image,mask[,split]"
    )

    def __init__(
        self,
        *,
        classes: str | Sequence[str] | None = None,
        csv: str | None = None,
        mask_suffix: str = "",
        reduce_zero_label: bool = False,
        void: Sequence[int] = (),
        transforms: SegmentationTransforms | None = None,
        val_part: float = 0.1,
        test_part: float = 0.1,
        **common: Unpack[ShardSettings],
    ) -> None:
        super().__init__(transforms=transforms, val_part=val_part, test_part=test_part, **common)
        if not all(0 <= value < 2**16 for value in void):
            raise DataError(f"task.data.void takes numbers from 0 to 65535, not {list(void)}")
        self.classes = classes
        self.csv = csv
        self.mask_suffix = mask_suffix
        self.reduce_zero_label = reduce_zero_label
        self.void = tuple(void)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.scenes import mask_folder

        mask_folder(root)

    def read_pairs(self, root: Path) -> tuple[MaskCoding, Sequence[Pair]]:
        if not root.is_dir():
            raise self.bad_layout(f"{root} is not a folder")
        listing = Listing()
        self._of_table: list[str] = []
        pairs = self._from_table(root) if self.csv is not None else self._from_folders(root, listing)
        if not pairs:
            raise self.bad_layout(f"no pictures with masks in {root}")
        coding = self._coding(root, pairs)
        self.notes = [note for note in (listing.passed_over(), *self._of_table, *self._inferred) if note]
        return coding, pairs

    # -- classes ---------------------------------------------------------------------------------------------------

    def _coding(self, root: Path, pairs: Sequence[Pair]) -> MaskCoding:
        self._inferred: list[str] = []
        void = (VOID, *self.void, *([0] if self.reduce_zero_label else []))
        if isinstance(self.classes, str):
            table = root / Path(self.classes).expanduser()
            if not table.is_file():
                raise DataError(f"the table of classes {table} does not exist")
            return self._without(read_class_table(table, self.reduce_zero_label))
        if self.classes is not None:
            return numbered([str(name) for name in self.classes], void, first=int(self.reduce_zero_label))
        for name in TABLES:
            if (root / name).is_file():
                self._inferred.append(f"classes are those of {name}")
                return self._without(read_class_table(root / name, self.reduce_zero_label))
        return self._found(pairs, set(void))

    def _without(self, coding: MaskCoding) -> MaskCoding:
        values = {**coding.values, **dict.fromkeys(self.void, VOID)} if coding.values else coding.values
        return MaskCoding(coding.names, values, coding.colours, coding.palette)

    def _found(self, pairs: Sequence[Pair], void: set[int]) -> MaskCoding:
        """One class for each value up to the largest in the masks."""
        largest = -1
        for pair in spread(pairs, LOOKED_AT):
            try:
                image = open_unchanged(pair.mask, self.transforms.reading)
            except ReadError:
                continue  # reported when it is loaded
            if image.mode in ("RGB", "RGBA"):
                raise DataError(
                    f"the mask {pair.mask} has colours, and nothing says what they mean: put classes.csv with the "
                    f"columns name,r,g,b into {self.root}, or say task.data.classes=FILE"
                )
            values = np.unique(np.asarray(image).astype(np.int64))
            largest = max([largest, *(int(value) for value in values if int(value) not in void)])
        first = int(self.reduce_zero_label)
        if largest < first + 1:
            raise self.bad_layout(f"the masks in {self.root} hold fewer than two classes")
        names = [f"class {value}" for value in range(first, largest + 1)]
        self._inferred.append(
            f"nothing names the classes: the masks hold numbers up to {largest}, so there are {len(names)} classes "
            "(task.data.classes=[NAME,…] or classes.csv names them)"
        )
        return numbered(names, void, first=first)

    # -- pairs -----------------------------------------------------------------------------------------------------

    def _from_table(self, root: Path) -> list[Pair]:
        table = root / Path(str(self.csv)).expanduser()
        if not table.is_file():
            raise DataError(f"the table {table} does not exist: say task.data.csv=FILE, or null for folders")
        # Read as a label table whose label is the mask.
        header = {name: name for name in _header(table)}
        columns = {
            "path": next((header[n] for n in ("image", "picture", "path", "file") if n in header), None),
            "label": next((header[n] for n in ("mask", "label", "annotation") if n in header), None),
            "fold": None,
            "group": None,
        }
        if columns["path"] is None or columns["label"] is None:
            raise DataError(f"{table} needs the columns image and mask")
        pairs = []
        for row in read_label_table(table, root, columns).rows:
            where = f"line {row.line} of {table}"
            split = (row.split or "").lower()
            if split and split not in SPLIT_NAMES:
                raise DataError(f"{where} has the split {split!r}; it takes train, val or test")
            picture, mask = existing(root, row.path), existing(root, row.label)
            for file in (picture, mask):
                if not file.is_file():
                    raise DataError(f"{where} names {file}, which does not exist")
            pairs.append(Pair(picture, mask, SPLIT_NAMES.get(split)))
        return self._split_by_folders(root, pairs)

    def _split_by_folders(self, root: Path, pairs: list[Pair]) -> list[Pair]:
        """Pairs without splits with those of the folders that paths of images begin with, if these state any."""
        found = splits_by_folders([pair.picture for pair in pairs], root)
        if found is None or all(pair.split for pair in pairs):
            return pairs
        splits, self._of_table = found
        placed = [replace(pair, split=pair.split or split) for pair, split in zip(pairs, splits, strict=True)]
        kept = [pair for pair in placed if pair.split]
        if len(kept) < len(pairs):
            said = f"{len(pairs) - len(kept):,} pictures lie in none of these folders and are not read"
            self._of_table.append(said)
        return kept

    def _from_folders(self, root: Path, listing: Listing) -> list[Pair]:
        pictures, masks = _first_of(root, PICTURES), _first_of(root, MASKS)
        if pictures and masks:  # images/, masks/, optionally with a folder per split
            named = {
                folder.name: split_of_folder(folder.name) for folder in pictures.iterdir() if folder.is_dir()
            }
            if any(split == "train" for split in named.values()):
                return [
                    pair
                    for name, split in sorted(named.items())
                    if split
                    for pair in self._pairs(pictures / name, masks / name, split, listing)
                ]
            return self._pairs(pictures, masks, None, listing)
        pairs = []
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            split = split_of_folder(folder.name)
            pictures, masks = _first_of(folder, PICTURES), _first_of(folder, MASKS)
            if split and pictures and masks:
                pairs += self._pairs(pictures, masks, split, listing)
        return pairs

    def _pairs(self, pictures: Path, masks: Path, split: str | None, listing: Listing) -> list[Pair]:
        def keyed(folder: Path, endings: tuple[str, ...], suffix: str) -> list[tuple[str, Path]]:
            files = list_files(folder, endings, listing) if folder.is_dir() else []
            stems = ((path.relative_to(folder).with_suffix("").as_posix(), path) for path in sorted(files))
            return [(stem.removesuffix(suffix), path) for stem, path in stems if stem.endswith(suffix)]

        return paired(
            keyed(pictures, self.extensions, ""), keyed(masks, ENDINGS, self.mask_suffix), split, str(masks)
        )


def _first_of(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _header(table: Path) -> list[str]:
    """Cells of the first line; only ASCII characters are reliable."""
    with table.open("rb") as file:
        line = file.readline(10_000).decode("utf-8-sig", "replace").strip()
    separator = max(",;\t|", key=line.count)
    return [cell.strip().strip('"') for cell in line.split(separator)]
