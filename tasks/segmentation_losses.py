"""Segmentation losses on per-pixel logits and class indices; unlabelled pixels are ignored.

Shapes: B batch, K classes, H and W in pixels, P labelled pixels.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.losses import ClassificationLoss, Weights

VOID = 255  # target of unlabelled pixels
DIVISORS = ("all", "labelled")


class PixelLoss(ClassificationLoss):
    """Base class: `(B, K, H, W)` logits, `(B, H, W)` class indices or `VOID` -> a scalar.

    Args:
        weight: None; a list with one number per class, in the order of the class names; class name -> number (others
            1); or `balanced`: median frequency balancing, i.e. the median of the classes' frequencies among training
            pixels / the frequency of the class (Eigen and Fergus 2015, arXiv 1411.4734; here over all images), 1 for a
            class that does not occur.
    """

    def balanced(self, positives_K: Tensor, samples: int) -> Tensor:
        occurring = positives_K > 0
        if not occurring.any():
            raise ValueError("no training pixel has a class: class weights cannot be balanced")
        median = positives_K[occurring].quantile(0.5)
        return torch.where(occurring, median / positives_K.clamp(min=1), 1.0)

    def forward(self, logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        """-> loss, a scalar; 0 without labelled pixels."""
        raise NotImplementedError

    def image_weights(self, target_BHW: Tensor) -> Tensor:
        """The weight of each image's own loss in the mean over a split, `(B,)`: 1, or 0 without labelled pixels."""
        return (target_BHW != VOID).flatten(1).any(dim=1).float()


class PixelCrossEntropy(PixelLoss):
    """Per-pixel cross-entropy.

    Args:
        divisor: `all`: the mean over all pixels, with unlabelled ones counted as 0, as in the official recipe; or
            `labelled`: the mean over labelled pixels (with weights, divided by the sum of their weights).
        weight: see `PixelLoss`; multiplies each pixel's loss.
        label_smoothing: fraction of a target that is spread over all classes.
    """

    def __init__(self, divisor: str = "all", weight: Weights = None, label_smoothing: float = 0.0) -> None:
        super().__init__(weight)
        if divisor not in DIVISORS:
            raise ValueError(f"task.loss.divisor must be one of {', '.join(DIVISORS)}, not {divisor!r}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
        self.divisor = divisor
        self.label_smoothing = label_smoothing

    def forward(self, logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        weight_K = None if self.weight is None else self.class_weight
        total = F.cross_entropy(
            logits_BKHW,
            target_BHW,
            weight_K,
            ignore_index=VOID,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        if self.divisor == "all":
            return total / target_BHW.numel()
        divisor = self._divisors(target_BHW).sum()
        return total / divisor.clamp(min=torch.finfo(divisor.dtype).tiny)

    def _divisors(self, target_BHW: Tensor) -> Tensor:
        """What `divisor=labelled` divides by, per image, `(B,)`: the (weighted) number of its labelled pixels."""
        labelled = target_BHW != VOID
        if self.weight is None:
            return labelled.flatten(1).sum(dim=1).float()
        weight_BHW = self.class_weight[torch.where(labelled, target_BHW, 0)] * labelled
        return weight_BHW.flatten(1).sum(dim=1)

    def image_weights(self, target_BHW: Tensor) -> Tensor:
        """The weight of each image's own loss in the mean over a split, `(B,)`: with `divisor=labelled` the (weighted)
        number of its labelled pixels, so that the mean is that over all pixels of the split; else 1."""
        if self.divisor == "labelled":
            return self._divisors(target_BHW)
        return torch.ones(len(target_BHW), device=target_BHW.device)


class SoftDice(PixelLoss):
    """1 - Dice coefficient of the softmax (Milletari et al. 2016, arXiv 1606.04797: squares in the denominator).

    The Dice coefficient of a class is 2·sum(p·t) / (sum(p²) + sum(t²)) over all labelled pixels of a batch; the loss is
    averaged over the classes that occur in the batch.

    Args:
        weight: see `PixelLoss`; weights of the mean over classes.
        smooth: added to numerator and denominator.
    """

    def __init__(self, weight: Weights = None, smooth: float = 1.0) -> None:
        super().__init__(weight)
        if smooth < 0:
            raise ValueError(f"task.loss.smooth must be at least 0, not {smooth}")
        self.smooth = smooth

    def forward(self, logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        # Unlabelled pixels are multiplied by 0, which takes less time than selecting the others.
        probs_BKHW = logits_BKHW.softmax(dim=1) * (target_BHW != VOID)[:, None]
        class_K11 = torch.arange(probs_BKHW.shape[1], device=target_BHW.device)[:, None, None]
        truth_BKHW = (target_BHW[:, None] == class_K11).to(probs_BKHW.dtype)
        true_K = truth_BKHW.sum((0, 2, 3))
        both_K = 2 * (probs_BKHW * truth_BKHW).sum((0, 2, 3)) + self.smooth
        each_K = probs_BKHW.square().sum((0, 2, 3)) + true_K + self.smooth
        loss_K = 1 - both_K / each_K.clamp(min=torch.finfo(each_K.dtype).tiny)
        return _mean_of_present(loss_K, true_K > 0, None if self.weight is None else self.class_weight)


class LovaszSoftmax(PixelLoss):
    """Lovász-softmax (Berman et al. 2018, arXiv 1705.08790, equation 13): a convex surrogate of 1 - mean IoU.

    Computed over all labelled pixels of a batch together; averaged over the classes that occur in it.

    Args:
        weight: see `PixelLoss`; weights of the mean over classes.
    """

    def forward(self, logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        probs_PK, target_P = labelled_pixels(logits_BKHW.softmax(dim=1), target_BHW)
        classes = probs_PK.shape[1]
        truth_PK = F.one_hot(target_P, classes).to(probs_PK.dtype)
        errors_PK, order_PK = (truth_PK - probs_PK).abs().sort(dim=0, descending=True)
        loss_K = (errors_PK * _jaccard_steps(truth_PK.gather(0, order_PK))).sum(0)
        return _mean_of_present(
            loss_K, truth_PK.sum(0) > 0, None if self.weight is None else self.class_weight
        )


class Summed(PixelLoss):
    """A weighted sum of losses, such as cross-entropy and Dice.

    Args:
        losses: by name.
        factors: name -> factor; others 1.
        weight: see `PixelLoss`; if given, it replaces the weight of every loss.
    """

    def __init__(
        self,
        losses: Mapping[str, PixelLoss],
        factors: Mapping[str, float] | None = None,
        weight: Weights = None,
    ) -> None:
        super().__init__(weight)
        unknown = [name for name in factors or {} if name not in losses]
        if not losses or unknown:
            raise ValueError(f"a sum of losses needs some, and no factors of others ({', '.join(unknown)})")
        self.losses = nn.ModuleDict(dict(losses))
        self.factors = {name: float((factors or {}).get(name, 1.0)) for name in losses}

    def set_classes(self, names: Sequence[str]) -> None:
        for loss in self.losses.values():
            assert isinstance(loss, PixelLoss)
            if self.weight is not None:
                loss.weight = self.weight
            loss.set_classes(names)

    @property
    def needs_balance(self) -> bool:
        return any(loss.needs_balance for loss in self._parts())

    def fit_balance(self, positives_K: Tensor, samples: int) -> None:
        for loss in self._parts():
            if loss.needs_balance:
                loss.fit_balance(positives_K, samples)

    def _parts(self) -> list[PixelLoss]:
        return [loss for loss in self.losses.values() if isinstance(loss, PixelLoss)]

    def forward(self, logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        return torch.stack(
            [factor * self.losses[name](logits_BKHW, target_BHW) for name, factor in self.factors.items()]
        ).sum()


def labelled_pixels(values_BKHW: Tensor, target_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """The values `(P, K)` and classes `(P,)` of the labelled pixels."""
    labelled_BHW = target_BHW != VOID
    return values_BKHW.permute(0, 2, 3, 1)[labelled_BHW], target_BHW[labelled_BHW]


def _jaccard_steps(truth_PK: Tensor) -> Tensor:
    """Gradient of the Lovász extension of each class's Jaccard loss with respect to the sorted errors, `(P, K)`.

    Args:
        truth_PK: one-hot targets, for each class sorted by descending error.
    """
    if len(truth_PK) == 0:
        return truth_PK
    total_1K = truth_PK.sum(0, keepdim=True)
    intersection_PK = total_1K - truth_PK.cumsum(0)
    union_PK = total_1K + (1 - truth_PK).cumsum(0)
    jaccard_PK = 1 - intersection_PK / union_PK
    return torch.cat([jaccard_PK[:1], jaccard_PK.diff(dim=0)])


def _mean_of_present(loss_K: Tensor, present_K: Tensor, weight_K: Tensor | None) -> Tensor:
    """The (weighted) mean over the classes that occur; 0 if there is none."""
    share_K = present_K.to(loss_K.dtype) * (1 if weight_K is None else weight_K)
    return (loss_K * share_K).sum() / share_K.sum().clamp(min=torch.finfo(loss_K.dtype).tiny)
