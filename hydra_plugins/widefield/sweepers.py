"""Widefield's two sweepers: a resumable grid, and a study driven by Optuna.

Hydra accepts sweepers from the package `hydra_plugins` only; conf/hydra/sweeper/ makes the grid the default. Both
take a snapshot of the YAML at the start (a launcher would otherwise compose each run from the current files), keep
a list of their runs in `sweep.json`, and finish with a report. They work with any Hydra launcher. This module is
imported at every start, so its imports are kept light.
"""

import itertools
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tasks.disk import WriteError
from tasks.program import ROOT
from workbench.conf_folders import source_folders
from workbench.errors import UsageError, plain_errors, sentence
from workbench.quoting import command, typed
from workbench.secret_words import words_of
from workbench.stopping import STOP
from workbench.sweeps.folder import FAILED, SWEEP, Job, SweepFolder, job_folder, now, write_record
from workbench.sweeps.words import KEY
from workbench.words import check_words, explained

log = logging.getLogger("widefield")

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # signals that end a sweep, besides Ctrl-C


class FrozenSweeper(Sweeper):
    """Base class of both sweepers.

    Args:
        params: the sweep axes in Hydra's syntax (`seed: 0,1,2`); the command line extends and overrides them.
    """

    config: DictConfig

    def __init__(self, params: DictConfig | None = None) -> None:
        self.params = {str(key): value for key, value in (params or {}).items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task_function = hydra_context, task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        with plain_errors():
            resumed = self.config.sweep.resume is not None
            # Overrides of `sweep.` concern the sweep, not its runs.
            words = [word for word in arguments if not word.startswith("sweep.")]
            overrides = self._parse([f"{key}={value}" for key, value in self.params.items()] + words)
            self.check(overrides)
            # For launchers whose processes start in another directory.
            os.environ["PYTHONPATH"] = os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
            )
            self.folder = self._open(Path(self.config.hydra.sweep.dir), arguments, resumed)
            with self._stoppable(), self._summed_up():
                self.run(overrides, resumed)
            sys.exit(self._finish())

    def check(self, overrides: list[Override]) -> None:
        """Raise a `UsageError` if the overrides do not define a sweep of this kind."""

    def run(self, overrides: list[Override], resumed: bool) -> None:
        """Run all pending jobs."""
        raise NotImplementedError

    def launch(self, jobs: Sequence[Job]) -> list[float | None]:
        """Pass jobs to the launcher; returns their values, `None` for failed ones."""
        first = self.folder.jobs.index(jobs[0])
        words = [[*job.overrides, f"hydra.sweep.subdir='{job.folder}'"] for job in jobs]
        try:
            returned = self.launcher.launch(words, initial_job_idx=first)
            return [done.return_value for done in returned]
        except Exception as error:  # an error of the launcher; errors of runs are in their records
            said = sentence(error) or f"{type(error).__name__}: {error}".splitlines()[0]
            log.error("error: the launcher stopped early: %s", said)
            return [self.folder.record(job).get("value") for job in jobs]

    def misfit(self, job: Job) -> str | None:
        """Error message if the overrides of a job cannot be composed, else `None`."""
        try:
            cfg = self.context.config_loader.load_sweep_config(self.config, job.overrides)
            check_words(cfg, job.overrides)
        except UsageError as error:
            return str(error)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            return explained(error, job.overrides)
        return None

    def record_misfit(self, job: Job, error: str) -> None:
        """Record a run that cannot be started as failed."""
        log.error("run %s: failed: %s", job.folder, error)
        record = {"overrides": job.overrides, "axes": self.folder.axes, "started": now()}
        write_record(self.folder.path / job.folder, status=FAILED, error=error, value=None, **record)

    def _open(self, path: Path, words: list[str], resumed: bool) -> SweepFolder:
        """Open or create the sweep's folder; from here on everything is composed from its snapshot."""
        if resumed:
            folder = SweepFolder.load(path)
        elif (path / SWEEP).exists():
            raise UsageError(
                f"{path} holds a sweep already: go on with it by {typed(KEY, path)}, or choose another folder"
            )
        elif path.exists() and any(path.iterdir()):
            raise UsageError(f"{path} holds other files: choose another folder for the sweep")
        else:
            hydra_words = [
                word
                for word in words_of(self.config.hydra.overrides.hydra)
                if not word.lstrip("+").startswith(("hydra.sweep.dir=", "hydra.searchpath="))
            ]
            name = str(self.config.hydra.job.config_name)
            folder = SweepFolder(path, name, hydra_words, words, str(Path.cwd()))
            folder.create(source_folders(self.context.config_loader.get_sources()))
        search_path = create_config_search_path(str(folder.snapshot.resolve()))
        self.context = HydraContext(ConfigLoaderImpl(search_path), self.context.callbacks)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task_function, config=self.config
        )
        return folder

    def _parse(self, words: list[str]) -> list[Override]:
        """Parse overrides; the last one of each key wins."""
        parsed = OverridesParser.create(self.context.config_loader).parse_overrides(words)
        return list({override.get_key_element(): override for override in parsed}.values())

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """On a signal, end the sweep and log how to resume it; signals ignored through `nohup` stay ignored."""
        STOP.patience = lambda: math.inf  # wait until its runs have saved
        ended = {number: lambda number, _: sys.exit(128 + number) for number in ENDING}
        handlers = {signal.SIGINT: signal.default_int_handler, **ended}
        handlers = {
            number: handler
            for number, handler in handlers.items()
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as stop:
            if "submitit" not in str(self.config.hydra.launcher._target_):  # cluster jobs keep running
                with suppress(OSError, WriteError):  # a full disk: their records still say "running"
                    self.folder.mark_stopped()
            log.warning("the sweep was stopped; to go on with it: %s", command(**{KEY: self.folder.path}))
            if self.folder.any_ended():
                self._finish()
            sys.exit(128 + signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.code)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _summed_up(self) -> Iterator[None]:
        """If an exception ends the sweep early, log the summary of its runs first."""
        try:
            yield
        except Exception:
            if self.folder.any_ended():
                self._finish()
            raise

    def _finish(self) -> int:
        from workbench.sweeps.end import finish

        return finish(self.folder, report=bool(self.config.sweep.report))


class GridSweeper(FrozenSweeper):
    """Cartesian product of the given values; `sweep.resume=DIR` runs the missing, failed and killed jobs."""

    def run(self, overrides: list[Override], resumed: bool) -> None:
        if not resumed:
            self.folder.axes, self.folder.jobs = self._grid(overrides)
            self.folder.save()
        pending = self.folder.unfinished()
        misfits = {job.folder: error for job in pending if (error := self.misfit(job))}
        if pending and len(misfits) == len(self.folder.jobs):  # every run is invalid: a usage error
            if not resumed:  # the folder holds only what this command created
                shutil.rmtree(self.folder.path)
            raise UsageError(misfits[pending[0].folder])
        for job in pending:
            if job.folder in misfits:
                self.record_misfit(job, misfits[job.folder])
        pending = [job for job in pending if job.folder not in misfits]
        log.info("sweep: %d of %d runs to make, in %s", len(pending), len(self.folder.jobs), self.folder.path)
        if pending:
            self.launch(pending)

    def _grid(self, overrides: list[Override]) -> tuple[list[str], list[Job]]:
        """The axes and all combinations; the last axis varies fastest."""
        choices = {override.get_key_element(): self._values(override) for override in overrides}
        axes = [override.get_key_element() for override in overrides if override.is_sweep_override()]
        combinations = list(itertools.product(*choices.values()))
        jobs = []
        for number, values in enumerate(combinations):
            setting = dict(zip(choices, values, strict=True))
            name = job_folder(number, len(combinations), {axis.lstrip("+"): setting[axis] for axis in axes})
            jobs.append(Job(name, [f"{key}={value}" for key, value in setting.items()]))
        return axes, jobs

    def _values(self, override: Override) -> list[str]:
        if not override.is_sweep_override():
            return [override.get_value_element_as_str()]
        if not override.is_discrete_sweep():
            raise UsageError(
                f"{override.input_line}: intervals are for hydra/sweeper=optuna, a grid needs values"
            )
        if override.value_type != ValueType.GLOB_CHOICE_SWEEP:
            return [str(value) for value in override.sweep_string_iterator()]
        pattern = override.value()
        assert isinstance(pattern, Glob)
        names = pattern.filter(self._options(override.key_or_group))
        if not names:
            raise UsageError(f"{override.input_line}: no file below conf/{override.key_or_group} fits")
        return names

    def _options(self, group: str) -> list[str]:
        """The options of a group, or FOLDER/NAME of its subfolders if it has only those; names with `_` are skipped."""
        loader = self.context.config_loader
        own = [name for name in loader.get_group_options(group) if not name.startswith("_")]
        folders = [] if own else loader.list_groups(group)
        return own + [f"{folder}/{name}" for folder in folders for name in self._options(f"{group}/{folder}")]
