"""Average precision against a computation of its own: sorted detections, greedy matching, precision at 101 recalls."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks import detection_metrics
from tasks.detection_metrics import MEASURES, STATES, DetectionMetrics

NAMES = ("a", "b", "c")
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RANGES = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}
Objects = dict[str, Tensor]


# -- by hand -------------------------------------------------------------------------------------------------


def overlap(found: Any, true: Any, crowd: bool) -> float:
    """IoU of two boxes or masks; with a crowd, the part of what is found that lies on it."""
    if found.ndim == 2:
        both, own, other = (found & true).sum(), found.sum(), true.sum()
    else:
        sides = np.minimum(found[2:], true[2:]) - np.maximum(found[:2], true[:2])
        both = float(np.prod(sides.clip(0)))
        own, other = np.prod(found[2:] - found[:2]), np.prod(true[2:] - true[:2])
    return float(both / (own if crowd else own + other - both))


def by_hand(
    predictions: Sequence[Objects], targets: Sequence[Objects], label: int, least: float, kind: str, span: Any
) -> float:
    """Average precision of one class at one threshold in one range of areas; NaN without truth."""
    masks = "masks" in targets[0]
    ranked: list[tuple[float, bool]] = []  # score, right
    wanted = 0
    for predicted, true in zip(predictions, targets, strict=True):
        truth = [
            (true[kind][k].numpy(), bool(true["crowd"][k]), size(true, k, masks))
            for k in range(len(true["labels"]))
            if int(true["labels"][k]) == label
        ]
        aside = [crowd or not span[0] <= area <= span[1] for _, crowd, area in truth]
        wanted += aside.count(False)
        taken: set[int] = set()
        order = np.argsort(-predicted["scores"].numpy(), kind="stable")
        for d in [d for d in order if int(predicted["labels"][d]) == label][:100]:
            shape = predicted[kind][d].numpy()
            free = [
                (overlap(shape, other, crowd), k)
                for k, (other, crowd, _) in enumerate(truth)
                if crowd or k not in taken
            ]
            good = [(iou, k) for iou, k in free if iou >= least]
            best = max((each for each in good if not aside[each[1]]), default=None) or max(good, default=None)
            if best is not None:
                taken.add(best[1])
                if not aside[best[1]]:
                    ranked.append((float(predicted["scores"][d]), True))
            elif span[0] <= size(predicted, d, kind == "masks") <= span[1]:
                ranked.append((float(predicted["scores"][d]), False))
    if not wanted:
        return math.nan
    right = np.cumsum([hit for _, hit in sorted(ranked, key=lambda each: -each[0])], dtype=float)
    precision = right / np.arange(1, len(right) + 1)
    recall = right / wanted
    return float(np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]))


def size(objects: Objects, k: int, masks: bool) -> float:
    if masks:
        return float(objects["masks"][k].sum())
    x1, y1, x2, y2 = objects["boxes"][k].tolist()
    return (x2 - x1) * (y2 - y1)


def expected(predictions: Sequence[Objects], targets: Sequence[Objects], kind: str) -> dict[str, float]:
    def mean(thresholds: Sequence[float], span: Any) -> float:
        each = [
            by_hand(predictions, targets, label, t, kind, span)
            for label in range(len(NAMES))
            for t in thresholds
        ]
        return float(np.nanmean(each)) if not np.isnan(each).all() else math.nan

    prefix = "mask_" if kind == "masks" else ""
    values = {f"{prefix}ap{name}": mean(list(THRESHOLDS), span) for name, span in RANGES.items()}
    return values | {f"{prefix}ap50": mean([0.5], RANGES[""]), f"{prefix}ap75": mean([0.75], RANGES[""])}


# -- cases ---------------------------------------------------------------------------------------------------


def case(
    rng: np.random.Generator, pictures: int = 6, masks: bool = False
) -> tuple[list[Objects], list[Objects]]:
    """Pictures with up to eight objects, some of them crowds; detections near them and elsewhere; empty pictures."""
    side = 140
    predictions, targets = [], []
    for _ in range(pictures):
        count = int(rng.integers(0, 9))
        corner = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate(
            [corner, corner + rng.choice([12, 45, 80], (count, 1)) * rng.uniform(0.8, 1.4, (count, 2))], 1
        )
        labels = rng.integers(0, 2, count)  # the class c is never there
        near = boxes[rng.integers(0, count, 2 * count)] if count else np.zeros((0, 4))
        near = near + rng.normal(0, 3, near.shape)
        start = rng.uniform(0, 60, (3, 2))
        wrong = np.concatenate([start, start + rng.uniform(5, 50, (3, 2))], 1)
        found = np.concatenate([near, wrong]).clip(0, side)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        kinds = rng.integers(0, 3, len(found))
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor(labels),
                "crowd": torch.tensor(rng.uniform(size=count) < 0.2),
            }
        )
        predictions.append(
            {
                "boxes": torch.tensor(found, dtype=torch.float32),
                "labels": torch.tensor(kinds),
                "scores": torch.tensor(
                    rng.permutation(len(found)) / len(found) + rng.uniform(0, 0.01), dtype=torch.float32
                ),
            }
        )
        for each in (targets[-1], predictions[-1]):
            if masks:
                each["masks"] = ellipses(each["boxes"], side)
    return predictions, targets


def ellipses(boxes: Tensor, side: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    drawn = [
        ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1
        for x1, y1, x2, y2 in boxes.tolist()
    ]
    return torch.stack(drawn) if drawn else torch.zeros(0, side, side, dtype=torch.bool)


def measured(
    predictions: Sequence[Objects], targets: Sequence[Objects], masks: bool = False
) -> dict[str, float]:
    metric = DetectionMetrics(NAMES, masks)
    for place in range(0, len(targets), 2):  # batches of two
        metric.update(predictions[place : place + 2], targets[place : place + 2])
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("seed", range(6))
def test_boxes_on_random_cases(seed: int) -> None:
    predictions, targets = case(np.random.default_rng(seed))
    assert sum(int(each["crowd"].sum()) for each in targets) > 0 or seed > 2
    values = measured(predictions, targets)
    assert set(values) == set(MEASURES)
    assert values == pytest.approx(expected(predictions, targets, "boxes"), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", range(2))
def test_masks_on_random_cases(seed: int) -> None:
    predictions, targets = case(np.random.default_rng(100 + seed), pictures=4, masks=True)
    values = measured(predictions, targets, masks=True)
    hand = expected(predictions, targets, "boxes") | expected(predictions, targets, "masks")
    assert values == pytest.approx(hand, abs=1e-6, nan_ok=True)
    assert values["mask_ap"] != pytest.approx(values["ap"], abs=1e-3)


def picture(*boxes: tuple[float, float, float, float], label: int = 0, **more: Any) -> Objects:
    given = {name: torch.tensor(value) for name, value in more.items()}
    labels = torch.full((len(boxes),), label)
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels, **given}


def test_numbers_on_paper() -> None:
    """Three objects, of which the first and third detection find one each: precisions 1, 1/2, 2/3 at recalls 1/3, 1/3,
    2/3: 34 recalls at 1 and 33 at 2/3 of 101."""
    boxes = [(0.0, 0.0, 40.0, 40.0), (50.0, 0.0, 90.0, 40.0), (100.0, 0.0, 140.0, 40.0)]
    found = picture(boxes[0], (0.0, 60.0, 40.0, 100.0), boxes[1], scores=[0.9, 0.8, 0.7])
    values = measured([found], [picture(*boxes, crowd=[False] * 3)])
    assert values["ap"] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert values["ap50"] == values["ap75"] == values["ap_medium"] == values["ap"]
    assert math.isnan(values["ap_small"])
    assert math.isnan(values["ap_large"])


def test_crowds_count_neither_way() -> None:
    truth = picture((0.0, 0.0, 20.0, 20.0), (40.0, 40.0, 100.0, 100.0), crowd=[False, True])
    on_it = [(45.0, 45.0, 60.0, 60.0), (70.0, 70.0, 90.0, 90.0)]
    values = measured([picture(*on_it, (0.0, 0.0, 20.0, 20.0), scores=[0.9, 0.8, 0.7])], [truth])
    assert values["ap"] == pytest.approx(1.0)
    truth["crowd"][:] = False
    values = measured([picture(*on_it, (0.0, 0.0, 20.0, 20.0), scores=[0.9, 0.8, 0.7])], [truth])
    assert values["ap50"] == pytest.approx(51 / 101 / 3)


def test_of_each_class_and_nothing_at_all() -> None:
    metric = DetectionMetrics(NAMES)
    with pytest.raises(RuntimeError, match="nothing has been computed"):
        metric.per_class()
    box = (0.0, 0.0, 50.0, 50.0)
    metric.update(
        [picture(box, label=1, scores=[0.5]), picture(scores=[])],
        [picture(box, label=1, crowd=[False]), picture(box, label=0, crowd=[False])],
    )
    assert float(metric.compute()["ap"]) == pytest.approx(0.5)
    given = metric.per_class()
    assert (given["a"], given["b"]) == pytest.approx((0.0, 1.0))
    assert math.isnan(given["c"])
    metric.reset()
    metric.update([picture(scores=[])], [picture(crowd=[])])
    assert all(value.isnan() for value in metric.compute().values())
    with pytest.raises(ValueError, match="1 predictions are not those of 2 pictures"):
        metric.update([picture(scores=[])], [picture(crowd=[])] * 2)


@pytest.mark.parametrize("first", [4, 3, 6])
def test_processes_put_together_what_each_has_seen(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Two processes, of which the second sees the rest of six pictures, or none."""
    predictions, targets = case(np.random.default_rng(5), masks=True)
    alone = measured(predictions, targets, masks=True)
    metrics = []
    for rank, part in enumerate((slice(0, first), slice(first, None))):
        monkeypatch.setattr(detection_metrics, "_place", lambda rank=rank: (rank, 2))
        metrics.append(DetectionMetrics(NAMES, True))
        metrics[-1].update(predictions[part], targets[part])
    others = iter(
        [torch.cat([torch.zeros(0, dtype=t), *getattr(metrics[1], name)]) for name, t in STATES.items()]
    )

    def gathered(own: Tensor, group: Any = None) -> list[Tensor]:
        other = next(others)
        assert (own.dtype, own.ndim) == (other.dtype, other.ndim)
        return [own, other]

    metrics[0].distributed_available_fn = lambda: True
    metrics[0].dist_sync_fn = gathered
    values = {name: float(value) for name, value in metrics[0].compute().items()}
    assert values == pytest.approx(alone, abs=1e-9, nan_ok=True)
    assert isinstance(metrics[0].detections, list), "its own part is kept"
