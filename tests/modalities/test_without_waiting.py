"""Transforms on the device neither wait for a value from the GPU nor copy one to it: CUDA graphs can record them.

Looked for on fake CUDA tensors, which have shapes and a device, but no values, and need no GPU.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modalities.batched_transforms import BatchedImageTransforms
from tasks.datasets.image.dense_transforms import SegmentationTransforms
from tasks.metrics import confusion_of
from tasks.segmentation_losses import PixelCrossEntropy, SoftDice


class Crossings(TorchDispatchMode):
    """Lists operations that move values between CPU and GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
            for tree in ((args, kwargs), out)
        )
        copied = given == {"cpu"} or ("cpu" in given and "copy" in str(func))
        if ("cuda" in given and "cpu" in made) or (copied and "cuda" in made):
            self.found.append(str(func))
        return out


def crossings(call: Callable[[], Any]) -> list[str]:
    with Crossings() as crossings:
        call()
    return crossings.found


@pytest.fixture
def images() -> Any:
    with FakeTensorMode():
        yield torch.zeros(4, 3, 32, 40, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.float().sum().item(),
        lambda x: x[x > 3],
        lambda x: x.float() * torch.tensor([1.0, 2.0]).to(x.device)[0],
        lambda x: x.float().copy_(torch.tensor(1.0)),
        lambda x: x.cpu(),
    ],
)
def test_the_search_finds_what_waits(images: Tensor, call: Callable[[Tensor], Any]) -> None:
    try:
        found = crossings(lambda: call(images))
    except (DataDependentOutputException, DynamicOutputShapeException) as error:  # no values to wait for
        found = [str(error)]
    assert found


@pytest.mark.parametrize(
    "transforms",
    [
        BatchedImageTransforms("resized", vflip=0.5, color_jitter=0.4),
        BatchedImageTransforms("padded", auto_augment="rand-m9-mstd0.5-inc1"),
        BatchedImageTransforms("whole", auto_augment="rand-m9"),
    ],
)
def test_of_images(images: Tensor, transforms: nn.Module) -> None:
    assert crossings(lambda: _on_cuda(transforms)(images, None)) == []


@pytest.mark.parametrize("resize", [None, [64, 48]])
def test_of_images_and_masks(images: Tensor, resize: list[int] | None) -> None:
    transforms = SegmentationTransforms(size=32, resize=resize, batched=True).for_device()
    assert transforms is not None
    sizes = torch.ones(4, 2, dtype=torch.long, device="cuda")
    target = torch.zeros(4, 32, 40, dtype=torch.uint8, device="cuda")
    raw = {"pixels": images, "size": sizes}
    assert crossings(lambda: _on_cuda(transforms)(raw, target)) == []


def test_of_a_segmentations_loss_and_counts(images: Tensor) -> None:
    target = torch.zeros(4, 32, 40, dtype=torch.long, device="cuda")

    def step() -> None:
        logits = torch.zeros(4, 5, 32, 40, device="cuda")
        PixelCrossEntropy("labelled")(logits, target)
        SoftDice()(logits, target)
        confusion_of(logits.argmax(dim=1), target, 5)

    assert crossings(step) == []


def _on_cuda(module: nn.Module) -> nn.Module:
    """The module with fake buffers."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(
                name, torch.zeros(buffer.shape, dtype=buffer.dtype, device="cuda"), persistent=False
            )
    return module
