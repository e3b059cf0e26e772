"""State of the training metrics within an epoch, so that an epoch resumed midway reports metrics of the whole epoch.

The state is stored in every checkpoint written within an epoch. In a distributed run it is synchronised over all
processes, and rank 0 resumes from it.
"""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric

State = dict[str, Tensor | list[Tensor]]


def training_metrics(task: nn.Module) -> dict[str, Metric]:
    """The metrics of the training split: those in a submodule whose name begins with `train_`."""
    return {
        name: module
        for name, module in task.named_modules()
        if isinstance(module, Metric) and any(part.startswith("train_") for part in name.split("."))
    }


def begun_states(task: nn.Module) -> dict[str, State]:
    """State of each training metric in the current epoch; empty between epochs.

    Must be called by all processes of a distributed run.
    """
    together = dist.is_available() and dist.is_initialized()
    found: dict[str, State] = {}
    for name, metric in training_metrics(task).items():
        grows = any(isinstance(value, list) for value in metric.metric_state.values())
        if not together and not metric.update_called:
            continue
        if together and grows:  # list states would be gathered in full on every process
            continue
        with metric.sync_context():
            state = {key: _copied(value) for key, value in metric.metric_state.items()}
        if _differs(state, metric):
            found[name] = state
    return found


def go_on(task: nn.Module, states: Any, first: bool) -> None:
    """Restores the training metrics from the states returned by `begun_states`.

    Args:
        task: the task with the metrics.
        states: as read from a checkpoint; states that do not fit the task's metrics are ignored.
        first: whether this is rank 0; the other processes start from reset metrics.
    """
    for name, metric in training_metrics(task).items():
        metric.reset()
        state = states.get(name) if isinstance(states, Mapping) else None
        if not first or not isinstance(state, Mapping) or not _fits(state, metric):
            continue
        for key, value in state.items():
            own = value if isinstance(value, list) else value.to(metric.device)
            setattr(metric, key, own)
        metric._update_count = 1  # makes `update_called` true


def _fits(state: Mapping[str, Any], metric: Metric) -> bool:
    fresh = metric.metric_state
    if set(state) != set(fresh):
        return False
    return all(_alike(value, fresh[key]) for key, value in state.items())


def _alike(value: Any, fresh: Tensor | list[Tensor]) -> bool:
    if isinstance(fresh, list):
        return isinstance(value, list) and all(isinstance(part, Tensor) for part in value)
    return isinstance(value, Tensor) and (value.shape, value.dtype) == (fresh.shape, fresh.dtype)


def _differs(state: State, metric: Metric) -> bool:
    """Whether a state differs from the reset state."""
    for key, fresh in metric._defaults.items():
        value = state[key]
        if isinstance(value, list) or isinstance(fresh, list):
            if value:
                return True
        elif not fresh.to(value.device).equal(value):
            return True
    return False


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [part.detach().cpu().clone() for part in value]
    return value.detach().cpu().clone()
