"""UCF101 (Soomro et al. 2012, arXiv 1212.0402): 13,320 clips of 101 human actions, three official splits."""

from pathlib import Path

from tasks.datasets.errors import DataError
from tasks.datasets.items import Item
from tasks.datasets.video.official_lists import OfficialLists, carve_validation

VIDEO_FOLDERS = ("UCF-101", "UCF101", "videos", ".")
LIST_FOLDERS = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "splits", ".")


class UCF101(OfficialLists):
    """UCF101 with its official lists; the validation split is a fraction of the training list, by whole groups.

    The clips of one group (``g08`` in ``v_Archery_g08_c01.avi``) come from one video and stay in one split.

    Args:
        split, val_fraction, **settings: see `OfficialLists`.
    """

    title = "UCF101"
    layout = (
        "the folders UCF-101 (one folder of .avi files per class) and ucfTrainTestlist "
        "(classInd.txt, trainlist0N.txt, testlist0N.txt); both archives are unpacked by hand, the clips with "
        "'unrar x UCF101.rar'"
    )
    homepage = "https://www.crcv.ucf.edu/data/UCF101.php"

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.video.sample import ucf101

        ucf101(root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        lists = next((root / name for name in LIST_FOLDERS if (root / name / "classInd.txt").is_file()), None)
        if lists is None:
            raise self.bad_layout(f"there is no classInd.txt in {root}")
        self.class_names = read_classes(lists / "classInd.txt")
        videos = self.find_class_folders(root, VIDEO_FOLDERS)
        parts: dict[str, list[Item]] = {}
        for part in ("train", "test"):
            file = lists / f"{part}list0{self.split}.txt"
            if not file.is_file():
                raise self.bad_layout(f"there is no {file}")
            # A line is "Class/clip.avi 1" in the training lists and "Class/clip.avi" in the test lists.
            lines = file.read_text(encoding="utf-8").splitlines()
            names = [line.split()[0] for line in lines if line.strip()]
            missing = [name for name in names if not (videos / name).is_file()]
            if missing:
                raise DataError(
                    f"{len(missing):,} of the {len(names):,} clips in {file} are not there "
                    f"(first: {missing[0]}): unpack the whole archive"
                )
            parts[part] = [Item(videos / name, self._label(name, file)) for name in names]
        return carve_validation(parts["train"], parts["test"], group, self.val_fraction)

    def _label(self, name: str, file: Path) -> int:
        folder = name.split("/")[0]
        if folder not in self.class_names:
            raise DataError(f"{file} lists {name}, a class that classInd.txt does not have")
        return self.class_names.index(folder)


def group(item: Item) -> str:
    """The source video of a clip, ``Archery_g08``."""
    return item.path.stem.removeprefix("v_").rpartition("_c")[0]


def read_classes(file: Path) -> list[str]:
    """Read the class names of a class index with lines ``1 ApplyEyeMakeup``, in the order of their numbers."""
    numbered = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        number, _, name = line.strip().partition(" ")
        if not number.isdecimal() or not name.strip():
            raise DataError(f"{file} has the line {line.strip()[:60]!r} instead of 'number class'")
        numbered[int(number)] = name.strip()
    return [numbered[number] for number in sorted(numbered)]
