"""Figures of probe results. Public functions return a Matplotlib figure."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from backbone.probes import Curve, MergedKernel, MinibatchCKA, ReceptiveField, ShapeBias, log_scaled
from modalities.embedder import MapAxes
from tasks.datasets.image.reading import open_image

SHAPE, TEXTURE, NEITHER = "tab:blue", "tab:orange", "0.8"


def wrapped(text: str, width: int) -> str:
    """Wrap a title at ``width`` characters."""
    return "\n".join(textwrap.wrap(text, width))


# -- effective receptive field -------------------------------------------------------------------------------


def receptive_fields(
    found: Mapping[str, ReceptiveField], steps: Mapping[str, int], axes: MapAxes, about: str
) -> Figure:
    """One panel per network with its threshold rectangles, then cumulative contributions over the square's side."""
    first = next(iter(found.values()))
    height, width = first.scores_HW.shape
    high = float(np.clip(3.1 * height / width, 1.6, 4.4))
    figure = plt.figure(figsize=(3.5 * len(found) + 4.6, max(high + 1.9, 3.6)), layout="constrained")
    grid = figure.add_gridspec(1, len(found) + 1, width_ratios=[3.1] * len(found) + [3.4])
    shown, panels = None, []
    for position, (name, field) in enumerate(found.items()):
        panel = figure.add_subplot(grid[0, position])
        shown = _receptive_field(panel, field, axes, labelled=position == 0)
        panel.set_title(f"{wrapped(name, 36)}\nstride {steps[name]}, {field.inputs} inputs", fontsize=9)
        panels.append(panel)
    assert shown is not None
    bar = figure.colorbar(shown, ax=panels, shrink=0.75, aspect=30, pad=0.01)
    bar.set_label("contribution, log₁₀(x + 1) / max", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    gathered = figure.add_subplot(grid[0, -1])
    for name, field in found.items():
        gathered.plot(*_gathering(field), label=wrapped(name, 30), linewidth=1.8)
    for threshold in (area.threshold for area in first.areas):
        gathered.axhline(threshold, color="0.75", linewidth=0.8, linestyle=":", zorder=0)
    gathered.set_xlabel("side of the square (map pixels)", fontsize=8)
    gathered.set_ylabel("part of all contributions inside", fontsize=8)
    gathered.tick_params(labelsize=7)
    gathered.set_ylim(0, 1.02)
    gathered.set_xlim(left=1)
    gathered.legend(fontsize=7, loc="lower right")
    figure.suptitle(f"Effective receptive field: {about}", fontsize=11)
    return figure


def _receptive_field(panel: Axes, field: ReceptiveField, axes: MapAxes, labelled: bool) -> Any:
    scores_HW = log_scaled(field.scores_HW).numpy()
    height, width = scores_HW.shape
    lower = axes.origin == "lower"
    shown = panel.imshow(
        scores_HW,
        cmap="magma",
        norm=PowerNorm(0.5, 0, 1),  # a linear scale would show only the few dominant pixels
        origin="lower" if lower else "upper",
        interpolation="nearest",
    )
    row, column = field.centre
    said = []
    for shade, area in zip(np.linspace(1.0, 0.35, len(field.areas)), field.areas, strict=True):
        half = area.side // 2
        left, right = max(column - half, 0) - 0.5, min(column + half, width - 1) + 0.5
        near, far = max(row - half, 0) - 0.5, min(row + half, height - 1) + 0.5
        colour = plt.get_cmap("winter")(shade)
        panel.add_patch(
            Rectangle((left, near), right - left, far - near, fill=False, edgecolor=colour, linewidth=1.4)
        )
        said.append(f"{area.threshold:.0%} in {area.side} px ({area.ratio:.1%} of the map)")
    panel.set_xlabel(f"{axes.x.split(' (')[0]} (map pixels)\n" + "\n".join(said), fontsize=8)
    if labelled:
        panel.set_ylabel(wrapped(f"{axes.y.split(' (')[0]} (map pixels)", 26), fontsize=8)
    panel.tick_params(labelsize=7)
    return shown


def _gathering(field: ReceptiveField) -> tuple[list[int], list[float]]:
    """Sides of centred squares, and the fraction of all (log-scaled) contributions in each."""
    scaled_HW = log_scaled(field.scores_HW)
    total = float(scaled_HW.sum())
    row, column = field.centre
    sides, parts = [], []
    for half in range(max(scaled_HW.shape)):
        inside = scaled_HW[max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1]
        sides.append(2 * half + 1)
        parts.append(float(inside.sum()) / total)
        if inside.numel() == scaled_HW.numel():
            break
    return sides, parts


# -- kernels -------------------------------------------------------------------------------------------------


def kernels(found: Sequence[MergedKernel], channels: int, name: str, most_rows: int = 12) -> Figure:
    """One row per block: mean absolute weight, then single channels; red is positive, blue negative."""
    chosen = [found[index] for index in np.unique(np.linspace(0, len(found) - 1, most_rows).astype(int))]
    figure, grid = plt.subplots(
        len(chosen),
        channels + 1,
        figsize=(0.95 * (channels + 1) + 1.6, 1.02 * len(chosen) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for row, kernel in zip(grid, chosen, strict=True):
        weight_CKK = kernel.weight_CKK.numpy()
        strength_C = np.abs(weight_CKK).max(axis=(1, 2), keepdims=True)
        scaled_CKK = weight_CKK / np.maximum(strength_C, 1e-12)
        row[0].imshow(np.abs(scaled_CKK).mean(axis=0), cmap="magma", interpolation="nearest", vmin=0)
        picked = np.unique(np.linspace(0, len(weight_CKK) - 1, channels).astype(int))
        for panel, channel in zip(row[1:], picked, strict=False):
            panel.imshow(scaled_CKK[channel], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            panel.set_title(f"{channel}", fontsize=6, pad=2)
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
        for panel in row[1 + len(picked) :]:
            panel.axis("off")
        label = f"stage {kernel.stage}\nblock {kernel.block}\n{kernel.size} × {kernel.size}"
        row[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
    grid[0][0].set_title("mean |w|", fontsize=7, pad=2)
    note = f" ({len(chosen)} of {len(found)} blocks)" if len(chosen) < len(found) else ""
    figure.suptitle(
        f"Merged kernels of {name}{note}\n"
        "first: mean |weight| over channels, each over its largest; then single channels, by number",
        fontsize=9,
    )
    return figure


def kernel_energy(rows: Sequence[Mapping[str, Any]], share: float, name: str) -> Figure:
    """Cumulative kernel energy from the centre, and the square with a given fraction of it, trained and untrained."""
    large = [row for row in rows if row["kernel_size"] >= 7] or list(rows)
    figure, (curves, bars) = plt.subplots(
        1, 2, figsize=(10.5, max(3.9, 0.24 * len(rows) + 1.4)), layout="constrained"
    )
    stages = sorted({row["stage"] for row in rows})
    colours = dict(zip(stages, plt.get_cmap("viridis")(np.linspace(0.1, 0.85, len(stages))), strict=True))
    for row in large:
        sides = 2 * np.arange(len(row["energy_by_radius"])) + 1
        colour = colours[row["stage"]]
        curves.plot(sides, np.cumsum(row["energy_by_radius"]), color=colour, marker=".", linewidth=1.4)
        curves.plot(
            sides, np.cumsum(row["energy_by_radius_untrained"]), color=colour, linestyle="--", linewidth=1
        )
    for size in sorted({row["kernel_size"] for row in large}):
        sides = np.arange(1, size + 1, 2)
        curves.plot(sides, (sides / size) ** 2, color="0.5", linestyle=":", linewidth=1.2)
    keys = [
        (f"stage {stage}", {"color": colours[stage]}) for stage in sorted({row["stage"] for row in large})
    ]
    keys += [("untrained", {"color": "0.3", "linestyle": "--"}), ("even", {"color": "0.5", "linestyle": ":"})]
    for label, style in keys:
        curves.plot([], [], label=label, **style)
    curves.axhline(share, color="0.75", linewidth=0.8)
    curves.set_xlabel("side of the centred square (kernel pixels)")
    curves.set_ylabel("part of the energy inside, mean over channels")
    curves.set_ylim(0, 1.03)
    curves.set_title("large kernels" if large[0]["kernel_size"] >= 7 else "all kernels", fontsize=9)
    curves.legend(fontsize=8, loc="lower right")
    places = np.arange(len(rows))
    bars.barh(places, [row["kernel_size"] for row in rows], color="0.92", height=0.8, label="kernel size")
    bars.barh(places, [row["reach"] for row in rows], color=[colours[row["stage"]] for row in rows], height=0.5,
              label=f"reach: holds {share:.0%} of the energy")  # fmt: skip
    bars.plot([row["reach_untrained"] for row in rows], places, "|", color="tab:red", markersize=11,
              markeredgewidth=2, label="the same, untrained")  # fmt: skip
    bars.set_yticks(places, [f"stage {row['stage']}, block {row['block']}" for row in rows], fontsize=8)
    bars.invert_yaxis()
    bars.set_xlabel("side of the square (kernel pixels)")
    bars.set_title("reach", fontsize=9)
    bars.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    figure.suptitle(f"Where the energy of the merged kernels lies: {name}", fontsize=11)
    return figure


# -- similarity ----------------------------------------------------------------------------------------------


def similarities(found: Mapping[tuple[str, str], MinibatchCKA], about: str) -> Figure:
    """One panel per pair of networks: CKA of every layer of the first with every layer of the second."""
    most = max(len(cka.rows) for cka in found.values())
    side = float(np.clip(0.22 * most + 1.6, 3.4, 8.5))
    figure, panels = plt.subplots(
        1, len(found), figsize=(side * len(found) + 1.0, side + 0.8), squeeze=False, layout="constrained"
    )
    shown = None
    for panel, ((first, second), cka) in zip(panels[0], found.items(), strict=True):
        values = cka.compute().numpy()
        shown = panel.imshow(values, vmin=0, vmax=1, cmap="magma", interpolation="nearest", origin="lower")
        font = 8 if most <= 16 else 6
        panel.set_xticks(range(len(cka.columns)), cka.columns, rotation=90, fontsize=font)
        panel.set_yticks(range(len(cka.rows)), cka.rows, fontsize=font)
        if len(cka.rows) <= 12:
            for row, column in np.ndindex(*values.shape):
                value = values[row, column]
                if np.isfinite(value):
                    panel.text(column, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=6,
                               color="black" if value > 0.6 else "white")  # fmt: skip
        panel.set_ylabel(wrapped(first, 40), fontsize=8)
        panel.set_xlabel(wrapped(second if second != first else f"{second} (itself)", 40), fontsize=8)
    assert shown is not None
    figure.colorbar(shown, ax=list(panels[0]), shrink=0.8, label="linear CKA (unbiased)")
    figure.suptitle(wrapped(f"Similarity of layers: {about}", 46 * len(found)), fontsize=10)
    return figure


def between_networks(last: Mapping[str, Mapping[str, float]], names: Sequence[str], about: str) -> Figure:
    """CKA between the last layers of all networks."""
    values = np.array([[last[row][column] for column in names] for row in names])
    side = 1.1 * len(names) + 2.2
    figure, panel = plt.subplots(figsize=(side + 1.2, side), layout="constrained")
    shown = panel.imshow(values, vmin=0, vmax=1, cmap="magma", interpolation="nearest")
    labels = [wrapped(name, 22) for name in names]
    panel.set_xticks(range(len(names)), labels, rotation=45, ha="right", fontsize=8)
    panel.set_yticks(range(len(names)), labels, fontsize=8)
    for row, column in np.ndindex(*values.shape):
        panel.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=9,
                   color="black" if values[row, column] > 0.6 else "white")  # fmt: skip
    figure.colorbar(shown, ax=panel, shrink=0.8, label="linear CKA (unbiased) of the last layers")
    figure.suptitle(wrapped(f"Similarity of networks: {about}", 50), fontsize=10)
    return figure


# -- shape bias ----------------------------------------------------------------------------------------------


def shape_biases(found: ShapeBias, rows: Sequence[Mapping[str, Any]], about: str) -> Figure:
    """Shape bias of each shape category, and the underlying numbers of decisions."""
    names = list(found.per_category)
    figure, (dots, bars) = plt.subplots(
        1, 2, figsize=(9.6, 0.34 * len(names) + 1.9), sharey=True, layout="constrained"
    )
    places = np.arange(len(names))
    dots.scatter([found.per_category[name] for name in names], places, color=SHAPE, zorder=3)
    dots.axvline(found.value, color=SHAPE, linewidth=1.4, label=f"all pictures: {found.value:.2f}")
    dots.axvline(0.5, color="0.7", linewidth=0.8, linestyle=":")
    dots.set_xlim(-0.03, 1.03)
    dots.set_yticks(places, names)
    dots.invert_yaxis()
    dots.set_xlabel("shape bias: texture ← → shape")
    dots.set_ylabel("shape of the picture")
    dots.grid(axis="y", alpha=0.25)
    dots.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    counts = {kind: [sum(row["shape"] == name and row["cue"] == kind for row in rows) for name in names]
              for kind in ("shape", "texture", "neither")}  # fmt: skip
    left = np.zeros(len(names))
    for (kind, values), colour in zip(counts.items(), (SHAPE, TEXTURE, NEITHER), strict=True):
        bars.barh(places, values, left=left, color=colour, label=f"{kind} ({sum(values)})")
        left += values
    bars.set_xlabel("pictures with conflicting cues, by what was decided for")
    bars.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    figure.suptitle(wrapped(f"Shape bias of {about}", 100), fontsize=10)
    return figure


def cue_examples(rows: Sequence[Mapping[str, Any]], about: str, most: int = 12) -> Figure:
    """Images with their cues and decisions: up to a third for texture, a third for neither, then shape."""
    rng = np.random.default_rng(0)
    kinds = [
        [row for row in rows if row["cue"] == kind] for kind in ("texture", "neither", "shape", "no conflict")
    ]
    chosen: list[Mapping[str, Any]] = []
    for kind, room in zip(
        kinds, (most // 3, 2 * most // 3, most, most if not any(kinds[:3]) else 0), strict=True
    ):
        picked = rng.permutation(len(kind))[: max(room - len(chosen), 0)]
        chosen += [kind[index] for index in sorted(picked)]
    columns = min(6, len(chosen))
    lines = -(-len(chosen) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(1.75 * columns, 2.2 * lines + 0.5), squeeze=False, layout="constrained"
    )
    colours = {"shape": SHAPE, "texture": TEXTURE, "neither": "0.45", "no conflict": "0.45"}
    for panel in grid.flat:
        panel.axis("off")
    for panel, row in zip(grid.flat, chosen, strict=False):
        panel.imshow(np.asarray(open_image(Path(row["path"]))))
        panel.set_title(
            f"{row['shape']}, texture {row['texture']}\n→ {row['decision']} ({row['cue']})",
            fontsize=8,
            color=colours[row["cue"]],
        )
    figure.suptitle(wrapped(about, 90), fontsize=10)
    return figure


# -- robustness ----------------------------------------------------------------------------------------------


def robustness(
    found: Mapping[str, Curve], labels: Mapping[str, str], metric: str, floor: float, about: str
) -> Figure:
    """One panel per corruption: the metric over severity."""
    figure, panels = plt.subplots(
        1, len(found), figsize=(3.6 * len(found) + 0.6, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (name, curve) in zip(panels[0], found.items(), strict=True):
        panel.plot(curve.severities, curve.scores, marker="o", linewidth=1.6, label="spoilt")
        panel.axhline(
            curve.clean, color="0.6", linewidth=0.9, linestyle="--", label=f"clean: {curve.clean:.3f}"
        )
        if floor:
            panel.axhline(
                floor, color="tab:red", linewidth=0.9, linestyle=":", label=f"guessing: {floor:.3f}"
            )
        half = curve.half_point(floor)
        if half is not None:
            word = "half lost" if curve.higher_is_better else "doubled"
            panel.axvline(half, color="0.6", linewidth=0.9, linestyle=":", label=f"{word} at {half:.2g}")
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel(wrapped(labels[name], 34), fontsize=8)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    if all(curve.higher_is_better and max(curve.scores) <= 1 for curve in found.values()):
        panels[0][0].set_ylim(0, 1.03)
    panels[0][0].set_ylabel(metric)
    figure.suptitle(wrapped(f"Robustness of {about}", 48 * len(found)), fontsize=10)
    return figure
