"""Writing files so that a kill leaves either the old or the new one, never half of one."""

import csv
import json
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a draft beside `path`, then move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Remove what a kill in the middle of `write_atomically` has left below `folder`, where nobody else writes."""
    for draft in list(folder.rglob(".*")):
        if re.fullmatch(r"\..+-[0-9a-f]{32}", draft.name) and draft.is_file() and not draft.is_symlink():
            draft.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain values as indented JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8."""

    def write(draft: Path) -> None:
        draft.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_table(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Write the given columns of rows as CSV."""

    def write(draft: Path) -> None:
        with draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writerow({column: plain_cell(column) for column in columns})
            writer.writerows({key: plain_cell(value) for key, value in row.items()} for row in rows)

    write_atomically(path, write)


def plain_cell(value: Any) -> Any:
    """A cell that a spreadsheet does not take for a formula: text that begins like one gets a leading apostrophe.

    Numbers stay numbers, also where they come as text.

    >>> plain_cell("=1+1"), plain_cell("-0.5"), plain_cell(-0.5)
    ("'=1+1", '-0.5', -0.5)
    """
    if not isinstance(value, str | os.PathLike) or not str(value).startswith(FORMULA):
        return value
    try:
        float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return f"'{value}"
    return value
