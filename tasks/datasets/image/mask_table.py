"""Reads tables of images and their masks with the usual encodings, separators and headers of spreadsheets.

Inferred settings are reported as notes to the user; contradictory rows are refused with their line numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.datasets.errors import DataError
from tasks.datasets.image.mask_data import Pair
from tasks.datasets.label_table import COLUMNS as OF_LABELS
from tasks.datasets.label_table import existing, identity, open_table
from tasks.datasets.split_folders import SPLIT_NAMES

# Accepted column names in order of preference; compared without case, spaces, "-" and "_".
COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("image", "picture", "imagepath", "imagefile", "imagename", "path", "file", "filename", "filepath",
              "relativepath", "fname", "img"),
    "mask": ("mask", "maskpath", "maskfile", "maskname", "label", "annotation", "segmentation", "target"),
    **{role: OF_LABELS[role] for role in ("split", "group", "fold")},
}  # fmt: skip


@dataclass(frozen=True)
class MaskTable:
    """The pairs of a table, and notes about what was inferred."""

    pairs: Sequence[Pair]
    notes: Sequence[str]


def read_mask_table(table: Path, root: Path) -> MaskTable:
    """Read a table with the columns `image` and `mask`, and optionally `split` and `group`.

    Encodings: UTF-8, UTF-16 with a byte-order mark, else Windows-1252. Separators: commas, semicolons, tabs or bars.
    Headers are case-insensitive. Without a header: `image,mask` or `image,mask,split`, if the first image exists. An
    image without a split has that of its group, if another row states it.

    Args:
        table: the file.
        root: folder that paths are relative to.

    Raises:
        DataError: no such file or columns; a row that names no file, or an image that another row names; a group in
            two splits.
    """
    found = open_table(
        table, {}, COLUMNS, ("image", "mask"), lambda header, roles: _without_header(table, root, header)
    )
    notes = found.notes
    if fold := found.roles.get("fold"):
        notes.append(f"the column {fold} of {table.name} is not used")
    pairs: dict[str, tuple[int, Pair]] = {}
    for line, row in found.rows:
        where = f"line {line} of {table}"
        pair = _pair(root, where, row)
        key = identity(pair.picture)
        if key in pairs:
            raise DataError(
                f"lines {pairs[key][0]} and {line} of {table} both name {row['image']}: an image has one mask and "
                "belongs to one split"
            )
        pairs[key] = line, pair
    return MaskTable(_with_splits_of_groups(table, [pair for _, pair in pairs.values()]), notes)


def _without_header(table: Path, root: Path, cells: Sequence[str]) -> tuple[str, ...]:
    """The roles of a table without a header; raises `DataError` if its first row names no file."""
    if len(cells) in (2, 3) and existing(root, cells[0]).is_file():
        return ("image", "mask", "split")[: len(cells)]
    raise DataError(f"{table} needs the columns image and mask; it has {', '.join(cells)}")


def _pair(root: Path, where: str, row: Mapping[str, str]) -> Pair:
    if not row.get("image") or not row.get("mask"):
        raise DataError(f"{where} lacks an image or a mask")
    split = row.get("split", "").lower()
    if split and split not in SPLIT_NAMES:
        raise DataError(f"{where} has the split {split!r}; it takes train, val or test")
    picture, mask = existing(root, row["image"]), existing(root, row["mask"])
    for file in (picture, mask):
        if not file.is_file():
            raise DataError(f"{where} names {file}, which does not exist")
    return Pair(picture, mask, SPLIT_NAMES.get(split), row.get("group") or None)


def _with_splits_of_groups(table: Path, pairs: Sequence[Pair]) -> list[Pair]:
    stated: dict[str, str] = {}
    for pair in pairs:
        if pair.group and pair.split and stated.setdefault(pair.group, pair.split) != pair.split:
            raise DataError(
                f"{table}: the group {pair.group} lies in {stated[pair.group]} and {pair.split}: a group belongs to one"
            )
    return [
        replace(pair, split=stated.get(pair.group)) if pair.group and not pair.split else pair
        for pair in pairs
    ]
