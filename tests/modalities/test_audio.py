"""Log-mel maps against torchaudio's Kaldi numbers, every way of running them, and augmentation."""

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.compliance import kaldi
from torchaudio.transforms import FrequencyMasking, TimeMasking

from modalities.audio import LogMel
from modalities.audio_augment import SpecAugment, WaveformAugment, WaveformMixup, at_speed


def raw_map(embedder: LogMel, raw: torch.Tensor) -> torch.Tensor:
    """Log energies as Kaldi lays them out, (N, F), of the first waveform."""
    return embedder(raw)[0, 0, 0].T


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 44100]),
    samples=st.integers(1200, 20000),
    bins=st.sampled_from([23, 40, 64, 128]),
    shift=st.sampled_from([5.0, 10.0, 16.0]),
    window=st.sampled_from(["hanning", "hamming", "povey"]),
    offset=st.floats(-0.5, 0.5),
    level=st.sampled_from([1e-3, 0.1, 0.5]),
    seed=st.integers(0, 999),
)
@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_equals_kaldi(
    rate: int, samples: int, bins: int, shift: float, window: str, offset: float, level: float, seed: int
) -> None:
    raw = offset + level * torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))
    embedder = LogMel(
        rate, num_mel_bins=bins, num_frames=None, frame_shift_ms=shift, window=window, mean=0.0, std=0.5
    )
    expected = kaldi.fbank(
        raw[:1],
        sample_frequency=rate,
        num_mel_bins=bins,
        frame_shift=shift,
        window_type=window,
        htk_compat=True,
        use_energy=False,
        dither=0.0,
    )
    torch.testing.assert_close(raw_map(embedder, raw), expected, atol=5e-3, rtol=1e-4)


def test_mean_of_the_waveform_changes_nothing() -> None:
    raw = 0.1 * torch.randn(1, 8000)
    embedder = LogMel()
    torch.testing.assert_close(embedder(raw + 0.3), embedder(raw), atol=2e-3, rtol=0)


@pytest.mark.parametrize("samples", [1, 2, 399, 400, 401])
def test_shorter_than_a_frame_still_yields_a_map(samples: int) -> None:
    maps = LogMel(num_frames=None)(0.1 * torch.randn(3, samples))
    assert maps.shape == (3, 1, 1, 128, 1)
    assert maps.isfinite().all()


def test_silence_is_finite() -> None:
    assert LogMel()(torch.zeros(1, 16000)).isfinite().all()


def test_frames_are_filled_up_as_ast_does_or_cut() -> None:
    raw = 0.1 * torch.randn(2, 16000)
    whole = LogMel(num_frames=None)(raw)
    assert whole.shape[-1] == 98
    filled = LogMel(num_frames=128)(raw)
    torch.testing.assert_close(filled[..., :98], whole)
    torch.testing.assert_close(filled[..., 98:], torch.full((2, 1, 1, 128, 30), 6.845978 / (2 * 5.5654526)))
    torch.testing.assert_close(LogMel(num_frames=50)(raw), whole[..., :50])


def test_statistics_are_measured_and_saved() -> None:
    raws = [0.1 * torch.randn(4, 16000), 0.3 * torch.randn(2, 16000)]
    embedder = LogMel(num_frames=None, mean=None, std=None)
    assert embedder.needs_statistics
    embedder.fit_statistics(raws)
    assert not embedder.needs_statistics
    maps = torch.cat([embedder(raw).flatten() for raw in raws])
    assert maps.mean().abs() < 1e-3
    assert abs(maps.std().item() - 0.5) < 1e-3
    again = LogMel(num_frames=None, mean=None, std=None)
    again.load_state_dict(embedder.state_dict())
    assert not again.needs_statistics
    torch.testing.assert_close(again(raws[0]), embedder(raws[0]))


def test_bf16_autocast_computes_in_fp32() -> None:
    embedder, raw = LogMel(), 0.1 * torch.randn(2, 16000)
    with torch.autocast("cpu", torch.bfloat16):
        maps = embedder(raw)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, embedder(raw), rtol=0, atol=0)


def test_torch_export_takes_any_batch() -> None:
    embedder = LogMel().eval()
    program = torch.export.export(
        embedder, (embedder.example_raw(2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    raw = embedder.example_raw(5)
    torch.testing.assert_close(program.module()(raw), embedder(raw))


def test_onnx_gives_the_same_map(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    embedder, file = LogMel(num_mel_bins=64).eval(), tmp_path / "map.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            embedder,
            (embedder.example_raw(2),),
            file,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    session = onnxruntime.InferenceSession(file)
    raw = embedder.example_raw(3)
    (maps,) = session.run(None, {session.get_inputs()[0].name: raw.numpy()})
    torch.testing.assert_close(torch.from_numpy(maps), embedder(raw), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside the compiler
def test_compiles_without_breaks() -> None:
    embedder = LogMel()
    raw = embedder.example_raw(2)
    compiled = torch.compile(embedder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(raw), embedder(raw))


def test_gradients_reach_the_waveform() -> None:
    raw = (0.1 * torch.randn(1, 4000)).requires_grad_()
    LogMel()(raw).sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_axes_name_units_and_place_the_ticks() -> None:
    embedder = LogMel(num_frames=None, seconds=1.0, mean=0.0, std=1.0)
    axes = embedder.map_axes()
    assert (axes.x, axes.y, axes.origin) == ("time (s)", "mel frequency (Hz)", "lower")
    assert axes.x_range == pytest.approx((0.0, 0.98))
    row = {label: row for row, label in axes.y_ticks}["1000"]
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    assert abs(embedder(tone[None])[0, 0, 0].mean(1).argmax().item() - row) <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"high_freq": 9000.0}, "8000 Hz"),
        ({"low_freq": 500.0, "high_freq": 400.0}, "low_freq < high_freq"),
        ({"window": "square"}, "window must be one of hanning"),
        ({"frame_length_ms": 0.01}, "too short at 16000 Hz"),
        ({"num_mel_bins": 0}, "at least 1"),
        ({"mean": None}, "give both mean and std"),
    ],
)
def test_wrong_settings_get_one_sentence(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogMel(**wrong)  # type: ignore[arg-type]


# -- augmentation -------------------------------------------------------------------------------------------


def test_masks_are_bands_of_the_mean_and_differ_between_samples() -> None:
    torch.manual_seed(0)
    masked = SpecAugment(freq_mask=10, time_mask=20)(torch.ones(64, 2, 1, 40, 60)) == 0
    assert (masked[:, :1] == masked[:, 1:]).all(), "all maps of a sample lose the same area"
    rows, columns = masked[:, 0, 0].all(2), masked[:, 0, 0].all(1)
    assert rows.sum(1).max() < 10
    assert columns.sum(1).max() < 20
    assert len({tuple(row.tolist()) for row in rows}) > 20
    for line in (*rows, *columns):  # one stretch each
        assert (line.int().diff() == 1).sum() + line[:1].int().sum() <= 1


@pytest.mark.parametrize("size", [(1, 1), (8, 5)])
def test_masks_larger_than_the_map_are_harmless(size: tuple[int, int]) -> None:
    maps = SpecAugment(freq_mask=48, time_mask=48, noise=0.1, roll=10)(torch.ones(16, 1, 1, *size))
    assert maps.shape == (16, 1, 1, *size)
    assert maps.isfinite().all()


def test_roll_moves_every_sample_as_a_whole() -> None:
    torch.manual_seed(0)
    maps = torch.randn(32, 1, 1, 4, 30)
    rolled = SpecAugment(roll=10)(maps)
    shifts = set()
    for before, after in zip(maps, rolled, strict=True):
        fitting = [shift for shift in range(-10, 11) if torch.equal(before.roll(shift, -1), after)]
        assert len(fitting) == 1
        shifts.add(fitting[0])
    assert len(shifts) > 5


def test_mixup_mixes_targets_as_it_mixes_sounds() -> None:
    torch.manual_seed(0)
    raw, target = torch.eye(64), torch.eye(64)  # sample i is class i, and both say so
    mixed, mixed_target = WaveformMixup(prob=0.6, alpha=10.0)(raw, target)
    torch.testing.assert_close(mixed, mixed_target)
    torch.testing.assert_close(mixed_target.sum(1), torch.ones(64))
    touched = (mixed_target.max(1).values < 1).float().mean()
    assert 0.4 < touched < 0.8
    same, _ = WaveformMixup(prob=0.0)(raw, target)
    torch.testing.assert_close(same, raw)


def test_mixup_by_level_lets_a_quiet_waveform_be_heard() -> None:
    torch.manual_seed(0)
    loud, quiet = torch.randn(1, 20000), 0.01 * torch.randn(1, 20000)
    raw, target = torch.cat([loud, quiet]).repeat(50, 1), torch.eye(2).repeat(50, 1)
    mixed, shares = WaveformMixup(prob=1.0, alpha=1.0, level="equal")(raw, target)
    both = shares.min(1).values > 0.01  # a loud one with a quiet one
    assert both.any()
    # Least squares: by how much each of the two is in the sum, relative to its own RMS of 1 and 0.01
    parts = torch.linalg.lstsq(torch.cat([loud, 100 * quiet]).T, mixed[both].T).solution.T
    torch.testing.assert_close(parts[:, 0] / parts.sum(1), shares[both, 0], atol=0.02, rtol=0)
    alike, same = WaveformMixup(prob=1.0, alpha=1.0, level="equal")(loud.repeat(50, 1), torch.eye(50))
    assert (same.max(1).values < 0.9).any()
    weight = (
        same.square().sum(1, keepdim=True)
    ).sqrt()  # a waveform mixed with itself: (r + 1 - r) / norm of both
    torch.testing.assert_close(alike * weight, loud.expand(50, -1))


def test_mixup_takes_waveforms_as_they_are_unless_told() -> None:
    raw, target = torch.tensor([[1.0, 1.0], [0.01, 0.01]]), torch.eye(2)
    torch.manual_seed(1)
    plain = WaveformMixup(prob=1.0, alpha=1.0)(raw, target)
    torch.testing.assert_close(plain[0], plain[1] @ raw)
    with pytest.raises(ValueError, match="level=asis or equal"):
        WaveformMixup(level="loud")


def test_silence_is_mixed_without_nan() -> None:
    mixed, _ = WaveformMixup(prob=1.0, level="equal")(torch.zeros(8, 100), torch.eye(8))
    assert not mixed.any()


def test_noise_can_leave_waveforms_clean() -> None:
    torch.manual_seed(0)
    raw = torch.randn(400, 200)
    noisy = WaveformAugment(noise_db=-10.0, noise_prob=0.25)(raw)
    assert (noisy != raw).any(1).float().mean() == pytest.approx(0.25, abs=0.07)
    assert torch.equal(WaveformAugment(noise_db=-10.0, noise_prob=0.0)(raw), raw)


def test_waveform_augment_keeps_within_its_limits() -> None:
    torch.manual_seed(0)
    raw = torch.sin(torch.arange(1000.0))[None].repeat(32, 1)
    louder = WaveformAugment(gain_db=6.0)(raw)
    ratio = louder[:, 1:].div(raw[:, 1:]).mean(1).log10() * 20
    assert ratio.abs().max() <= 6.001
    assert ratio.std() > 1
    noisy = WaveformAugment(noise_db=-20.0)(raw) - raw
    assert noisy.square().mean(1).sqrt().max() < 0.11 * raw.square().mean().sqrt() * 1.1
    assert not torch.equal(WaveformAugment(roll=0.1)(raw), raw)


@pytest.mark.parametrize("augment", [SpecAugment(8, 8, 0.1, 5), WaveformAugment(0.1, 6.0, -20.0)])
def test_a_seed_repeats_augmentation(augment: torch.nn.Module) -> None:
    x = torch.randn(4, 1, 1, 16, 32) if isinstance(augment, SpecAugment) else torch.randn(4, 500)
    torch.manual_seed(7)
    first = augment(x)
    torch.manual_seed(7)
    torch.testing.assert_close(augment(x), first, rtol=0, atol=0)
    assert not torch.equal(augment(x), first)


# -- the official order: masks on log energies, normalisation, noise, roll ------------------------------------------


OFFICIAL = {"mean": -6.845978, "std": 5.5654526}


def test_masks_are_filled_as_if_masked_before_normalisation() -> None:
    energies = LogMel(mean=0.0, std=0.5)(0.1 * torch.randn(16, 16000))
    normalised = (energies - OFFICIAL["mean"]) / (2 * OFFICIAL["std"])
    torch.manual_seed(3)
    before = (SpecAugment(48, 48)(energies) - OFFICIAL["mean"]) / (2 * OFFICIAL["std"])
    torch.manual_seed(3)
    after = SpecAugment(48, 48, fill=0.0, **OFFICIAL)(normalised)
    torch.testing.assert_close(after, before)
    touched = after != normalised
    assert touched.any()
    assert after[touched].unique().item() == pytest.approx(0.615, abs=5e-4)


def test_noise_lies_over_masks_too() -> None:
    torch.manual_seed(0)
    maps = torch.full((64, 1, 1, 40, 60), -5.0)
    noisy = SpecAugment(20, 20, noise=0.1, fill=0.0, **OFFICIAL)(maps)
    masked = noisy[noisy > 0]
    assert 0.615 <= masked.min() < masked.max() < 0.716
    assert masked.std() > 0.01


def test_masks_are_those_of_torchaudio() -> None:
    energies = torch.randn(1, 1, 1, 128, 100)
    for seed in range(100):
        torch.manual_seed(seed)
        expected = TimeMasking(48)(FrequencyMasking(48)(energies[0, 0]))
        torch.manual_seed(seed)
        torch.testing.assert_close(SpecAugment(48, 48)(energies)[0, 0], expected)


def test_roll_may_have_two_ends() -> None:
    torch.manual_seed(0)
    maps = torch.zeros(2000, 1, 1, 1, 40)
    maps[..., 20] = 1
    shifts = SpecAugment(roll=[-10, 9])(maps).argmax(-1).flatten() - 20
    assert shifts.unique().tolist() == list(range(-10, 10))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fill": 0.0}, "needs the mean and std of the embedder"),
        ({"fill": 0.0, "mean": 1.0}, "needs the mean and std of the embedder"),
        ({"roll": [3, -3]}, r"\[smallest, largest\]"),
        ({"roll": [1, 2, 3]}, r"\[smallest, largest\]"),
        ({"freq_mask": -1}, "no negative sizes"),
    ],
)
def test_wrong_masks_get_one_sentence(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpecAugment(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_at_speed_a_tone_is_as_much_higher(factor: float) -> None:
    seconds = torch.arange(8000.0) / 8000
    tone, other = torch.sin(2 * torch.pi * 440 * seconds), torch.cos(2 * torch.pi * 200 * seconds)
    factors = torch.tensor([[factor], [1.0]])
    faster = at_speed(torch.stack([tone, other]), factors)
    torch.testing.assert_close(faster[1], other)
    middle = seconds[-1] / 2
    expected = torch.sin(2 * torch.pi * 440 * ((seconds - middle) * factor + middle))
    sounding = ((seconds - middle).abs() * factor) < middle - 3 / 8000
    assert (faster[0] - expected)[sounding].abs().max() < 0.01
    assert not faster[0][((seconds - middle).abs() * factor) > middle + 2 / 8000].any()


def test_at_speed_is_as_exact_at_the_end_of_a_long_recording() -> None:
    time = torch.arange(60 * 48_000, dtype=torch.float64) / 48_000
    middle = time[-1] / 2
    faster = at_speed(torch.sin(2 * torch.pi * 4_000 * time).float()[None], torch.tensor([[0.9]]))[0]
    expected = torch.sin(2 * torch.pi * 4_000 * ((time - middle) * torch.tensor(0.9).double() + middle))
    assert (faster - expected)[-1000:].abs().max() < 0.01


def test_speeds_are_drawn_for_every_waveform_within_the_limit() -> None:
    torch.manual_seed(0)
    raw = torch.ones(256, 1001)  # how much stays above silence tells the speed
    sounding = WaveformAugment(speed=0.25)(raw).gt(0.5).sum(1)
    slower = sounding == 1001
    assert 0.4 < slower.float().mean() < 0.6
    faster = 1001 / sounding[~slower]
    assert faster.max() < 1.251
    assert faster.min() < 1.02
    assert faster.max() > 1.2
    torch.testing.assert_close(WaveformAugment(speed=0.0)(raw), raw)
    for speed in (-0.1, 1.5):
        with pytest.raises(ValueError, match="0 <= speed <= 1"):
            WaveformAugment(speed=speed)
