"""``compile=…``: compiles the network with torch.compile, optionally with CUDA graphs, or only records CUDA graphs.

A network of many small kernels is limited by launch overhead; a CUDA graph launches all of them at once. Each new batch
size (e.g. of the last batch) is recorded as a graph of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from workbench.errors import UsageError
from workbench.recorded import Recorded

GRAPHS = ("graphs", "eager_graphs")  # of `compile`, those that replay CUDA graphs


def compiled(forward: Callable[..., Any], how: bool | str, accumulated: int = 1) -> Callable[..., Any]:
    """Compile ``forward`` as requested.

    Args:
        forward: takes tensors, returns any nesting of tensors.
        how: False, unchanged; True, compiled; ``"graphs"``, compiled and replayed as CUDA graphs on a GPU;
            ``"eager_graphs"``, replayed as CUDA graphs without being compiled (`workbench.recorded`).
        accumulated: number of batches whose gradients are accumulated per step.

    Raises:
        UsageError: ``how`` is none of these, or ``"graphs"`` with accumulated gradients.
    """
    if how is False:
        return forward
    if how is True:
        return torch.compile(forward)
    if how not in GRAPHS:
        raise UsageError(f"compile takes false, true, graphs or eager_graphs, not {how}")
    if how == "eager_graphs":
        return Recorded(forward, accumulates=accumulated > 1)
    if accumulated > 1:  # the next batch's graph would overwrite the gradients
        raise UsageError(
            f"compile=graphs does not go with trainer.accumulate_grad_batches={accumulated}: take compile=eager_graphs"
        )
    replay = torch.compile(forward, mode="reduce-overhead")

    def graphs(*inputs: Any) -> Any:
        # Every replay of a graph overwrites its output tensors; callers that keep them across steps need copies.
        return tree_map(lambda out: out.clone() if isinstance(out, Tensor) else out, replay(*inputs))

    return graphs
