"""Transforms on the device: each image is changed by draws of its own, with the distribution of the readers' ones."""

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment as timm_ops
from torch import Tensor

from modalities import batched_colours as colours
from modalities.batched_geometry import random_boxes, rotations, shears_and_shifts, shifted_crops, warped
from modalities.batched_rand_augment import OPERATIONS, WARPS, BatchedRandAugment, _strength
from modalities.batched_transforms import (
    BatchedImageTransforms,
    BatchedMaskTransforms,
    are_mixed,
    photometric_distortion,
)
from tasks.bilinear import all_scaled_by, scaled_by
from tasks.datasets.image.dense_transforms import (
    VOID,
    SegmentationTransforms,
    is_mixed,
)
from tasks.task import Augment

SIZE = (29, 33)
POLICY = "rand-m9-mstd0.5-inc1"


@pytest.fixture
def image() -> Image.Image:
    """A smooth image, so that interpolation is nearly exact."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(SIZE[::-1], Image.Resampling.BICUBIC)


def batch_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda x: colours.brightness(x, torch.tensor([1.7])),
            lambda i: ImageEnhance.Brightness(i).enhance(1.7),
        ),
        (lambda x: colours.contrast(x, torch.tensor([0.4])), lambda i: ImageEnhance.Contrast(i).enhance(0.4)),
        (lambda x: colours.saturation(x, torch.tensor([1.7])), lambda i: ImageEnhance.Color(i).enhance(1.7)),
        (
            lambda x: colours.sharpness(x, torch.tensor([1.7])),
            lambda i: ImageEnhance.Sharpness(i).enhance(1.7),
        ),
        (lambda x: colours.posterize(x, torch.tensor([3.0])), lambda i: ImageOps.posterize(i, 3)),
        (lambda x: colours.solarize(x, torch.tensor([100.0])), lambda i: ImageOps.solarize(i, 100)),
        (lambda x: colours.solarize_add(x, torch.tensor([60.0])), lambda i: timm_ops.solarize_add(i, 60)),
    ],
)
def test_colours_are_pillows(image: Image.Image, ours, theirs) -> None:  # type: ignore[no-untyped-def]
    difference = (ours(batch_of(image)) - batch_of(theirs(image))).abs()
    assert difference.max() < 2.5, "Pillow rounds and truncates"


@pytest.mark.parametrize(
    ("matrix", "theirs"),
    [
        (rotations(torch.tensor([20.0]), SIZE), lambda i, **k: timm_ops.rotate(i, 20, **k)),
        (
            shears_and_shifts(torch.tensor([[0.2, 0.0]]), torch.zeros(1, 2)),
            lambda i, **k: timm_ops.shear_x(i, 0.2, **k),
        ),
        (
            shears_and_shifts(torch.tensor([[0.0, 0.2]]), torch.zeros(1, 2)),
            lambda i, **k: timm_ops.shear_y(i, 0.2, **k),
        ),
        (
            shears_and_shifts(torch.zeros(1, 2), torch.tensor([[0.2 * 33, 0.0]])),
            lambda i, **k: timm_ops.translate_x_rel(i, 0.2, **k),
        ),
        (
            shears_and_shifts(torch.zeros(1, 2), torch.tensor([[0.0, 0.2 * 29]])),
            lambda i, **k: timm_ops.translate_y_rel(i, 0.2, **k),
        ),
    ],
)
def test_warps_are_timms(image: Image.Image, matrix: Tensor, theirs) -> None:  # type: ignore[no-untyped-def]
    ours = warped(batch_of(image), matrix, SIZE, "bilinear", "zeros")
    other = batch_of(theirs(image, resample=Image.Resampling.BILINEAR, fillcolor=(0, 0, 0)))
    inside = (
        warped(torch.ones(1, 1, *SIZE), matrix, SIZE, "bilinear", "zeros") > 0.999
    )  # edges are blended elsewhere
    assert inside.float().mean() > 0.5
    assert ((ours - other).abs() * inside).max() < 2.5


@pytest.mark.parametrize(
    "name", [name for name in BatchedRandAugment(POLICY, (0.5,) * 3).names if name not in WARPS]
)
def test_strengths_are_timms(name: str) -> None:
    if name in ("AutoContrast", "Equalize", "Invert"):
        assert name in OPERATIONS
        return
    level = 9.0
    (theirs,) = timm_ops.LEVEL_TO_ARG[name](level, {})
    either = [
        float(_strength(name, torch.tensor([level / 10]), torch.tensor([s * level / 10]))) for s in (1, -1)
    ]
    assert any(value == pytest.approx(float(theirs), abs=1e-6) for value in either)


def test_each_image_has_operations_of_its_own(image: Image.Image) -> None:
    torch.manual_seed(0)
    x_B3HW = batch_of(image).expand(64, -1, -1, -1)
    changed = BatchedRandAugment(POLICY, (0.5, 0.5, 0.5))(x_B3HW)
    assert changed.shape == x_B3HW.shape
    assert changed.min() >= -1e-3
    assert changed.max() <= 255.001
    same = [torch.allclose(one, x_B3HW[0], atol=1e-3) for one in changed]
    # Two operations, each applied with probability 1/2; a few of those applied change nothing here.
    assert 6 <= sum(same) <= 30
    assert len({round(float(one.mean()), 2) for one in changed}) > 30


def test_policies_without_a_batched_form_are_refused() -> None:
    with pytest.raises(ValueError, match="has no batched form"):
        BatchedRandAugment("rand-m9-t3a", (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="rand-"):
        BatchedRandAugment("original-mstd0.5", (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="timm knows no such"):
        BatchedRandAugment("rand-what9", (0.5, 0.5, 0.5))


def test_padded_crops_are_shifts_by_whole_pixels() -> None:
    torch.manual_seed(0)
    x_B3HW = torch.arange(1.0, 1 + 3 * 8 * 8).view(1, 3, 8, 8).expand(200, -1, -1, -1)
    padded = torch.nn.functional.pad(x_B3HW[0], [2] * 4)
    crops = {(r, c): padded[:, r : r + 8, c : c + 8] for r in range(5) for c in range(5)}
    found = set()
    for one in shifted_crops(x_B3HW, 2):
        places = [place for place, crop in crops.items() if one.equal(crop)]
        assert len(places) == 1
        found.update(places)
    assert len(found) == 25, "each of the 5 × 5 shifts"


def test_boxes_are_torchvisions() -> None:
    torch.manual_seed(0)
    left, top, right, bottom = random_boxes(
        4000, (60, 90), (0.08, 1.0), (0.75, 4 / 3), torch.device("cpu")
    ).unbind(1)
    assert min(left.min(), top.min()) >= 0
    assert right.max() <= 90
    assert bottom.max() <= 60
    from torchvision.transforms.v2 import RandomResizedCrop

    crop = RandomResizedCrop(8, scale=(0.08, 1.0), ratio=(0.75, 4 / 3))
    theirs = [crop.make_params([torch.zeros(3, 60, 90)]) for _ in range(4000)]
    for ours, key in ((bottom - top, "height"), (right - left, "width"), (left, "left"), (top, "top")):
        values = torch.tensor([float(one[key]) for one in theirs])
        assert float(ours.mean()) == pytest.approx(float(values.mean()), rel=0.06)
        assert float(ours.std()) == pytest.approx(float(values.std()), rel=0.08)


def test_a_resized_crop_shows_a_part_larger() -> None:
    torch.manual_seed(0)
    rows = torch.arange(32.0)[:, None].expand(32, 32)
    raw = rows.expand(16, 3, -1, -1).to(torch.uint8)
    transforms = BatchedImageTransforms(crop="resized", scale=(0.1, 0.3), hflip=0.0, interpolation="bilinear")
    out, target = transforms(raw, torch.arange(16))
    assert target.equal(torch.arange(16))
    spans = out[:, 0, -1, 0] - out[:, 0, 0, 0]
    assert spans.max() < 24
    assert spans.min() > 4
    assert len(spans.unique()) > 8


@pytest.mark.parametrize(("settings", "axis"), [({"hflip": 1.0}, -1), ({"hflip": 0.0, "vflip": 1.0}, -2)])
def test_flips(settings: dict[str, float], axis: int) -> None:
    raw = torch.randint(256, (4, 3, 6, 6), dtype=torch.uint8)
    assert BatchedImageTransforms(crop="whole", **settings)(raw, None)[0].equal(raw.float().flip(axis))


def test_color_jitter_stays_within_its_strength() -> None:
    torch.manual_seed(0)
    raw = torch.full((300, 3, 4, 4), 100, dtype=torch.uint8)
    out, _ = BatchedImageTransforms(crop="whole", hflip=0.0, color_jitter=0.4)(raw, None)
    values = out[:, 0, 0, 0]
    assert values.min() == pytest.approx(60, abs=1)
    assert values.max() == pytest.approx(140, abs=1)


# -- masks ---------------------------------------------------------------------------------------------------------


def labelled(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image whose red channel is its mask: a grid of 6 × 9 classes in large squares."""
    rows, columns = torch.arange(height) * 6 // height, torch.arange(width) * 9 // width
    mask = (rows[:, None] * 9 + columns).to(torch.uint8)
    return torch.stack([mask * 4, torch.zeros_like(mask), mask]), mask


def batch_of_two() -> tuple[dict[str, Tensor], Tensor]:
    """Images of 60 × 90 and 40 × 60 pixels, padded to one size."""
    pixels = torch.zeros(2, 3, 60, 90, dtype=torch.uint8)
    target = torch.full((2, 60, 90), VOID, dtype=torch.uint8)
    for place, (height, width) in enumerate(((60, 90), (40, 60))):
        pixels[place, :, :height, :width], target[place, :height, :width] = labelled(height, width)
    return {"pixels": pixels, "size": torch.tensor([[60, 90], [40, 60]])}, target


def test_image_and_mask_move_together() -> None:
    transforms = SegmentationTransforms(
        size=32, resize=(120, 80), photometric=False, batched=True
    ).for_device()
    assert isinstance(transforms, BatchedMaskTransforms)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        raw, mask = transforms(*batch_of_two())
        assert raw["pixels"].shape == (2, 3, 32, 32)
        assert mask.shape == (2, 32, 32)
        assert mask.dtype == torch.uint8
        assert raw["size"].tolist() == [[32, 32]] * 2
        inner = mask[:, 2:-2, 2:-2].long()
        same = (raw["pixels"][:, 2, 2:-2, 2:-2].round().long() - inner).abs() <= 1
        assert same.float().mean() > 0.7
        seen |= {bool(one[16, 4] > one[16, -4]) for one in mask}
    assert seen == {True, False}, "mirrored at times, and the mask with it"


def test_the_scaled_image_is_torchvisions() -> None:
    """Without random choices the result is that of the reader's resizing."""
    whole = (90, 135)  # scaled
    settings = {"size": whole, "resize": (90, 60), "ratio": (1.5, 1.5), "hflip": 0.0, "photometric": False}
    transforms = SegmentationTransforms(**settings, cat_max_ratio=1.0, batched=True).for_device()
    assert transforms is not None
    pixels, mask = labelled(60, 90)
    raw, out = transforms({"pixels": pixels[None], "size": torch.tensor([[60, 90]])}, mask[None])
    from torchvision.transforms.v2 import functional as V

    theirs = V.resize(pixels, [90, 135], antialias=False).float()
    assert (raw["pixels"][0] - theirs).abs().max() < 1
    assert (
        out[0] == V.resize(mask[None], [90, 135], V.InterpolationMode.NEAREST_EXACT)[0]
    ).float().mean() > 0.99


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=4),
    limits=st.none() | st.tuples(st.integers(1, 2048), st.integers(1, 2048)),
    factor=st.floats(0.125, 3.0, width=32),
)
def test_sizes_after_scaling_are_those_of_the_reader(
    sizes: list[tuple[int, int]], limits: tuple[int, int] | None, factor: float
) -> None:
    ours = all_scaled_by(torch.tensor(sizes), limits, torch.full((len(sizes),), factor))
    assert ours.tolist() == [list(scaled_by(*size, limits, factor)) for size in sizes]


def test_what_lies_outside_is_void() -> None:
    """An image smaller than the crop is at the top left, mirrored or not."""
    transforms = SegmentationTransforms(
        size=64, resize=None, ratio=(0.5, 0.5), hflip=1.0, batched=True
    ).for_device()
    assert transforms is not None
    raw, mask = transforms(*batch_of_two())
    assert raw["size"].tolist() == [[30, 45], [20, 30]]
    for place, (height, width) in enumerate(((30, 45), (20, 30))):
        assert (mask[place, :height, :width] != VOID).all()
        assert (mask[place, height:] == VOID).all()
        assert (mask[place, :, width:] == VOID).all()
        assert (raw["pixels"][place, :, height:] == 0).all()
        assert mask[place, 0, 0] > mask[place, 0, width - 1], "mirrored"


def test_crops_are_drawn_again_until_classes_are_mixed() -> None:
    mask = torch.zeros(300, 40, 400, dtype=torch.uint8)
    mask[:, :, 380:] = 1
    raw = {"pixels": torch.zeros(300, 3, 40, 400, dtype=torch.uint8), "size": torch.tensor([[40, 400]] * 300)}
    shares = {}
    for most in (1.0, 0.75):
        torch.manual_seed(0)
        settings = SegmentationTransforms(
            size=40, resize=None, ratio=(1, 1), cat_max_ratio=most, photometric=False, batched=True
        )
        transforms = settings.for_device()
        assert transforms is not None
        shares[most] = float(are_mixed(transforms(raw, mask)[1], 0.75, VOID).float().mean())
    assert 0.01 < shares[1.0] < 0.1
    assert shares[0.75] == pytest.approx(1 - (1 - 10 / 361) ** 11, abs=0.07)


def test_mixed_is_that_of_the_reader() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(4, (60, 3, 3), generator=generator).pow(2).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < 0.3] = VOID
    ours = are_mixed(masks, 0.5, VOID).tolist()
    assert ours == [is_mixed(mask, 0.5) for mask in masks]
    assert set(ours) == {True, False}


@pytest.mark.parametrize("masks", [False, True])
def test_transforms_are_not_rounded_under_autocast(masks: bool) -> None:
    """bf16 has 8 bits: positions would be off by whole pixels."""
    augment = Augment()
    if masks:
        augment.transforms = SegmentationTransforms(size=32, resize=(120, 80), batched=True).for_device()
    else:
        augment.transforms = BatchedImageTransforms("resized", auto_augment=POLICY)
    raw, target = batch_of_two()
    results = []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            results.append(augment.transformed(raw if masks else raw["pixels"].repeat(8, 1, 1, 1), target))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_photometric_distortion() -> None:
    torch.manual_seed(0)
    values = photometric_distortion(torch.full((900, 3, 1, 1), 100.0))[:, :, 0, 0]
    assert (values.max(1)[0] - values.min(1)[0]).max() < 0.01, "grey has no colour to change"
    assert values.min() >= (100 - 32) * 0.5 - 0.01
    assert values.max() <= (100 + 32) * 1.5 + 0.01
    same = (values[:, 0] - 100).abs() < 0.01
    assert same.float().mean() == pytest.approx(0.25, abs=0.05), "each with probability 1/2"
    red = torch.tensor([200.0, 40.0, 40.0]).view(1, 3, 1, 1).expand(600, -1, -1, -1)
    hues = [colorsys.rgb_to_hsv(*(one / 255).tolist())[0] for one in photometric_distortion(red)[:, :, 0, 0]]
    turned = [(hue + 0.5) % 1 - 0.5 for hue in hues]
    assert max(map(abs, turned)) <= 18 / 180 + 1e-4
    assert max(map(abs, turned)) > 0.08
