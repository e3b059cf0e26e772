"""Class-averaged metrics that exclude undefined classes instead of counting them as zero.

Segmentation metrics are computed from a pixel confusion matrix. Shapes: B batch, K classes.
"""

import warnings

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MultilabelAveragePrecision

from modalities.counting import histogram


class MeanLoss(MeanMetric):
    """Mean of the losses of batches, each with a weight; a NaN among them stays one."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, value: float | Tensor, weight: float | Tensor | None = None) -> None:
        # torchmetrics 1.9 ignores weights with nan_strategy="disable".
        weight = 1.0 if weight is None else weight
        self.mean_value += value * weight
        self.weight += weight


class MeanClassAccuracy(Metric):
    """Class-averaged accuracy: the mean recall over the classes that have samples.

    Args:
        classes: K.

    Attributes:
        of_classes: (K,) after `compute`, NaN where a class has no samples.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    samples: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.of_classes: Tensor | None = None
        for name in ("correct", "samples"):
            self.add_state(name, torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits_BK: Tensor, target_B: Tensor) -> None:
        right_B = logits_BK.argmax(dim=1) == target_B
        self.samples += torch.bincount(target_B, minlength=len(self.samples))
        self.correct += torch.bincount(target_B[right_B], minlength=len(self.samples))

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN without samples."""
        self.of_classes = self.correct / self.samples
        return self.of_classes.nanmean()


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Mean average precision of a multi-label task, over the classes that have positive samples.

    Args:
        classes: K.
        thresholds: number of thresholds of the binned version; None: exact, which keeps all scores of an epoch.

    Attributes:
        of_classes: (K,) after `compute`, NaN where a class has no positive sample.
    """

    positives: Tensor

    def __init__(self, classes: int, thresholds: int | None = None) -> None:
        super().__init__(classes, average="none", thresholds=thresholds)
        self.of_classes: Tensor | None = None
        self.add_state("positives", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits_BK: Tensor, target_BK: Tensor) -> None:
        super().update(logits_BK, target_BK)
        self.positives += target_BK.sum(dim=0)

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean, a scalar; NaN without positive samples."""
        with (
            warnings.catch_warnings()
        ):  # torchmetrics warns and counts such a class as 0; here it is excluded
            warnings.filterwarnings("ignore", message="No positive samples found in target")
            values_K = super().compute()
        self.of_classes = torch.where(self.positives > 0, values_K, torch.nan)
        return self.of_classes.nanmean()


class PixelConfusion(Metric):
    """Pixel confusion matrix over a whole split, with mean IoU and accuracies.

    Args:
        classes: K.

    Attributes:
        of_split: (K, K) after `compute`, true class by predicted class.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.of_split: Tensor | None = None
        self.add_state("counts", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds class indices of any shape; targets outside the K classes (void) are ignored."""
        self.counts += confusion_of(predicted, target, len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """See `measures_of`."""
        self.of_split = self.counts.clone()
        return measures_of(self.counts)


def measures_of(counts_KK: Tensor) -> dict[str, Tensor]:
    """`miou`, `macc` (means over the classes for which they are defined) and `acc` of a confusion matrix; NaN without
    pixels."""
    counts_KK = counts_KK.double()
    return {
        "miou": iou_of(counts_KK).nanmean(),
        "macc": (counts_KK.diagonal() / counts_KK.sum(1)).nanmean(),
        "acc": counts_KK.diagonal().sum() / counts_KK.sum(),
    }


def confusion_of(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Confusion matrix, (K, K), true class by predicted class; targets outside the K classes are ignored."""
    predicted, target = predicted.flatten().long(), target.flatten().long()
    known = (target >= 0) & (target < classes)
    pairs = torch.where(known, target * classes + predicted, classes**2)
    return histogram(pairs, classes**2 + 1)[:-1].view(classes, classes)


def iou_of(counts_KK: Tensor) -> Tensor:
    """Intersection over union per class, (K,); NaN for classes neither present nor predicted."""
    both_K = counts_KK.double().diagonal()
    return both_K / (counts_KK.sum(0) + counts_KK.sum(1) - both_K)
