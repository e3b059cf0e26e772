"""Runs grouped by what varies: mean ± standard deviation over seeds, the best of each column marked."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from workbench.report.gather import Runs
from workbench.sweeps.folder import DONE

MOST_ROWS = 100  # of a table in Markdown


@dataclass
class Cell:
    """What a table shows in one place: text, the value to sort by, and whether it is its column's best."""

    text: str
    value: float | str | None = None
    best: bool = False


@dataclass
class Table:
    """A table for people."""

    title: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)

    def markdown(self) -> str:
        """As Markdown, the best in bold."""
        lines = [f"| {' | '.join(map(_escaped, self.columns))} |", f"|{' --- |' * len(self.columns)}"]
        for row in self.rows[:MOST_ROWS]:
            texts = [f"**{_escaped(cell.text)}**" if cell.best else _escaped(cell.text) for cell in row]
            lines.append(f"| {' | '.join(texts)} |")
        if len(self.rows) > MOST_ROWS:
            lines.append(f"\n… and {len(self.rows) - MOST_ROWS} more rows, see report.html.")
        return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def tables(runs: Runs) -> list[Table]:
    """An overview where several tasks share an axis, then a table for each task."""
    found = []
    if len(runs.done.groupby(["task", "metric"])) > 1 and other_axes(runs):
        found.append(overview(runs))
    for task in runs.table["task"].dropna().unique():
        found.append(task_table(runs, str(task)))
    return found


def other_axes(runs: Runs) -> list[str]:
    """The axes that vary beside task and modality."""
    return [axis for axis in runs.axes if axis not in ("task", "modality")]


def overview(runs: Runs) -> Table:
    """Settings down, tasks across: the metric that belongs to what each task monitors."""
    axes = other_axes(runs)
    done = runs.done.assign(column=runs.done["task"] + " " + runs.done["metric"])
    names = list(dict.fromkeys(done["column"]))
    settings: dict[tuple[Any, ...], dict[str, Cell]] = {}
    for row in _summary(done, [*axes, "column"], ["score"]):
        cells = settings.setdefault(tuple(row[axis, ""] for axis in axes), {})
        cells[row["column", ""]] = _statistic(row, "score", show_n=True)
    table = Table("All tasks", [*axes, *names])
    for setting, cells in settings.items():
        table.rows.append([*map(axis_cell, setting), *(cells.get(name, Cell("–")) for name in names)])
    for position, name in enumerate(names, start=len(axes)):
        _mark_best(table, position, runs.maximise.get(name.rpartition(" ")[2], True))
    return table


def task_table(runs: Runs, task: str) -> Table:
    """All metrics of one task, by setting."""
    rows = runs.table[runs.table["task"] == task]
    done = rows[rows["status"] == DONE]
    axes = [axis for axis in runs.axes if rows[axis].nunique(dropna=False) > 1]
    first = list(dict.fromkeys(done["metric"].dropna()))
    others = [metric for metric in runs.metrics if done[metric].notna().any() and metric not in first]
    others = sorted(others, key=lambda metric: metric.startswith("val/"))
    measured = [*first, *others]
    keys = axes or ["task"]
    summary = _summary(done, keys, [*measured, "params", "wall_s"])
    if measured:
        sign = -1 if runs.maximise.get(measured[0], True) else 1
        summary.sort(key=lambda row: sign * row[measured[0], "mean"])
    ended = (rows["status"] != DONE).groupby([rows[key] for key in keys], dropna=False).sum().to_dict()
    unfinished = any(ended.values())
    columns = [*keys, "n", *(["unfinished"] if unfinished else []), *measured, "parameters", "wall time (s)"]
    modality = rows["modality"].dropna()
    table = Table(f"{modality.iloc[0]}: {task}" if len(modality) else task, columns)
    for row in summary:
        setting = tuple(row[key, ""] for key in keys)
        count = row["wall_s", "size"]
        cells = [*map(axis_cell, setting), Cell(str(count), count)]
        if unfinished:
            missing = int(ended.get(setting if len(keys) > 1 else setting[0], 0))
            cells.append(Cell(str(missing) if missing else "", missing))
        cells += [_statistic(row, metric) for metric in measured]
        cells.append(Cell(f"{row['params', 'mean'] / 1e6:.2f} M", row["params", "mean"]))
        cells.append(Cell(f"{row['wall_s', 'mean']:.0f}", row["wall_s", "mean"]))
        table.rows.append(cells)
    for metric in measured:
        _mark_best(table, columns.index(metric), runs.maximise.get(metric, True))
    return table


def _summary(rows: pd.DataFrame, keys: list[str], values: list[str]) -> list[dict[tuple[str, str], Any]]:
    """A row a setting: its keys as `(key, "")`, and `(value, "mean" | "std" | "count" | "size")`."""
    numbers = rows[values].apply(pd.to_numeric, errors="coerce")
    grouped = pd.concat([rows[keys], numbers], axis=1).groupby(keys, dropna=False, sort=True)
    summary: list[Any] = (
        grouped[values].agg(["mean", "std", "count", "size"]).reset_index().to_dict("records")
    )
    return summary


def _statistic(row: dict[tuple[str, str], Any], name: str, show_n: bool = False) -> Cell:
    """`mean ± sample standard deviation`; with one run its value alone."""
    mean, std, count = row[name, "mean"], row[name, "std"], row[name, "count"]
    if count == 0:
        return Cell("–")
    number = f" ({count})" if show_n else ""
    return Cell(f"{mean:#.4g} ± {std:.2g}{number}" if count > 1 else f"{mean:#.4g}{number}", float(mean))


def axis_cell(value: Any) -> Cell:
    """The value of an axis."""
    if pd.isna(value):
        return Cell("–")
    if isinstance(value, str):
        return Cell(value, value)
    number = float(value)
    return Cell(f"{number:.6g}", number)


def _mark_best(table: Table, position: int, maximise: bool) -> None:
    """Mark the best mean, and whatever reads the same, where there is something to compare."""
    values = [row[position].value for row in table.rows if isinstance(row[position].value, float)]
    if len(set(values)) < 2:
        return
    best = max(values) if maximise else min(values)  # type: ignore[type-var]
    for row in table.rows:
        row[position].best = row[position].value == best
