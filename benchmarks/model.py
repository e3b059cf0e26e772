"""How fast is the network? Against its own plain PyTorch form and against timm's networks of like accuracy.

    python benchmarks/model.py                            # on a GPU: inference and training at 224 x 224, bf16
    python benchmarks/model.py --models t a --peers swin_tiny_patch4_window7_224
    python benchmarks/model.py --dtype tf32 --modes inference --models t s b
    python benchmarks/model.py --batch 1                  # latency
    python benchmarks/model.py --device cpu               # deploy and train form, memory layouts, 1 and 2 threads
    python benchmarks/model.py --device cpu --modes training  # steps on log-mel maps, in turns with the plain form
    python benchmarks/model.py --device cpu --forms eager # likewise, without a C++ compiler

`plain` is this network with every convolution by PyTorch, as the official code runs it: its train form in training, its
merged form in inference. Each network is measured eager, eager in CUDA graphs (`recorded`), compiled, with compiled
blocks in CUDA graphs (`blocks`, of ours alone), and compiled into CUDA graphs (`graphed`), each with channels last and
first in memory, and the best one counts. A training step is forward, backward and AdamW, under autocast for bf16.
Inference on a GPU is always the replay of a CUDA graph. Peak memory is of a training step, weights and optimizer
included. `WIDEFIELD_POINTWISE=off` before the command measures inference without it (docs/PERFORMANCE.md). Several
networks compile at once, in processes of their own; one at a time is measured.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
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
from turns import in_turns

import backbone
from tasks.optimizers import create_optimizer
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
FORMS: dict[str, bool | str] = {
    "eager": False,
    "recorded": "eager_graphs",
    "compiled": True,
    "blocks": "block_graphs",
    "graphed": "graphs",
}
GRAPHS = ("recorded", "blocks", "graphed")  # forms that are CUDA graphs themselves
LAYOUTS = {"last": torch.channels_last, "first": torch.contiguous_format}
PLAIN = " plain"


@dataclass(frozen=True)
class Row:
    """One network in one setting: images a second, milliseconds a batch, GiB at most (GPU training)."""

    mode: str
    model: str
    best: str
    images_per_s: float
    ms: float
    peak_gib: float


@dataclass(frozen=True)
class Setting:
    """What one process measures. ``network``: a name of ours, with " plain" for PyTorch's convolutions, or timm's."""

    mode: str
    network: str
    form: str
    layout: str
    dtype: str
    batch: int
    resolution: int
    device: str


def build(network: str, resolution: int) -> nn.Module:
    """A network with random weights."""
    torch.manual_seed(0)
    if network.startswith("unireplknet"):
        model: nn.Module = getattr(backbone, network.removesuffix(PLAIN))()
        return model
    sized = {} if resolution == 224 or "convnext" in network else {"img_size": resolution}
    return timm.create_model(network, **sized)


def inference(
    model: nn.Module, x: Tensor, asked: Setting, my_turn: Callable[[], None]
) -> tuple[float, float]:
    """Milliseconds a batch, and 0."""
    model = model.eval()
    if isinstance(model, backbone.UniRepLKNet):
        model.reparameterize()
    if asked.dtype == "bf16":
        model, x = model.bfloat16(), x.bfloat16()
    call = compiled(model, FORMS[asked.form])
    with torch.no_grad():
        for _ in range(3):
            call(x)
        if x.is_cuda:
            torch.cuda.synchronize()  # what is still running would slow down whoever is measured first
        my_turn()
        return median_ms([lambda: call(x)], x.device), 0.0


def training_step(model: nn.Module, x: Tensor, form: str, dtype: str) -> Callable[[], None]:
    """Forward, backward and AdamW on one batch."""
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

    return step


def training(model: nn.Module, x: Tensor, asked: Setting, my_turn: Callable[[], None]) -> tuple[float, float]:
    """Milliseconds a step, and GiB at most."""
    step = training_step(model, x, asked.form, asked.dtype)
    for _ in range(4):  # of which one records the graph: its memory counts then and never again
        step()
    if x.is_cuda:
        torch.cuda.synchronize()
    my_turn()
    if not x.is_cuda:
        return median_ms([step], x.device), 0.0
    step()
    return median_event_ms(step), torch.cuda.max_memory_allocated() / 2**30


MODES = {"inference": inference, "training": training}


def measure(setting: Setting, my_turn: Callable[[], None]) -> tuple[float, float]:
    """Milliseconds a batch and GiB at most, of one setting in this process."""
    os.environ["WIDEFIELD_KERNELS"] = "off" if setting.network.endswith(PLAIN) else "on"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting.dtype != "fp32"
    layout = LAYOUTS[setting.layout]
    model = build(setting.network, setting.resolution).to(setting.device, memory_format=layout)
    x = torch.randn(setting.batch, 3, setting.resolution, setting.resolution, device=setting.device)
    return MODES[setting.mode](model, x.contiguous(memory_format=layout), setting, my_turn)


def networks(asked: argparse.Namespace) -> Iterator[str]:
    """Ours of every size, its plain form, and the peers."""
    for size in asked.models:
        yield f"unireplknet_{size}"
        yield f"unireplknet_{size}{PLAIN}"
        yield from PEERS.get(size, ()) if asked.peers is None else asked.peers


def jobs_on(device: str) -> int:
    """Networks to compile at once for a GPU: one for four cores and 16 GiB of its memory, 8 at most."""
    memory = torch.cuda.get_device_properties(device).total_memory // 2**34
    return max(1, min(8, (os.cpu_count() or 1) // 4, memory))


def in_every_form(asked: argparse.Namespace) -> list[Row]:
    """On a GPU, the best form of every network in every mode; inference is graphed in any case."""
    settings = [
        Setting(mode, network, form, layout, asked.dtype, asked.batch, asked.resolution, asked.device)
        for mode in asked.modes
        for network in dict.fromkeys(networks(asked))
        for form in asked.forms
        for layout in asked.layouts
        if form not in GRAPHS or mode == "training"
        if form != "blocks" or network.startswith("unireplknet")
    ]
    best: dict[tuple[str, str], Row] = {}
    for setting, answer in in_turns(measure, settings, asked.jobs or jobs_on(asked.device)):
        how = f"{setting.form}, channels {setting.layout}"
        if isinstance(answer, str):
            console.print(f"{setting.mode} {setting.network} ({how}) failed: {answer}", highlight=False)
            continue
        ms, peak = answer
        row = Row(setting.mode, setting.network, how, setting.batch / ms * 1e3, ms, peak)
        told = f"{row.mode} {row.model} ({how}): {row.images_per_s:,.0f} images/s"
        console.print(told + (f", {peak:.2f} GiB" if peak else ""), highlight=False)
        key = (row.mode, row.model)
        if key not in best or row.ms < best[key].ms:
            best[key] = row
    return list(best.values())


def on_cpu(asked: argparse.Namespace) -> list[Row]:
    """Forms and memory layouts of one network, forward only, fp32, at one and two threads."""
    rows = []
    x = torch.randn(asked.batch, 3, asked.resolution, asked.resolution)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for form, label, how in itertools.product(("train form", "deploy form"), asked.layouts, asked.forms):
            if how in GRAPHS or (how == "compiled" and form == "train form"):
                continue
            model: Any = build(f"unireplknet_{asked.models[0]}", asked.resolution).eval()
            if form == "deploy form":
                model.reparameterize()
            model, y = model.to(memory_format=LAYOUTS[label]), x.to(memory_format=LAYOUTS[label])
            torch.compiler.reset()
            call = compiled(model, FORMS[how])
            with torch.no_grad():
                call(y)
                ms = median_ms([lambda c=call, y=y: c(y)], x.device)
            name = f"unireplknet_{asked.models[0]}, {form}, channels {label}, {threads} threads"
            rows.append(Row("forward", name, how, len(x) / ms * 1e3, ms, 0.0))
    return rows


#: Training steps on a CPU: batch, log-mel map, network. The default of `modality=audio`, and A on spoken digits.
STEPS: dict[str, tuple[int, tuple[int, int], Callable[[], backbone.UniRepLKNet]]] = {
    "widefield_nano": (
        32,
        (64, 61),
        lambda: backbone.UniRepLKNet(1, 35, (1, 1, 2, 1), (24, 48, 96, 192), (3, 13, 13, 13), 0.0, 0.1),
    ),
    "unireplknet_a": (64, (64, 65), lambda: backbone.unireplknet_a(in_chans=1, num_classes=10)),
}


def steps_on_cpu(repeats: int = 9) -> list[Row]:
    """Training steps, fp32, ours and the plain form in turns, so that other work on the machine meets both.

    ``best`` names what the milliseconds are of: the clock on the wall, or the processor's.
    """
    rows = []
    for name, (batch, sides, network) in STEPS.items():
        torch.manual_seed(0)
        model = network().train()
        x, labels = torch.randn(batch, 1, *sides), torch.zeros(batch, dtype=torch.long)
        optimizer = create_optimizer(model, lr=1e-3)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times: dict[tuple[str, str], list[float]] = {}
            for form in ("", PLAIN) * (repeats + 2):
                os.environ["WIDEFIELD_KERNELS"] = "off" if form else "on"
                began, spent = time.perf_counter(), time.process_time()
                F.cross_entropy(model(x), labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                times.setdefault((form, "processor"), []).append(time.process_time() - spent)
                times.setdefault((form, "wall"), []).append(time.perf_counter() - began)
            for (form, clock), seconds in times.items():
                ms = 1e3 * statistics.median(seconds[2:])
                label = f"{name}{form}, {threads} threads"
                rows.append(Row("training", label, clock, batch / ms * 1e3, ms, 0.0))
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
    parser.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="channels in memory"
    )
    parser.add_argument("--dtype", choices=["bf16", "tf32", "fp32"], default="bf16")
    parser.add_argument("--batch", type=int, default=None, help="default: 128 on a GPU, 4 elsewhere")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        help="networks to compile at once (GPU; default: by cores and memory)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for the CSV")
    asked = parser.parse_args(words)
    gpu = torch.device(asked.device).type == "cuda"
    asked.batch = asked.batch or (128 if gpu else 4)
    asked.models = asked.models or (["t"] if gpu else ["a"])
    if gpu:
        rows = in_every_form(asked)
    else:
        rows = on_cpu(asked) if "inference" in asked.modes else []
        rows += steps_on_cpu() if asked.modes == ["training"] else []
    precision = asked.dtype if gpu else "fp32"
    where = device_name(torch.device(asked.device)) if gpu else "CPU"
    what = f"batch {asked.batch}, {asked.resolution} x {asked.resolution}"
    if not gpu and asked.modes == ["training"]:
        what = ", ".join(f"{name} {size} x 1 x {h} x {w}" for name, (size, (h, w), _) in STEPS.items())
    show(rows, f"{what}, {precision}, {where}")
    write_table(asked.out / "model.csv", [asdict(row) for row in rows], [field.name for field in fields(Row)])
    console.print(f"written to {asked.out}/model.csv", highlight=False)
    return rows


if __name__ == "__main__":
    main()
