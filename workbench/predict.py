"""action=predict: predictions of a checkpoint for files; an unreadable file becomes a row with its error."""

import glob
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils._pytree import tree_leaves

from tasks.datasets.base import DataModule
from tasks.datasets.drawn import is_drawn
from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.listing import Listing, list_files
from tasks.datasets.reading import unexpected
from tasks.task import Prediction, Task
from workbench import figures
from workbench.composition import built_from
from workbench.console import console, print_table, printable
from workbench.errors import UsageError
from workbench.files import write_atomically, write_columns, write_table
from workbench.instantiation import instantiate
from workbench.provenance import data_read, note
from workbench.restore import restore
from workbench.shared_files import SharedFiles

log = logging.getLogger("widefield")

SHOWN = 40
EVERY = 10  # seconds between two intermediate writes of the predictions
NOT_FINITE = "the model's prediction is not finite (NaN or infinite): its weights or this sample are damaged"


def predict(cfg: DictConfig) -> None:
    """Read `cfg.input`, print a table and write `predictions.csv` into the run folder."""
    restored = restore(cfg)
    with built_from(restored.checkpoint):
        data: DataModule = instantiate(restored.cfg.task.data)
        data.recall(restored.task.data_info)
    files = input_files(cfg.input, data)
    if any(is_drawn(folder) for folder in {file.parent for file in files}):
        data_read([data.title])
    device = torch.device("cuda" if cfg.trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    together = SharedFiles()
    path = Path(cfg.paths.run) / "predictions.csv"
    written = time.monotonic()
    for start in range(0, len(files), cfg.action.batch_size):
        part = files[start : start + cfg.action.batch_size]
        answered = predict_files(restored.task.to(device), data, part, cfg.action.top_k)
        for row in answered:
            if isinstance(prediction := row.get("prediction"), Prediction):
                together.add(str(row["path"]), prediction.shared)
        write_predictions(restored.task, Path(cfg.paths.run), answered, start, len(files))
        rows += answered
        if time.monotonic() - written > EVERY:  # limits the loss if a file ends the process
            write_rows(path, rows)
            written = time.monotonic()
    write_rows(path, rows)
    written_together = together.write(Path(cfg.paths.run), data)
    shown = [(str(row["path"]), str(row.get("shown", row.get("error")))) for row in rows[:SHOWN]]
    print_table(f"{restored.cfg.task.name}: {len(rows)} files", shown, ("file", "prediction"))
    if len(rows) > SHOWN:
        console.print(f"… and {len(rows) - SHOWN} more", highlight=False)
    console.print(f"all predictions: {path}", highlight=False, soft_wrap=True)
    for file in [*written_together, *(file for row in rows for file in row.get("files", ()))][:SHOWN]:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
    broken = [row for row in rows if "error" in row]
    if len(broken) == len(rows):
        first = f"{printable(broken[0]['path'])}: {broken[0]['error']}"
        raise UsageError(f"none of the {len(rows)} files could be answered; the first, {first}")


def input_files(pattern: str | None, data: DataModule) -> list[Path]:
    """The files that `input` names: see `find_files`; or those that a file of the data's annotations names."""
    path = Path(pattern or "").expanduser()
    listed = data.files_listed_in(path) if path.is_file() else None
    return find_files(pattern, data.extensions) if listed is None else listed


def find_files(pattern: str | None, extensions: tuple[str, ...]) -> list[Path]:
    """The files that `input` names: one file, all files with a known extension below a folder, or a glob."""
    if not pattern:
        raise UsageError("action=predict needs input=FILE, a folder or a glob such as 'input=clips/*.wav'")
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        listing = Listing()
        files = sorted(list_files(path, extensions, listing))
        if passed_over := listing.passed_over():
            log.info("input: %s", passed_over)
        if not files:
            raise UsageError(f"input: no {', '.join(extensions)} file below {path}")
        return files
    if path.exists():
        raise UsageError(f"input: {path} is a pipe or a device, no file")
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        raise UsageError(f"input: nothing matches {pattern}")
    return files


def predict_files(task: Task, data: DataModule, files: list[Path], top_k: int) -> list[dict[str, Any]]:
    """One row per file, in order; rows of unreadable files have an `error`."""
    rows: list[dict[str, Any]] = [{"path": str(file)} for file in files]
    raws, errors = read_raws(data, files)
    for position, error in errors.items():
        rows[position]["error"] = error
        log.warning("broken file: %s: %s", files[position], error)
    if raws:
        batch = task.transfer_batch_to_device(data.join_raws(list(raws.values())), task.device, 0)
        with torch.inference_mode():
            predictions = task.predict(batch, top_k)
        for position, prediction in zip(raws, predictions, strict=True):
            if is_finite(prediction):
                rows[position].update(prediction.columns, shown=prediction.shown, prediction=prediction)
            else:
                rows[position]["error"] = NOT_FINITE
                log.warning("%s: %s", files[position], NOT_FINITE)
    return rows


def read_raws(data: DataModule, files: list[Path]) -> tuple[dict[int, Any], dict[int, str]]:
    """Read files; returns raw samples and error messages, each by position of the file."""
    raws: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for position, file in enumerate(files):
        try:
            raws[position] = data.read_file(file)
        except ReadError as error:
            errors[position] = str(error)
        except DataError:  # not the file's fault, e.g. a missing library
            raise
        except Exception as error:
            errors[position] = unexpected(error)
    return raws, errors


def is_finite(prediction: Prediction) -> bool:
    """Whether all numbers of a prediction are finite: a damaged or diverged model predicts NaN beside a label."""
    shared = [entry.content for entry in prediction.shared.values()]
    values = tree_leaves([prediction.columns, prediction.tables, shared])
    return all(math.isfinite(value) for value in values if isinstance(value, (int, float)))


def write_predictions(task: Task, folder: Path, rows: list[dict[str, Any]], first: int, files: int) -> None:
    """Write the tables, files and figures of predictions, and release the predictions.

    Args:
        task: draws the reports of predictions.
        folder: the run folder; with several input files, tables and reports go to a subfolder for each.
        rows: of `predict_files`; the paths of written files are added to each as `files`.
        first: number of the first row.
        files: total number of input files.
    """
    for number, row in enumerate(rows, start=first):
        prediction = row.pop("prediction", None)
        if not isinstance(prediction, Prediction):
            continue
        stem = Path(row["path"]).stem
        name = f"{number:03d}_{stem}" if files > 1 else stem
        place = folder / name if files > 1 else folder
        row["files"] = [place / f"{table}.csv" for table in prediction.tables]
        for file, table in zip(row["files"], prediction.tables.values(), strict=True):
            write_columns(file, table)
        for kind, figure in task.draw_report(prediction.report).items():
            row["files"].append(place / "figures" / f"{kind}.png")
            figures.save(figure, row["files"][-1])
        for pattern, write in prediction.files.items():
            row["files"].append(folder / pattern.format(name=name))
            write_atomically(row["files"][-1], partial(_write_said, write))
        for pattern, draw in prediction.figures.items():
            row["files"].append(folder / pattern.format(name=name))
            figures.save(draw(), row["files"][-1])


def _write_said(write: Callable[[Path, str | None], None], draft: Path) -> None:
    """Call `write` with a draft and the provenance note."""
    write(draft, note())


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV; the columns are those of all rows, `error` last."""
    hidden = ("error", "shown", "files")
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in hidden))
    write_table(path, rows, [*columns, "error"])
