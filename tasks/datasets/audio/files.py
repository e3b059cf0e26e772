"""Reads audio files as waveforms of fixed length; base class of the audio data modules.

Shapes: T samples at the target rate, K crops.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from inspect import signature
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Unpack

from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.items import Item, Whole, spread
from tasks.datasets.reading import check_file, require
from tasks.datasets.shards.data import ShardableData, ShardableSettings, as_file
from tasks.datasets.shards.layout import ShardItem
from tasks.datasets.targets import ClassTargets, Kind

SOUND_FILES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".caf", ".w64"
)  # read by libsndfile  # fmt: skip
CONTAINERS = (".m4a", ".aac", ".wma", ".mka")  # read by FFmpeg (PyAV)
EXTENSIONS = SOUND_FILES + CONTAINERS
MAGIC = (b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75")  # Matroska, ASF (WMA)
LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000  # Hz; outside, the header is damaged
LOUDEST = 2.0**31  # maximum of floating-point files: the 32-bit integer range; beyond it, the file is damaged
# Some streams do not state their length (libsndfile says 2**63 - 1); they are read from the start.
UNKNOWN_LENGTH = 2**48
LONGER = 1.02  # clips up to this factor longer than `seconds` are cropped without a note
LOOKED_AT = 200  # clips per split
FULL = "full"
LONGEST = 60.0  # maximum seconds to which `seconds=full` pads clips
MOST_CROPS = 1000


class AudioData(ShardableData):
    """Base class of data modules for audio files; a raw sample is a waveform ``(T,)``, float32 in [-1, 1].

    Training reads a random crop (a shorter file is placed at random in silence); validation, testing and
    prediction read the centre crop, or ``test_crops`` evenly spaced crops, ``(K, T)``.

    Args:
        sample_rate: in Hz; files at another rate are resampled.
        seconds: length of a waveform; ``full``: that of the longest clip of all splits, so that every clip is read
            whole. Shorter clips are padded with silence to this length, independently of the batch, so predictions do
            not depend on it. Longer files, in prediction or in other data, are refused.
        test_crops: K; 1 gives ``(T,)``; ``full`` uses as many as cover the longest clip without gaps.
        **common: see `ShardableData` and `DataModule`.
    """

    kind: ClassVar[Kind] = ClassTargets
    modality = "audio"
    extensions = EXTENSIONS
    draws_apart = True

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        seconds: float | str = 1.0,
        test_crops: int | str = 1,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(**common)
        self.whole_clips = seconds == FULL
        length = 1.0 if self.whole_clips else seconds  # set by `setup` or `recall`
        if isinstance(length, str):
            raise DataError(f"seconds is a number or {FULL}, not {length!r}")
        self.covering = test_crops == FULL
        crops = 1 if self.covering else test_crops
        if not isinstance(crops, int):
            raise DataError(f"test_crops is a number or {FULL}, not {test_crops!r}")
        if sample_rate < 1 or length * sample_rate < 1 or crops < 1:
            raise DataError("sample_rate, seconds and test_crops must be positive")
        self.sample_rate = sample_rate
        self.seconds = float(length)
        self.test_crops = crops

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor:
        if train:
            return read_crop(item.path, self.sample_rate, self.seconds, place=rng.random())
        return self.read_file(item.path)

    def decode(self, item: Item) -> tuple[Tensor, Any]:
        """The whole clip, resampled."""
        seconds = max(length_of(item.path) or 0.0, self.seconds)
        return read_samples(item.path, self.sample_rate, seconds), item.target

    def augmented(self, raw: Tensor, target: Any, rng: np.random.Generator) -> tuple[Tensor, Any]:
        return fit_length(raw, round(self.seconds * self.sample_rate), place=rng.random()), target

    def setup(self, stage: str | None = None) -> None:
        fresh = not self.splits
        super().setup(stage)
        if fresh and self.whole_clips:
            self.seconds = self._longest_clip()
        if fresh and self.covering:
            self.test_crops = self._covering_crops()
        if fresh:
            self.notes += self._lengths_note()

    def info(self) -> dict[str, Any]:
        own: dict[str, Any] = {"seconds": self.seconds} if self.whole_clips else {}
        return super().info() | own | ({"test_crops": self.test_crops} if self.covering else {})

    def recall(self, data_info: dict[str, Any]) -> None:
        super().recall(data_info)
        self.seconds = data_info.get("seconds", self.seconds)
        self.test_crops = data_info.get("test_crops", self.test_crops)

    def adopt(self, data_info: dict[str, Any]) -> None:
        super().adopt(data_info)
        self.seconds = data_info.get("seconds", self.seconds)

    def take_whole(self, whole: Whole, data_info: dict[str, Any]) -> None:
        super().take_whole(whole, data_info)
        if self.covering:
            self.test_crops = self._covering_crops()
        self.notes += self._lengths_note()

    def _refuse_unmeasured(self, option: str, else_say: str) -> None:
        """Raise a `DataError` if the lengths of clips cannot be read from their headers (remote shards)."""
        if self.storage is not None and self.storage.folder is None:
            raise DataError(
                f"{option}={FULL} needs shards in a folder, whose clips can be measured: say {else_say}"
            )

    def _longest_clip(self) -> float:
        """Duration of the longest clip of all splits, in seconds."""
        self._refuse_unmeasured("seconds", "seconds=SECONDS")
        longest = max((length for split in self.splits for length in self._lengths(split, None)), default=0.0)
        if not longest:
            raise DataError(f"seconds={FULL}: no clip says how long it is: say task.data.seconds=SECONDS")
        if longest > LONGEST:
            raise DataError(
                f"the longest clip lasts {longest:.4g} s, and seconds={FULL} would fill all others up to it, which is "
                f"done up to {LONGEST:g} s: say task.data.seconds={_rounded_up(longest):g} if this is meant, or less "
                "and task.data.test_crops=full"
            )
        return _rounded_up(longest)

    def _covering_crops(self) -> int:
        """Number of crops of `seconds` that cover the longest clip of the validation and test splits."""
        self._refuse_unmeasured("test_crops", "test_crops=K")
        measured = [split for split in ("val", "test") if split in self.splits]
        lengths = [length for split in measured for length in self._lengths(split, None)]
        crops = math.ceil(round(max(lengths, default=self.seconds) / self.seconds, 6))
        if crops > MOST_CROPS:
            raise DataError(
                f"the longest clip lasts {max(lengths):.3g} s, {crops:,} crops of {self.seconds:g} s: say "
                f"task.data.test_crops=K, or longer task.data.seconds"
            )
        return max(crops, 1)

    def _lengths_note(self) -> list[str]:
        """Note about how much of longer clips is read, and the option that reads more."""
        seconds = sorted(length for split in self.splits for length in self._lengths(split, LOOKED_AT))
        if self.whole_clips and seconds:
            return [
                f"clips last {seconds[0]:.3g} / {median(seconds):.3g} / {seconds[-1]:.3g} s (min / median / max): each "
                f"is read whole, with silence up to {self.seconds:g} s (task.data.seconds={FULL})"
            ]
        if not seconds or seconds[-1] <= LONGER * self.seconds:
            return []
        longer = sum(length > LONGER * self.seconds for length in seconds) / len(seconds)
        looked = f" of {len(seconds)} clips" if len(seconds) < sum(map(len, self.splits.values())) else ""
        tested = "the middle" if self.test_crops == 1 else f"{self.test_crops} crops from start to end"
        more = f"task.data.seconds={_rounded_up(seconds[-1]):g} reads all"
        if self.test_crops == 1 and "test_crops" in signature(type(self)).parameters:
            more += f", task.data.test_crops=K (or {FULL}) averages the answers to K crops"
        return [
            f"clips last {seconds[0]:.3g} / {median(seconds):.3g} / {seconds[-1]:.3g} s (min / median / max{looked}), "
            f"{100 * longer:.0f} % longer than the {self.seconds:g} s that are read: in training a random crop, in "
            f"validation and test {tested}; {more}"
        ]

    def _lengths(self, split: str, most: int | None) -> Iterator[float]:
        """Durations in seconds of clips of a split (at most about `most`), by their headers; none for remote shards."""
        if self.storage is not None and self.storage.folder is None:
            return
        if most is not None and self.storage is not None:
            most //= 10
        for item in spread(self.splits[split], most):
            try:
                length = self._length(item)
            except DataError:
                continue
            if length is not None:
                yield length

    def _length(self, item: Item) -> float | None:
        if not isinstance(item, ShardItem):
            return length_of(item.path)
        with as_file(self.content(item), item.path.suffix) as path:
            return length_of(path)

    def read_file(self, path: Path) -> Tensor:
        if self.whole_clips and (length := length_of(path) or 0.0) > LONGER * self.seconds:
            raise ReadError(
                f"it lasts {length:.4g} s, longer than any clip the model was trained on (task.data.seconds={FULL}: "
                f"{self.seconds:g} s): cut it, or train with task.data.seconds=SECONDS, which reads a part of it"
            )
        if self.test_crops == 1:
            return read_crop(path, self.sample_rate, self.seconds, place=0.5)
        places = np.linspace(0.0, 1.0, self.test_crops)
        return torch.stack([read_crop(path, self.sample_rate, self.seconds, place=place) for place in places])


def length_of(path: Path) -> float | None:
    """Duration of a file in seconds, from its header; None if not stated.

    Raises:
        ReadError: it cannot be read as audio.
    """
    check_file(path)
    if is_container(path):
        with _container(path) as (container, stream):
            return _stated_length(container, stream) / stream.rate or None
    soundfile = require("soundfile", "audio files")
    try:
        with soundfile.SoundFile(path) as file:
            return file.frames / file.samplerate if 0 < file.frames < UNKNOWN_LENGTH else None
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ReadError(_why_unreadable(path, error)) from error


def _rounded_up(seconds: float) -> float:
    """Rounded up to three significant digits.

    >>> _rounded_up(12.3412)
    12.4
    """
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 2)
    return round(math.ceil(round(seconds / unit, 6)) * unit, 9)


def read_crop(path: Path, sample_rate: int, seconds: float, place: float = 0.5) -> Tensor:
    """Read ``seconds`` of a file as ``(T,)``, with T = ``round(seconds * sample_rate)``.

    Args:
        path, sample_rate: see `read_samples`.
        place: relative position of the crop in a longer file, or of a shorter file in silence: 0 is the start,
            0.5 the middle, 1 the end.

    Raises:
        ReadError: see `read_samples`.
    """
    return fit_length(read_samples(path, sample_rate, seconds, place), round(seconds * sample_rate), place)


def read_samples(path: Path, sample_rate: int, seconds: float, place: float = 0.0) -> Tensor:
    """Read at most ``seconds`` of a file, mixed down to one channel and resampled, as ``(T,)`` float32.

    Args:
        path: WAV, FLAC, OGG, Opus, MP3, AIFF or another format of libsndfile; M4A, AAC and WMA through PyAV.
        sample_rate: target rate in Hz.
        place: relative position of the crop in a longer file.

    Raises:
        ReadError: the file is missing, empty, not audio, broken or contains non-finite values.
    """
    check_file(path)
    sound, rate = (_read_container if is_container(path) else _read_sound_file)(path, seconds, place)
    if len(sound) == 0:
        raise ReadError("it holds no sound (0 samples)")
    peak = max(float(sound.max()), -float(sound.min()))  # NaN if any sample is NaN
    if not math.isfinite(peak):
        raise ReadError("it holds values that are not finite numbers")
    if peak > LOUDEST:
        raise ReadError(
            f"it holds values up to {peak:.3g}, which are no samples of a sound (those lie in [-1, 1])"
        )
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ReadError(f"its sample rate of {rate} Hz is out of range")
    waveform = torch.from_numpy(sound[:, 0] if sound.shape[1] == 1 else sound.mean(axis=1))
    return resample(waveform, rate, sample_rate)


def is_container(path: Path) -> bool:
    """Whether a file is read by FFmpeg: by extension, or without one (samples of shards) by its first bytes."""
    if path.suffix:
        return path.suffix.lower() in CONTAINERS
    with path.open("rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" or start.startswith(MAGIC) or _is_adts(start)


def _is_adts(start: bytes) -> bool:
    return start[:1] == b"\xff" and len(start) > 1 and start[1] & 0xF6 == 0xF0  # layer 0; MP3 has 1


def _read_sound_file(path: Path, seconds: float, place: float) -> tuple[NDArray[np.float32], int]:
    """Read the samples of the crop that exist in the file, (T, channels), and the rate, with libsndfile."""
    soundfile = require("soundfile", "audio files")
    try:
        with soundfile.SoundFile(path) as file:
            wanted = math.ceil(seconds * file.samplerate)
            spare = file.frames - wanted
            if 0 < spare < UNKNOWN_LENGTH:
                file.seek(round(place * spare))
            return file.read(wanted, dtype="float32", always_2d=True), file.samplerate
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ReadError(_why_unreadable(path, error)) from error


def _read_container(path: Path, seconds: float, place: float) -> tuple[NDArray[np.float32], int]:
    """The same with FFmpeg: decoded from the start, since seeking in compressed audio is not sample-accurate."""
    with _container(path) as (container, stream):
        wanted = math.ceil(seconds * stream.rate)
        start = max(round(place * (_stated_length(container, stream) - wanted)), 0)
        chunks, done = [], 0
        for frame in container.decode(stream):
            chunk = _planes(frame).T
            chunks.append(chunk[max(start - done, 0) : max(start + wanted - done, 0)])
            done += len(chunk)
            if done >= start + wanted:
                break
        return (np.concatenate(chunks) if chunks else np.zeros((0, 1), np.float32)), stream.rate


@contextmanager
def _container(path: Path) -> Iterator[tuple[Any, Any]]:
    """Opens a file and its first audio stream; FFmpeg errors inside the block become a `ReadError`."""
    av = require("av", f"audio files such as {', '.join(CONTAINERS)}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ReadError("it holds no sound")
            if container.streams.audio[0].codec_context is None:
                raise ReadError("it holds sound of no known kind")
            yield container, container.streams.audio[0]
    except ReadError:
        raise
    except (OSError, ValueError, av.FFmpegError) as error:
        raise ReadError(_why_unreadable(path, error)) from error


def _stated_length(container: Any, stream: Any) -> int:
    """Samples per channel, from the header, or from the packets of a raw AAC stream; 0 if unknown."""
    if container.format.name == "aac":  # its length would be guessed from the first frames
        with require("av", "audio files").open(container.name) as again:
            first = again.streams.audio[0]
            return round(
                sum(packet.duration or 0 for packet in again.demux(first)) * first.time_base * first.rate
            )
    if stream.duration is not None and stream.time_base is not None:
        return round(stream.duration * stream.time_base * stream.rate)
    return round(container.duration * stream.rate / 1e6) if container.duration else 0


def _planes(frame: Any) -> NDArray[np.float32]:
    """Samples of a frame of any format as (channels, T)."""
    converter = require("av", "audio files").AudioResampler(format="fltp")
    return np.concatenate([part.to_ndarray() for part in converter.resample(frame)], axis=1)


def fit_length(waveform: Tensor, length: int, place: float) -> Tensor:
    """Crop ``(T,)`` to ``length`` samples, or pad it with silence, at relative position ``place`` in [0, 1]."""
    spare = waveform.shape[-1] - length
    if spare >= 0:
        start = round(place * spare)
        return waveform[start : start + length].contiguous()
    before = round(place * -spare)
    return torch.nn.functional.pad(waveform, (before, -spare - before))


def resample(waveform: Tensor, rate: int, wanted: int) -> Tensor:
    """Band-limited resampling of ``(T,)`` from ``rate`` to ``wanted`` Hz."""
    # A rate such as 44,101 Hz would need a kernel of gigabytes; a ratio error below 1e-5 is
    # inaudible.
    ratio = Fraction(wanted, rate).limit_denominator(1000)
    return waveform if ratio == 1 else _resampler(ratio.denominator, ratio.numerator)(waveform)


@lru_cache(maxsize=16)
def _resampler(rate: int, wanted: int) -> nn.Module:
    module: nn.Module = require("torchaudio.transforms", "clips of another sample rate").Resample(
        rate, wanted
    )
    return module


def _why_unreadable(path: Path, error: Exception) -> str:
    reason = str(error).replace(repr(str(path)), "").replace(str(path), "").strip(" :.")
    return f"it cannot be read as audio ({reason})"
