"""Frames and events, the head, and how recordings of any length are read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modalities.audio import LogMel
from modalities.audio_augment import SpecAugment, WaveformAugment, WaveformMixup
from modalities.image import Pixels
from tasks.datasets.batch import Batch
from tasks.event_decoding import Decoding, FrameGrid, frame_targets, scores_of
from tasks.event_head import EventHead
from tasks.losses import BinaryCrossEntropy, CrossEntropy
from tasks.network import Network
from tasks.sound_events import SoundEventTask, grid_of
from tasks.task import Augment

GRID = FrameGrid(sample_rate=1000, length=20, shift=10)  # frames of 20 ms every 10 ms


# -- frames --------------------------------------------------------------------------------------------------------


def test_where_frames_lie() -> None:
    assert GRID.count(20) == 1
    assert GRID.count(19) == 1, "a shorter recording has silence behind"
    assert GRID.count(39) == 2
    assert GRID.samples(2) == 30
    assert GRID.step == 0.01
    # Frame n covers 10n to 10n + 20 ms; its own time is the 10 ms around its centre.
    assert GRID.edges(3).tolist() == pytest.approx([0.005, 0.015, 0.025, 0.035])
    embedder = LogMel(sample_rate=16000, frame_shift_ms=16.0, num_frames=None)
    grid = grid_of(embedder)
    for samples in (300, 400, 16000, 16255, 16256):
        assert embedder(torch.zeros(1, samples)).shape[-1] == grid.count(samples)


def test_what_sounds_in_a_frame() -> None:
    events = torch.tensor(
        [
            [[0.015, 0.025, 0], [0.010, 0.030, 1], [0.0291, 0.0299, 2]],
            [[0.020, 0.031, 0], [0.012, 0.030, 1], [-1, -1, -1]],
        ],
        dtype=torch.float64,
    )
    target = frame_targets(events, GRID, 4, 3)
    assert target.shape == (2, 4, 3)
    assert target[0, :, 0].tolist() == [0, 1, 0, 0]  # exactly the second frame's time
    assert target[0, :, 1].tolist() == [1, 1, 1, 0]  # half of the first, half of the third
    assert target[0, :, 2].tolist() == [0, 0, 1, 0]  # shorter than a frame
    assert target[1, :, 0].tolist() == [0, 1, 1, 0]
    assert target[1, :, 1].tolist() == [0, 1, 1, 0], "less than half of the first"
    assert target[1, :, 2].tolist() == [0, 0, 0, 0]
    assert not frame_targets(torch.zeros(1, 0, 3, dtype=torch.float64), GRID, 4, 3).any()


def rows(*columns: list[float]) -> NDArray[np.float32]:
    return np.array(columns, dtype=np.float32).T


def decoded(scores: NDArray[np.float32], seconds: float = 1.0, **settings: Any) -> list[list[float]]:
    decoding = Decoding(**settings)
    names = ["a", "b"][: scores.shape[1]]
    found = decoding.events(decoding.smoothed(scores, GRID), decoding.thresholds(names), GRID, seconds)
    return [[round(value, 6) for value in event] for event in found.tolist()]


def test_events_from_scores() -> None:
    scores = rows([0.9, 0.6, 0.1, 0.5, 0.49, 0.7], [0.1, 0.2, 0.8, 0.8, 0.1, 0.1])
    # The first and last frame reach to the ends; 0.5 is at the threshold.
    assert decoded(scores, 0.07) == [[0.0, 0.025, 0], [0.025, 0.045, 1], [0.035, 0.045, 0], [0.055, 0.07, 0]]
    assert decoded(scores, 0.07, threshold=0.65) == [[0, 0.015, 0], [0.025, 0.045, 1], [0.055, 0.07, 0]]
    assert decoded(scores, 0.07, threshold={"b": 0.85}) == [
        [0.0, 0.025, 0],
        [0.035, 0.045, 0],
        [0.055, 0.07, 0],
    ]
    assert decoded(rows([0.1] * 5)) == []
    assert decoded(rows([0.9]), 0.015) == [[0.0, 0.015, 0.0]]


def test_gaps_are_filled_and_then_short_events_left_out() -> None:
    on, off = 0.9, 0.1
    scores = rows([on, on, off, on, on, off, off, off, on, off, off])
    assert decoded(scores, 0.12) == [[0, 0.025, 0], [0.035, 0.055, 0], [0.085, 0.095, 0]]
    assert decoded(scores, 0.12, max_gap=0.02) == [[0, 0.055, 0], [0.085, 0.095, 0]]
    assert decoded(scores, 0.12, max_gap=0.01) == [[0, 0.025, 0], [0.035, 0.055, 0], [0.085, 0.095, 0]], (
        "a gap as long as max_gap stays"
    )
    assert decoded(scores, 0.12, max_gap=0.02, min_length=0.02) == [[0, 0.055, 0]]
    assert decoded(scores, 0.12, min_length=0.022) == [[0, 0.025, 0]]


def test_the_median_filter_moves_no_threshold() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((60, 2)).astype(np.float32)
    smoothed = Decoding(median=0.05).smoothed(scores, GRID)
    for n in range(60):
        place = np.clip(np.arange(n - 2, n + 3), 0, 59)
        assert np.allclose(smoothed[n], np.median(scores[place], axis=0))
    for threshold in (0.3, 0.5, 0.7):
        on = (scores >= threshold).astype(np.float32)
        assert np.array_equal(smoothed >= threshold, Decoding(median=0.05).smoothed(on, GRID) >= 0.5)
    assert Decoding(median=0.01).smoothed(scores, GRID) is scores


def test_the_score_of_an_event_is_the_mean_of_its_frames() -> None:
    scores = rows([0.2, 0.6, 0.8, 0.1])
    assert scores_of(np.array([[0.015, 0.035, 0.0]]), scores, GRID) == pytest.approx([0.7])
    assert scores_of(np.array([[0.026, 0.027, 0.0]]), scores, GRID) == pytest.approx([0.8])


# -- the head ------------------------------------------------------------------------------------------------------


def test_the_head_answers_at_the_frame_rate() -> None:
    torch.manual_seed(0)
    features = [torch.randn(2, width, 64 // s, 64 // s) for width, s in ((8, 4), (12, 8), (16, 16), (20, 32))]
    for reads, pool in (("pyramid", "both"), ("last", "mean"), ("pyramid", "max")):
        head = EventHead([8, 12, 16, 20], [4, 8, 16, 32], 5, channels=6, reads=reads, pool=pool).eval()
        assert head(features, 1).shape == (2, 64, 5)
        assert head(features, 2).shape == (1, 64, 5)
        two = head(features, 1)
        assert torch.allclose(head(features, 2)[0], two.mean(0), atol=1e-6)
        # Before anything is learnt every class is said to be rare.
        assert float(two.detach().sigmoid().mean()) == pytest.approx(0.05, abs=0.02)
    last = EventHead([8, 12, 16, 20], [4, 8, 16, 32], 5, channels=6, reads="last", pool="mean").eval()
    features[0].fill_(7.0)
    assert torch.equal(last(features, 1), last([torch.zeros(1), *features[1:]], 1))


def test_the_head_pools_rows() -> None:
    features = torch.arange(24.0).view(1, 2, 3, 4)
    pooled = {pool: EventHead([2], [4], 1, pool=pool).pooled(features) for pool in ("mean", "max", "both")}
    assert pooled["mean"].tolist() == features.mean(2).tolist()
    assert pooled["max"].tolist() == features[:, :, 2].tolist()
    assert torch.equal(pooled["both"], torch.cat([pooled["mean"], pooled["max"]], dim=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reads": "first"}, "reads must be one of pyramid, last"),
        ({"pool": "sum"}, "pool must be one of mean, max, both"),
        ({"kernel_size": 4}, "an odd kernel_size"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"prior": 0.0}, "prior between 0 and 1"),
    ],
)
def test_settings_of_the_head_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventHead([8, 8], [4, 8], 3, **settings)


# -- the task ------------------------------------------------------------------------------------------------------


class Loudness(LogMel):
    """Passes the mean of each frame's samples on as a map of one row."""

    def forward(self, raw: Tensor | Mapping[str, Tensor]) -> Tensor:
        raw_BT = raw if isinstance(raw, Tensor) else raw["waveform"]
        return raw_BT.unfold(-1, self.frame_length, self.frame_shift).mean(-1)[:, None, None, None]


class Identity(nn.Module):
    def forward_features(self, x: Tensor) -> list[Tensor]:
        return [x]


class Edges(nn.Module):
    """The map as logits, and how far a frame lies from the start of its window: a network that looks beside it."""

    def forward(self, features: list[Tensor], views: int, context: object = None) -> Tensor:
        row_BN = features[-1][:, 0, 0]
        place_N = torch.arange(row_BN.shape[1], dtype=row_BN.dtype) / 10
        return torch.stack([row_BN, row_BN + place_N], dim=-1)


def task(overlap: float = 0.5, augment: Augment | None = None, **settings: Any) -> SoundEventTask:
    embedder = Loudness(
        sample_rate=1000, seconds=0.1, num_mel_bins=1, num_frames=None, frame_length_ms=20, frame_shift_ms=10
    )
    network = Network(embedder, Identity(), Edges())  # type: ignore[arg-type]
    data_info = {"class_names": ["a", "b"], "seconds": 0.1}
    settings = {"loss": BinaryCrossEntropy(), **settings}
    return SoundEventTask(overlap=overlap, augment=augment, network=network, data_info=data_info, **settings)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_recordings_are_read_in_windows_and_averaged(overlap: float) -> None:
    torch.manual_seed(0)
    waves = [torch.randn(length) for length in (333, 100, 45, 15)]
    raw = {
        "waveform": nn.utils.rnn.pad_sequence(waves, batch_first=True),
        "length": torch.tensor([len(wave) for wave in waves]),
    }
    own = task(overlap)
    found = own.eval().frame_scores(raw)
    wide, hop = 9, max(round(9 * (1 - overlap)), 1)  # frames of a window of 0.1 s
    for wave, probs in zip(waves, found, strict=True):
        total = max((len(wave) - 20) // 10 + 1, 1)
        assert probs.shape == (total, 2)
        begins = sorted(
            {min(begin, max(total - wide, 0)) for begin in range(0, max(total - wide, 0) + hop, hop)}
        )
        for n in range(total):
            value = nn.functional.pad(wave, (0, 20))[10 * n : 10 * n + 20].mean()
            over = [torch.sigmoid(value + (n - begin) / 10) for begin in begins if begin <= n < begin + wide]
            assert over, "every frame is read"
            assert probs[n, 0] == pytest.approx(float(value.sigmoid()), abs=1e-5)
            assert probs[n, 1] == pytest.approx(float(torch.stack(over).mean()), abs=1e-5)


def batch(targets: list[list[list[float]]], lengths: list[int], loud: float = 4.0) -> Batch:
    """Recordings that are loud where class 0 sounds."""
    waves = [torch.full((length,), -loud) for length in lengths]
    for wave, events in zip(waves, targets, strict=True):
        for onset, offset, label in events:
            if label == 0:
                wave[round(1000 * onset) : round(1000 * offset)] = loud
    events = [torch.tensor(own, dtype=torch.float64).view(-1, 3) for own in targets]
    return Batch(
        {"waveform": nn.utils.rnn.pad_sequence(waves, batch_first=True), "length": torch.tensor(lengths)},
        nn.utils.rnn.pad_sequence(events, batch_first=True, padding_value=-1.0),
        torch.arange(len(lengths)),
    )


def test_what_a_test_measures() -> None:
    own = task(
        collars={"onset": 0.02, "offset": 0.02, "offset_part": 0.0}, decoding={"threshold": {"b": 0.999}}
    ).eval()
    given = batch([[[0.1, 0.3, 0], [0.5, 0.6, 1]], [], [[0.0, 0.2, 0]]], [800, 300, 200])
    own.begin_test(3)
    with torch.no_grad():
        out = own.measured_step(given, "test")
    values = own.epoch_values("test")
    assert out["output"].shape == (3, 79, 2)
    assert out["output"][1, 29:].isnan().all()
    # Of class a both events are found; of class b nothing is said (its threshold is out of reach).
    assert values["test/event_f1"] == pytest.approx(0.5)
    assert values["test/event_f1_micro"] == pytest.approx(2 * 2 / (3 + 2))
    assert values["test/segment_f1_micro"] == pytest.approx(2 * 2 / (3 + 2))
    report = own.test_report()
    assert report["counts"] == {
        "a": {"right": 2, "there": 2, "found": 2},
        "b": {"right": 0, "there": 1, "found": 0},
    }
    assert report["per_class"] == {"a": 1.0, "b": 0.0}
    rows = own.test_rows(given, out["output"])
    assert [[(row["label"], row["is"]) for row in each] for each in rows] == [
        [("a", "right"), ("b", "missed")],
        [],
        [("a", "right")],
    ]
    assert rows[0][0]["onset"] == pytest.approx(0.1, abs=0.011)
    assert "score" not in rows[0][1]
    figures = own.draw_report(report)
    assert set(figures) == {"f1", "psd_curve", "events"}
    assert len(own.heard) == 3


def test_the_loss_is_of_the_frames_there_are() -> None:
    own = task()
    given = batch([[[0.02, 0.06, 0]], []], [100, 45])
    loss = own.step(given, "train")["loss"]
    logits = own.network(given.raw)
    target = frame_targets(given.target, own.grid, 9, 2)
    parts = [(logits[0], target[0]), (logits[1, :3], target[1, :3])]
    wanted = nn.functional.binary_cross_entropy_with_logits(
        torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    )
    assert loss == pytest.approx(float(wanted), rel=1e-5)
    given.raw["waveform"][1, 50:] = 100.0  # what is behind the end does not count
    assert own.step(given, "train")["loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_the_loss_of_a_split_does_not_depend_on_the_batches() -> None:
    own = task().eval()
    targets, lengths = [[[0.1, 0.3, 0], [0.5, 0.6, 1]], [], [[0.0, 0.2, 0]]], [800, 300, 200]
    found = []
    for size in (1, 2, 3):
        for first in range(0, 3, size):
            part = slice(first, first + size)
            with torch.no_grad():
                own.measured_step(batch(targets[part], lengths[part]), "val")
        found.append(float(own.epoch_values("val")["val/loss"]))
    assert found == pytest.approx([found[-1]] * 3, rel=1e-5)


def test_predictions_are_events() -> None:
    own = task().eval()
    given = batch([[[0.1, 0.3, 0]], []], [400, 200], loud=30.0)
    with torch.no_grad():
        first, second = own.predict(given.raw)
    assert (first.columns["events"], second.columns["events"]) == (2, 0)
    assert first.columns["labels"] == "a;b"
    events = first.shared["events.csv"].content
    assert events["label"] == ["a", "b"]
    assert events["onset"][0] == pytest.approx(0.1, abs=0.011)
    assert second.shown == "no event"
    assert first.figures["figures/{name}.png"]() is not None
    # A model whose weights are damaged does not say that nothing sounds.
    given.raw["waveform"][1] = float("nan")
    with torch.no_grad():
        assert np.isnan(own.predict(given.raw)[1].columns["highest_score"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": CrossEntropy()}, "need a binary loss"),
        ({"loss": BinaryCrossEntropy("balanced")}, "a list of numbers or class name: number"),
        ({"loss": BinaryCrossEntropy([1.0])}, "1 class weights were given for 2 classes"),
        ({"overlap": 1.0}, "overlap in"),
        ({"segment": 0.0}, "segment must be above 0"),
        ({"decoding": {"threshold": 1.0}}, "threshold lies between 0 and 1"),
        ({"decoding": {"threshold": {"c": 0.5}}}, "names 'c', which is none of the 2 classes"),
        ({"decoding": {"median": -1.0}}, "seconds of at least 0"),
        ({"augment": Augment(raw=WaveformAugment(roll=0.1))}, "events would not follow"),
        ({"augment": Augment(raw=WaveformAugment(speed=0.1))}, "events would not follow"),
        ({"augment": Augment(maps=SpecAugment(roll=3))}, "events would not follow"),
        ({"augment": Augment(mixup=WaveformMixup())}, "events would not follow"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**settings)


def test_maps_need_frames_in_time() -> None:
    with pytest.raises(ValueError, match="need maps with frames in time"):
        grid_of(Pixels())
    with pytest.raises(ValueError, match="num_frames=null"):
        grid_of(LogMel(num_frames=128))


def test_statistics_are_of_the_sound_alone() -> None:
    """Silence that fills up a batch does not count."""
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(1, 4000)
    alone, filled = (LogMel(mean=None, std=None, num_frames=None) for _ in range(2))
    alone.fit_statistics([wave])
    filled.fit_statistics([{"waveform": nn.functional.pad(wave, (0, 4000)), "length": torch.tensor([4000])}])
    assert filled.normalize.mean == pytest.approx(float(alone.normalize.mean))
    assert filled.normalize.std == pytest.approx(float(alone.normalize.std))
