"""Compiled networks learn what plain ones do, and what they answered stays as it was."""

import copy
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests_support import TINY
from torch import Tensor, nn

from backbone import UniRepLKNet
from backbone.unireplknet import DropPath
from workbench.compiled import compiled, what_pays
from workbench.errors import UsageError

Act = Callable[..., Path]


def learn(
    model: nn.Module, how: bool | str, device: str, side: int = 16
) -> tuple[list[float], list[Tensor], Tensor]:
    """Losses of a few steps, the answers of all steps, kept, and an answer after them."""
    random = torch.Generator(device).manual_seed(0)
    forward = compiled(model, how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, answers = [], []
    for _ in range(6):
        x = torch.randn(8, 3, side, side, device=device, generator=random)
        answer = forward(x)
        loss = F.cross_entropy(answer, torch.arange(8, device=device) % 4)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        answers.append(answer.detach())
    model.eval()
    with torch.no_grad():
        return losses, answers, forward(torch.ones(3, 3, side, side, device=device))


@pytest.mark.gpu
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch",
    "ignore:TensorFloat32:UserWarning",
    "ignore:The CUDA Graph is empty:UserWarning",  # torch makes one to own the others' memory
)
@pytest.mark.parametrize("how", [True, "graphs", "eager_graphs"])
def test_same_learning_and_answers_that_stay(how: bool | str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).cuda()
    losses, answers, last = learn(copy.deepcopy(model), False, "cuda")
    ours = learn(model, how, "cuda")
    assert ours[0] == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(ours[1], answers, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(ours[2], last, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch",
    "ignore:TensorFloat32:UserWarning",
    "ignore:The .grad attribute of a Tensor:UserWarning",  # which PyTorch hides itself, unless warnings are errors
)
def test_compiled_blocks_are_recorded_and_learn_what_plain_ones_do() -> None:
    torch.manual_seed(0)
    model = UniRepLKNet(3, 4, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), layer_scale_init_value=0.1).cuda()
    losses, _, last = learn(copy.deepcopy(model), False, "cuda", side=64)
    ours = learn(model, "block_graphs", "cuda", side=64)
    assert ours[0] == pytest.approx(losses, rel=1e-2)
    torch.testing.assert_close(ours[2], last, rtol=5e-2, atol=1e-2)


def test_only_known_ways_to_compile() -> None:
    with pytest.raises(
        UsageError, match="compile takes false, true, auto, graphs, block_graphs, eager_graphs, not fast"
    ):
        compiled(nn.Identity(), "fast")


def test_graphs_do_not_go_with_accumulated_gradients() -> None:
    with pytest.raises(
        UsageError, match=r"compile=graphs does not go with trainer.accumulate_grad_batches=4"
    ):
        compiled(nn.Identity(), "graphs", accumulated=4)
    compiled(nn.Identity(), "eager_graphs", accumulated=4)


# PyTorch hides it itself, unless warnings are errors.
within = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of operations of each graph that was compiled; what is compiled runs as it is."""
    sizes: list[int] = []

    def backend(graph: Any, examples: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: compile_(model, **{**how, "backend": backend}))
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield sizes
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = before


@within
def test_each_kind_of_block_is_compiled_once(graphs: list[int], caplog: pytest.LogCaptureFixture) -> None:
    model = UniRepLKNet(
        3, 4, depths=(2, 3, 18, 2), dims=(4, 8, 12, 16), drop_path_rate=0.4, layer_scale_init_value=0.1
    )
    plain = copy.deepcopy(model)
    forward = compiled(model, "block_graphs")
    x = torch.randn(4, 3, 64, 64)
    forward(x).square().mean().backward()
    kinds = {
        (block.dwconv.__class__, block.gamma.shape, hasattr(block.drop_path, "keep"))
        for block in model.blocks()
    }
    assert len(kinds) == 6
    # Four ways into a stage; the layout in memory of a stage's first map may be another one.
    assert 4 + len(kinds) <= len(graphs) <= 4 + 2 * len(kinds) < len(model.compiled_apart())
    assert not [message for message in caplog.messages if "recompile_limit" in message]
    assert model.stages[2][4].drop_path.rate != model.stages[2][6].drop_path.rate

    model.eval()
    plain.load_state_dict(model.state_dict())
    plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(forward(x), plain(x))


@within
def test_blocks_learn_compiled_what_they_learn_plain(
    graphs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIDEFIELD_KERNELS", "off")
    torch.manual_seed(0)
    model = UniRepLKNet(3, 4, depths=(1, 1, 2, 1), dims=(4, 8, 12, 16), layer_scale_init_value=0.1)
    losses, answers, last = learn(copy.deepcopy(model), False, "cpu", side=32)
    ours = learn(model, "block_graphs", "cpu", side=32)
    assert graphs
    assert ours[0] == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(ours[1], answers, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours[2], last, rtol=1e-3, atol=1e-4)


def test_dropped_paths_are_drawn_anew_and_at_their_rate(graphs: list[int]) -> None:
    paths = [DropPath(rate) for rate in (0.0, 0.25, 0.75)]
    x = torch.ones(4000, 1, 1, 1)
    for path in paths:
        path.compile(dynamic=False)
        first, second = path(x), path(x)
        assert not torch.equal(first, second) or path.rate == 0
        assert (first == 0).float().mean().item() == pytest.approx(path.rate, abs=0.04)
        assert set(first.unique().tolist()) <= {0.0, (1 / path.keep).item()}
    assert len(graphs) == 1


def test_blocks_of_other_networks_are_not_known() -> None:
    with pytest.raises(UsageError, match="block_graphs is for networks that name their blocks"):
        compiled(nn.Sequential(nn.Linear(2, 2)), "block_graphs")


def test_as_it_is_unless_asked() -> None:
    model = nn.Identity()
    assert compiled(model, False) is model


@pytest.mark.parametrize(
    ("steps", "on_gpu", "processes", "names_blocks", "how"),
    [
        (100_000, False, 1, True, False),
        (299, True, 1, True, False),
        (300, True, 1, True, "eager_graphs"),
        (9_999, True, 1, True, "eager_graphs"),
        (10_000, True, 1, True, "block_graphs"),
        (10_000, True, 1, False, "eager_graphs"),
        (10_000, True, 2, True, False),
    ],
)
def test_auto_takes_what_pays(
    steps: int, on_gpu: bool, processes: int, names_blocks: bool, how: bool | str
) -> None:
    assert what_pays(steps, on_gpu, processes, names_blocks) == how


@pytest.mark.parametrize(
    ("epochs", "backbone", "how"),
    [(1, "widefield_nano", False), (100, "widefield_nano", "eager_graphs"),
     (4_000, "widefield_nano", "block_graphs"), (4_000, "resnet18", "eager_graphs")],
)  # fmt: skip
def test_auto_counts_the_steps_of_the_run(
    act: Act, epochs: int, backbone: str, how: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, up to the moment at which the networks would be compiled."""
    chosen: list[Any] = []

    class Stop(Exception):
        pass

    def stop(task: Any, how: bool | str, accumulated: int) -> None:
        chosen.extend([how, accumulated])
        raise Stop

    where = "workbench.callbacks.compile_what_pays"
    monkeypatch.setattr(f"{where}.compile_parts", stop)
    monkeypatch.setattr(f"{where}.what_pays", lambda steps, on_gpu, *others: what_pays(steps, True, *others))
    with pytest.raises(Stop):
        act(
            "trainer=cpu",
            "task=audio_folder",
            f"backbone={backbone}",
            "compile=auto",
            f"trainer.max_epochs={epochs}",
        )
    assert chosen == [how, 1]


def test_auto_leaves_a_cpu_alone_and_says_so(act: Act, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "widefield"):
        act(*TINY, "task=audio_folder", "compile=auto")
    assert any(re.fullmatch(r"compile=auto: false \(\d+ steps on a CPU\)", line) for line in caplog.messages)
