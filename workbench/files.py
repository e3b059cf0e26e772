"""Atomic file writing: after a kill either the old or the new file exists, never a partial one."""

import csv
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.disk import draft_of, writing
from tasks.secrets import mask
from workbench import provenance

ELSEWHERE = "or choose another folder with paths.runs=FOLDER"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file (draft) beside `path`, then rename it to `path`.

    Raises:
        WriteError: the disk refuses; an existing file is kept, and the draft is removed.
    """
    draft = draft_of(path)
    try:
        with writing(path, ELSEWHERE):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(draft)
            os.replace(draft, path)
    finally:
        with suppress(OSError):  # the disk may have refused the draft
            draft.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Remove drafts left below `folder` by an interrupted `write_atomically`; no other process may write there."""
    for draft in list(folder.rglob(".*")):
        if re.fullmatch(r"\..+-[0-9a-f]{32}", draft.name) and draft.is_file() and not draft.is_symlink():
            draft.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain values as indented JSON; secrets in strings are masked, as in all writers below."""
    text = json.dumps(_masked(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def _masked(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _masked(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_masked(value) for value in content]
    return mask(content) if isinstance(content, str) else content


def write_findings(path: Path, content: dict[str, Any]) -> None:
    """Write the results of an action as JSON, with the provenance note, if any, as `drawn`."""
    said = provenance.note()
    write_json(path, {provenance.FIELD: said, **content} if said else content)


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """`write_table` of columns of one length, by name."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    write_table(path, rows, list(columns))


def write_list(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write a list of results as JSON, one a line, each with the provenance note, if any, as `drawn`."""
    said = provenance.note()
    own = [_masked({**entry, provenance.FIELD: said} if said else entry) for entry in entries]
    lines = [json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in own]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; characters that cannot be encoded (invalid bytes in file names) are escaped as in JSON."""

    def write(draft: Path) -> None:
        draft.write_text(mask(text), encoding="utf-8", errors="backslashreplace")

    write_atomically(path, write)


def write_table(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Write the given columns of rows as CSV, with the provenance note, if any, as last column `drawn`."""
    if said := provenance.note():
        columns = [*(column for column in columns if column != provenance.FIELD), provenance.FIELD]
        rows = [{**row, provenance.FIELD: said} for row in rows]

    def write(draft: Path) -> None:
        with draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writerow({column: plain_cell(column) for column in columns})
            writer.writerows({key: plain_cell(value) for key, value in row.items()} for row in rows)

    write_atomically(path, write)


def plain_cell(value: Any) -> Any:
    """A cell that a spreadsheet does not parse as a formula: text that begins like one gets a leading apostrophe.

    Numbers are kept, also as text.

    >>> plain_cell("=1+1"), plain_cell("-0.5"), plain_cell(-0.5)
    ("'=1+1", '-0.5', -0.5)
    """
    if not isinstance(value, str | os.PathLike):
        return value
    value = mask(str(value))
    if not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
