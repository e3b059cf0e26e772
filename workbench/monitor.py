"""The monitored metric: selects best.ckpt, stops early, and is compared by sweeps."""

from collections.abc import Sequence

from omegaconf import DictConfig

from workbench.errors import UsageError
from workbench.resolvers import LESS_IS_BETTER, MORE_IS_BETTER, mode_of


def settle(cfg: DictConfig, measured: Sequence[str]) -> None:
    """Set `cfg.task.monitor` if it is null, and refuse a metric that is not measured.

    Args:
        measured: full names of the validation metrics (`val/acc`), the task's own choice first; empty: unknown.

    Raises:
        UsageError: the metric is not measured, or `mode` would keep the worst checkpoint.
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
