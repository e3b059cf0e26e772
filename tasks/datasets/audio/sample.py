"""The embedded audio samples: small imitations of the real benchmarks, synthesised from a seed.

A word is two syllables; a syllable is a pitch contour. All six contours sweep the same octaves at constant speed and
loudness, so that neither the mean spectrum nor the loudness envelope of a clip distinguishes the words, only the
time-frequency pattern does. Speakers differ in pitch, span, pace, timbre, level and noise.

Shapes: T samples.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.audio.speech_words import HASH_DIVIDER, WORDS, split_by_hash
from tasks.datasets.reading import require

Wave = NDArray[np.float64]  # (T,)

# A contour is a sequence of strokes of equal length: up, down, or held at one of four heights in the speaker's span.
STROKES = {
    "/": (-1, 1),
    "\\": (1, -1),
    "1": (-0.75, -0.75),
    "2": (-0.25, -0.25),
    "3": (0.25, 0.25),
    "4": (0.75, 0.75),
}
CONTOURS = {"rise": "/", "fall": "\\", "hat": "/\\", "vee": "\\/", "zig": "/\\/", "zag": "\\/\\"}
LONG_CONTOURS = {**CONTOURS, "saw_up": "//", "saw_down": "\\\\", "stairs_up": "1234", "stairs_down": "4321"}


@dataclass(frozen=True)
class Voice:
    """Parameters of one speaker."""

    pitch: float  # centre, Hz
    span: float  # half the range of a contour, octaves
    pace: float  # length of a syllable, s
    timbre: tuple[float, ...]  # amplitude of each harmonic
    level: float  # root mean square of the voice
    noise: float  # root mean square of the noise, relative to the level

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Voice":
        return cls(
            pitch=float(400 * 2 ** rng.uniform(-0.5, 0.5)),
            span=float(rng.uniform(0.45, 0.65)),
            pace=float(rng.uniform(0.30, 0.38)),
            timbre=tuple(rng.uniform(0.3, 1.0, 5) / np.arange(1, 6)),
            level=float(10 ** rng.uniform(-1.6, -0.8)),
            noise=float(10 ** rng.uniform(-1.5, -0.7)),
        )


def say(word: Sequence[str], voice: Voice, rng: np.random.Generator, rate: int, seconds: float) -> Wave:
    """One utterance: the syllables of ``word`` in sequence, near the middle of ``seconds`` of noise."""
    clip = np.zeros(round(seconds * rate))
    pitch = voice.pitch * 2 ** rng.uniform(-0.1, 0.1)
    lengths = [round(rate * voice.pace * rng.uniform(0.9, 1.1)) for _ in word]
    gap = round(rate * 0.05)
    spare = max(len(clip) - sum(lengths) - gap * (len(word) - 1), 0)
    start = int(spare * rng.uniform(0.2, 0.8))
    for strokes, length in zip(word, lengths, strict=True):
        sound = syllable(strokes, length, rate, pitch, voice)
        part = clip[start : start + length]
        part += sound[: len(part)]
        start += length + gap
    clip *= voice.level / np.sqrt(np.mean(clip**2))
    return clip + rng.normal(0, voice.level * voice.noise, len(clip))


def syllable(strokes: str, length: int, rate: int, pitch: float, voice: Voice) -> Wave:
    """One contour of ``length`` samples, faded at both ends, with the voice's harmonics."""
    place = np.linspace(0, len(strokes), length, endpoint=False)
    ends = np.array([STROKES[stroke] for stroke in strokes])[place.astype(int)]  # (T, 2)
    height = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * (place % 1)
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (voice.span * height)) / rate
    sound = sum(level * np.sin(number * phase) for number, level in enumerate(voice.timbre, start=1))
    return np.asarray(sound * np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 0.3)


def write_wav(path: Path, wave: Wave, rate: int) -> None:
    """Write 16-bit PCM."""
    soundfile = require("soundfile", "audio files")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.clip(np.round(wave * 32767), -32768, 32767).astype(np.int16)
    soundfile.write(path, whole, rate, subtype="PCM_16", format="WAV")


def speech_commands(root: Path, speakers: tuple[int, int, int] = (20, 3, 5), words: int = len(WORDS)) -> None:
    """Speech Commands v2: 35 words, each spoken once by every one of ``speakers`` speakers (train, val, test)."""
    pairs = list(product(CONTOURS.values(), repeat=2))
    lists: dict[str, list[str]] = {"val": [], "test": []}
    for split, speaker in _speakers(speakers):
        voice = Voice.draw(np.random.default_rng(int(speaker, 16)))
        for number, word in enumerate(WORDS[:words]):
            rng = np.random.default_rng((int(speaker, 16), number))
            name = f"{word}/{speaker}{HASH_DIVIDER}0.wav"
            write_wav(root / name, say(pairs[number], voice, rng, 16000, 1.0), 16000)
            if split in lists:
                lists[split].append(name)
    (root / "validation_list.txt").write_text("".join(f"{name}\n" for name in lists["val"]))
    (root / "testing_list.txt").write_text("".join(f"{name}\n" for name in lists["test"]))
    noise = np.random.default_rng(0).normal(0, 0.05, 5 * 16000)
    write_wav(root / "_background_noise_" / "white_noise.wav", noise, 16000)


def _speakers(wanted: tuple[int, int, int]) -> Iterator[tuple[str, str]]:
    """(split, speaker) such that the data set's own hash rule assigns each speaker to that split."""
    missing = dict(zip(("train", "val", "test"), wanted, strict=True))
    rng = np.random.default_rng(2018)
    while any(missing.values()):
        speaker = f"{int(rng.integers(2**32)):08x}"
        split = split_by_hash(f"{speaker}{HASH_DIVIDER}0.wav")
        if missing[split] > 0:
            missing[split] -= 1
            yield split, speaker


# fmt: off
ESC50_CATEGORIES = (
    "dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow", "rain", "sea_waves",
    "crackling_fire", "crickets", "chirping_birds", "water_drops", "wind", "pouring_water", "toilet_flush",
    "thunderstorm", "crying_baby", "sneezing", "clapping", "breathing", "coughing", "footsteps", "laughing",
    "brushing_teeth", "snoring", "drinking_sipping", "door_wood_knock", "mouse_click", "keyboard_typing",
    "door_wood_creaks", "can_opening", "washing_machine", "vacuum_cleaner", "clock_alarm", "clock_tick",
    "glass_breaking", "helicopter", "chainsaw", "siren", "car_horn", "engine", "train", "church_bells",
    "airplane", "fireworks", "hand_saw",
)
# fmt: on
ESC10 = {0, 1, 10, 11, 12, 20, 21, 38, 40, 41}


def esc50(root: Path, per_fold: int = 2, categories: int = len(ESC50_CATEGORIES)) -> None:
    """ESC-50: 50 sounds of five seconds in five folds, at 8 kHz to stay small (the real ones have 44.1 kHz).

    A sound is one of ten contours, repeated one, two, three, five or eight times.
    """
    rate = 8000
    sounds = list(product((1, 2, 3, 5, 8), LONG_CONTOURS.values()))
    rows = []
    for target, (times, strokes) in enumerate(sounds[:categories]):
        for fold in range(1, 6):
            for take in range(per_fold):
                rng = np.random.default_rng((50, target, fold, take))
                wave = _repeat(strokes, times, Voice.draw(rng), rng, rate, 5.0)
                source = 100_000 + (target * 5 + fold) * per_fold + take
                name = f"{fold}-{source}-A-{target}.wav"
                write_wav(root / "audio" / name, wave, rate)
                rows.append((name, fold, target, ESC50_CATEGORIES[target], target in ESC10, source, "A"))
    (root / "meta").mkdir()
    with (root / "meta" / "esc50.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("filename", "fold", "target", "category", "esc10", "src_file", "take"))
        table.writerows(sorted(rows))


def _repeat(
    strokes: str, times: int, voice: Voice, rng: np.random.Generator, rate: int, seconds: float
) -> Wave:
    """``times`` equal events, evenly spaced."""
    clip = np.zeros(round(seconds * rate))
    pitch = voice.pitch * 2 ** rng.uniform(-0.1, 0.1)
    step = len(clip) // times
    length = int(step * rng.uniform(0.7, 0.9))
    start = int((step - length) * rng.uniform(0, 1))
    for number in range(times):
        begin = number * step + start
        clip[begin : begin + length] = syllable(strokes, length, rate, pitch, voice)
    clip *= voice.level / np.sqrt(np.mean(clip**2))
    return clip + rng.normal(0, voice.level * voice.noise, len(clip))


def audio_folder(root: Path, per_class: int = 60) -> None:
    """One folder of one-second clips per contour; every clip has its own voice."""
    for number, (contour, strokes) in enumerate(CONTOURS.items()):
        for index in range(per_class):
            rng = np.random.default_rng((7, number, index))
            wave = say([strokes], Voice.draw(rng), rng, 16000, 1.0)
            write_wav(root / contour / f"{contour}_{index:03d}.wav", wave, 16000)


AUDIOSET_LABELS = {
    "/m/09x0r": "Speech",
    "/m/0bt9lr": "Dog",
    "/m/01yrx": "Cat",
    "/m/015p6": "Bird",
    "/m/04rlf": "Music",
    "/m/0342h": "Guitar",
    "/m/05r5c": "Piano",
    "/m/06mb1": "Rain",
    "/m/07yv9": "Vehicle",
    "/m/03kmc9": "Siren",
}
AUDIOSET_SEEDS = {"balanced_train": 0, "unbalanced_train": 1, "eval": 2}
VIDEO_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def audioset(root: Path, balanced: int = 40, unbalanced: int = 80, evaluation: int = 40) -> None:
    """AudioSet with ten of its labels: clips of ten seconds at 8 kHz with one to three contours in sequence.

    In the unbalanced subset the first label is by far the most frequent. One listed clip in twenty is missing.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "class_labels_indices.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("index", "mid", "display_name"))
        table.writerows((number, mid, name) for number, (mid, name) in enumerate(AUDIOSET_LABELS.items()))
    counts = {"balanced_train": balanced, "unbalanced_train": unbalanced, "eval": evaluation}
    for part, count in counts.items():
        rows = []
        for number in range(count):
            rng = np.random.default_rng((527, AUDIOSET_SEEDS[part], number))
            video = "".join(rng.choice(list(VIDEO_LETTERS), 11))
            labels = _audioset_labels(number, part == "unbalanced_train", rng)
            mids = ",".join(mid for place, mid in enumerate(AUDIOSET_LABELS) if place in labels)
            rows.append(f'{video}, 30.000, 40.000, "{mids}"\n')
            if number % 20 != 19:
                wave = _in_turn([list(LONG_CONTOURS.values())[label] for label in labels], rng, 8000, 10.0)
                write_wav(root / f"{part}_segments" / f"Y{video}.wav", wave, 8000)
        head = (
            "# Segments csv\n"
            f"# num_ytids={count}, num_segs={count}, num_unique_labels={len(AUDIOSET_LABELS)}\n"
            "# YTID, start_seconds, end_seconds, positive_labels\n"
        )
        (root / f"{part}_segments.csv").write_text(head + "".join(rows), encoding="utf-8")


def _audioset_labels(number: int, skewed: bool, rng: np.random.Generator) -> list[int]:
    """One to three different labels; unless skewed, all labels come first equally often."""
    count = len(AUDIOSET_LABELS)
    chances = 1 / np.arange(1, count + 1) if skewed else np.ones(count)
    drawn = rng.choice(count, int(rng.integers(1, 4)), replace=False, p=chances / chances.sum()).tolist()
    if skewed:
        return [int(label) for label in drawn]
    first = number % count
    return [first, *(int(label) for label in drawn[1:] if label != first)]


def _in_turn(contours: Sequence[str], rng: np.random.Generator, rate: int, seconds: float) -> Wave:
    """Up to three events, each in one third of ``seconds`` of noise, with different voices."""
    clip = np.zeros(round(seconds * rate))
    third = len(clip) // 3
    for strokes, place in zip(contours, rng.permutation(3).tolist(), strict=False):
        voice = Voice.draw(rng)
        length = int(third * rng.uniform(0.6, 0.9))
        start = place * third + int((third - length) * rng.uniform(0, 1))
        pitch = voice.pitch * 2 ** rng.uniform(-0.1, 0.1)
        clip[start : start + length] += syllable(strokes, length, rate, pitch, voice)
    clip *= voice.level / np.sqrt(np.mean(clip**2))
    return clip + rng.normal(0, voice.level * voice.noise, len(clip))
