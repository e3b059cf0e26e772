"""Compiled networks learn what plain ones do, and what they answered stays as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.compiled import compiled
from workbench.errors import UsageError


def learn(model: nn.Module, how: bool | str, device: str) -> tuple[list[float], list[Tensor], Tensor]:
    """Losses of a few steps, the answers of all steps, kept, and an answer after them."""
    random = torch.Generator(device).manual_seed(0)
    forward = compiled(model, how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, answers = [], []
    for _ in range(6):
        x = torch.randn(8, 3, 16, 16, device=device, generator=random)
        answer = forward(x)
        loss = F.cross_entropy(answer, torch.arange(8, device=device) % 4)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        answers.append(answer.detach())
    model.eval()
    with torch.no_grad():
        return losses, answers, forward(torch.ones(3, 3, 16, 16, device=device))


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


def test_only_known_ways_to_compile() -> None:
    with pytest.raises(UsageError, match="compile takes false, true, graphs or eager_graphs, not fast"):
        compiled(nn.Identity(), "fast")


def test_graphs_do_not_go_with_accumulated_gradients() -> None:
    with pytest.raises(
        UsageError, match=r"compile=graphs does not go with trainer.accumulate_grad_batches=4"
    ):
        compiled(nn.Identity(), "graphs", accumulated=4)
    compiled(nn.Identity(), "eager_graphs", accumulated=4)


def test_as_it_is_unless_asked() -> None:
    model = nn.Identity()
    assert compiled(model, False) is model
