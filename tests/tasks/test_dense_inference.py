"""Reading whole pictures: padding, windows, several scales and mirroring, beside independent computations."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.dense_inference import DenseInference, starts

K = 3


def network(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores at a stride of 4 that depend on place and neighbours; the sides must be multiples of 32."""
    assert all(side % 32 == 0 for side in pixels.shape[-2:])
    row = torch.arange(pixels.shape[-2])[:, None] < size[0]
    inside = row & (torch.arange(pixels.shape[-1]) < size[1])
    x = F.avg_pool2d((pixels.float() / 255 - 0.5) * inside, 4)
    ramp = torch.linspace(0, 1, x.shape[-1]) * torch.linspace(0, 1, x.shape[-2])[:, None]
    return x + x.roll(1, -1) * ramp


def pictures(height: int, width: int, batch: int = 2) -> Tensor:
    torch.manual_seed(height * 1000 + width)
    return torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)


def up(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def test_a_picture_is_padded_to_multiples_and_cut_again() -> None:
    x = pictures(40, 70)
    filled = F.pad(x.float(), (0, 26, 0, 24))
    wanted = up(network(filled, (40, 70)), (64, 96))[..., :40, :70]
    assert torch.allclose(DenseInference()(network, x), wanted)


def test_the_official_way_scales_to_multiples() -> None:
    """Keep the ratio within (2048, 512), then both sides up to multiples of 32; logits up to the picture's own size."""
    x = pictures(50, 80)
    read = DenseInference(resize=(256, 64), fit="resize")(network, x)
    scaled = up(x.float(), (64, 128))  # 64 × 102.4 -> 64 × 102 -> 64 × 128
    assert torch.allclose(read, up(up(network(scaled, (64, 128)), (64, 128)), (50, 80)), atol=1e-6)


@pytest.mark.parametrize("size", [(96, 96), (100, 130), (64, 200), (50, 40)])
def test_windows_by_hand(size: tuple[int, int]) -> None:
    """Every pixel's score is the mean of those of all windows that hold it, written out pixel by pixel."""
    x = pictures(*size, batch=1)
    read = DenseInference(mode="slide", crop=64, stride=42)(network, x)[0].numpy()
    # mmsegmentation's grid.
    grids = [max(side - 64 + 42 - 1, 0) // 42 + 1 for side in size]
    total, count = np.zeros((K, *size)), np.zeros(size)
    for i, j in itertools.product(*map(range, grids)):
        bottom, right = min(i * 42 + 64, size[0]), min(j * 42 + 64, size[1])
        top, left = max(bottom - 64, 0), max(right - 64, 0)
        window = x[..., top:bottom, left:right].float()
        height, width = window.shape[-2:]
        filled = torch.zeros(1, 3, 64, 64)
        filled[..., :height, :width] = window
        found = up(network(filled, (height, width)), (64, 64))[0, :, :height, :width].numpy()
        for y, z in itertools.product(range(height), range(width)):
            total[:, top + y, left + z] += found[:, y, z]
            count[top + y, left + z] += 1
    assert (count > 0).all()
    np.testing.assert_allclose(read, total / count, atol=1e-5)


def test_windows_go_on_by_two_thirds() -> None:
    assert DenseInference(crop=640).strides == (426, 426)
    assert DenseInference(crop=[512, 1024]).strides == (341, 682)
    assert DenseInference(crop=[512, 1024], stride=100).strides == (100, 100)


def test_windows_cover_every_place_once_at_least() -> None:
    for length, crop, stride in itertools.product(range(1, 40), (1, 5, 12), (1, 4, 5, 12)):
        if stride > crop:
            continue
        begun = starts(length, crop, stride)
        covered = {place for start in begun for place in range(start, min(start + crop, length))}
        assert covered == set(range(length))
        assert begun[-1] == max(length - crop, 0)
        assert len(set(begun)) == len(begun)


def test_several_scales_and_mirroring_average_probabilities() -> None:
    x = pictures(60, 90)
    read = DenseInference(ratios=(0.5, 1.0, 1.5), flip=True)(network, x)
    mean = torch.zeros(2, K, 60, 90)
    for ratio, mirrored in itertools.product((0.5, 1.0, 1.5), (False, True)):
        size = (int(60 * ratio), int(90 * ratio))
        scaled = x.float() if ratio == 1 else up(x.float(), size)
        scaled = scaled.flip(-1) if mirrored else scaled
        whole = [-(-side // 32) * 32 for side in size]
        filled = F.pad(scaled, (0, whole[1] - size[1], 0, whole[0] - size[0]))
        found = up(network(filled, size), (whole[0], whole[1]))[..., : size[0], : size[1]]
        found = found.flip(-1) if mirrored else found
        mean += up(found, (60, 90)).softmax(1) / 6
    assert torch.allclose(read.softmax(1), mean, atol=1e-5)
    assert torch.allclose(read.exp().sum(1), torch.ones(2, 60, 90), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "some"}, "mode takes whole or slide"),
        ({"fit": "cut"}, "fit pad or resize"),
        ({"crop": 10, "stride": 11}, "a stride is no larger than the crop"),
        ({"multiple": 0}, "sides are at least 1"),
        ({"ratios": []}, "ratios takes factors above 0"),
        ({"ratios": [0.0]}, "ratios takes factors above 0"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseInference(**options)  # type: ignore[arg-type]
