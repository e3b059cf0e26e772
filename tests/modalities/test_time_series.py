"""The two maps of a series: where every value lands, what the statistics do, which periods are found."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modalities.time_series import Fold, TokenMap, find_period, near_square


def raw_series(
    batch: int, look_back: int, horizon: int, variates: int, calendar: int = 4
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "values": torch.randn(batch, look_back, variates),
        "calendar": torch.rand(batch, look_back + horizon, calendar),
    }


def fold(variates: int = 1, **arguments: Any) -> Fold:
    return Fold(mean=[0.0] * variates, std=[1.0] * variates, **arguments)


@settings(deadline=None, max_examples=25)
@given(
    look_back=st.integers(6, 60),
    horizon=st.integers(1, 40),
    period=st.integers(2, 12),
    pixel=st.sampled_from([1, 2, 4]),
)
def test_every_value_is_where_its_time_says(look_back: int, horizon: int, period: int, pixel: int) -> None:
    period = min(period, look_back)
    embedder = fold(2, look_back=look_back, horizon=horizon, periods=[period], pixel=pixel)
    raw = raw_series(3, look_back, horizon, 2)
    maps = embedder(raw)
    rows = math.ceil(look_back / period) + math.ceil(horizon / period)
    assert maps.shape == (3, 2, embedder.out_chans, rows * pixel, period * pixel)
    assert embedder.grid == (rows, period)
    line = maps[..., ::pixel, ::pixel].flatten(-2)
    past = math.ceil(look_back / period) * period
    torch.testing.assert_close(line[:, :, 0, past - look_back : past], embedder.normalise(raw))
    assert line[:, :, 0, past:].abs().max() == 0, "the future is empty"
    assert line[:, :, 1].sum(-1).unique().tolist() == [look_back], "the mask marks the look-back"
    for time in (0, look_back - 1, look_back + horizon - 1):
        place = past - look_back + time
        torch.testing.assert_close(line[:, 0, 2:, place], raw["calendar"][:, time])
    blocks = maps.unflatten(-1, (period, pixel)).unflatten(-3, (rows, pixel))
    assert torch.equal(blocks, blocks[..., :1, :, :1].expand_as(blocks)), "a value fills its square"


def test_a_further_period_shows_the_value_that_long_before() -> None:
    embedder = fold(look_back=48, horizon=24, periods=[12, 24], calendar=False)
    raw = raw_series(2, 48, 24, 1)
    line = embedder(raw).flatten(-2)
    known = embedder.normalise(raw)
    (
        torch.testing.assert_close(line[:, :, 1, 24:72], known),
        "the first day of the future sees the last of the past",
    )
    assert line[:, :, 1, :24].abs().max() == 0


@settings(deadline=None, max_examples=15)
@given(
    scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), centre=st.sampled_from(["mean", "last", "season"])
)
def test_maps_do_not_depend_on_units(scale: float, shift: float, centre: str) -> None:
    raw = raw_series(2, 24, 12, 3)
    plain = fold(3, look_back=24, horizon=12, periods=[6], centre=centre)
    other = Fold(look_back=24, horizon=12, periods=[6], centre=centre, mean=[shift] * 3, std=[scale] * 3)
    moved = raw | {"values": raw["values"] * scale + shift}
    torch.testing.assert_close(other(moved), plain(raw), rtol=1e-2, atol=1e-2 + 1e-5 * abs(shift) / scale)


@pytest.mark.parametrize(
    ("centre", "found", "steps"),
    [("mean", 6, 24), ("last", 6, 1), ("season", 6, 6), ("season", None, 1), ("season", 24, 24)],
)
def test_a_window_loses_the_mean_of_its_last_steps(centre: str, found: int | None, steps: int) -> None:
    raw = raw_series(2, 24, 12, 3)
    embedder = fold(3, look_back=24, horizon=12, periods=[8], found=found, centre=centre)
    level = raw["values"][:, -steps:].mean(1)
    torch.testing.assert_close(embedder.context(raw)["loc"], level)
    left = embedder.normalise(raw)[..., -steps:].mean(-1)
    torch.testing.assert_close(left, torch.zeros(2, 3), atol=1e-5, rtol=0)


def test_context_undoes_the_normalisation() -> None:
    embedder = Fold(look_back=24, horizon=12, periods=[6], mean=[5.0, -1.0], std=[2.0, 0.1])
    raw = {"values": embedder.example_raw(4)["values"], "calendar": torch.zeros(4, 36, 4)}
    context = embedder.context(raw)
    back = embedder.normalise(raw).transpose(1, 2) * context["scale"][:, None] + context["loc"][:, None]
    torch.testing.assert_close(back, raw["values"])


def test_constant_windows_stay_finite() -> None:
    raw = {"values": torch.full((2, 24, 1), 7.0), "calendar": torch.zeros(2, 36, 4)}
    maps = fold(look_back=24, horizon=12, periods=[6])(raw)
    assert torch.isfinite(maps).all()
    assert maps[:, :, 0].abs().max() == 0


def test_wrong_window_is_named() -> None:
    with pytest.raises(ValueError, match="reads 24 steps of 1 variates, not 20 of 1"):
        fold(look_back=24, horizon=12, periods=[6])(raw_series(1, 20, 12, 1))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"periods": [40]}, "every period between 2 and the look-back"),
        ({"periods": [1]}, "every period between 2"),
        ({"periods": [6], "pixel": 0}, "pixel must be at least 1"),
        ({"periods": [6], "centre": "median"}, "centre must be one of mean, last"),
        ({"horizon": 0}, "horizon at least 1"),
    ],
)
def test_settings_that_describe_no_map(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fold(**({"look_back": 24, "horizon": 12} | arguments))


def test_without_a_period_the_map_is_near_square() -> None:
    assert fold(look_back=100, horizon=20).grid == (12, 10)


def test_the_papers_map() -> None:
    variates = 25
    positions = torch.randn(variates, 3).tolist()
    embedder = TokenMap(
        look_back=48, horizon=24, mean=[0.0] * variates, std=[1.0] * variates, positions=positions
    ).eval()
    raw = raw_series(2, 48, 24, variates)
    maps = embedder(raw)
    assert maps.shape == (2, 3, 1, 192, 192)
    # Tokens follow one another in order of time: a change in one step shows in its token and its neighbours only.
    window = raw["values"].clone()
    window[:, 20, 0] += 1
    embedder.normalise = lambda raw: raw["values"].transpose(1, 2)  # type: ignore[method-assign]
    changed = (embedder(raw | {"values": window}) - embedder(raw)).abs().flatten(-2)[0, 0, 0].reshape(48, 768)
    assert set(changed.sum(1).nonzero().flatten().tolist()) == {19, 20, 21}


@given(area=st.integers(1, 100_000))
def test_near_square(area: int) -> None:
    height, width = near_square(area)
    assert height * width == area
    assert height <= width


@settings(deadline=None, max_examples=12)
@given(period=st.integers(4, 48), seed=st.integers(0, 100))
def test_the_period_of_a_season_is_found(period: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    time = np.arange(period * 30)
    phase = 2 * np.pi * np.arange(period) / period
    shape = np.sin(phase) + rng.uniform(0, 0.5) * np.sin(2 * phase + rng.uniform(0, 6))
    values = (
        shape[time % period] + 0.1 * rng.normal(size=len(time)) + 0.01 * rng.normal(size=len(time)).cumsum()
    )
    found = find_period(values[:, None], longest=60)
    assert found is not None
    assert abs(found - period) <= period // 30


def test_no_period_in_a_random_walk() -> None:
    walk = np.random.default_rng(0).normal(size=(2000, 3)).cumsum(0)
    assert find_period(walk, longest=96) is None
    assert find_period(np.ones((100, 2)), longest=24) is None


def test_smooth_series_have_their_season_too() -> None:
    time = np.arange(144 * 20)
    values = np.sin(2 * np.pi * time / 144) + 0.3 * np.sin(2 * np.pi * time / 1008)
    noise = np.convolve(np.random.default_rng(0).normal(size=len(time)), np.ones(6) / 6, mode="same")
    assert find_period((values + 0.1 * noise)[:, None], longest=200) in range(141, 148)
