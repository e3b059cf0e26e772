"""How fast is the network? Against its own plain PyTorch form and against timm's networks of like accuracy.

    python benchmarks/model.py                            # on a GPU: inference and training at 224 x 224, bf16
    python benchmarks/model.py --models t a --peers swin_tiny_patch4_window7_224
    python benchmarks/model.py --dtype tf32 --modes inference --models t s b
    python benchmarks/model.py --batch 1                  # latency
    python benchmarks/model.py --device cpu               # deploy and train form, memory layouts, 1 and 2 threads
    python benchmarks/model.py --device cpu --forms eager # likewise, without a C++ compiler

`plain` is this network with every convolution by PyTorch, as the official code runs it: its train form in training, its
merged form in inference. Each network is measured eager, compiled, and compiled into CUDA graphs (`graphed`), each with
channels last and first in memory, and the best one counts. A training step is forward, backward and AdamW, under
autocast for bf16. Inference on a GPU is always the replay of a CUDA graph. Peak memory is of a training step, weights
and optimizer included.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import timm
import torch
import torch.nn.functional as F
from timing import device_name, median_event_ms, median_ms
from torch import Tensor, nn

import backbone
from workbench.compiled import compiled
from workbench.console import console
from workbench.files import write_table

PEERS = {
    "t": (
        "convnext_tiny",
        "swin_tiny_patch4_window7_224",
        "deit3_small_patch16_224",
        "deit3_base_patch16_224",
    ),
    "s": ("convnext_small", "swin_small_patch4_window7_224"),
    "b": ("convnext_base", "swin_base_patch4_window7_224"),
}


#: Forms of a network, as `compile=` in a run has them.
FORMS: dict[str, bool | str] = {"eager": False, "compiled": True, "graphed": "graphs"}
LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


@dataclass(frozen=True)
class Row:
    """One network in one setting: images a second, milliseconds a batch, GiB at most (GPU training)."""

    mode: str
    model: str
    best: str
    images_per_s: float
    ms: float
    peak_gib: float


@contextmanager
def kernels(setting: str) -> Iterator[None]:
    """Set ``WIDEFIELD_KERNELS``, and forget what was compiled under another setting."""
    before = os.environ.get("WIDEFIELD_KERNELS")
    os.environ["WIDEFIELD_KERNELS"] = setting
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()
        if before is None:
            del os.environ["WIDEFIELD_KERNELS"]
        else:
            os.environ["WIDEFIELD_KERNELS"] = before


def inference(model: nn.Module, x: Tensor, form: str, dtype: str) -> tuple[float, float]:
    """Milliseconds a batch, and 0."""
    model = model.eval()
    if isinstance(model, backbone.UniRepLKNet):
        model.reparameterize()
    if dtype == "bf16":
        model, x = model.bfloat16(), x.bfloat16()
    call = compiled(model, FORMS[form])
    with torch.no_grad():
        for _ in range(3):
            call(x)
        return median_ms([lambda: call(x)], x.device), 0.0


def training(model: nn.Module, x: Tensor, form: str, dtype: str) -> tuple[float, float]:
    """Milliseconds a step, and GiB at most."""
    model = model.train()
    call = compiled(model, FORMS[form])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=x.is_cuda or None)
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def step() -> None:
        half = torch.autocast(x.device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()
        with half:
            loss = F.cross_entropy(call(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):  # of which one records the graph: its memory counts then and never again
        step()
    if not x.is_cuda:
        return median_ms([step], x.device), 0.0
    torch.cuda.synchronize()
    return median_event_ms(step), torch.cuda.max_memory_allocated() / 2**30


MODES: dict[str, Callable[[nn.Module, Tensor, str, str], tuple[float, float]]] = {
    "inference": inference,
    "training": training,
}


def best_of(
    mode: str, name: str, build: Callable[[], nn.Module], x: Tensor, asked: argparse.Namespace
) -> Row:
    """The best form; inference is graphed in any case."""
    results = {}
    for form, layout in itertools.product(asked.forms, LAYOUTS):
        if form == "graphed" and (mode == "inference" or not x.is_cuda):
            continue
        torch.manual_seed(0)
        model = build().to(x.device, memory_format=LAYOUTS[layout])
        ms, peak = MODES[mode](model, x.contiguous(memory_format=LAYOUTS[layout]), form, asked.dtype)
        results[f"{form}, {layout}"] = (ms, peak)
        del model
        if x.is_cuda:
            torch.cuda.empty_cache()
    best = min(results, key=lambda label: results[label][0])
    ms, peak = results[best]
    row = Row(mode, name, best, len(x) / ms * 1e3, ms, peak)
    console.print(f"{mode} {name}: {row.images_per_s:,.0f} images/s ({best})", highlight=False)
    return row


def on_gpu(asked: argparse.Namespace) -> list[Row]:
    """Every network in every mode."""
    rows = []
    x = torch.randn(asked.batch, 3, asked.resolution, asked.resolution, device=asked.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = asked.dtype != "fp32"
    for mode in asked.modes:
        for size in asked.models:
            build = getattr(backbone, f"unireplknet_{size}")
            for name, setting in ((f"unireplknet_{size}", "on"), (f"unireplknet_{size} plain", "off")):
                with kernels(setting):
                    rows.append(best_of(mode, name, build, x, asked))
            for peer in PEERS.get(size, ()) if asked.peers is None else asked.peers:
                torch.compiler.reset()
                sized = (
                    {} if asked.resolution == 224 or "convnext" in peer else {"img_size": asked.resolution}
                )
                rows.append(best_of(mode, peer, lambda p=peer, s=sized: timm.create_model(p, **s), x, asked))
    return rows


def on_cpu(asked: argparse.Namespace) -> list[Row]:
    """Forms and memory layouts of one network, forward only, fp32, at one and two threads."""
    rows = []
    x = torch.randn(asked.batch, 3, asked.resolution, asked.resolution)
    build: Callable[[], Any] = getattr(backbone, f"unireplknet_{asked.models[0]}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for form, label, how in itertools.product(("train form", "deploy form"), LAYOUTS, asked.forms):
            if how == "graphed" or (how == "compiled" and form == "train form"):
                continue
            torch.manual_seed(0)
            model = build().eval()
            if form == "deploy form":
                model.reparameterize()
            model, y = model.to(memory_format=LAYOUTS[label]), x.to(memory_format=LAYOUTS[label])
            torch.compiler.reset()
            call = compiled(model, FORMS[how])
            with torch.no_grad():
                call(y)
                ms = median_ms([lambda c=call, y=y: c(y)], x.device)
            name = f"unireplknet_{asked.models[0]}, {form}, {label}, {threads} threads"
            rows.append(Row("forward", name, how, len(x) / ms * 1e3, ms, 0.0))
    return rows


def show(rows: list[Row], title: str) -> None:
    """Print one line a network, with its ratio to the first of its mode."""
    console.print(f"[bold]{title}[/bold]", highlight=False)
    for mode in dict.fromkeys(row.mode for row in rows):
        chosen = [row for row in rows if row.mode == mode]
        print(f" {mode:58s} images/s  ms/batch  first/this  GiB")
        for row in chosen:
            print(
                f" {f'{row.model} ({row.best})':58s} {row.images_per_s:8,.0f} {row.ms:9.2f}"
                f" {chosen[0].images_per_s / row.images_per_s:11.2f} {row.peak_gib:4.1f}"
            )


def main(words: list[str] | None = None) -> list[Row]:
    """Measure, print, and write model.csv."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", default=None, help="sizes (default: t on a GPU, a elsewhere)")
    parser.add_argument("--peers", nargs="*", default=None, help="timm's names (default: of like accuracy)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--dtype", choices=["bf16", "tf32", "fp32"], default="bf16")
    parser.add_argument("--batch", type=int, default=None, help="default: 128 on a GPU, 4 elsewhere")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for the CSV")
    asked = parser.parse_args(words)
    gpu = torch.device(asked.device).type == "cuda"
    asked.batch = asked.batch or (128 if gpu else 4)
    asked.models = asked.models or (["t"] if gpu else ["a"])
    rows = on_gpu(asked) if gpu else on_cpu(asked)
    precision = asked.dtype if gpu else "fp32"
    where = device_name(torch.device(asked.device)) if gpu else "CPU"
    show(rows, f"batch {asked.batch}, {asked.resolution} x {asked.resolution}, {precision}, {where}")
    write_table(asked.out / "model.csv", [asdict(row) for row in rows], [field.name for field in fields(Row)])
    console.print(f"written to {asked.out}/model.csv", highlight=False)
    return rows


if __name__ == "__main__":
    main()
