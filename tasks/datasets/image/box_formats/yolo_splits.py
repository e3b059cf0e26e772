"""Splits of YOLO data: `train`, `val` and `test` of data.yaml, or the lists train.txt, val.txt and test.txt.

Each of the three is a folder of images, a list of images (one path per line), or several of these. Paths are relative
to the `path` of data.yaml, to its own folder or to that of the data set; one that begins with `../` may mean the same
folder, as in the files of some exporters.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from tasks.datasets.errors import DataError
from tasks.datasets.image.box_formats import yolo_text
from tasks.datasets.image.box_formats.labels import read_text
from tasks.datasets.image.box_formats.places import LABELS, PICTURES
from tasks.datasets.image.reading import EXTENSIONS
from tasks.datasets.label_table import identity
from tasks.datasets.listing import list_files
from tasks.datasets.split_folders import SPLIT_NAMES, state_splits

LARGEST_LIST = 2**28  # bytes
LIST_ENDINGS = (".txt",)
UP = "../"


@dataclass(frozen=True)
class Stated:
    """What a file or lists say of the splits.

    Args:
        source: data.yaml, or the folder of the lists.
        named: split -> its folders and lists, as they are written.
        bases: folders that these may be relative to.
    """

    source: Path
    named: Mapping[str, Sequence[str]]
    bases: Sequence[Path]

    def __str__(self) -> str:
        if self.source.is_dir():
            return ", ".join(name for names in self.named.values() for name in names)
        said = (f"{split} ({', '.join(names)})" for split, names in self.named.items())
        return f"{self.source.name}: {', '.join(said)}"


@dataclass
class Pictures:
    """The images of each split; and what of it could not be read, one sentence each."""

    splits: dict[str, list[Path]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def stated_splits(files: Iterable[Path], root: Path) -> Stated | None:
    """The splits that the first YAML file with any states, else those of lists in `root`; `None` if nothing does.

    Raises:
        DataError: a file that is no YAML, or something else than paths.
    """
    for file in files:
        if file.suffix.lower() in yolo_text.YAML and file.is_file():
            content = yolo_text.content_of(file)
            if isinstance(content, dict) and (named := _named(content, file)):
                base = content.get("path")
                own = [file.parent / base] if isinstance(base, str) else []
                return Stated(file, named, list(dict.fromkeys([*own, file.parent, root])))
    lists: dict[str, list[str]] = {}
    for name, split in SPLIT_NAMES.items():
        if (root / f"{name}.txt").is_file():
            lists.setdefault(split, []).append(f"{name}.txt")
    return Stated(root, lists, [root]) if state_splits(lists) else None


def _named(content: Mapping[Any, Any], file: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in content.items():
        split = SPLIT_NAMES.get(key) if isinstance(key, str) else None
        if split is None or not value:
            continue
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) and name for name in names):
            raise DataError(f"{file} says {key}: {str(value)[:100]}, which is no folder or list of pictures")
        found.setdefault(split, []).extend(names)
    return found


def read(stated: Stated, root: Path) -> Pictures:
    """The images of stated splits; a test split that is not there is a note, what else cannot be read a fault.

    Raises:
        DataError: an image in two splits.
    """
    found = Pictures()
    place: dict[str, str] = {}
    for split, names in stated.named.items():
        pictures: list[Path] = []
        absent: list[str] = []
        for name in names:
            try:
                own = _pictures(name, stated.bases, root)
            except DataError as error:
                found.faults.append(str(error))
                continue
            pictures += own
            absent += [] if own else [name]
        if absent:
            said = f"{stated.source} names {absent[0]} ({split}), where no pictures are"
            only_test = split == "test" and not pictures
            (found.notes if only_test else found.faults).append(said)
        for picture in pictures:
            key = identity(picture)
            if place.setdefault(key, split) != split:
                raise DataError(
                    f"{stated.source} has {picture} in {place[key]} and in {split}: a picture belongs to one split "
                    f"(without {split} there, one is drawn)"
                )
        if pictures:
            found.splits[split] = list({identity(picture): picture for picture in pictures}.values())
    return found


def _pictures(name: str, bases: Sequence[Path], root: Path) -> list[Path]:
    """The images of a folder or of a list; empty if it does not exist."""
    place = _existing(name, bases, root)
    if place is None:
        return []
    if place.is_dir():
        return sorted(list_files(place, EXTENSIONS))
    if place.suffix.lower() not in LIST_ENDINGS:
        raise DataError(f"{place} is no folder and no list of pictures (.txt)")
    lines = [line.strip() for line in read_text(place, LARGEST_LIST).splitlines()]
    found = {line: _existing(line, [place.parent, *bases], root) for line in lines if line}
    lacking = [line for line, picture in found.items() if picture is None or not picture.is_file()]
    if lacking:
        more = f" and {len(lacking) - 1:,} more pictures, which do" if len(lacking) > 1 else ", which does"
        raise DataError(f"{place} names {lacking[0]}{more} not exist")
    return [picture for picture in found.values() if picture is not None]


def _existing(name: str, bases: Sequence[Path], root: Path) -> Path | None:
    """The first existing path of this name, one below `root` before others."""
    names = [name, *([PureWindowsPath(name).as_posix()] if "\\" in name else [])]
    names += [each.removeprefix(UP) for each in names if each.startswith(UP)]
    paths = [base / each for each in names for base in bases]
    above = os.path.join(os.path.abspath(root), "")
    paths.sort(key=lambda path: not os.path.join(os.path.abspath(path), "").startswith(above))
    return next((path for path in paths if os.path.exists(path)), None)


def labels_of(picture: Path) -> Path | None:
    """The label file of an image: in labels/ beside images/, or beside the image; `None` if there is none."""
    folders = picture.parts[:-1]
    for place in range(len(folders) - 1, 0, -1):
        if folders[place] not in PICTURES:
            continue
        rest = Path(*picture.parts[place + 1 :])
        for name in LABELS:
            file = _labels(Path(*folders[:place]) / name / rest)
            if file is not None:
                return file
    return _labels(picture)


def _labels(picture: Path) -> Path | None:
    files = (picture.with_suffix(ending) for ending in yolo_text.ENDINGS)
    return next((file for file in files if file.is_file()), None)
