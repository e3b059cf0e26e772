"""Cost of a network: multiply-accumulates, time of a training step, inference latency. Kept in every result."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from tasks.network import Network

SKIPPED = 3  # first training steps, excluded as warm-up
STEPS = 50  # number of steps measured; limited, because each synchronises the GPU
WARMUP, ANSWERS = 2, 15
MOST_S = 0.3  # maximum seconds for measuring latency; a slow machine makes fewer passes


@dataclass(frozen=True)
class Cost:
    """Measured cost of a run.

    Args:
        macs: multiply-accumulates of one sample's forward pass in deploy form (convolutions and matrix products).
        step_s: median seconds of a training step, without data loading; None if there were too few steps.
        latency_s: median seconds of a forward pass of a single raw sample, in deploy form.
    """

    macs: int | None = None
    step_s: float | None = None
    latency_s: float | None = None

    def plain(self) -> dict[str, Any]:
        """As a dictionary, for `result.json`."""
        return asdict(self)


class StepTimes(Callback):
    """Times training steps: forward, backward, optimiser."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.seen = 0
        self.started = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._measures():
            _wait(pl_module.device)
            self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._measures():
            _wait(pl_module.device)
            self.seconds.append(time.perf_counter() - self.started)
        self.seen += 1

    def _measures(self) -> bool:
        return self.seen >= SKIPPED and len(self.seconds) < STEPS

    @property
    def median(self) -> float | None:
        """Median seconds of a step; None if none was measured."""
        return statistics.median(self.seconds) if self.seconds else None


def cost_of(network: Network, trainer: Trainer, step_s: float | None = None) -> Cost:
    """Measure MACs and latency of a copy in deploy form, on the trainer's device and in its precision."""
    device = trainer.strategy.root_device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        merged = copy.deepcopy(network)
        merged.runner = None
        merged = merged.reparameterize().eval().to(device)
        raw = merged.embedder.example_raw(1)
        raw = tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, raw)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            macs = count_macs(merged, raw)
            latency_s = _median_s(lambda: merged(raw), device)
    return Cost(round(macs), _short(step_s), _short(latency_s))


@torch.no_grad()
def count_macs(network: nn.Module, raw: Any) -> float:
    """Multiply-accumulates of one forward pass (convolutions and matrix products, as torch counts them)."""
    network.eval()
    with FlopCounterMode(display=False) as counter:
        network(raw)
    return counter.get_total_flops() / 2


def _median_s(answer: Callable[[], Any], device: torch.device) -> float:
    for _ in range(WARMUP):
        answer()
    found: list[float] = []
    while not found or (len(found) < ANSWERS and sum(found) < MOST_S):
        _wait(device)
        started = time.perf_counter()
        answer()
        _wait(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.4g}")
