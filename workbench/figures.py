"""Figures: maps, curves, confusion matrices. Every axis has its label and unit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from modalities.embedder import MapAxes
from workbench.files import write_atomically


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and close it."""
    write_atomically(path, lambda draft: figure.savefig(draft, dpi=130, format="png"))
    plt.close(figure)


def draw_maps(maps_BVCHW: Tensor, axes: MapAxes, captions: Sequence[str], path: Path, title: str) -> None:
    """Draw the first map of each sample in a grid, with one colour scale for all."""
    maps = maps_BVCHW[:, 0].numpy()
    count = len(maps)
    columns = min(4, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.1 * columns + 0.8, 2.7 * rows + 0.6), squeeze=False, layout="constrained"
    )
    low, high = np.percentile(maps, [1, 99])
    shown = None
    for position, panel in enumerate(grid.flat):
        if position >= count:
            panel.axis("off")
            continue
        shown = _draw_map(panel, maps[position], axes, (float(low), float(high)))
        panel.set_title(captions[position], fontsize=9)
        if position % columns == 0:
            panel.set_ylabel(axes.y)
        if position + columns >= count:
            panel.set_xlabel(axes.x)
    figure.suptitle(title, fontsize=11)
    if shown is not None and maps.shape[1] != 3:
        figure.colorbar(shown, ax=grid, shrink=0.8, label=axes.value)
    save(figure, path)


def _draw_map(panel: Axes, map_CHW: np.ndarray, axes: MapAxes, limits: tuple[float, float]):  # type: ignore[no-untyped-def]
    height, width = map_CHW.shape[-2:]
    left, right = axes.x_range or (0, width)
    bottom, top = (0, height) if axes.origin == "lower" else (height, 0)
    extent = (left, right, bottom, top)
    if len(map_CHW) == 3:
        low, high = limits
        picture = ((map_CHW.transpose(1, 2, 0) - low) / max(high - low, 1e-6)).clip(0, 1)
    else:
        picture = map_CHW.mean(axis=0)
    # extent already says which way is up; the array's row 0 goes to the bottom for a lower origin
    shown = panel.imshow(
        picture,
        aspect="auto",
        origin="lower" if axes.origin == "lower" else "upper",
        extent=extent,
        vmin=limits[0],
        vmax=limits[1],
        cmap="magma",
        interpolation="nearest",
    )
    if axes.y_ticks:
        panel.set_yticks([row for row, _ in axes.y_ticks], [label for _, label in axes.y_ticks])
    panel.tick_params(labelsize=8)
    return shown


def draw_curves(history: Path, path: Path) -> None:
    """Draw metrics.csv: one panel a metric, training and validation in it."""
    table = pd.read_csv(history)
    names = sorted(
        {column.split("/", 1)[1] for column in table if column.startswith(("train/", "val/"))},
        key=lambda name: (name != "loss", name),
    )
    if not names:
        return
    figure, panels = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False, layout="constrained"
    )
    for panel, name in zip(panels[0], names, strict=True):
        for split, style in (("train", "--"), ("val", "-")):
            column = f"{split}/{name}"
            if column in table:
                values = table[["epoch", column]].dropna()
                panel.plot(values["epoch"] + 1, values[column], style, marker=".", label=split)
        panel.set_xlabel("epoch")
        panel.set_ylabel(name)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend()
    save(figure, path)


def draw_confusion(matrix: Sequence[Sequence[float]], names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix as shares of each true class."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(0.22 * len(names) + 2.5, 4.5, 16))
    figure, panel = plt.subplots(figsize=(size + 1, size), layout="constrained")
    shown = panel.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    if len(names) <= 60:
        font = 9 if len(names) <= 20 else 6.5
        panel.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
        panel.set_yticks(range(len(names)), names, fontsize=font)
    if len(names) <= 15:
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column]:
                dark = shares[row, column] > 0.5
                panel.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center",
                           color="white" if dark else "black", fontsize=8)  # fmt: skip
    panel.set_xlabel("predicted class")
    panel.set_ylabel("true class")
    accuracy = counts.trace() / max(counts.sum(), 1)
    panel.set_title(f"Confusion on the test part ({counts.sum():.0f} samples, {accuracy:.1%} right)")
    figure.colorbar(shown, ax=panel, shrink=0.8, label="share of the true class")
    save(figure, path)


def draw_test(report: dict[str, Any], folder: Path) -> None:
    """Draw what a task's `test_report` holds."""
    if "confusion" in report:
        draw_confusion(report["confusion"], list(report["per_class"]), folder / "confusion.png")
