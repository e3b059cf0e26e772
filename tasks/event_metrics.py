"""Metrics of sound event detection in plain numpy: event F1, segment F1 and PSDS.

Events of one recording are an array ``(E, 3)``: onset and offset in seconds, class index. Every metric is computed from
counts that are summed over recordings.

- Event F1 (Mesaros et al. 2016, "Metrics for polyphonic sound event detection", as sed_eval computes it): a true event
  matches a predicted one of its class if onset and offset lie within a collar; matching is one-to-one (maximum
  bipartite matching).
- Segment F1 (the same paper): presence or absence of a class in every one-second segment.
- PSDS (Bilen et al. 2020, arXiv 1910.08440, as psds_eval computes it): the area under the curve of the true positive
  rate over the false positive rate, both based on the overlap of events, at 50 thresholds.

Shapes: E events, K classes, M thresholds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Events = NDArray[np.float64]  # (E, 3)
Counts = NDArray[np.float64]

ROUNDING = 1e-9  # seconds; tolerance for rounding errors
HOUR = 3600.0
THRESHOLDS = tuple((np.arange(50) * 2 + 1) / 100)  # 0.01, 0.03, …, 0.99


def no_events() -> Events:
    """An empty array of events."""
    return np.zeros((0, 3))


@dataclass(frozen=True)
class Collars:
    """Tolerances of onset and offset in event F1.

    Args:
        onset: maximum difference of the onsets in seconds.
        offset: maximum difference of the offsets in seconds.
        offset_part: the same as a fraction of the true event's length; the larger of the two applies.

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
    """Counts of one recording: hits, true events and predicted events per class, ``(3, K)``; and the matched pairs of
    indices (true, predicted)."""
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
    """Whether each true event (rows) and each predicted one (columns) lie within the collars."""
    length = (truth[:, 1] - truth[:, 0])[:, None]
    onset = np.abs(truth[:, None, 0] - found[None, :, 0]) <= collars.onset + ROUNDING
    allowed = np.maximum(collars.offset, collars.offset_part * length)
    offset = np.abs(truth[:, None, 1] - found[None, :, 1]) <= allowed + ROUNDING
    both: NDArray[np.bool_] = onset & offset
    return both


def largest_matching(possible: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Maximum bipartite matching of rows and columns (augmenting paths).

    >>> largest_matching(np.array([[True, True], [True, False]]))
    [(0, 1), (1, 0)]
    """
    row_of: dict[int, int] = {}  # column -> row

    for start in range(possible.shape[0]):
        # Breadth first, so that long recordings do not exceed Python's recursion limit.
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
        while end is not None:  # along the augmenting path, every row takes the next column
            row = came_from[end]
            row_of[end], end = row, column_of.get(row)
    return sorted((row, column) for column, row in row_of.items())


def segment_counts(truth: Events, found: Events, classes: int, seconds: float = 1.0) -> Counts:
    """Counts of one recording: true positive, true and predicted segments per class, ``(3, K)``.

    An event is active in every segment that it touches.
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
    """F1 per class, ``(K,)``, from hits, true and predicted counts; NaN for classes neither present nor predicted."""
    hits, true, found = counts_3K
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Counts = 2 * hits / (true + found)
    return value


def micro_f1_of(counts_3K: Counts) -> float:
    """Micro-averaged F1; NaN without any true or predicted event."""
    return float(f1_of(counts_3K.sum(axis=1, keepdims=True))[0])


# -- PSDS ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PSDSettings:
    """Settings of PSDS; the defaults are those of scenario 1 of the DCASE challenge (precise localisation in time).

    Args:
        dtc: detection tolerance criterion: a detection is valid if at least this fraction of it lies in true events of
            its class; otherwise it is a false positive.
        gtc: ground truth intersection criterion: an event is found if valid detections cover at least this fraction of
            it.
        cttc: cross-trigger tolerance criterion: a false positive of which at least this fraction lies in events of
            another class is a cross trigger.
        alpha_ct: weight of the mean cross-trigger rate, which is added to the false positive rate.
        alpha_st: weight of the standard deviation over classes, which is subtracted from the mean true positive rate.
        e_max: maximum number of false positives per hour of the curve.
        thresholds: of scores, in ascending order; the curve is known only at these, so the area is a lower bound.

    Raises:
        ValueError: invalid settings.
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
    """The counts of PSDS, summed over recordings.

    Args:
        found: true events found at each threshold, ``(M, K)``.
        false: false positives, ``(M, K)``.
        cross: cross triggers among them, detected class by true class, ``(M, K, K)``; ``(M, 0, 0)`` if `alpha_ct` is 0.
        events: number of true events, ``(K,)``.
        sounding: their total length in seconds, ``(K,)``.
        seconds: total length of the recordings.
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
    """Counts of one recording; `found` are the detections at each threshold. Events of a class must not overlap."""
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
    """Pairwise overlap of events in seconds."""
    begin = np.maximum(one[:, None, 0], other[None, :, 0])
    end = np.minimum(one[:, None, 1], other[None, :, 1])
    shared: NDArray[np.float64] = (end - begin).clip(min=0)
    return shared


def psd_curve(counts: PSDCounts, settings: PSDSettings | None = None) -> tuple[Counts, Counts, Counts]:
    """The PSD-ROC curve, a step function of P points: effective false positives per hour, ``(P,)``; true positive rate
    per class, ``(P, K)``, NaN for classes without events; and the effective true positive rate, ``(P,)``."""
    settings = settings or PSDSettings()
    with np.errstate(invalid="ignore", divide="ignore"):
        rate_MK = counts.found / counts.events
        false_MK = counts.false * HOUR / counts.seconds
    if settings.alpha_ct:
        cross_MKK = counts.cross * HOUR / np.where(counts.sounding > 0, counts.sounding, 1.0)
        crossed = cross_MKK.sum(axis=2) / max(cross_MKK.shape[2] - 1, 1)  # none with a class itself
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
    return points, rates, (mean - settings.alpha_st * deviation).clip(min=0)  # as in sed_scores_eval


def _best_so_far(false_M: Counts, rate_M: Counts, points: Counts) -> Counts:
    """The largest true positive rate with at most `points` false positives per hour; 0 if there is none."""
    if np.isnan(rate_M).any():
        return np.full(len(points), np.nan)
    allowed = false_M[None, :] <= points[:, None]
    best: Counts = np.where(allowed, rate_M[None, :], 0.0).max(axis=1)
    return best


def psds_of(counts: PSDCounts, settings: PSDSettings | None = None) -> float:
    """PSDS: the area under the effective curve up to `e_max`, normalised to [0, 1]; NaN without any event."""
    settings = settings or PSDSettings()
    points, _, effective = psd_curve(counts, settings)
    return float((np.diff(points) * effective[:-1]).sum() / settings.e_max)
