"""report.html: a self-contained page with sortable, filterable tables, the figures and links to the runs."""

import base64
import html
import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from workbench.files import write_text
from workbench.report.gather import Runs
from workbench.report.rendering import DARK, SUFFIXES
from workbench.report.table import Cell, Table

PARTS = Path(__file__).parent  # page.html, page.css, page.js
APART = "Failed, unfinished and debug runs: in no table, mean or figure above."
LEFT_OUT = ("git", "best", "monitor")  # columns of runs.csv not shown on the page


def write_page(
    runs: Runs, tables: list[Table], figures: list[Path], title: str, summary: str, path: Path
) -> None:
    """Write the page; links to the runs are relative to its folder."""
    results, apart = (_shown(part) for part in (runs.table.drop(runs.apart.index), runs.apart))
    data = {
        "tables": [
            {
                "title": table.title,
                "note": table.note,
                "columns": table.columns,
                "rows": [[_cell(cell) for cell in row] for row in table.rows],
            }
            for table in tables
        ],
        "runs": [
            {"title": title, "note": note, "columns": list(part.columns), "rows": _rows(part)}
            for title, note, part in (("Runs", "", results), ("Set apart", APART, apart))
            if len(part)
        ],
    }
    parts = {
        "title": html.escape(title),
        "summary": html.escape(summary),
        "badge": f'<p class="badge">{html.escape(note)}</p>' if (note := runs.note()) else "",
        "css": (PARTS / "page.css").read_text(encoding="utf-8"),
        "js": (PARTS / "page.js").read_text(encoding="utf-8"),
        "figures": "\n".join(map(_figure, figures)),
        "footer": "The same as files beside this page: runs.csv, runs.parquet, report.md, figures/.",
        # `<` is escaped, so that no text in the data can end the script element.
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
            "<", "\\u003c"
        ),
    }
    page = (PARTS / "page.html").read_text(encoding="utf-8")
    before, *pieces = page.split("$")
    filled = [before]
    for piece in pieces:
        name = next(name for name in parts if piece.startswith(name))
        filled += [parts[name], piece[len(name) :]]
    write_text(path, "".join(filled))


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The informative columns: not empty and not always `default`."""
    unsaid = [column for column in table if (table[column].astype(object) == "default").all()]
    shown = table.drop(columns=[*LEFT_OUT, *unsaid], errors="ignore").dropna(axis="columns", how="all")
    first = [column for column in ("run", "status", "debug", "error") if column in shown]
    return shown[[*first, *shown.columns.drop(first)]]


def _cell(cell: Cell) -> Any:
    if cell.value is None:
        return None if cell.text in ("", "–") else cell.text
    value = cell.value
    if not isinstance(value, str):
        value = float(value)
        if not math.isfinite(value):
            return None
    return {"t": cell.text, "v": value, **({"b": 1} if cell.best else {})}


def _rows(table: pd.DataFrame) -> list[list[Any]]:
    columns: list[list[Any]] = []
    for name in table:
        values = table[name]
        if name == "run":
            columns.append([{"t": run, "h": f"../{quote(run)}/"} for run in values])
        elif pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            columns.append([_number(value) for value in values])
        else:
            columns.append([None if pd.isna(value) else str(value) for value in values])
    return [list(row) for row in zip(*columns, strict=True)]


def _number(value: Any) -> float | int | None:
    if pd.isna(value) or not math.isfinite(value):
        return None
    number = float(value)
    return int(number) if number.is_integer() else float(f"{number:.6g}")


def _figure(path: Path) -> str:
    """A figure in light and dark renderings, chosen by the browser's colour scheme, with links to its files."""
    light, dark = (_data_url(file) for file in (path, path.with_stem(path.stem + DARK)))
    name = html.escape(path.stem.replace("_", " "))
    image = f'<img alt="{name}" src="{light}">'
    picture = f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">{image}</picture>'
    links = " · ".join(
        f'<a href="figures/{quote(path.with_suffix(suffix).name)}">{suffix.removeprefix(".").upper()}</a>'
        for suffix in SUFFIXES
    )
    return f"<section><h2>{name}</h2><figure>{picture}<figcaption>{links}</figcaption></figure></section>"


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
