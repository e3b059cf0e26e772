"""CUDA graphs of a network as it is (``compile=eager_graphs``) or with compiled blocks (``compile=block_graphs``).

Small networks and small maps are limited by the time it takes to launch kernels one by one; a CUDA graph launches all
of them at once. Recording takes a second per shape, compiling one to two minutes.
"""

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from backbone.kernels import kernels_compiled_ahead, launches_recorded
from workbench.errors import UsageError

log = logging.getLogger("widefield")

SEEN_BEFORE = 2  # eager calls of a signature before it is recorded: a last, smaller batch of one epoch is not
MOST = 12  # maximum number of recorded signatures; further ones run eagerly
WARM_UP = 3  # calls before recording, on a stream of their own: autotuning and lazy initialisation


class Recorded:
    """Calls a function of tensors, and after a few calls with the same signature replays it as CUDA graphs.

    A signature is the shapes, dtypes and ``requires_grad`` of the tensors, the other arguments, and the modes of the
    module, of autograd and of autocast. In training the backward pass is a graph of its own. Batch-norm statistics and
    the state of the random generator are those of as many eager calls. Until the backward pass of a replay other calls
    run eagerly, since all recordings share the memory of the activations that are still needed.

    Args:
        forward: a module, or a method of a module; takes tensors and other arguments, nested in any way, and returns
            nested tensors.
        accumulates: whether gradients are accumulated over batches: then they are copied, otherwise the next backward
            pass overwrites them.
        seen_before: calls of a signature before it is recorded.

    Raises:
        UsageError: from a call, if the network cannot be recorded, e.g. because it waits for a value from the GPU.
    """

    def __init__(
        self, forward: Callable[..., Any], accumulates: bool = False, seen_before: int = SEEN_BEFORE
    ) -> None:
        self.forward = forward
        self.accumulates = accumulates
        self.seen_before = seen_before
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
            self._tell("CUDA graphs are for a CUDA GPU: what lies elsewhere runs without them")
            return self.forward(*inputs)
        signature = self._signature(leaves, spec)
        replay = self.recordings.get(signature)
        if replay is None:
            self.seen[signature] += 1
            if self.seen[signature] <= self.seen_before or self._awaits_backward():
                return self.forward(*inputs)
            if len(self.recordings) == MOST:
                self._tell(f"CUDA graphs: {MOST} shapes are recorded, further ones run without")
                return self.forward(*inputs)
            replay = self.recordings[signature] = self._record(tensors, leaves, spec)
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
        return self.pending is not None and self.pending() is not None

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

    def _record(self, tensors: list[Tensor], leaves: list[Any], spec: TreeSpec) -> Callable[..., Any]:
        call = _Call(self.forward, leaves, spec)
        samples = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors]
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        autocast = torch.is_autocast_enabled("cuda")
        # Weights cast and cached outside of a graph would be missing in it.
        half = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), cache_enabled=False)
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        learns = torch.is_grad_enabled() and bool(trained or any(sample.requires_grad for sample in samples))
        try:
            with half if autocast else nullcontext(), unchanged(self.module), launches_recorded():
                if not learns:
                    _warm_up(lambda: call(samples))
                    forward = _Graph(lambda: call(samples), self.pool)
                    return lambda *tensors: call.nested(forward.replay(samples, tensors))
                passes = _Passes(self.module, call, samples, self.pool, self.accumulates)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UsageError(
                f"this network cannot be recorded as CUDA graphs ({reason}): take compile=true or false"
            ) from error
        return lambda *tensors: call.nested(_Replayed.apply(passes, *tensors, *passes.trained))


class _Call:
    """A call with fixed structure: takes the tensors among its arguments, returns the tensors of its output."""

    def __init__(self, forward: Callable[..., Any], leaves: list[Any], spec: TreeSpec) -> None:
        self.forward = forward
        self.constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        self.spec = spec
        self.answer: TreeSpec | None = None

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if constant is None else constant[0] for constant in self.constants]
        outputs, self.answer = tree_flatten(self.forward(*tree_unflatten(leaves, self.spec)))
        return tuple(outputs)

    def nested(self, outputs: Sequence[Tensor]) -> Any:
        assert self.answer is not None
        return tree_unflatten(list(outputs), self.answer)


class _Graph:
    """One recording: what `run` does, which has been warmed up."""

    def __init__(self, run: Callable[[], tuple[Tensor, ...]], pool: Any) -> None:
        self.graph = torch.cuda.CUDAGraph()
        # Only this thread is watched: the data loader's thread, which pins memory, would break the recording.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.outputs = run()

    def replay(self, samples: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copies of the outputs, which the next replay overwrites."""
        for sample, tensor in zip(samples, tensors, strict=True):
            sample.copy_(tensor)
        self.graph.replay()
        return tuple(out.clone() for out in self.outputs)


class _Passes:
    """A forward and a backward pass.

    The parameters are recorded as aliases of the same memory: those of the module carry state from earlier backward
    passes on another stream, which a recording must not wait for.

    Args:
        module: whose parameters `call` uses.
        call: tensors -> tensors.
        samples: the memory from which a replay reads its inputs.
        pool: of memory.
        copies: whether gradients are copies, which the next backward pass does not overwrite.
    """

    def __init__(
        self, module: nn.Module, call: _Call, samples: list[Tensor], pool: Any, copies: bool
    ) -> None:
        self.samples, self.copies = samples, copies
        trained = {
            name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
        }
        self.trained = tuple(trained.values())
        aliases = {name: parameter.detach().requires_grad_() for name, parameter in trained.items()}
        leaves = [*(sample for sample in samples if sample.requires_grad), *aliases.values()]

        def forward() -> tuple[Tensor, ...]:
            with parameters_replaced(module, aliases):
                return call(samples)

        def backward(outputs: tuple[Tensor, ...], grads: list[Tensor]) -> tuple[Tensor, ...]:
            learning = [out for out in outputs if out.requires_grad]
            return torch.autograd.grad(learning, leaves, grads, allow_unused=True)

        def both() -> tuple[Tensor, ...]:
            outputs = forward()
            return backward(outputs, [torch.ones_like(out) for out in outputs if out.requires_grad])

        _warm_up(both)
        self.forward = _Graph(forward, pool)
        self.grads = [torch.zeros_like(out) for out in self.forward.outputs if out.requires_grad]
        self.backward = _Graph(lambda: backward(self.forward.outputs, self.grads), pool)


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: _Passes, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.passes = passes
        outputs = passes.forward.replay(passes.samples, inputs[: len(passes.samples)])
        recorded = zip(outputs, passes.forward.outputs, strict=True)
        ctx.mark_non_differentiable(*(out for out, of in recorded if not of.requires_grad))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        passes: _Passes = ctx.passes
        outputs = passes.forward.outputs
        learning = [grad for grad, out in zip(grads, outputs, strict=True) if out.requires_grad]
        for kept, grad in zip(passes.grads, learning, strict=True):
            kept.copy_(grad)
        passes.backward.graph.replay()
        made = iter(passes.backward.outputs)
        inputs = (*passes.samples, *passes.trained)
        found = (next(made) if one.requires_grad else None for one in inputs)
        return None, *(
            None if grad is None else (grad.clone() if passes.copies else grad.detach()) for grad in found
        )


@contextmanager
def parameters_replaced(module: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """The module's parameters are these tensors, by name, wherever it uses them."""
    replaced = {id(module.get_parameter(name)): tensor for name, tensor in tensors.items()}
    places = [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None and id(parameter) in replaced
    ]
    try:
        for part, name, parameter in places:
            part._parameters[name] = replaced[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for part, name, parameter in places:
            part._parameters[name] = parameter


def _warm_up(run: Callable[[], Any]) -> None:
    """Compile the kernels, and run a few times on a stream of its own."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        with kernels_compiled_ahead():
            run()
        for _ in range(WARM_UP):
            run()
    torch.cuda.synchronize()


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
