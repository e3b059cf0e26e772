"""What a look at a sample of masks tells before training: their values, classes without a pixel, unclear rotation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.image.dense_transforms import VOID
from tasks.datasets.image.mask_data import Pair
from tasks.datasets.image.masks import MaskCoding, holds_numbers, numbers_of
from tasks.datasets.image.reading import TURNED, PictureOptions, open_unchanged, orientation_of
from tasks.datasets.items import spread

LOOKED_AT = 500  # masks inspected at most
FEW = 100  # … where these hold two classes; and pictures inspected for their orientation
NAMED = 5  # classes or values listed in a note


@dataclass
class Seen:
    """What masks hold.

    Args:
        masks: number of masks read.
        whole: whether these are all.
        values: their pixel values.
        painted: a mask with colours, the last one inspected if no coding is known.
    """

    masks: int = 0
    whole: bool = True
    values: set[int] = field(default_factory=set)
    painted: Path | None = None


def look(pairs: Sequence[Pair], options: PictureOptions, most: int, coding: MaskCoding | None = None) -> Seen:
    """Inspect at most `most` masks, evenly spaced; those that cannot be read are left out.

    Args:
        pairs: images and masks.
        options: image reading options.
        most: number of masks.
        coding: no further masks are inspected once all its classes were seen; masks that it reads as colours are left
            out.
    """
    seen = Seen(whole=len(pairs) <= most)
    wanted = None if coding is None else set(range(len(coding.names)))
    for pair in spread(pairs, most):
        try:
            image = open_unchanged(pair.mask, options)
            if coding is not None and coding.colours and not holds_numbers(image):
                continue
            numbers_HW = numbers_of(image)
        except ReadError:
            continue  # reported when it is loaded
        if numbers_HW is None:
            if coding is None:
                seen.painted = pair.mask
                break
            continue
        seen.masks += 1
        seen.values |= _values(numbers_HW)
        if coding is not None and wanted == classes_of(coding, seen):
            break
    return seen


def look_at_numbers(coding: MaskCoding, pairs: Sequence[Pair], options: PictureOptions) -> Seen:
    """Inspect a few masks for the values of a coding, and more of them if these hold one class only."""
    seen = look(pairs, options, FEW, coding)
    few = len(classes_of(coding, seen)) < 2 and not seen.whole
    return look(pairs, options, LOOKED_AT, coding) if few else seen


def classes_of(coding: MaskCoding, seen: Seen) -> set[int]:
    """Indices of the classes that were seen."""
    return {coding.values[value] for value in seen.values if value in coding.values} - {VOID}


def notes_of(coding: MaskCoding, seen: Seen) -> list[str]:
    """Notes about classes without a pixel and values without a class."""
    if not seen.masks:
        return []
    found = classes_of(coding, seen)
    absent = [name for index, name in enumerate(coding.names) if index not in found]
    unknown = _unknown(coding, seen)
    where = f"the {seen.masks:,} masks {'there are' if seen.whole else 'looked at'}"
    notes = [f"{where} hold no pixel of {_some(absent)}"] if absent else []
    if unknown:
        notes.append(
            f"{where} hold {_some(unknown)}, the number of no class: such masks are not read (where it means no class, "
            "list it in task.data.void)"
        )
    return notes


def one_class_only(coding: MaskCoding, seen: Seen, root: Path, named_by: str) -> DataError | None:
    """The error for masks that hold less than two classes; `None`: there are two, or the masks seen do not tell.

    Args:
        coding: the coding of the masks.
        seen: what masks hold.
        root: folder of the data.
        named_by: what names the classes, as to be left out for a table of colours; may be empty.
    """
    found = sorted(classes_of(coding, seen))
    known = {value for value in seen.values if value in coding.values}
    if not known or len(found) > 1:
        return None
    held = f"the class {coding.names[found[0]]}" if found else "no class"
    if VOID in known:
        return DataError(
            f"the {seen.masks:,} masks looked at in {root} hold {held} and the number {VOID}, which is no class"
            f"{cure(known, coding.names, root, named_by)}"
        )
    if not seen.whole:
        return None
    unknown = _unknown(coding, seen)
    besides = f" ({_some(unknown)} is the number of no class)" if unknown else ""
    return DataError(
        f"the masks in {root} hold {held} and no pixel of another{besides}: nothing can be learned"
    )


def cure(values: set[int], names: Sequence[str], root: Path, named_by: str = "") -> str:
    """How to read 255 as a class, as the end of a message about masks with these values; may be empty.

    Args:
        values: values of the masks.
        names: class names.
        root: folder of the data.
        named_by: what names the classes; it has to be left out.
    """
    others = sorted(value for value in values - {VOID} if 0 <= value < VOID)
    if VOID not in values or len(others) != 1:
        return ""
    one, other = names if len(names) == 2 else ("background", "NAME")
    left_out = f", and leave {named_by} out" if named_by else ""
    return (
        f": where {VOID} means a class, put classes.csv with the lines name,r,g,b and "
        f"{','.join(map(str, [one, *others * 3]))} and {other},{VOID},{VOID},{VOID} into {root}{left_out}"
    )


def unsaid_turns(pairs: Sequence[Pair], options: PictureOptions) -> list[str]:
    """A note if masks without an orientation belong to images that have one, and their sizes do not show to which."""
    unclear = 0
    looked_at = spread(pairs, FEW)
    for pair in looked_at:
        try:
            orientation, (width, height) = orientation_of(pair.picture, options)
            told = orientation in TURNED and width != height
            if 2 <= orientation <= 8 and not told and orientation_of(pair.mask, options)[0] == 1:
                unclear += 1
        except ReadError:
            continue  # reported when it is loaded
    if not unclear:
        return []
    return [
        f"{unclear:,} of {len(looked_at):,} pictures looked at are turned or mirrored by their EXIF orientation, and "
        "their masks state none: these are taken as masks of the picture as shown"
    ]


def _unknown(coding: MaskCoding, seen: Seen) -> list[int]:
    return sorted(value for value in seen.values if value not in coding.values)


def _values(numbers_HW: NDArray[np.int64]) -> set[int]:
    if numbers_HW.size and numbers_HW.min() >= 0 and numbers_HW.max() < 2**16:
        return {int(value) for value in np.flatnonzero(np.bincount(numbers_HW.reshape(-1)))}
    return {int(value) for value in np.unique(numbers_HW)}


def _some(named: Sequence[object]) -> str:
    more = f" and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
    return ", ".join(map(str, named[:NAMED])) + more
