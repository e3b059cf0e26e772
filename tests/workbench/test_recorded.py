"""CUDA graphs of the eager network: the same learning, the same statistics, and when they are not used."""

import copy
import logging
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests_support import ROOT
from torch import Tensor, nn

from backbone import unireplknet_a
from workbench.recorded import MOST, SEEN_BEFORE, Recorded, parameters_replaced

gpu = pytest.mark.gpu


class Small(nn.Module):
    """Batch norm, dropout, a nested argument, a nested answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 4)

    def answer(self, x: Tensor, context: dict[str, Tensor] | None = None) -> dict[str, Any]:
        y = self.drop(self.norm(self.conv(x)).relu().mean((2, 3)))
        if context is not None:
            y = y * context["scale"]
        return {"logits": self.head(y), "all": [y]}


def test_on_a_cpu_it_runs_as_it_is_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = Small().eval()
    x = torch.randn(2, 3, 8, 8)
    recorded = Recorded(model.answer)
    with caplog.at_level(logging.INFO, "widefield"):
        for _ in range(SEEN_BEFORE + 2):
            torch.testing.assert_close(recorded(x)["logits"], model.answer(x)["logits"])
    assert caplog.messages == ["CUDA graphs are for a CUDA GPU: what lies elsewhere runs without them"]
    assert not recorded.recordings


def _learn(model: Small, call: Any, steps: int = 8) -> tuple[list[float], list[Tensor]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    random = torch.Generator("cuda").manual_seed(0)
    torch.manual_seed(1)
    losses, kept = [], []
    for step in range(steps):
        x = torch.randn(8, 3, 16, 16, device="cuda", generator=random)
        context = {"scale": torch.full((8, 1), 1.0 + step % 2, device="cuda")}
        with torch.autocast("cuda", torch.bfloat16):
            out = call(x, context)
        loss = F.cross_entropy(out["logits"].float(), torch.arange(8, device="cuda") % 4)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        kept.append(out["all"][0].detach())
    return losses, kept


@gpu
def test_the_same_learning_statistics_and_dropout() -> None:
    torch.manual_seed(0)
    plain = Small().cuda()
    ours = copy.deepcopy(plain)
    recorded = Recorded(ours.answer)
    losses, kept = _learn(plain, plain.answer)
    our_losses, our_kept = _learn(ours, recorded)
    assert len(recorded.recordings) == 1
    assert our_losses == pytest.approx(losses, rel=2e-2)
    for one, other in zip(our_kept, kept, strict=True):  # none was overwritten; dropout drew the same
        torch.testing.assert_close(one.float(), other.float(), rtol=5e-2, atol=5e-2)
        assert torch.equal(one == 0, other == 0)
    torch.testing.assert_close(ours.norm.running_var, plain.norm.running_var, rtol=1e-2, atol=1e-3)
    assert ours.norm.num_batches_tracked == plain.norm.num_batches_tracked


@gpu
def test_every_mode_and_shape_is_a_recording_of_its_own_and_few_are_kept() -> None:
    model = Small().cuda()
    recorded = Recorded(model.answer)
    for train in (True, False):
        model.train(train)
        with torch.set_grad_enabled(train):
            for _ in range(SEEN_BEFORE + 1):
                recorded(torch.randn(2, 3, 8, 8, device="cuda"))["logits"].sum()
    assert len(recorded.recordings) == 2
    with torch.no_grad():
        for size in range(9, 9 + MOST):
            for _ in range(SEEN_BEFORE + 1):
                x = torch.randn(2, 3, size, 8, device="cuda")
                torch.testing.assert_close(recorded(x)["logits"], model.answer(x)["logits"])
    assert len(recorded.recordings) == MOST


@gpu
def test_two_passes_forward_before_one_back_are_right() -> None:
    torch.manual_seed(0)
    model = Small().cuda()
    model.drop = nn.Dropout(0.0)
    recorded = Recorded(model.answer)
    first, second = (torch.randn(8, 3, 16, 16, device="cuda") for _ in range(2))
    for _ in range(SEEN_BEFORE + 1):
        recorded(first)["logits"].sum().backward()
    assert recorded.recordings
    wanted = torch.autograd.grad(
        model.answer(first)["logits"].square().sum() + model.answer(second)["logits"].square().sum(),
        model.head.weight,
    )
    got = torch.autograd.grad(
        recorded(first)["logits"].square().sum() + recorded(second)["logits"].square().sum(),
        model.head.weight,
    )
    torch.testing.assert_close(got, wanted)


@gpu
def test_gradients_are_accumulated_where_asked() -> None:
    model = Small().cuda()
    model.drop = nn.Dropout(0.0)
    recorded = Recorded(model.answer, accumulates=True)
    each = [torch.randn(8, 3, 16, 16, device="cuda") for _ in range(2)]
    for _ in range(SEEN_BEFORE + 1):
        recorded(each[0])["logits"].sum().backward()
    grads = []
    for call in (model.answer, recorded):
        model.zero_grad()
        for x in each:
            call(x)["logits"].square().sum().backward()
        grads.append(model.head.weight.grad.clone())
    torch.testing.assert_close(grads[1], grads[0])


@gpu
def test_another_thread_may_pin_memory_meanwhile() -> None:
    """As the data loader's does."""
    stopped = threading.Event()

    def pin() -> None:
        size = 1
        while not stopped.is_set():
            size += 1  # a size of its own each time, so that memory is asked for
            torch.empty(size * 4096).pin_memory()

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        model = unireplknet_a().cuda().train()
        recorded = Recorded(model)
        for _ in range(SEEN_BEFORE + 1):
            recorded(torch.randn(2, 3, 64, 64, device="cuda")).square().mean().backward()
    finally:
        stopped.set()
        thread.join()
    assert len(recorded.recordings) == 1


WAITS = """
import torch
from workbench.recorded import SEEN_BEFORE, Recorded

class Waits(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) * float(x.sum())

recorded = Recorded(Waits(3, 3).cuda())
for _ in range(SEEN_BEFORE + 1):
    recorded(torch.ones(2, 3, device="cuda"))
"""


@gpu
def test_a_network_that_waits_for_a_value_is_refused_in_one_sentence() -> None:
    """In a process of its own: a recording that fails leaves CUDA's random generator unusable."""
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"UsageError: this network cannot be recorded as CUDA graphs \(.+\): take", last)


@gpu
def test_the_large_kernels_are_recorded_too() -> None:
    torch.manual_seed(0)
    model = unireplknet_a().cuda().train()
    x = torch.randn(4, 3, 64, 64, device="cuda")
    recorded = Recorded(model)
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(SEEN_BEFORE + 2):
            model.zero_grad()
            out = recorded(x)
            out.float().square().mean().backward()
        got = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        model(x).float().square().mean().backward()
    far = [
        float((got[name] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-6))
        for name, parameter in model.named_parameters()
        if parameter.grad.norm() > 1e-4
    ]
    assert sorted(far)[len(far) // 2] < 0.05


def test_parameters_are_replaced_wherever_they_stand() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    x, other = torch.randn(3, 2), torch.randn(2, 2)
    before = model(x)
    with parameters_replaced(model, {"0.weight": other}):
        wanted = (x @ other.T + model[0].bias) @ other.T + model[1].bias
        torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(model(x), before)
    assert model[1].weight is model[0].weight
