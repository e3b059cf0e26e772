"""How much faster do several GPUs train? Images a second of one process and of one process a GPU (DDP), in turns.

    python benchmarks/ddp.py                                     # 1 and 2 GPUs: UniRepLKNet-T at 224 x 224, bf16
    python benchmarks/ddp.py --processes 1 2 4 --forms recorded graphed
    python benchmarks/ddp.py --device cpu --model unireplknet_a --batch 2 --resolution 32 --forms eager   # to try it

Every process trains on a batch of its own, random and already on its GPU: what is measured is the step (forward,
backward, gradients averaged over processes, AdamW), not the reading of data. One process runs without DDP, as a run
does. Batch norms see the images of one process, as in the official recipes. Forms: those of `benchmarks/model.py`.
The last column is the time of averaging the gradients alone.
"""

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from model import FORMS, LAYOUTS, build, training_step
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workbench.compiled import compiled
from workbench.console import console
from workbench.files import write_table

WARM_UP, STEPS, REPEATS = 8, 20, 5  # graphs are recorded in the third step


@dataclass(frozen=True)
class Row:
    """One form on a number of processes; `ratio` to the first number, `average_ms` of the gradients alone."""

    model: str
    form: str
    processes: int
    images_per_s: float
    ms: float
    ratio: float
    average_ms: float


class Run(nn.Module):
    """A network that runs in a form; what DDP wraps, as a run wraps its task."""

    def __init__(self, network: nn.Module, form: str) -> None:
        super().__init__()
        self.network = network
        self.run: Callable[[Tensor], Tensor] = compiled(network, FORMS[form])

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def _ready(device: torch.device, together: bool) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    if together:
        dist.barrier()
    return time.perf_counter()


def _work(rank: int, asked: argparse.Namespace, form: str, processes: int, port: int, answer: str) -> None:
    together = processes > 1
    device = torch.device(asked.device, rank) if asked.device == "cuda" else torch.device(asked.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    else:
        torch.set_num_threads(1)
    if together:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        backend = "nccl" if device.type == "cuda" else "gloo"
        limit = timedelta(minutes=10)
        dist.init_process_group(backend, rank=rank, world_size=processes, timeout=limit)
    layout = LAYOUTS["last"]
    run: nn.Module = Run(build(asked.model, asked.resolution).to(device, memory_format=layout), form)
    gradients = [torch.zeros_like(parameter) for parameter in run.parameters()]
    if together:
        ids = [rank] if device.type == "cuda" else None
        run = DistributedDataParallel(run, device_ids=ids, gradient_as_bucket_view=True)
    x = torch.randn(asked.batch, 3, asked.resolution, asked.resolution, device=device)
    step = training_step(run, x.contiguous(memory_format=layout), "eager", asked.dtype)
    average_ms = _average_ms(gradients, device) if together else 0.0
    for _ in range(WARM_UP):
        step()
    times = []
    for _ in range(asked.repeats):
        began = _ready(device, together)
        for _ in range(asked.steps):
            step()
        times.append((_ready(device, together) - began) / asked.steps)
    if rank == 0:
        Path(answer).write_text(f"{1e3 * statistics.median(times)} {average_ms}")
    if together:
        dist.destroy_process_group()


def _average_ms(gradients: list[Tensor], device: torch.device) -> float:
    """Milliseconds to average all gradients at once."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    times = []
    for _ in range(REPEATS + 1):
        began = _ready(device, together=True)
        dist.all_reduce(flat)
        times.append(_ready(device, together=True) - began)
    return 1e3 * statistics.median(times[1:])


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def main(words: list[str] | None = None) -> list[Row]:
    """Measure, print, and write ddp.csv."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="unireplknet_t", help="ours or timm's names")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["recorded"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtype", choices=["bf16", "tf32"], default="bf16")
    parser.add_argument("--batch", type=int, default=128, help="of each process")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--steps", type=int, default=STEPS, help="of one measurement")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="measurements, of which the median counts"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for the CSV")
    asked = parser.parse_args(words)
    rows: list[Row] = []
    console.print(f" {'':26s} processes  images/s  ms a step  ratio  averaging", highlight=False)
    for form in asked.forms:
        first: float | None = None
        for processes in asked.processes:
            with tempfile.TemporaryDirectory() as folder:
                answer = Path(folder, "answer")
                mp.spawn(_work, (asked, form, processes, free_port(), str(answer)), nprocs=processes)
                ms, average_ms = map(float, answer.read_text().split())
            rate = 1e3 * processes * asked.batch / ms
            first = first or rate
            rows.append(Row(asked.model, form, processes, rate, ms, rate / first, average_ms))
            console.print(
                f" {f'{asked.model}, {form}':26s} {processes:9d} {rate:9,.0f} {ms:10.1f} {rate / first:6.2f}"
                f" {average_ms:7.2f} ms",
                highlight=False,
            )
    write_table(asked.out / "ddp.csv", [asdict(row) for row in rows], [field.name for field in fields(Row)])
    console.print(f"written to {asked.out}/ddp.csv", highlight=False)
    return rows


if __name__ == "__main__":
    main()
