"""The depthwise operator against PyTorch's in fp64: in Triton's interpreter on a CPU, and (marked gpu) compiled."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests_support import relative_error
from torch import Tensor, nn

from backbone import UniRepLKNet, reparam
from backbone.kernels import DepthwiseConv2d, depthwise, depthwise_conv2d
from backbone.kernels.depthwise import depthwise_conv2d_sums, why_not
from backbone.kernels.sizes import power_of_two
from backbone.kernels.tilings import BANDS, WINDOW, Tiling, forward_tilings, weight_grad_tilings
from backbone.reparam import DilatedReparamBlock
from backbone.unireplknet import UniRepLKNetBlock

LARGEST_ERROR = {torch.bfloat16: 3e-3, torch.float16: 1e-3, torch.float32: 1e-5}


@dataclass(frozen=True)
class Case:
    images: int
    channels: int
    height: int
    width: int
    k: int
    dilation: int = 1

    def tensors(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input, weight, bias, gradient of the output."""
        random = torch.Generator().manual_seed(hash(self) % 2**31)
        shape = (self.images, self.channels, self.height, self.width)
        x, grad = (torch.randn(shape, generator=random).to(device, dtype) for _ in range(2))
        weight = torch.randn(self.channels, 1, self.k, self.k, generator=random).to(device)
        # As bf16 rounds it, so that the comparison is of the arithmetic.
        weight = (weight / self.k).to(torch.bfloat16 if dtype == torch.bfloat16 else dtype).float()
        return x, weight, torch.randn(self.channels, generator=random).to(device), grad


CASES = [
    Case(3, 3, 14, 14, 13),
    Case(2, 9, 7, 7, 13),
    Case(2, 2, 28, 28, 13),
    Case(2, 2, 14, 14, 31),
    Case(1, 2, 20, 12, 9, dilation=3),
    Case(2, 2, 34, 5, 3, dilation=5),
    Case(2, 5, 9, 33, 5),
    Case(1, 2, 1, 37, 21),
    Case(1, 1, 1, 1, 7),
    Case(9, 8, 14, 14, 13),  # pixels of whole 16 bytes: read in boxes
    Case(3, 16, 30, 7, 9),
]
#: Maps cut into several tiles, and kernels too large for all their bands: slow in the interpreter.
LARGE_CASES = [Case(1, 1, 33, 18, 9), Case(1, 1, 9, 34, 31), Case(1, 1, 30, 17, 17)]


def reference(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's convolution in fp64."""
    return F.conv2d(
        x.double(),
        weight.double(),
        None if bias is None else bias.double(),
        padding=case.dilation * (case.k // 2),
        dilation=case.dilation,
        groups=case.channels,
    )


def largest_error(expected: Tensor, dtype: torch.dtype) -> float:
    """The bound, or what rounding the exact values costs: of a few values that can be more (bf16: up to 3.9e-3)."""
    return max(LARGEST_ERROR[dtype], 1.01 * relative_error(expected.to(dtype), expected))


def assert_exact(case: Case, dtype: torch.dtype, device: str) -> None:
    """Output and all gradients."""
    x, weight, bias, grad = case.tensors(dtype, device)
    assert why_not(x, weight, case.dilation) is None
    ours = [t.clone().requires_grad_() for t in (x, weight, bias)]
    theirs = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = depthwise_conv2d(*ours, case.dilation)
    expected = reference(case, *theirs)
    assert y.dtype == dtype
    assert y.permute(0, 2, 3, 1).is_contiguous()
    y.backward(grad)
    expected.backward(grad.double())
    assert relative_error(y, expected) <= largest_error(expected, dtype)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert relative_error(a.grad, b.grad) <= largest_error(b.grad, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact_in_half_precision(case: Case, dtype: torch.dtype, device: str) -> None:
    assert_exact(case, dtype, device)


@pytest.mark.parametrize("case", LARGE_CASES, ids=str)
def test_exact_on_large_maps(case: Case, device: str) -> None:
    assert_exact(case, torch.float16, device)


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[6], CASES[8]], ids=str)
def test_exact_in_fp32(case: Case, device: str) -> None:
    assert_exact(case, torch.float32, device)


ANY_CASE = st.builds(
    Case,
    images=st.integers(1, 9),
    channels=st.integers(1, 9),
    height=st.integers(1, 12),
    width=st.integers(1, 17),
    k=st.sampled_from([3, 5, 7, 9, 11, 13]),
    dilation=st.integers(1, 2),
).filter(lambda case: case.k > 3 or case.dilation > 1)  # a plain 3 x 3 is PyTorch's


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=ANY_CASE, dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_exact_on_any_small_shape(case: Case, dtype: torch.dtype, device: str) -> None:
    assert_exact(case, dtype, device)


@pytest.mark.gpu
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    case=st.builds(
        Case,
        images=st.integers(1, 40),
        channels=st.integers(1, 70),
        height=st.integers(1, 60),
        width=st.integers(1, 70),
        k=st.sampled_from([5, 7, 9, 11, 13, 15, 17, 21, 31]),
    ),
    dtype=st.sampled_from(list(LARGEST_ERROR)),
)
def test_exact_on_any_shape(case: Case, dtype: torch.dtype, device: str) -> None:
    assert_exact(case, dtype, device)


@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[6], LARGE_CASES[0]], ids=str)
def test_sums_are_those_of_the_output(case: Case, device: str) -> None:
    x, weight, bias, grad = case.tensors(torch.float16, device)
    ours = [t.clone().requires_grad_() for t in (x, weight, bias)]
    theirs = [t.double().requires_grad_() for t in (x, weight, bias)]
    y, sums, squares = depthwise_conv2d_sums(*ours, case.dilation)
    expected = reference(case, *theirs)
    assert relative_error(y, expected) < 1e-3
    assert relative_error(sums, expected.sum((2, 3))) < 1e-3
    assert relative_error(squares, expected.square().sum((0, 2, 3))) < 1e-3
    ((y * grad).sum().float() + sums.square().sum() + squares.sum()).backward()
    wide = (expected * grad).sum() + expected.sum((2, 3)).square().sum() + expected.square().sum()
    wide.backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert relative_error(a.grad, b.grad) < 2e-3


@pytest.mark.slow
def test_every_operator_passes_opcheck(device: str) -> None:
    x, weight, bias, grad = Case(2, 3, 9, 9, 3, dilation=2).tensors(torch.float16, device)
    x.requires_grad_()
    weight.requires_grad_()
    kernels = torch.stack([weight[:, 0], 2 * weight[:, 0]]).detach().requires_grad_()
    calls: dict[str, tuple[Any, ...]] = {
        "depthwise_conv2d": (x, weight, bias, 2, False),
        "depthwise_conv2d_sums": (x, weight, bias, 2),
        "depthwise_conv2d_moments": (x.detach()[:, :, :4, :5].requires_grad_(), kernels),
        "depthwise_conv2d_weight_grad": (x, grad, 3, 2, torch.float32),
    }
    for name, arguments in calls.items():
        torch.library.opcheck(getattr(torch.ops.widefield, name), arguments)


def test_second_gradients(device: str) -> None:
    x, weight, _, _ = Case(2, 2, 5, 6, 5).tensors(torch.float32, device)
    x.requires_grad_()
    weight.requires_grad_()

    def gradients(convolve: Callable[..., Tensor]) -> list[Tensor]:
        y = convolve(x, weight)
        first = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))]

    ours = gradients(depthwise_conv2d)
    theirs = gradients(lambda x, w: F.conv2d(x, w, padding=2, groups=2))
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 1e-5


def test_the_same_bits_every_time(device: str) -> None:
    x, weight, _, grad = Case(40, 3, 7, 7, 7).tensors(torch.bfloat16, device)
    weight.requires_grad_()
    results = []
    for _ in range(2):
        (grad_weight,) = torch.autograd.grad(depthwise_conv2d(x, weight), weight, grad)
        results.append(grad_weight)
    assert torch.equal(*results)


def test_any_memory_layout(device: str) -> None:
    x, weight, _, _ = Case(2, 4, 6, 10, 5).tensors(torch.float16, device)
    plain = depthwise_conv2d(x, weight)
    for layout in (
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x[:1].expand(2, -1, -1, -1),
    ):
        expected = plain if torch.equal(layout, x) else plain[:1].expand(2, -1, -1, -1)
        assert torch.equal(depthwise_conv2d(layout, weight), expected)


def test_compiled_code_calls_the_kernels_and_exported_code_does_not(
    device: str,
) -> None:
    layer = DepthwiseConv2d(3, 5).to(device).eval()
    x = torch.randn(2, 3, 9, 9, device=device)
    called: list[str] = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with torch.no_grad():
        torch.compile(layer, backend=backend, fullgraph=True)(x)
        assert any("widefield" in name for name in called)
        for strict in (True, False):
            program = torch.export.export(layer, (x,), strict=strict)
            assert "widefield" not in str(program.graph)
    torch.compiler.reset()


# -- the block that uses them -------------------------------------------------------------------------------------


def gathered(block: UniRepLKNetBlock, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output of the block's spatial half, running statistics, and all gradients."""
    x = x.clone().requires_grad_()
    y, scale, shift = block._convolve(x)
    y = y * scale if shift is None else y * scale + shift
    y.backward(grad.to(y.dtype))
    gradients = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"y": y, "x": x.grad} | gradients | dict(block.named_buffers())


@pytest.fixture
def block(shake: Callable[[nn.Module], None]) -> Callable[..., UniRepLKNetBlock]:
    def build(k: int, channels: int = 4, **overrides: Any) -> UniRepLKNetBlock:
        torch.manual_seed(0)
        built = UniRepLKNetBlock(channels, k, layer_scale_init_value=0.5, **overrides)
        shake(built)
        return built

    return build


@pytest.mark.parametrize("k", [5, *(pytest.param(k, marks=pytest.mark.slow) for k in (7, 13))])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norms_folded_on_chip_are_the_same_mathematics(
    block: Callable[..., UniRepLKNetBlock],
    k: int,
    training: bool,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = block(k).train(training).to(device)
    x = torch.randn(4, 4, 9, 8, device=device)
    grad = torch.randn_like(x)
    fused = copy.deepcopy(plain)
    # fp32 sums are not made on chip, but by the same code around them.
    monkeypatch.setattr(depthwise, "HALF", (torch.float32,))
    assert fused.dwconv.as_one_convolution(x) is not None  # type: ignore[operator]
    fused = copy.deepcopy(plain)
    ours = gathered(fused, x, grad)
    monkeypatch.setenv("WIDEFIELD_KERNELS", "off")
    theirs = gathered(copy.deepcopy(plain), x, grad)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if (
            value.is_floating_point() and value.norm() > 1e-3
        ):  # the gradients of shifts before a batch norm are 0, up to rounding
            assert relative_error(ours[name], value) <= 1e-4, name
    assert ours["norm.num_batches_tracked"] == theirs["norm.num_batches_tracked"]


def test_branches_folded_into_one_convolution_compile_whole(
    block: Callable[..., UniRepLKNetBlock], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = block(13).dwconv.train()
    x = torch.randn(4, 4, 14, 14)

    def run(layer: nn.Module, form: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        leaf = x.clone().requires_grad_()
        (form(leaf) * torch.arange(14.0)).sum().backward()
        assert leaf.grad is not None
        gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        return {"x": leaf.grad} | gradients | dict(layer.named_buffers())

    folded = copy.deepcopy(plain)
    theirs = run(plain, plain)
    monkeypatch.setattr(reparam, "sums_on_chip", lambda *_, **__: True)
    ours = run(folded, torch.compile(folded, fullgraph=True, backend="aot_eager"))
    torch.compiler.reset()
    for name, value in theirs.items():
        if value.is_floating_point() and value.norm() > 1e-3:
            assert relative_error(ours[name], value) <= 1e-4, name
        else:
            assert torch.allclose(ours[name], value, atol=1e-3), name


def test_branches_folded_into_one_convolution_compile_whole_without_gradients(
    block: Callable[..., UniRepLKNetBlock], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = block(13).dwconv.eval()
    x = torch.randn(4, 4, 14, 14)
    with torch.no_grad():
        theirs = plain(x)
        monkeypatch.setattr(reparam, "sums_on_chip", lambda *_, **__: True)
        ours = torch.compile(plain, fullgraph=True, backend="aot_eager")(x)
    torch.compiler.reset()
    assert relative_error(ours, theirs) <= 1e-4


@pytest.mark.slow
def test_no_further_from_fp32_than_the_plain_form_in_half_precision(
    block: Callable[..., UniRepLKNetBlock], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = block(13, channels=8).train().to(device)
    half = copy.deepcopy(exact)
    half.se.to(torch.bfloat16)
    side = 14 if device == "cuda" else 7
    x = torch.randn(8, 8, side, side, device=device).bfloat16()
    grad = torch.randn_like(x)
    ours = gathered(copy.deepcopy(half), x, grad)
    monkeypatch.setenv("WIDEFIELD_KERNELS", "off")
    theirs = gathered(copy.deepcopy(half).to(torch.bfloat16), x, grad)
    wide = gathered(copy.deepcopy(exact).double(), x.double(), grad.double())
    few: list[tuple[float, float]] = []
    for name, value in wide.items():
        if name.endswith(("running_mean", "running_var", "tracked")) or value.norm() < 1e-3:
            continue
        errors = relative_error(ours[name], value), relative_error(theirs[name], value)
        # Of a few values the rounding is a matter of luck, another one on every GPU: there all such tensors together.
        if value.numel() >= 64 or device == "cpu":
            assert errors[0] <= 1.5 * errors[1] + 1e-4, name
        if value.numel() < 64:
            few.append(errors)
    mine, yours = torch.tensor(few).square().mean(0).sqrt()
    assert len(few) >= 10
    assert mine <= 1.5 * yours


def test_synchronised_norms_keep_the_plain_form(device: str) -> None:
    block = DilatedReparamBlock(4, 7).to(device)
    x = torch.randn(2, 4, 9, 9, device=device).half()
    assert block.as_one_convolution(x) is not None
    assert nn.SyncBatchNorm.convert_sync_batchnorm(block).as_one_convolution(x) is None


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:TensorFloat32:UserWarning")
def test_compiled_networks_learn_the_same(
    tiny: Callable[..., UniRepLKNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
    plain = tiny(kernel_sizes=(3, 13, 13, 7)).cuda().train()
    x = torch.randn(4, 2, 96, 64, device="cuda")
    results = []
    for compiled in (True, False):
        model = copy.deepcopy(plain)
        with torch.autocast("cuda", torch.bfloat16):
            loss = (torch.compile(model) if compiled else model)(x).square().mean()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        results.append((loss.item(), norm.item()))
    torch.compiler.reset()
    assert results[0] == pytest.approx(results[1], rel=2e-2)


@pytest.mark.gpu
def test_networks_answer_the_same_with_kernels_on_and_off(
    tiny: Callable[..., UniRepLKNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
    model = tiny(kernel_sizes=(3, 13, 13, 7)).cuda().eval()
    x = torch.randn(4, 2, 96, 64, device="cuda")
    for form in ("train form", "deploy form"):
        with torch.no_grad():
            ours = model(x)
            with torch.autocast("cuda", torch.bfloat16):
                half = model(x)
            monkeypatch.setenv("WIDEFIELD_KERNELS", "off")
            assert relative_error(ours, model(x)) < 1e-5, form
            assert relative_error(half, model(x)) < 3e-2, form
            monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
        model.reparameterize()


@pytest.mark.gpu
def test_networks_compile_without_graph_breaks_on_a_gpu(
    tiny: Callable[..., UniRepLKNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
    model = tiny(kernel_sizes=(3, 13, 13, 7)).cuda().train()
    x = torch.randn(4, 2, 96, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        eager = copy.deepcopy(model)(x)
        compiled = torch.compile(model, fullgraph=True)(x)
    assert relative_error(compiled, eager) < 3e-2
    compiled.sum().backward()


# -- choices and refusals -----------------------------------------------------------------------------------------


def test_small_maps_are_left_to_pytorch_unless_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEFIELD_KERNELS", "on")
    monkeypatch.setattr(depthwise, "why_not_on", lambda device: None)  # as on a GPU
    large, small = torch.empty(128, 320, 14, 14, device="meta"), torch.empty(1, 320, 14, 14, device="meta")
    weight = torch.empty(320, 1, 13, 13, device="meta")
    assert why_not(large, weight) is None
    assert why_not(small, weight) == "on small maps they start sooner"
    assert depthwise.starts_for(1, 2) is False
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert why_not(small, weight) is None
    monkeypatch.undo()
    monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
    assert depthwise.starts_for(1, 2)


@given(reach=st.integers(1, 15), height=st.integers(1, 200), width=st.integers(1, 200), boxes=st.booleans())
def test_tilings_cover_the_map_and_the_reach(reach: int, height: int, width: int, boxes: bool) -> None:
    tilings = forward_tilings(reach, height, width, boxes)
    assert boxes or not any(tiling.boxes for tiling in tilings)
    for tiling in tilings + weight_grad_tilings(reach, height, width):
        if tiling.boxes:  # three of them fit into the shared memory of a Hopper GPU, with room for the output
            assert (tiling.tile[1], tiling.halo) == (1, (0, 0))
            assert 3 * 2 * 16 * power_of_two(tiling.tile[0]) * tiling.images * tiling.channels <= 196 * 1024
        for side, tile, halo, patches, size in zip(
            tiling.patch, tiling.tile, tiling.halo, tiling.reach, (height, width), strict=True
        ):
            whole = tile * side >= size
            assert halo in (0, patches)
            # Either the kernel's whole reach is read, or all there is of the map.
            assert (patches + 1) * side > reach or (patches + 1) * side >= size
            assert halo == patches or whole or tile == 0
        if not tiling.by_column:
            bands = (2 * tiling.reach[0] + 1) * (2 * tiling.reach[1] + 1)
            columns = tiling.tile[1] + 2 * tiling.halo[1]
            rows = min(2 * tiling.reach[0] + 1, tiling.tile[0] + 2 * tiling.halo[0])
            assert bands <= BANDS
            assert rows * columns <= WINDOW


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (9, 8, 1, 1), (1, 8, 1, 5), (2, 8, 5, 1)])
def test_sizes_of_one_may_have_any_stride(shape: tuple[int, ...], device: str) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 1, 5, 5, generator=random).to(device)
    x = torch.randn(shape, generator=random).to(device, torch.float16)
    x = x.contiguous(memory_format=torch.channels_last)
    x = x.as_strided(
        shape, [3 if size == 1 else stride for size, stride in zip(shape, x.stride(), strict=True)]
    )
    expected = F.conv2d(x.double(), weight.double(), padding=2, groups=8)
    assert relative_error(depthwise_conv2d(x, weight), expected) < 1e-3


def test_every_tiling_of_a_shape_gives_the_same(device: str) -> None:
    from backbone.kernels import launch

    case = Case(3, 8, 14, 14, 7)
    x, weight, bias, _ = case.tensors(torch.float16, device)
    expected = reference(case, x, weight, bias)
    tilings = forward_tilings(3, 14, 14, launch._boxes(x.permute(0, 2, 3, 1).contiguous()))
    assert len({tiling.patch for tiling in tilings}) == 2
    assert {tiling.by_column for tiling in tilings} == {True, False}
    for tiling in tilings:
        y_NHWC, sums_TNC, _ = launch._convolve_by_patch(
            x.permute(0, 2, 3, 1).contiguous(), weight, bias, 1, sums=True, tiling=tiling
        )
        assert relative_error(y_NHWC.permute(0, 3, 1, 2), expected) < 1e-3
        assert relative_error(sums_TNC.sum(0), expected.sum((2, 3))) < 1e-3


def test_autotuning_remembers_the_fastest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from backbone.kernels import autotune

    tilings = forward_tilings(6, 14, 14, boxes=True)
    timed: list[Tiling] = []

    def milliseconds(run: Callable[[Tiling], Any], tiling: Tiling) -> float:
        timed.append(tiling)
        return abs(tilings.index(tiling) - 2) + 1.0  # the third is the fastest

    def choose() -> Tiling:
        return autotune.choose("forward", (8, 3, 14, 14), torch.device("cuda"), tilings, timed.append)

    monkeypatch.setattr(autotune, "_milliseconds", milliseconds)
    monkeypatch.setattr(autotune, "_remembered", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("WIDEFIELD_CACHE", str(tmp_path / "cache"))
    assert choose() == tilings[0]
    assert not timed
    monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "1")
    assert [choose(), choose()] == [tilings[2]] * 2
    assert timed == list(tilings)
    monkeypatch.setattr(autotune, "_remembered", {})  # as another process
    assert choose() == tilings[2]
    assert len(timed) == len(tilings)
    (tmp_path / "cache" / "tilings.json").write_text("{broken")
    monkeypatch.setattr(autotune, "_remembered", {})
    assert choose() == tilings[2]
    assert len(timed) == 2 * len(tilings)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        ((2, 3, 8, 8), (4, 1, 3, 3), "do not fit"),
        ((2, 3, 8, 8), (3, 2, 3, 3), "do not fit"),
        ((2, 3, 8, 8), (3, 1, 3, 5), "do not fit"),
        ((3, 8, 8), (3, 1, 3, 3), "do not fit"),
        ((2, 3, 8, 8), (3, 1, 4, 4), "even kernel"),
    ],
)
def test_bad_shapes_are_refused_in_one_sentence(
    x: tuple[int, ...], weight: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(torch.zeros(x), torch.zeros(weight))
    with pytest.raises(ValueError, match="bias"):
        depthwise_conv2d(torch.zeros(1, 3, 8, 8), torch.zeros(3, 1, 3, 3), torch.zeros(2))


def test_elsewhere_pytorch_serves_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthwise, "_told", set())
    monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
    layer = DepthwiseConv2d(3, 5, dilation=2)
    x = torch.randn(2, 3, 12, 9)
    with caplog.at_level("INFO"):
        first, second = layer(x), layer(x)
    assert len(caplog.records) == 1
    assert "on a CPU" in caplog.text
    expected = F.conv2d(x, layer.weight, layer.bias, padding=4, dilation=2, groups=3)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    monkeypatch.setenv("WIDEFIELD_KERNELS", "off")
    assert why_not(x, layer.weight) == "WIDEFIELD_KERNELS is off"
    monkeypatch.setenv("WIDEFIELD_KERNELS", "interpret")
    assert why_not(x.double(), layer.weight) == "there are no kernels for torch.float64 and torch.float32"
    assert "from 3 to 31" in str(why_not(x, torch.zeros(3, 1, 33, 33)))
    assert why_not(x[:0], layer.weight) == "the map is empty"
