"""Detects the layouts of detection data sets (COCO, VOC, YOLO) and reads them.

Each reader returns the images below a folder in one of the formats, with splits if the layout defines them;
`candidates` lists the formats found.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.image.box_data import Found
from tasks.datasets.image.box_formats import coco_json, voc_xml, yolo_splits, yolo_text
from tasks.datasets.image.box_formats.labels import Labelled, Tidied, check_names, unusable
from tasks.datasets.image.box_formats.places import (
    LABELS,
    PICTURES,
    folders_of,
    picture_folders,
    split_of_name,
)
from tasks.datasets.image.reading import EXTENSIONS, PictureOptions, size_of
from tasks.datasets.label_table import identity
from tasks.datasets.listing import Listing, list_files
from tasks.datasets.split_folders import split_of_folder, splits_by_folders, state_splits, with_splits

LISTS = ("ImageSets", "Main")
FLAG = re.compile(r"\s+(-1|0|1)$")  # of a class in VOC's lists
SHOWN = 5  # folders listed in a note
UNLABELLED_NAMES = (
    "readme",
    "license",
    "licence",
    "requirements",
    "train",
    "val",
    "valid",
    "test",
    "trainval",
)


Paired = tuple[Path, Path | None, str | None]  # an image, its label file and its split


@dataclass(frozen=True)
class Place:
    """A folder of images, the folder of their labels, and their split."""

    pictures: Path
    labels: Path
    split: str | None = None

    def __str__(self) -> str:
        return self.labels.name


@dataclass(frozen=True)
class Layout:
    """A detected layout: COCO instance files, or folders with one label file per image."""

    format: str  # coco | voc | yolo
    said: str  # description, logged at the start of a run
    instances: Sequence[tuple[Path, str | None]] = ()
    places: Sequence[Place] = ()


@dataclass
class Options:
    """Options for reading a folder.

    Args:
        classes: class names, if given.
        reading: options for reading images.
        listing: counts what is skipped.
    """

    classes: Sequence[str] | None
    reading: PictureOptions
    listing: Listing = field(default_factory=Listing)


def candidates(root: Path) -> list[Layout]:
    """The possible layouts of `root`, one for each format whose labels are found."""
    found = []
    if instances := _instances(root):
        names = ", ".join(str(file.relative_to(root)) for file, _ in instances)
        found.append(Layout("coco", f"COCO's instances ({names})", instances=instances))
    for kind, spoken, endings in (
        ("voc", "PASCAL VOC's XML files", voc_xml.ENDINGS),
        ("yolo", "YOLO's text files", yolo_text.ENDINGS),
    ):
        places = [place for place in _places(root) if any(_label_files(place.labels, endings))]
        if places:
            folders = sorted({str(place.labels.relative_to(root)) for place in places})
            said = f"{spoken} in {', '.join(f'{name}/' if name != '.' else 'data_dir' for name in folders)}"
            found.append(Layout(kind, said, places=places))
    return found


def read(layout: Layout, root: Path, options: Options) -> Found:
    """All images of a layout; raises `DataError`."""
    reader = {"coco": _read_coco, "voc": _read_voc, "yolo": _read_yolo}[layout.format]
    found = reader(layout, root, options)
    passed = options.listing.passed_over()
    pictures, by_folders = _split_by_folders(root, found.pictures)
    unread = [] if layout.format == "coco" else _unread(root, found.pictures)
    return Found(
        found.class_names,
        pictures,
        found.has_masks,
        [f"labels are {layout.said}", *found.notes, *by_folders, *unread, *([passed] if passed else [])],
        found.category_ids,
    )


def _split_by_folders(root: Path, pictures: Sequence[Labelled]) -> tuple[Sequence[Labelled], list[str]]:
    """Images without splits with those of the folders that their paths begin with, if these state any; and notes."""
    if any(picture.split for picture in pictures):
        return pictures, []
    found = splits_by_folders([picture.picture for picture in pictures], root)
    if found is None:
        return pictures, []
    splits, notes = found
    kept, left_out = with_splits(pictures, splits, "pictures")
    return kept, [*notes, *left_out]


def _unread(root: Path, pictures: Sequence[Labelled]) -> list[str]:
    """Note about images beside those that are read, with the folders they lie in."""
    read = {each.picture for each in pictures}
    others = [path for path in list_files(_first_of(root, PICTURES) or root, EXTENSIONS) if path not in read]
    if others:
        known = {identity(path) for path in read}
        others = [path for path in others if identity(path) not in known]
    if not others:
        return []
    places = Counter(str(path.parent.relative_to(root)) for path in others).most_common()
    named = [f"{count:,} in {'data_dir' if place == '.' else place}" for place, count in places[:SHOWN]]
    more = ", …" if len(places) > SHOWN else ""
    return [f"{len(others):,} pictures are in no split or list and are not read: {', '.join(named)}{more}"]


# -- finding labels ----------------------------------------------------------------------------------------------


def _instances(root: Path) -> list[tuple[Path, str | None]]:
    """COCO instance files and their splits, by file or folder name."""
    places = [root, *(root / name for name in LABELS), *folders_of(root)]
    files: dict[Path, str | None] = {}
    for place in places:
        for file in sorted(place.glob("*.json")) if place.is_dir() else ():
            own = None if place == root or place.name in LABELS else split_of_folder(place.name)
            if coco_json.looks_like_instances(file) and (own or place == root or place.name in LABELS):
                files[file] = own or split_of_name(file.stem)
    return list(files.items())


def _first_of(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _places(root: Path) -> list[Place]:
    pictures, labels = _first_of(root, PICTURES), _first_of(root, LABELS)
    if (
        pictures
    ):  # images/ and labels/, optionally with a folder per split in both; or labels beside the images
        labels = labels or pictures
        named = [(folder, split_of_folder(folder.name)) for folder in folders_of(pictures)]
        if any(split == "train" for _, split in named):
            return [Place(folder, labels / folder.name, split) for folder, split in named if split]
        return [Place(pictures, labels)]
    places = []
    for folder in folders_of(
        root
    ):  # train/, valid/, test/, each with images/ and labels/, or with both kinds of files
        if split := split_of_folder(folder.name):
            own = _first_of(folder, PICTURES) or folder
            places.append(Place(own, _first_of(folder, LABELS) or own, split))
    return places or [Place(root, labels or root)]


def _label_files(folder: Path, endings: Sequence[str]) -> Iterator[Path]:
    """Files with these extensions that may be labels of an image, without lists of classes or images."""
    for ending in endings:
        for file in folder.rglob(f"*{ending}") if folder.is_dir() else ():
            hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
            listing = "ImageSets" in file.relative_to(folder).parts or file.name in yolo_text.NAMES
            notes = ending == ".txt" and file.stem.split(".")[0].lower() in UNLABELLED_NAMES
            if not (hidden or listing or notes):
                yield file


# -- COCO ------------------------------------------------------------------------------------------------------


def _read_coco(layout: Layout, root: Path, options: Options) -> Found:
    files = list(layout.instances)
    splits = [split for _, split in files]
    if len(files) > 1 and (None in splits or len(set(splits)) < len(splits)):
        names = ", ".join(str(file.relative_to(root)) for file, _ in files)
        raise DataError(
            f"{root} has several files of COCO's instances whose splits their names do not tell apart: {names}; "
            "name them train.json, val.json and test.json, and move others away"
        )
    tidied, pictures = Tidied(), list[Labelled]()
    categories: dict[int, str] = {}
    for file, split in files:
        content = coco_json.read_instances(file)
        own = coco_json.categories(content, file)
        if categories and own != categories:
            raise DataError(f"{file} has other categories than {files[0][0].name}")
        categories = own
        classes, labels = _chosen(own, options.classes, str(file), tidied)
        folders = picture_folders(file, split, root)
        pictures += coco_json.read(file, content, folders, labels, split, tidied)
    ids = {label: key for key, label in labels.items() if label is not None}
    notes = [*tidied.notes(), *without_masks(tidied)]
    return Found(classes, pictures, tidied.has_masks, notes, [ids[label] for label in range(len(classes))])


def _chosen(
    own: Mapping[int, str], wanted: Sequence[str] | None, where: str, tidied: Tidied
) -> tuple[list[str], dict[int, int | None]]:
    """The class names, and the class index of each category; None for categories that are not used."""
    if wanted is None:
        return list(own.values()), {key: place for place, key in enumerate(own)}
    names = check_names(wanted, "task.data.classes")
    absent = [name for name in names if name not in own.values()]
    if absent:
        raise DataError(
            f"{where} has no category {', '.join(absent)}; it has {', '.join(own.values())[:500]}"
        )
    left = [name for name in own.values() if name not in names]
    said = f"objects of {', '.join(left)[:200]} are left out, which task.data.classes does not name"
    if left and said not in tidied.further:
        tidied.further.append(said)
    return names, {key: names.index(name) if name in names else None for key, name in own.items()}


def without_masks(tidied: Tidied) -> list[str]:
    """Note for data in which only some objects have an outline."""
    outlined = tidied.objects - tidied.without_outline
    if not outlined or not tidied.without_outline:
        return []
    return [f"{outlined:,} of {tidied.objects:,} objects have an outline: masks are not used"]


# -- PASCAL VOC ------------------------------------------------------------------------------------------------


def _read_voc(layout: Layout, root: Path, options: Options) -> Found:
    named: list[tuple[Path, Path, str | None]] = []
    listed = read_lists(root, [place.pictures for place in layout.places])
    for place in layout.places:
        found, _ = _paired(place, voc_xml.ENDINGS, options.listing, needed=not listed)
        if listed:
            found = _listed(found, listed, place)
        named += [(picture, labels, split) for picture, labels, split in found if labels is not None]
    return read_voc(named, options)


def read_voc(
    named: Sequence[tuple[Path, Path, str | None]], options: Options, classes: Sequence[str] | None = None
) -> Found:
    """Read images with VOC XML files.

    Args:
        named: image, XML file and split of each.
        options: reading options.
        classes: allowed classes; None: those that are found, in alphabetical order.

    Raises:
        DataError: a class that is not allowed, or no classes.
    """
    read: dict[Path, voc_xml.VocPicture | str] = {}
    for _, file, _ in named:
        try:
            read[file] = voc_xml.read(file)
        except DataError as error:  # one broken file must not affect the others
            read[file] = f"its labels: {error}"
    seen = {
        name for picture in read.values() if not isinstance(picture, str) for name, _, _ in picture.objects
    }
    tidied = Tidied()
    if not seen:
        raise DataError(f"none of {len(named):,} XML files names an object")
    if classes is not None and (unknown := sorted(seen - set(classes))):
        raise DataError(f"there are objects of {', '.join(unknown)[:200]}, which is no class of these data")
    own = dict(enumerate(classes if classes is not None else sorted(seen)))
    classes, by_key = _chosen(own, options.classes, "the data", tidied)
    places = {name: by_key[key] for key, name in own.items()}
    pictures = []
    for picture, file, split in named:
        said = read[file]
        if isinstance(said, str):
            pictures.append(unusable(picture, split, said))
            continue
        size = said.size or header_size(picture, options.reading)
        pictures.append(tidied(picture, voc_xml.described(said, places), size, split))
    return Found(classes, pictures, notes=[*tidied.notes(), *_broken(pictures)])


def read_lists(root: Path, places: Sequence[Path]) -> dict[str, str]:
    """Image name -> split, from ImageSets/Main/{train,val,test}.txt; trainval.txt if there is no train.txt.

    Args:
        root: folder of the data set.
        places: folders of its images.
    """
    folder = root.joinpath(*LISTS)

    def named(key: str) -> bool:
        return any((place / f"{key}{ending}").is_file() for place in places for ending in EXTENSIONS)

    found: dict[str, str] = {}
    for split in ("train", "val", "test"):
        file = folder / f"{split}.txt"
        if split == "train" and not file.is_file():
            file = folder / "trainval.txt"
        for key in names_in(file, named) if file.is_file() else ():
            if found.setdefault(key, split) != split:
                raise DataError(f"{file} names {key}, which is in {found[key]}, too")
    return found


def names_in(file: Path, exists: Callable[[str], bool]) -> list[str]:
    """The image names of a list, one per line; a flag of a class behind it (-1, 0 or 1) is ignored.

    Args:
        file: the list.
        exists: whether there is an image of this name.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    return [name if not FLAG.search(name) or exists(name) else FLAG.sub("", name) for name in names]


def _listed(found: Sequence[Paired], listed: Mapping[str, str], place: Place) -> list[Paired]:
    """The images in the lists; each must exist."""
    by_key = {
        picture.relative_to(place.pictures).with_suffix("").as_posix(): (picture, file)
        for picture, file, _ in found
    }
    chosen: list[Paired] = []
    for key, split in listed.items():
        if key not in by_key:
            raise DataError(
                f"{'/'.join(LISTS)}/{split}.txt names {key}, which has no picture in {place.pictures}"
            )
        picture, file = by_key[key]
        if file is None:
            raise DataError(
                f"{'/'.join(LISTS)}/{split}.txt names {key}, which has no XML file in {place.labels}"
            )
        chosen.append((picture, file, split))
    return chosen


# -- YOLO ------------------------------------------------------------------------------------------------------


def _read_yolo(layout: Layout, root: Path, options: Options) -> Found:
    classes, notes = _yolo_names(layout, root, options)
    named, said = _yolo_pictures(layout, root, options)
    notes += said
    empty = sum(file is None for _, file, _ in named)
    if named and empty == len(named):
        labels = min(
            file for place in layout.places for file in _label_files(place.labels, yolo_text.ENDINGS)
        )
        raise DataError(
            f"none of {empty:,} pictures has a label file of its own name: the first picture is {named[0][0]}, the "
            f"first label file {labels}"
        )
    tidied, pictures = Tidied(), []
    largest = -1
    for picture, file, split in named:
        try:
            lines = yolo_text.read(file, len(classes) if classes else None) if file else []
        except DataError as error:
            pictures.append(unusable(picture, split, f"its labels: {error}"))
            continue
        largest = max([largest, *(line.label for line in lines)])
        size = header_size(picture, options.reading) if lines else None
        if lines and size is None:  # the image cannot be read either, and is reported then
            pictures.append(unusable(picture, split, "its size cannot be read"))
            continue
        described = yolo_text.described(lines, size) if size else []
        pictures.append(tidied(picture, described, size, split))
    if not classes:
        if largest < 0:
            raise DataError(f"no label file in {root} holds an object")
        classes = [f"class {number}" for number in range(largest + 1)]
        notes.append(
            f"nothing names the classes: labels hold {largest + 1} numbers (say 'task.data.classes=[…]', or put "
            "data.yaml or classes.txt there)"
        )
    if empty:
        notes.append(f"{empty:,} pictures have no label file and count as empty")
    return Found(
        classes,
        pictures,
        tidied.has_masks,
        [*notes, *tidied.notes(), *without_masks(tidied), *_broken(pictures)],
    )


def _yolo_names(layout: Layout, root: Path, options: Options) -> tuple[list[str], list[str]]:
    """The class names (possibly empty), and a note about their source."""
    if options.classes is not None:
        return check_names(options.classes, "task.data.classes"), []
    for file in _yolo_files(layout, root):
        return yolo_text.read_names(file), [f"classes are those of {file.name}"]
    return [], []


def _yolo_files(layout: Layout, root: Path) -> Iterator[Path]:
    """Files that may name the classes and splits of a layout: those of the data set first, then those of labels."""
    folders = dict.fromkeys(
        [root, *(place.labels for place in layout.places), *(p.labels.parent for p in layout.places)]
    )
    files = (folder / name for folder in folders for name in yolo_text.NAMES)
    return (file for file in files if file.is_file())


def _yolo_pictures(layout: Layout, root: Path, options: Options) -> tuple[list[Paired], list[str]]:
    """The images with their label files and splits, and notes about these.

    Splits are those of data.yaml or of lists, if they state train and another that can be read, else those of folders.
    """
    stated = yolo_splits.stated_splits(_yolo_files(layout, root), root)
    if stated is None:
        return _pairs_of(layout.places, options)
    found = yolo_splits.read(stated, root)
    whole = not found.faults and state_splits(found.splits)
    if not whole and any(place.split for place in layout.places):
        pairs, notes = _pairs_of(layout.places, options)
        only = f"{stated.source.name} states {' and '.join(found.splits) or 'nothing'} only"
        why = found.faults[0] if found.faults else only
        return pairs, [*notes, f"splits are those of the folders: {why}"]
    if found.faults:
        raise DataError(f"{found.faults[0]}: correct it, or take it out for a split that is drawn")
    if "train" not in found.splits:
        raise DataError(f"{stated.source} states {' and '.join(found.splits) or 'splits'}, but no train")
    named = [
        (picture, yolo_splits.labels_of(picture), split)
        for split, pictures in found.splits.items()
        for picture in pictures
    ]
    taken = {identity(picture) for picture, _, _ in named}
    further = [place for place in layout.places if place.split and place.split not in found.splits]
    beside, notes = _pairs_of(further, options)
    beside = [pair for pair in beside if identity(pair[0]) not in taken]
    if beside:
        notes.append(
            f"folders taken for further splits: {', '.join(_below(root, place) for place in further)}"
        )
    return [*named, *beside], [f"splits are those of {stated}", *found.notes, *notes]


def _pairs_of(places: Sequence[Place], options: Options) -> tuple[list[Paired], list[str]]:
    """The images of folders with their label files, if any; and a note about label files of no image."""
    pairs: list[Paired] = []
    strays: list[Path] = []
    for place in places:
        own, stray = _paired(place, yolo_text.ENDINGS, options.listing, needed=False)
        pairs += own
        strays += stray
    if not strays:
        return pairs, []
    said = f"{len(strays):,} label files have no picture of the same name and are not read; the first: {strays[0]}"
    return pairs, [said]


def _below(root: Path, place: Place) -> str:
    return f"{place.pictures.relative_to(root)} ({place.split})"


# -- one label file per image ------------------------------------------------------------------------------------


def _paired(
    place: Place, endings: Sequence[str], listing: Listing, needed: bool
) -> tuple[list[Paired], list[Path]]:
    """Pairs images with the label files of the same names; returns these pairs, and the label files of no image.

    Args:
        place: folders of images and labels.
        endings: extensions of label files.
        listing: counts what is skipped.
        needed: whether every image must have a label file.

    Raises:
        DataError: two images or two label files of one name, or labels without an image; the first one is named.
    """

    def keyed(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(files):
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                raise DataError(f"{folder}: {found[key].name} and {path.name} have the same labels {key}")
            found[key] = path
        return found

    if not place.pictures.is_dir():
        raise DataError(f"{place.pictures} is not a folder")
    within = Listing() if place.pictures == place.labels else listing
    pictures = keyed(place.pictures, list_files(place.pictures, EXTENSIONS, within))
    labels = keyed(place.labels, list(_label_files(place.labels, endings)))
    stray = [file for key, file in labels.items() if key not in pictures]
    if stray and needed:
        more = f" and {len(stray) - 1:,} more label files have" if len(stray) > 1 else " has"
        raise DataError(f"{stray[0]}{more} no picture of the same name in {place.pictures}")
    without = [picture for key, picture in pictures.items() if key not in labels]
    if without and needed:
        more = f" and {len(without) - 1:,} more pictures have" if len(without) > 1 else " has"
        raise DataError(f"{without[0]}{more} no label file of the same name in {place.labels}")
    return [(picture, labels.get(key), place.split) for key, picture in pictures.items()], stray


def header_size(picture: Path, reading: PictureOptions) -> tuple[int, int] | None:
    """Width and height of an image after EXIF rotation; None if unreadable, which is reported when it is loaded."""
    try:
        return size_of(picture, reading)
    except ReadError:
        return None


def _broken(pictures: Sequence[Labelled]) -> list[str]:
    broken = [each for each in pictures if each.fault]
    if not broken:
        return []
    return [f"{len(broken):,} pictures have labels that cannot be used; the first: {broken[0].fault}"]
