"""Images: the embedder and what augments batches on the device."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.random_erasing import RandomErasing as TimmErasing

from modalities.image import IMAGENET_MEAN, IMAGENET_STD, Pixels
from modalities.image_augment import ImageMixup, RandomErasing
from tasks.heads import one_hot
from tasks.losses import CrossEntropy


def pictures(batch: int = 4, height: int = 16, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


# -- the embedder --------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 40), width=st.integers(1, 40))
def test_pixels_equal_the_usual_transform(batch: int, height: int, width: int) -> None:
    from torchvision.transforms.functional import normalize

    raw = pictures(batch, height, width)
    maps = Pixels()(raw)
    assert maps.shape == (batch, 1, 3, height, width)
    assert maps.dtype == torch.float32
    wanted = normalize(raw / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(maps[:, 0], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Pixels()(raw.float()), maps)


def test_pixels_say_how_they_are_drawn_and_traced() -> None:
    embedder = Pixels(size=(20, 30))
    raw = embedder.example_raw(2)
    assert raw.shape == (2, 3, 20, 30)
    assert raw.dtype == torch.uint8
    assert raw.ndim == embedder.raw_ndim
    assert embedder(raw).shape[2] == embedder.out_chans
    assert embedder.map_axes().origin == "upper"
    assert embedder.map_axes().square
    assert not embedder.needs_statistics
    assert Pixels().half()(raw).dtype == torch.float16


@pytest.mark.parametrize("options", [{"size": 0}, {"mean": [0.5]}, {"std": [0.1, 0.1, 0.0]}])
def test_impossible_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"at least one pixel|three numbers"):
        Pixels(**options)  # type: ignore[arg-type]


# -- random erasing ------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(height=st.integers(8, 40), width=st.integers(8, 40), seed=st.integers(0, 1000))
def test_erasing_fills_one_rectangle_with_the_mean(height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    raw = torch.zeros(6, 3, height, width)
    erased = RandomErasing(prob=1.0, mode="const")(raw)
    torch.testing.assert_close(erased.amax((0, 2, 3)), 255 * torch.tensor(IMAGENET_MEAN))
    for picture in erased[:, 0] > 0:
        rows, columns = picture.any(1).nonzero()[:, 0], picture.any(0).nonzero()[:, 0]
        inside = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert inside.all(), "a rectangle"
        assert 0.015 <= inside.numel() / (height * width) <= 0.45


def test_erasing_has_timms_distribution() -> None:
    torch.manual_seed(0)
    ours = (RandomErasing(prob=0.25, mode="const")(torch.zeros(4000, 3, 32, 32))[:, 0] > 0).float()
    timm = TimmErasing(probability=0.25, device="cpu")
    theirs = 1 - torch.stack([timm(torch.ones(3, 32, 32))[0] for _ in range(4000)])
    assert (ours.amax((1, 2)) > 0).float().mean() == pytest.approx(0.25, abs=0.025)
    ours, theirs = (x[x.amax((1, 2)) > 0] for x in (ours, theirs))
    for measure in (
        lambda x: x.mean((1, 2)),  # area
        lambda x: x.amax(2).mean(1),  # height
        lambda x: x.amax(1).mean(1),  # width
    ):
        mine, other = measure(ours), measure(theirs)
        for quantile in (0.1, 0.5, 0.9):
            assert mine.quantile(quantile).item() == pytest.approx(other.quantile(quantile).item(), abs=0.035)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.09, rtol=0)  # where it lies


def test_erasing_noise_looks_like_the_data_and_depends_on_torchs_generator_only() -> None:
    erase = RandomErasing(prob=1.0, mode="pixel", min_area=0.9, max_area=0.9, min_aspect=1.0)
    raw = pictures(2, 200, 200)
    torch.manual_seed(3)
    erased = erase(raw)
    maps = Pixels()(erased)[:, 0]
    noise = maps[(erased != raw).all(1)[:, None].expand_as(maps)]
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(3)
    torch.testing.assert_close(erase(raw), erased, rtol=0, atol=0)
    torch.testing.assert_close(RandomErasing(prob=0.0)(raw), raw.float())
    assert raw.equal(pictures(2, 200, 200)), "the batch itself is untouched"


@pytest.mark.parametrize("options", [{"mode": "rand"}, {"prob": 2}, {"min_area": 0.5, "max_area": 0.1}])
def test_erasing_refuses_what_it_cannot_do(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="RandomErasing"):
        RandomErasing(**options)  # type: ignore[arg-type]


# -- mixup and CutMix ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_mixed_targets_say_what_the_pixels_show(mode: str, batch: int) -> None:
    """Pictures of one brightness each: the mean brightness of a mixture must be that of its target."""
    level = torch.arange(batch, dtype=torch.float32) * 20 + 10
    raw = level.view(-1, 1, 1, 1).expand(batch, 3, 16, 16).to(torch.uint8)
    target = one_hot(torch.arange(batch), batch)
    mixup = ImageMixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode=mode)
    for seed in range(8):
        np.random.seed(seed)  # noqa: NPY002
        mixed, mixed_target = mixup(raw, target)
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed_target.sum(1), torch.ones(batch))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), mixed_target @ level, atol=1e-3, rtol=1e-4)
    assert raw.equal(level.view(-1, 1, 1, 1).expand(batch, 3, 16, 16).to(torch.uint8))


def test_mixup_equals_timms_own_without_smoothing() -> None:
    from timm.data import Mixup

    raw, target = pictures(6).float(), torch.tensor([0, 2, 1, 2, 0, 1])
    np.random.seed(5)  # noqa: NPY002
    wanted = Mixup(0.8, 1.0, mode="elem", label_smoothing=0.0, num_classes=3)(raw.clone(), target)
    np.random.seed(5)  # noqa: NPY002
    got = ImageMixup(0.8, 1.0, mode="elem")(raw, one_hot(target, 3))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_smoothing_in_the_loss_equals_smoothing_before_mixing(mode: str, smoothing: float) -> None:
    """The official script smooths each target, mixes, and takes timm's loss of soft targets; ours mixes first."""
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy

    raw, target = pictures(6).float(), torch.tensor([0, 2, 1, 2, 0, 1])
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    for seed in range(8):
        np.random.seed(seed)  # noqa: NPY002
        timm = Mixup(0.8, 1.0, mode=mode, label_smoothing=smoothing, num_classes=5)
        wanted = SoftTargetCrossEntropy()(logits, timm(raw.clone(), target)[1])
        np.random.seed(seed)  # noqa: NPY002
        got = CrossEntropy(smoothing)(logits, ImageMixup(0.8, 1.0, mode=mode)(raw, one_hot(target, 5))[1])
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_smoothing_without_mixing_equals_timms(smoothing: float) -> None:
    from timm.loss import LabelSmoothingCrossEntropy

    target = torch.tensor([0, 2, 1, 2, 0, 1])
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    wanted = LabelSmoothingCrossEntropy(smoothing)(logits, target)
    torch.testing.assert_close(CrossEntropy(smoothing)(logits, one_hot(target, 5)), wanted)
    assert not torch.isclose(CrossEntropy(0.0)(logits, one_hot(target, 5)), wanted)


def test_mixup_takes_several_labels() -> None:
    target = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    np.random.seed(0)  # noqa: NPY002
    _, mixed = ImageMixup(1.0, 0.0)(pictures(2), target)
    assert mixed[0, 0] == mixed[0, 1]
    assert mixed[0, 0] + mixed[0, 2] == pytest.approx(1)


def test_mixup_off_changes_nothing() -> None:
    raw, target = pictures(), one_hot(torch.arange(4), 4)
    mixed, mixed_target = ImageMixup(prob=0.0)(raw, target)
    assert mixed.equal(raw.float())
    assert mixed_target.equal(target)


@pytest.mark.parametrize("options", [{"mixup_alpha": 0, "cutmix_alpha": 0}, {"mode": "all"}, {"prob": 2}])
def test_mixup_refuses_what_it_cannot_do(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="ImageMixup"):
        ImageMixup(**options)  # type: ignore[arg-type]
