"""Figures of forecasts: windows with past, truth and forecast; windows folded by their period; error per step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_forecasts(forecasts: Sequence[dict[str, Any]], most: int = 3) -> "Figure":
    """Draws forecasts with their past, and the truth if known: one row per window, one column per variate.

    Args:
        forecasts: each with `variates`, `step`, `start` (date of the first forecast step), and `past`, `forecast` and
            optionally `truth`, one list of values per variate.
        most: maximum number of variates to draw: the last ones, since a table's target is usually its last column.
    """
    names = forecasts[0]["variates"]
    chosen = range(max(len(names) - most, 0), len(names))
    figure = _figure((4.6 * len(chosen) + 0.4, 2.2 * len(forecasts) + 0.9))
    grid = figure.subplots(len(forecasts), len(chosen), squeeze=False)
    for example, row in zip(forecasts, grid, strict=True):
        past = len(example["past"][0])
        ahead = np.arange(len(example["forecast"][0]))
        for variate, panel in zip(chosen, row, strict=True):
            before = example["past"][variate]
            panel.plot(np.arange(-past, 0), before, color="0.45", linewidth=1, label="past")
            if "truth" in example:
                truth = np.array(example["truth"][variate], dtype=float)  # None: not observed
                panel.plot(ahead, truth, color="black", linewidth=1, label="truth")
            panel.plot(
                ahead, example["forecast"][variate], color="tab:orange", linewidth=1.6, label="forecast"
            )
            panel.axvline(-0.5, color="0.7", linewidth=0.8)
            panel.set_title(f"{names[variate]}, from {example['start']}", fontsize=9)
            panel.tick_params(labelsize=8)
            panel.margins(x=0.01)
        row[0].set_ylabel("value (own units)")
    for panel in grid[-1]:
        panel.set_xlabel(f"steps of {forecasts[0]['step']} from the forecast's start")
    grid[0][0].legend(fontsize=8, loc="upper left")
    return figure


def draw_folded(forecasts: Sequence[dict[str, Any]]) -> "Figure | None":
    """Draws one window folded by its period, past above the line and future below, with truth and forecast side by
    side; returns None if it has no period."""
    example = forecasts[-1]
    period, past = int(example["period"]), example["past"][-1]
    if period < 2:
        return None
    ahead = -(-len(example["forecast"][-1]) // period)
    panels = {
        name: np.array(example[name][-1], dtype=float) for name in ("truth", "forecast") if name in example
    }
    limits = np.nanpercentile(np.concatenate([past, *panels.values()]), [1, 99])
    figure = _figure((4.4 * len(panels) + 0.8, 3.6))
    grid = figure.subplots(1, len(panels), squeeze=False)
    for panel, (name, future) in zip(grid[0], panels.items(), strict=True):
        rows = -(-len(past) // period)
        cells = np.full((rows + ahead) * period, np.nan)
        cells[rows * period - len(past) : rows * period] = past
        cells[rows * period : rows * period + len(future)] = future
        shown = panel.imshow(
            cells.reshape(-1, period),
            aspect="auto",
            extent=(0, period, ahead, -rows),
            vmin=limits[0],
            vmax=limits[1],
            cmap="magma",
            interpolation="nearest",
        )
        panel.axhline(0, color="white", linewidth=1.5)
        panel.set_title(f"past (above the line) and {name}", fontsize=9)
        panel.set_xlabel(f"place in the period (steps of {example['step']})")
    grid[0][0].set_ylabel("periods from the forecast's start")
    figure.suptitle(
        f"{example['variates'][-1]}, from {example['start']}, folded by {period} steps", fontsize=10
    )
    figure.colorbar(shown, ax=grid, shrink=0.9, label="value (own units)")
    return figure


def draw_error_by_step(errors: dict[str, Any]) -> "Figure":
    """Draws the error per forecast step, for the model and the baselines."""
    figure = _figure((6.4, 3.8))
    panel = figure.subplots()
    for name, means in errors["mse"].items():
        values = np.array(means, dtype=float)  # None: no value was observed at this step
        label = f"{name}: {np.nanmean(values):.4f} in the mean"
        panel.plot(np.arange(1, len(values) + 1), values, linewidth=2 if name == "model" else 1, label=label)
    panel.set_xlabel(f"step ahead ({errors['step']}); the season is {errors['season']} steps")
    panel.set_ylabel("mean squared error (standardised)")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=9)
    return figure


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")
