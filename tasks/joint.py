"""Joint (multi-task) training on a shared backbone: every step is a batch of one of the tasks.

Each member is a complete `Task` with its own network; the backbones of these networks share modules
(`backbone.sharing`). The weights of an ordinary task can therefore be extracted from a joint checkpoint: see
`member_state`.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from backbone.sharing import plain_stem
from tasks.datasets.batch import Batch
from tasks.task import Task, Training

PREFIX = "members"


class FixedWeights(nn.Module):
    """Loss of a step = weight of its task x loss of the task.

    Args:
        weights: task -> weight.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        wrong = [name for name, weight in weights.items() if weight <= 0]
        if wrong:
            raise ValueError(f"the weight of a task must be positive, not {weights[wrong[0]]} ({wrong[0]})")
        self.weights = dict(weights)

    def forward(self, name: str, loss: Tensor, regression: bool) -> Tensor:
        return self.weights[name] * loss

    def learnt(self, name: str) -> Tensor | None:
        """The learnt factor of a task's loss; None if the weights are fixed."""
        return None


class UncertaintyWeights(FixedWeights):
    """Homoscedastic uncertainty weighting (Kendall et al. 2018, arXiv 1705.07115, section 3.2).

    With s = log sigma² of a task, its loss L becomes exp(-s) / 2 · L + s / 2 for a squared error (Gaussian noise), and
    exp(-s) · L + s / 2 for a cross-entropy (softmax of scaled logits). The result is multiplied by the fixed weights.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in weights})

    def forward(self, name: str, loss: Tensor, regression: bool) -> Tensor:
        s = self.log_variance[name]
        scaled = torch.exp(-s) * loss * (0.5 if regression else 1.0) + 0.5 * s
        return super().forward(name, scaled, regression)

    def learnt(self, name: str) -> Tensor | None:
        return torch.exp(-self.log_variance[name].detach())


WEIGHTINGS: dict[str, type[FixedWeights]] = {"fixed": FixedWeights, "uncertainty": UncertaintyWeights}


def make_weighting(kind: str, weights: Mapping[str, float]) -> FixedWeights:
    """Creates a `fixed` or an `uncertainty` weighting."""
    if kind not in WEIGHTINGS:
        raise ValueError(f"task.weighting must be one of {', '.join(WEIGHTINGS)}, not {kind}")
    return WEIGHTINGS[kind](weights)


class JointTask(Training):
    """Trains several tasks alternately; `batch.task` names the task of a batch.

    Metric names include the member's name: `val/audio/acc`. In addition there are `val/loss`, the sum of the weighted
    losses, and `val/score`, the mean of the members' monitored metrics, where a metric e with mode `min` enters as
    1 - e.

    Args:
        members: the tasks, by name; their backbones may share modules.
        monitors: name -> (metric without its split, `max` or `min`).
        weighting: (name, loss, whether it is a regression) -> loss of the step.
        optimizer, scheduler, composition: see `Training`.
    """

    shown_metric = "score"

    def __init__(
        self,
        members: Mapping[str, Task],
        monitors: Mapping[str, tuple[str, str]],
        weighting: FixedWeights,
        optimizer: Callable[[nn.Module], Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        composition: dict[str, Any] | None = None,
    ) -> None:
        data_info = {name: member.data_info for name, member in members.items()}
        super().__init__(data_info, optimizer, scheduler, composition)
        self.members = nn.ModuleDict(dict(members))
        self.monitors = dict(monitors)
        self.weighting = weighting

    def by_task(self) -> dict[str, Task]:
        return {name: cast(Task, member) for name, member in self.members.items()}

    def task_of(self, batch: Batch) -> str:
        return batch.task

    def trained_module(self) -> nn.Module:
        return self

    def measured_step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        name = self.task_of(batch)
        member = self.by_task()[name]
        out = member.measured_step(batch, split)
        return {"loss": self.weighting(name, out["loss"], member.regression), "output": out["output"]}

    def epoch_values(self, split: str) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        losses, scores = [], []
        for name, member in self.by_task().items():
            found = member.epoch_values(split)
            values |= {with_member(full, name): value for full, value in found.items()}
            if f"{split}/loss" in found:
                losses.append(self.weighting(name, found[f"{split}/loss"], member.regression).detach())
            metric, mode = self.monitors[name]
            if f"{split}/{metric}" in found:
                value = found[f"{split}/{metric}"]
                scores.append(value if mode == "max" else 1 - value)
            factor = self.weighting.learnt(name)
            if split == "train" and factor is not None:
                values[f"{split}/{name}/weight"] = factor
        if losses:
            values[f"{split}/loss"] = torch.stack(losses).sum()
        if len(scores) == len(self.members):
            values[f"{split}/score"] = torch.stack(scores).mean()
        return values

    def begin_test(self, samples: int) -> None:
        sizes: dict[str, int] = self.trainer.datamodule.sizes("test")  # type: ignore[attr-defined]
        for name, member in self.by_task().items():
            member.begin_test(sizes[name])

    def in_short(self, name: str) -> bool:
        monitored = {f"val/{part}/{metric}" for part, (metric, _) in self.monitors.items()}
        return name in monitored | {"train/loss", "val/score"}

    def parameter_layers(self, per_block: bool = False) -> dict[str, int]:
        """Layer index of every parameter, by name; the learnt loss weights belong to the last layer."""
        layers: dict[str, int] = {}
        for name, member in self.by_task().items():
            inner = member.network.parameter_layers(per_block)
            layers |= {f"{PREFIX}.{name}.network.{rest}": layer for rest, layer in inner.items()}
        last = max(layers.values())
        return layers | {f"weighting.{name}": last for name, _ in self.weighting.named_parameters()}


def with_member(full: str, name: str) -> str:
    """The full name of a member's metric.

    >>> with_member("val/acc", "audio")
    'val/audio/acc'
    """
    split, _, metric = full.partition("/")
    return f"{split}/{name}/{metric}"


def member_state(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Extracts a member's weights from a joint state dict, with the parameter names of an ordinary task."""
    prefix = f"{PREFIX}.{name}."
    own = {full.removeprefix(prefix): value for full, value in state.items() if full.startswith(prefix)}
    return plain_stem(own, "network.backbone.")
