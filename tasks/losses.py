"""Losses of classification, with class weights.

Shapes: B batch, K classes. Targets are always `(B, K)`: one-hot, multi-hot or mixed.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

BALANCED = "balanced"
Weights = Sequence[float] | Mapping[str, float] | str | None
OVER = ("all", "others")


class ClassificationLoss(nn.Module):
    """Base class with class weights, which are built once the class names are known (`set_classes`).

    Args:
        weight: None; a list with one number per class, in the order of the class names; class name -> number (others
            1); or `balanced`: computed from the training split (`fit_balance`).
    """

    class_weight: Tensor

    def __init__(self, weight: Weights = None) -> None:
        super().__init__()
        if isinstance(weight, str) and weight != BALANCED:
            raise ValueError(
                f"class weights are a list of numbers, class name: number, or {BALANCED}, not {weight!r}"
            )
        self.weight = weight
        self.fitted = True

    def set_classes(self, names: Sequence[str]) -> None:
        """Builds the weights for these classes.

        Raises:
            ValueError: unknown class names, a wrong number of weights, or weights that are negative or all 0.
        """
        if self.weight is None:
            return
        weights = torch.ones(len(names))
        if isinstance(self.weight, str):
            self.fitted = False
        elif isinstance(self.weight, Mapping):
            unknown = [name for name in self.weight if name not in names]
            if unknown:
                raise ValueError(
                    f"class weights name {unknown[0]!r}, which is none of the {len(names)} classes"
                )
            weights = torch.tensor([float(self.weight.get(name, 1.0)) for name in names])
        elif len(self.weight) != len(names):
            raise ValueError(f"{len(self.weight)} class weights were given for {len(names)} classes")
        else:
            weights = torch.tensor([float(value) for value in self.weight])
        if not bool((weights.isfinite() & (weights >= 0)).all()) or weights.sum() == 0:
            raise ValueError("class weights must be at least 0, and not all 0")
        self.register_buffer("class_weight", weights)

    @property
    def needs_balance(self) -> bool:
        """Whether `fit_balance` must see the training targets before the first step."""
        return not self.fitted

    def fit_balance(self, positives_K: Tensor, samples: int) -> None:
        """Sets the weights from the training split.

        Args:
            positives_K: number of samples of each class, (K,).
            samples: total number of samples.
        """
        self.class_weight.copy_(self.balanced(positives_K.float().cpu(), samples))
        self.fitted = True

    def balanced(self, positives_K: Tensor, samples: int) -> Tensor:
        """The `balanced` weights, (K,)."""
        raise NotImplementedError


class CrossEntropy(ClassificationLoss):
    """Cross-entropy of `(B, K)` logits and soft targets, averaged over the batch, optionally with class weights.

    With hard targets, equal to `torch.nn.CrossEntropyLoss` on class indices, including weights and smoothing.

    Args:
        label_smoothing: fraction of a target that is spread over the classes.
        smoothing_over: `all` K classes, or the K - 1 `others` (as in the official point-cloud recipe).
        weight: see `ClassificationLoss`; `balanced` is samples / (K · samples of the class), which is 1 on average.
    """

    def __init__(
        self, label_smoothing: float = 0.0, smoothing_over: str = "all", weight: Weights = None
    ) -> None:
        super().__init__(weight)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
        if smoothing_over not in OVER:
            raise ValueError(f"smoothing_over must be one of {', '.join(OVER)}, not {smoothing_over!r}")
        self.label_smoothing = label_smoothing
        self.smoothing_over = smoothing_over

    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """-> mean loss, a scalar."""
        smoothing, classes = self.label_smoothing, target_BK.shape[1]
        smooth_BK = target_BK
        if smoothing and self.smoothing_over == "all":
            smooth_BK = (1 - smoothing) * target_BK + smoothing / classes
        elif smoothing:
            smooth_BK = (1 - smoothing) * target_BK + smoothing * (1 - target_BK) / (classes - 1)
        loss_BK = -smooth_BK * logits_BK.log_softmax(dim=1)
        if self.weight is None:
            return loss_BK.sum() / len(logits_BK)
        total = self.total_weight(target_BK).clamp(min=torch.finfo(loss_BK.dtype).tiny)
        return (loss_BK * self.class_weight).sum() / total

    def total_weight(self, target_BK: Tensor) -> Tensor:
        """What the sum of a batch's losses is divided by, a scalar."""
        return (target_BK if self.weight is None else target_BK * self.class_weight).sum()

    def balanced(self, positives_K: Tensor, samples: int) -> Tensor:
        return samples / (len(positives_K) * positives_K.clamp(min=1))


class BinaryCrossEntropy(ClassificationLoss):
    """Binary cross-entropy of each class: `(B, K)` logits, targets in [0, 1].

    Args:
        weight: of the positive term of each class (`pos_weight` of `torch.nn.BCEWithLogitsLoss`), see
            `ClassificationLoss`; `balanced` is negatives / positives of the class.
    """

    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """-> mean loss over batch and classes, a scalar."""
        weight_K = None if self.weight is None else self.class_weight
        return nn.functional.binary_cross_entropy_with_logits(logits_BK, target_BK, pos_weight=weight_K)

    def balanced(self, positives_K: Tensor, samples: int) -> Tensor:
        return (samples - positives_K).clamp(min=1) / positives_K.clamp(min=1)
