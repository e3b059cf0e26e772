"""What replaces PyTorch's backward passes on a CPU, against PyTorch's in fp64."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import relative_error
from torch import Tensor, nn

from backbone import UniRepLKNet
from backbone.kernels import cpu, depthwise_conv2d, gram_cpu, grn_cpu
from backbone.reparam import DilatedReparamBlock
from backbone.unireplknet import GRN

Build = Callable[..., UniRepLKNet]
Calls = list[str]

x86 = pytest.mark.skipif(not cpu._has_fast_forward(), reason="only x86 processors have these")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Which of the CPU's own forms have run."""
    made: Calls = []
    modules: tuple[tuple[Any, str], ...] = (
        (cpu, "depthwise_conv2d"),
        (gram_cpu, "moments"),
        (grn_cpu, "grn"),
    )
    for module, name in modules:
        monkeypatch.setattr(module, name, recorder(made, name, getattr(module, name)))
    return made


def recorder(made: Calls, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(*args: Any) -> Any:
        made.append(name)
        return original(*args)

    return recorded


def pytorch(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=len(weight))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 34), st.integers(1, 20)),
    k=st.sampled_from(range(3, 32, 2)),
    dilation=st.sampled_from([1, 1, 2, 3, 5]),
    last=st.booleans(),
)
def test_convolution_and_gradients_are_pytorchs(
    shape: tuple[int, int, int, int], k: int, dilation: int, last: bool
) -> None:
    random = torch.Generator().manual_seed(sum(shape) + k)
    tensors = [torch.randn(size, generator=random) for size in (shape, (shape[1], 1, k, k), (shape[1],))]
    if last:
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    theirs = [tensor.double().requires_grad_() for tensor in tensors]
    y, expected = cpu.depthwise_conv2d(*ours, dilation), pytorch(*theirs, dilation)
    grad = torch.randn(shape, generator=random)
    found = torch.autograd.grad(y, ours, grad)
    wanted = torch.autograd.grad(expected, theirs, grad.double())
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize(("shape", "k", "dilation"), [((2, 2, 3, 4), 5, 1), ((1, 2, 5, 3), 3, 2)], ids=str)
def test_convolution_is_twice_differentiable(shape: tuple[int, int, int, int], k: int, dilation: int) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(size, generator=random, dtype=torch.float64, requires_grad=True)
        for size in (shape, (shape[1], 1, k, k), (shape[1],))
    ]
    convolve = lambda *each: cpu.depthwise_conv2d(*each, dilation)  # noqa: E731
    assert torch.autograd.gradcheck(convolve, tensors)
    assert torch.autograd.gradgradcheck(convolve, tensors)


@pytest.mark.parametrize("height", [1, 2, 3])
@pytest.mark.parametrize("k", [3, 13])
def test_moments_are_those_of_written_outputs(height: int, k: int) -> None:
    random = torch.Generator().manual_seed(height + k)
    x = torch.randn(3, 2, height, 4, generator=random, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(3, 2, k, k, generator=random, dtype=torch.float64, requires_grad=True)
    outputs = [pytorch(x, kernel[:, None], None, 1) for kernel in kernels]
    sums, squares = gram_cpu.moments(x, kernels)
    torch.testing.assert_close(sums, torch.stack([y.sum((0, 2, 3)) for y in outputs]))
    torch.testing.assert_close(squares, torch.stack([y.square().sum((0, 2, 3)) for y in outputs]))
    assert torch.autograd.gradcheck(gram_cpu.moments, (x, kernels))


@pytest.mark.parametrize("with_beta", [True, False])
def test_grn_is_twice_differentiable(with_beta: bool) -> None:
    random = torch.Generator().manual_seed(0)
    x, gamma, beta = (
        torch.randn(size, generator=random, dtype=torch.float64, requires_grad=True)
        for size in ((2, 3, 2, 4), (1, 1, 1, 4), (1, 1, 1, 4))
    )
    inputs = (x, gamma, beta if with_beta else None)
    assert torch.autograd.gradcheck(grn_cpu.grn, inputs)
    assert torch.autograd.gradgradcheck(grn_cpu.grn, inputs)


def test_grn_of_an_empty_channel_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = GRN(4)
    nn.init.normal_(layer.gamma)
    x = torch.randn(2, 3, 3, 4)
    x[0, :, :, 1] = 0
    results = {}
    for setting in ("on", "off"):
        monkeypatch.setenv("WIDEFIELD_KERNELS", setting)
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results[setting] = (y, *torch.autograd.grad((y * y.detach().sin()).sum(), (leaf, layer.gamma)))
    for ours, plain in zip(results["on"], results["off"], strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def trained(model: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Output, every gradient and every running statistic of a training step."""
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert leaf.grad is not None
    yield from (("output", y.detach()), ("input", leaf.grad))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield f"{name} gradient", parameter.grad
    yield from ((name, buffer.double()) for name, buffer in model.named_buffers())


@x86
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batch", [3, 4])
def test_a_training_step_is_the_plain_one(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, calls: Calls, batch: int, checkpointing: bool
) -> None:
    model = tiny(kernel_sizes=(3, 13, 7, 17), layer_scale_init_value=0.5, grad_checkpointing=checkpointing)
    x = torch.randn(batch, 2, 72, 48, generator=torch.Generator().manual_seed(0))
    results = {}
    for setting in ("on", "off"):
        monkeypatch.setenv("WIDEFIELD_KERNELS", setting)
        calls.clear()
        results[setting] = dict(trained(copy.deepcopy(model).train(), x))
        assert set(calls) == ({"depthwise_conv2d", "moments", "grn"} if setting == "on" else set())
    assert results["on"].keys() == results["off"].keys()
    largest = max(plain.abs().max() for name, plain in results["off"].items() if "gradient" in name)
    for name, plain in results["off"].items():
        # Some gradients are zero but for rounding: a bias in front of a batch norm.
        scale = max(plain.abs().max().item(), 1e-2 * largest.item())
        assert (results["on"][name] - plain).abs().max() < 1e-4 * scale, name


@x86
def test_the_same_bits_every_time(tiny: Build) -> None:
    model = tiny(kernel_sizes=(3, 13, 7, 17))
    x = torch.randn(3, 2, 64, 40)
    first, second = (dict(trained(copy.deepcopy(model).train(), x)) for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@x86
@pytest.mark.parametrize("deploy", [False, True])
def test_in_evaluation_the_network_is_the_plain_one(
    tiny: Build, shake: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch, deploy: bool
) -> None:
    model = tiny(kernel_sizes=(3, 13, 7, 17))
    shake(model)
    model.eval()
    if deploy:
        model.reparameterize()
    x = torch.randn(2, 2, 72, 48)
    with torch.no_grad():
        ours = model(x)
        monkeypatch.setenv("WIDEFIELD_KERNELS", "off")
        assert relative_error(ours, model(x)) < 1e-5


@x86
def test_synchronised_norms_keep_the_branches(calls: Calls) -> None:
    block = nn.SyncBatchNorm.convert_sync_batchnorm(DilatedReparamBlock(2, 13)).eval()
    for module in block.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.training = True  # forward would ask for a GPU; what is chosen is asked here
    assert block.as_one_convolution(torch.randn(2, 2, 4, 4)) is None
    assert not calls


@x86
def test_other_types_and_compiled_code_are_pytorchs(calls: Calls) -> None:
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(2, 1, 5, 5)
    depthwise_conv2d(x, weight)
    assert calls.count("depthwise_conv2d") == 1
    depthwise_conv2d(x.bfloat16(), weight)
    depthwise_conv2d(x.double(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv2d(x, weight).dtype == torch.bfloat16
    torch.compile(depthwise_conv2d, backend="eager")(x, weight)
    torch.export.export(DilatedReparamBlock(2, 13).eval(), (x,))
    assert calls.count("depthwise_conv2d") == 1


def test_gradients_under_autocast(tiny: Build) -> None:
    model = tiny(kernel_sizes=(3, 13, 7, 17)).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 2, 64, 40)).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
