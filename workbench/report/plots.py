"""A report's figures: the metric against each axis, against size and time, and overlaid learning curves."""

import csv
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullLocator

from workbench.report.gather import Runs
from workbench.report.rendering import save
from workbench.report.table import fold_means
from workbench.resolvers import folder_name

MOST_CURVES = 60  # maximum number of runs in a panel of learning curves
MOST_COLOURS = 20  # maximum number of settings in a legend
IN_PANEL = 8  # maximum number of settings in a panel's own legend
MOST_NAMES = 40  # maximum number of values of a categorical axis
LONGEST_NAME = 32  # maximum number of characters of a name below a categorical axis
LETTER = 0.075  # width of a character of a tick label in inches
TILT = 30  # degrees
MARKERS = "osD^vPX*<>"
LINES = ("-", "--", ":")  # one for each cycle through the colours
#: Cost -> factor to the unit in which it is drawn.
UNITS = {"macs": 1e-9, "step_s": 1e3, "latency_s": 1e3}


def draw(runs: Runs, folder: Path) -> list[Path]:
    """Draw all figures for which there is data; returns their paths."""
    drawn: list[Path] = []
    done = runs.done
    if done.empty:
        return drawn
    for axis in runs.axes:
        if done[axis].nunique() > 1:
            path = folder / f"metric_by_{folder_name(axis)}.png"
            if _by_axis(runs, axis, path):
                drawn.append(path)
    for column, label, name in (
        ("params", "parameters", "metric_by_parameters"),
        ("macs", "multiply-accumulates of a sample (G)", "metric_by_macs"),
        ("step_s", "time of a training step (ms)", "metric_by_training_step"),
        ("latency_s", "time until an answer (ms)", "metric_by_latency"),
        ("wall_s", "wall time (s)", "metric_by_wall_time"),
    ):
        if _differs(done, column):
            drawn.append(folder / f"{name}.png")
            _scatter(runs, column, label, drawn[-1])
    curves = folder / "learning_curves.png"
    if _learning_curves(runs, curves):
        drawn.append(curves)
    return drawn


def _differs(done: pd.DataFrame, column: str) -> bool:
    """Whether the results of a task differ in a cost; else a figure of it would be one vertical line."""
    costs = pd.to_numeric(done[column], errors="coerce")
    return bool((costs.groupby(done["task"]).nunique() > 1).any())


def _ordered(runs: Runs) -> pd.DataFrame:
    """The results sorted by their settings, which determines the colours."""
    done = runs.done
    axes = [axis for axis in runs.axes if axis not in ("modality", "task")]
    places = {axis: _rank(done, axis) for axis in axes}
    order = (
        pd.DataFrame(places, index=done.index).sort_values(axes, kind="stable").index if axes else done.index
    )
    return done.loc[order]


def _rank(rows: pd.DataFrame, axis: str) -> pd.Series:
    """What orders an axis: numbers as they are, networks by their size, other names as in `_natural`."""
    if _is_numeric(rows[axis]):
        return rows[axis]
    names = rows[axis].astype(str)
    sizes = pd.Series(0.0, index=names.unique())
    if axis == "backbone":
        sizes = pd.to_numeric(rows["params"], errors="coerce").groupby(names).median().fillna(math.inf)
    ordered = sorted(names.unique(), key=lambda name: (sizes[name], _natural(name)))
    return names.map({name: place for place, name in enumerate(ordered)})


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in names by their value.

    >>> sorted(["[13, 13]", "net10", "net9", "[3, 3]"], key=_natural)
    ['[3, 3]', '[13, 13]', 'net9', 'net10']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if position % 2 else (0, part) for position, part in enumerate(parts)]


def _is_numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _by_axis(runs: Runs, axis: str, path: Path) -> bool:
    """The metric of each run against one axis, with mean and standard deviation; other axes as colours.

    Returns False if there is nothing to compare.
    """
    done = _ordered(runs)
    of_task = axis in ("modality", "task")
    grouped = [rows for _, rows in done.groupby("metric" if of_task else "task", sort=False)]
    panels = [("" if of_task else _title(rows), rows) for rows in grouped if rows[axis].nunique() > 1]
    if not panels:  # e.g. modalities that have no metric in common
        return False
    others = [
        other for other in runs.axes if other != axis and (of_task or other not in ("modality", "task"))
    ]
    figure, grid = _panels(len(panels), 0.0 if _is_numeric(done[axis]) else _room(done[axis]))
    repeated = False
    for panel, (name, rows) in zip(grid, panels, strict=False):
        colours = _settings(rows, others)
        places, numeric = _places(panel, rows, axis)
        groups = (
            list(rows.groupby(colours, sort=False)) if colours.nunique() <= MOST_COLOURS else [("", rows)]
        )
        for position, (label, group) in enumerate(groups):
            # Dodge groups on a categorical axis.
            shift = 0.0 if numeric else (position - (len(groups) - 1) / 2) * min(0.12, 0.6 / len(groups))
            x = places.loc[group.index] + shift
            colour, marker = _style(position)
            several = x.duplicated(keep=False)
            repeated |= bool(several.any())
            panel.plot(
                x[several],
                group["score"][several],
                "_",
                color="black",
                alpha=0.6 if len(group) < 50 else 0.1,
                markersize=9,
                zorder=3,
            )
            means = fold_means(group.assign(x=x), ["x"], ["score"], runs.folds)["score"]
            if len(means) <= MOST_NAMES:
                panel.errorbar(
                    means.index,
                    means["mean"],
                    yerr=means["std"] if means["std"].notna().any() else None,
                    color=colour,
                    marker=marker,
                    markersize=6,
                    linestyle="-" if numeric else "",
                    capsize=3,
                    label=str(label) or None,
                )
        panel.set_xlabel(axis)
        _finish(panel, name, str(rows["metric"].iloc[0]), len(groups) > 1)
    said = " (mean ± std; dashes: runs)" if repeated else ""
    _close(figure, f"Test metric by {axis}{said}", path, runs.note())
    return True


def _scatter(runs: Runs, column: str, label: str, path: Path) -> None:
    """The metric of each run against its cost, with mean and standard deviation of both for each setting."""
    done = _ordered(runs)
    numbers = pd.to_numeric(done[column], errors="coerce") * UNITS.get(column, 1.0)
    done = done.assign(cost=numbers)[numbers.notna()]
    panels = [(_title(rows), rows) for _, rows in done.groupby("task", sort=False)]
    axes = [axis for axis in runs.axes if axis not in ("modality", "task")]
    figure, grid = _panels(len(panels))
    repeated = False
    for panel, (name, rows) in zip(grid, panels, strict=False):
        colours = _settings(rows, axes)
        few = colours.nunique() <= MOST_COLOURS
        groups = list(rows.groupby(colours, sort=False)) if few else [("", rows)]
        for position, (setting, group) in enumerate(groups):
            colour, marker = _style(position)
            several = few and len(group) > 1
            repeated |= several
            panel.plot(
                group["cost"],
                group["score"],
                marker,
                color=colour,
                alpha=0.3 if several else 0.75,
                markersize=4 if several else 6,
                markeredgewidth=0,
            )
            if several:
                _mean_of(panel, group, colour, marker, runs.folds)
            if few and str(setting):
                panel.plot([], [], marker, color=colour, markersize=6, label=str(setting))
        if _spread(rows["cost"]) > 20:
            panel.set_xscale("log")
        elif column == "params":
            panel.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:.3g} M")
        panel.set_xlabel(label)
        _finish(panel, name, str(rows["metric"].iloc[0]), len(groups) > 1)
    said = " (mean ± std; points: runs)" if repeated else ""
    _close(figure, f"Test metric by {label}{said}", path, runs.note())


def _style(position: int) -> tuple[str, str]:
    """Colour and marker of a setting, unique among `MOST_COLOURS`."""
    return f"C{position}", MARKERS[(position + position // len(MARKERS)) % len(MARKERS)]


def _mean_of(panel: Axes, group: pd.DataFrame, colour: str, marker: str, folds: list[str]) -> None:
    """Plot mean and standard deviation of cost and metric over one setting's runs."""
    (row,) = fold_means(group.assign(one=0), ["one"], ["cost", "score"], folds).to_dict("records")
    spread = {key: 0.0 if pd.isna(row[key, "std"]) else row[key, "std"] for key in ("cost", "score")}
    panel.errorbar(
        row["cost", "mean"],
        row["score", "mean"],
        xerr=spread["cost"] or None,
        yerr=spread["score"] or None,
        color=colour,
        marker=marker,
        markersize=6,
        capsize=3,
        linestyle="",
    )


def _learning_curves(runs: Runs, path: Path) -> bool:
    """The monitored metric by epoch, one line per run, coloured by setting; returns whether any run has a history."""
    drawn = []
    ordered = _ordered(runs)
    for _, rows in ordered.groupby("task", sort=False):
        monitor = str(rows["monitor"].iloc[0])
        ranked = rows.sort_values("score", ascending=not runs.maximise.get(str(rows["metric"].iloc[0]), True))
        # With too many runs, a subset evenly spaced by rank, including the best.
        chosen = ranked.iloc[
            np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), MOST_CURVES)).astype(int))
        ]
        histories = {
            index: _history(runs.folder / str(row["run"]), monitor) for index, row in chosen.iterrows()
        }
        histories = {index: history for index, history in histories.items() if history[0]}
        if histories:
            shown = rows[rows.index.isin(list(histories))]
            drawn.append((_title(rows), monitor, shown, histories, len(rows)))
    if not drawn:
        return False
    axes = [axis for axis in runs.axes if axis not in ("modality", "task")]
    figure, grid = _panels(len(drawn))
    for panel, (name, monitor, rows, histories, count) in zip(grid, drawn, strict=False):
        settings = _settings(rows, axes)
        names = list(dict.fromkeys(settings))
        few = len(names) <= MOST_COLOURS
        for index, (epochs, values) in histories.items():
            position = names.index(settings[index]) if few else 0
            panel.plot(
                epochs,
                values,
                color=f"C{position}" if few else "0.4",
                linestyle=LINES[position // len(MARKERS) % len(LINES)],
                marker="." if len(epochs) < 30 else "",
                markersize=4,
                linewidth=1.1,
                alpha=0.8,
            )
        if few and len(names) > 1:
            for position, setting in enumerate(names):
                line = LINES[position // len(MARKERS) % len(LINES)]
                panel.plot([], [], color=f"C{position}", linestyle=line, label=setting)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("epoch")
        shown = "" if len(histories) == count else f" ({len(histories)} of {count} runs)"
        _finish(panel, name + shown, monitor, few and len(names) > 1)
    _close(figure, "Learning curves, a line a run", path, runs.note())
    return True


def _history(run: Path, monitor: str) -> tuple[list[int], list[float]]:
    epochs, values = [], []
    try:
        with (run / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get(monitor):
                    epochs.append(int(row["epoch"]) + 1)
                    values.append(float(row[monitor]))
    except (OSError, ValueError, LookupError, TypeError, csv.Error):  # damaged
        return [], []
    return epochs, values


def _title(rows: pd.DataFrame) -> str:
    return f"{rows['modality'].iloc[0]}: {rows['task'].iloc[0]}"


def _settings(rows: pd.DataFrame, axes: Sequence[str]) -> pd.Series:
    """Legend label of each run: the axes that vary, without the seed."""
    axes = [axis for axis in axes if rows[axis].nunique(dropna=False) > 1]
    if not axes:
        return pd.Series("", index=rows.index)
    labels = [axis + "=" + rows[axis].map(_short) for axis in axes]
    return labels[0].str.cat(labels[1:], sep=", ") if len(labels) > 1 else labels[0]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _places(panel: Axes, rows: pd.DataFrame, axis: str) -> tuple[pd.Series, bool]:
    """Positions of an axis' values (numeric, or index in the order of `_rank`) and whether it is numeric; sets ticks
    and scale."""
    values = rows[axis]
    if _is_numeric(values):
        places = pd.to_numeric(values).astype(float)
        known = sorted(places.dropna().unique())
        spread = _spread(places)
        if spread >= 50 or (spread > 1 and _even_in_log(known)):
            panel.set_xscale("log")
        if spread < 50 and len(known) <= 12:
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xticks(known, [f"{value:.6g}" for value in known])
        return places, True
    ranks = _rank(rows, axis)
    names = list(dict.fromkeys(values.astype(str).loc[ranks.sort_values(kind="stable").index]))
    places = ranks.astype(float)
    if len(names) <= MOST_NAMES:
        labels = _shortened(names)
        tilted = _is_tilted(labels)
        panel.set_xticks(
            range(len(names)),
            labels,
            rotation=TILT if tilted else 0,
            ha="right" if tilted else "center",
            rotation_mode="anchor" if tilted else "default",
        )
        panel.set_xlim(-0.5, len(names) - 0.5)
    return places, False


def _even_in_log(known: Sequence[float]) -> bool:
    """Whether values, ascending and positive, are spaced clearly more evenly by ratio than by difference.

    >>> _even_in_log([0.125, 0.25, 0.5, 1.0]), _even_in_log([3, 7, 11, 13])
    (True, False)
    """
    plain, logs = np.diff(known), np.diff(np.log(known))
    return len(known) > 2 and float(logs.max() / logs.min()) < float(plain.max() / plain.min()) / 2


def _shortened(names: Sequence[str]) -> list[str]:
    """Names without the middle of those that are too long; all in full where that would make two the same."""
    half = LONGEST_NAME // 2
    short = [name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}" for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def _is_tilted(labels: Sequence[str]) -> bool:
    return max(map(len, labels)) > 8


def _room(values: pd.Series) -> float:
    """Height in inches that the names below a categorical axis take beyond a line."""
    names = list(values.astype(str).unique())
    labels = _shortened(names) if len(names) <= MOST_NAMES else [""]
    return LETTER * math.sin(math.radians(TILT)) * max(map(len, labels)) if _is_tilted(labels) else 0.0


def _spread(values: pd.Series) -> float:
    """Ratio of the largest to the smallest value; 1 unless all are positive."""
    numbers = pd.to_numeric(values, errors="coerce").dropna()
    if numbers.empty or numbers.min() <= 0:
        return 1.0
    return float(numbers.max() / numbers.min())


def _panels(count: int, room: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with this many panels, each with `room` (inches) for long tick labels."""
    columns = min(max(count, 1), 2 if count == 4 else 3)
    rows = math.ceil(max(count, 1) / columns)
    figure = Figure(figsize=(4.8 * columns + 0.4, (3.6 + room) * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for panel in grid.flat[count:]:
        panel.axis("off")
    return figure, list(grid.flat)


def _finish(panel: Axes, title: str, metric: str, legend: bool) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_ylabel(metric)
    panel.grid(alpha=0.3)
    panel.tick_params(labelsize=8)
    if legend:
        panel.legend(fontsize=7.5)


def _share_legend(figure: Figure) -> None:
    """Replace identical panel legends that are too long by one legend beside the panels."""
    legends = [legend for panel in figure.axes if (legend := panel.get_legend()) is not None]
    named = {tuple(text.get_text() for text in legend.get_texts()) for legend in legends}
    if len(named) != 1 or len(*named) <= IN_PANEL:
        return
    handles, labels = next(panel for panel in figure.axes if panel.get_legend()).get_legend_handles_labels()
    for legend in legends:
        legend.remove()
    figure.set_figwidth(figure.get_figwidth() + 0.5 + 0.06 * max(map(len, labels)))
    figure.legend(handles, labels, loc="outside right center", fontsize=7.5)


def _close(figure: Figure, title: str, path: Path, note: str | None) -> None:
    _share_legend(figure)
    size = 11 if figure.get_figwidth() > 6 else 9.5
    lines = textwrap.wrap(title, int(120 / size * figure.get_figwidth()))
    figure.suptitle("\n".join(lines), fontsize=size)
    for text in figure.findobj(Text):
        if (
            "$" in text.get_text()
        ):  # setting values may be `${…}`; numeric tick labels are created only when drawing
            text.set_parse_math(False)
    save(figure, path, note)
