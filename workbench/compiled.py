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

from tasks.task import Training
from workbench.errors import UsageError
from workbench.recorded import Recorded

GRAPHS = ("graphs", "block_graphs", "eager_graphs")  # of `compile`, those that replay CUDA graphs
AUTO = "auto"
#: Steps of a run from which on ``auto`` takes each: recording costs some seconds and saves about 30 ms a step where
#: launches are waited for, compiling blocks costs a minute or more and saves 5 to 25 ms a step besides
#: (docs/PERFORMANCE.md, "CUDA graphs without the compiler").
RECORDING_PAYS, COMPILING_PAYS = 300, 10_000
KINDS = 64  # of blocks, in every mode: beyond PyTorch's own limit of 8 further ones would run as they are


def what_pays(steps: int, on_gpu: bool, processes: int, names_blocks: bool) -> bool | str:
    """What ``compile=auto`` takes: nothing, ``eager_graphs`` or ``block_graphs``.

    Args:
        steps: of the run.
        on_gpu: whether it has a CUDA GPU.
        processes: that train together; with several nothing is recorded.
        names_blocks: whether all of its networks' backbones do.
    """
    if not on_gpu or processes > 1 or steps < RECORDING_PAYS:
        return False
    return "block_graphs" if steps >= COMPILING_PAYS and names_blocks else "eager_graphs"


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
        raise UsageError(f"compile takes false, true, auto, {', '.join(GRAPHS)}, not {how}")
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


def compile_parts(task: Training, how: bool | str, accumulated: int = 1) -> None:
    """Compile the networks of a task or of a joint run's tasks, in place, for training, validation and test.

    Args:
        task: with its augmentation, whose transforms on the device are recorded where the networks are.
        how, accumulated: as in `compiled`, which says what is refused.
    """
    for part in task.by_task().values():
        if how:
            part.network.runner = compiled(part.network.forward_maps, how, accumulated)
        if how in GRAPHS and part.augment.transforms is not None:
            part.augment.runner = Recorded(part.augment.transforms)


def named_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that backbones within name to be compiled each by itself (``compiled_apart``)."""
    named: list[Any] = [getattr(one, "compiled_apart", None) for one in module.modules()]
    return [block for blocks_of in named if blocks_of is not None for block in blocks_of()]


def compile_blocks(forward: Callable[..., Any]) -> None:
    """Compile the blocks that the backbone within names (``compiled_apart``), each by itself, in place.

    Raises:
        UsageError: it names none.
    """
    blocks = named_blocks(forward if isinstance(forward, nn.Module) else forward.__self__)  # type: ignore[attr-defined]
    if not blocks:
        raise UsageError(
            "compile=block_graphs is for networks that name their blocks, as UniRepLKNet does: take compile=graphs"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS)
    for block in blocks:
        block.compile(dynamic=False)
