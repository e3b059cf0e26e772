"""What a run says of its cost: counted by hand, and measured without changing anything."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from tests_support import TINY, weights
from torch import nn

from modalities.image import Pixels
from tasks.heads import ClassificationHead
from tasks.network import Network
from workbench.cost import SKIPPED, StepTimes, cost_of, count_macs

Act = Callable[..., Path]
WORDS = (*TINY, "task=audio_folder", "task.data.limit=24", "task.data.batch_size=4", "logger=csv")


class OneConv(nn.Module):
    """A backbone of one convolution, 3 × 3, stride 2."""

    in_chans, num_features = 3, 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.conv(x)]

    def reparameterize(self) -> "OneConv":
        return self


def test_multiply_accumulates_by_hand() -> None:
    network = Network(Pixels(16), OneConv(), ClassificationHead(8, 5))
    wanted = 8 * 8 * 8 * 3 * 9 + 8 * 5
    assert count_macs(network, network.embedder.example_raw(1)) == wanted
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    cost = cost_of(network, Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after), "random numbers go on as if nothing had been measured"
    assert cost.macs == wanted
    assert cost.latency_s is not None
    assert 0 < cost.latency_s < 1
    assert cost.step_s is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_result_has_its_cost(act: Act) -> None:
    made = act(*WORDS)
    result = json.loads((made / "result.json").read_text())
    assert result["macs"] > 1e5
    assert 0 < result["step_s"] < 10
    assert 0 < result["latency_s"] < 10
    tested = json.loads(
        (act("trainer=cpu", "action=test", f"ckpt={made}", folder="tested") / "result.json").read_text()
    )
    assert tested["macs"] == result["macs"]
    assert tested["step_s"] is None


@pytest.mark.slow
def test_the_same_run_twice_has_the_same_weights(act: Act) -> None:
    first, second = weights(act(*WORDS, folder="a")), weights(act(*WORDS, folder="b"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_first_steps_do_not_count() -> None:
    times = StepTimes()
    module = nn.Module()
    module.device = torch.device("cpu")  # type: ignore[assignment]
    for step in range(SKIPPED + 2):
        times.on_train_batch_start(None, module, None, step)  # type: ignore[arg-type]
        times.on_train_batch_end(None, module, None, None, step)  # type: ignore[arg-type]
    assert len(times.seconds) == 2
    assert times.median is not None
