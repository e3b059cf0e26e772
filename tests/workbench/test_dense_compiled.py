"""`compile=true` of dense tasks: backbone, neck and the head's convolutions are one graph without breaks, for any size
of sample; assignment, losses and non-maximum suppression stay outside."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from tests_support import TINY
from torch._dynamo.utils import counters

from backbone.kernels import gram_cpu
from backbone.kernels.depthwise import moments_on_chip
from tasks.detectors.fpn import FPN

Act = Callable[..., Path]
SMALL = (
    *TINY,
    "task.data.limit=8",
    "task.data.batch_size=4",
    "task.data.num_workers=0",
    "~callbacks.pictures",
)
BOXES = ("modality=image", "task=box_folder", "task.head.channels=8")
INFO = {"class_names": list("abc"), "has_masks": True, "palette": [[0, 0, 0], [9, 9, 9], [99, 99, 99]]}
TASKS = {
    "segmentation": ("modality=image", "task=mask_folder"),
    "fcos": (*BOXES, "task/head=fcos"),
    "faster_rcnn": (*BOXES, "task/head=faster_rcnn_small"),
    "mask_rcnn": (*BOXES, "task/head=mask_rcnn"),
    "cascade": (*BOXES, "task/head=cascade_mask_rcnn"),
    "sound_events": ("modality=audio", "task=sound_events"),
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def losses(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "metrics.csv").filter(regex="^(train|val)/loss$")


def check(act: Act, task: str, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run learns what the plain one does, with few graphs and no breaks."""
    words = (*SMALL, *TASKS[task], "logger=csv", "optimizer.lr=1e-3", "trainer.max_epochs=1")
    plain = act(*words, "action.test_after=false", folder="plain")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: compile_(forward, backend=backend))
    ours = act(*words, "compile=true", folder="compiled")  # its test reads whole samples of several sizes
    assert not counters["graph_break"]
    assert 2 <= counters["stats"]["unique_graphs"] <= 6
    pd.testing.assert_frame_equal(losses(ours), losses(plain), rtol=2e-3)


SIZES = ((64, 96), (96, 64), (128, 160), (160, 96), (96, 128), (192, 96), (224, 160))


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_few_graphs_for_any_size(task: str, composed: Callable[..., DictConfig]) -> None:
    from workbench.build import build_task

    info = {**INFO, "seconds": 2.0} if task == "sound_events" else INFO
    network = build_task(composed(*SMALL, *TASKS[task]), info).network.train()
    head: Any = network.head
    head.finishes = False  # as in every step of a detection
    graph = torch.compile(network.forward_maps, backend="eager", fullgraph=True)  # raises at a break
    for height, width in SIZES:
        maps = torch.randn(2, 1, network.embedder.out_chans, height, width)
        graph(maps, None if task == "sound_events" else {"size": torch.tensor([[height, width]] * 2)})
    assert counters["stats"]["unique_graphs"] <= 4


def test_a_pyramid_is_not_compiled_for_each_parity() -> None:
    pyramid = FPN([2, 2], 2, extra_levels=2)
    graph = torch.compile(pyramid, backend="eager", fullgraph=True)
    for height, width in SIZES:
        maps = [torch.randn(1, 2, height // each, width // each) for each in (8, 16)]
        found = graph(maps)
        assert torch.equal(found[2], F.max_pool2d(found[1], 1, stride=2)), "every second place"
        assert torch.equal(found[3], F.max_pool2d(found[2], 1, stride=2))
    assert counters["stats"]["unique_graphs"] <= 3


@pytest.mark.parametrize("chosen", [moments_on_chip, gram_cpu.pays])
def test_the_choice_of_a_kernel_does_not_guard_sizes_on_a_cpu(chosen: Callable[..., bool]) -> None:
    weight = torch.randn(2, 1, 13, 13)

    def asked(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if chosen(x, weight) else x + 2

    graph = torch.compile(asked, backend="eager", fullgraph=True)
    for side in (3, 5, 6, 7, 12, 30, 60, 200):
        graph(torch.randn(2, 2, side, side + 1))
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "fcos", "faster_rcnn", "sound_events"])
def test_a_compiled_run_learns_what_a_plain_one_does(
    task: str, act: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(act, task, "aot_eager", monkeypatch)


@pytest.mark.slow
def test_a_detector_is_compiled_to_machine_code(act: Act, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes on a CPU."""
    check(act, "fcos", "inductor", monkeypatch)
