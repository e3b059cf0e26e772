"""``start``: a Triton kernel, started with little ado.

Triton looks at every argument of a call to find the compiled kernel for it; with the twenty constants of ours that
takes longer than a small map does. Here a call like an earlier one goes straight to the kernel that one compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from backbone.kernels import toeplitz

#: The kernels run on the CPU, slowly, in Triton's interpreter (``TRITON_INTERPRET=1``).
INTERPRETED = isinstance(toeplitz.fold, InterpretedFunction)
ALIGNED = 16  # bytes; Triton compiles another kernel for tensors that are not
MOST = 4096

_compiled: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}


def start(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: Sequence[Tensor | TensorDescriptor | None],
    sizes: Sequence[int],
    constants: Mapping[str, Any],
) -> None:
    """Start ``kernel`` on the current device and stream.

    Args:
        kernel: takes the tensors, the sizes and then the constants.
        grid: programs along three axes.
        tensors: on that device, or descriptors of them, whose boxes follow from the constants; None where the kernel
            has no use for one.
        sizes: integers.
        constants: by name; Triton's options too (num_warps, num_stages, maxnreg).
    """
    plain = [tensor.base if isinstance(tensor, TensorDescriptor) else tensor for tensor in tensors]
    kinds = [None if tensor is None else tensor.dtype for tensor in plain]
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
