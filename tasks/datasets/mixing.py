"""Mixup in the data set: a training sample is mixed with another of the training split.

On the device, samples can be mixed only within a batch (`modalities.audio_augment.WaveformMixup`, timm's mixup). Here
the partner is any item, at the cost of reading two files per sample.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Mixup:
    """Mixes samples and targets with a partner drawn uniformly from the data set (between-class learning, 1711.10282).

    The rule of AST and of UniRepLKNet's audio recipe: ``prob=0.6, alpha=10`` (Speech Commands).

    Args:
        prob: probability that a sample is mixed.
        alpha: the mixing coefficient is drawn from Beta(alpha, alpha).

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, prob: float, alpha: float = 10.0) -> None:
        if not 0 <= prob <= 1 or alpha <= 0:
            raise ValueError("Mixup needs 0 <= prob <= 1 and alpha > 0")
        self.prob = prob
        self.alpha = alpha

    def draw(self, size: int, rng: np.random.Generator) -> tuple[int, float] | None:
        """The partner's index in a data set of ``size`` items and the mixing coefficient; ``None``: not mixed."""
        if rng.random() >= self.prob:
            return None
        return int(rng.integers(size)), float(rng.beta(self.alpha, self.alpha))

    def __call__(
        self,
        raw: Any,
        target_K: NDArray[np.float32],
        size: int,
        other: Callable[[int], Any],
        rng: np.random.Generator,
    ) -> tuple[Any, NDArray[np.float32]]:
        """Returns the raw sample and its target, mixed with probability `prob`.

        Args:
            raw: a floating-point tensor.
            target_K: one-hot or multi-hot, (K,).
            size: number of items of the data set.
            other: index -> the partner's raw sample and target, of the same shapes.
            rng: random generator.

        Raises:
            TypeError: raw samples that cannot be mixed.
        """
        drawn = self.draw(size, rng)
        if drawn is None:
            return raw, target_K
        index, share = drawn
        partner, partner_K = other(index)
        for sample in (raw, partner):
            if not isinstance(sample, Tensor) or not sample.is_floating_point() or sample.shape != raw.shape:
                raise TypeError("raw samples can be mixed where they are tensors of floats of one shape")
        mixed = share * raw + (1 - share) * partner
        return mixed, (share * target_K + (1 - share) * partner_K).astype(np.float32)


def multi_hot(target: Any, classes: int) -> NDArray[np.float32]:
    """One-hot encoding (K,) of a class index; a (K,) target is returned unchanged."""
    if np.ndim(target):
        return np.asarray(target, dtype=np.float32)
    hot: NDArray[np.float32] = np.zeros(classes, dtype=np.float32)
    hot[int(target)] = 1
    return hot
