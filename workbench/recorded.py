"""``compile=eager_graphs``: CUDA graphs of the eager network, without the compiler.

Small networks and small maps are limited by the time it takes to launch kernels one by one; a CUDA graph launches all
of them at once. Recording takes a second per shape, compiling one to two minutes.
"""

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from backbone.kernels import launches_recorded
from workbench.errors import UsageError

log = logging.getLogger("widefield")

SEEN_BEFORE = 2  # eager calls of a signature before it is recorded: a last, smaller batch of one epoch is not
MOST = 12  # maximum number of recorded signatures; further ones run eagerly
WARM_UP = 3  # calls before recording, on a stream of their own: autotuning and lazy initialisation


class Recorded:
    """Calls a function of tensors, and from the third call with the same signature replays it as CUDA graphs.

    A signature is the shapes, dtypes and ``requires_grad`` of the tensors, the other arguments, and the modes of the
    module, of autograd and of autocast. In training the backward pass is a graph of its own. Batch-norm statistics and the state of
    the random generator are those of as many eager calls. A second forward pass before the backward pass of the first
    runs eagerly, since a replay would overwrite the activations that are still needed.

    The gradients of parameters are overwritten by the next backward pass: they cannot be accumulated over batches.

    Args:
        forward: a module, or a method of a module; takes tensors and other arguments, nested in any way, and returns
            nested tensors.

    Raises:
        UsageError: from a call, if the network cannot be recorded, e.g. because it waits for a value from the GPU.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.module = cast(nn.Module, forward if isinstance(forward, nn.Module) else forward.__self__)  # type: ignore[attr-defined]
        self.seen: Counter[Hashable] = Counter()
        self.recordings: dict[Hashable, Callable[..., Any]] = {}
        self.pool: Any = None
        self.pending: weakref.ref[Tensor] | None = None
        self.told: set[str] = set()

    def __call__(self, *inputs: Any) -> Any:
        leaves, spec = tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or not all(tensor.is_cuda for tensor in tensors):
            self._tell("compile=eager_graphs is for a CUDA GPU: what lies elsewhere runs as it is")
            return self.forward(*inputs)
        signature = self._signature(leaves, spec)
        replay = self.recordings.get(signature)
        if replay is None:
            self.seen[signature] += 1
            if self.seen[signature] <= SEEN_BEFORE:
                return self.forward(*inputs)
            if len(self.recordings) == MOST:
                self._tell(f"compile=eager_graphs: {MOST} shapes are recorded, further ones run as they are")
                return self.forward(*inputs)
            replay = self.recordings[signature] = self._record(leaves, spec)
        if self._awaits_backward():
            return self.forward(*inputs)
        return self._await_backward(replay(*tensors))

    def _signature(self, leaves: list[Any], spec: TreeSpec) -> Hashable:
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        modes = (self.module.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), half)
        parts = [
            (leaf.shape, leaf.dtype, leaf.device, leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        return (*modes, str(spec), *parts)

    def _tell(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            log.info(line)

    # -- a forward pass whose backward pass is still to come -----------------------------------------------------------

    def _awaits_backward(self) -> bool:
        return torch.is_grad_enabled() and self.pending is not None and self.pending() is not None

    def _await_backward(self, output: Any) -> Any:
        leaves, _ = tree_flatten(output)
        answered = next((leaf for leaf in leaves if leaf.requires_grad), None)
        if answered is not None:
            self.pending = weakref.ref(answered)
            answered.register_hook(self._done)
        return output

    def _done(self, grad: Tensor) -> None:
        self.pending = None

    # -- recording -----------------------------------------------------------------------------------------------------

    def _record(self, leaves: list[Any], spec: TreeSpec) -> Callable[..., Any]:
        call = _Call(self.module, self.forward, leaves, spec)
        samples = tuple(
            leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in call.tensors(leaves)
        )
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        autocast = torch.is_autocast_enabled("cuda")
        # Weights cast and cached outside of a graph would be missing in it.
        half = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), cache_enabled=False)
        try:
            with half if autocast else nullcontext(), unchanged(self.module), launches_recorded():
                if torch.is_grad_enabled():
                    recorded = self._with_backward(call, samples)
                else:
                    recorded = self._without_backward(call, samples)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UsageError(
                f"compile=eager_graphs: this network cannot be recorded ({reason}): take compile=true or false"
            ) from error
        return lambda *tensors: call.nested(recorded(*tensors))

    def _with_backward(self, call: "_Call", samples: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        graphed = torch.cuda.make_graphed_callables(
            call, samples, num_warmup_iters=WARM_UP, allow_unused_input=True, pool=self.pool
        )
        # Callers may keep what they were given, and the next replay overwrites it.
        return lambda *tensors: tuple(out.clone() for out in cast(tuple[Tensor, ...], graphed(*tensors)))

    def _without_backward(
        self, call: "_Call", samples: tuple[Tensor, ...]
    ) -> Callable[..., tuple[Tensor, ...]]:
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(WARM_UP):
                call(*samples)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = call(*samples)

        def replay(*tensors: Tensor) -> tuple[Tensor, ...]:
            for sample, tensor in zip(samples, tensors, strict=True):
                sample.copy_(tensor)
            graph.replay()
            return tuple(out.clone() for out in outputs)

        return replay


class _Call(nn.Module):
    """A call with fixed structure: takes the tensors among its arguments, returns the tensors of its output."""

    def __init__(
        self, module: nn.Module, forward: Callable[..., Any], leaves: list[Any], spec: TreeSpec
    ) -> None:
        super().__init__()
        self.module = module  # for its parameters
        self.call = forward
        self.constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        self.spec = spec
        self.answer: TreeSpec | None = None

    @staticmethod
    def tensors(leaves: list[Any]) -> list[Tensor]:
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if constant is None else constant[0] for constant in self.constants]
        outputs, self.answer = tree_flatten(self.call(*tree_unflatten(leaves, self.spec)))
        return tuple(outputs)

    def nested(self, outputs: tuple[Tensor, ...]) -> Any:
        assert self.answer is not None
        return tree_unflatten(list(outputs), self.answer)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restores buffers (batch-norm statistics) and random generators at the end."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)
