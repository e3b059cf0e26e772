"""Google Speech Commands v2 (Warden 2018, arXiv 1804.03209): one-second clips of 35 spoken words."""

from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.audio.files import AudioData
from tasks.datasets.audio.speech_words import split_by_hash
from tasks.datasets.base import DataError, Item
from tasks.datasets.download import Source
from tasks.datasets.fetch import download_and_unpack
from tasks.datasets.listing import usual_place
from tasks.datasets.shards.data import ShardableSettings

SOURCE = Source(
    url="https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    most_gb=10,
)
FOLDERS = (".", "speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02")
LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}


class SpeechCommands(AudioData):
    """Speech Commands v2, 35 words, with the official lists: 84,843 / 9,981 / 11,005 clips.

    A folder without the two lists is split by the rule in the data set's README, a hash of the speaker id, which keeps
    all clips of a speaker together. Every folder is a word, except ``_background_noise_``.

    Args:
        sample_rate, seconds: see `AudioData`.
        **common: see `ShardableData` and `DataModule`.
    """

    title = "Speech Commands"
    layout = (
        "one folder of .wav files per word, with validation_list.txt and testing_list.txt beside them "
        "(the unpacked speech_commands_v0.02.tar.gz, or the folder that holds it)"
    )
    homepage = SOURCE.url
    unit = "clips"

    def __init__(
        self, *, sample_rate: int = 16000, seconds: float = 1.0, **common: Unpack[ShardableSettings]
    ) -> None:
        super().__init__(sample_rate=sample_rate, seconds=seconds, **common)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.audio.sample import speech_commands

        speech_commands(root)

    def looks_complete(self, root: Path) -> bool:
        return _find(root) is not None

    def fetch(self, root: Path) -> None:
        download_and_unpack(SOURCE, root / FOLDERS[1])

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        found = _find(root)
        if found is None:
            raise self.bad_layout(f"no word folders in {root}")
        self.class_names = _words(found)
        if len(self.class_names) < 2:
            raise self.bad_layout(f"{found} holds clips of one word only")
        paths = {
            f"{word}/{path.name}": (path, target)
            for target, word in enumerate(self.class_names)
            for path in sorted((found / word).glob("*.wav"))
        }
        listed = self._read_lists(found, set(paths))
        splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        for name, (path, target) in paths.items():
            split = listed.get(name, "train") if listed else split_by_hash(path.name)
            splits[split].append(Item(path, target))
        return splits

    def _read_lists(self, folder: Path, names: set[str]) -> dict[str, str]:
        """Split of every listed clip; empty without lists."""
        files = {split: folder / name for split, name in LISTS.items() if (folder / name).is_file()}
        if not files:
            return {}
        for split in LISTS:
            if split not in files:
                raise DataError(f"{folder} has only one of the two lists: {LISTS[split]} is missing")
        listed: dict[str, str] = {}
        for split, file in files.items():
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            missing = [line for line in lines if line not in names]
            if missing:  # otherwise a smaller test set than the official one would go unnoticed
                raise DataError(
                    f"{len(missing):,} of the {len(lines):,} clips in {file} are not there "
                    f"(first: {missing[0]}): the download is incomplete"
                )
            listed.update(dict.fromkeys(lines, split))
        return listed


def _words(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and path.name[0] not in "._" and next(path.glob("*.wav"), None)
    )


def _find(root: Path) -> Path | None:
    """The parent of the word folders: `root` or one of the usual folders below it."""
    return usual_place(root, FOLDERS, lambda place: place.is_dir() and bool(_words(place)))
