"""Hydra's record of a run's command (`.hydra/` in its folder), written so that several processes can resume it.

`resume=RUN` reads the overrides of the run from there in every process that SLURM or torchrun starts, while Hydra would
rewrite them in each. Here one process writes the files, atomically: concurrent readers see the old overrides or the new
ones, which expand to the same command (`workbench.resume_words`).
"""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from tasks.disk import WriteError
from workbench.console import speaks
from workbench.files import write_atomically


class RunRecord(Callback):
    """Writes the record in place of Hydra."""

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
        folder = Path(config.hydra.runtime.output_dir) / self.subfolder
        try:
            _write(folder / "config.yaml", whole)
            _write(folder / "hydra.yaml", hydra)
            _write(folder / "overrides.yaml", config.hydra.overrides.task)
        except WriteError as refused:  # Hydra only warns about errors of callbacks
            sys.exit(f"error: {refused}")


def _write(path: Path, node: Any) -> None:
    write_atomically(path, lambda draft: OmegaConf.save(node, draft))


def _set_subfolder(config: DictConfig, name: str | None) -> None:
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = name
