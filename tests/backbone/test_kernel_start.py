"""The short way to a compiled kernel: which calls may take it, and with which arguments."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from triton.tools.tensor_descriptor import TensorDescriptor

from backbone.kernels import start as module
from backbone.kernels.start import start


class Kernel:
    """Stands for a Triton kernel: writes down which calls came through Triton and which did not."""

    arg_names = ("x", "y", "n", "A", "B")

    def __init__(self) -> None:
        self.looked_at: list[tuple[Any, ...]] = []
        self.direct: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        class Compiled:
            def __getitem__(_, grid: tuple[int, ...]) -> Any:
                return lambda *arguments: self.direct.append((grid, *arguments))

        def run(*arguments: Any, **constants: Any) -> Any:
            self.looked_at.append((grid, *arguments, constants))
            return Compiled()

        return run


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(module, "INTERPRETED", False)
    monkeypatch.setattr(module, "_compiled", {})
    return Kernel()


def test_a_call_like_an_earlier_one_goes_straight_to_its_kernel(kernel: Kernel) -> None:
    x, y = torch.zeros(8), torch.zeros(8)
    constants = {"num_warps": 2, "B": 5, "A": 4}
    start(kernel, (1, 2, 3), (x, None), (7,), constants)
    start(kernel, (3, 2, 1), (y, None), (7,), constants)
    assert len(kernel.looked_at) == 1
    assert kernel.looked_at[0][-1] == constants
    [(grid, tensor, *others)] = kernel.direct
    assert grid == (3, 2, 1)
    assert tensor is y
    assert others == [None, 7, 4, 5]  # constants in the kernel's order, options left out


def test_a_descriptor_counts_as_its_tensor(kernel: Kernel) -> None:
    boxes = [TensorDescriptor(torch.zeros(8, 8), [8, 8], [8, 1], [4, 4]) for _ in range(2)]
    for box in boxes:
        start(kernel, (1, 1, 1), (box, None), (7,), {"A": 4, "B": 5})
    assert [call[1] for call in kernel.looked_at] == boxes[:1]
    assert [call[1] for call in kernel.direct] == boxes[1:]
    half = TensorDescriptor(torch.zeros(8, 8).half(), [8, 8], [8, 1], [4, 4])
    start(kernel, (1, 1, 1), (half, None), (7,), {"A": 4, "B": 5})
    assert len(kernel.looked_at) == 2


@pytest.mark.parametrize("change", ["type", "size", "constant", "tensor for none", "alignment"])
def test_any_other_call_goes_through_triton(kernel: Kernel, change: str) -> None:
    x = torch.zeros(8)
    start(kernel, (1, 1, 1), (x, None), (7,), {"A": 4, "B": 5})
    start(
        kernel,
        (1, 1, 1),
        (
            x.half() if change == "type" else x[1:] if change == "alignment" else x,
            x if change == "tensor for none" else None,
        ),
        (8 if change == "size" else 7,),
        {"A": 4, "B": 6 if change == "constant" else 5},
    )
    assert len(kernel.looked_at) == 2
    assert not kernel.direct


def test_an_unaligned_call_is_not_the_example_for_others(kernel: Kernel) -> None:
    x = torch.zeros(8)
    for tensor in (x[1:], x, x):
        start(kernel, (1, 1, 1), (tensor, None), (7,), {"A": 4, "B": 5})
    assert len(kernel.looked_at) == 2
    assert len(kernel.direct) == 1


def test_calls_forgotten_are_learnt_again(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    x = torch.zeros(8)
    for size in (1, 2, 3, 1, 1):
        start(kernel, (1, 1, 1), (x, None), (size,), {"A": 4, "B": 5})
    assert len(kernel.looked_at) == 4
    assert len(kernel.direct) == 1
