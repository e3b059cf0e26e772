"""The embedded sample of sound events: recordings of six kinds of overlapping sounds in noise, with an event table.

Four kinds are tones at random pitch that differ only in their pitch contour: an up-chirp has the mean spectrum of a
down-chirp. The noise level varies, so loudness alone does not reveal events.

Shapes: T samples.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tasks.datasets.audio.sample import Wave, write_wav

RATE = 16000
PARTS = {"train": 72, "val": 14, "test": 18}  # number of recordings
SECONDS = (8.0, 12.0)  # of most recordings
LONG = (20.0, 30.0)  # of every sixth
EMPTY = 9  # one in this many recordings has no event
APART = 0.4  # minimum seconds between two events of a kind


def _tone(octaves: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    """A tone with two overtones, (T,); `octaves` is the pitch contour relative to `pitch`."""
    phase = 2 * np.pi * np.cumsum(pitch * 2.0**octaves) / RATE
    overtones = rng.uniform(0.1, 0.6, 2)
    return np.asarray(np.sin(phase) + overtones[0] * np.sin(2 * phase) + overtones[1] * np.sin(3 * phase))


def _chirp(direction: int) -> Callable[[int, np.random.Generator], Wave]:
    def draw(length: int, rng: np.random.Generator) -> Wave:
        span = rng.uniform(0.6, 1.0)
        return _tone(direction * np.linspace(-span, span, length), _pitch(rng), rng)

    return draw


def _trill(length: int, rng: np.random.Generator) -> Wave:
    time = np.arange(length) / RATE
    return _tone(0.35 * np.sign(np.sin(2 * np.pi * rng.uniform(7, 10) * time)), _pitch(rng), rng)


def _siren(length: int, rng: np.random.Generator) -> Wave:
    time = np.arange(length) / RATE
    turns = 2 * np.pi * (rng.uniform(1.2, 2.0) * time + rng.uniform())
    return _tone(rng.uniform(0.4, 0.7) * np.sin(turns), _pitch(rng), rng)


def _knocks(length: int, rng: np.random.Generator) -> Wave:
    time = np.arange(length) / RATE
    decay = np.exp(-35 * (time % (1 / rng.uniform(5, 8))))
    return np.asarray(1.6 * rng.normal(size=length) * decay)


def _hiss(length: int, rng: np.random.Generator) -> Wave:
    return np.diff(rng.normal(size=length + 2), n=2) / 2


def _pitch(rng: np.random.Generator) -> float:
    return float(700 * 2 ** rng.uniform(-1, 1))


KINDS: dict[str, tuple[Callable[[int, np.random.Generator], Wave], float, float]] = {
    # synthesis function, minimum and maximum duration in seconds
    "chirp_down": (_chirp(-1), 0.4, 1.0),
    "chirp_up": (_chirp(1), 0.4, 1.0),
    "hiss": (_hiss, 0.4, 1.5),
    "knocks": (_knocks, 0.6, 1.6),
    "siren": (_siren, 1.2, 3.0),
    "trill": (_trill, 0.5, 1.5),
}
Annotation = tuple[float, float, str]  # onset, offset, label


def recording(seconds: float, empty: bool, rng: np.random.Generator) -> tuple[Wave, list[Annotation]]:
    """A recording, (T,), and its events by onset: about one per 1.4 seconds, three in four without overlap."""
    clip = _noise(round(seconds * RATE), rng)
    free = dict.fromkeys(KINDS, 0.0)  # earliest next onset of each kind
    events: list[Annotation] = []
    now = float(rng.uniform(0, 1.0))
    while not empty:
        kind = str(rng.choice([name for name in KINDS if free[name] <= now] or list(KINDS)))
        draw, shortest, longest = KINDS[kind]
        onset, length = max(now, free[kind]), float(rng.uniform(shortest, longest))
        if onset + length > seconds:
            break
        first, count = round(onset * RATE), round(length * RATE)
        sound = draw(count, rng)
        fade = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / (0.01 * RATE))
        level = 0.05 * 10 ** (rng.uniform(0, 10) / 20)
        clip[first : first + count] += level * fade * sound / np.sqrt(np.mean(sound**2))
        events.append((first / RATE, (first + count) / RATE, kind))
        free[kind] = onset + length + APART
        now = onset + float(rng.exponential(1.4))
    return clip, sorted(events)


def _noise(length: int, rng: np.random.Generator) -> Wave:
    """Noise whose level changes by several decibels every second or two."""
    knots = rng.uniform(-9, 3, length // RATE + 2)
    decibels = np.interp(np.arange(length) / RATE, np.arange(len(knots)), knots)
    return np.asarray(0.05 * 10 ** (decibels / 20) * rng.normal(size=length))


def sound_events(root: Path, parts: dict[str, int] | None = None) -> None:
    """Writes recordings to `train/`, `val/` and `test/`, and `events.csv`, with a row also for those without events."""
    rows: list[tuple[str, ...]] = []
    for part, (split, count) in enumerate((parts or PARTS).items()):
        for number in range(count):
            rng = np.random.default_rng((97, part, number))
            seconds = float(rng.uniform(*(LONG if number % 6 == 5 else SECONDS)))
            clip, events = recording(seconds, number % EMPTY == EMPTY - 1, rng)
            name = f"{split}/recording_{number:03d}.wav"
            write_wav(root / name, clip, RATE)
            rows += [(name, f"{onset:.4f}", f"{offset:.4f}", kind) for onset, offset, kind in events]
            rows += [] if events else [(name, "", "", "")]
    with (root / "events.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "onset", "offset", "label"))
        table.writerows(rows)
