"""``compile=…``: compiles the network or its blocks with torch.compile, optionally with CUDA graphs, or only records
CUDA graphs.

A network of many small kernels is limited by launch overhead; a CUDA graph launches all of them at once. Each new batch
size (e.g. of the last batch) is recorded as a graph of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from workbench.errors import UsageError
from workbench.recorded import Recorded

GRAPHS = ("graphs", "block_graphs", "eager_graphs")  # of `compile`, those that replay CUDA graphs
KINDS = 64  # of blocks, in every mode: beyond PyTorch's own limit of 8 further ones would run as they are


def compiled(forward: Callable[..., Any], how: bool | str, accumulated: int = 1) -> Callable[..., Any]:
    """Compile ``forward`` as requested.

    Args:
        forward: takes tensors, returns any nesting of tensors.
        how: False, unchanged; True, compiled; ``"graphs"``, compiled and replayed as CUDA graphs on a GPU;
            ``"block_graphs"``, the backbone's blocks compiled, each kind once, and all replayed as CUDA graphs
            (`workbench.recorded`); ``"eager_graphs"``, replayed as CUDA graphs without being compiled.
        accumulated: number of batches whose gradients are accumulated per step.

    Raises:
        UsageError: ``how`` is none of these, ``"graphs"`` with accumulated gradients, or ``"block_graphs"`` with a
            backbone that does not name its blocks.
    """
    if how is False:
        return forward
    if how is True:
        return torch.compile(forward)
    if how not in GRAPHS:
        raise UsageError(f"compile takes false, true, graphs, block_graphs or eager_graphs, not {how}")
    if how == "block_graphs":
        compile_blocks(forward)
        return Recorded(forward, accumulates=accumulated > 1, seen_before=0)
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


def compile_blocks(forward: Callable[..., Any]) -> None:
    """Compile the blocks that the backbone within names (``compiled_apart``), each by itself, in place.

    Raises:
        UsageError: it names none.
    """
    module: nn.Module = forward if isinstance(forward, nn.Module) else forward.__self__  # type: ignore[attr-defined]
    named: list[Any] = [getattr(one, "compiled_apart", None) for one in module.modules()]
    blocks = [block for blocks_of in named if blocks_of is not None for block in blocks_of()]
    if not blocks:
        raise UsageError(
            "compile=block_graphs is for networks that name their blocks, as UniRepLKNet does: take compile=graphs"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS)
    for block in blocks:
        block.compile(dynamic=False)
