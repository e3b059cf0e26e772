"""Event F1, segment F1 and PSDS against figures worked out by hand and against other ways to compute them."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.event_metrics import (
    THRESHOLDS,
    Collars,
    PSDCounts,
    PSDSettings,
    event_counts,
    f1_of,
    largest_matching,
    micro_f1_of,
    psd_counts,
    psd_curve,
    psds_of,
    segment_counts,
)

Events = NDArray[np.float64]


def events(*rows: tuple[float, float, int]) -> Events:
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def drawn(rng: np.random.Generator, most: int, classes: int = 3, length: float = 10.0) -> Events:
    """Events on a grid of 10 ms, those of a class apart."""
    rows: list[tuple[float, float, int]] = []
    for label in range(classes):
        edges = (
            np.sort(rng.choice(int(length * 100), 2 * int(rng.integers(0, most + 1)), replace=False)) / 100
        )
        rows += [(a, b, label) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]
    return events(*sorted(rows))


# -- event F1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "hits"),
    [
        ((1.0, 2.0), 1),
        ((1.2, 2.0), 1),  # at the collar
        ((1.21, 2.0), 0),
        ((0.8, 2.2), 1),
        ((1.0, 2.21), 0),
        ((0.79, 2.0), 0),
    ],
)
def test_an_event_counts_within_its_collars(found: tuple[float, float], hits: int) -> None:
    counts, pairs = event_counts(events((1.0, 2.0, 0)), events((*found, 0)), 1)
    assert counts[:, 0].tolist() == [hits, 1, 1]
    assert len(pairs) == hits


def test_a_long_event_may_end_a_fifth_of_its_length_off() -> None:
    truth = events((0.0, 5.0, 0))
    assert event_counts(truth, events((0.0, 6.0, 0)), 1)[0][0, 0] == 1
    assert event_counts(truth, events((0.0, 6.01, 0)), 1)[0][0, 0] == 0
    strict = Collars(onset=0.2, offset=0.2, offset_part=0.0)
    assert event_counts(truth, events((0.0, 5.3, 0)), 1, strict)[0][0, 0] == 0
    # The length that counts is the true event's, not that of what was found.
    assert event_counts(events((0.0, 1.0, 0)), events((0.0, 1.25, 0)), 1)[0][0, 0] == 0


def test_f1_by_hand() -> None:
    truth = events((0.0, 1.0, 0), (2.0, 3.0, 0), (5.0, 6.0, 1), (8.0, 9.0, 2))
    found = events((0.1, 1.1, 0), (2.0, 3.0, 1), (5.0, 6.1, 1), (5.05, 6.0, 1))
    counts, pairs = event_counts(truth, found, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [2, 1, 1, 0], [1, 3, 0, 0]]
    assert pairs == [(0, 0), (2, 2)]
    # 2·1 / (2 + 1), 2·1 / (1 + 3), 0 / 1, nothing there and nothing said
    assert f1_of(counts)[:3].tolist() == pytest.approx([2 / 3, 1 / 2, 0.0])
    assert np.isnan(f1_of(counts)[3])
    assert micro_f1_of(counts) == pytest.approx(2 * 2 / (4 + 4))
    assert np.isnan(micro_f1_of(np.zeros((3, 2))))


def test_the_matching_is_the_largest_one() -> None:
    # The first found event fits both, the second only the first: greedy in order would lose one.
    truth, found = events((1.0, 2.0, 0), (1.15, 2.15, 0)), events((1.1, 2.1, 0), (0.85, 1.85, 0))
    assert event_counts(truth, found, 1)[0][0, 0] == 2
    rng = np.random.default_rng(0)
    for _ in range(200):
        possible = rng.random((int(rng.integers(0, 6)), int(rng.integers(0, 6)))) < 0.4
        rows, columns = possible.shape
        small, large = (possible, columns) if rows <= columns else (possible.T, rows)
        best = max(
            sum(bool(small[i, j]) for i, j in enumerate(order))
            for order in permutations(range(large), len(small))
        )
        pairs = largest_matching(possible)
        assert len(pairs) == best
        assert all(possible[row, column] for row, column in pairs)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)


# -- segment F1 ----------------------------------------------------------------------------------------------------


def test_segments_by_hand() -> None:
    truth = events((0.2, 1.5, 0), (3.0, 4.0, 0))  # seconds 0, 1, 3
    found = events((0.9, 1.1, 0), (2.0, 3.5, 0))  # seconds 0, 1, 2, 3
    assert segment_counts(truth, found, 1)[:, 0].tolist() == [3, 3, 4]
    assert segment_counts(truth, found, 1, seconds=0.5)[:, 0].tolist() == [3, 5, 5]


def test_segments_against_a_search_second_by_second() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        truth, found = drawn(rng, 4), drawn(rng, 4)
        said = segment_counts(truth, found, 3)
        for label in range(3):
            on = [
                {
                    k
                    for k in range(11)
                    for a, b, c in part.tolist()
                    if c == label and min(b, k + 1) - max(a, k) > 1e-6
                }
                for part in (truth, found)
            ]
            assert said[:, label].tolist() == [len(on[0] & on[1]), len(on[0]), len(on[1])]


# -- PSDS ----------------------------------------------------------------------------------------------------------


def test_what_counts_as_found_by_hand() -> None:
    truth = events((0.0, 1.0, 0), (2.0, 3.0, 0), (5.0, 6.0, 1))
    found = events(
        (0.0, 0.8, 0),  # inside, covers 80 % of the first: found
        (2.0, 2.35, 0),  # inside, two of them cover 70 % of the second together: found
        (2.5, 2.85, 0),
        (5.0, 6.0, 0),  # of another class: false, and a cross trigger
        (8.0, 9.0, 1),  # nothing there: false
        (4.0, 5.5, 1),  # a third of it in an event: false, and none of class 0
    )
    settings = PSDSettings(alpha_ct=0.5)
    counts = psd_counts(truth, [found], 10.0, 2, settings)
    assert counts.found.tolist() == [[2, 0]]
    assert counts.false.tolist() == [[1, 2]]
    assert counts.cross.tolist() == [[[0, 1], [0, 0]]]
    assert counts.events.tolist() == [2, 1]
    assert counts.sounding.tolist() == [2, 1]
    assert counts.seconds == 10
    # With little tolerance the third of the last one is enough, and it covers half of its event.
    loose = psd_counts(truth, [found], 10.0, 2, PSDSettings(dtc=0.1, gtc=0.1))
    assert loose.found.tolist() == [[2, 1]]
    assert loose.false.tolist() == [[1, 1]]


def test_detections_that_do_not_count_find_nothing() -> None:
    """A detection over the whole recording covers every event, but lies mostly beside them."""
    counts = psd_counts(events((1.0, 2.0, 0)), [events((0.0, 10.0, 0))], 10.0, 1)
    assert (counts.found.tolist(), counts.false.tolist()) == ([[0]], [[1]])


def test_psds_by_hand() -> None:
    """Two classes, 4 events each, an hour of recordings, three thresholds."""
    counts = PSDCounts(
        found=np.array([[4.0, 2.0], [3.0, 2.0], [1.0, 1.0]]),
        false=np.array([[120.0, 60.0], [40.0, 20.0], [0.0, 10.0]]),
        cross=np.zeros((3, 0, 0)),
        events=np.array([4.0, 4.0]),
        sounding=np.array([10.0, 10.0]),
        seconds=3600.0,
    )
    points, rates, effective = psd_curve(counts, PSDSettings(thresholds=(0.1, 0.5, 0.9)))
    assert points.tolist() == [0, 10, 20, 40, 60, 100]
    assert rates[:, 0].tolist() == [0.25, 0.25, 0.25, 0.75, 0.75, 0.75]  # 1.0 only from 120 an hour on
    assert rates[:, 1].tolist() == [0.0, 0.25, 0.5, 0.5, 0.5, 0.5]
    # mean − standard deviation = the smaller one of two
    assert effective.tolist() == pytest.approx([0.0, 0.25, 0.25, 0.5, 0.5, 0.5])
    assert psds_of(counts, PSDSettings(thresholds=(0.1, 0.5, 0.9))) == pytest.approx(
        (10 * 0 + 10 * 0.25 + 20 * 0.25 + 20 * 0.5 + 40 * 0.5) / 100
    )
    plain = PSDSettings(alpha_st=0.0, thresholds=(0.1, 0.5, 0.9))
    assert psds_of(counts, plain) == pytest.approx(
        (10 * 0.125 + 10 * 0.25 + 20 * 0.375 + 20 * 0.625 + 40 * 0.625) / 100
    )
    # Up to 15 an hour: the last point is where the measuring ends.
    short = PSDSettings(alpha_st=0.0, e_max=15.0, thresholds=(0.1, 0.5, 0.9))
    assert psds_of(counts, short) == pytest.approx((10 * 0.125 + 5 * 0.25) / 15)


def test_cross_triggers_cost_false_positives() -> None:
    counts = PSDCounts(
        found=np.array([[4.0, 4.0, 4.0]]),
        false=np.array([[10.0, 0.0, 0.0]]),
        cross=np.zeros((1, 3, 3)),
        events=np.array([4.0, 4.0, 4.0]),
        sounding=np.array([360.0, 720.0, 360.0]),
        seconds=3600.0,
    )
    counts.cross[0, 0, 1] = 4.0  # 4 in 0.2 h of class 1: 20 an hour, mean with class 2: 10, half of it: 5
    settings = PSDSettings(alpha_ct=0.5, alpha_st=0.0, thresholds=(0.5,))
    points, rates, _ = psd_curve(counts, settings)
    assert points.tolist() == pytest.approx([0, 15, 100])
    assert rates[:, 0].tolist() == [0, 1, 1]


def test_a_class_without_events_is_left_out() -> None:
    counts = PSDCounts(
        found=np.array([[2.0, 0.0]]),
        false=np.array([[0.0, 5.0]]),
        cross=np.zeros((1, 0, 0)),
        events=np.array([2.0, 0.0]),
        sounding=np.array([2.0, 0.0]),
        seconds=3600.0,
    )
    assert psds_of(counts, PSDSettings(thresholds=(0.5,))) == pytest.approx(1.0)
    counts.events[:] = 0
    assert np.isnan(psds_of(counts, PSDSettings(thresholds=(0.5,))))


def on_grid(part: Events, label: int, size: int = 1000) -> NDArray[np.bool_]:
    """Whether a class sounds in each 10 ms."""
    on = np.zeros(size, dtype=bool)
    for a, b, c in part.tolist():
        if c == label:
            on[round(a * 100) : round(b * 100)] = True
    return on


def test_psds_against_counting_on_a_grid() -> None:
    """The same score from cells of 10 ms and, of the curve, from 100,000 places along its axis."""
    rng = np.random.default_rng(2)
    settings = PSDSettings(
        dtc=0.3, gtc=0.3, cttc=0.3, alpha_ct=0.5, alpha_st=0.5, e_max=400.0, thresholds=(0.2, 0.5, 0.8)
    )
    clips = [(drawn(rng, 3), [drawn(rng, 5) for _ in range(3)]) for _ in range(12)]
    # Some of what is found is near the truth.
    for truth, found in clips:
        for place in range(2):
            near = truth[truth[:, 2] == place].copy()
            near[:, 0] += 0.05
            found[place] = np.concatenate(
                [found[place][found[place][:, 2] != place], near[near[:, 1] > near[:, 0]]]
            )
    parts = [psd_counts(truth, found, 10.0, 3, settings) for truth, found in clips]
    total = PSDCounts(
        *(
            sum(getattr(part, name) for part in parts)
            for name in ("found", "false", "cross", "events", "sounding")
        ),
        seconds=sum(part.seconds for part in parts),
    )
    rate, false = np.zeros((3, 3)), np.zeros((3, 3))
    for m in range(3):
        for c in range(3):
            hits, wrong, true = 0, 0, 0
            cross = np.zeros(3)
            for truth, found in clips:
                cells = [on_grid(truth, k) for k in range(3)]
                good = np.zeros(1000, dtype=bool)
                for a, b, k in found[m].tolist():
                    if k != c:
                        continue
                    inside = slice(round(a * 100), round(b * 100))
                    size = inside.stop - inside.start
                    if cells[c][inside].sum() >= 0.3 * size - 1e-9:
                        good[inside] = True
                    else:
                        wrong += 1
                        cross += [cells[k][inside].sum() >= 0.3 * size - 1e-9 for k in range(3)]
                for a, b, k in truth.tolist():
                    if k == c:
                        inside = slice(round(a * 100), round(b * 100))
                        true += 1
                        hits += good[inside].sum() >= 0.3 * (inside.stop - inside.start) - 1e-9
            hours = (
                np.array([sum(on_grid(truth, k).sum() for truth, _ in clips) for k in range(3)]) / 100 / 3600
            )
            others = [k for k in range(3) if k != c]
            rate[m, c] = hits / true
            false[m, c] = wrong / (120 / 3600) + 0.5 * np.mean(cross[others] / hours[others])
    axis = (np.arange(100_000) + 0.5) / 100_000 * 400
    curves = np.array([[max([r for r, f in zip(rate[:, c], false[:, c], strict=True) if f <= e], default=0.0)
                        for e in np.unique(false[false <= 400])] for c in range(3)])  # fmt: skip
    steps = np.unique(false[false <= 400])
    place = np.searchsorted(steps, axis, side="right") - 1
    along = np.where(place >= 0, curves[:, place.clip(0)], 0.0)
    area = np.clip(along.mean(0) - 0.5 * along.std(0), 0, None).mean()
    assert 0.05 < area < 0.95, "the case says something"
    assert psds_of(total, settings) == pytest.approx(area, abs=2e-4)


def test_there_are_fifty_thresholds() -> None:
    assert len(THRESHOLDS) == 50
    assert THRESHOLDS[0] == pytest.approx(0.01)
    assert THRESHOLDS[-1] == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtc": 0.0}, "dtc, gtc and cttc"),
        ({"gtc": 1.1}, "dtc, gtc and cttc"),
        ({"alpha_st": -1.0}, "alpha_ct and alpha_st"),
        ({"e_max": 0.0}, "e_max is above 0"),
        ({"thresholds": (0.0,)}, "thresholds lie between"),
    ],
)
def test_settings_of_psds_that_make_no_sense(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PSDSettings(**settings)


def test_collars_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="of at least 0"):
        Collars(onset=-0.1)
