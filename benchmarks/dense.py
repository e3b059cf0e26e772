"""How fast are whole networks for segmentation and detection, with our kernels, without them, and with ConvNeXt inside?

    python benchmarks/dense.py                    # on a GPU: UPerNet at 512 x 512, Cascade Mask R-CNN at 1280 x 800
    python benchmarks/dense.py --only segmentation --batch 8
    python benchmarks/dense.py --device cpu --size 64 --batch 1 --models unireplknet_a      # to try it

The networks are those of the official recipes (experiment=segmentation/ade20k_upernet_t, detection/coco_cascade_t) with
random weights, built and stepped as `run.py` does, in bf16 under autocast, in forms of `compile=`: eager and, by
default, `eager_graphs`. Inference is the deploy form: pixels in, the class of every pixel or the boxes and masks after
suppression out; the head lets as many boxes of random weights through as it does. A training step is forward, losses,
backward and AdamW. `plain` is the same network with every convolution by PyTorch. Times are medians between two events,
launching included.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from hydra import compose, initialize_config_dir
from model import FORMS
from timing import device_name, median_event_ms, median_ms
from torch import Tensor
from turns import in_turns

from tasks.bilinear import resized
from tasks.datasets.batch import Batch
from tasks.task import Task
from workbench.build import build_task
from workbench.compiled import compiled
from workbench.conf_folders import CONF
from workbench.console import console
from workbench.files import write_table
from workbench.other_backbone import leave_out_others_settings
from workbench.recorded import SEEN_BEFORE

PLAIN = " plain"
#: Task -> experiment, height and width of a picture, classes.
TASKS = {
    "segmentation": ("segmentation/ade20k_upernet_t", (512, 512), 150),
    "detection": ("detection/coco_cascade_t", (800, 1280), 80),
}
MODELS = ("unireplknet_t", f"unireplknet_t{PLAIN}", "convnext_tiny")
MODES = ("inference", "training")
OBJECTS = 8  # in a picture to train on


@dataclass(frozen=True)
class Row:
    """One network in one setting: images a second, milliseconds a batch, GiB at most (GPU training)."""

    task: str
    mode: str
    form: str
    model: str
    images_per_s: float
    ms: float
    peak_gib: float


@dataclass(frozen=True)
class Setting:
    """What one process measures; `size` is height and width."""

    task: str
    mode: str
    form: str
    model: str
    size: tuple[int, int]
    batch: int
    device: str


def build(setting: Setting) -> Task:
    """The task of an official recipe around a backbone, with random weights."""
    experiment, _, classes = TASKS[setting.task]
    backbone = setting.model.removesuffix(PLAIN)
    words = [f"experiment={experiment}", f"backbone={backbone}", "backbone.pretrained=null"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=words)
    leave_out_others_settings(cfg)
    torch.manual_seed(0)
    names = [str(number) for number in range(classes)]
    own = {"palette": [[0, 0, 0]] * classes} if setting.task == "segmentation" else {"has_masks": True}
    return build_task(cfg, {"class_names": names, **own}, pretrained=False).to(setting.device)


def example(setting: Setting) -> Batch:
    """Random pictures with random masks, or with objects of all sizes."""
    height, width = setting.size
    random = torch.Generator().manual_seed(0)
    classes = TASKS[setting.task][2]
    count = setting.batch
    pixels = torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=random)
    target: Any
    if setting.task == "segmentation":
        target = torch.randint(classes, (count, height, width), dtype=torch.uint8, generator=random)
        target = target.to(setting.device)
    else:
        target = [_objects(height, width, classes, random, setting.device) for _ in range(count)]
    sizes = torch.tensor([[height, width]] * count)
    raw = {"pixels": pixels.to(setting.device), "size": sizes.to(setting.device)}
    return Batch(raw, target, torch.arange(count))


def _objects(
    height: int, width: int, classes: int, random: torch.Generator, device: str
) -> dict[str, Tensor]:
    sides = torch.rand(OBJECTS, 2, generator=random) * 0.6 + 0.05
    corners = torch.rand(OBJECTS, 2, generator=random) * (1 - sides)
    whole = torch.tensor([width, height])
    boxes = torch.cat([corners * whole, (corners + sides) * whole], dim=1)
    masks = torch.zeros(OBJECTS, height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    target = {
        "boxes": boxes,
        "labels": torch.randint(classes, (OBJECTS,), generator=random),
        "crowd": torch.zeros(OBJECTS, dtype=torch.bool),
        "masks": masks,
    }
    return {name: value.to(device) for name, value in target.items()}


def predict(task: Any, batch: Batch) -> Any:
    """What a prediction asks the network for, up to what is written and drawn of it."""
    height, width = batch.raw["pixels"].shape[-2:]
    if isinstance(batch.target, Tensor):
        return resized(task.network(batch.raw).float(), (height, width)).argmax(dim=1)
    with task.head.unfinished():
        outputs = task.network(batch.raw)
    return task.head.detect(outputs, batch.raw["size"])


def measure(setting: Setting, my_turn: Callable[[], None]) -> tuple[float, float]:
    """Milliseconds a batch and GiB at most, of one setting in this process."""
    os.environ["WIDEFIELD_KERNELS"] = "off" if setting.model.endswith(PLAIN) else "on"
    device = torch.device(setting.device)
    task, batch = build(setting), example(setting)
    call = _training(task, batch) if setting.mode == "training" else _inference(task, batch)
    network: Any = task.network
    network.runner = compiled(network.forward_maps, FORMS[setting.form])
    for _ in range(SEEN_BEFORE + 2):
        call()
    my_turn()
    if device.type != "cuda":
        return median_ms([call], device), 0.0
    torch.cuda.reset_peak_memory_stats()
    ms = median_event_ms(call)
    return ms, torch.cuda.max_memory_allocated() / 2**30 if setting.mode == "training" else 0.0


def _half(batch: Batch) -> AbstractContextManager[Any]:
    pixels: Tensor = batch.raw["pixels"]
    return torch.autocast("cuda", torch.bfloat16) if pixels.is_cuda else nullcontext()


def _inference(task: Task, batch: Batch) -> Callable[[], None]:
    task.eval().network.reparameterize()

    def call() -> None:
        with torch.no_grad(), _half(batch):
            predict(task, batch)

    return call


def _training(task: Task, batch: Batch) -> Callable[[], None]:
    task.train()
    cuda = bool(batch.raw["pixels"].is_cuda)
    optimizer = torch.optim.AdamW(task.network.parameters(), lr=1e-4, fused=cuda or None)

    def call() -> None:
        with _half(batch):
            loss = task.step(batch, "train")["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def show(rows: list[Row]) -> None:
    """Print one line a network, with its ratio to the first of its task, mode and form."""
    for key in dict.fromkeys((row.task, row.mode, row.form) for row in rows):
        chosen = [row for row in rows if (row.task, row.mode, row.form) == key]
        print(f" {', '.join(key):28s} images/s  ms/batch  first/this  GiB")
        for row in chosen:
            print(
                f" {row.model:28s} {row.images_per_s:8,.1f} {row.ms:9.2f}"
                f" {chosen[0].images_per_s / row.images_per_s:11.2f} {row.peak_gib:4.1f}"
            )


def main(words: list[str] | None = None) -> list[Row]:
    """Measure, print, and write dense.csv."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="of conf/backbone, with ' plain'")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["eager", "recorded"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=None, help="sides of a square instead of the recipe's")
    parser.add_argument("--jobs", type=int, default=1, help="networks to prepare at once")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for the CSV")
    asked = parser.parse_args(words)
    settings = [
        Setting(task, mode, form, model, (asked.size,) * 2 if asked.size else size, asked.batch, asked.device)
        for task, (_, size, _) in TASKS.items()
        if task in asked.only
        for mode in asked.modes
        for form in asked.forms
        for model in asked.models
    ]
    rows = []
    for setting, found in in_turns(measure, settings, asked.jobs):
        if isinstance(found, str):
            console.print(
                f"{setting.task} {setting.mode} {setting.form} {setting.model} failed: {found}",
                highlight=False,
            )
            continue
        ms, peak = found
        rows.append(
            Row(setting.task, setting.mode, setting.form, setting.model, setting.batch / ms * 1e3, ms, peak)
        )
    console.print(
        f"[bold]batch {asked.batch}, {device_name(torch.device(asked.device))}[/bold]", highlight=False
    )
    show(rows)
    write_table(asked.out / "dense.csv", [asdict(row) for row in rows], [field.name for field in fields(Row)])
    console.print(f"written to {asked.out}/dense.csv", highlight=False)
    return rows


if __name__ == "__main__":
    main()
