"""Losses and metrics of segmentation beside independent computations."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.metrics import PixelConfusion, iou_of
from tasks.segmentation_losses import VOID, LovaszSoftmax, PixelCrossEntropy, PixelLoss, SoftDice, Summed

K = 4
NAMES = ["a", "b", "c", "d"]


def drawn(seed: int = 0, void: float = 0.2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    logits = torch.randn(2, K, 5, 6, dtype=torch.float64)
    target = torch.randint(K - 1, (2, 5, 6))  # the last class does not occur
    target[torch.rand(2, 5, 6) < void] = VOID
    return logits, target


def pixels(logits: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Softmax (P, K) and classes (P,) of the pixels that have one."""
    values = np.moveaxis(logits.numpy(), 1, -1).reshape(-1, K)
    classes = target.numpy().reshape(-1)
    probs = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    return probs[classes != VOID], classes[classes != VOID]


def test_cross_entropy_divides_by_all_pixels() -> None:
    logits, target = drawn()
    probs, classes = pixels(logits, target)
    each = -np.log(probs[np.arange(len(classes)), classes])
    assert len(each) < target.numel()
    assert PixelCrossEntropy()(logits, target).item() == pytest.approx(each.sum() / target.numel())
    labelled = PixelCrossEntropy("labelled")
    assert labelled(logits, target).item() == pytest.approx(each.mean())
    weighted, weight = PixelCrossEntropy(weight={"b": 3.0}), np.array([1, 3, 1, 1.0])
    weighted.set_classes(NAMES)
    assert weighted.double()(logits, target).item() == pytest.approx(
        (each * weight[classes]).sum() / target.numel()
    )
    mean = PixelCrossEntropy("labelled", weight=[2, 1, 0.5, 1])
    mean.set_classes(NAMES)
    official = nn.CrossEntropyLoss(torch.tensor([2, 1, 0.5, 1.0]).double(), ignore_index=VOID)
    assert mean.double()(logits, target).item() == pytest.approx(official(logits, target).item())


def test_dice_by_hand() -> None:
    logits, target = drawn()
    probs, classes = pixels(logits, target)
    dice = []
    for k in range(K - 1):
        truth = classes == k
        dice.append((2 * probs[truth, k].sum() + 1) / ((probs[:, k] ** 2).sum() + truth.sum() + 1))
    assert SoftDice()(logits, target).item() == pytest.approx(1 - np.mean(dice))
    weighted = SoftDice(weight=[1, 0, 3, 1])
    weighted.set_classes(NAMES)
    assert weighted.double()(logits, target).item() == pytest.approx(1 - (dice[0] + 3 * dice[2]) / 4)


def jaccard_loss(wrong: frozenset[int], truth: set[int]) -> float:
    """1 - IoU of a class whose pixels are `truth`, where the pixels `wrong` are given the wrong side (equation 6)."""
    return len(wrong) / len(truth | wrong)


def test_lovasz_is_the_extension_of_the_jaccard_loss() -> None:
    """By definition: the sum over thresholds, the level sets of the errors being the sets of wrong pixels."""
    logits, target = drawn(void=0.5)
    probs, classes = pixels(logits, target)
    losses = []
    for k in range(K - 1):
        truth = {int(place) for place in np.flatnonzero(classes == k)}
        errors = np.abs((classes == k) - probs[:, k])
        levels = [0.0, *sorted(errors)]
        losses.append(
            sum(
                (high - low) * jaccard_loss(frozenset(np.flatnonzero(errors >= high).tolist()), truth)
                for low, high in itertools.pairwise(levels)
            )
        )
    assert LovaszSoftmax()(logits, target).item() == pytest.approx(np.mean(losses))


def test_lovasz_of_a_decided_answer_is_one_minus_iou() -> None:
    target = torch.tensor([[[0, 0, 1, 1, 2, 2, VOID, 0]]])
    said = torch.tensor([[[0, 1, 1, 1, 2, 0, 3, 0]]])
    logits = 1000.0 * nn.functional.one_hot(said, K).permute(0, 3, 1, 2).double()
    iou = np.array([2 / 4, 2 / 3, 1 / 2])
    assert LovaszSoftmax()(logits, target).item() == pytest.approx(1 - iou.mean())


@pytest.mark.parametrize(
    "loss", [PixelCrossEntropy(), PixelCrossEntropy("labelled"), SoftDice(), LovaszSoftmax()]
)
def test_gradients_leave_void_alone_and_nothing_is_nan(loss: PixelLoss) -> None:
    logits, target = drawn()
    logits.requires_grad_()
    loss(logits, target).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(1)
    assert (moved[target == VOID] == 0).all()
    assert (moved[target != VOID] > 0).any()
    nothing = torch.full_like(target, VOID)
    logits.grad = None
    value = loss(logits, nothing)
    value.backward()
    assert value.item() == 0
    assert logits.grad is None or logits.grad.isfinite().all()


def test_a_sum_of_losses() -> None:
    logits, target = drawn()
    both = Summed({"ce": PixelCrossEntropy(), "dice": SoftDice()}, {"dice": 0.5})
    both.set_classes(NAMES)
    wanted = PixelCrossEntropy()(logits, target) + 0.5 * SoftDice()(logits, target)
    assert both(logits, target).item() == pytest.approx(wanted.item())
    weights = [1.0, 0.0, 3.0, 1.0]
    weighted, parts = Summed({"ce": PixelCrossEntropy(), "dice": SoftDice()}, weight=weights), 0.0
    weighted.set_classes(NAMES)
    for part in (PixelCrossEntropy(weight=weights), SoftDice(weight=weights)):
        part.set_classes(NAMES)
        parts += part.double()(logits, target).item()
    assert weighted.double()(logits, target).item() == pytest.approx(parts)
    for wrong in ({"lovasz": 1.0}, {"ce": 1.0, "x": 2.0}):
        with pytest.raises(ValueError, match="factors of others"):
            Summed({"ce": PixelCrossEntropy()}, wrong)


def balanced_weights(pixels: list[int]) -> list[float]:
    """Of both parts of a sum; they are the same."""
    loss = Summed({"ce": PixelCrossEntropy(), "dice": SoftDice()}, weight="balanced")
    loss.set_classes(NAMES)
    assert loss.needs_balance
    loss.fit_balance(torch.tensor(pixels), sum(pixels))
    assert not loss.needs_balance
    (one, other) = (part.class_weight.tolist() for part in loss.losses.values())
    assert one == other
    return one


def test_balanced_weights_are_median_frequency_over_frequency() -> None:
    assert balanced_weights([800, 100, 50, 200]) == pytest.approx([100 * 1.5 / 800, 1.5, 3, 0.75])
    assert balanced_weights([900, 100, 0, 100]) == pytest.approx([1 / 9, 1, 1, 1])


def test_impossible_losses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"divisor must be one of all, labelled"):
        PixelCrossEntropy("some")
    with pytest.raises(ValueError, match="no training pixel has a class"):
        balanced_weights([0, 0, 0, 0])
    with pytest.raises(ValueError, match="2 class weights were given for 4 classes"):
        PixelCrossEntropy(weight=[1, 2]).set_classes(NAMES)


# -- metrics -------------------------------------------------------------------------------------------------


def test_metrics_by_sets_of_pixels() -> None:
    """Over the whole set and not the mean of pictures."""
    torch.manual_seed(1)
    metric, said, true = PixelConfusion(K), [], []
    for size in (3, 40):
        target = torch.randint(K, (2, size, size))
        target[torch.rand(target.shape) < 0.3] = VOID
        predicted = torch.where(torch.rand(target.shape) < 0.6, target % K, torch.randint(K, target.shape))
        metric.update(predicted, target)
        said.append(predicted[target != VOID])
        true.append(target[target != VOID])
    y_true, y_pred = torch.cat(true).numpy(), torch.cat(said).numpy()
    values = metric.compute()
    given, there = ([set(np.flatnonzero(y == k)) for k in range(K)] for y in (y_pred, y_true))
    iou = [len(a & b) / len(a | b) for a, b in zip(given, there, strict=True)]
    right = [len(a & b) / len(b) for a, b in zip(given, there, strict=True)]
    assert values["miou"].item() == pytest.approx(np.mean(iou))
    assert values["macc"].item() == pytest.approx(np.mean(right))
    assert values["acc"].item() == pytest.approx(np.mean(y_true == y_pred))


def test_iou_by_hand_and_where_it_is_undefined() -> None:
    metric = PixelConfusion(K)
    metric.update(torch.tensor([1]), torch.tensor([VOID]))
    assert math.isnan(metric.compute()["miou"])
    metric.reset()
    metric.update(torch.tensor([0, 0, 1, 2, 1]), torch.tensor([0, 0, 0, 1, VOID]))
    iou = iou_of(metric.counts.double())
    assert iou[:3].tolist() == pytest.approx([2 / 3, 0, 0])
    assert math.isnan(iou[3]), "neither there nor predicted"
    values = metric.compute()
    assert values["miou"].item() == pytest.approx(2 / 9), "class 2 was predicted, so it counts, as 0"
    assert values["macc"].item() == pytest.approx(1 / 3), "class 2 is not there, so it has no accuracy"
    assert values["acc"].item() == pytest.approx(0.5)
