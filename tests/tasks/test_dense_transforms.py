"""Training transforms: picture and mask move together, what is drawn has the official distribution."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from modalities.image import Pixels
from tasks.datasets.errors import DataError
from tasks.datasets.image.dense_transforms import (
    VOID,
    MixedCrop,
    PhotometricDistortion,
    RandomRescale,
    SegmentationTransforms,
    is_mixed,
    join_masks,
    join_pictures,
)
from tasks.datasets.seeding import seeded_by


def labelled(height: int = 60, width: int = 90) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """A picture whose red channel is its mask: a grid of 6 × 9 classes in large squares."""
    rows, columns = torch.arange(height) * 6 // height, torch.arange(width) * 9 // width
    mask = (rows[:, None] * 9 + columns).to(torch.uint8)
    pixels = torch.stack([mask * 4, torch.zeros_like(mask), mask])
    return tv_tensors.Image(pixels), tv_tensors.Mask(mask)


def test_picture_and_mask_move_together() -> None:
    transforms = SegmentationTransforms(size=32, resize=(120, 80), photometric=False, hflip=0.5)
    pipeline, seen = transforms.for_training(), set()
    for seed in range(20):
        with seeded_by(np.random.default_rng(seed)):
            pixels, mask = pipeline(*labelled())
        assert pixels.shape == (3, *mask.shape)
        assert mask.shape == (32, 32)
        inside = mask[2:-2, 2:-2].long()
        # Interpolated at the edges of the squares only.
        same = (pixels[2, 2:-2, 2:-2].long() - inside).abs() <= 1
        assert same.float().mean() > 0.7
        seen.add(bool(mask[16, 4] > mask[16, -4]))
    assert seen == {True, False}, "mirrored at times, and the mask with it"


def test_a_seed_decides_everything() -> None:
    pipeline = SegmentationTransforms(size=24, resize=None).for_training()

    def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        with seeded_by(np.random.default_rng(seed)):
            pixels, mask = pipeline(*labelled())
        return pixels, mask

    assert all(a.equal(b) for a, b in zip(drawn(1), drawn(1), strict=True))
    assert any(not drawn(1)[0].equal(drawn(seed)[0]) for seed in range(2, 5))


def test_scales_are_the_official_ones() -> None:
    """Of (2048, 512) times U(.5, 2) the largest at which the picture fits, its shape kept."""
    torch.manual_seed(0)
    rescale = RandomRescale((204, 51), (0.5, 2.0))
    heights = [rescale(*labelled())[0].shape[-2:] for _ in range(300)]
    factors = np.array([height / 51 for height, _ in heights])
    assert factors.min() == pytest.approx(0.5, abs=0.03)
    assert factors.max() == pytest.approx(2.0, abs=0.03)
    assert np.mean(factors) == pytest.approx(1.25, abs=0.08)
    assert all(abs(width / height - 1.5) < 0.06 for height, width in heights)


def test_a_crop_is_drawn_anew_until_classes_are_mixed() -> None:
    mask = torch.zeros(40, 400, dtype=torch.uint8)
    mask[:, 380:] = 1  # of places for a crop, few hold both classes
    picture = tv_tensors.Image(torch.zeros(3, 40, 400, dtype=torch.uint8))
    shares = {}
    for most in (1.0, 0.75):
        torch.manual_seed(0)
        crop = MixedCrop((40, 40), most)
        crops = [crop(picture, tv_tensors.Mask(mask))[1] for _ in range(300)]
        shares[most] = np.mean([is_mixed(each, 0.75) for each in crops])
    chance = shares[1.0]
    assert 0.01 < chance < 0.1
    # Ten of 361 places are mixed enough; the first crop and ten more.
    assert shares[0.75] == pytest.approx(1 - (1 - 10 / 361) ** 11, abs=0.07)


def test_mixed_leaves_void_out() -> None:
    assert not is_mixed(torch.full((4, 4), VOID), 0.75)
    assert not is_mixed(torch.tensor([[0] * 15 + [VOID]]), 0.75)
    assert is_mixed(torch.tensor([[0, 0, 1] + [VOID] * 30]), 0.75)
    assert not is_mixed(torch.tensor([[0, 0, 0, 1]]), 0.75), "as large a part is too much"


def test_photometric_distortion() -> None:
    torch.manual_seed(0)
    distort = PhotometricDistortion()
    grey = tv_tensors.Image(torch.full((3, 2, 2), 100, dtype=torch.uint8))
    values = torch.stack([distort(grey, tv_tensors.Mask(torch.zeros(2, 2)))[0][:, 0, 0] for _ in range(600)])
    assert (values.max(1)[0] - values.min(1)[0]).max() <= 1, "grey has no colour to change"
    assert values.min() >= (100 - 32) * 0.5 - 1
    assert values.max() <= (100 + 32) * 1.5 + 1
    assert (values[:, 0] == 100).float().mean() == pytest.approx(0.25, abs=0.06), "each with probability 1/2"
    red = tv_tensors.Image(
        torch.tensor([200, 40, 40], dtype=torch.uint8)[:, None, None].expand(3, 2, 2).contiguous()
    )
    hues = []
    for _ in range(300):
        out = distort(red)
        hue = int(np.asarray(Image.fromarray(out.permute(1, 2, 0).numpy()).convert("HSV"))[0, 0, 0])
        hues.append((hue + 128) % 256 - 128)
    assert max(map(abs, hues)) <= 18 / 180 * 256 + 2
    assert max(map(abs, hues)) > 20
    mask = tv_tensors.Mask(torch.arange(4).view(2, 2))
    assert distort(red, mask)[1].equal(mask)


def test_batches_of_several_sizes() -> None:
    """What fills a picture up is 0 after normalisation, and no class."""
    raws = [
        {"pixels": torch.full((3, *size), 9, dtype=torch.uint8), "size": torch.tensor(size)}
        for size in ((4, 7), (6, 5))
    ]
    batch = join_pictures(raws)
    assert batch["pixels"].shape == (2, 3, 6, 7)
    assert batch["size"].tolist() == [[4, 7], [6, 5]]
    target = join_masks([torch.zeros(4, 7, dtype=torch.uint8), torch.ones(6, 5, dtype=torch.uint8)])
    assert (target == VOID).sum(dim=(1, 2)).tolist() == [14, 12]
    maps = Pixels()(batch)
    assert maps.shape == (2, 1, 3, 6, 7)
    filled = (target == VOID)[:, None, None].expand_as(maps)
    assert (maps[filled] == 0).all()
    assert maps[~filled].equal(Pixels()(batch["pixels"])[~filled])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "are numbers of pixels"),
        ({"resize": [5]}, "are numbers of pixels"),
        ({"ratio": [2.0, 0.5]}, "ratio takes two factors"),
        ({"cat_max_ratio": 0.0}, "cat_max_ratio must lie"),
        ({"bits": 7}, "bits lie between 8 and 16"),
    ],
)
def test_impossible_transforms_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SegmentationTransforms(**options)  # type: ignore[arg-type]
