"""Base classes of all tasks: a task owns the network and its optimiser, and maps batches to {"loss", "output"}.

`Training` is the `LightningModule` that the trainer runs, for a single task or for several trained jointly
(`tasks.joint`); `Task` is the base class of a single task.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from backbone.protocol import Backbone
from modalities.embedder import Embedder
from modalities.tensor_info import TensorInfo
from tasks.datasets.base import DataModule
from tasks.datasets.batch import Batch
from tasks.metrics import MeanLoss
from tasks.network import Network
from tasks.optimizers import learning_rates
from tasks.progress import begun_states, go_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Shared:
    """One prediction's entry in a file shared by all predictions of a run.

    Args:
        content: plain values.
        join: (input file, content) of all predictions, in order, and the data module that has read them -> content of
            the file: of `.csv` name -> column, of `.json` a dictionary or a list of them; None: no file. A function of
            a module, since entries are sent between processes.
    """

    content: Any
    join: Callable[[list[tuple[str, Any]], DataModule], dict[str, Any] | list[dict[str, Any]] | None]


def below_each_other(files: list[tuple[str, Any]], data: DataModule) -> dict[str, list[Any]]:
    """Joins tables of the same columns, name -> column, to one whose first column is `path`."""
    table: dict[str, list[Any]] = {"path": []}
    for file, columns in files:
        table["path"] += [file] * len(next(iter(columns.values()), []))
        for name, values in columns.items():
            table.setdefault(name, []).extend(values)
    return table


@dataclass
class Prediction:
    """The prediction for one sample, in human-readable form.

    Args:
        columns: the row of `predictions.csv`, most likely class first.
        shown: a short summary for the terminal.
        tables: predictions too long for a row: name -> columns, each written to `<name>.csv`.
        report: plain values to draw figures from, with the keys of `Task.test_report`.
        files: further files, such as `masks/{name}.png`, where `{name}` is replaced by the name of the input file; each
            is written by a function of its path and the provenance note for embedded samples (None: no note).
        figures: file name, as in `files` -> function that returns the figure.
        shared: files shared by all predictions of a run: name -> this prediction's entry.
    """

    columns: dict[str, Any]
    shown: str
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Callable[[Path, str | None], None]] = field(default_factory=dict)
    figures: "dict[str, Callable[[], Figure]]" = field(default_factory=dict)
    shared: dict[str, Shared] = field(default_factory=dict)


class Augment(nn.Module):
    """The augmentation hooks of training batches on the device, in the order in which they are called.

    Args:
        transforms: (raw batch, targets) -> the same pair: the training transforms of the data module, where they run on
            the device (`DataModule.device_transforms`); set before training.
        raw: raw batch -> raw batch, e.g. noise on waveforms.
        mixup: (raw batch, targets (B, …)) -> the same pair, mixed.
        maps: maps -> maps, e.g. SpecAugment.
    """

    def __init__(
        self, raw: nn.Module | None = None, mixup: nn.Module | None = None, maps: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.transforms: nn.Module | None = None
        #: A replacement for `transforms` (with CUDA graphs); None: eager.
        self.runner: Callable[..., Any] | None = None
        self.raw = raw
        self.mixup = mixup
        self.maps = maps

    def transformed(self, raw: Any, target: Any) -> tuple[Any, Any]:
        """The training batch after `transforms`."""
        if self.transforms is None:
            return raw, target
        device = next((leaf.device.type for leaf in tree_leaves(raw) if isinstance(leaf, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):  # bf16 is too coarse for positions in an image
            return (self.runner or self.transforms)(raw, target)


class Training(LightningModule):
    """Steps, logging and the optimiser, for a single task or for several trained jointly.

    Args:
        data_info: metadata of the data set needed for predictions (class names, units, …); plain values, stored in
            every checkpoint so that predictions need no data set.
        optimizer: module -> optimiser of its parameters.
        scheduler: optimiser, total_steps, steps_per_epoch -> learning-rate schedule.
        composition: the run's modality, task and backbone nodes as plain containers, stored in every checkpoint.
    """

    # Titles of the data sets replaced by embedded samples in this training; stored in every checkpoint.
    drawn: Sequence[str] = ()
    shown_metric: str = "loss"  # the metric shown in the progress bar beside the loss

    def __init__(
        self,
        data_info: dict[str, Any],
        optimizer: Callable[[nn.Module], Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        composition: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.data_info = data_info
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.composition = composition or {}
        self.rates: dict[str, float] = {}  # learning rates of the last step
        self.trained_on: dict[
            str, Any
        ] = {}  # the record of the data (`DataModule.record`), stored in every checkpoint
        self.validated: dict[str, float] = {}  # metrics of the last validation during training, by full name
        self.validated_step: int | None = None  # optimiser steps before it; None: unknown

    # -- interface of subclasses --------------------------------------------------------------------------------

    def by_task(self) -> "dict[str, Task]":
        """Maps a task name to its task; a single task has the key `''`."""
        raise NotImplementedError

    def task_of(self, batch: Batch) -> str:
        """Name of the task that a batch belongs to."""
        raise NotImplementedError

    def trained_module(self) -> nn.Module:
        """The module whose parameters are optimised."""
        raise NotImplementedError

    def measured_step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        """One batch of a split -> {"loss", "output"}; updates the metrics and the mean loss of that split."""
        raise NotImplementedError

    def epoch_values(self, split: str) -> dict[str, Tensor]:
        """Computes and resets the epoch's metrics and loss, by full name (`val/acc`); empty if none was updated."""
        raise NotImplementedError

    def begin_test(self, samples: int) -> None:
        """Resets the results of the last test; `samples` is the number of test samples."""
        raise NotImplementedError

    def in_short(self, name: str) -> bool:
        """Whether a value appears in the log's one-line summary of an epoch."""
        return True

    # -- Lightning's hooks --------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor] | None:
        if not len(batch):
            return None  # every file of the batch was unreadable; the callback BrokenFiles has reported it
        out = self.measured_step(batch, "train")
        self.log("loss", out["loss"].detach(), prog_bar=True, logger=False, on_step=True, on_epoch=False)
        return out

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if len(batch):
            self.measured_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor] | None:
        return self.measured_step(batch, "test") if len(batch) else None

    def on_test_epoch_start(self) -> None:
        loader: Any = self.trainer.test_dataloaders
        self.begin_test(len(loader.dataset))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.rates = learning_rates(optimizer)

    def on_train_epoch_end(self) -> None:
        self._log_epoch("train")
        self.log_dict(self.rates)

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test")

    def _log_epoch(self, split: str) -> None:
        # All processes of a distributed run compute the values here: were the trainer to average them, the progress
        # bar of rank 0 alone would trigger the synchronisation and deadlock.
        values = self.epoch_values(split)
        if split == "val" and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.validated = {name: float(value) for name, value in values.items()}
            self.validated_step = self.trainer.global_step
        for name, value in values.items():
            self.log(name, value, prog_bar=name.split("/")[-1] == self.shown_metric and split != "test")

    def configure_optimizers(self) -> Any:
        if self.make_optimizer is None:
            raise ValueError("this task was built without an optimizer; it can predict and test, not train")
        optimizer = self.make_optimizer(self.trained_module())
        if self.make_scheduler is None:
            return {"optimizer": optimizer}
        total, per_epoch = self.planned_steps()
        schedule = self.make_scheduler(optimizer, total_steps=total, steps_per_epoch=per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def planned_steps(self) -> tuple[int, int]:
        """Optimiser steps of the whole run and of one epoch.

        Computed here because the trainer's own estimate opens the training loader before its position has been
        restored in a resumed run.
        """
        trainer = self.trainer
        batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        per_epoch = max(math.ceil(batches / trainer.accumulate_grad_batches), 1)
        total = per_epoch * max(trainer.max_epochs or 1, 1)
        return (min(total, trainer.max_steps) if trainer.max_steps > 0 else total), per_epoch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["widefield"] = {
            "format": 1,
            "composition": self.composition,
            "facts": self.data_info,
            "drawn": list(self.drawn),
            "trained_on": self.trained_on,
            "max_epochs": self.trainer.max_epochs,
            "validated": self.validated,
            "validated_step": self.validated_step,
            "train_metrics": begun_states(self),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.state.fn != "fit":
            return
        stored = checkpoint["widefield"]
        self.validated = {
            str(name): float(value) for name, value in dict(stored.get("validated", {})).items()
        }
        self.validated_step = stored.get("validated_step")
        go_on(self, stored.get("train_metrics"), first=self.global_rank == 0)


class Task(Training):
    """Base class of a single task.

    Args:
        network: embedder, backbone, head.
        augment: augmentation of training batches on the device.
        data_info, optimizer, scheduler, composition: see `Training`.
    """

    # Whether the loss is a regression loss (squared error) rather than a cross-entropy.
    regression = False

    # Whether targets say where or when something is, which moves with the content of a sample.
    located = False

    def __init__(
        self,
        network: Network,
        data_info: dict[str, Any],
        optimizer: Callable[[nn.Module], Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        augment: Augment | None = None,
        composition: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_info, optimizer, scheduler, composition)
        self.network = network
        self.augment = augment or Augment()
        self.losses = nn.ModuleDict({f"{split}_loss": MeanLoss() for split in ("train", "val", "test")})

    @classmethod
    def metric_names(cls, data_info: dict[str, Any]) -> tuple[str, ...]:
        """Names of the validation metrics without the split (`acc` for `val/acc`); the first is monitored by default.
        Empty: not known in advance."""
        return ()

    @classmethod
    def wants_pyramid(cls, embedder: Embedder) -> bool:
        """Whether the head reads feature maps at rising strides, as dense predictions do."""
        return False

    @classmethod
    def head_arguments(cls, data_info: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the head's constructor that depend on the data."""
        raise NotImplementedError

    @classmethod
    def head_sizes(cls, data_info: dict[str, Any], embedder: nn.Module, backbone: Backbone) -> dict[str, Any]:
        """Arguments of the head's constructor that depend on the data, the embedder and the backbone."""
        return {"in_features": backbone.num_features, **cls.head_arguments(data_info)}

    def step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        """One batch of a split -> {"loss", "output"}; updates the metrics of that split.

        In validation and test `weight` may be added: that of the loss in the mean over the split, by default the number
        of samples. With it, the mean does not depend on how the split is divided into batches.
        """
        raise NotImplementedError

    def epoch_metrics(self, split: str) -> dict[str, Tensor]:
        """Computes and resets the epoch's metrics, by full name (`val/acc`); empty if none was updated."""
        raise NotImplementedError

    def begin_test(self, samples: int) -> None:
        """Resets the results of the last test; `samples` is the number of test samples."""

    def predict(self, raw: Any, top_k: int = 5) -> list[Prediction]:
        """Raw batch -> one human-readable prediction per sample; `top_k` limits lists of candidates."""
        raise NotImplementedError

    def test_rows(self, batch: Batch, output: Tensor) -> list[list[dict[str, Any]]]:
        """The rows of `predictions.csv` for each sample of a test batch, one or more per sample.

        Args:
            batch: with its targets.
            output: the `output` of `step`.
        """
        raise NotImplementedError

    def test_shared(self, batch: Batch, output: Any) -> list[dict[str, Shared]]:
        """The entries of each sample of a test batch in files beside `predictions.csv`, as `Prediction.shared`; the
        arguments are those of `test_rows`."""
        return [{} for _ in range(len(batch))]

    def caption(self, batch: Batch, position: int) -> str:
        """The title of the picture of one sample of a batch."""
        return f"sample {int(batch.index[position])}"

    def test_report(self) -> dict[str, Any]:
        """Results of a test beyond its metrics, as plain values, from which tables and figures are made."""
        return {}

    def draw_report(self, report: dict[str, Any]) -> "dict[str, Figure]":
        """The figures of the report of a test (`test_report`) or a prediction (`Prediction.report`), by name; the
        report may be partial or empty."""
        return {}

    def difference(self, given: Any, wanted: Any) -> float:
        """The maximum difference between the output of an exported network and the reference, relative to the
        reference's largest absolute value."""
        far = float((given.detach() - wanted).abs().max())
        return far / max(float(wanted.abs().max()), 1e-12)

    @property
    def free_axes(self) -> dict[int, int]:
        """Dynamic axes of the exported model's input: axis -> number that its length is a multiple of."""
        return {0: 1}

    def input_info(self) -> dict[str, TensorInfo]:
        """Describes the exported model's inputs, by name; see `Embedder.raw_info`."""
        return self.network.embedder.raw_info()

    def output_info(self) -> dict[str, TensorInfo]:
        """Describes the exported model's outputs, by name, in the order in which the network returns them; empty: not
        described."""
        return {}

    def preview(self, batch: Batch, most: int) -> tuple[Any, list[str]]:
        """The first samples of a training batch after raw augmentation, with captions."""
        count = min(most, len(batch.index))
        raw, target = tree_map(lambda value: value[:count], (batch.raw, batch.target))
        raw, target = self.augment.transformed(raw, target)
        batch = replace(batch, raw=raw, target=target)
        if self.augment.raw is not None:
            raw = self.augment.raw(raw)
        return raw, [self.caption(batch, position) for position in range(count)]

    # -- interface of `Training` ----------------------------------------------------------------------------------

    def by_task(self) -> "dict[str, Task]":
        return {"": self}

    def task_of(self, batch: Batch) -> str:
        return ""

    def trained_module(self) -> nn.Module:
        return self.network

    def measured_step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        out = self.step(batch, split)
        self._loss_of(split).update(out["loss"].detach(), out.get("weight", len(batch)))
        return out

    def epoch_values(self, split: str) -> dict[str, Tensor]:
        values = self.epoch_metrics(split)
        loss = self._loss_of(split)
        if loss.update_called:
            values[f"{split}/loss"] = loss.compute()
            loss.reset()
        return values

    def _loss_of(self, split: str) -> MeanLoss:
        metric = self.losses[f"{split}_loss"]
        assert isinstance(metric, MeanLoss)
        return metric

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Prediction]:
        return self.predict(batch.raw)

    def embed(self, raw: Any, train: bool) -> Tensor:
        """Raw batch -> maps (B, V, C, H, W), with map augmentation in training."""
        return self.network.maps(raw, self.augment.maps if train else None)

    def forward(self, raw: Any, train: bool = False) -> Tensor:
        """Raw batch, optionally with several crops per sample -> output, with map augmentation in training."""
        return self.network(raw, self.augment.maps if train else None)


def as_plain(value: Tensor) -> float | list[float]:
    """A metric's value as a float or a (nested) list of floats."""
    value = value.detach().to("cpu", torch.float64)
    return value.item() if value.ndim == 0 else value.tolist()
