"""Boxes, anchors, assignment, sampling, levels and masks, each against a computation written out by other means."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, roi_align

from tasks.detectors.anchors import anchors_at, anchors_of
from tasks.detectors.answers import chosen
from tasks.detectors.boxes import MOST_GROWTH, BoxCoding, clipped, has_area, survivors
from tasks.detectors.head import TestSettings
from tasks.detectors.mask_head import mask_targets, pasted
from tasks.detectors.matching import matched
from tasks.detectors.roi import levels_of, pooled, with_picture
from tasks.detectors.roi_gradient import MOST_PIXELS, roi_aligned
from tasks.detectors.sampling import BACKGROUND, NEITHER, assigned, regions_of, sampled

Box = tuple[float, float, float, float]


def boxes(count: int, side: float = 100, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    corner = torch.rand(count, 2) * side * 0.7
    return torch.cat([corner, corner + 2 + torch.rand(count, 2) * side * 0.3], dim=1)


def iou(one: Box, other: Box) -> tuple[float, float]:
    """Intersection over union, and how much of the box around both is neither's, of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    union = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)) - both
    around = (max(one[2], other[2]) - min(one[0], other[0])) * (max(one[3], other[3]) - min(one[1], other[1]))
    return both / union, (around - union) / around


# -- coding ----------------------------------------------------------------------------------------------------


def test_coding_by_hand() -> None:
    """Reference of 20 × 10 around (20, 15); the box of 10 × 20 around (24, 10)."""
    coding = BoxCoding((0.1, 0.1, 0.2, 0.2))
    reference, box = torch.tensor([[10.0, 10, 30, 20]]), torch.tensor([[19.0, 0, 29, 20]])
    wanted = [4 / 20 / 0.1, -5 / 10 / 0.1, math.log(0.5) / 0.2, math.log(2) / 0.2]
    assert coding.encode(box, reference)[0].tolist() == pytest.approx(wanted, rel=1e-5)
    assert coding.decode(torch.tensor([wanted]), reference)[0].tolist() == pytest.approx(
        box[0].tolist(), abs=1e-4
    )


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.033, 0.033, 0.067, 0.067)])
def test_decoding_undoes_coding(stds: tuple[float, ...]) -> None:
    coding = BoxCoding(stds)
    some, others = boxes(50), boxes(50, seed=1)
    assert torch.allclose(coding.decode(coding.encode(some, others), others), some, atol=1e-3)
    each = coding.encode(some, others)[:, None].expand(50, 3, 4)
    assert torch.allclose(coding.decode(each, others[:, None]), some[:, None].expand(50, 3, 4), atol=1e-3)


def test_an_absurd_growth_is_limited() -> None:
    far = BoxCoding().decode(torch.tensor([[0.0, 0, 50, -50]]), torch.tensor([[0.0, 0, 16, 16]]))
    width, height = (far[0, 2:] - far[0, :2]).tolist()
    assert width == pytest.approx(1000, rel=1e-4)
    assert height == pytest.approx(16 * 16 / 1000, rel=1e-3)
    assert pytest.approx(math.log(62.5)) == MOST_GROWTH


def test_half_precision_does_not_move_boxes() -> None:
    coding, far = BoxCoding(), torch.tensor([[1001.0, 777, 1013, 791]])
    assert torch.equal(coding.decode(torch.zeros(1, 4, dtype=torch.bfloat16), far), far)


def test_scales_of_deltas_are_four_numbers_above_0() -> None:
    with pytest.raises(ValueError, match="stds takes four numbers above 0"):
        BoxCoding((0.1, 0.1, 0.2))


def test_clipping_takes_height_and_width_of_each_picture() -> None:
    some = torch.tensor([[[-5.0, -1, 50, 60]], [[10, 20, 300, 20.5]]])
    cut = clipped(some, torch.tensor([[40, 30], [100, 200]])[:, None])
    assert cut[:, 0].tolist() == [[0, 0, 30, 40], [10, 20, 200, 20.5]]
    assert has_area(torch.tensor([[0.0, 0, 1, 1], [3, 3, 3, 8], [5, 5, 4, 9]])).tolist() == [
        True,
        False,
        False,
    ]


def test_giou_of_decoded_boxes_by_hand() -> None:
    """The loss that the cascade's heads use: 1 - (IoU - empty part of the box around both)."""
    coding = BoxCoding((0.1, 0.1, 0.2, 0.2))
    torch.manual_seed(2)
    references, true = boxes(20), boxes(20, seed=3)
    decoded = coding.decode(torch.randn(20, 4), references)
    by_hand = [
        1 - (overlap - empty)
        for overlap, empty in (
            iou(tuple(a), tuple(b)) for a, b in zip(decoded.tolist(), true.tolist(), strict=True)
        )
    ]
    assert generalized_box_iou_loss(decoded, true).tolist() == pytest.approx(by_hand, rel=1e-4)
    apart = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]])
    assert generalized_box_iou_loss(*apart).item() == pytest.approx(1.5)


# -- anchors ---------------------------------------------------------------------------------------------------


def test_anchors_are_the_official_ones() -> None:
    """Scale 8: 32² pixels on the finest level, of the ratios 1:2, 1:1, 2:1, not rounded, around the places' pixels."""
    at = anchors_at(4, 8.0, (0.5, 1.0, 2.0))
    assert at[1].tolist() == [-16, -16, 16, 16]
    assert at[0].tolist() == pytest.approx([-16 * 2**0.5, -16 / 2**0.5, 16 * 2**0.5, 16 / 2**0.5])
    assert (at[:, 2:] - at[:, :2]).prod(1).tolist() == pytest.approx([1024] * 3)
    assert ((at[:, 3] - at[:, 1]) / (at[:, 2] - at[:, 0])).tolist() == pytest.approx([0.5, 1, 2])
    grid = anchors_of((2, 3), 8, 8.0, (0.5, 1.0), torch.device("cpu"))
    middles = ((grid[:, :2] + grid[:, 2:]) / 2).tolist()
    assert middles == [[x * 8.0, y * 8.0] for y in range(2) for x in range(3) for _ in range(2)]


# -- assignment and sampling -----------------------------------------------------------------------------------


def assigned_by_hand(
    some: Tensor, objects: Tensor, positive: float, negative: float, least: float | None
) -> list[int]:
    table = [[iou(tuple(box), tuple(true))[0] for true in objects.tolist()] for box in some.tolist()]
    found = []
    for row in table:
        best = max(row)
        state = BACKGROUND if best < negative else NEITHER
        found.append(row.index(best) if best >= positive else state)
    if least is not None:
        for number in range(len(objects)):
            column = [row[number] for row in table]
            if max(column) >= least:
                for place, value in enumerate(column):
                    if value == max(column):
                        found[place] = number
    return found


@pytest.mark.parametrize(
    ("positive", "negative", "least"), [(0.7, 0.3, 0.3), (0.5, 0.5, None), (0.6, 0.6, None)]
)
def test_assignment_by_hand(positive: float, negative: float, least: float | None) -> None:
    objects = boxes(6, side=60)
    near = objects.repeat(20, 1) + 2 * torch.randn(120, 4)
    some = torch.cat([near[has_area(near)], boxes(60, seed=4)]).double()
    found = assigned(some, objects.double(), positive, negative, least)
    assert found.tolist() == assigned_by_hand(some, objects.double(), positive, negative, least)
    there = {int(value) for value in found.unique()}
    assert BACKGROUND in there
    assert len(there) > 4


def test_without_objects_all_is_background() -> None:
    assert assigned(boxes(5), torch.zeros(0, 4), 0.7, 0.3, 0.3).tolist() == [BACKGROUND] * 5
    assert assigned(torch.zeros(0, 4), boxes(2), 0.5, 0.5).tolist() == []


@pytest.mark.parametrize(
    ("objects", "ground", "wanted"),
    [(300, 900, (128, 384)), (7, 900, (7, 505)), (300, 100, (128, 100)), (0, 3, (0, 3))],
)
def test_background_fills_up_what_objects_leave(objects: int, ground: int, wanted: tuple[int, int]) -> None:
    found = torch.tensor([0] * objects + [BACKGROUND] * ground + [NEITHER] * 50)[
        torch.randperm(objects + ground + 50)
    ]
    positive, negative = sampled(found, 512, 0.25)
    assert (len(positive), len(negative)) == wanted
    assert (found[positive] >= 0).all()
    assert (found[negative] == BACKGROUND).all()
    assert len(set(positive.tolist())) == len(positive)


def test_samples_are_drawn_and_not_taken_in_order() -> None:
    found = torch.full((1000,), BACKGROUND)
    torch.manual_seed(0)
    draws = [sampled(found, 100, 0.5)[1] for _ in range(2)]
    assert not draws[0].equal(draws[1])
    assert draws[0].float().mean() > 300


def test_regions_hold_the_objects_own_boxes() -> None:
    target = {"boxes": boxes(3), "labels": torch.tensor([4, 0, 2])}
    regions = regions_of(boxes(40, seed=5), target, 9, 0.5, 32, 0.25)
    count = len(regions.objects)
    assert 3 <= count <= 8
    assert (regions.labels[count:] == 9).all()
    assert regions.labels[:count].tolist() == target["labels"][regions.objects].tolist()
    own = regions.boxes[regions.are_truth]
    assert sorted(own[:, 0].tolist()) == sorted(target["boxes"][:, 0].tolist())
    assert len(regions.boxes) == 32
    none = regions_of(
        boxes(5), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}, 9, 0.5, 4, 0.25
    )
    assert none.labels.tolist() == [9] * 4
    assert len(none.objects) == 0


# -- levels and features ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        (10, 10, 0),
        (56, 56, 0),
        (111, 111, 0),
        (112, 112, 1),
        (56, 224, 1),
        (223, 223, 1),
        (224, 224, 2),
        (447, 447, 2),
        (448, 448, 3),
        (2000, 2000, 3),
    ],
)
def test_regions_are_read_from_the_level_of_their_size(width: float, height: float, level: int) -> None:
    assert levels_of(torch.tensor([[5.0, 7, 5 + width, 7 + height]]), 4).item() == level


def test_features_come_from_their_level_and_picture_in_order() -> None:
    """Levels that are constant planes: what is read tells which level and picture it came from."""
    pyramid = [
        torch.stack([torch.full((1, 64 >> i, 64 >> i), 10.0 * p + i) for p in range(2)]) for i in range(4)
    ]
    sides = torch.tensor([20.0, 500, 120, 20, 230])
    each = torch.cat([torch.zeros(5, 2), sides[:, None].expand(5, 2)], dim=1)
    found = pooled(pyramid, (4, 8, 16, 32), with_picture([each[:2], each[2:]]), 3)
    assert found.shape == (5, 1, 3, 3)
    middle = found[:, 0, 0, 0].tolist()
    assert middle == [0, 3, 11, 10, 12]


def test_a_region_is_read_at_its_points() -> None:
    """On a plane that rises with x, a point's value is the x of its centre, less half a pixel of the map."""
    plane = (torch.arange(32.0) * 4).expand(1, 1, 32, 32)
    (found,) = pooled([plane], (4,), torch.tensor([[0.0, 16, 16, 16 + 28, 16 + 28]]), 7)
    assert found[0, 3].tolist() == pytest.approx([16 + 4 * (k + 0.5) - 2 for k in range(7)], abs=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "most"), [(9, 14, MOST_PIXELS), (40, 23, MOST_PIXELS), (9, 14, 9 * 14 - 1)]
)
def test_the_gradient_of_regions_is_torchvisions(
    height: int, width: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any regions: within the map, across its border, beyond it, without width or height, more than one chunk."""
    monkeypatch.setattr("tasks.detectors.roi_gradient.MOST_PIXELS", most)
    torch.manual_seed(0)
    corners = (torch.rand(150, 2) * 1.4 - 0.2) * torch.tensor([4.0 * width, 4.0 * height])
    each = torch.cat([corners, corners + torch.rand(150, 2) * 60], dim=1)
    each[0], each[1], each[2] = (
        each[0, 0],
        torch.tensor([5.0, 5, 30, 5]),
        torch.tensor([-900.0, -900, 900, 900]),
    )
    regions = with_picture([each[:90], each[:0], each[90:]])  # the second picture has none
    weight = torch.randn(150, 5, 7, 7)

    def gradient(read: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        x = torch.randn(3, 5, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()
        y = read(x)
        (y * weight).sum().backward()
        assert x.grad is not None
        return y.detach(), x.grad

    y, grad = gradient(lambda x: roi_aligned(x, regions, 7, 0.25))
    wanted_y, wanted = gradient(lambda x: roi_align(x, regions, 7, 0.25, 0, True))
    assert y.equal(wanted_y)
    assert torch.allclose(grad, wanted, atol=1e-4)
    assert (grad[1] == 0).all()
    assert (grad[0] != 0).any()


def test_no_regions_have_no_gradient() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    roi_aligned(x, torch.zeros(0, 5), 7, 0.25).sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()


# -- masks -----------------------------------------------------------------------------------------------------


def test_mask_targets_by_hand() -> None:
    """A region of 56 × 56 pixels in 28 × 28 points, each of 2 × 2 pixels: half of them or more."""
    torch.manual_seed(0)
    masks = torch.rand(3, 80, 90) < 0.5
    region = torch.tensor([[10.0, 20, 66, 76]]).repeat(2, 1)
    found = mask_targets(masks, torch.tensor([2, 0]), region, 28)
    for target, mask in zip(found, (masks[2], masks[0]), strict=True):
        crop = mask[20:76, 10:66].float()
        # A sampling point of a cell lies at a corner of four pixels: their mean.
        wanted = torch.nn.functional.avg_pool2d(crop[None, None], 2)[0, 0] >= 0.5
        assert (target.bool() == wanted).float().mean() > 0.98
    assert mask_targets(masks, torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), 28).shape == (0, 28, 28)


def test_a_mask_is_pasted_where_its_box_lies() -> None:
    probs = torch.zeros(1, 28, 28)
    probs[0, :14] = 1  # the upper half
    (mask,) = pasted(probs, torch.tensor([[10.0, 20, 38, 76]]), (100, 60))
    rows, columns = np.nonzero(mask.numpy())
    assert (columns.min(), columns.max() + 1) == (10, 38)
    assert (rows.min(), rows.max() + 1) == (20, 48)
    assert mask.sum() == 28 * 28
    outside = pasted(torch.ones(2, 28, 28), torch.tensor([[-20.0, -20, 10, 5], [5, 5, 5, 9]]), (40, 30))
    assert outside[0].sum() == 10 * 5
    assert not outside[1].any()


def test_pasting_undoes_a_target() -> None:
    y, x = torch.meshgrid(torch.arange(200), torch.arange(150), indexing="ij")
    disc = ((x - 70) ** 2 + (y - 90) ** 2 < 45**2)[None]
    box = torch.tensor([[25.0, 45, 115, 135]])
    back = pasted(mask_targets(disc, torch.tensor([0]), box, 28), box, (200, 150))
    assert (back & disc).sum() / (back | disc).sum() > 0.95


# -- suppression -----------------------------------------------------------------------------------------------


def survivors_by_hand(some: list[Box], scores: list[float], groups: list[int], most: float) -> list[bool]:
    left: list[int] = []
    for place in sorted(range(len(some)), key=lambda number: -scores[number]):
        if all(groups[other] != groups[place] or iou(some[other], some[place])[0] <= most for other in left):
            left.append(place)
    return [place in left for place in range(len(some))]


def test_suppression_by_hand() -> None:
    some = torch.stack([boxes(60, seed=6), boxes(60, seed=7)])
    scores, groups = torch.rand(2, 60), torch.randint(3, (2, 60))
    found = survivors(some, scores, groups, 0.3)
    for picture in range(2):
        each = (part[picture].tolist() for part in (some, scores, groups))
        assert found[picture].tolist() == survivors_by_hand(*each, 0.3)  # type: ignore[arg-type]
    assert 0.1 < found.float().mean() < 0.95


def test_detections_are_the_best_of_each_class() -> None:
    torch.manual_seed(8)
    some, scores = boxes(40, seed=8), torch.rand(40, 3)
    settings = TestSettings(score=0.2, overlap=0.4, most=15, candidates=200)
    (found,) = chosen(some[None], scores[None], settings)
    wanted = []
    for label in range(3):
        likely = [place for place in range(40) if scores[place, label] > 0.2]
        left = survivors_by_hand(
            [tuple(some[place].tolist()) for place in likely],
            [float(scores[place, label]) for place in likely],
            [0] * len(likely),
            0.4,
        )
        wanted += [
            (float(scores[place, label]), label, place)
            for place, is_left in zip(likely, left, strict=True)
            if is_left
        ]
    wanted = sorted(wanted, reverse=True)[:15]
    assert found[:, 4].tolist() == pytest.approx([score for score, _, _ in wanted])
    assert found[:, 5].tolist() == [label for _, label, _ in wanted]
    assert torch.equal(found[:, :4], some[[place for _, _, place in wanted]])
    # A box for each class.
    each = some[None, :, None].expand(1, 40, 3, 4) + torch.arange(3).view(1, 1, 3, 1) * 1000
    (moved,) = chosen(each, scores[None], settings)
    assert torch.equal(moved[:, 0] - 1000 * moved[:, 5], found[:, 0]) or torch.allclose(
        moved[:, 0] - 1000 * moved[:, 5], found[:, 0], atol=1e-3
    )


def test_fewer_detections_than_wanted_leave_rows_of_score_0() -> None:
    (found,) = chosen(
        boxes(3)[None],
        torch.tensor([[[0.9], [0.01], [0.02]]]),
        TestSettings(score=0.05, most=10, candidates=50),
    )
    assert found.shape == (3, 6)
    assert (found[:, 4] > 0).tolist() == [True, False, False]


# -- which object is meant -------------------------------------------------------------------------------------


def test_a_detection_is_taken_for_one_object_of_its_class() -> None:
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60], [0, 0, 90, 90]]),
        "labels": torch.tensor([1, 1, 2, 1]),
        "crowd": torch.tensor([False, False, False, True]),
    }
    found = {
        "boxes": torch.tensor([[0.0, 0, 10, 11.5], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 90, 90]]),
        "labels": torch.tensor([1, 1, 1, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
    }
    objects, overlaps = matched(found, target)
    assert objects == [1, 0, None, None], "the third is of another class, the last a crowd"
    assert overlaps[1] == 1.0
