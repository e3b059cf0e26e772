"""The drawn recordings: loudness does not tell when something sounds, nor one frame's spectrum what."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from modalities.audio import LogMel
from tasks.datasets.audio.event_sample import KINDS, RATE, recording
from tasks.event_decoding import Decoding, frame_targets
from tasks.event_metrics import Events, event_counts, f1_of, micro_f1_of
from tasks.sound_events import as_array, grid_of

NAMES = sorted(KINDS)
EMBEDDER = LogMel(num_mel_bins=64, num_frames=None, frame_shift_ms=16.0, mean=-4.0, std=3.0)
GRID = grid_of(EMBEDDER)
DECODING = Decoding(median=0.1, max_gap=0.1, min_length=0.1)


@cache
def drawn(part: int, count: int) -> list[tuple[torch.Tensor, Events, float]]:
    """Maps (N, F), events and seconds of some recordings."""
    found = []
    for number in range(count):
        wave, events = recording(10.0, False, np.random.default_rng((3, part, number)))
        truth = np.array([(a, b, NAMES.index(kind)) for a, b, kind in events], dtype=np.float64).reshape(
            -1, 3
        )
        maps = EMBEDDER(torch.from_numpy(wave).float()[None])[0, 0, 0].T
        found.append((maps, truth, len(wave) / RATE))
    return found


def decoded(scores: NDArray[np.float32], thresholds: NDArray[np.float64], seconds: float) -> Events:
    return DECODING.events(DECODING.smoothed(scores, GRID), thresholds, GRID, seconds)


def test_loudness_does_not_tell_when_something_sounds() -> None:
    """Stretches above an energy threshold, the best one of 40 as judged by the answer, and even if every stretch could
    be given the right name: few events have their onset and offset."""
    clips = drawn(2, 24)
    loud = [torch.logsumexp(6 * maps, dim=1).numpy()[:, None] for maps, _, _ in clips]
    best = best_named = 0.0
    for threshold in np.quantile(np.concatenate(loud), np.linspace(0.02, 0.98, 40)):
        counts, named = np.zeros((3, 1)), np.zeros((3, len(NAMES)))
        for scores, (_, truth, seconds) in zip(loud, clips, strict=True):
            found = decoded(scores.astype(np.float32), np.array([threshold]), seconds)
            anything = truth * [1, 1, 0]
            counts += event_counts(anything, found, 1)[0]
            named += sum(
                event_counts(truth, np.add(found, [0, 0, label]), len(NAMES))[0]
                * (np.arange(len(NAMES)) == label)
                for label in range(len(NAMES))
            )
        best = max(best, micro_f1_of(counts))
        best_named = max(best_named, float(np.nanmean(f1_of(named))))
    print(
        f"energy threshold: {best:.3f} without names, {best_named:.3f} with every name given to each stretch"
    )
    assert best < 0.4
    assert best_named < 0.25


def test_one_spectrum_does_not_tell_what_sounds() -> None:
    """A network that is given the spectrum of one frame stays below an event F1 of 0.5."""
    torch.manual_seed(0)
    train, test = drawn(0, 60), drawn(2, 24)
    maps = torch.cat([part[0] for part in train])
    target = torch.cat(
        [
            frame_targets(torch.from_numpy(truth)[None], GRID, len(own), len(NAMES))[0]
            for own, truth, _ in train
        ]
    )
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(NAMES)))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(800):
        seen = torch.randint(len(maps), (1024,))
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(maps[seen]), target[seen]).backward()
        optimizer.step()
    best = np.zeros(len(NAMES))
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5):  # of every class the best one
        counts = np.zeros((3, len(NAMES)))
        for own, truth, seconds in test:
            scores = as_array(model(own).sigmoid())
            counts += event_counts(
                truth, decoded(scores, np.full(len(NAMES), threshold), seconds), len(NAMES)
            )[0]
        best = np.fmax(best, f1_of(counts))
    print(
        "one spectrum:",
        {name: round(float(value), 3) for name, value in zip(NAMES, best, strict=True)},
        best.mean(),
    )
    assert best.mean() < 0.5
    assert max(best[NAMES.index("chirp_up")], best[NAMES.index("chirp_down")]) < 0.35


def test_recordings_hold_every_kind_and_overlaps() -> None:
    clips = drawn(0, 60)
    kinds = np.concatenate([truth[:, 2] for _, truth, _ in clips])
    assert np.bincount(kinds.astype(int), minlength=6).min() > 30
    overlapping = total = 0
    for _, truth, _ in clips:
        total += len(truth)
        for onset, offset, kind in truth.tolist():
            others = truth[truth[:, 2] != kind]
            overlapping += bool(((others[:, 0] < offset) & (others[:, 1] > onset)).any())
            same = truth[(truth[:, 2] == kind) & (truth[:, 0] != onset)]
            assert not ((same[:, 0] < offset) & (same[:, 1] > onset)).any()
    assert 0.25 < overlapping / total < 0.85
