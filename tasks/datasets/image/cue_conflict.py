"""Cue-conflict images: the shape of one category with the texture of another, to measure shape bias.

Geirhos et al. 2019 (arXiv 1811.12231): 1,280 images, 80 of each of 16 shapes, in a folder per shape. File names contain
both cues: ``cat/cat1-bottle2.png`` has the shape of cat 1 and the texture of bottle 2. They are test data only, for
models trained on other data.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.datasets.drawn import ELSEWHERE
from tasks.datasets.errors import DataError
from tasks.datasets.image.reading import EXTENSIONS
from tasks.datasets.listing import list_files
from tasks.disk import WriteError, draft_of, filling

LAYOUT = "a folder per shape with files such as cat/cat1-bottle2.png (shape cat, texture bottle)"
HOMEPAGE = "https://github.com/rgeirhos/texture-vs-shape, stimuli/style-transfer-preprocessed-512"
_NAME = re.compile(r"(?P<shape>[a-z_]+)\d*-(?P<texture>[a-z_]+)\d*", re.IGNORECASE)

#: Indices, in ImageNet's order of classes, of the 16 categories of the texture-vs-shape protocol: 207 classes.
#: Each category is the subset of the 1,000 classes below its WordNet 3.0 synset, without the classes that the
#: protocol excludes, which `LEFT_OUT` lists, so that the lists can be checked for completeness.
IMAGENET_CATEGORIES: dict[str, str] = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898 899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385 386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}
#: Classes below a category's synset that the protocol excludes: mostly ambiguous names (crane, boxer, kite), vehicles
#: that could also be a truck or a railway car, and odd cases.
LEFT_OUT: dict[str, str] = {
    "bird": "7 9 17 21 84-86 97 134 146",
    "boat": "576",
    "car": "407 468 609 627 656 661 751",
    "cat": "287",
    "dog": "151 192 204 227 242 251 258 260 264",
    "knife": "623",
    "oven": "544",
}


@dataclass(frozen=True)
class CueConflict:
    """One image and its two cues."""

    path: Path
    shape: str
    texture: str


def read_cue_conflict(root: Path) -> list[CueConflict]:
    """All images below ``root``, sorted by name.

    Raises:
        DataError: no such folder, no images, a file name without cues, or cues that contradict the folder.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} does not exist; cue-conflict pictures are {LAYOUT} (get them from {HOMEPAGE})"
        )
    found = []
    for path in sorted(list_files(root, EXTENSIONS)):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            raise DataError(f"{path} is not named after its shape and texture; expected: {LAYOUT}")
        shape, texture = match["shape"].lower(), match["texture"].lower()
        if shape != path.parent.name.lower():
            raise DataError(f"{path} is named after the shape {shape} but lies in {path.parent.name}/")
        found.append(CueConflict(path, shape, texture))
    if not found:
        raise DataError(f"no pictures in {root}; expected: {LAYOUT} (get them from {HOMEPAGE})")
    return found


def imagenet_categories() -> dict[str, list[str]]:
    """Category -> WordNet synsets of its ImageNet classes, ``n02123045``, …"""
    from timm.data import ImageNetInfo

    synsets = ImageNetInfo("imagenet-1k").label_names()
    return {name: [synsets[index] for index in spread(text)] for name, text in IMAGENET_CATEGORIES.items()}


def spread(ranges: str) -> list[int]:
    """Expands numbers and ranges to a list.

    >>> spread("3 5-7")
    [3, 5, 6, 7]
    """
    numbers: list[int] = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def read_mapping(path: Path) -> dict[str, list[str]]:
    """Read a YAML or JSON file with the class names of every category, ``cat: [tabby, Siamese cat]``.

    Raises:
        DataError: no such file, or invalid content.
    """
    import yaml

    if not path.is_file():
        raise DataError(f"mapping: there is no file {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is neither YAML nor JSON ({str(error).splitlines()[0]})") from error
    fine = isinstance(content, dict) and all(
        isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))
        for value in content.values()
    )
    if not fine:
        raise DataError(
            f"{path} must give the class names of every category, as in  cat: [tabby, Siamese cat]"
        )
    return {
        str(name).lower(): [value] if isinstance(value, str) else value for name, value in content.items()
    }


def classes_of(
    categories: Sequence[str], class_names: Sequence[str], mapping: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[int]]:
    """Maps each category to the indices of the model's classes that belong to it.

    A class matches by its full name, by its leading synset or by the rest after the synset (``n02123045 tabby``).
    Without a mapping, a category's classes are its synsets in :func:`imagenet_categories`, and the class with the
    category's own name.

    Args:
        categories: categories of the images.
        class_names: class names of the model.
        mapping: category -> class names; see :func:`read_mapping`.

    Raises:
        DataError: a category without a class of the model, or missing in the mapping.
    """
    index: dict[str, list[int]] = {}
    for position, name in enumerate(class_names):
        synset, _, words = name.lower().partition(" ")
        is_synset = re.fullmatch(r"n\d{8}", synset) is not None
        for key in {name.lower(), *((synset, words) if is_synset else ())}:
            index.setdefault(key, []).append(position)
    wanted: Mapping[str, Sequence[str]]
    if mapping is None:
        known = imagenet_categories()
        wanted = {
            name: known[name] if name in known and known[name][0] in index else [name] for name in categories
        }
    else:
        if lacking := [name for name in categories if name not in mapping]:
            raise DataError(f"the mapping has no entry for {', '.join(lacking)}")
        wanted = {name: mapping[name] for name in categories}
        absent = [word for words in wanted.values() for word in words if word.lower() not in index]
        if absent:
            raise DataError(f"the mapping names classes the model does not have: {', '.join(absent[:5])}")
    found = {
        name: sorted({position for word in words for position in index.get(word.lower(), [])})
        for name, words in wanted.items()
    }
    if lacking := [name for name, positions in found.items() if not positions]:
        raise DataError(
            f"no class of the model belongs to the category {', '.join(lacking[:5])} (its classes: "
            f"{', '.join(list(class_names)[:8])}{', …' if len(class_names) > 8 else ''}): give action.mapping=FILE, "
            "a YAML file with the class names of every category"
        )
    return found


def drawn_sample(samples: Path) -> Path:
    """The folder of the synthetic images below ``samples``, generated on first use."""
    from tasks.datasets.image.cue_conflict_sample import VERSION, cue_conflict

    root = samples / f"cue_conflict_{VERSION}"
    if not root.is_dir():
        # Written to a temporary folder and renamed: an interrupted or parallel run never leaves a partial sample.
        draft = draft_of(root)
        try:
            with filling(root, ELSEWHERE):
                cue_conflict(draft)
                draft.rename(root)
        except (OSError, WriteError):
            if not root.is_dir():  # otherwise a parallel run was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return root
