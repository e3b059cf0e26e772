"""Where the images and labels of a detection data set lie: names of folders, and the splits that names state."""

from pathlib import Path

from tasks.datasets.split_folders import split_of_folder

PICTURES = ("images", "image", "imgs", "img", "pictures", "JPEGImages")
LABELS = ("Annotations", "annotations", "labels", "annots", "xml", "xmls")


def folders_of(root: Path) -> list[Path]:
    """The folders directly below `root`, hidden ones left out."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def split_of_name(stem: str) -> str | None:
    """The split in a file name: instances_train2017, val, test_annotations, …"""
    words = "".join(mark if mark.isalpha() else " " for mark in stem).split()
    splits = {split for word in words if (split := split_of_folder(word))}
    return splits.pop() if len(splits) == 1 else None


def picture_folders(file: Path, split: str | None, root: Path) -> list[Path]:
    """Candidate image folders of a COCO instance file."""
    stems = [file.stem.rpartition("_")[2]]  # instances_train2017 -> train2017
    stems += [folder.name for folder in folders_of(root) if split and split_of_folder(folder.name) == split]
    images = [root / name for name in PICTURES]
    tried = [place / stem for place in [root, *images] for stem in dict.fromkeys(stems)]
    if split:
        tried += [
            f
            for place in images
            if place.is_dir()
            for f in folders_of(place)
            if split_of_folder(f.name) == split
        ]
    tried += [*images, file.parent, root]
    return [place for place in dict.fromkeys(tried) if place.is_dir()]


def root_of(file: Path) -> Path:
    """The folder of the data set that an instance file belongs to."""
    return file.parent.parent if file.parent.name in LABELS else file.parent
