"""Autotuning of tilings: ``WIDEFIELD_AUTOTUNE=1`` measures once per shape and caches the result in a file.

Without it, the first tiling of the table is used. The file is ``tilings.json`` in ``WIDEFIELD_CACHE``, or in
``~/.cache/widefield`` by default; delete it to measure again.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backbone.kernels.start import ahead
from backbone.kernels.tilings import Tiling

log = logging.getLogger("widefield")

_remembered: dict[str, Tiling] = {}


def choose(
    name: str,
    shape: tuple[int, ...],
    device: torch.device,
    tilings: Sequence[Tiling],
    run: Callable[[Tiling], Any],
) -> Tiling:
    """The fastest of ``tilings`` for this kernel and shape on this GPU, or the first.

    Args:
        name: name of the kernel.
        shape: all sizes on which the time depends.
        device: device of the kernel.
        tilings: candidates, the table's choice first.
        run: runs the kernel once with a tiling.
    """
    if os.environ.get("WIDEFIELD_AUTOTUNE", "0") != "1" or device.type != "cuda" or len(tilings) == 1:
        return tilings[0]
    key = " ".join([torch.cuda.get_device_name(device), name, "x".join(str(size) for size in shape)])
    if not _remembered:
        _remembered.update(_read())
    if key not in _remembered:
        if torch.cuda.is_current_stream_capturing() or ahead():
            return tilings[0]  # nothing can be timed during graph capture, or where nothing is launched
        times = [_milliseconds(run, tiling) for tiling in tilings]
        fastest = min(range(len(tilings)), key=times.__getitem__)
        _remembered[key] = tilings[fastest]
        with suppress(OSError):  # not writable: measure again next time
            _write(_remembered)
        log.info("%s: %.4f ms with %s; the table's %.4f ms", key, times[fastest], tilings[fastest], times[0])
    return _remembered[key]


def _milliseconds(run: Callable[[Tiling], Any], tiling: Tiling) -> float:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return float(do_bench(lambda: run(tiling), warmup=5, rep=25, return_mode="median"))
    except OutOfResources:  # exceeds the registers or shared memory of this GPU
        return float("inf")


def _file() -> Path:
    return Path(os.environ.get("WIDEFIELD_CACHE", Path.home() / ".cache" / "widefield")) / "tilings.json"


def _read() -> dict[str, Tiling]:
    """Content of the file; empty if it does not exist, has another version, or is damaged."""
    try:
        entries = json.loads(_file().read_text(encoding="utf-8"))
        return {key: _tiling(**fields) for key, fields in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _tiling(**fields: Any) -> Tiling:
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Tiling(**settings)


def _write(tilings: dict[str, Tiling]) -> None:
    """Replace the file atomically, since other processes may be reading it."""
    file = _file()
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    text = json.dumps({key: asdict(tiling) for key, tiling in tilings.items()}, indent=1)
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
