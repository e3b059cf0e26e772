"""action=report: what lies below a folder, as tables, figures and one page."""

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
from workbench.report.table import MOST_ROWS, Table, tables
from workbench.sweeps.folder import DONE

log = logging.getLogger("widefield")


def report(cfg: DictConfig) -> None:
    """Report on every run below `cfg.input` (`null`: below `paths.runs`)."""
    folder = Path(cfg.input or cfg.paths.runs).expanduser()
    if not folder.is_dir():
        raise UsageError(f"input={folder}: there is no such folder")
    log.info("report: %s", write_report(folder))


def write_report(folder: Path) -> Path:
    """Write `report/` in `folder` and return its page.

    Raises:
        UsageError: there are no runs below the folder.
        WriteError: the disk refuses.
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
    for old in (target / "figures").glob("*.png"):
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
    sample = (
        " On embedded samples, not on real data." if set(runs.table["data"].dropna()) == {"sample"} else ""
    )
    return f"{len(runs.table)} runs: {said}.{axes}{sample} Written {datetime.now():%Y-%m-%d %H:%M}."


def _markdown(runs: Runs, grouped: list[Table], figures: list[Path], title: str, summary: str) -> str:
    parts = [f"# {title}", summary, "Mean ± standard deviation over n runs; the best of each column is bold."]
    for table in grouped:
        parts += [f"## {table.title}", table.markdown()]
    unfinished = runs.table[runs.table["status"] != DONE]
    if len(unfinished):
        parts += ["## Not done"]
        lines = [
            f"- `{row['run']}` {row['status']}: {row['error'] or '–'}"
            for row in _records(unfinished[:MOST_ROWS])
        ]
        parts += ["\n".join(lines)]
    for figure in figures:
        parts.append(f"![{figure.stem.replace('_', ' ')}](figures/{figure.name})")
    return "\n\n".join(parts) + "\n"


def _records(table: pd.DataFrame) -> list[dict[str, str]]:
    records: list[dict[str, str]] = table[["run", "status", "error"]].astype(object).to_dict("records")
    return records


def _for_parquet(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of mixed types as text, which the format needs."""
    mixed = [column for column in table if table[column].dtype == object]
    return table.assign(
        **{column: table[column].map(lambda v: v if pd.isna(v) else str(v)) for column in mixed}
    )
