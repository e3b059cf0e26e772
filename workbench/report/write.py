"""action=report: the runs below a folder as tables, figures and an HTML page."""

import logging
from collections import Counter
from datetime import datetime
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from tasks.disk import WriteError
from workbench.errors import UsageError
from workbench.files import plain_cell, write_atomically, write_text
from workbench.report.gather import Runs, gather
from workbench.report.page import write_page
from workbench.report.plots import draw
from workbench.report.rendering import SUFFIXES
from workbench.report.table import MOST_ROWS, Table, tables

log = logging.getLogger("widefield")


def report(cfg: DictConfig) -> None:
    """Report on every run below `cfg.input` (`null`: below `paths.runs`)."""
    folder = Path(cfg.input or cfg.paths.runs).expanduser()
    if not folder.is_dir():
        raise UsageError(f"input={folder}: there is no such folder")
    log.info("report: %s", write_report(folder))


def write_report(folder: Path) -> Path:
    """Write `report/` in `folder` and return the path of its page.

    Raises:
        UsageError: there are no runs below the folder.
        WriteError: writing failed.
    """
    try:
        return _write_report(folder)
    except WriteError as refused:
        raise refused.but(f"or report on a copy: input=COPY_OF_{folder.resolve().name}") from refused


def _write_report(folder: Path) -> Path:
    runs = gather(folder)
    if runs.table.empty:
        raise UsageError(f"there are no runs below {folder}, nothing to report")
    target = folder / "report"
    plain = runs.table.map(plain_cell).rename(columns=plain_cell)
    write_atomically(target / "runs.csv", lambda draft: plain.to_csv(draft, index=False))
    write_atomically(
        target / "runs.parquet", lambda draft: _for_parquet(runs.table).to_parquet(draft, index=False)
    )
    grouped = tables(runs)
    for old in (target / "figures").glob("*"):
        if old.suffix in SUFFIXES:
            old.unlink()
    figures = draw(runs, target / "figures")
    title, summary = f"Report on {folder.resolve().name}", _summary(runs)
    write_text(target / "report.md", _markdown(runs, grouped, figures, title, summary))
    write_page(runs, grouped, figures, title, summary, target / "report.html")
    return target / "report.html"


def _summary(runs: Runs) -> str:
    counts = Counter(runs.table["status"])
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    axes = f" Settings differ in {', '.join(runs.axes)}." if runs.axes else ""
    trials = runs.table["debug"].notna().sum()
    debug = f" ({trials} of debug=, no results)" if trials else ""
    return f"{len(runs.table)} runs: {said}{debug}.{axes} Written {datetime.now():%Y-%m-%d %H:%M}."


def _markdown(runs: Runs, grouped: list[Table], figures: list[Path], title: str, summary: str) -> str:
    parts = [f"# {title}", summary, "Mean ± standard deviation over n runs; the best of each column is bold."]
    if note := runs.note():
        parts.insert(1, f"> **{note}**")
    for table in grouped:
        parts += [f"## {table.title}", table.markdown()]
    if len(runs.apart):
        parts += ["## Set apart: failed, unfinished and debug runs"]
        lines = [
            f"- `{row['run']}` {'debug=' + row['debug'] if row['debug'] else row['status']}: {row['error'] or '–'}"
            for row in _records(runs.apart[:MOST_ROWS])
        ]
        parts += ["\n".join(lines)]
    for figure in figures:
        parts.append(f"![{figure.stem.replace('_', ' ')}](figures/{figure.name})")
    return "\n\n".join(parts) + "\n"


def _records(table: pd.DataFrame) -> list[dict[str, str]]:
    columns = ["run", "status", "debug", "error"]
    plain = table[columns].astype(object)
    records: list[dict[str, str]] = plain.where(plain.notna(), None).to_dict("records")
    return records


def _for_parquet(table: pd.DataFrame) -> pd.DataFrame:
    """Convert columns of mixed types to text, as the format requires."""
    mixed = [column for column in table if table[column].dtype == object]
    return table.assign(
        **{column: table[column].map(lambda v: v if pd.isna(v) else str(v)) for column in mixed}
    )
