"""Which metric decides: it chooses best.ckpt, stops early, and is what a sweep compares."""

from collections.abc import Sequence

from omegaconf import DictConfig

from workbench.errors import UsageError
from workbench.resolvers import LESS_IS_BETTER, MORE_IS_BETTER, mode_of


def settle(cfg: DictConfig, measured: Sequence[str]) -> None:
    """Fill in `cfg.task.monitor` where it is null, and refuse one that will not be measured.

    Args:
        measured: full names of what validation measures (`val/acc`), the task's own choice first; empty: not known.

    Raises:
        UsageError: another metric, with the ones there are; a `mode` that would keep the worst checkpoint.
    """
    if cfg.task.monitor is None:
        if not measured:
            raise UsageError(f"task {cfg.task.name} names no metric to monitor: say task.monitor=val/NAME")
        cfg.task.monitor = measured[0]
    monitor = cfg.task.monitor
    if measured and monitor not in measured:
        raise UsageError(f"task.monitor={monitor} is not measured here: take one of {', '.join(measured)}")
    sure = monitor.rpartition("/")[2].startswith(LESS_IS_BETTER + MORE_IS_BETTER)
    if sure and cfg.task.mode != mode_of(monitor):
        better = {"max": "larger", "min": "smaller"}[mode_of(monitor)]
        raise UsageError(
            f"task.mode={cfg.task.mode} would keep the worst checkpoint: {monitor} is better when it is {better}; "
            "leave task.mode out"
        )
