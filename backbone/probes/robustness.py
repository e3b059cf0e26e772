"""Robustness: a score as a function of corruption severity, and summary statistics of that curve.

After ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261): several kinds of corruption, each at several
severities. Severities here are in the corruption's own unit and start at 0, the clean input, so that curves can
be compared at any severity.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """A score at each severity.

    Args:
        severities: increasing, the first 0 (clean).
        scores: one per severity.
        higher_is_better: True for scores such as accuracy, False for errors.
    """

    severities: tuple[float, ...]
    scores: tuple[float, ...]
    higher_is_better: bool = True

    @property
    def clean(self) -> float:
        """Score of the clean input."""
        return self.scores[0]

    @property
    def relative(self) -> tuple[float, ...]:
        """Each score divided by the clean one: the retained fraction of an accuracy, or the factor of an error."""
        return tuple(score / self.clean if self.clean else float("nan") for score in self.scores)

    @property
    def mean_corrupted(self) -> float:
        """Mean score over all severities above 0."""
        return sum(self.scores[1:]) / (len(self.scores) - 1)

    def half_point(self, floor: float = 0.0) -> float | None:
        """The severity (linearly interpolated) at which the margin over ``floor`` is halved.

        For an error, the severity at which it has doubled. ``None`` if the curve never reaches that point, or if there
        is nothing to lose: a score that is not above the floor, an error of 0.

        Args:
            floor: chance level; used only if higher is better.
        """
        if self.clean <= (floor if self.higher_is_better else 0):
            return None
        limit = floor + (self.clean - floor) / 2 if self.higher_is_better else 2 * self.clean
        points = list(zip(self.severities, self.scores, strict=True))
        for (before, high), (after, low) in itertools.pairwise(points):
            reached = low <= limit if self.higher_is_better else low >= limit
            if reached:
                return before + (after - before) * (high - limit) / (high - low) if high != low else after
        return None


def robustness_curve(
    score: Callable[[float], float], severities: Sequence[float], higher_is_better: bool = True
) -> Curve:
    """Measure a score at each severity.

    Args:
        score: severity -> score of the corrupted input; 0 means clean.
        severities: increasing, above 0; the clean input is always measured first.
        higher_is_better: see :class:`Curve`.

    Raises:
        ValueError: severities that are empty, not increasing, or not above 0.

    >>> robustness_curve(lambda severity: 1 - severity / 4, [1, 2, 4]).half_point()
    2.0
    """
    wanted = [float(severity) for severity in severities]
    rising = all(before < after for before, after in zip([0.0, *wanted], wanted, strict=False))
    if not wanted or not rising:
        raise ValueError(f"severities must rise from above 0, not {wanted}")
    steps = (0.0, *wanted)
    return Curve(steps, tuple(float(score(severity)) for severity in steps), higher_is_better)
