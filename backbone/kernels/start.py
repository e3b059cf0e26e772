"""``start``: launch a Triton kernel with low overhead; ``compiled_ahead``: compile kernels in parallel.

Triton inspects every argument of a call to look up the compiled kernel; with our twenty constants, this
takes longer than processing a small map. Here, a call with the same signature as an earlier one reuses its kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from backbone.kernels import toeplitz

#: Whether the kernels run in Triton's (slow) interpreter on the CPU (``TRITON_INTERPRET=1``).
INTERPRETED = isinstance(toeplitz.fold, InterpretedFunction)
ALIGNED = 16  # bytes; Triton compiles separate kernels for unaligned tensors
MOST = 4096

MOST_AT_ONCE = 16  # kernels compiled at the same time

_compiled: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}
#: While kernels are compiled ahead: calls a function where Triton compiles in the background.
_in_background: Callable[..., Any] | None = None


def ahead() -> bool:
    """Whether kernels are only compiled, not launched."""
    return _in_background is not None


@contextmanager
def compiled_ahead() -> Iterator[None]:
    """Inside, :func:`start` launches nothing, but compiles what it would launch, several kernels at a time.

    Compiling takes 1 to 20 s a kernel. What a pass through a network then computes is meaningless; what it leaves are
    the compiled kernels, of forward and backward alike.
    """
    global _in_background
    if INTERPRETED or ahead():
        yield
        return
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_AT_ONCE)) as pool, triton.AsyncCompileMode(pool):
        # The backward pass runs in a thread of its own, which does not inherit the context.
        _in_background = copy_context().run
        try:
            yield
        finally:
            _in_background = None


def start(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: Sequence[Tensor | TensorDescriptor | None],
    sizes: Sequence[int],
    constants: Mapping[str, Any],
) -> None:
    """Start ``kernel`` on the current device and stream; or only compile it, inside :func:`compiled_ahead`.

    Args:
        kernel: takes the tensors, the sizes and then the constants.
        grid: number of programs along three axes.
        tensors: on that device, or tensor descriptors, whose boxes follow from the constants; None for unused ones.
        sizes: integers.
        constants: by name, including Triton's options (num_warps, num_stages, maxnreg).
    """
    plain = [tensor.base if isinstance(tensor, TensorDescriptor) else tensor for tensor in tensors]
    kinds = [None if tensor is None else tensor.dtype for tensor in plain]
    if _in_background is not None:
        _in_background(kernel.warmup, *tensors, *sizes, grid=grid, **constants)
        return
    aligned = not INTERPRETED and all(tensor is None or tensor.data_ptr() % ALIGNED == 0 for tensor in plain)
    if not aligned:
        kernel[grid](*tensors, *sizes, **constants)
        return
    device = next(tensor.device for tensor in plain if tensor is not None)
    key = (kernel, device, *kinds, *sizes, *constants.values())
    known = _compiled.get(key)
    if known is not None:
        compiled, values = known
        compiled[grid](*tensors, *sizes, *values)
        return
    compiled = kernel[grid](*tensors, *sizes, **constants)
    names = kernel.arg_names[len(tensors) + len(sizes) :]
    if len(_compiled) >= MOST:
        _compiled.clear()
    _compiled[key] = compiled, [constants[name] for name in names]
