"""Runs grouped by setting: mean ± standard deviation over seeds or folds, with the best of each column marked."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from workbench.report.gather import Runs
from workbench.sweeps.folder import DONE

RUNS = "runs"
FOLDS = "Mean ± standard deviation over folds, seeds of a fold averaged first"
#: Cost of a network -> column heading and factor to its unit.
COSTS = {
    "macs": ("GMAC a sample", 1e-9),
    "step_s": ("training step (ms)", 1e3),
    "latency_s": ("latency (ms)", 1e3),
}
MOST_ROWS = 100  # maximum number of rows of a Markdown table


@dataclass
class Cell:
    """A table cell: text, sort value, and whether it is the best of its column."""

    text: str
    value: float | str | None = None
    best: bool = False


@dataclass
class Table:
    """A table for display; `note` is shown below its title."""

    title: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""

    def markdown(self) -> str:
        """Format as Markdown, with the best values in bold."""
        lines = [self.note, ""] if self.note else []
        lines += [f"| {' | '.join(map(_escaped, self.columns))} |", f"|{' --- |' * len(self.columns)}"]
        for row in self.rows[:MOST_ROWS]:
            texts = [f"**{_escaped(cell.text)}**" if cell.best else _escaped(cell.text) for cell in row]
            lines.append(f"| {' | '.join(texts)} |")
        if len(self.rows) > MOST_ROWS:
            lines.append(f"\n… and {len(self.rows) - MOST_ROWS} more rows, see report.html.")
        return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def tables(runs: Runs) -> list[Table]:
    """An overview if several tasks share an axis, then one table per task."""
    found = []
    if len(runs.done.groupby(["task", "metric"])) > 1 and other_axes(runs):
        found.append(overview(runs))
    for task in runs.done["task"].dropna().unique():
        found.append(task_table(runs, str(task)))
    return found


def other_axes(runs: Runs) -> list[str]:
    """The axes other than task and modality."""
    return [axis for axis in runs.axes if axis not in ("task", "modality")]


def overview(runs: Runs) -> Table:
    """Settings as rows, tasks as columns: the test metric corresponding to each task's monitored metric."""
    axes = other_axes(runs)
    done = runs.done
    heads = done["modality"].fillna("").astype(str) + ": " + done["task"].astype(str)
    done = done.assign(column=heads.str.removeprefix(": ") + " " + done["metric"])
    names = list(dict.fromkeys(done["column"]))
    settings: dict[tuple[Any, ...], dict[str, Cell]] = {}
    for row in summary(done, [*axes, "column"], ["score"], runs.folds):
        cells = settings.setdefault(tuple(row[axis, ""] for axis in axes), {})
        cells[row["column", ""]] = _statistic(row, "score", show_n=True)
    table = Table("All tasks", [*axes, *names], note=runs.note(done) or "")
    for setting, cells in settings.items():
        table.rows.append([*map(axis_cell, setting), *(cells.get(name, Cell("–")) for name in names)])
    for position, name in enumerate(names, start=len(axes)):
        _mark_best(table, position, runs.maximise.get(name.rpartition(" ")[2], True))
    return table


def task_table(runs: Runs, task: str) -> Table:
    """All metrics of one task, by setting."""
    rows = runs.table[(runs.table["task"] == task) & runs.table["debug"].isna()]
    done = rows[rows["status"] == DONE]
    axes = [axis for axis in runs.axes if done[axis].nunique(dropna=False) > 1]
    first = list(dict.fromkeys(done["metric"].dropna()))
    others = [metric for metric in runs.metrics if done[metric].notna().any() and metric not in first]
    others = sorted(others, key=lambda metric: metric.startswith("val/"))
    measured = [*first, *others]
    keys = axes or ["task"]
    costs = {name: head for name, head in COSTS.items() if done[name].notna().any()}
    found = summary(done, keys, [*measured, "params", *costs, "wall_s"], runs.folds)
    if measured:
        sign = -1 if runs.maximise.get(measured[0], True) else 1
        # Settings without this metric come last; a NaN among the keys would leave the rows in disorder.
        found.sort(key=lambda row: (pd.isna(row[measured[0], "mean"]), sign * row[measured[0], "mean"]))
    ended = (rows["status"] != DONE).groupby([rows[key] for key in keys], dropna=False).sum().to_dict()
    settings = [tuple(row[key, ""] for key in keys) for row in found]
    missing = [int(ended.get(setting if len(keys) > 1 else setting[0], 0)) for setting in settings]
    folds = any(fold in done and done[fold].nunique() > 1 for fold in runs.folds)
    columns = [*keys, "n", *(["folds"] if folds else []), *(["unfinished"] if any(missing) else [])]
    before = len(columns)
    columns += [*measured, "parameters", *(head for head, _ in costs.values()), "wall time (s)"]
    modality = done["modality"].dropna()
    table = Table(f"{modality.mode()[0]}: {task}" if len(modality) else task, columns)
    notes = [runs.note(done), FOLDS if folds else None]
    table.note = ". ".join(note[0].upper() + note[1:] for note in notes if note)
    for row, setting, unfinished in zip(found, settings, missing, strict=True):
        count = int(row[RUNS, "size"])
        cells = [*map(axis_cell, setting), Cell(str(count), count)]
        if folds:
            cells.append(Cell(str(row["wall_s", "size"]), int(row["wall_s", "size"])))
        if any(missing):
            cells.append(Cell(str(unfinished) if unfinished else "", unfinished))
        cells += [_statistic(row, metric) for metric in measured]
        cells.append(Cell(f"{row['params', 'mean'] / 1e6:.2f} M", row["params", "mean"]))
        cells += [_scaled(row, name, factor) for name, (_, factor) in costs.items()]
        cells.append(Cell(f"{row['wall_s', 'mean']:.0f}", row["wall_s", "mean"]))
        table.rows.append(cells)
    for position, metric in enumerate(measured, start=before):
        _mark_best(table, position, runs.maximise.get(metric, True))
    return table


def summary(
    rows: pd.DataFrame, keys: list[str], values: list[str], folds: list[str]
) -> list[dict[tuple[str, str], Any]]:
    """One row per setting: its keys as `(key, "")`, `(value, "mean" | "std" | "count" | "size")`, `(RUNS, "size")`.

    With several folds, the runs of a fold are averaged first, so mean and standard deviation are over folds.
    """
    means = fold_means(rows, keys, values, folds)
    means[RUNS, "size"] = rows.groupby(keys, dropna=False, sort=True).size().to_numpy()
    found: list[Any] = means.reset_index().to_dict("records")
    return found


def fold_means(rows: pd.DataFrame, keys: list[str], values: list[str], folds: list[str]) -> pd.DataFrame:
    """Mean, std, count and size of values by setting; with several folds, over the mean of each fold's runs."""
    folds = [fold for fold in folds if fold in rows and rows[fold].nunique() > 1]
    numbers = rows[values].apply(pd.to_numeric, errors="coerce")
    whole = pd.concat([rows[[*keys, *folds]], numbers], axis=1)
    if folds:
        whole = whole.groupby([*keys, *folds], dropna=False, sort=True)[values].mean().reset_index()
    return whole.groupby(keys, dropna=False, sort=True)[values].agg(["mean", "std", "count", "size"])


def _statistic(row: dict[tuple[str, str], Any], name: str, show_n: bool = False) -> Cell:
    """`mean ± sample standard deviation`; for a single run only its value."""
    mean, std, count = row[name, "mean"], row[name, "std"], row[name, "count"]
    if count == 0:
        return Cell("–")
    number = f" ({count})" if show_n else ""
    return Cell(f"{mean:#.4g} ± {std:.2g}{number}" if count > 1 else f"{mean:#.4g}{number}", float(mean))


def _scaled(row: dict[tuple[str, str], Any], name: str, factor: float) -> Cell:
    """`mean ± sample standard deviation` in another unit; without the deviation if it is zero."""
    mean, std, count = row[name, "mean"], row[name, "std"], row[name, "count"]
    if count == 0:
        return Cell("–")
    varies = count > 1 and std > 0
    text = _three_digits(mean * factor)
    return Cell(f"{text} ± {_three_digits(std * factor, 2)}" if varies else text, float(mean))


def _three_digits(value: float, digits: int = 3) -> str:
    """Format with three significant digits, without an exponent for large numbers.

    >>> _three_digits(1352.7), _three_digits(0.05781)
    ('1353', '0.0578')
    """
    return f"{value:.0f}" if value >= 10**digits else f"{value:.{digits}g}"


def axis_cell(value: Any) -> Cell:
    """Cell of an axis value."""
    if pd.isna(value):
        return Cell("–")
    if isinstance(value, str):
        return Cell(value, value)
    number = float(value)
    return Cell(f"{number:.6g}", number)


def _mark_best(table: Table, position: int, maximise: bool) -> None:
    """Mark the best mean of a column, and ties, if its values differ."""
    values = [row[position].value for row in table.rows if isinstance(row[position].value, float)]
    if len(set(values)) < 2:
        return
    best = max(values) if maximise else min(values)  # type: ignore[type-var]
    for row in table.rows:
        row[position].best = row[position].value == best
