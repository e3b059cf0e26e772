"""How well sound events are found: event F1, segment F1 and PSDS, in plain numpy.

Events of one recording are an array ``(E, 3)``: onset and offset in seconds, class index. Every measure is made of
counts that add up over recordings.

- Event F1 (Mesaros et al. 2016, "Metrics for polyphonic sound event detection", as sed_eval computes it): an event is
  found by one of its class whose onset and offset lie within a collar; each finds at most one (the largest such
  matching).
- Segment F1 (the same paper): a class is there or not in every second.
- PSDS (Bilen et al. 2020, arXiv 1910.08440, as psds_eval computes it): the area under the curve of the true positive
  rate over the rate of false positives, both by how far events cover each other, at 50 thresholds.

Shapes: E events, K classes, M thresholds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Events = NDArray[np.float64]  # (E, 3)
Counts = NDArray[np.float64]

ROUNDING = 1e-9  # seconds; times that were calculated are not exact
HOUR = 3600.0
THRESHOLDS = tuple((np.arange(50) * 2 + 1) / 100)  # 0.01, 0.03, …, 0.99


def no_events() -> Events:
    """Of a recording in which nothing sounds."""
    return np.zeros((0, 3))


@dataclass(frozen=True)
class Collars:
    """How near an event must be.

    Args:
        onset: seconds between the onsets, at most.
        offset: seconds between the offsets, at most, or
        offset_part: so much of the true event's length, whichever is more.

    Raises:
        ValueError: negative values.
    """

    onset: float = 0.2
    offset: float = 0.2
    offset_part: float = 0.2

    def __post_init__(self) -> None:
        if min(self.onset, self.offset, self.offset_part) < 0:
            raise ValueError("task.model.collars takes seconds and a part of at least 0")


def event_counts(
    truth: Events, found: Events, classes: int, collars: Collars | None = None
) -> tuple[Counts, list[tuple[int, int]]]:
    """Of one recording: hits, true events and found events of each class, ``(3, K)``; and the pairs that are hits."""
    counts = np.zeros((3, classes))
    pairs: list[tuple[int, int]] = []
    for label in range(classes):
        wanted, given = np.flatnonzero(truth[:, 2] == label), np.flatnonzero(found[:, 2] == label)
        near = _near(truth[wanted], found[given], collars or Collars())
        matched = largest_matching(near)
        pairs += [(int(wanted[row]), int(given[column])) for row, column in matched]
        counts[:, label] = len(matched), len(wanted), len(given)
    return counts, pairs


def _near(truth: Events, found: Events, collars: Collars) -> NDArray[np.bool_]:
    """Which true event (rows) each found one (columns) may be."""
    length = (truth[:, 1] - truth[:, 0])[:, None]
    onset = np.abs(truth[:, None, 0] - found[None, :, 0]) <= collars.onset + ROUNDING
    allowed = np.maximum(collars.offset, collars.offset_part * length)
    offset = np.abs(truth[:, None, 1] - found[None, :, 1]) <= allowed + ROUNDING
    both: NDArray[np.bool_] = onset & offset
    return both


def largest_matching(possible: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """As many pairs of a row and a column as can be made, each in one pair at most (augmenting paths).

    >>> largest_matching(np.array([[True, True], [True, False]]))
    [(0, 1), (1, 0)]
    """
    row_of: dict[int, int] = {}  # column -> row

    for start in range(possible.shape[0]):
        # Breadth first, so that long recordings do not meet Python's limit of recursion.
        came_from: dict[int, int] = {}  # column -> row from which it was reached
        queue, end = [start], None
        while queue and end is None:
            row = queue.pop(0)
            for column in np.flatnonzero(possible[row]).tolist():
                if column in came_from:
                    continue
                came_from[column] = row
                if column not in row_of:
                    end = column
                    break
                queue.append(row_of[column])
        column_of = {row: column for column, row in row_of.items()}
        while end is not None:  # along the path, every row takes the column by which it was left
            row = came_from[end]
            row_of[end], end = row, column_of.get(row)
    return sorted((row, column) for column, row in row_of.items())


def segment_counts(truth: Events, found: Events, classes: int, seconds: float = 1.0) -> Counts:
    """Of one recording: segments where a class is and was found, where it is, and where it was found, ``(3, K)``.

    An event is in every segment that it touches.
    """
    counts = np.zeros((3, classes))
    for label in range(classes):
        there, said = (_segments(events[events[:, 2] == label], seconds) for events in (truth, found))
        counts[:, label] = len(there & said), len(there), len(said)
    return counts


def _segments(events: Events, seconds: float) -> set[int]:
    touched: set[int] = set()
    for onset, offset, _ in events.tolist():
        first = math.floor(onset / seconds + ROUNDING)
        touched.update(range(first, max(math.ceil(offset / seconds - ROUNDING), first + 1)))
    return touched


def f1_of(counts_3K: Counts) -> Counts:
    """F1 of each class, ``(K,)``, from hits, true and found; NaN where a class is neither there nor found."""
    hits, true, found = counts_3K
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Counts = 2 * hits / (true + found)
    return value


def micro_f1_of(counts_3K: Counts) -> float:
    """F1 of all classes together; NaN where there is nothing."""
    return float(f1_of(counts_3K.sum(axis=1, keepdims=True))[0])


# -- PSDS ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PSDSettings:
    """What counts as found, and what false alarms cost; the values of the paper's first scenario in the DCASE
    challenge (events are placed exactly in time).

    Args:
        dtc: detection tolerance: a detection counts where at least this part of it lies in true events of its class;
            else it is a false positive.
        gtc: ground truth intersection: an event is found where detections that count cover at least this part of it.
        cttc: cross-trigger tolerance: a false positive of which at least this part lies in events of another class is a
            cross trigger.
        alpha_ct: weight of the mean rate of cross triggers, added to the rate of false positives.
        alpha_st: weight of the standard deviation over classes, taken from the mean true positive rate.
        e_max: false positives an hour up to which the curve is measured.
        thresholds: of scores, in rising order; a curve is known at these only, so the area is one from below.

    Raises:
        ValueError: settings that make no sense.
    """

    dtc: float = 0.7
    gtc: float = 0.7
    cttc: float = 0.3
    alpha_ct: float = 0.0
    alpha_st: float = 1.0
    e_max: float = 100.0
    thresholds: Sequence[float] = field(default=THRESHOLDS)

    def __post_init__(self) -> None:
        if not all(0 < part <= 1 for part in (self.dtc, self.gtc, self.cttc)):
            raise ValueError("task.model.psds: dtc, gtc and cttc lie above 0 and are at most 1")
        if self.alpha_ct < 0 or self.alpha_st < 0 or self.e_max <= 0:
            raise ValueError("task.model.psds: alpha_ct and alpha_st are at least 0, e_max is above 0")
        if not self.thresholds or not all(0 < value < 1 for value in self.thresholds):
            raise ValueError("task.model.psds: thresholds lie between 0 and 1")


@dataclass
class PSDCounts:
    """What adds up over recordings.

    Args:
        found: true events found at each threshold, ``(M, K)``.
        false: false positives, ``(M, K)``.
        cross: of these the cross triggers, detected class by true class, ``(M, K, K)``; not counted, ``(M, 0, 0)``,
            where they cost nothing.
        events: true events, ``(K,)``.
        sounding: seconds of them, ``(K,)``.
        seconds: of the recordings.
    """

    found: Counts
    false: Counts
    cross: Counts
    events: Counts
    sounding: Counts
    seconds: float


def psd_counts(
    truth: Events, found: Sequence[Events], seconds: float, classes: int, settings: PSDSettings | None = None
) -> PSDCounts:
    """Of one recording; `found` are the detections at each threshold. Events of a class do not overlap."""
    settings = settings or PSDSettings()
    size, crossing = len(found), classes if settings.alpha_ct else 0
    counts = PSDCounts(
        np.zeros((size, classes)),
        np.zeros((size, classes)),
        np.zeros((size, crossing, crossing)),
        np.bincount(truth[:, 2].astype(int), minlength=classes).astype(np.float64),
        np.bincount(truth[:, 2].astype(int), truth[:, 1] - truth[:, 0], classes).astype(np.float64),
        seconds,
    )
    own = [truth[truth[:, 2] == label] for label in range(classes)]
    for place, detections in enumerate(found):
        for label in np.unique(detections[:, 2].astype(int)).tolist():
            said = detections[detections[:, 2] == label]
            covered = _shared(said, own[label])  # (detections, true events)
            length = said[:, 1] - said[:, 0]
            counted = covered.sum(axis=1) >= settings.dtc * length - ROUNDING
            true_length = own[label][:, 1] - own[label][:, 0]
            enough = covered[counted].sum(axis=0) >= settings.gtc * true_length - ROUNDING
            counts.found[place, label] = np.count_nonzero(enough)
            counts.false[place, label] = np.count_nonzero(~counted)
            for other in range(crossing):
                if other != label:
                    part = _shared(said[~counted], own[other]).sum(axis=1)
                    crossed = part >= settings.cttc * length[~counted] - ROUNDING
                    counts.cross[place, label, other] = np.count_nonzero(crossed)
    return counts


def _shared(one: Events, other: Events) -> NDArray[np.float64]:
    """Seconds that each of some events shares with each of others."""
    begin = np.maximum(one[:, None, 0], other[None, :, 0])
    end = np.minimum(one[:, None, 1], other[None, :, 1])
    shared: NDArray[np.float64] = (end - begin).clip(min=0)
    return shared


def psd_curve(counts: PSDCounts, settings: PSDSettings | None = None) -> tuple[Counts, Counts, Counts]:
    """The curve: effective false positives an hour, ``(P,)``; each class's true positive rate there, ``(P, K)``, NaN
    for classes without events; and the effective rate, ``(P,)``. Each value holds up to the next point."""
    settings = settings or PSDSettings()
    with np.errstate(invalid="ignore", divide="ignore"):
        rate_MK = counts.found / counts.events
        false_MK = counts.false * HOUR / counts.seconds
    if settings.alpha_ct:
        cross_MKK = counts.cross * HOUR / np.where(counts.sounding > 0, counts.sounding, 1.0)
        crossed = cross_MKK.sum(axis=2) / max(cross_MKK.shape[2] - 1, 1)  # no class crosses itself
        false_MK = false_MK + settings.alpha_ct * crossed
    points = np.unique(np.concatenate([[0.0], false_MK.reshape(-1), [settings.e_max]]))
    points = points[points <= settings.e_max]
    rates = np.stack(
        [_best_so_far(false_MK[:, label], rate_MK[:, label], points) for label in range(rate_MK.shape[1])],
        axis=1,
    )
    there = counts.events > 0
    if not there.any():
        return points, rates, np.full(len(points), np.nan)
    mean, deviation = rates[:, there].mean(axis=1), rates[:, there].std(axis=1)
    return points, rates, (mean - settings.alpha_st * deviation).clip(min=0)  # as sed_scores_eval has it


def _best_so_far(false_M: Counts, rate_M: Counts, points: Counts) -> Counts:
    """The largest true positive rate that is had with at most so many false positives; 0 where none is."""
    if np.isnan(rate_M).any():
        return np.full(len(points), np.nan)
    allowed = false_M[None, :] <= points[:, None]
    best: Counts = np.where(allowed, rate_M[None, :], 0.0).max(axis=1)
    return best


def psds_of(counts: PSDCounts, settings: PSDSettings | None = None) -> float:
    """The area under the effective curve up to `e_max`, as a part of the largest possible; NaN without any event."""
    settings = settings or PSDSettings()
    points, _, effective = psd_curve(counts, settings)
    return float((np.diff(points) * effective[:-1]).sum() / settings.e_max)
