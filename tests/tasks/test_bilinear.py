"""Bilinear resizing by matrix products is that of PyTorch, forward and backward."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tasks.bilinear import by_products, resized

sides = st.integers(1, 40)


layouts = st.sampled_from([torch.contiguous_format, torch.channels_last])


@given(before=st.tuples(sides, sides), after=st.tuples(sides, sides), layout=layouts)
def test_products_are_the_same_resizing(
    before: tuple[int, int], after: tuple[int, int], layout: torch.memory_format
) -> None:
    x = torch.randn(2, 3, *before, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=layout).requires_grad_()
    ours, theirs = by_products(x, after), F.interpolate(x, after, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (ours, theirs)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-3)


def test_products_keep_the_layout() -> None:
    x = torch.randn(2, 3, 5, 7)
    assert by_products(x, (20, 30)).is_contiguous()
    x = x.contiguous(memory_format=torch.channels_last)
    assert by_products(x, (20, 30)).is_contiguous(memory_format=torch.channels_last)


def test_products_are_not_rounded_under_autocast() -> None:
    x = torch.randn(1, 2, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        ours = by_products(x, (20, 30))
    torch.testing.assert_close(ours, F.interpolate(x, (20, 30), mode="bilinear"), rtol=1e-5, atol=1e-5)


def test_nothing_to_do() -> None:
    x = torch.randn(1, 2, 5, 7)
    assert resized(x, (5, 7)) is x


class Enlarged(nn.Module):
    """Enlarges the first map to the size of the second."""

    def forward(self, small_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
        return resized(small_BCHW, (like_BCHW.shape[-2], like_BCHW.shape[-1]))


def test_a_size_that_matches_in_tracing_is_no_constant_of_the_exported_program() -> None:
    """A pooled map of 2 × 2 beside a coarse map of 2 × 2, which in other images is larger."""
    height, width = (torch.export.Dim(name, min=1, max=64) for name in ("height", "width"))
    small = torch.randn(1, 3, 2, 2)
    program = torch.export.export(
        Enlarged(), (small, torch.randn(1, 3, 2, 2)), dynamic_shapes=(None, {2: height, 3: width})
    ).module()
    for size in ((2, 2), (4, 2), (5, 7)):
        like = torch.randn(1, 3, *size)
        torch.testing.assert_close(program(small, like), Enlarged()(small, like))
