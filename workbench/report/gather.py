"""Collects every result below a folder into one table, and finds the axes along which the runs differ."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from workbench.errors import ERROR_FILE, UsageError
from workbench.report.damage import other_damages, read_record
from workbench.report.settings import (
    GROUPS,
    debug_of,
    is_fold,
    is_read,
    modalities,
    pairs,
    settings_of,
    short_names,
)
from workbench.resolvers import mode_of
from workbench.sweeps.folder import DAMAGED, DONE, FAILED, JOB, MISSING, SWEEP, SweepFolder

log = logging.getLogger("widefield")

# Folders that hold no runs.
NOT_RUNS = {"checkpoints", "figures", "tensorboard", "conf", "report", "export", "wandb", "mlruns"}
MOST_NOTES = 4  # maximum number of provenance notes joined into one
COSTS = ("macs", "step_s", "latency_s")  # costs in a result beside parameters and time (`workbench.cost`)
BASE = ["modality", "task", "backbone", "data"]  # axes present in every result, beside the seed
# Column -> prefixes of the overrides that determine it.
FILLED = {
    "modality": ("modality=", "task=", "experiment="),
    "task": ("modality=", "task=", "experiment="),
    "backbone": ("backbone=", "experiment="),
    "data": ("data_dir=", "experiment="),
}
# Columns that a setting's short name must not take.
COLUMNS = {
    *("run", "status", "debug", "error", "metric", "score", "monitor", "best", "params", "epochs", "wall_s"),
    *COSTS,
    *("drawn", "device", "precision", "git", "seed", *BASE),
}


@dataclass
class Runs:
    """The runs below a folder.

    Args:
        folder: the folder searched.
        table: one row per run: `run` (its folder below `folder`), `status`, `error`, modality, task, backbone, data,
            its axes, `metric` (name of the test metric corresponding to the monitored one), `score` (its value), every
            metric by its full name, `params`, `macs`, `step_s`, `latency_s`, `epochs`, `wall_s` (seconds), device and
            precision; `debug`, its `debug=` option; `drawn`, its provenance note for embedded (synthetic) samples.
        axes: columns in which the results differ; seeds and folds are repetitions, not axes.
        maximise: maps each metric's full name to whether higher is better.
    """

    folder: Path
    table: pd.DataFrame
    axes: list[str]
    maximise: dict[str, bool]
    folds: list[str] = field(default_factory=list)  # columns with the fold of a cross-validation

    @property
    def done(self) -> pd.DataFrame:
        """Finished runs with a score, excluding `debug=` runs."""
        return self.table[_has_result(self.table) & self.table["score"].notna()]

    @property
    def apart(self) -> pd.DataFrame:
        """Runs without a valid result: failed, stopped, never started, or `debug=` runs."""
        return self.table[~_has_result(self.table)]

    def note(self, rows: pd.DataFrame | None = None) -> str | None:
        """The provenance note for these results (default: all), if any used embedded (synthetic) samples."""
        rows = self.done if rows is None else rows
        said = rows["drawn"].dropna() if "drawn" in rows else pd.Series(dtype=object)
        if said.empty:
            return None
        different = list(dict.fromkeys(said))
        words = "; ".join(different[:MOST_NOTES]) + ("; …" if len(different) > MOST_NOTES else "")
        return words if len(said) == len(rows) else f"{len(said)} of {len(rows)} runs: {words}"

    @property
    def metrics(self) -> list[str]:
        return [column for column in self.table if str(column).startswith(("test/", "val/"))]


def gather(folder: Path) -> Runs:
    """Read every `result.json` below `folder`, and the sweep runs without one."""
    rows, commands = [], []
    modes: dict[Any, str | None] = {}
    for path in _run_folders(folder):
        row, overrides = _read(path)
        if row["status"] == DONE and not modes.get(row.get("monitor")):
            modes[row.get("monitor")] = _mode(path)
        row["run"] = path.relative_to(folder).as_posix() or "."
        rows.append(row)
        commands.append(overrides)
    for row, overrides in _missing(folder):
        rows.append(row)
        commands.append(overrides)
    table = pd.DataFrame([{key: _writable(value) for key, value in row.items()} for row in rows])
    commands = [list(map(_writable, words)) for words in commands]
    if table.empty:
        return Runs(folder, table, [], {})
    for column in (
        "run",
        "status",
        *BASE,
        "seed",
        "debug",
        "score",
        "metric",
        "params",
        *COSTS,
        "wall_s",
        "error",
    ):
        if column not in table:
            table[column] = None
    table["debug"] = pd.Series([debug_of(words) for words in commands], dtype=object)
    results = _has_result(table)
    basis = results if results.any() else table["debug"].isna()
    settings = settings_of(commands, basis.tolist())
    # For a run without a result, take them from its command.
    for key in [key for key in settings if key in GROUPS]:
        table[key] = table[key].where(table[key].notna(), settings.pop(key))
    folds = [key for key in settings if is_fold(key)]
    for key in folds:
        settings[key] = _from_configs(settings[key], key, table, folder)
    unread = _unread(list(settings), commands, table, folder)
    taken = COLUMNS | {str(column) for column in table}
    # Keys that occur only in failed or debug runs must not take the short name of others.
    of_results = [key for key in settings if key not in unread and _said_by(key, commands, basis)]
    names = short_names(of_results, taken)
    names |= short_names([key for key in settings if key not in names], taken | set(names.values()))
    table = pd.concat([table, settings.rename(columns=names)], axis=1)
    table = _fill_in(table, commands)
    table["seed"] = pd.to_numeric(table["seed"], errors="coerce").astype("Int64")
    table["score"] = pd.to_numeric(table["score"], errors="coerce")
    axes = [*BASE, *(names[key] for key in settings if key not in unread and key not in folds)]
    compared = table[basis]
    varied = _without_repetition(
        compared, [axis for axis in axes if compared[axis].nunique(dropna=axis in BASE) > 1]
    )
    first = ["run", "status", *BASE, *names.values(), "seed", "metric", "score"]
    metrics = sorted(column for column in table if str(column).startswith(("test/", "val/")))
    table = table[[*first, *metrics, *(column for column in table if column not in {*first, *metrics})]]
    maximise = {metric: mode_of(metric) == "max" for metric in metrics}
    for monitor, mode in modes.items():
        if monitor and mode:
            maximise |= {monitor: mode == "max", monitor.replace("val/", "test/"): mode == "max"}
    table = table.sort_values("run", kind="stable", ignore_index=True)
    return Runs(folder, table, varied, maximise, [names[key] for key in folds])


def _said_by(key: str, commands: list[list[str]], which: pd.Series) -> bool:
    return any(
        key == said
        for words, chosen in zip(commands, which, strict=True)
        if chosen
        for said, _ in pairs(words)
    )


def _has_result(table: pd.DataFrame) -> pd.Series:
    result: pd.Series = (table["status"] == DONE) & table["debug"].isna()
    return result


def _from_configs(values: pd.Series, key: str, table: pd.DataFrame, folder: Path) -> pd.Series:
    """A setting, with missing values filled in from each run's own configuration."""
    said = values.where(values != "default").astype(object)
    for index in said.index[said.isna()]:
        said[index] = _select(_config(folder / str(table.loc[index, "run"])), key)
    numbers = pd.to_numeric(said, errors="coerce")
    return said if (numbers.isna() & said.notna()).any() else numbers.astype("Int64")


def _unread(keys: list[str], commands: list[list[str]], table: pd.DataFrame, folder: Path) -> set[str]:
    """Keys added on the command line that no component reads, judged by the first run that has each."""
    found: set[str] = set()
    for key in keys:
        for index, words in enumerate(commands):
            if any(word.startswith("+") and word.lstrip("+").partition("=")[0] == key for word in words):
                if not is_read(key, words, _config(folder / str(table.loc[index, "run"]))):
                    found.add(key)
                break
    return found


def _run_folders(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if {"result.json", JOB, ERROR_FILE} & {*files, *folders}:  # a folder of that name means a damaged run
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if name not in NOT_RUNS and not name.startswith("."))


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A run's table row and its overrides."""
    faults: list[str] = []
    result, job, error, names = (
        read_record(path / name, faults) for name in ("result.json", JOB, ERROR_FILE, "composition.json")
    )
    overrides = job.get("overrides") or _overrides(path / ".hydra" / "overrides.yaml", faults)
    faults += other_damages(path)
    status = job.get("status") or (FAILED if error else DONE if result or faults else FAILED)
    said = [] if status == DONE else [job.get("error") or error.get("error")]
    if faults:
        status = DAMAGED if status == DONE else status
        said.append(f"damaged: {', '.join(faults)}")
    row: dict[str, Any] = {"status": status, "error": "; ".join(filter(None, said)) or None}
    if result:
        metrics = result.get("metrics") or {}
        monitor = result.get("monitor") or ""
        name = monitor.replace("val/", "test/")
        row |= {
            key: result.get(key)
            for key in ("modality", "task", "backbone", "seed", "params", *COSTS, "epochs", "wall_s")
        }
        row |= {key: result.get(key) for key in ("monitor", "best", "device", "precision", "git")}
        row["data"] = (result.get("data") or {}).get("source")
        row["drawn"] = _drawn(result)
        row["metric"] = name if metrics.get(name) is not None else monitor
        row["score"] = metrics.get(name) if metrics.get(name) is not None else result.get("best")
        if job.get("continued"):  # the result holds only the last attempt's time
            row["wall_s"] = job.get("wall_s")
        row |= metrics
    else:
        row |= {key: names.get(key) for key in ("modality", "task", "backbone")}
    return row, overrides


def _missing(folder: Path) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Runs of a sweep that were never started."""
    for file in [folder / SWEEP, *folder.glob(f"*/{SWEEP}"), *folder.glob(f"*/*/{SWEEP}")]:
        if not file.is_file():
            continue
        try:
            sweep = SweepFolder.load(file.parent)
        except UsageError as error:
            log.warning("report: %s", error)
            continue
        for job in sweep.jobs:
            path = sweep.path / job.folder
            if path.parent != sweep.path or job.folder in ("", "..", *NOT_RUNS):
                log.warning("report: %s names a run elsewhere, %r", file, job.folder)
                continue
            if not any(os.path.lexists(path / name) for name in ("result.json", JOB, ERROR_FILE)):
                yield (
                    {"status": MISSING, "error": None, "run": path.relative_to(folder).as_posix()},
                    job.overrides,
                )


def _writable(value: Any) -> Any:
    """Replace lone surrogates in text by question marks, so that it can be encoded."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _overrides(file: Path, faults: list[str]) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        if lines and all(line[:2] == "- " and line[2:3] not in ("'", '"', "") for line in lines):
            return [line[2:] for line in lines]  # fast path; the YAML parser is slow
        found = yaml.safe_load("\n".join(lines))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        found = None
    if not isinstance(found, list):
        faults.append(".hydra/overrides.yaml")
        return []
    return [str(word) for word in found]


def _mode(path: Path) -> str | None:
    """The metric mode (`max` or `min`) from a run's own configuration."""
    mode = _select(_config(path), "task.mode")
    return mode if mode in ("max", "min") else None


def _config(path: Path) -> dict[str, Any]:
    """A run's own configuration; empty if there is none."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _select(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _drawn(result: dict[str, Any]) -> str | None:
    """The provenance note of a result; results of older versions only have a data source."""
    said, source = result.get("drawn"), (result.get("data") or {}).get("source")
    if isinstance(said, str):
        return said
    return f"drawn sample, not {result.get('task')}" if source in ("sample", "mixed") else None


def _without_repetition(table: pd.DataFrame, axes: list[str]) -> list[str]:
    """Drop axes that correspond one-to-one to an earlier axis, such as task and modality."""
    kept: list[str] = []
    for axis in axes:
        both = (table[[other, axis]].dropna().drop_duplicates() for other in kept)
        if not any(len(pair) == pair.iloc[:, 0].nunique() == pair.iloc[:, 1].nunique() for pair in both):
            kept.append(axis)
    return kept


def _fill_in(table: pd.DataFrame, commands: list[list[str]]) -> pd.DataFrame:
    """Infer the modality, task, etc. of runs without a result, where the other runs make them unambiguous."""
    table["modality"] = table["modality"].where(table["modality"].notna(), table["task"].map(modalities()))
    for known, unknown in (("modality", "task"), ("task", "modality")):
        both = table[[known, unknown]].dropna().drop_duplicates()
        sure = both[~both[known].duplicated(keep=False)].set_index(known)[unknown]
        table[unknown] = table[unknown].where(table[unknown].notna(), table[known].map(sure))
    for column, words in FILLED.items():
        # Not for runs whose command sets the column explicitly.
        silent = [not any(word.lstrip("+").startswith(words) for word in command) for command in commands]
        if table[column].nunique() == 1:
            only = table[column].dropna().iloc[0]
            table[column] = table[column].where(table[column].notna() | ~pd.Series(silent), only)
    return table
