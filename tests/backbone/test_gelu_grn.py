"""GELU and GRN in one operator, and with the linear layer behind them, against the separate layers in fp64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backbone.kernels import gelu_grn as module
from backbone.kernels.gelu_grn import gelu_grn, gelu_grn_linear, takes
from backbone.unireplknet import GRN, UniRepLKNetBlock

#: Of a single value; Triton's interpreter rounds bf16 towards zero.
ERROR = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_close(ours: Tensor, exact: Tensor, error: float, rounded: Tensor | None = None) -> None:
    """Within the type's rounding, and 2e-4 a value for the polynomials in place of erf.

    ``rounded``: what was rounded, where the exact values are not.
    """
    allowed = error * (exact if rounded is None else rounded).double().norm() + 4e-4 * exact.numel() ** 0.5
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
    assert_exact(shape, dtype, beta, device)


@pytest.mark.parametrize("most", [3, 16])
def test_pixels_summed_in_parts(most: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PARTS", most)
    blocks, parts, each = module._sums_blocks(2, 900, 40)
    assert 1 < parts <= most
    assert (parts - 1) * each < 900 <= parts * each
    assert each % blocks["BP"] == 0
    assert_exact((2, 30, 30, 40), torch.float16, True, device)


def assert_exact(shape: tuple[int, ...], dtype: torch.dtype, beta: bool, device: str) -> None:
    """Outputs of both, and every gradient."""
    given_tensors = tensors(shape, dtype, device, beta)
    random = torch.Generator().manual_seed(1)
    assert takes(given_tensors[0])
    with torch.no_grad():
        y = gelu_grn(*given_tensors)
    expected = plain(*(None if t is None else t.double() for t in given_tensors))  # type: ignore[arg-type]
    assert y.dtype == dtype
    assert_close(y, expected, ERROR[dtype])
    # Each channel goes to one output, halved: the gradient that comes back is not rounded.
    weight = 0.5 * (torch.arange(shape[-1]) % 5 == torch.arange(5)[:, None]).to(device, dtype)
    ours = [None if t is None else t.clone().requires_grad_() for t in (*given_tensors, weight)]
    theirs = [None if t is None else t.double().requires_grad_() for t in (*given_tensors, weight)]
    z, expected = gelu_grn_linear(*ours), plain(*theirs[:3]) @ theirs[3].t()  # type: ignore
    assert z.dtype == dtype
    magnitudes = y.double().abs()
    assert_close(z, expected, 2 * ERROR[dtype], magnitudes @ weight.double().t())
    grad = torch.randn(z.shape, generator=random).to(device, dtype)
    z.backward(grad)
    expected.backward(grad.double())
    # The weight's gradient is a sum of rounded products, which may all but cancel each other.
    products = grad.double().abs().flatten(0, 2).t() @ magnitudes.flatten(0, 2)
    for a, b, summed in zip(ours, theirs, (None, None, None, products), strict=True):
        if a is not None:
            assert b is not None
            assert a.grad is not None
            assert a.grad.dtype == a.dtype
            assert_close(a.grad, b.grad, 2 * ERROR[dtype], summed)


def test_gelu_and_its_slope_everywhere(device: str) -> None:
    x = torch.linspace(-9, 9, 4001, device=device).half().view(1, 1, -1, 1).requires_grad_()
    nothing, one = torch.zeros(1, device=device), torch.ones(1, 1, dtype=torch.float16, device=device)
    y = gelu_grn_linear(x, nothing, None, one)  # without gamma nothing but GELU
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
    gelu_grn_linear(x, gamma, beta, torch.ones(1, 8, device=device).half()).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[..., :4], torch.full_like(x.grad[..., :4], 0.5))  # gelu'(0), the factor being 1


def test_operator_passes_opcheck(device: str) -> None:
    x, gamma, beta = tensors((2, 1, 12, 8), torch.float16, device, True)
    assert beta is not None
    maps = x.flatten(1, 2), gamma.flatten(), beta.flatten()
    torch.library.opcheck(torch.ops.widefield.gelu_grn, maps)
    weight = torch.ones(3, 8, dtype=torch.float16, device=device)
    energy, scale = torch.rand(2, 2, 8, device=device)
    arguments = (*maps, weight, energy, scale, torch.randn(2, 12, 3, device=device).half())
    torch.library.opcheck(torch.ops.widefield.gelu_grn_linear_backward, arguments)
    differentiable = tuple(t.requires_grad_() for t in (*maps, weight))
    torch.library.opcheck(torch.ops.widefield.gelu_grn_linear, differentiable)


def test_without_the_linear_layer_there_are_no_gradients(device: str) -> None:
    x, gamma, beta = tensors((1, 3, 3, 8), torch.float16, device, True)
    with pytest.raises(NotImplementedError, match="gelu_grn_linear has the gradients"):
        gelu_grn(x.requires_grad_(), gamma, beta).sum().backward()


def test_autocast_casts_the_map_and_the_weight(device: str) -> None:
    x, gamma, beta = tensors((2, 5, 5, 16), torch.float32, device, True)
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(1)).to(device)
    mixed = x.half().requires_grad_(), gamma, beta, weight.clone().requires_grad_()
    cast = x.half().bfloat16().requires_grad_(), gamma, beta, weight.bfloat16().requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        y = gelu_grn_linear(*mixed)
        y.sum().backward()
    expected = gelu_grn_linear(*cast)
    expected.sum().backward()
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    for i in (0, 3):
        a, b = mixed[i], cast[i]
        assert a is not None
        assert b is not None
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == a.dtype
        assert torch.equal(a.grad, b.grad.to(a.dtype))


@pytest.mark.parametrize("form", ["checkpointed", "compiled"])
def test_a_block_learns_the_same_in_other_forms(form: str, device: str) -> None:
    torch.manual_seed(0)
    block = UniRepLKNetBlock(8, kernel_size=3, layer_scale_init_value=0.5).to(device).half()
    x = torch.randn(2, 8, 10, 10, device=device).half()

    def learned(other: str) -> list[Tensor]:
        copied = copy.deepcopy(block)
        copied.grad_checkpointing = other == "checkpointed"
        run = torch.compile(copied, fullgraph=True, backend="aot_eager") if other == "compiled" else copied
        y = run(x)
        y.backward(torch.cos(torch.arange(y.numel(), device=device)).view_as(y).half())
        return [y, *(p.grad for p in copied.parameters() if p.grad is not None)]

    for ours, plain_form in zip(learned(form), learned("eager"), strict=True):
        # Before a batch norm a shift has no gradient: near nothing, in units of half precision.
        assert (ours - plain_form).norm() <= 1e-2 * plain_form.norm() + 0.05
    torch.compiler.reset()


def test_the_wide_map_is_not_kept_for_the_backward_pass(device: str) -> None:
    block = UniRepLKNetBlock(4, kernel_size=3).to(device).half()
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(torch.randn(2, 4, 6, 6, device=device).half())
    wide = [shape for shape in kept if shape.numel() == 2 * 6 * 6 * 16]
    assert len(wide) == 1  # what goes into GELU


@pytest.mark.parametrize("changed", ["adapter", "bias"])
def test_another_layer_behind_it_is_respected(changed: str, device: str) -> None:
    block = UniRepLKNetBlock(4, kernel_size=3).to(device).half().eval()
    if changed == "bias":
        block.reparameterize()
        torch.nn.init.normal_(block.pwconv2[0].bias)
    else:
        block.pwconv2[0] = nn.Sequential(block.pwconv2[0], nn.ReLU())
    x = torch.randn(2, 4, 6, 6, device=device).half()
    with torch.no_grad():
        expected = block(x)
    assert (block(x) - expected).norm() <= 4e-3 * expected.norm()


def test_full_precision_keeps_the_plain_layers(device: str) -> None:
    assert not takes(torch.zeros(1, 2, 2, 8, device=device))


def test_kernels_off_keep_the_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEFIELD_KERNELS", "off")
    assert not takes(torch.zeros(1, 2, 2, 8, dtype=torch.float16))
