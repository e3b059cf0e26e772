r"""Any collection of images with masks.

Examples:
    Images and masks of the same name in images/ and masks/ (with train/, val/ and test/ inside or around them),
    classes in classes.csv (name,r,g,b)::

        python run.py modality=image task=mask_folder data_dir=PATH

    Masks with class indices as pixel values, with class names::

        python run.py modality=image task=mask_folder data_dir=PATH 'task.data.classes=[ground,road,tree]'

    A table with the columns image, mask and optionally split and group::

        python run.py modality=image task=mask_folder data_dir=PATH task.data.csv=pairs.csv
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.base import DataError
from tasks.datasets.image.dense_transforms import VOID, SegmentationTransforms
from tasks.datasets.image.mask_data import MaskData, Pair, paired
from tasks.datasets.image.mask_looks import (
    LOOKED_AT,
    Seen,
    cure,
    look,
    look_at_numbers,
    notes_of,
    one_class_only,
    unsaid_turns,
)
from tasks.datasets.image.mask_table import read_mask_table
from tasks.datasets.image.masks import ENDINGS, LEAST_VOID, TABLES, MaskCoding, numbered, read_class_table
from tasks.datasets.image.reading import depth_notes
from tasks.datasets.items import Item
from tasks.datasets.listing import Listing, is_hidden, list_files, sorted_out
from tasks.datasets.shards.data import ShardSettings
from tasks.datasets.split_folders import SPLIT_NAMES, split_of_folder, splits_by_folders, with_splits

PICTURES = ("images", "image", "imgs", "img", "pictures", "JPEGImages")
MASKS = ("masks", "mask", "labels", "annotations", "annots", "SegmentationClass")


class MaskFolder(MaskData):
    """Your own images with masks.

    Args:
        classes: names of the mask values 0, 1, …; or a class table (`tasks.datasets.image.masks.read_class_table`)
            below `data_dir`; `None`: `classes.csv`, `classes.json` or `class_dict.csv` if present, else the values
            found in the masks.
        csv: a table with the columns `image`, `mask` and optionally `split` (else by the folders that paths begin with,
            if these state any) and `group` (`tasks.datasets.image.mask_table`); `None`: by folders and names.
        mask_suffix: suffix of a mask's file name relative to its image's, e.g. `_L`.
        reduce_zero_label: mask value 0 is void, and the first class has the value 1.
        void: further void values, also negative ones; 255 always is one.
        transforms, val_part, test_part: see `MaskData`.
        **common: see `DataModule`.
    """

    title = "pictures with masks of your own"
    layout = (
        "images/ and masks/ with files of the same names (below train/, val/ and test/ or with these below them), or "
        "task.data.csv=FILE with the columns image,mask[,split][,group]"
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
        val_part: float | None = 0.1,
        test_part: float = 0.1,
        **common: Unpack[ShardSettings],
    ) -> None:
        super().__init__(transforms=transforms, val_part=val_part, test_part=test_part, **common)
        if not all(LEAST_VOID <= value < 2**16 for value in void):
            raise DataError(f"task.data.void takes numbers from {LEAST_VOID} to 65535, not {list(void)}")
        if csv is not None and mask_suffix:
            raise DataError(
                "task.data.mask_suffix is about files of folders, task.data.csv names its own: leave one out"
            )
        self.classes = classes
        self.csv = csv
        self.mask_suffix = mask_suffix
        self.reduce_zero_label = reduce_zero_label
        self.void = tuple(void)
        self._untrainable: DataError | None = None

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.image.scenes import mask_folder

        mask_folder(root)

    def read_pairs(self, root: Path) -> tuple[MaskCoding, Sequence[Pair]]:
        if not root.is_dir():
            raise self.bad_layout(f"{root} is not a folder")
        self.notes, self._untrainable = [], None
        pairs = self._from_table(root) if self.csv is not None else self._from_folders(root)
        if not pairs:
            raise self.bad_layout(f"no pictures with masks in {root}")
        coding = self._coding(root, pairs)
        reading = self.transforms.reading
        self.notes += unsaid_turns(pairs, reading)
        self.notes += depth_notes([pair.picture for pair in pairs], reading)
        return coding, pairs

    def read_splits(self, root: Path) -> Mapping[str, Sequence[Item]]:
        splits = super().read_splits(root)
        if self._untrainable:
            raise self._untrainable
        return splits

    # -- classes ---------------------------------------------------------------------------------------------------

    def _coding(self, root: Path, pairs: Sequence[Pair]) -> MaskCoding:
        void = (VOID, *self.void, *([0] if self.reduce_zero_label else []))
        if isinstance(self.classes, str):
            table = root / Path(self.classes).expanduser()
            if not table.is_file():
                raise DataError(f"the table of classes {table} does not exist")
            return self._checked(self._of_table(table), pairs)
        if self.classes is not None:
            names = [str(name) for name in self.classes]
            return self._checked(numbered(names, void, first=int(self.reduce_zero_label)), pairs)
        for name in TABLES:
            if (root / name).is_file():
                self.notes.append(f"classes are those of {name}")
                return self._checked(self._of_table(root / name), pairs)
        return self._found(pairs, set(void))

    def _of_table(self, table: Path) -> MaskCoding:
        coding = read_class_table(table, self.reduce_zero_label)
        if coding.values:
            return replace(coding, values={**coding.values, **dict.fromkeys(self.void, VOID)})
        if self.void or self.reduce_zero_label:
            said = "task.data.void" if self.void else "task.data.reduce_zero_label"
            raise DataError(
                f"{said} is about numbers, and {table} gives colours: leave it out, and give the colour that is no "
                "class a row named void"
            )
        return coding

    def _checked(self, coding: MaskCoding, pairs: Sequence[Pair]) -> MaskCoding:
        """The coding, after a look at masks of numbers."""
        if coding.values:
            self._judge(coding, look_at_numbers(coding, pairs, self.transforms.reading))
        return coding

    def _judge(self, coding: MaskCoding, seen: Seen) -> None:
        """Notes what masks lack; raises `DataError` for binary masks whose 255 would be no class.

        Other masks of one class, and binary ones with 255 in `void`, can be tested, but not trained on.
        """
        named_by = "" if self.classes is None else "task.data.classes"
        problem = one_class_only(coding, seen, self.root, named_by)
        if problem and VOID in seen.values and VOID not in self.void and len(coding.names) == 2:
            raise problem
        self._untrainable = problem
        self.notes += notes_of(coding, seen)

    def _found(self, pairs: Sequence[Pair], void: set[int]) -> MaskCoding:
        """One class for each value up to the largest in the masks."""
        seen = look(pairs, self.transforms.reading, LOOKED_AT)
        if seen.painted is not None:
            raise DataError(
                f"the mask {seen.painted} has colours, and nothing says what they mean: put classes.csv with the "
                f"columns name,r,g,b into {self.root}, or say task.data.classes=FILE"
            )
        largest = max(seen.values - void, default=-1)
        first = int(self.reduce_zero_label)
        if largest < first + 1:
            how = cure(seen.values, (), self.root)
            raise self.bad_layout(f"the masks in {self.root} hold fewer than two classes{how}")
        names = [f"class {value}" for value in range(first, largest + 1)]
        self.notes.append(
            f"nothing names the classes: the masks hold numbers up to {largest}, so there are {len(names)} classes "
            "(task.data.classes=[NAME,…] or classes.csv names them)"
        )
        coding = numbered(names, void, first=first)
        self._judge(coding, seen)
        return coding

    # -- pairs -----------------------------------------------------------------------------------------------------

    def _from_table(self, root: Path) -> list[Pair]:
        table = root / Path(str(self.csv)).expanduser()
        if not table.is_file():
            raise DataError(f"the table {table} does not exist: say task.data.csv=FILE, or null for folders")
        found = read_mask_table(table, root)
        self.notes += found.notes
        return self._split_by_folders(root, list(found.pairs))

    def _split_by_folders(self, root: Path, pairs: list[Pair]) -> list[Pair]:
        """Pairs without splits with those of the folders that paths of images begin with, if these state any."""
        found = splits_by_folders([pair.picture for pair in pairs], root)
        if found is None or all(pair.split for pair in pairs):
            return pairs
        splits, notes = found
        kept, left_out = with_splits(pairs, splits, "pictures")
        self.notes += [*notes, *left_out]
        return kept

    def _from_folders(self, root: Path) -> list[Pair]:
        listing = Listing()
        pictures, masks = _first_of(root, PICTURES), _first_of(root, MASKS)
        if pictures and masks:
            pairs = self._from_two(pictures, masks, listing)
        else:
            pairs = self._from_split_folders(root, listing)
        self.notes += [note] if (note := listing.passed_over()) else []
        return pairs

    def _from_two(self, pictures: Path, masks: Path, listing: Listing) -> list[Pair]:
        """Pairs of images/ and masks/, which may have a folder for each split."""
        named = {name: split_of_folder(name) for name in _folders(pictures)}
        if "train" not in named.values():
            if said := sorted(name for name, split in named.items() if split):
                self.notes.append(
                    f"{' and '.join(said)} in {pictures} are not taken for splits, as there is none for training"
                )
            return self._pairs(pictures, masks, None, listing)
        self._say_splits(named | {name: None for name in _folders(masks) if name not in named})
        stray = Listing()
        sorted_out(pictures, [path.name for path in pictures.iterdir() if path.is_file()], (), stray)
        if count := sum(stray.others[ending] for ending in self.extensions):
            self.notes.append(
                f"{count:,} pictures lie in {pictures}, in no folder of a split, and are not read"
            )
        return [
            pair
            for name, split in named.items()
            if split
            for pair in self._pairs(pictures / name, masks / name, split, listing)
        ]

    def _from_split_folders(self, root: Path, listing: Listing) -> list[Pair]:
        """Pairs of train/images/ and train/masks/, and so on."""
        pairs = []
        named: dict[str, str | None] = {}
        for name in _folders(root):
            split = split_of_folder(name)
            pictures, masks = _first_of(root / name, PICTURES), _first_of(root / name, MASKS)
            if split and pictures and masks:
                pairs += self._pairs(pictures, masks, split, listing)
                named[name] = split
            elif split or pictures:
                named[name] = None
        self._say_splits(named)
        return pairs

    def _say_splits(self, named: Mapping[str, str | None]) -> None:
        if any(name not in SPLIT_NAMES or split is None for name, split in named.items()):
            said = (f"{name} ({split or 'not read'})" for name, split in named.items())
            self.notes.append(f"folders taken for splits: {', '.join(said)}")

    def _pairs(self, pictures: Path, masks: Path, split: str | None, listing: Listing) -> list[Pair]:
        def keyed(folder: Path, endings: tuple[str, ...]) -> list[tuple[str, Path]]:
            files = list_files(folder, endings, listing) if folder.is_dir() else []
            return [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in sorted(files)]

        found, suffix = keyed(masks, ENDINGS), self.mask_suffix
        ending = [(stem.removesuffix(suffix), path) for stem, path in found if stem.endswith(suffix)]
        if others := len(found) - len(ending):
            self.notes.append(
                f"{others:,} files in {masks} are not read, as their names do not end in {suffix} "
                "(task.data.mask_suffix)"
            )
        return paired(keyed(pictures, self.extensions), ending, split, str(masks), self.notes)


def _first_of(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
