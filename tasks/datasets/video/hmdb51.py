"""HMDB51 (Kuehne et al. 2011): 6,766 clips of 51 human actions from films, three official splits."""

from pathlib import Path

from tasks.datasets.errors import DataError
from tasks.datasets.items import Item
from tasks.datasets.video.official_lists import OfficialLists, carve_validation

VIDEO_FOLDERS = ("hmdb51_org", "hmdb51", "videos", ".")
LIST_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits", "splits", ".")
UNUSED, TRAIN, TEST = "0", "1", "2"


class HMDB51(OfficialLists):
    """HMDB51 with its official lists; the validation split is a fraction of the training list, grouped by film.

    A split has 70 training and 30 test clips of every class; the lists exclude the rest. Classes are in alphabetical
    order.

    Args:
        split, val_fraction, **settings: see `OfficialLists`.
    """

    title = "HMDB51"
    layout = (
        "the folders hmdb51_org (one folder of .avi files per class) and testTrainMulti_7030_splits "
        "(CLASS_test_splitN.txt); all archives are RAR files, unpacked by hand with 'unrar x', those of the "
        "classes inside hmdb51_org too"
    )
    homepage = "https://serre.lab.brown.edu/hmdb51.html"

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.video.sample import hmdb51

        hmdb51(root)

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        ending = f"_test_split{self.split}.txt"
        lists = next((root / name for name in LIST_FOLDERS if any((root / name).glob(f"*{ending}"))), None)
        if lists is None:
            raise self.bad_layout(f"there is no list *{ending} in {root}")
        self.class_names = sorted(
            file.name.removesuffix(ending) for file in lists.glob(f"*{ending}") if file.is_file()
        )
        videos = self.find_class_folders(root, VIDEO_FOLDERS)
        parts: dict[str, list[Item]] = {TRAIN: [], TEST: [], UNUSED: []}
        missing = []
        for label, name in enumerate(self.class_names):
            file = lists / f"{name}{ending}"
            for line in file.read_text(encoding="utf-8").splitlines():
                if not line.strip():
                    continue
                clip, _, part = line.strip().rpartition(" ")
                if part not in parts:
                    raise DataError(f"{file} has the line {line.strip()[:60]!r} instead of 'clip 0|1|2'")
                path = videos / name / clip.strip()
                parts[part].append(Item(path, label))
                if part != UNUSED and not path.is_file():
                    missing.append(path)
        if missing:
            raise DataError(
                f"{len(missing):,} of the {len(parts[TRAIN]) + len(parts[TEST]):,} clips of split "
                f"{self.split} are not there (first: {missing[0]}): unpack the archives of all classes"
            )
        return carve_validation(parts[TRAIN], parts[TEST], self._film, self.val_fraction)

    def _film(self, item: Item) -> str:
        """The source film of a clip: the part of its name before the class."""
        return item.path.stem.partition(f"_{self.class_names[item.target]}_")[0]
