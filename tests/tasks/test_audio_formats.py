"""The same samples, whatever the file format."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tasks.datasets.audio.files import EXTENSIONS, length_of, read_crop
from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.base import ReadError
from tasks.datasets.shards.data import as_file

RATE = 16000
EXACT = (".wav", ".flac", ".aif", ".aiff", ".aifc", ".caf", ".w64")
LOSSY = (".ogg", ".oga", ".opus", ".mp3", ".m4a")


def chirp(seconds: float = 2.0) -> NDArray[np.float32]:
    """A rising, fading tone: no part of it is like another."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * (200 + 600 * t) * t) * (1 - 0.4 * t)).astype(np.float32)


def write(path: Path, sound: NDArray[np.float32]) -> Path:
    kind = path.suffix
    if kind not in (".m4a", ".aac", ".mka"):
        formats = {
            ".opus": ("OGG", "OPUS"),
            ".oga": ("OGG", "VORBIS"),
            ".aifc": ("AIFF", None),
            ".aif": ("AIFF", None),
        }
        form, subtype = formats.get(kind, (None, None))
        soundfile.write(path, sound, RATE, format=form, subtype=subtype)
        return path
    with av.open(
        str(path), "w", format={".m4a": "ipod", ".aac": "adts", ".mka": "matroska"}[kind]
    ) as container:
        stream = container.add_stream("aac", rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


@pytest.mark.parametrize("kind", EXACT + LOSSY)
def test_every_format_gives_the_same_samples(kind: str, tmp_path: Path) -> None:
    sound = chirp()
    path = write(tmp_path / f"a{kind}", sound)
    whole = read_crop(path, RATE, 2.0).numpy()
    middle = read_crop(path, RATE, 0.5).numpy()
    if kind in EXACT:
        np.testing.assert_allclose(whole, sound, atol=1e-4)
        np.testing.assert_allclose(middle, sound[12000:20000], atol=1e-4)
        return
    assert np.corrcoef(whole, sound)[0, 1] > 0.995
    if kind != ".mp3":  # libsndfile places a crop of an mp3 to a twentieth of a second only
        assert np.corrcoef(middle, sound[12000:20000])[0, 1] > 0.995


@pytest.mark.parametrize("kind", [".aac", ".mka"])
def test_sound_in_other_containers(kind: str, tmp_path: Path) -> None:
    """Their delay of some milliseconds is stated nowhere."""
    sound = chirp()
    whole = read_crop(write(tmp_path / f"a{kind}", sound), RATE, 2.0).numpy()
    best = max(
        np.corrcoef(np.roll(whole, shift)[4000:-4000], sound[4000:-4000])[0, 1]
        for shift in range(-2100, 2101, 4)
    )
    assert best > 0.995


def test_a_stereo_container_is_mixed_down(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    both = np.stack([chirp(), np.zeros(2 * RATE, np.float32)])
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=RATE)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(both, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert np.abs(read_crop(path, RATE, 2.0).numpy()).max() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_a_file_that_is_no_sound_is_one_sentence(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"a{kind}").write_bytes(b"no sound at all, but text" * 40)
    with pytest.raises(ReadError, match=r"cannot be read as audio|holds no sound") as caught:
        read_crop(tmp_path / f"a{kind}", RATE, 1.0)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("value", [1e30, -3e9])
def test_values_that_are_no_samples_name_the_file(value: float, tmp_path: Path) -> None:
    sound = chirp(0.5)
    sound[7] = value
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    with pytest.raises(ReadError, match="which are no samples of a sound"):
        read_crop(tmp_path / "a.wav", RATE, 0.5)


def test_folders_take_every_format(tmp_path: Path) -> None:
    for label in ("high", "low"):
        (tmp_path / label).mkdir()
        for number, kind in enumerate((".wav", ".aiff", ".opus", ".m4a") * 10):
            write(tmp_path / label / f"{number}{kind}", chirp(0.05)) if number < 4 else (
                tmp_path / label / f"{number}{kind}"
            ).write_bytes((tmp_path / label / f"{number % 4}{kind}").read_bytes())
    data = AudioFolder(name="audio_folder", data_dir=str(tmp_path), seconds=0.05, num_workers=0)
    data.setup()
    assert sum(map(len, data.splits.values())) == 80
    assert all(not batch.failures for batch in data.loader("train", train=False))


def test_the_length_of_a_bare_stream_is_counted(tmp_path: Path) -> None:
    """Its header says none, and a quiet beginning makes a guess from the bit rate far too long."""
    sound = np.concatenate([np.zeros(2 * RATE, np.float32), np.tile(chirp(), 2)])
    path = write(tmp_path / "a.aac", sound)
    assert length_of(path) == pytest.approx(6.0, abs=0.2)
    assert np.abs(read_crop(path, RATE, 0.5, place=1.0).numpy()).max() > 0.01


@pytest.mark.parametrize("kind", [".m4a", ".aac", ".mka", ".wav", ".mp3", ".opus", ".aiff"])
def test_a_sample_of_a_shard_is_read_as_the_file(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{kind}", chirp())
    with as_file(path.read_bytes(), kind) as nameless:
        inside = read_crop(nameless, RATE, 1.0)
    np.testing.assert_array_equal(inside.numpy(), read_crop(path, RATE, 1.0).numpy())
