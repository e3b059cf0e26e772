"""Hydra's record of a run's command (`.hydra/` in its folder), written so that several processes can resume it.

`resume=RUN` reads the overrides of the run from there in every process that SLURM or torchrun starts, while Hydra would
rewrite them in each. Here one process writes the files, atomically: concurrent readers see the old overrides or the new
ones, which expand to the same command (`workbench.resume_words`). In a resumed run the record is written once the
command is accepted (`write_held`): that of a refused one would be taken for the run's own.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from tasks.disk import WriteError
from workbench.console import speaks
from workbench.files import write_atomically

_held: list[Callable[[], None]] = []


def write_held() -> None:
    """Write the record of a resumed run's command; does nothing if there is none to be written."""
    while _held:
        _held.pop()()


class RunRecord(Callback):
    """Writes the record in place of Hydra; that of a resumed run is left to `write_held`."""

    def __init__(self) -> None:
        self.subfolder: str | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.subfolder = config.hydra.output_subdir
        _set_subfolder(config, None)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self.subfolder is None or not speaks():
            return
        whole = config.copy()
        _set_subfolder(whole, self.subfolder)
        hydra = OmegaConf.masked_copy(whole, "hydra")
        with read_write(whole), open_dict(whole):
            del whole["hydra"]
        run = Path(config.hydra.runtime.output_dir)
        parts = {"config": whole, "hydra": hydra, "overrides": config.hydra.overrides.task}
        write = partial(_write, run / self.subfolder, parts)
        _held.clear()
        if config.get("resume") and (run / "checkpoints" / "last.ckpt").exists():
            _held.append(write)
            return
        try:
            write()
        except WriteError as refused:  # Hydra only warns about errors of callbacks
            sys.exit(f"error: {refused}")


def _write(folder: Path, parts: Mapping[str, Any]) -> None:
    for name, node in parts.items():
        write_atomically(folder / f"{name}.yaml", partial(OmegaConf.save, node))


def _set_subfolder(config: DictConfig, name: str | None) -> None:
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = name
