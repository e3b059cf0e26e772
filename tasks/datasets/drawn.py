"""Embedded (synthetic) samples: generated once into a marked folder, never overwriting anything else."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.datasets.errors import DataError
from tasks.disk import WriteError, draft_of, filling, writing

ELSEWHERE = "or draw the sample elsewhere with paths.samples=FOLDER"


def draw_once(root: Path, stamp: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Let `write` fill the folder `root`, unless its stamp already equals `stamp`.

    An older sample is replaced; anything else is refused.

    Raises:
        DataError: `root` contains something other than an embedded sample.
        WriteError: the disk cannot be written; nothing is left behind.
    """
    root = root.resolve()
    marker = root / "SAMPLE.json"
    if _stamp(marker) == stamp:
        return
    refuse_strangers(root)
    # Written to a temporary folder and renamed: an interrupted or parallel run never leaves a partial sample.
    draft = draft_of(root)
    try:
        with writing(root, ELSEWHERE):
            draft.mkdir(parents=True)
            with filling(root, ELSEWHERE):
                write(draft)
            (draft / "SAMPLE.json").write_text(json.dumps(stamp))
            if root.exists():
                refuse_strangers(root)
                root.rename(draft.with_name(f"{draft.name}-old"))
            draft.rename(root)
    except (OSError, WriteError):
        if not marker.is_file():  # otherwise a parallel run was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(draft.with_name(f"{draft.name}-old"), ignore_errors=True)


def _stamp(marker: Path) -> dict[str, Any] | None:
    """The stamp of an embedded sample; None if it is not one."""
    try:
        said = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and {"task", "version"} <= set(said) else None


def is_drawn(path: Path) -> bool:
    """Whether a file or folder is, or is inside, an embedded sample."""
    return any(_stamp(folder / "SAMPLE.json") for folder in (path, *path.absolute().parents))


def refuse_strangers(root: Path) -> None:
    """Raise a `DataError` if `root` contains anything but an embedded sample."""
    if not root.exists() or _stamp(root / "SAMPLE.json") or (root.is_dir() and not any(root.iterdir())):
        return
    raise DataError(
        f"{root} is where the embedded sample goes, but holds something else: move it, say paths.samples=FOLDER to "
        f"draw elsewhere, or {shlex.quote(f'data_dir={root}')} to read it as your data"
    )
