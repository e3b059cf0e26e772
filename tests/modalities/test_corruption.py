"""Corruptions of raw batches: what each does is measured on the batch itself."""

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from modalities.audio import LogMel
from modalities.corruption import CORRUPTIONS
from modalities.embedder import Embedder
from modalities.image import Pixels
from modalities.point_cloud import ProjectedPoints
from modalities.time_series import Fold
from modalities.video import Clip

EMBEDDERS: dict[str, Embedder] = {
    "audio": LogMel(seconds=0.25),
    "time_series": Fold(48, 24, [24], mean=(5.0, -5.0, 0.0), std=(1.0, 2.0, 3.0)),
    "point_cloud": ProjectedPoints(out_size=32, num_points=200, orthographic=[[0, 0]]),
    "video": Clip(frames=8, size=16),
    "image": Pixels(32),
}
ALL = [(modality, name) for modality, known in CORRUPTIONS.items() for name in known]


def spoil(modality: str, name: str, severity: float, raw: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return CORRUPTIONS[modality][name](raw, severity, generator, EMBEDDERS[modality])


def example(modality: str, batch: int = 6) -> Any:
    torch.manual_seed(0)
    return EMBEDDERS[modality].example_raw(batch)


def same(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in pairs)


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_every_corruption_keeps_the_contract(modality: str, name: str) -> None:
    raw = example(modality)
    untouched = example(modality)
    severities = CORRUPTIONS[modality][name].severities
    assert same(spoil(modality, name, 0.0, raw), raw), "severity 0 is the clean input"
    for severity in severities:
        spoilt = spoil(modality, name, severity, raw)
        for before, after in zip(tree_leaves(raw), tree_leaves(spoilt), strict=True):
            assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert same(spoilt, spoil(modality, name, severity, raw)), "the same seed, the same batch"
        assert EMBEDDERS[modality](spoilt).isfinite().all()
    assert not same(spoil(modality, name, severities[-1], raw), raw)
    assert same(raw, untouched), "the batch given stays as it was"


@pytest.mark.parametrize("name", list(CORRUPTIONS["image"]))
def test_images_of_several_sizes_are_corrupted_without_their_padding(name: str) -> None:
    sizes = [(20, 32), (32, 24), (20, 32)]
    torch.manual_seed(0)
    pixels = torch.full((3, 3, 32, 32), 7, dtype=torch.uint8)
    for image, (height, width) in zip(pixels, sizes, strict=True):
        image[:, :height, :width] = torch.randint(256, (3, height, width))
    raw = {"pixels": pixels.clone(), "size": torch.tensor(sizes)}
    severity = CORRUPTIONS["image"][name].severities[1]
    spoilt = spoil("image", name, severity, raw)
    assert torch.equal(raw["pixels"], pixels), "the batch given stays as it was"
    assert torch.equal(spoilt["size"], raw["size"])
    generator = torch.Generator().manual_seed(0)
    for place, (height, width) in enumerate(sizes):
        alone = pixels[place : place + 1, :, :height, :width]
        wanted = CORRUPTIONS["image"][name](alone, severity, generator, EMBEDDERS["image"])[0]
        found = spoilt["pixels"][place]
        assert torch.equal(found[:, :height, :width], wanted)
        assert not torch.equal(wanted, alone[0])
        assert (found[:, height:] == 7).all()
        assert (found[:, :, width:] == 7).all()


def test_recordings_of_several_lengths_are_corrupted_without_their_padding() -> None:
    waves = 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(3))
    waves[1, 1000:] = 0
    raw = {"waveform": waves, "length": torch.tensor([4000, 1000])}
    spoilt = spoil("audio", "noise", 0.3, raw)
    noise = spoilt["waveform"] - waves
    assert (noise[1, 1000:] == 0).all()
    for wave, own, length in zip(waves, noise, (4000, 1000), strict=True):
        ratio = own[:length].square().mean().sqrt() / wave[:length].square().mean().sqrt()
        assert ratio == pytest.approx(0.3, rel=0.1), "relative to the recording, not to it and its padding"


def test_audio_noise_has_the_level_it_says() -> None:
    raw = example("audio")
    noise = spoil("audio", "noise", 0.3, raw) - raw
    ratio = noise.square().mean(1).sqrt() / raw.square().mean(1).sqrt()
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.3), rtol=0.1, atol=0)


def test_audio_shifts_by_its_part_and_leaves_silence() -> None:
    raw = torch.arange(1.0, 101.0).repeat(20, 1)
    spoilt = spoil("audio", "time_shift", 0.1, raw)
    late, early = spoilt[:, 50] == 41, spoilt[:, 50] == 61
    assert (late | early).all()
    assert 0 < late.sum() < 20, "either way"
    assert (spoilt[late][:, :10] == 0).all()
    assert (spoilt[early][:, 90:] == 0).all()


def test_missing_variates_stand_at_their_mean() -> None:
    raw = example("time_series", 200)
    values = spoil("time_series", "missing_variates", 0.25, raw)["values"]
    mean = torch.tensor([5.0, -5.0, 0.0])
    gone = (values == mean).all(dim=1)
    assert gone.float().mean() == pytest.approx(0.25, abs=0.06)
    kept = ~gone[:, None].expand_as(values)
    assert torch.equal(values[kept], raw["values"][kept])
    assert (spoil("time_series", "missing_variates", 1.0, raw)["values"] == mean).all()


def test_missing_steps_hold_the_last_value_known() -> None:
    raw = {"values": torch.arange(48.0).view(1, 48, 1).repeat(100, 1, 3), "calendar": torch.zeros(100, 72, 4)}
    values = spoil("time_series", "missing_steps", 0.5, raw)["values"]
    assert (values.diff(dim=1) >= 0).all()
    assert (values <= raw["values"]).all()
    assert (values[:, 0] == 0).all()
    assert (values == raw["values"])[:, 1:].float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(values[..., 0], values[..., 2]), "a step is missing in all variates"


def test_points_are_dropped_moved_and_turned() -> None:
    raw = example("point_cloud", 50)
    dropped = spoil("point_cloud", "point_dropout", 0.75, raw)
    there = dropped.isfinite().all(-1)
    assert there.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(dropped[there], raw[there])
    assert (spoil("point_cloud", "point_dropout", 1.0, raw).isfinite().all(-1).sum(1) == 1).all()
    turned = spoil("point_cloud", "turn", 90, raw)
    torch.testing.assert_close(turned[..., 0].abs(), raw[..., 1].abs(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned[..., 2], raw[..., 2])
    moved = spoil("point_cloud", "noise", 0.1, raw) - raw
    radius = (raw - raw.mean(1, keepdim=True)).square().sum(-1).mean().sqrt()
    assert float(moved.std() / radius) == pytest.approx(0.1, rel=0.1)


def test_dropped_frames_repeat_the_last_that_came() -> None:
    raw = torch.arange(8, dtype=torch.uint8).view(1, 8, 1, 1, 1).expand(100, 8, 3, 4, 4)
    shown = spoil("video", "frame_drop", 0.5, raw)[:, :, 0, 0, 0].int()
    assert (shown.diff(dim=1) >= 0).all()
    assert (shown <= torch.arange(8)).all()
    assert (shown == torch.arange(8))[:, 1:].float().mean() == pytest.approx(0.5, abs=0.08)
    late = spoil("video", "time_shift", 0.25, raw)[0, :, 0, 0, 0]
    assert late.tolist() == [0, 0, 0, 1, 2, 3, 4, 5]


def test_crops_are_spoilt_crop_by_crop() -> None:
    raw = example("video", 4).unflatten(0, (2, 2))
    spoilt = spoil("video", "noise", 0.1, raw)
    assert torch.equal(spoilt, spoil("video", "noise", 0.1, raw.flatten(0, 1)).unflatten(0, (2, 2)))


def test_pictures_lose_detail_and_contrast_not_brightness() -> None:
    raw = example("image")
    pale = spoil("image", "contrast", 0.75, raw).float()
    assert float(pale.std() / raw.float().std()) == pytest.approx(0.25, rel=0.02)
    assert float(pale.mean()) == pytest.approx(float(raw.float().mean()), abs=0.5)
    dot = torch.zeros(1, 3, 33, 33)
    dot[..., 16, 16] = 255.0
    blurred = spoil("image", "blur", 2.0, dot)[0, 0]
    place = torch.arange(33.0) - 16
    spread = (blurred.sum(0) * place.square()).sum() / blurred.sum()
    assert float(spread.sqrt()) == pytest.approx(2.0, rel=0.03)
    for size in (1, 2, 5):  # a kernel wider than the picture would be an error
        assert spoil("image", "blur", 8.0, torch.zeros(1, 3, size, size)).shape == (1, 3, size, size)
