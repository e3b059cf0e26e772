"""Training transforms of pictures with boxes: what belongs to a picture moves with it, sizes are the official ones."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from tasks.datasets.errors import DataError
from tasks.datasets.image.box_transforms import (
    DetectionTransforms,
    RandomShortSide,
    RandomSizeCrop,
    ScaleJitter,
    join_padded,
    visible,
    wrapped,
)
from tasks.datasets.seeding import seeded_by

Target = dict[str, Tensor]


def labelled(height: int = 90, width: int = 120) -> tuple[tv_tensors.Image, Target]:
    """Three bright rectangles, each of its own brightness, with their boxes and masks."""
    boxes = torch.tensor([[10.0, 10, 40, 30], [60, 20, 110, 80], [5, 60, 25, 85]])
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    masks = torch.zeros(3, height, width, dtype=torch.bool)
    for k, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        pixels[:, y1:y2, x1:x2] = 80 * (k + 1)
        masks[k, y1:y2, x1:x2] = True
    target = {
        "boxes": boxes,
        "labels": torch.arange(3),
        "crowd": torch.tensor([False, True, False]),
        "masks": masks,
    }
    return tv_tensors.Image(pixels), wrapped(target, height, width)


def nothing(height: int = 90, width: int = 120) -> tuple[tv_tensors.Image, Target]:
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "crowd": torch.zeros(0, dtype=torch.bool),
        "masks": torch.zeros(0, height, width, dtype=torch.bool),
    }
    return tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8)), wrapped(target, height, width)


def drawn(transforms: DetectionTransforms, seed: int, given: Any = None) -> tuple[Tensor, Target]:
    pipeline = transforms.for_training()
    with seeded_by(np.random.default_rng(seed)):
        pixels, target = pipeline(*(given or labelled()))
    height, width = pixels.shape[-2:]
    return pixels.as_subclass(Tensor), visible(target, height, width, transforms.min_side)


SMALL = {
    "multi-scale": DetectionTransforms(shorts=(60, 80, 100), longest=140, crop_part=0.0),
    "cropped": DetectionTransforms(
        shorts=(60, 80, 100), longest=140, crop_part=1.0, crop_shorts=(70, 100), crop=(40, 70)
    ),
    "jittered": DetectionTransforms(jitter=(0.4, 2.0), size=96),
    "own size": DetectionTransforms(shorts=None, crop_part=0.0),
}


@pytest.mark.parametrize("kind", SMALL)
def test_pixels_boxes_and_masks_move_together(kind: str) -> None:
    mirrored, counts, sizes = set(), set(), set()
    for seed in range(30):
        pixels, target = drawn(SMALL[kind], seed)
        height, width = pixels.shape[-2:]
        sizes.add((height, width))
        counts.add(len(target["labels"]))
        assert target["masks"].shape == (len(target["labels"]), height, width)
        assert target["crowd"].tolist() == [label == 1 for label in target["labels"].tolist()]
        for box, label, mask in zip(target["boxes"], target["labels"].tolist(), target["masks"], strict=True):
            x1, y1, x2, y2 = box.tolist()
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            if min(x2 - x1, y2 - y1) < 6:
                continue
            # Of its own brightness inside, as large as its mask; interpolated at the edges only, where crops are
            # scaled twice.
            inside = pixels[0, round(y1) + 2 : round(y2) - 2, round(x1) + 2 : round(x2) - 2]
            assert (inside == 80 * (label + 1)).float().mean() > 0.9
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            own = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            assert own == pytest.approx([x1, y1, x2, y2], abs=1.01 if kind != "cropped" else 3)
        if len(target["labels"]) == 3:
            mirrored.add(bool(target["boxes"][0, 0] > target["boxes"][1, 0]))
    assert mirrored == {False, True}
    assert (len(counts) > 1) == (kind in ("cropped", "jittered")), "crops lose objects"
    assert (len(sizes) == 1) == (kind == "own size")


@pytest.mark.parametrize("kind", SMALL)
def test_empty_pictures_stay_empty(kind: str) -> None:
    for seed in range(5):
        pixels, target = drawn(SMALL[kind], seed, nothing())
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, *pixels.shape[-2:])


def test_a_seed_decides_everything() -> None:
    transforms = DetectionTransforms(shorts=(60, 80, 100), longest=140, crop=(40, 70), photometric=True)

    def same(seed: int) -> bool:
        (a, one), (b, other) = drawn(transforms, 1), drawn(transforms, seed)
        return a.shape == b.shape and a.equal(b) and all(one[name].equal(other[name]) for name in one)

    assert same(1)
    assert not all(same(seed) for seed in range(2, 6))


def test_sizes_are_the_official_ones() -> None:
    """Half of the pictures at a shorter side of 480 to 800, a longer one up to 1333; half from a crop of 384 to 600."""
    torch.manual_seed(0)
    picture = tv_tensors.Image(torch.zeros(3, 48, 64, dtype=torch.uint8))
    scale = RandomShortSide(range(480, 801, 32), 1333)
    sizes = [scale.make_params([picture])["size"] for _ in range(300)]
    assert {size[0] for size in sizes} == set(range(480, 801, 32))
    assert all(abs(width / height - 4 / 3) < 2e-3 for height, width in sizes)
    wide = tv_tensors.Image(torch.zeros(3, 40, 120, dtype=torch.uint8))
    assert max(scale.make_params([wide])["size"][1] for _ in range(100)) == 1333
    large = tv_tensors.Image(torch.zeros(3, 500, 700, dtype=torch.uint8))
    boxes = torch.tensor([RandomSizeCrop(384, 600).make_params([large])["box"] for _ in range(2000)])
    top, left, height, width = boxes.unbind(1)
    assert (int(height.min()), int(height.max())) == (384, 500)
    assert (int(width.min()), int(width.max())) == (384, 600)
    assert int((top + height).max()) == 500
    assert int((left + width).max()) == 700
    assert float(width.float().mean()) == pytest.approx(492, abs=6)
    small = tv_tensors.Image(torch.zeros(3, 30, 400, dtype=torch.uint8))
    assert RandomSizeCrop(384, 600).make_params([small])["box"][2] == 30
    assert DetectionTransforms() == DetectionTransforms(
        shorts=tuple(range(480, 801, 32)),
        longest=1333,
        crop_part=0.5,
        crop_shorts=(400, 500, 600),
        crop=(384, 600),
    )


def test_a_crop_comes_before_half_of_the_scales() -> None:
    transforms = DetectionTransforms(shorts=(64,), longest=1000, crop_shorts=(90,), crop=(30, 30), hflip=0.0)
    shapes = [tuple(drawn(transforms, seed)[0].shape[-2:]) for seed in range(200)]
    assert set(shapes) == {(64, 85), (64, 64)}
    assert np.mean([shape == (64, 64) for shape in shapes]) == pytest.approx(0.5, abs=0.1)


def test_large_scale_jitter() -> None:
    torch.manual_seed(0)
    picture = tv_tensors.Image(torch.zeros(3, 50, 100, dtype=torch.uint8))
    widths = np.array([ScaleJitter(200, (0.1, 2.0)).make_params([picture])["size"][1] for _ in range(500)])
    assert widths.min() >= 20
    assert widths.max() <= 400
    assert widths.mean() == pytest.approx(210, abs=12)
    shapes = [drawn(SMALL["jittered"], seed)[0].shape[-2:] for seed in range(30)]
    assert max(max(shape) for shape in shapes) == 96


def test_boxes_are_clipped_and_thin_ones_left_out() -> None:
    target = {
        "boxes": torch.tensor([[-5.0, 2, 8, 9], [9.5, 0, 30, 9], [3, 3, 3, 9], [0, 0, 0.5, 9]]),
        "labels": torch.arange(4),
        "crowd": torch.zeros(4, dtype=torch.bool),
    }
    kept = visible(target, 20, 10, 1.0)
    assert kept["boxes"].tolist() == [[0, 2, 8, 9]]
    assert visible(target, 20, 10, 0.0)["labels"].tolist() == [0, 1, 3]


def test_photometric_leaves_boxes_alone() -> None:
    base = DetectionTransforms(shorts=None, crop_part=0.0, hflip=0.0)
    (plain, target), (other, same) = (
        drawn(base, 3),
        drawn(DetectionTransforms(shorts=None, crop_part=0.0, hflip=0.0, photometric=True), 3),
    )
    assert not plain.equal(other)
    assert all(target[name].equal(same[name]) for name in target)


def test_batches_are_filled_up_to_a_multiple_of_32() -> None:
    raws = [
        {"pixels": torch.ones(3, *size, dtype=torch.uint8), "size": torch.tensor(size)}
        for size in ((40, 70), (33, 96))
    ]
    joined = join_padded(raws)
    assert joined["pixels"].shape == (2, 3, 64, 96)
    assert joined["size"].tolist() == [[40, 70], [33, 96]]
    assert joined["pixels"].sum(dim=(1, 2, 3)).tolist() == [3 * 40 * 70, 3 * 33 * 96]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shorts": ()}, "numbers of pixels"),
        ({"shorts": (0,)}, "numbers of pixels"),
        ({"crop": (600, 384)}, "takes two sides"),
        ({"crop_part": 1.5}, r"lie in \[0, 1\]"),
        ({"jitter": (2.0, 0.1)}, "takes two factors"),
        ({"min_side": -1}, "min_side must be at least 0"),
        ({"bits": 7}, "bits lie between 8 and 16"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        DetectionTransforms(**options)
