"""`task.data.seconds=full`: clips of different lengths are read whole, from training to export."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tests_support import TINY

from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.base import DataError, ReadError
from workbench.resume import changed_data

Act = Callable[..., Path]
RATE = 4000


def clip(path: Path, seconds: float, pitch: float) -> Path:
    """Half a second of a tone, then silence: it is all that tells the classes apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.zeros(round(seconds * RATE))
    wave[: RATE // 2] = 0.5 * np.sin(np.arange(RATE // 2) * pitch)
    soundfile.write(path, wave, RATE)
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for label, pitch in (("high", 1.0), ("low", 0.2)):
        for number in range(31):
            split = ("test", "val", "train", "train")[number % 4]
            clip(tmp_path / "clips" / split / label / f"{number}.wav", 0.5 + 0.05 * number, pitch)
    return tmp_path / "clips"


def opened(root: Path, seconds: float | str, **options: int | str) -> AudioFolder:
    data = AudioFolder(
        name="audio_folder", data_dir=str(root), sample_rate=RATE, seconds=seconds, num_workers=0, **options
    )  # type: ignore[arg-type]
    data.setup()
    return data


def test_every_clip_is_read_whole(clips: Path) -> None:
    full, middle = opened(clips, "full", batch_size=4), opened(clips, 0.5, batch_size=4)
    assert full.seconds == full.info()["seconds"] == 2.0
    assert "seconds" not in middle.info()
    (note,) = full.notes
    assert "clips last 0.5 / 1.2" in note
    assert "each is read whole, with silence up to 2 s" in note

    def energies(data: AudioFolder) -> list[float]:
        items = [item for split in data.splits.values() for item in split]
        return [float(data.read_file(item.path).square().sum()) for item in items]

    assert np.std(energies(full)) < 0.01 * np.mean(energies(full)), "the tone is in every clip"
    assert min(energies(middle)) == 0, "and not in the middle of long ones"
    batch = next(iter(full.train_dataloader())).raw
    assert batch.shape == (4, 2 * RATE)
    assert (batch.square().sum(dim=1) > 100).all()


def test_a_longer_file_is_one_sentence(clips: Path, tmp_path: Path) -> None:
    data = opened(clips, "full")
    other = AudioFolder(name="audio_folder", data_dir=str(clips), sample_rate=RATE, seconds="full")
    other.recall(data.info())
    assert other.read_file(clip(tmp_path / "fits.wav", 1.7, 1.0)).shape == (2 * RATE,)
    with pytest.raises(
        ReadError, match=r"it lasts 3 s, longer than any clip .* \(task.data.seconds=full: 2 s\)"
    ):
        other.read_file(clip(tmp_path / "long.wav", 3.0, 1.0))


def test_very_long_clips_are_not_filled_up_to(clips: Path) -> None:
    clip(clips / "val" / "high" / "long.wav", 61.0, 1.0)
    with pytest.raises(DataError, match=r"the longest clip lasts 61 s.*say task.data.seconds=61 if"):
        opened(clips, "full")
    with pytest.raises(DataError, match="seconds is a number or full, not 'all'"):
        opened(clips, "all")


@pytest.mark.slow
def test_from_training_to_export(act: Act, clips: Path, tmp_path: Path) -> None:
    sizes = ("modality.embedder.sample_rate=4000", "task.data.batch_size=4", "task.data.num_workers=0")
    words = (*TINY, *sizes, "task=audio_folder", f"data_dir={clips}", "task.data.seconds=full")
    run = act(*words, "trainer.max_epochs=10", "optimizer.lr=0.02")
    fit = json.loads((run / "result.json").read_text())["metrics"]
    assert fit["test/acc"] == 1.0, "the tone decides, wherever the clip ends"
    tested = act("trainer=cpu", "action=test", f"ckpt={run}", f"data_dir={clips}")
    assert json.loads((tested / "result.json").read_text())["metrics"]["test/acc"] == 1.0
    inputs = tmp_path / "new"
    for name, seconds, pitch in (("a", 0.6, 1.0), ("b", 1.9, 0.2), ("c", 5.0, 0.2)):
        clip(inputs / f"{name}.wav", seconds, pitch)
    said = act("trainer=cpu", "action=predict", f"ckpt={run}", f"input={inputs}")
    with (said / "predictions.csv").open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert rows["a.wav"]["label"] == "high"
    assert rows["b.wav"]["label"] == "low"
    assert "it lasts 5 s, longer than any clip" in rows["c.wav"]["error"]
    exported = act("trainer=cpu", "action=export", f"ckpt={run}")
    assert any(exported.rglob("*.onnx")) or any(exported.rglob("*.pt2"))


def test_the_number_of_crops_is_no_other_data(clips: Path) -> None:
    """It follows from the clips that are tested: what a model must know is the same."""
    data = opened(clips, 0.5, test_crops="full")
    fewer = data.info() | {"test_crops": data.test_crops - 1}
    assert data.test_crops == 4
    assert changed_data(fewer, data.info(), data.record(), data.record()) == []
    other = data.info() | {"class_names": ["high", "mid"]}
    assert changed_data(other, data.info(), data.record(), data.record()) != []
