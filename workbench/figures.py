"""Figures shared by all tasks (maps, samples, curves), and `save`, which adds the provenance note.

The results of a test or a prediction are drawn by the task (`Task.draw_report`). Every axis has a label and a unit.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

if "ipykernel" not in sys.modules:  # a notebook shows its figures itself
    matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torch.utils._pytree import tree_map

from modalities.embedder import MapAxes
from workbench import provenance
from workbench.files import write_atomically

WARNING = "tab:red"


def save(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write a figure with its provenance note as PNG and close it; every figure is saved by this function."""
    say_provenance(figure, provenance.note())
    write_atomically(path, lambda draft: figure.savefig(draft, dpi=dpi, format="png"))
    plt.close(figure)


def say_provenance(figure: Figure, note: str | None) -> None:
    """Add the provenance note, if any, below a figure (`workbench.provenance`)."""
    if note:
        lines = textwrap.wrap(note, max(int(13 * figure.get_figwidth()), 20))
        figure.supxlabel("\n".join(lines), fontsize=8, color=WARNING, parse_math=False)


def draw_maps(maps_BVCHW: Tensor, axes: MapAxes, captions: Sequence[str], path: Path, title: str) -> None:
    """Draw the first map of each sample in a grid, with one colour scale for all."""
    maps = _channels(maps_BVCHW[:, 0].numpy(), axes)
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


def draw_samples(raw: Any, maps_BVCHW: Tensor, embedder: Any, captions: Sequence[str], path: Path) -> None:
    """Draw raw samples beside their maps: one row per sample, the raw sample first, then up to six views."""
    maps_each = maps_BVCHW.shape[1]
    axes = embedder.view_axes()
    axes = (axes * maps_each if len(axes) == 1 else axes)[:6]
    count, views = min(4, len(captions)), len(axes)
    figure = plt.figure(figsize=(3.1 * (views + 1) + 0.8, 2.7 * count + 0.6))
    figure.set_layout_engine("constrained", wspace=0.08)  # labels of a panel in 3-D reach beyond it
    grid = figure.add_gridspec(count, views + 1)
    # An embedder may put several views into the channels of one map; its axes then describe the channels.
    views_shown = [
        _channels(maps_BVCHW[:count, min(view, maps_each - 1)].numpy(), axes[view]) for view in range(views)
    ]
    low, high = np.percentile(np.concatenate([maps.ravel() for maps in views_shown]), [1, 99.5])
    for row in range(count):
        panel = figure.add_subplot(grid[row, 0], projection=embedder.raw_projection)
        embedder.draw_raw(panel, tree_map(lambda value, row=row: value[row], raw))
        panel.set_title(captions[row], fontsize=9)
        for view in range(views):
            panel = figure.add_subplot(grid[row, view + 1])
            shown = _draw_map(panel, views_shown[view][row], axes[view], (float(low), float(high)))
            panel.set_title(axes[view].title if row == 0 else "", fontsize=8)
            panel.set_xlabel(axes[view].x if row == count - 1 else "")
            panel.set_ylabel(axes[view].y)
    if views_shown[-1].shape[1] != 3:  # colours need no scale
        figure.colorbar(shown, ax=figure.axes, shrink=0.8, label=axes[-1].value)
    figure.suptitle("Training samples and their maps", fontsize=11)
    save(figure, path)


def _channels(maps: np.ndarray, axes: MapAxes) -> np.ndarray:
    """Select the channels of ``(..., C, H, W)`` that are drawn."""
    if axes.channel is None:
        return maps
    chosen = [axes.channel] if isinstance(axes.channel, int) else list(axes.channel)
    return maps[..., chosen, :, :]


def draw_map(panel: Axes, map_CHW: Tensor, axes: MapAxes) -> AxesImage:
    """Draw one map with axis labels on the given axes; returns the image, for a colour bar."""
    shown_CHW = _channels(map_CHW.detach().float().cpu().numpy(), axes)
    low, high = np.percentile(shown_CHW, [1, 99])
    image: AxesImage = _draw_map(panel, shown_CHW, axes, (float(low), float(high)))
    panel.set_xlabel(axes.x)
    panel.set_ylabel(axes.y)
    return image


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
        aspect="equal" if axes.square else "auto",
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
    """Plot metrics.csv: one panel per metric, with training and validation; for a joint run one row per task."""
    table = pd.read_csv(history)
    names = {column.split("/", 1)[1] for column in table if column.startswith(("train/", "val/"))}
    if not names:
        return
    rows: dict[str, list[str]] = {}  # task (`""` in a single-task run) -> its metrics, the loss first
    for name in sorted(names, key=lambda name: ("/" in name, not name.endswith("loss"), name)):
        rows.setdefault(name.rpartition("/")[0], []).append(name)
    columns = max(len(row) for row in rows.values())
    figure, grid = plt.subplots(
        len(rows), columns, figsize=(4.2 * columns, 3.4 * len(rows)), squeeze=False, layout="constrained"
    )
    places = {(r, c): name for r, row in enumerate(rows.values()) for c, name in enumerate(row)}
    for place, panel in np.ndenumerate(grid):
        if place not in places:
            panel.remove()
    for (r, c), name in places.items():
        panel = grid[r][c]
        for split, style, colour in (("train", "--", "tab:blue"), ("val", "-", "tab:orange")):
            column = f"{split}/{name}"
            if column in table:
                values = table[["epoch", column]].dropna()
                panel.plot(values["epoch"] + 1, values[column], style, marker=".", color=colour, label=split)
        panel.set_xlabel("epoch")
        panel.set_ylabel(name)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend()
    save(figure, path)
