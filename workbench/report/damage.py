"""Detects damaged files in a run's folder, to be listed in the report."""

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.sweeps.folder import STATES

# File -> expected first bytes. Files are not parsed, because a report may cover ten thousand runs.
TEXTS = {"config.yaml": b"", "metrics.csv": b"epoch", "test_report.json": b"{"}
CHECKPOINTS = ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
TEXT = ("modality", "task", "backbone", "monitor", "device", "precision", "git", "error")
NUMBERS = ("params", "epochs", "wall_s", "best", "seed")
START = 4096  # bytes of a text file that are checked


def read_record(file: Path, faults: list[str]) -> dict[str, Any]:
    """Content of one of a run's JSON files; an invalid record is appended to `faults` and returned as empty."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        faults.append(_fault(file, "no JSON"))
        return {}
    wrong = _wrong(content)
    if wrong:
        faults.append(f"{file.name} ({wrong})")
        return {}
    return content


def other_damages(run: Path) -> list[str]:
    """The damaged files among those from which the report takes no numbers."""
    found = []
    for name, begin in TEXTS.items():
        if (said := _text_fault(run / name, begin)) is not None:
            found.append(said)
    for name in CHECKPOINTS:
        file = run / name
        if os.path.lexists(file) and not _is_checkpoint(file):
            found.append(_fault(file, "no checkpoint", name))
    return found


def _wrong(content: Any) -> str | None:
    """Name of the first invalid entry of a record; None if it is valid."""
    if not isinstance(content, dict):
        return "no record"
    for key, value in content.items():
        if key in TEXT and not (value is None or isinstance(value, str)):
            return key
        if key in NUMBERS and not _is_number(value):
            return key
    metrics = content.get("metrics") or {}
    if not isinstance(metrics, Mapping) or not all("/" in name for name in metrics):
        return "metrics"
    if wrong := [name for name, value in metrics.items() if not _is_number(value)]:
        return wrong[0]
    if not isinstance(content.get("data") or {}, Mapping) or not isinstance(
        (content.get("data") or {}).get("source"), str | None
    ):
        return "data"
    if content.get("status", STATES[0]) not in STATES:
        return "status"
    words = content.get("overrides") or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return "overrides"
    return None


def _is_number(value: Any) -> bool:
    if value is None:
        return True
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:
        return False


def _text_fault(file: Path, begin: bytes) -> str | None:
    try:
        with file.open("rb") as opened:
            start = opened.read(START)
    except FileNotFoundError:
        return None
    except OSError:
        return _fault(file, "unreadable")
    try:
        start[: -3 if len(start) == START else None].decode()  # the end may split a character
    except UnicodeDecodeError:
        return _fault(file, "no text")
    if b"\0" in start or not start.lstrip().startswith(begin) or not start.strip():
        return _fault(file, "no text of this run")
    return None


def _is_checkpoint(file: Path) -> bool:
    return file.is_file() and zipfile.is_zipfile(file)


def _fault(file: Path, otherwise: str, name: str | None = None) -> str:
    if file.is_dir():
        otherwise = "a folder"
    elif file.is_file() and file.stat().st_size == 0:
        otherwise = "empty"
    return f"{name or file.name} ({otherwise})"
