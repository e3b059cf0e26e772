"""Do the readers keep up? How fast each reads, and how much of a training step is spent waiting for it.

    python benchmarks/data.py                                   # every task, on its embedded sample
    python benchmarks/data.py --tasks image_folder etth1        # some of them
    python benchmarks/data.py --tasks imagenet data_dir=PATH backbone=unireplknet_t

Words with `=` are options of run.py. For each number of reader processes two things are measured: reading
alone, as fast as it goes; and training steps as a run makes them (copy, augmentation, forward, backward,
optimiser), with the time from asking for a batch to getting it. With 0 workers the training process reads, so
all of reading is waiting. Starting the processes and the first steps do not count, the turns of epochs do.
"""

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where the project is not installed

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as run.py does

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from tasks.datasets.base import DataModule
from tasks.datasets.batch import Batch
from tasks.datasets.sampling import ResumableLoader
from tasks.task import Task
from workbench.build import build_task
from workbench.checking import tasks_of
from workbench.console import console, print_table, quiet_libraries
from workbench.files import write_atomically
from workbench.resolvers import register_resolvers

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 2  # steps or batches before the clock starts
FEWEST = 3  # steps or batches on the clock, however long they take


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        workers: reader processes.
        batch: samples in a batch.
        read_per_s: samples read in a second, nothing else going on.
        read_per_worker: the same for each process that reads.
        step_ms: a training step, waiting included.
        waiting: part of the steps spent waiting for the batch.
    """

    modality: str
    task: str
    workers: int
    batch: int
    read_per_s: float
    read_per_worker: float
    step_ms: float
    waiting: float


def modalities() -> list[str]:
    """All modalities, by name."""
    return sorted(file.stem for file in (ROOT / "conf" / "modality").glob("[!_]*.yaml"))


def composed(modality: str, task: str, options: list[str]) -> DictConfig:
    """The configuration `run.py` would have."""
    words = [f"modality={modality}", f"task={task}", f"paths.data={ROOT / 'data'}", *options]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=words)


def measure(cfg: DictConfig, workers: list[int], seconds: float, device: torch.device) -> Iterator[Row]:
    """One row for each number of workers; each of the two measurements takes about ``seconds``."""
    data: DataModule = instantiate(cfg.task.data)
    data.prepare_data()
    data.setup()
    torch.manual_seed(0)
    task = build_task(cfg, data.info(), pretrained=False)
    embedder: Any = task.network.embedder
    if embedder.needs_statistics:
        embedder.fit_statistics(data.training_raws(64))
    task.augment.transforms = data.device_transforms()
    task = task.to(device).train()
    for count in workers:
        data.num_workers = count
        loader = data.train_dataloader()
        samples, took = read(loader, seconds)
        step, waiting = train(task, loader, seconds, device)
        per_s = samples / took
        batch = loader.batch_sampler.batch_size
        yield Row(
            cfg.modality.name, cfg.task.name, count, batch, per_s, per_s / max(count, 1), 1000 * step, waiting
        )


def endless(loader: ResumableLoader) -> Iterator[Batch]:
    """The batches of epoch after epoch."""
    epoch = 0
    while True:
        loader.batch_sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def read(loader: ResumableLoader, seconds: float) -> tuple[int, float]:
    """Samples read and the seconds it took."""
    batches = endless(loader)
    for _ in range(max(WARM_UP, 2 * loader.num_workers)):  # each process has its first batches behind it
        next(batches)
    samples, number, start = 0, 0, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds or number < FEWEST:
        samples += len(next(batches))
        number += 1
    return samples, took


def train(task: Task, loader: ResumableLoader, seconds: float, device: torch.device) -> tuple[float, float]:
    """Seconds of a training step, and the part of it spent waiting for the batch."""
    assert task.make_optimizer is not None
    optimizer = task.make_optimizer(task.network)
    batches = endless(loader)
    waited, took, steps = 0.0, 0.0, -WARM_UP
    while took < seconds or steps < FEWEST:
        asked = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        batch = task.transfer_batch_to_device(batch, device, 0)
        optimizer.zero_grad()
        task.step(batch, "train")["loss"].backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps += 1
        if steps > 0:
            waited += got - asked
            took += time.perf_counter() - asked
    return took / steps, waited / took


def show(rows: list[Row]) -> None:
    """Print the table."""
    shown = [
        (row.task, str(row.workers), str(row.batch), f"{row.read_per_s:,.0f}", f"{row.read_per_worker:,.0f}",
         f"{row.step_ms:,.0f}", f"{row.waiting:.1%}")
        for row in rows
    ]  # fmt: skip
    columns = ("task", "workers", "batch", "read/s", "a worker", "step ms", "waiting")
    print_table("Samples read, and training steps that wait for them", shown, columns)


def write(rows: list[Row], path: Path) -> None:
    """Write the table as CSV."""

    def fill(draft: Path) -> None:
        with draft.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(field.name for field in fields(Row))
            table.writerows(
                [round(v, 4) if isinstance(v, float) else v for v in astuple(row)] for row in rows
            )

    write_atomically(path, fill)


def main(words: list[str] | None = None) -> list[Row]:
    """Measure what the command line asks for, print it and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("options", nargs="*", help="options of run.py, such as backbone=unireplknet_a")
    parser.add_argument("--tasks", nargs="+", help="names of tasks (default: all)")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], help="reader processes")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks/data.csv"), help="where the CSV goes"
    )
    asked = parser.parse_intermixed_args(words)
    # A space after --tasks takes all words up to the next option, run.py's as well.
    wanted = [word for word in asked.tasks or [] if "=" not in word]
    options = asked.options + [word for word in asked.tasks or [] if "=" in word]
    known = {task: modality for modality in modalities() for task in tasks_of(modality)}
    if unknown := [task for task in wanted if task not in known]:
        parser.error(f"no such task: {', '.join(unknown)} (there are {', '.join(sorted(known))})")
    register_resolvers()
    quiet_libraries()
    rows: list[Row] = []
    for task in wanted or sorted(known, key=lambda name: (known[name], name)):
        cfg = composed(known[task], task, options)
        for row in measure(cfg, asked.workers, asked.seconds, torch.device(asked.device)):
            rows.append(row)
            told = f"{row.read_per_s:,.0f} samples/s, {row.waiting:.1%} of a step waiting"
            console.print(f"{task}, {row.workers} workers: {told}", highlight=False, soft_wrap=True)
    show(rows)
    write(rows, asked.out)
    console.print(f"written to {asked.out}", highlight=False)
    return rows


if __name__ == "__main__":
    main()
