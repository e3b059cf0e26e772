"""Every result below a folder as one table, and the axes along which the runs differ."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tasks.secrets import is_secret
from workbench.errors import ERROR_FILE, UsageError
from workbench.report.damage import other_damages, read_record
from workbench.resolvers import mode_of
from workbench.sweeps.folder import DAMAGED, DONE, FAILED, JOB, MISSING, SWEEP, SweepFolder

log = logging.getLogger("widefield")

# Folders that hold no runs.
NOT_RUNS = {"checkpoints", "figures", "tensorboard", "conf", "report", "export", "wandb", "mlruns"}
BASE = ["modality", "task", "backbone", "data"]  # axes that every result names, beside the seed
# Words of a command that do not change what is learnt.
NO_AXES = (
    "paths.",
    "hydra",
    "sweep",
    "resume",
    "input",
    "download",
    "logger",
    "action",
    "task.data.num_workers",
)


@dataclass
class Runs:
    """What lies below a folder.

    Args:
        folder: where it was looked for.
        table: a row a run: `run` (its folder below `folder`), `status`, `error`, what it was, its axes, `metric` (name
            of the test metric that belongs to what was monitored), `score` (its value), every metric by its full name,
            `params`, `epochs`, `wall_s` (seconds) and where it ran.
        axes: columns that vary and tell settings apart, the seed not among them.
        maximise: for each metric's full name, whether more is better.
    """

    folder: Path
    table: pd.DataFrame
    axes: list[str]
    maximise: dict[str, bool]

    @property
    def done(self) -> pd.DataFrame:
        """Runs that came to their end and have a result."""
        return self.table[(self.table["status"] == DONE) & self.table["score"].notna()]

    @property
    def metrics(self) -> list[str]:
        return [column for column in self.table if str(column).startswith(("test/", "val/"))]


def gather(folder: Path) -> Runs:
    """Read every `result.json`, and every run of a sweep that has none, below `folder`."""
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
    settings = _settings(commands)
    # A run without a result names them in its command.
    for key in [key for key in settings if key in (*BASE, "seed")]:
        known = table[key] if key in table else pd.Series(None, index=table.index, dtype=object)
        table[key] = known.where(known.notna(), settings.pop(key))
    settings = settings.rename(columns=_short_names(list(settings), set(table)))
    table = pd.concat([table, settings], axis=1)
    for column in (*BASE, "seed", "score", "metric", "params", "wall_s", "error"):
        if column not in table:
            table[column] = None
    table = _fill_in(table)
    table["seed"] = pd.to_numeric(table["seed"], errors="coerce").astype("Int64")
    table["score"] = pd.to_numeric(table["score"], errors="coerce")
    axes = [*BASE, *settings]
    varied = _without_repetition(
        table, [axis for axis in axes if table[axis].nunique(dropna=axis in BASE) > 1]
    )
    first = ["run", "status", *BASE, *settings, "seed", "metric", "score"]
    metrics = sorted(column for column in table if str(column).startswith(("test/", "val/")))
    table = table[[*first, *metrics, *(column for column in table if column not in {*first, *metrics})]]
    maximise = {metric: mode_of(metric) == "max" for metric in metrics}
    for monitor, mode in modes.items():
        if monitor and mode:
            maximise |= {monitor: mode == "max", monitor.replace("val/", "test/"): mode == "max"}
    return Runs(folder, table.sort_values("run", kind="stable", ignore_index=True), varied, maximise)


def _run_folders(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if {"result.json", JOB, ERROR_FILE} & {*files, *folders}:  # a folder in its place is a damaged run
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if name not in NOT_RUNS and not name.startswith("."))


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A run's row, and the words of its command."""
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
            for key in ("modality", "task", "backbone", "seed", "params", "epochs", "wall_s")
        }
        row |= {key: result.get(key) for key in ("monitor", "best", "device", "precision", "git")}
        row["data"] = (result.get("data") or {}).get("source")
        row["metric"] = name if metrics.get(name) is not None else monitor
        row["score"] = metrics.get(name) if metrics.get(name) is not None else result.get("best")
        if job.get("continued"):  # the result knows the last attempt's time only
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
    """Text as it can be written: half of a character that takes two is a question mark."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _overrides(file: Path, faults: list[str]) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        if lines and all(line[:2] == "- " and line[2:3] not in ("'", '"', "") for line in lines):
            return [line[2:] for line in lines]  # else YAML, which takes its time
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
    """`max` or `min`, from a run's own configuration."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        mode = config["task"]["mode"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError):
        return None
    return mode if mode in ("max", "min") else None


def _settings(commands: list[list[str]]) -> pd.DataFrame:
    """A column for each word that not all commands share; `default` where a command says nothing."""
    said = [dict(_pairs(words)) for words in commands]
    keys = {key: None for words in said for key in words}
    columns = {}
    for key in keys:
        values = [words.get(key) for words in said]
        if len(set(values)) > 1 or key in (*BASE, "seed"):
            columns[key] = _typed(pd.Series(values, dtype=object), default=key not in (*BASE, "seed"))
    return pd.DataFrame(columns)


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if not key.startswith(NO_AXES) and not is_secret(key) and "${secret:" not in value:
            yield key, value.strip("'\"")


def _typed(values: pd.Series, default: bool) -> pd.Series:
    """Numbers where all values are numbers, otherwise text."""
    given = values[values.notna()]
    numbers = pd.to_numeric(given, errors="coerce")
    if numbers.notna().all() and (len(given) == len(values) or not default):
        return pd.to_numeric(values)
    return values.where(values.notna(), "default") if default else values


def _short_names(keys: list[str], taken: set[str]) -> dict[str, str]:
    """`backbone.kernel_size` -> `kernel_size`, where that says it all."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: name if last.count(name) == 1 and name not in taken else key
        for key, name in zip(keys, last, strict=True)
    }


def _without_repetition(table: pd.DataFrame, axes: list[str]) -> list[str]:
    """Leave out an axis that says the same as one before it, as a task does of its modality."""
    kept: list[str] = []
    for axis in axes:
        pairs = (table[[other, axis]].dropna().drop_duplicates() for other in kept)
        if not any(len(pair) == pair.iloc[:, 0].nunique() == pair.iloc[:, 1].nunique() for pair in pairs):
            kept.append(axis)
    return kept


def _fill_in(table: pd.DataFrame) -> pd.DataFrame:
    """What a run without a result must have been, where the others leave no doubt."""
    for known, unknown in (("modality", "task"), ("task", "modality")):
        pairs = table[[known, unknown]].dropna().drop_duplicates()
        sure = pairs[~pairs[known].duplicated(keep=False)].set_index(known)[unknown]
        table[unknown] = table[unknown].where(table[unknown].notna(), table[known].map(sure))
    for column in BASE:
        if table[column].nunique() == 1:
            table[column] = table[column].dropna().iloc[0]
    return table
