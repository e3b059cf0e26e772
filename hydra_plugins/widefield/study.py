"""A sweep driven by Optuna, which proposes settings based on the results of earlier runs.

The study is stored in an SQLite file, so that it can be resumed: `sweep.resume=DIR` first finishes interrupted runs,
retries failed ones, then asks for new ones until there are `n_trials`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from hydra_plugins.widefield.sweepers import FrozenSweeper
from workbench.errors import UsageError
from workbench.extras import need
from workbench.quoting import typed
from workbench.sweeps.folder import Job, job_folder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

log = logging.getLogger("widefield")


class StudySweeper(FrozenSweeper):
    """Search for the settings with the best monitored metric.

    Args:
        params: as for the grid, and intervals: `optimizer.lr: tag(log, interval(1e-4, 1e-2))`.
        n_trials: total number of runs.
        n_jobs: number of runs proposed at once, independently of each other; for launchers that run several in
            parallel.
        direction: `maximize` or `minimize`.
        storage: Optuna storage URL; `None` for `study.db` in the sweep's folder.
        sampler: factory of the sampler, called with a seed.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        direction: Literal["minimize", "maximize"],
        sampler: "Callable[..., BaseSampler]",
        storage: str | None = None,
        params: DictConfig | None = None,
    ) -> None:
        super().__init__(params)
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.direction, self.storage, self.sampler = direction, storage, sampler

    def check(self, overrides: list[Override]) -> None:
        need("sweep", "hydra/sweeper=optuna")
        if self.n_trials < 1 or self.n_jobs < 1:
            raise UsageError(f"n_trials and n_jobs must be at least 1, not {self.n_trials} and {self.n_jobs}")
        if not any(override.is_sweep_override() for override in overrides):
            raise UsageError(
                "a study needs something to vary, e.g. 'optimizer.lr=tag(log, interval(1e-4, 1e-2))'"
            )

    def run(self, overrides: list[Override], resumed: bool) -> None:
        own = self.folder.path / "study.db"
        with study_errors(str(own) if self.storage is None else "hydra.sweeper.storage", self.folder.path):
            self._search(overrides, self.storage or f"sqlite:///{own.resolve()}")

    def _search(self, overrides: list[Override], storage: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
        fixed = [
            f"{o.get_key_element()}={o.get_value_element_as_str()}"
            for o in overrides
            if not o.is_sweep_override()
        ]
        study = optuna.create_study(
            study_name="widefield",
            storage=storage,
            direction=self.direction,
            load_if_exists=True,
        )
        # A different seed after a resume; otherwise the sampler would propose its first settings again.
        study.sampler = self.sampler(seed=int(self.config.seed) + len(study.trials))
        self.folder.axes = list(space)
        waiting = self._left_behind(study, fixed)
        log.info(
            "study: %d of %d runs are settled, in %s",
            len(self.folder.jobs) - len(waiting),
            self.n_trials,
            self.folder.path,
        )
        while batch := self._next(study, space, fixed, waiting):
            values = self.launch([job for _, job in batch])
            for (number, _), value in zip(batch, values, strict=True):
                study.tell(number, value, state=None if value is not None else optuna.trial.TrialState.FAIL)
        if any(trial.value is not None for trial in study.trials):
            best = ", ".join(f"{key}={value}" for key, value in study.best_params.items())
            log.info("best: %s gives %.4g", best, study.best_value)

    def _left_behind(self, study: "Study", fixed: list[str]) -> list[tuple[int, Job]]:
        """Interrupted runs of the study, and failed ones, which are enqueued again."""
        from optuna.trial import TrialState

        waiting: dict[str, tuple[int, Job]] = {}
        settled = set()
        jobs = [(trial, self._job(trial, fixed)) for trial in study.trials]
        strangers = {job.folder for job in self.folder.jobs} - {job.folder for _, job in jobs}
        if strangers:
            raise StrangeStudy(f"it knows nothing of the run {min(strangers)}")
        for trial, job in jobs:
            if trial.state == TrialState.RUNNING:
                waiting[job.folder] = (trial.number, job)
            elif trial.state == TrialState.FAIL:
                waiting[job.folder] = (-1, job)
            elif trial.state == TrialState.COMPLETE:
                settled.add(job.folder)
            if job.folder not in {known.folder for known in self.folder.jobs}:
                self.folder.jobs.append(job)
        for folder in settled & set(waiting):
            del waiting[folder]
        for folder, (number, job) in waiting.items():
            if number < 0:
                before = next(trial for trial in study.trials if self._job(trial, fixed).folder == folder)
                study.enqueue_trial(before.params, user_attrs={"folder": folder})
                again = study.ask(before.distributions)
                waiting[folder] = (again.number, job)
        return list(waiting.values())

    def _next(
        self,
        study: "Study",
        space: "dict[str, BaseDistribution]",
        fixed: list[str],
        waiting: list[tuple[int, Job]],
    ) -> list[tuple[int, Job]]:
        """The next runs: unfinished ones first, then new ones."""
        from optuna.trial import TrialState

        batch: list[tuple[int, Job]] = []
        while len(batch) < self.n_jobs:
            if waiting:
                batch.append(waiting.pop(0))
                continue
            if len(self.folder.jobs) >= self.n_trials:
                break
            trial = study.ask(space)
            job = self._job(trial, fixed)
            self.folder.jobs.append(job)
            self.folder.save()
            if error := self.misfit(job):
                self.record_misfit(job, error)
                study.tell(trial.number, state=TrialState.FAIL)
                continue
            batch.append((trial.number, job))
        self.folder.save()
        return batch

    def _job(self, trial: Any, fixed: list[str]) -> Job:
        params = {key: str(value) for key, value in trial.params.items()}
        short = {
            key: f"{value:.4g}" if isinstance(value, float) else str(value)
            for key, value in trial.params.items()
        }
        folder = trial.user_attrs.get("folder") or job_folder(trial.number, self.n_trials, short)
        return Job(folder, fixed + [f"{key}={value}" for key, value in params.items()])


class StrangeStudy(Exception):
    """The study does not belong to this sweep."""


@contextmanager
def study_errors(name: str, sweep: Path) -> Iterator[None]:
    """Convert storage errors of the study into a `UsageError` with the storage's name, the cause and a remedy.

    Args:
        name: name of the storage in messages, since its URL may contain a password.
        sweep: the sweep's folder.
    """
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OptunaError, SQLAlchemyError, JSONDecodeError, StrangeStudy) as error:
        said = _innermost(error)
        again = f"go on with {typed('sweep.resume', sweep)}"
        if "locked" in said:
            cure = f"end the process that holds it, then {again}"
        elif "full" in said:
            cure = f"free some space, then {again}"
        elif "unable to open" in said or "readonly" in said:
            cure = f"make it a file that can be written, then {again}"
        else:
            cure = f"put back a copy and {again}, or start a new sweep; action=report input={sweep} shows its runs"
        raise UsageError(f"the study {name} cannot be used ({said}): {cure}") from error


def _innermost(error: BaseException) -> str:
    """First line of the message of the root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def distribution(override: Override) -> "BaseDistribution":
    """Convert a Hydra sweep override to an Optuna distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log_scale = value.start, value.end, "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log_scale)
        return FloatDistribution(float(low), float(high), log=log_scale)  # type: ignore[arg-type]
    if isinstance(value, RangeSweep) and not value.shuffle:
        edges = (value.start, value.stop, value.step)
        whole = [edge for edge in edges if isinstance(edge, int)]
        # A range that falls is a list of choices. Optuna warns of an end that is not reached.
        if len(whole) == len(edges) and (values := range(*whole)) and whole[2] > 0:
            return IntDistribution(values[0], values[-1], step=whole[2])
    return CategoricalDistribution(list(override.sweep_string_iterator()))
