"""The heads of detection: sizes as published, the arithmetic of the cascade, official names, empty pictures."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FeaturePyramidNetwork, box_iou, nms, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from backbone import CheckpointError
from backbone.sizes import SIZES
from backbone.unireplknet import UniRepLKNet
from tasks.detectors.fcos import FCOSHead, true_centreness
from tasks.detectors.fpn import FPN
from tasks.detectors.head import DetectionHead
from tasks.detectors.rpn import RPN
from tasks.detectors.two_stage import TwoStageHead
from tasks.network import Network

CHANNELS, STRIDES = (8, 8, 16, 16), (4, 8, 16, 32)
PUBLISHED = {"t": 88.45, "s": 112.99, "b": 155.2, "l": 275.4, "xl": 443.2}  # M, deploy form
CASCADE: tuple[dict[str, Any], ...] = (
    {"iou": 0.5, "weight": 1.0, "stds": (0.1, 0.1, 0.2, 0.2)},
    {"iou": 0.6, "weight": 0.5, "stds": (0.05, 0.05, 0.1, 0.1)},
    {"iou": 0.7, "weight": 0.25, "stds": (0.033, 0.033, 0.067, 0.067)},
)


def deploy(size: str) -> UniRepLKNet:
    depths, dims = SIZES[f"unireplknet_{size}"]
    return UniRepLKNet(3, depths=depths, dims=dims, deploy=True, feature_norms=True)


def millions(*modules: nn.Module) -> float:
    return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_ones(size: str) -> None:
    with torch.device("meta"):
        backbone = deploy(size)
        head = TwoStageHead(SIZES[f"unireplknet_{size}"][1], STRIDES, 80, True, stages=CASCADE)
    assert millions(backbone, head) == pytest.approx(PUBLISHED[size], rel=1e-3)
    if size == "t":
        assert millions(head) == pytest.approx(58.05, rel=1e-3)


@pytest.mark.parametrize(("size", "published"), [("t", 749), ("s", 835)])
def test_multiply_accumulates_are_the_published_ones(size: str, published: int) -> None:
    """At 1280 × 800, counted as mmdetection does: 1,000 proposals through all stages, 100 detections' masks."""
    with torch.device("meta"):
        backbone = deploy(size).eval()
        head = TwoStageHead(SIZES[f"unireplknet_{size}"][1], STRIDES, 80, True, stages=CASCADE).eval()
        picture = torch.zeros(1, 3, 800, 1280)
        regions, found = torch.zeros(1000, 256, 7, 7), torch.zeros(100, 256, 14, 14)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head.outputs(backbone.forward_features(picture))
        for number in range(3):
            head.roi_head.bbox_head[number](regions)
            head.roi_head.mask_head[number](found)
    assert counter.get_total_flops() / 2 / 1e9 == pytest.approx(published, rel=0.02)


def test_what_a_picture_costs_is_that_of_all_proposals() -> None:
    """A forward pass, which `info` counts, takes as many proposals and detections through the heads as are kept."""
    head = cascade(with_masks=True, rpn={"after": [50, 20]}, test={"most": 5, "candidates": 30}).eval()

    def macs(run: Any) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    whole = macs(lambda: head(features(), 1))
    boxes, masks = torch.zeros(2 * 20, 16, 7, 7), torch.zeros(2 * 5, 16, 14, 14)
    parts = macs(lambda: head.outputs(features()))
    for number in range(3):
        parts += macs(lambda number=number: head.roi_head.bbox_head[number](boxes))
        parts += macs(lambda number=number: head.roi_head.mask_head[number](masks))
    assert whole == parts


# -- small heads -------------------------------------------------------------------------------------------------


def features(batch: int = 2, height: int = 128, width: int = 96) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(batch, chans, -(-height // stride), -(-width // stride))
        for chans, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


def cascade(with_masks: bool = False, classes: int = 3, **settings: Any) -> TwoStageHead:
    torch.manual_seed(1)
    return TwoStageHead(
        CHANNELS,
        STRIDES,
        classes,
        with_masks,
        **{
            "channels": 16,
            "rpn": {"after": [100, 60]},
            "samples": 128,
            "stages": CASCADE,
            "box": {"width": 32},
            **settings,
        },
    )


def faster() -> TwoStageHead:
    box = {"convs": 0, "linears": 2, "width": 32, "loss": "smooth_l1", "loss_weight": 1.0}
    return cascade(stages=CASCADE[:1], box=box, rpn={"inside": False})


def fcos(classes: int = 3, **settings: Any) -> FCOSHead:
    torch.manual_seed(1)
    return FCOSHead(CHANNELS, STRIDES, classes, **{"channels": 16, **settings})


SIZES_B2 = torch.tensor([[128, 96], [100, 90]])
HEADS = [cascade, lambda: cascade(with_masks=True), faster, fcos]


def target(
    *rows: Sequence[float], crowd: Sequence[int] = (), size: Sequence[int] = (128, 96)
) -> dict[str, Tensor]:
    """Boxes with labels: x1, y1, x2, y2, class; masks are the boxes' ellipses."""
    given = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    masks = [
        ((x - (a + c) / 2) / (c - a)) ** 2 + ((y - (b + d) / 2) / (d - b)) ** 2 <= 0.25
        for a, b, c, d, _ in rows
    ]
    return {
        "boxes": given[:, :4],
        "labels": given[:, 4].long(),
        "crowd": torch.tensor([number in crowd for number in range(len(rows))], dtype=torch.bool),
        "masks": torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
    }


def two_targets() -> list[dict[str, Tensor]]:
    return [
        target((10, 10, 40, 50, 0), (50, 60, 90, 120, 2)),
        target((20, 30, 80, 90, 1), size=(100, 90)),
    ]


@pytest.mark.parametrize("make", HEADS)
def test_every_parameter_learns_and_answers_have_the_stated_shape(make: Any) -> None:
    head: DetectionHead = make()
    outputs = head(features(), 1)
    losses = head.losses(outputs, two_targets(), SIZES_B2)
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert [
        name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()
    ] == []
    assert any(
        gradient.abs().sum() > 0 for name, gradient in gradients.items() if "reg" in name or "sides" in name
    )  # type: ignore[union-attr]
    with torch.no_grad():
        found = head.eval()(features(), 1, {"size": SIZES_B2})
    boxes, *masks = found if isinstance(found, tuple) else (found,)
    assert boxes.shape == (2, 100, 6)
    assert [mask.shape for mask in masks] == [(2, 100, 28, 28)] * head.has_masks
    assert (boxes[1, :, :4] <= torch.tensor([90, 100, 90, 100])).all(), "cut off at the picture's edges"
    assert (boxes[..., 4].diff(dim=1) <= 0).all()
    with head.unfinished(), torch.no_grad():
        again = head.detect(head(features(), 1), SIZES_B2)
    assert torch.equal(again[0] if isinstance(again, tuple) else again, boxes)


@pytest.mark.parametrize("make", HEADS)
def test_pictures_without_objects_are_background(make: Any) -> None:
    """All parameters take part none the less, as processes that share gradients need it; no loss is a NaN."""
    for targets in ([target(), target()], [target(), two_targets()[1]]):
        head = make()
        losses = head.losses(head(features(), 1), targets, SIZES_B2)
        torch.stack(list(losses.values())).sum().backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert all(
            parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters()
        )
        if len(targets[1]["boxes"]) == 0:
            assert all(
                float(loss.detach()) == 0 for name, loss in losses.items() if "box" in name or "mask" in name
            )


@pytest.mark.parametrize("make", HEADS)
def test_crowds_are_not_learnt_from(make: Any) -> None:
    head = make()
    outputs = head(features(), 1)
    with_crowd = [
        target((10, 10, 40, 50, 0), (0, 0, 90, 90, 2), crowd=(1,)),
        target((9, 9, 60, 60, 1), crowd=(0,)),
    ]
    without = [target((10, 10, 40, 50, 0)), target()]
    found = []
    for targets in (with_crowd, without):
        torch.manual_seed(3)
        found.append(
            {name: float(loss.detach()) for name, loss in head.losses(outputs, targets, SIZES_B2).items()}
        )
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("make", [lambda: cascade(classes=1), lambda: fcos(classes=1)])
def test_one_class_is_enough(make: Any) -> None:
    head = make()
    losses = head.losses(head(features(), 1), [target((10, 10, 40, 50, 0)), target()], SIZES_B2)
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        assert set(head.eval()(features(), 1)[..., 5].unique().tolist()) == {0}


@pytest.mark.parametrize("make", HEADS)
def test_several_maps_of_a_sample_are_averaged(make: Any) -> None:
    head = make().eval()
    four = features(batch=4)
    found, wanted = (
        head(four, 2),
        head([x.view(2, 2, *x.shape[1:]).mean(1) for x in four], 1),
    )
    one, other = (out[0] if isinstance(out, tuple) else out for out in (found, wanted))
    assert torch.equal(one, other)


@torch.no_grad()
def test_validation_proposes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and detections of the same outputs share the proposals; those of other sizes, or of training, do not."""
    head, asked, made = cascade(), list[bool](), RPN.proposals

    def counted(
        self: RPN, scores: Any, deltas: Any, sizes_B2: Tensor, training: bool
    ) -> tuple[Tensor, Tensor]:
        asked.append(training)
        return made(self, scores, deltas, sizes_B2, training)

    monkeypatch.setattr(RPN, "proposals", counted)
    head.eval()
    wanted = head.detect(head.outputs(features()), SIZES_B2)
    outputs = head.outputs(features())
    head.losses(outputs, two_targets(), SIZES_B2)
    found = head.detect(outputs, SIZES_B2)
    assert isinstance(wanted, Tensor)
    assert isinstance(found, Tensor)
    assert found.equal(wanted)
    assert asked == [False, False]
    smaller = head.detect(outputs, SIZES_B2 // 2)
    assert isinstance(smaller, Tensor)
    assert (smaller[0, :, :4] <= torch.tensor([48, 64, 48, 64])).all()
    head.train().losses(outputs, two_targets(), SIZES_B2)
    assert asked == [False, False, False, True]


def test_a_head_without_a_region_reads_the_whole_picture() -> None:
    """Where nothing is proposed at all, batch norms still see something."""
    head = cascade()
    empty = torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool)
    head.rpn_head.proposals = lambda *_: empty  # type: ignore[method-assign, assignment]
    losses = head.losses(head(features(), 1), [target(), target()], SIZES_B2)
    assert all(loss.isfinite() for loss in losses.values())


def test_the_pyramid_is_torchvisions() -> None:
    ours, theirs = FPN(CHANNELS, 12), FeaturePyramidNetwork(list(CHANNELS), 12, LastLevelMaxPool())
    with torch.no_grad():
        for number in range(4):
            for own, other in (
                (ours.lateral_convs, theirs.inner_blocks),
                (ours.fpn_convs, theirs.layer_blocks),
            ):
                other[number][0].load_state_dict(own[number].conv.state_dict())  # type: ignore[index, union-attr]
        maps = features(height=104, width=72)  # sides that do not halve evenly
        wanted = list(theirs({str(number): x for number, x in enumerate(maps)}).values())
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours(maps), wanted, strict=True))


# -- the cascade by hand -----------------------------------------------------------------------------------------


def decoded(deltas: Tensor, boxes: Tensor, stds: Sequence[float]) -> Tensor:
    """Written out once more with widths and heights."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    dx, dy, dw, dh = (deltas * torch.tensor(stds)).unbind(1)
    x, y = boxes[:, 0] + width / 2 + dx * width, boxes[:, 1] + height / 2 + dy * height
    w, h = width * dw.exp(), height * dh.exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)


def read(pyramid: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
    """Features of the regions of the first picture, one by one."""
    found = []
    for box in boxes:
        level = int(((box[2] - box[0]) * (box[3] - box[1])).sqrt().div(56).log2().floor().clamp(0, 3))
        region = torch.cat([torch.zeros(1), box])[None]
        found.append(roi_align(pyramid[level], region, size, 1 / STRIDES[level], 0, True))
    return torch.cat(found)


def lively(head: TwoStageHead) -> TwoStageHead:
    """Weights large enough for boxes to move and classes to differ."""
    torch.manual_seed(2)
    for part in head.roi_head.bbox_head:
        nn.init.normal_(part.fc_cls.weight, std=1.0)  # type: ignore[union-attr, arg-type]
        nn.init.normal_(part.fc_reg.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    return head


@torch.no_grad()
def test_detection_by_the_cascade_by_hand() -> None:
    head = lively(cascade(with_masks=True, rpn={"after": [50, 30]}, test={"score": 0.2})).eval()
    outputs = head.outputs([x[:1] for x in features()])
    found, masks = head.detect(outputs, SIZES_B2[:1])
    proposals, there = head.rpn_head.proposals(outputs["scores"], outputs["deltas"], SIZES_B2[:1], False)
    boxes = proposals[0][there[0]]
    edges = torch.tensor([96.0, 128, 96, 128])
    pyramid, total = outputs["pyramid"], torch.zeros(len(boxes), 4)
    each_box: list[Tensor] = []
    for number, stage in enumerate(CASCADE):
        logits, deltas = head.roi_head.bbox_head[number](read(pyramid, boxes, 7))
        total += logits / 3
        of_class = [
            decoded(deltas[:, 4 * label : 4 * label + 4], boxes, stage["stds"]).clamp(min=0).minimum(edges)
            for label in range(3)
        ]
        if number < 2:
            likeliest = logits[:, :3].argmax(1)
            boxes = torch.stack(of_class)[likeliest, torch.arange(len(boxes))]
        else:
            each_box = of_class
    scores = total.exp() / total.exp().sum(1, keepdim=True)
    wanted = []
    for label in range(3):
        likely = torch.nonzero(scores[:, label] > 0.2)[:, 0]
        kept = likely[nms(each_box[label][likely], scores[likely, label], 0.5)]
        wanted += [(float(scores[place, label]), label, each_box[label][place]) for place in kept]
    wanted.sort(key=lambda row: -row[0])
    assert 5 < len(wanted) <= 100
    rows = found[0][found[0, :, 4] > 0]
    assert rows[:, 4].tolist() == pytest.approx([score for score, _, _ in wanted], abs=1e-5)
    assert rows[:, 5].tolist() == [label for _, label, _ in wanted]
    assert torch.allclose(rows[:, :4], torch.stack([box for _, _, box in wanted]), atol=1e-3)
    regions = read(pyramid, rows[:, :4], 14)
    probs = sum(head.roi_head.mask_head[number](regions).sigmoid() / 3 for number in range(3))
    assert isinstance(probs, Tensor)
    of_label = probs[torch.arange(len(rows)), rows[:, 5].long()]
    assert torch.allclose(masks[0, : len(rows)], of_label, atol=1e-5)


@torch.no_grad()
def test_training_of_the_cascade_by_hand() -> None:
    """Losses of three stages, everything sampled: assignment, refinement and weights written out."""
    head = lively(cascade(with_masks=True, samples=10_000, positive_part=1.0, rpn={"after": [40, 40]}))
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the order of regions would change the last digits
    (true,) = two_targets()[:1]
    outputs = head.outputs([x[:1] for x in features()])
    sizes = SIZES_B2[:1]
    found = head.losses(outputs, [true], sizes)
    proposals, there = head.rpn_head.proposals(outputs["scores"], outputs["deltas"], sizes, True)
    boxes, edges = proposals[0][there[0]], torch.tensor([96.0, 128, 96, 128])
    for number, stage in enumerate(CASCADE):
        boxes = torch.cat([true["boxes"], boxes])
        overlap, which = box_iou(boxes, true["boxes"]).max(1)
        is_object = overlap >= stage["iou"]
        labels = torch.where(is_object, true["labels"][which], 3)
        logits, deltas = head.roi_head.bbox_head[number](read(outputs["pyramid"], boxes, 7))
        assert float(found[f"class_{number}"]) == pytest.approx(
            float(stage["weight"] * F.cross_entropy(logits, labels)), rel=1e-4
        )
        total, masks, wanted_masks = 0.0, [], []
        for place in torch.nonzero(is_object)[:, 0].tolist():
            label, goal = int(labels[place]), true["boxes"][which[place]]
            box = decoded(
                deltas[place : place + 1, 4 * label : 4 * label + 4], boxes[place : place + 1], stage["stds"]
            )[0]
            inter = (torch.minimum(box[2:], goal[2:]) - torch.maximum(box[:2], goal[:2])).clamp(min=0).prod()
            union = (box[2:] - box[:2]).prod() + (goal[2:] - goal[:2]).prod() - inter
            hull = (torch.maximum(box[2:], goal[2:]) - torch.minimum(box[:2], goal[:2])).prod()
            total += float(1 - inter / union + (hull - union) / hull)
            masks.append(
                head.roi_head.mask_head[number](read(outputs["pyramid"], boxes[place][None], 14))[0, label]
            )
            its = torch.cat([torch.zeros(1), boxes[place]])[None]
            mask = true["masks"][which[place]].float()[None, None]
            wanted_masks.append((roi_align(mask, its, 28, 1.0, 0, True)[0, 0] >= 0.5).float())
        assert float(found[f"box_{number}"]) == pytest.approx(
            10 * stage["weight"] * total / len(boxes), rel=1e-4
        )
        bce = F.binary_cross_entropy_with_logits(torch.stack(masks), torch.stack(wanted_masks))
        assert float(found[f"mask_{number}"]) == pytest.approx(float(stage["weight"] * bce), rel=1e-3)
        # Objects' regions follow their own class, background the class predicted; the objects' own boxes stay behind.
        follow = torch.where(labels == 3, logits[:, :3].argmax(1), labels)
        moved = [
            decoded(deltas[row : row + 1, 4 * label : 4 * label + 4], boxes[row : row + 1], stage["stds"])[0]
            for row, label in enumerate(follow.tolist())
        ]
        boxes = torch.stack(moved)[2:].detach().clamp(min=0).minimum(edges)
        boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


@torch.no_grad()
def test_losses_of_proposals_by_hand() -> None:
    """Everything sampled: each anchor inside the picture against the table of overlaps."""
    head = cascade(rpn={"samples": 100_000, "positive_part": 1.0})
    outputs = head.outputs(features())
    found = head.rpn_head.losses(outputs["scores"], outputs["deltas"], two_targets(), SIZES_B2)
    classes, off, number = 0.0, 0.0, 0
    for picture, (true, (height, width)) in enumerate(zip(two_targets(), SIZES_B2.tolist(), strict=True)):
        for level, stride in enumerate((4, 8, 16, 32, 64)):
            score, delta = outputs["scores"][level][picture], outputs["deltas"][level][picture]
            for row in range(score.shape[1]):
                for column in range(score.shape[2]):
                    for kind, ratio in enumerate((0.5, 1.0, 2.0)):
                        h, w = stride * 8 * ratio**0.5, stride * 8 / ratio**0.5
                        x, y = column * stride, row * stride
                        box = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])
                        if box.min() < 0 or box[0, 2] >= width or box[0, 3] >= height:
                            continue
                        best, which = box_iou(box, true["boxes"])[0].max(0)
                        if 0.3 <= best < 0.7:
                            continue
                        is_object = best >= 0.7
                        classes += float(
                            F.softplus(-score[kind, row, column] if is_object else score[kind, row, column])
                        )
                        number += 1
                        if is_object:
                            g = true["boxes"][which]
                            goal = torch.tensor(
                                [
                                    ((g[0] + g[2]) / 2 - x) / w,
                                    ((g[1] + g[3]) / 2 - y) / h,
                                    ((g[2] - g[0]) / w).log(),
                                    ((g[3] - g[1]) / h).log(),
                                ]
                            )
                            error = (delta[4 * kind : 4 * kind + 4, row, column] - goal).abs()
                            small = 0.5 * error**2 * 9
                            off += float(torch.where(error < 1 / 9, small, error - 0.5 / 9).sum())
    # Anchors that overlap an object most count from 0.3 on: added by the settings' `least`, tested by itself.
    strict = cascade(rpn={"samples": 100_000, "positive_part": 1.0, "least": 1.0})
    found = strict.rpn_head.losses(outputs["scores"], outputs["deltas"], two_targets(), SIZES_B2)
    assert float(found["rpn_class"]) == pytest.approx(classes / number, rel=1e-4)
    assert float(found["rpn_box"]) == pytest.approx(off / number, rel=1e-3, abs=1e-7)


@torch.no_grad()
def test_proposals_by_hand() -> None:
    """Per level the best, decoded and cut off, thinned out within the level; then the best of all."""
    head = cascade(rpn={"before": [2000, 40], "after": [2000, 60]}).eval()
    outputs = head.outputs(features())
    outputs["deltas"] = [0.3 * torch.randn_like(x) for x in outputs["deltas"]]
    found, there = head.rpn_head.proposals(outputs["scores"], outputs["deltas"], SIZES_B2, False)
    for picture, (height, width) in enumerate(SIZES_B2.tolist()):
        kept: list[tuple[float, Tensor]] = []
        for level, stride in enumerate((4, 8, 16, 32, 64)):
            score, delta = outputs["scores"][level][picture], outputs["deltas"][level][picture]
            rows = []
            for kind, ratio in enumerate((0.5, 1.0, 2.0)):
                for row in range(score.shape[1]):
                    for column in range(score.shape[2]):
                        h, w = stride * 8 * ratio**0.5, stride * 8 / ratio**0.5
                        x, y = column * stride, row * stride
                        box = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])
                        moved = decoded(delta[4 * kind : 4 * kind + 4, row, column][None], box, (1, 1, 1, 1))[
                            0
                        ]
                        rows.append((float(score[kind, row, column]), moved))
            rows = sorted(rows, key=lambda pair: -pair[0])[:40]
            edges = torch.tensor([width, height, width, height])
            cut = [(value, box.clamp(min=0).minimum(edges)) for value, box in rows]
            cut = [(value, box) for value, box in cut if box[2] > box[0] and box[3] > box[1]]
            left = nms(torch.stack([box for _, box in cut]), torch.tensor([value for value, _ in cut]), 0.7)
            kept += [cut[place] for place in left.tolist()]
        wanted = torch.stack([box for _, box in sorted(kept, key=lambda pair: -pair[0])[:60]])
        assert torch.allclose(found[picture][there[picture]], wanted, atol=1e-3)


# -- FCOS by hand ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_places_are_assigned_by_hand() -> None:
    head = fcos()
    outputs = head.outputs(features())
    points, strides = head.places(outputs)
    boxes = torch.tensor([[10.0, 10, 40, 50], [12, 20, 36, 36], [0, 0, 96, 128], [60, 60, 66, 66]])
    found = head.assigned(points, strides, boxes)
    for (x, y), stride, place in zip(points.tolist(), strides.tolist(), found.tolist(), strict=True):
        its = []
        for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * stride
            low, high = (0 if stride == 4 else 4 * stride), (float("inf") if stride == 64 else 8 * stride)
            if min(sides) > 0 and near and low < max(sides) <= high:
                its.append(((x2 - x1) * (y2 - y1), number))
        assert place == (min(its)[1] if its else -1)
    assert set(found.tolist()) == {-1, 0, 1, 2, 3}
    assert strides.unique().tolist() == [4, 8, 16, 32, 64]


@torch.no_grad()
def test_losses_of_fcos_by_hand() -> None:
    head = fcos()
    outputs = head.outputs(features())
    found = {
        name: float(loss.detach()) for name, loss in head.losses(outputs, two_targets(), SIZES_B2).items()
    }
    points, strides = head.places(outputs)
    focal, off, weights, centre, number = 0.0, 0.0, 0.0, 0.0, 0
    for picture, true in enumerate(two_targets()):
        which = head.assigned(points, strides, true["boxes"])
        logits, sides, centres = (
            torch.cat([x[picture].flatten(1).T for x in outputs[name]])
            for name in ("classes", "sides", "centreness")
        )
        for place in range(len(points)):
            its = int(which[place])
            for label in range(3):
                p = float(logits[place, label].sigmoid())
                if its >= 0 and int(true["labels"][its]) == label:
                    focal += -0.25 * (1 - p) ** 2 * torch.tensor(p).log().item()
                else:
                    focal += -0.75 * p**2 * torch.tensor(1 - p).log().item()
            if its < 0:
                continue
            number += 1
            x, y = points[place].tolist()
            left, top, right, bottom = (sides[place] * strides[place]).tolist()
            box, goal = (x - left, y - top, x + right, y + bottom), true["boxes"][its].tolist()
            a, b, c, d = x - goal[0], y - goal[1], goal[2] - x, goal[3] - y
            share = (min(a, c) / max(a, c) * min(b, d) / max(b, d)) ** 0.5
            assert share == pytest.approx(
                float(true_centreness(points[place][None], true["boxes"][its][None])), rel=1e-4
            )
            inter = max(min(box[2], goal[2]) - max(box[0], goal[0]), 0) * max(
                min(box[3], goal[3]) - max(box[1], goal[1]), 0
            )
            union = (box[2] - box[0]) * (box[3] - box[1]) + (goal[2] - goal[0]) * (goal[3] - goal[1]) - inter
            hull = (max(box[2], goal[2]) - min(box[0], goal[0])) * (
                max(box[3], goal[3]) - min(box[1], goal[1])
            )
            off += share * (1 - inter / union + (hull - union) / hull)
            weights += share
            centre += float(F.binary_cross_entropy_with_logits(centres[place, 0], torch.tensor(share)))
    assert found["class"] == pytest.approx(focal / number, rel=1e-3)
    assert found["box"] == pytest.approx(off / weights, rel=1e-3)
    assert found["centreness"] == pytest.approx(centre / number, rel=1e-3)


@torch.no_grad()
def test_a_perfect_fcos_finds_its_objects() -> None:
    head = fcos(test={"score": 0.3}).eval()
    outputs = head.outputs([x[:1] for x in features()])
    true = two_targets()[0]
    points, strides = head.places(outputs)
    which = head.assigned(points, strides, true["boxes"])
    at = 0
    for level, x in enumerate(outputs["classes"]):
        count, shape = x[0, 0].numel(), x.shape[-2:]
        place = slice(at, at + count)
        at += count
        its = which[place]
        goal = true["boxes"][its.clamp(min=0)]
        sides = (
            torch.cat([points[place] - goal[:, :2], goal[:, 2:] - points[place]], 1) / strides[place][:, None]
        )
        outputs["sides"][level] = sides.clamp(min=0).T.reshape(1, 4, *shape)
        hot = F.one_hot(true["labels"][its.clamp(min=0)], 3) * (its >= 0)[:, None]
        outputs["classes"][level] = (20.0 * hot - 10).T.reshape(1, 3, *shape)
        outputs["centreness"][level] = torch.logit(true_centreness(points[place], goal), 1e-6).reshape(
            1, 1, *shape
        )
    found = head.detect(outputs, SIZES_B2[:1])[0]
    rows = found[found[:, 4] > 0]
    assert {int(label) for label in rows[:, 5]} == {0, 2}
    best = {int(row[5]): row[:4] for row in reversed(rows)}
    for box, label in zip(true["boxes"], true["labels"].tolist(), strict=True):
        assert torch.allclose(best[label], box, atol=1e-3)


# -- official names ----------------------------------------------------------------------------------------------


def official_names(stages: int = 3) -> set[str]:
    """As mmdetection 2.28 calls them."""
    both = ("weight", "bias")
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {
        f"neck.{kind}.{i}.conv.{key}"
        for kind in ("lateral_convs", "fpn_convs")
        for i in range(4)
        for key in both
    }
    names |= {f"rpn_head.{part}.{key}" for part in ("rpn_conv", "rpn_cls", "rpn_reg") for key in both}
    for i in range(stages):
        box, mask = f"roi_head.bbox_head.{i}", f"roi_head.mask_head.{i}"
        names |= {f"{box}.shared_convs.{m}.conv.weight" for m in range(4)}
        names |= {f"{box}.shared_convs.{m}.bn.{key}" for m in range(4) for key in norm}
        names |= {f"{box}.{part}.{key}" for part in ("shared_fcs.0", "fc_cls", "fc_reg") for key in both}
        names |= {f"{mask}.convs.{m}.conv.{key}" for m in range(4) for key in both}
        names |= {f"{mask}.{part}.{key}" for part in ("upsample", "conv_logits") for key in both}
    return names


def test_names_and_shapes_are_the_official_ones() -> None:
    with torch.device("meta"):
        head = TwoStageHead(SIZES["unireplknet_t"][1], STRIDES, 80, True, stages=CASCADE)
    state = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert set(state) == official_names()
    assert state["neck.lateral_convs.3.conv.weight"] == (256, 640, 1, 1)
    assert state["rpn_head.rpn_cls.weight"] == (3, 256, 1, 1)
    assert state["rpn_head.rpn_reg.weight"] == (12, 256, 1, 1)
    assert state["roi_head.bbox_head.2.shared_fcs.0.weight"] == (1024, 256 * 49)
    assert state["roi_head.bbox_head.0.fc_cls.weight"] == (81, 1024), "the background is the last"
    assert state["roi_head.bbox_head.0.fc_reg.weight"] == (320, 1024)
    assert state["roi_head.mask_head.1.upsample.weight"] == (256, 256, 2, 2)
    assert state["roi_head.mask_head.1.conv_logits.weight"] == (80, 256, 1, 1)


def test_an_official_head_is_taken_whole_or_refused() -> None:
    source = cascade(with_masks=True)
    given = {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in source.state_dict().items()
    }
    whole = cascade(with_masks=True)
    assert whole.load_official({**given, "head.weight": torch.zeros(1)})
    assert all(value.equal(given[name]) for name, value in whole.state_dict().items())
    assert not whole.load_official({"head.weight": torch.zeros(1)}), "a classifier's checkpoint"
    # Without masks theirs are left out; with other classes the layers of classes.
    assert cascade().load_official(given)
    other = cascade(with_masks=True, classes=5)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert not other.load_official(given)
    for name, value in other.state_dict().items():
        kept = any(part in name for part in ("fc_cls", "fc_reg", "conv_logits"))
        assert value.equal(before[name] if kept else given[name]), name
    for wrong in (
        {name: value for name, value in given.items() if name != "neck.fpn_convs.1.conv.bias"},
        {name: value for name, value in given.items() if name != "roi_head.bbox_head.1.fc_cls.bias"},
        {**given, "roi_head.bbox_head.3.fc_cls.bias": torch.zeros(4)},
        cascade(with_masks=True, channels=8).state_dict(),
        cascade(with_masks=True, stages=CASCADE[:1]).state_dict(),
    ):
        with pytest.raises(CheckpointError, match="head is another than this"):
            whole.load_official(wrong)


def test_heads_learn_as_the_last_layer() -> None:
    depths, dims = SIZES["unireplknet_s"]
    with torch.device("meta"):
        backbone = UniRepLKNet(3, depths=depths, dims=dims, feature_norms=True)
        head = TwoStageHead(dims, STRIDES, 3, stages=CASCADE)
        layers = Network(nn.Identity(), backbone, head).parameter_layers()
    assert {layer for name, layer in layers.items() if name.startswith("head.")} == {13}
    assert max(layers.values()) == 13


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masks": "true"}, "needs data with masks, and these have none"),
        ({"masks": "some"}, "masks takes auto, true, false"),
        ({"stages": ()}, "at least one of stages"),
        ({"stages": [{"iou": 0}]}, "iou lies in"),
        ({"rpn": {"positive": 0.2}}, "0 < negative <= positive"),
        ({"rpn": {"before": [1000]}}, "before and after take two numbers"),
        ({"rpn": {"ratios": []}}, "scale and ratios of anchors"),
        ({"box": {"loss": "iou"}}, "loss takes giou or smooth_l1"),
        ({"box": {"linears": 0}}, "linears and width are at least 1"),
        ({"mask": {"size": 0}}, "size is at least 1"),
        ({"test": {"score": 1.0}}, "score lies in"),
        ({"test": {"most": 10, "candidates": 5}}, "candidates are not fewer"),
        ({"classes": 0}, "at least one class"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cascade(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 12}, "a multiple of 8"),
        ({"first": 4}, "first is from 0 to 3"),
        ({"radius": 0}, "radius above 0"),
    ],
)
def test_settings_of_fcos_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fcos(**settings)


def test_a_later_first_stage_reads_fewer_levels() -> None:
    head = fcos(first=1)
    outputs = head.outputs(features())
    assert [x.shape[-2:] for x in outputs["classes"]] == [(16, 12), (8, 6), (4, 3), (2, 2)]
    assert head.places(outputs)[1].unique().tolist() == [8, 16, 32, 64]
    assert head.sizes(features()[0], None).tolist() == [[128, 96]] * 2
