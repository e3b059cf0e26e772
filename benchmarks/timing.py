"""Timing for the benchmarks: medians of many, GPU work by graph replay, and what the hardware could do at best."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ENOUGH_MS = 300  # of repeating something slow


def median_ms(calls: Sequence[Callable[[], Any]], device: torch.device, repeats: int = 12) -> float:
    """Milliseconds of one call: the median over repeats of all calls in turn.

    Give as many calls, each with tensors of its own, as make the caches forget. On a GPU the calls are captured into
    one graph and replayed, so launching is not measured; they must therefore not wait for the GPU.
    """
    if device.type != "cuda":
        for call in calls[:1]:
            call()
        times = []
        for _ in range(max(3, repeats // 4)):
            began = time.perf_counter()
            for call in calls:
                call()
            times.append((time.perf_counter() - began) * 1e3 / len(calls))
        return statistics.median(times)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    once = median_event_ms(graph.replay, 1)
    return median_event_ms(graph.replay, max(3, min(repeats, int(ENOUGH_MS / once)))) / len(calls)


def median_event_ms(call: Callable[[], Any], repeats: int = 12) -> float:
    """Milliseconds of one call on the GPU, between events, launching included."""
    times = []
    for _ in range(repeats):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        call()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return statistics.median(times)


@dataclass(frozen=True)
class Ceilings:
    """What this device does at best, measured: bytes/s of a copy (read + written), operations/s of a bf16 product."""

    bytes_per_s: float
    operations_per_s: float

    def floor_ms(self, moved: float, operations: float = 0.0) -> float:
        """No implementation that moves these bytes and does these operations takes less."""
        return 1e3 * max(moved / self.bytes_per_s, operations / self.operations_per_s)


def measure_ceilings(device: torch.device) -> Ceilings:
    """Copy and multiply something large."""
    large = device.type == "cuda"
    size = 2**30 if large else 2**25
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    # An elementwise kernel: a plain copy in a CUDA graph is the copy engine's, which is slower.
    copy_ms = median_ms([lambda: torch.add(source, 1, out=target)], device)
    side = 8192 if large else 512
    a, b = (
        torch.randn(side, side, device=device).to(torch.bfloat16 if large else torch.float32)
        for _ in range(2)
    )
    product_ms = median_ms([lambda: a @ b], device)
    return Ceilings(2 * size / copy_ms * 1e3, 2 * side**3 / product_ms * 1e3)


def device_name(device: torch.device) -> str:
    """The GPU's name, or how many threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def copies(shape: tuple[int, ...], number: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random maps ``(N, C, H, W)`` in channels-last memory."""
    random = torch.Generator(device=device).manual_seed(0)
    return [
        torch.randn(shape, device=device, generator=random)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(number)
    ]
