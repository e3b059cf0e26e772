"""``compile=…``: the network through torch.compile, and replayed as CUDA graphs.

A network of many small steps waits for Python to start them; a CUDA graph starts all at once. Batches of another size
than the one recorded (the last, say) are recorded too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from workbench.errors import UsageError


def compiled(forward: Callable[..., Any], how: bool | str, accumulated: int = 1) -> Callable[..., Any]:
    """``forward`` in the form asked for.

    Args:
        forward: of tensors, any nesting of tensors as result.
        how: False, as it is; True, compiled; ``"graphs"``, compiled and replayed as CUDA graphs on a GPU.
        accumulated: batches whose gradients are added up for a step.

    Raises:
        UsageError: ``how`` is none of these, or ``"graphs"`` with accumulated gradients.
    """
    if how is False:
        return forward
    if how is True:
        return torch.compile(forward)
    if how != "graphs":
        raise UsageError(f"compile takes false, true or graphs, not {how}")
    if accumulated > 1:  # the next batch's graph would write over the gradients
        raise UsageError(
            f"compile=graphs does not go with trainer.accumulate_grad_batches={accumulated}: take compile=true"
        )
    replay = torch.compile(forward, mode="reduce-overhead")

    def graphs(*inputs: Any) -> Any:
        # A graph writes its outputs to the same place every time; who keeps them over a step must not see that.
        return tree_map(lambda out: out.clone() if isinstance(out, Tensor) else out, replay(*inputs))

    return graphs
