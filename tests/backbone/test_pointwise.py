"""The pointwise half of a block in deploy form by one operator, against the plain layers in fp64."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests_support import relative_error
from torch import Tensor, nn

from backbone import unireplknet_t
from backbone.kernels import kernels_compiled_ahead, pointwise
from backbone.unireplknet import UniRepLKNetBlock


@pytest.fixture
def asked(device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device on which the kernels run, where the operator is asked for."""
    monkeypatch.setenv("WIDEFIELD_POINTWISE", "always")
    return device


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the maps that came to the operator."""
    shapes: list[torch.Size] = []
    run = pointwise.pointwise

    def noted(x: Tensor, *others: Tensor) -> Tensor:
        shapes.append(x.shape)
        return run(x, *others)

    monkeypatch.setattr(pointwise, "pointwise", noted)
    return shapes


def deploy_block(channels: int, device: str, dtype: torch.dtype = torch.float16, **others: Any) -> Any:
    torch.manual_seed(0)
    block = (
        UniRepLKNetBlock(channels, **({"kernel_size": 0, "deploy": True} | others)).to(device, dtype).eval()
    )
    nn.init.normal_(block.act[1].gamma)
    for linear in (block.pwconv1[1], block.pwconv2[0]):
        nn.init.normal_(linear.bias, std=0.5)
    return block


def operands(block: Any, x_NCHW: Tensor) -> tuple[Tensor, ...]:
    """Those of the operator: the map, itself as the residual, and the block's weights."""
    x_NHWC = x_NCHW.permute(0, 2, 3, 1)
    (_, first), (_, grn), (second, _) = block.pwconv1, block.act, block.pwconv2
    return x_NHWC, x_NHWC, first.weight, first.bias, grn.gamma, second.weight, second.bias


def random_map(*shape: int, device: str, dtype: torch.dtype = torch.float16) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return x.to(device, dtype).contiguous(memory_format=torch.channels_last)


def assert_as_exact_as_plain(block: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """No further from fp64 than 1.5 times the plain form of the same type."""
    with torch.no_grad():
        ours = block(x)
        with monkeypatch.context() as off:
            off.setenv("WIDEFIELD_KERNELS", "off")
            plain, exact = block(x), copy.deepcopy(block).double()(x.double())
    assert ours.dtype == x.dtype
    assert relative_error(ours, exact) <= 1.5 * relative_error(plain, exact)
    return ours  # type: ignore[no-any-return]


SHAPES = [
    (1, 7, 7, 32),  # one block of rows, more than half of which lies beyond the map
    (3, 7, 7, 48),  # 49 pixels: a block meets up to four images
    (2, 14, 14, 40),  # hidden channels that no tile divides
    (3, 15, 17, 32),
    (5, 5, 5, 64),  # blocks of 64 rows
    (2, 16, 16, 32),  # whole blocks in an image: no table
    (1, 28, 28, 32),  # many blocks of an image
    (1, 14, 14, 160),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_further_from_fp64_than_the_plain_layers(
    shape: tuple[int, ...], asked: str, called: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, height, width, channels = shape
    block, x = deploy_block(channels, asked), random_map(n, channels, height, width, device=asked)
    y = assert_as_exact_as_plain(block, x, monkeypatch)
    assert called == [shape]
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(4, 56, 80), (5, 28, 160), (7, 14, 320), (9, 7, 640), (9, 5, 640), (3, 14, 384)]
)
def test_the_shapes_of_networks(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, called: list[torch.Size]
) -> None:
    monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
    monkeypatch.setenv("WIDEFIELD_POINTWISE", "always")
    n, side, channels = shape
    x = random_map(n, channels, side, side, device="cuda", dtype=dtype)
    assert_as_exact_as_plain(deploy_block(channels, "cuda", dtype), x, monkeypatch)
    assert len(called) == 1


def test_bf16(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = (
        deploy_block(32, asked, torch.bfloat16),
        random_map(2, 32, 7, 7, device=asked, dtype=torch.bfloat16),
    )
    assert_as_exact_as_plain(block, x, monkeypatch)


def test_squares_beyond_fp16(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = deploy_block(32, asked)
    nn.init.constant_(block.pwconv1[1].bias, 300.0)
    y = assert_as_exact_as_plain(block, random_map(2, 32, 7, 7, device=asked), monkeypatch)
    assert y.isfinite().all()


@pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning"
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_an_image_that_is_not_finite_leaves_the_others_alone(
    bad: float, dtype: torch.dtype, asked: str, called: list[torch.Size]
) -> None:
    block, x = deploy_block(32, asked, dtype), random_map(3, 32, 7, 7, device=asked, dtype=dtype)
    with torch.no_grad():
        expected = block(x)
        x[1, :, 3, 3] = bad
        spoilt = block(x)
    assert len(called) == 2
    assert spoilt[1].isfinite().all() == x[1].isfinite().all()  # 1e30 is infinite in fp16 alone
    for image in (0, 2):
        assert torch.equal(spoilt[image], expected[image])


def test_it_is_used_by_default_where_the_map_is_large(
    asked: str, called: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    block, one = deploy_block(32, asked), random_map(1, 32, 7, 7, device=asked)
    monkeypatch.delenv("WIDEFIELD_POINTWISE")
    with torch.no_grad():
        block(one)
        assert called == []
        monkeypatch.setattr(pointwise, "FEWEST_PROGRAMS", 2)
        block(one)
        assert called == []  # 49 rows are a single program
        three = random_map(3, 32, 7, 7, device=asked)
        block(three)
    assert called == [(3, 7, 7, 32)]


def test_unireplknet_t_pays_in_batches_of_128_and_not_with_single_images() -> None:
    for channels, side in ((80, 56), (160, 28), (320, 14), (640, 7)):
        maps = [torch.empty(images, side, side, channels, device="meta") for images in (1, 128)]
        few, many = (pointwise._programs(x) for x in maps)
        assert many >= pointwise.FEWEST_PROGRAMS
        assert few < pointwise.FEWEST_PROGRAMS


@pytest.fixture
def filled() -> Iterator[None]:
    """Memory that nothing has been written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("filled")
def test_the_same_bits_every_time_and_no_memory_read_before_it_is_written(asked: str) -> None:
    arguments = operands(deploy_block(32, asked), random_map(3, 32, 7, 7, device=asked))
    with torch.no_grad():
        first = pointwise.pointwise(*arguments)
        assert first.isfinite().all()
        torch.use_deterministic_algorithms(False)
        assert torch.equal(first, pointwise.pointwise(*arguments))


def test_any_memory_layout(asked: str, called: list[torch.Size]) -> None:
    block, x = deploy_block(32, asked), random_map(2, 32, 7, 7, device=asked)
    with torch.no_grad():
        expected = block(x)
        assert relative_error(block(x.contiguous()), expected) < 1e-3
        for linear in (block.pwconv1[1], block.pwconv2[0]):
            weight = linear.weight
            unaligned = torch.cat([weight.flatten()[:1], weight.flatten()])[1:].view_as(weight)
            linear.weight = nn.Parameter(unaligned)
        assert torch.equal(block(x), expected)
    assert len(called) == 3


def test_operator_passes_opcheck(asked: str) -> None:
    x, residual, *weights = operands(deploy_block(32, asked), random_map(2, 32, 7, 7, device=asked))
    weights[2] = weights[2].flatten()
    maps = x.flatten(1, 2), 2 * residual.flatten(1, 2)
    torch.library.opcheck(torch.ops.widefield.pointwise, (*maps, *(weight.detach() for weight in weights)))


def test_there_are_no_gradients(asked: str) -> None:
    y = pointwise.pointwise(*operands(deploy_block(32, asked), random_map(1, 32, 7, 7, device=asked)))
    with pytest.raises(NotImplementedError, match="the layers that it replaces have the gradients"):
        y.sum().backward()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_calls_it_and_exported_code_does_not(dynamic: bool, asked: str) -> None:
    block, graphs = deploy_block(32, asked), list[str]()

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(str(graph.graph))
        return graph

    with torch.no_grad():
        compiled = torch.compile(block, backend=backend, fullgraph=True, dynamic=dynamic)
        for images in (2, 3):
            x = random_map(images, 32, 7, 9, device=asked)
            assert torch.equal(compiled(x), block(x))
        assert all("widefield.pointwise" in graph for graph in graphs)
        assert len(graphs) == 1 if dynamic else 2
        assert "widefield" not in str(torch.export.export(block, (x,)).graph)
    torch.compiler.reset()


# -- where the layers stay -----------------------------------------------------------------------------------------

REASONS = (
    "switched off", "kernels off", "gradients", "training", "train form", "fp32", "autocast", "adapter", "hook",
    "hook on a part", "quantised", "activation", "few pixels", "channels",
)  # fmt: skip


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Quantised(Tensor):
    """Stands for a weight that is no plain tensor."""


@pytest.mark.parametrize("reason", REASONS)
def test_otherwise_the_layers_answer_themselves(
    reason: str, asked: str, called: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = 24 if reason == "channels" else 32
    block = deploy_block(channels, asked, drop_path=0.5)
    x = random_map(2, channels, 4 if reason == "few pixels" else 7, 5, device=asked)
    if reason not in ("channels", "few pixels"):
        with torch.no_grad():
            block(x)
        assert len(called) == 1  # but for this reason it applies
        called.clear()
    heard: list[str] = []
    if reason == "switched off":
        monkeypatch.setenv("WIDEFIELD_POINTWISE", "off")
    elif reason == "kernels off":
        monkeypatch.setenv("WIDEFIELD_KERNELS", "off")
    elif reason == "training":
        block.train()
    elif reason == "train form":
        block = UniRepLKNetBlock(32, kernel_size=0).to(asked).half().eval()
    elif reason == "fp32":
        block, x = block.float(), x.float()
    elif reason == "adapter":
        adapter = Scaled(4 * 32, 32).to(x)
        adapter.load_state_dict(block.pwconv2[0].state_dict())
        block.pwconv2[0] = adapter
    elif reason.startswith("hook"):
        place = block.act[1] if reason == "hook" else block.pwconv1
        place.register_forward_hook(lambda *_: heard.append("called"))
    elif reason == "quantised":
        linear = block.pwconv1[1]
        weight = nn.Parameter(linear.weight.detach().as_subclass(Quantised), requires_grad=False)
        assert type(weight) is Quantised
        linear.weight = weight
    elif reason == "activation":
        block.act[0] = nn.SiLU()
    half = torch.autocast(asked, torch.bfloat16, enabled=reason == "autocast")
    with torch.set_grad_enabled(reason == "gradients"), half:
        y = block(x)
    assert called == []
    assert y.shape == x.shape
    if reason == "hook on a part":
        assert heard == ["called"]


def test_cpus_keep_the_layers(monkeypatch: pytest.MonkeyPatch, called: list[torch.Size]) -> None:
    monkeypatch.setenv("WIDEFIELD_POINTWISE", "always")
    monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
    with torch.no_grad():
        deploy_block(32, "cpu")(random_map(1, 32, 7, 7, device="cpu"))
    assert called == []


def test_another_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEFIELD_POINTWISE", "yes")
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="WIDEFIELD_POINTWISE is on, always or off, not 'yes'"),
    ):
        deploy_block(32, "cpu")(random_map(1, 32, 7, 7, device="cpu"))


def test_a_block_of_rows_meets_no_more_images_than_its_tiles_say() -> None:
    for pixels in range(pointwise.FEWEST_PIXELS, 300):
        tiles = pointwise.tiles(pixels, 320)
        starts = range(0, pixels * tiles.rows, tiles.rows)  # after these all repeats
        met = max((start + tiles.rows - 1) // pixels - start // pixels + 1 for start in starts)
        assert met == tiles.images <= pointwise.MOST_IMAGES


# -- a whole network -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("side", [224, 160])
def test_networks_answer_the_same(
    side: int, monkeypatch: pytest.MonkeyPatch, called: list[torch.Size]
) -> None:
    monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
    torch.manual_seed(0)
    model = unireplknet_t(layer_scale_init_value=0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("act.1.gamma"):
            nn.init.normal_(parameter)
    model = model.eval().reparameterize().cuda().to(memory_format=torch.channels_last).bfloat16()
    x = random_map(4, 3, side, side, device="cuda", dtype=torch.bfloat16)
    monkeypatch.setenv("WIDEFIELD_POINTWISE", "off")
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        without = model(x)
        assert called == []
        monkeypatch.setenv("WIDEFIELD_POINTWISE", "always")
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            with kernels_compiled_ahead():
                model(x)
            eager = model(x)
        torch.cuda.synchronize()
        assert len(called) == 2 * sum(model.depths)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = model(x)
        graph.replay()
    for answer in (eager, recorded):
        assert relative_error(answer, exact) <= 1.5 * relative_error(without, exact)
