"""Sums over the unwritten outputs of many kernels, from Gram matrices, against the written ones in fp64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests_support import relative_error
from torch import Tensor

from backbone.kernels.depthwise import PIXELS_PER_IMAGE, depthwise_conv2d_moments, moments_on_chip

KERNELS = 3


def assert_exact(shape: tuple[int, int, int, int], k: int, dtype: torch.dtype, device: str) -> None:
    """Both sums and every gradient."""
    random = torch.Generator().manual_seed(sum(shape) + k)
    x = torch.randn(shape, generator=random).to(device, dtype)
    kernels = torch.randn(KERNELS, shape[1], k, k, generator=random).to(device) / k
    assert moments_on_chip(x, kernels[0].unsqueeze(1))
    ours = [t.clone().requires_grad_() for t in (x, kernels)]
    theirs = [t.double().requires_grad_() for t in (x, kernels)]
    sums, squares = depthwise_conv2d_moments(*ours)
    outputs = [F.conv2d(theirs[0], kernel[:, None], padding=k // 2, groups=shape[1]) for kernel in theirs[1]]
    expected_sums = torch.stack([y.sum((0, 2, 3)) for y in outputs])
    expected_squares = torch.stack([y.square().sum((0, 2, 3)) for y in outputs])
    # Of a sum the error is measured against what is summed: the sum itself may be near zero.
    summed = torch.stack([y.abs().sum((0, 2, 3)) for y in outputs])
    assert ((sums - expected_sums).abs() <= 1e-5 * summed + 1e-5).all()
    assert relative_error(squares, expected_squares) < 1e-5
    weights = torch.arange(1.0, KERNELS + 1, device=device)  # so that gradients of different kernels differ
    (3 * sums.sum(1) @ weights + squares.sum(1) @ weights).backward()
    ((3 * expected_sums.sum(1) + expected_squares.sum(1)) @ weights.double()).backward()
    rounding = 2e-3 if dtype == torch.float16 else 1.6e-2  # the interpreter rounds bf16 towards zero
    for a, b, error in zip(ours, theirs, (rounding, 1e-5), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == a.dtype
        assert relative_error(a.grad, b.grad) < error


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(st.integers(1, 9), st.just(1), st.integers(1, 9), st.integers(1, 9)),
    k=st.sampled_from([5, 7]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_exact_on_any_shape(
    shape: tuple[int, int, int, int], k: int, dtype: torch.dtype, device: str
) -> None:
    assert_exact(shape, k, dtype, device)


@pytest.mark.parametrize("shape", [(3, 2, 6, 4), (1, 1, 13, 3), (2, 1, 2, 33)], ids=str)
def test_exact_in_strips_and_a_few_channels_at_a_time(
    shape: tuple[int, int, int, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backbone.kernels.moments.STRIP", 20)
    monkeypatch.setattr("backbone.kernels.moments.AT_ONCE", 2000)
    assert_exact(shape, 5, torch.float16, device)


@pytest.mark.parametrize(
    ("shape", "k"),
    [((131, 1, 3, 4), 5), pytest.param((1, 33, 2, 2), 5, marks=pytest.mark.slow), ((2, 1, 5, 4), 13)],
    ids=str,
)
def test_many_images_many_channels_and_kernels_larger_than_the_map(
    shape: tuple[int, int, int, int], k: int, device: str
) -> None:
    assert_exact(shape, k, torch.bfloat16, device)


def test_small_gradients_survive_half_precision(device: str) -> None:
    x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)).to(device, torch.float16)
    kernels = torch.full((1, 1, 5, 5), 0.2, device=device)

    def gradient(scale: float) -> Tensor:
        leaf = x.clone().requires_grad_()
        (depthwise_conv2d_moments(leaf, kernels)[1].sum() * scale).backward()
        assert leaf.grad is not None
        return leaf.grad

    assert relative_error(gradient(2.0**-12) * 2**12, gradient(1.0)) < 1e-3


def test_images_too_few_for_their_pixels_are_left_to_the_branches(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backbone.kernels.depthwise.sums_on_chip", lambda *_, **__: True)
    kernel = torch.zeros(1, 1, 13, 13, device=device)
    few = torch.zeros(2, 1, PIXELS_PER_IMAGE, 3, device=device)
    assert moments_on_chip(few, kernel)  # where the kernels are asked for
    monkeypatch.setenv("WIDEFIELD_KERNELS", "on")
    assert not moments_on_chip(few, kernel)
    assert moments_on_chip(few[:, :, :, :2], kernel)
    assert not moments_on_chip(torch.zeros(2, 1, 1, 65, device=device), kernel)
    assert not moments_on_chip(torch.zeros(9, 1, 257, 1, device=device), kernel)
