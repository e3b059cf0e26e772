"""How fast is the depthwise convolution? Ours, PyTorch's best memory layout, and the least any could take.

    python benchmarks/depthwise.py                       # on a GPU: the network's shapes, kernel sizes, map sizes
    python benchmarks/depthwise.py --batch 32 --dtype fp16
    python benchmarks/depthwise.py --device cpu          # a small version

The floor of a forward pass is one read and one write of the map at the speed of a plain copy on this device; of
forward and backward, three maps read (input, and the output's gradient twice) and two written. Every time is the
median of many, over several sets of tensors that together outgrow the cache, replayed as one graph on a GPU. Errors
are relative to fp64, over four images.
"""

import argparse
import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("WIDEFIELD_KERNELS", "always")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from timing import Ceilings, copies, device_name, measure_ceilings, median_ms
from torch import Tensor

from backbone.kernels import cpu, depthwise_conv2d
from backbone.kernels.depthwise import why_not
from workbench.console import console
from workbench.figures import save
from workbench.files import write_table

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: Channels, map side, kernel size: the large-kernel stages of UniRepLKNet-T at 224 x 224, its 3 x 3, and K = 31.
NETWORK = ((160, 28, 13), (320, 14, 13), (640, 7, 13), (80, 56, 3), (320, 14, 3), (320, 14, 31))
KERNEL_SIZES = (3, 5, 7, 9, 11, 13, 15, 17, 21, 25, 31)
MAP_SIDES = (7, 10, 14, 20, 28, 40, 56)


@dataclass(frozen=True)
class Row:
    """One shape: milliseconds of ours, of PyTorch's and of the floor, forward (f) and with backward (fb)."""

    series: str
    channels: int
    side: int
    kernel_size: int
    f_ours: float
    f_pytorch: float
    f_floor: float
    fb_ours: float
    fb_pytorch: float
    fb_floor: float
    error: float


def pytorch(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def with_backward(convolve: object, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of input and weight, ``grad`` being the output's."""
    # Leaves of this stream, or else autograd waits for another one, which a graph cannot.
    leaf, kernel = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return torch.autograd.grad(convolve(leaf, kernel), (leaf, kernel), grad)  # type: ignore[operator]


def measure(
    series: str, shape: tuple[int, int, int], batch: int, dtype: torch.dtype, ceilings: Ceilings, number: int
) -> Row:
    """All times of one shape."""
    channels, side, k = shape
    device = torch.device(DEVICE)
    xs = copies((batch, channels, side, side), number, dtype, device)
    weight = (torch.randn(channels, 1, k, k, device=device) / k).to(dtype)
    layouts = [xs, [x.contiguous() for x in xs]]
    map_bytes = xs[0].numel() * xs[0].element_size()

    ours = median_ms([lambda x=x: depthwise_conv2d(x, weight) for x in xs], device)
    theirs = min(median_ms([lambda x=x: pytorch(x, weight) for x in each], device) for each in layouts)

    def both(convolve: object, maps: list[Tensor]) -> float:
        grads = [torch.cat([x[1:], x[:1]]) for x in maps]  # of their own, and in the same memory layout
        return median_ms(
            [
                lambda x=x, grad=grad: with_backward(convolve, x, weight, grad)
                for x, grad in zip(maps, grads, strict=True)
            ],
            device,
        )

    ours_both = both(depthwise_conv2d, xs)
    theirs_both = min(both(pytorch, each) for each in layouts)
    few = xs[0][:4]
    exact = pytorch(few.double(), weight.double())
    error = (depthwise_conv2d(few, weight).double() - exact).norm() / exact.norm()
    return Row(
        series,
        *shape,
        ours,
        theirs,
        ceilings.floor_ms(2 * map_bytes),
        ours_both,
        theirs_both,
        ceilings.floor_ms(5 * map_bytes),
        error.item(),
    )


HEADER = " C, side, K     forward ms  PyTorch  ratio  x floor   with backward  PyTorch  ratio  x floor  error"


def line(r: Row) -> str:
    """One shape, as it stands under HEADER."""
    return (
        f" {f'{r.channels}, {r.side}², {r.kernel_size}':14s}"
        f" {r.f_ours:10.4f} {r.f_pytorch:8.3f} {r.f_pytorch / r.f_ours:6.1f} {r.f_ours / r.f_floor:8.1f}"
        f" {r.fb_ours:15.4f} {r.fb_pytorch:8.3f} {r.fb_pytorch / r.fb_ours:6.1f} {r.fb_ours / r.fb_floor:8.1f}"
        f"  {r.error:.0e}"
    )


def draw(rows: list[Row], path: Path, title: str) -> None:
    """Time against kernel size and against map size."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    axes = (("kernel size", "kernel_size", "kernel size K"), ("map size", "side", "side of the map [pixels]"))
    for panel, (series, attribute, label) in zip(panels, axes, strict=True):
        chosen = [row for row in rows if row.series == series]
        positions = [getattr(row, attribute) for row in chosen]
        for name, values, style in (
            ("PyTorch", [row.f_pytorch for row in chosen], "o-"),
            ("Widefield", [row.f_ours for row in chosen], "s-"),
            ("floor: one copy", [row.f_floor for row in chosen], "k--"),
        ):
            panel.plot(positions, values, style, label=name, markersize=4)
        panel.set(yscale="log", xlabel=label, ylabel="forward pass [ms]")
        panel.grid(alpha=0.3, which="both")
        panel.set_title(f"against {series}", fontsize=10)
    panels[0].legend()
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def main(words: list[str] | None = None) -> list[Row]:
    """Measure, print, and write depthwise.csv and depthwise.png."""
    global DEVICE
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=None, help="images (default: 128 on a GPU, 2 elsewhere)")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="default: bf16 on a GPU, else fp32")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for CSV and plot")
    asked = parser.parse_args(words)
    DEVICE = asked.device
    on_gpu = torch.device(DEVICE).type == "cuda"
    batch = asked.batch or (128 if on_gpu else 2)
    name = asked.dtype or ("bf16" if on_gpu else "fp32")
    number = 8 if on_gpu else 1
    torch.manual_seed(0)
    ceilings = measure_ceilings(torch.device(DEVICE))
    title = f"Depthwise convolution, batch {batch}, {name}, {device_name(torch.device(DEVICE))}"
    x, weight = torch.zeros(1, 8, 14, 14, dtype=DTYPES[name], device=DEVICE), torch.zeros(8, 1, 13, 13)
    reason = why_not(x, weight)
    if reason and not cpu.pays(x, weight):
        console.print(f"ours is PyTorch's here: {reason}", highlight=False)
    shrink = 1 if on_gpu else 8
    plan = {
        "network": NETWORK,
        "kernel size": tuple((320, 14, k) for k in KERNEL_SIZES),
        "map size": tuple((160, side, 13) for side in MAP_SIDES),
    }
    console.print(
        f"copy {ceilings.bytes_per_s / 1e12:.3f} TB/s, product {ceilings.operations_per_s / 1e12:.1f} TFLOP/s"
    )
    rows: list[Row] = []
    measured: dict[tuple[int, int, int], Row] = {}
    for series, shapes in plan.items():
        console.print(f"[bold]{title}: {series}[/bold]", highlight=False)
        print(HEADER)
        for channels, side, k in shapes:
            shape = (channels // shrink, side, k)
            if shape not in measured:
                measured[shape] = measure(series, shape, batch, DTYPES[name], ceilings, number)
            rows.append(replace(measured[shape], series=series))
            print(line(rows[-1]), flush=True)
            write_table(
                asked.out / "depthwise.csv",
                [asdict(row) for row in rows],
                [field.name for field in fields(Row)],
            )
    draw(rows, asked.out / "depthwise.png", title)
    console.print(f"written to {asked.out}/depthwise.csv and .png", highlight=False)
    return rows


DEVICE = "cpu"

if __name__ == "__main__":
    main()
