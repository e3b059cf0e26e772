"""report.html: one file with sortable, filterable tables, the figures and links to the runs; needs no network."""

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
from workbench.report.table import Cell, Table

PARTS = Path(__file__).parent  # page.html, page.css, page.js
LEFT_OUT = ("git", "best", "monitor")  # columns of runs.csv that the page does without


def write_page(
    runs: Runs, tables: list[Table], figures: list[Path], title: str, summary: str, path: Path
) -> None:
    """Write the page; links lead from its folder to those of the runs."""
    shown = runs.table.drop(columns=[*LEFT_OUT], errors="ignore").dropna(axis="columns", how="all")
    data = {
        "tables": [
            {
                "title": table.title,
                "columns": table.columns,
                "rows": [[_cell(cell) for cell in row] for row in table.rows],
            }
            for table in tables
        ],
        "runs": [{"title": "Runs", "columns": list(shown.columns), "rows": _rows(shown)}],
    }
    parts = {
        "title": html.escape(title),
        "summary": html.escape(summary),
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
    picture = base64.b64encode(path.read_bytes()).decode("ascii")
    name = html.escape(path.stem.replace("_", " "))
    image = f'<img alt="{name}" src="data:image/png;base64,{picture}">'
    return f"<section><h2>{name}</h2><figure>{image}</figure></section>"
