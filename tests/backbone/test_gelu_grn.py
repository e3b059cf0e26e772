"""GELU and GRN in one operator, against the separate ones in fp64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from backbone.kernels.gelu_grn import gelu_grn, takes
from backbone.unireplknet import GRN

#: Of a single value; Triton's interpreter rounds bf16 towards zero.
ERROR = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_close(ours: Tensor, exact: Tensor, error: float) -> None:
    """Within the type's rounding, and 2e-4 a value for the polynomials in place of erf."""
    allowed = error * exact.double().norm() + 4e-4 * exact.numel() ** 0.5
    assert (ours.double() - exact.double()).norm() <= allowed


def plain(x: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """The layers of the network, with these values."""
    grn = GRN(x.shape[-1], use_bias=beta is not None).to(x)
    values = {"gamma": gamma} if beta is None else {"gamma": gamma, "beta": beta}
    return torch.func.functional_call(grn, values, (F.gelu(x),))


def tensors(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, beta: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    random = torch.Generator().manual_seed(sum(shape))
    x = (2 * torch.randn(shape, generator=random)).to(device, dtype)
    gamma, shift = (torch.randn(1, 1, 1, shape[-1], generator=random).to(device) for _ in range(2))
    return x, gamma, shift if beta else None


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 70)),
    dtype=st.sampled_from(list(ERROR)),
    beta=st.booleans(),
)
def test_exact_on_any_shape(shape: tuple[int, ...], dtype: torch.dtype, beta: bool, device: str) -> None:
    given_tensors = tensors(shape, dtype, device, beta)
    ours = [None if t is None else t.clone().requires_grad_() for t in given_tensors]
    theirs = [None if t is None else t.double().requires_grad_() for t in given_tensors]
    assert ours[0] is not None
    assert takes(ours[0])
    y, expected = gelu_grn(*ours), plain(*theirs)  # type: ignore[arg-type]
    assert y.dtype == dtype
    assert_close(y, expected, ERROR[dtype])
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    y.backward(grad)
    expected.backward(grad.double())
    for a, b in zip(ours, theirs, strict=True):
        if a is not None:
            assert b is not None
            assert a.grad is not None
            assert a.grad.dtype == a.dtype
            assert_close(a.grad, b.grad, 2 * ERROR[dtype])


def test_gelu_and_its_slope_everywhere(device: str) -> None:
    x = torch.linspace(-9, 9, 4001, device=device).half().view(1, 1, -1, 1).requires_grad_()
    y = gelu_grn(x, torch.zeros(1, device=device), None)  # without gamma nothing but GELU
    y.sum().backward()
    exact = x.detach().double().requires_grad_()
    expected = F.gelu(exact)
    expected.sum().backward()
    assert x.grad is not None
    assert exact.grad is not None
    assert ((y - expected).abs() <= 5e-5 + 2**-10 * expected.abs()).all()
    assert ((x.grad - exact.grad).abs() <= 2e-4 + 2**-10 * exact.grad.abs()).all()


def test_channels_without_energy_get_no_gradient_through_it(device: str) -> None:
    x, gamma, beta = tensors((2, 3, 3, 8), torch.float16, device, True)
    x[..., :4] = 0
    x.requires_grad_()
    gelu_grn(x, gamma, beta).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[..., :4], torch.full_like(x.grad[..., :4], 0.5))  # gelu'(0), the factor being 1


def test_operator_passes_opcheck(device: str) -> None:
    x, gamma, beta = tensors((2, 1, 12, 8), torch.float16, device, True)
    assert beta is not None
    arguments = (
        x.flatten(1, 2).requires_grad_(),
        gamma.flatten().requires_grad_(),
        beta.flatten().requires_grad_(),
    )
    torch.library.opcheck(torch.ops.widefield.gelu_grn, arguments)


def test_full_precision_keeps_the_plain_layers(device: str) -> None:
    assert not takes(torch.zeros(1, 2, 2, 8, device=device))


def test_kernels_off_keep_the_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEFIELD_KERNELS", "off")
    assert not takes(torch.zeros(1, 2, 2, 8, dtype=torch.float16))
