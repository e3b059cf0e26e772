"""Classification: one class per sample, or several (multi-label).

Shapes: B batch, K classes.
"""

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from modalities.tensor_info import TensorInfo
from tasks.confusion_drawing import draw_confusion
from tasks.datasets.batch import Batch
from tasks.heads import one_hot
from tasks.losses import ClassificationLoss, CrossEntropy
from tasks.metrics import MeanAveragePrecision, MeanClassAccuracy
from tasks.task import Prediction, Task, as_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("widefield")

MOST_CONFUSED = 2000  # maximum number of classes for which a test keeps a confusion matrix
MOST_COLUMNS = 100  # maximum number of classes for which test predictions have a column per class
AVERAGES = ("logits", "probabilities")


def mean_probabilities(output_BcK: Tensor) -> Tensor:
    """Logarithm of the mean over crops (c) of the class probabilities: (B, K)."""
    return output_BcK.float().log_softmax(dim=-1).logsumexp(dim=1) - math.log(output_BcK.shape[1])


def mean_probabilities_of_several(output_BcK: Tensor) -> Tensor:
    """Logit of the mean over crops (c) of each label's probability: (B, K)."""
    output_BcK = output_BcK.float()
    yes, no = (nn.functional.logsigmoid(sign * output_BcK).logsumexp(dim=1) for sign in (1, -1))
    return yes - no


class ClassificationTask(Task):
    """Single-label or multi-label classification.

    Targets are class indices (B,), or multi-hot (B, K) if `data_info["multilabel"]`. The loss always receives
    targets of shape (B, K), so that cross-entropy, binary cross-entropy and mixup share one code path.

    Data info: `class_names` (list of K names), `multilabel` (bool).

    Args:
        loss: (logits (B, K), targets (B, K)) -> scalar, see `tasks.losses`.
        average: what is averaged over the crops of a sample at test time: `logits`, or `probabilities`; the output is
            then the logarithm of the mean probability (multi-label: its logit).
        **settings: see `Task`.
    """

    def __init__(self, loss: nn.Module, average: str = "logits", **settings: Any) -> None:
        super().__init__(**settings)
        if average not in AVERAGES:
            raise ValueError(f"average must be one of {', '.join(AVERAGES)}, not {average!r}")
        self.average = average
        self.loss = loss
        self.class_names: list[str] = list(self.data_info["class_names"])
        self.multilabel = bool(self.data_info["multilabel"])
        if average == "probabilities":
            self.network.average_crops = (
                mean_probabilities_of_several if self.multilabel else mean_probabilities
            )
        self.shown_metric = "map" if self.multilabel else "acc"
        if self.multilabel and isinstance(loss, nn.CrossEntropyLoss | CrossEntropy):
            raise ValueError("several labels per sample need a binary loss: task/loss=bce")
        if isinstance(loss, ClassificationLoss):
            loss.set_classes(self.class_names)
        classes = len(self.class_names)
        self.metrics = nn.ModuleDict(
            {f"{split}_metrics": self._make_metrics(classes, split) for split in ("train", "val", "test")}
        )
        # For ImageNet-22K's classes the confusion matrix would take 4 GB.
        small = classes <= MOST_CONFUSED
        self.confusion = MulticlassConfusionMatrix(classes) if small and not self.multilabel else None
        self.told: set[str] = set()  # splits whose undefined classes have been reported

    def _make_metrics(self, classes: int, split: str) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {}
        if self.multilabel:
            # Exact in evaluation; binned in training, where keeping every score would exhaust the memory.
            metrics["map"] = MeanAveragePrecision(classes, thresholds=100 if split == "train" else None)
        else:
            metrics["acc"] = MulticlassAccuracy(classes, average="micro")
            if split != "train":
                metrics["macc"] = MeanClassAccuracy(classes)
                if classes > 5:
                    metrics["acc_top5"] = MulticlassAccuracy(classes, average="micro", top_k=5)
        # No compute groups: they merge top-5 and class-mean accuracy if their states agree after the first update.
        return MetricCollection(metrics, prefix=f"{split}/", compute_groups=False)

    @classmethod
    def metric_names(cls, data_info: dict[str, Any]) -> tuple[str, ...]:
        if data_info["multilabel"]:
            return ("map", "loss")
        return ("acc", "macc", *(["acc_top5"] if len(data_info["class_names"]) > 5 else []), "loss")

    @classmethod
    def head_arguments(cls, data_info: dict[str, Any]) -> dict[str, Any]:
        return {"num_classes": len(data_info["class_names"])}

    def step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        train = split == "train"
        raw, target = batch.raw, batch.target
        if train:
            raw, target = self.augment.transformed(raw, target)
        target_BK = one_hot(
            target if batch.mixed_target is None else batch.mixed_target, len(self.class_names)
        )
        if train:
            if self.augment.raw is not None:
                raw = self.augment.raw(raw)
            if self.augment.mixup is not None:
                raw, target_BK = self.augment.mixup(raw, target_BK)
        logits_BK = self(raw, train=train)
        loss = self.loss(logits_BK.float(), target_BK)
        self._update_metrics(logits_BK.detach().float(), target, split)
        out = {"loss": loss, "output": logits_BK.detach()}
        if not train and isinstance(self.loss, CrossEntropy):
            # With class weights their sum: a batch of one class would otherwise count unweighted.
            out["weight"] = self.loss.total_weight(target_BK)
        return out

    def _update_metrics(self, logits_BK: Tensor, target: Tensor, split: str) -> None:
        wanted = target.long() if self.multilabel else target
        self._metrics_of(split).update(logits_BK, wanted)
        if split == "test" and self.confusion is not None:
            self.confusion.update(logits_BK, wanted)

    def _metrics_of(self, split: str) -> MetricCollection:
        metrics = self.metrics[f"{split}_metrics"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def epoch_metrics(self, split: str) -> dict[str, Tensor]:
        metrics = self._metrics_of(split)
        values = {}
        if any(metric.update_called for metric in metrics.values()):
            values = dict(metrics.compute())
            self._tell_undefined(split)
        metrics.reset()
        return values

    def _of_classes(self, split: str) -> list[float] | None:
        """The last per-class accuracy or average precision; NaN where undefined."""
        for metric in self._metrics_of(split).values():
            if isinstance(metric, MeanClassAccuracy | MeanAveragePrecision) and metric.of_classes is not None:
                values: list[float] = metric.of_classes.tolist()
                return values
        return None

    def _tell_undefined(self, split: str) -> None:
        values = self._of_classes(split) or [0.0] * len(self.class_names)
        missing = [name for name, value in zip(self.class_names, values, strict=True) if math.isnan(value)]
        if split == "train" or not missing or split in self.told:
            return
        self.told.add(split)
        what, of = ("average precision", "positive samples") if self.multilabel else ("accuracy", "samples")
        log.warning(
            "%s: no %s of %s: their %s is undefined and left out of the mean over classes",
            split,
            of,
            ", ".join(missing[:5]) + (f" and {len(missing) - 5} more classes" if len(missing) > 5 else ""),
            what,
        )

    def begin_test(self, samples: int) -> None:
        for metric in self._metrics_of("test").values():
            if isinstance(metric, MeanClassAccuracy | MeanAveragePrecision):
                metric.of_classes = None
        if self.confusion is not None:
            self.confusion.reset()

    def predict(self, raw: Any, top_k: int = 5) -> list[Prediction]:
        logits_BK = self(raw).float()
        probs_BK = logits_BK.sigmoid() if self.multilabel else logits_BK.softmax(dim=-1)
        return [self._prediction(probs_K, top_k) for probs_K in probs_BK.cpu()]

    def _prediction(self, probs_K: Tensor, top_k: int) -> Prediction:
        values, indices = torch.sort(probs_K, descending=True, stable=True)
        ranked = [(self.class_names[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)][
            :top_k
        ]
        columns: dict[str, Any] = {"label": ranked[0][0], "probability": round(ranked[0][1], 6)}
        for rank, (name, probability) in enumerate(ranked, start=1):
            columns |= {f"top{rank}": name, f"top{rank}_probability": round(probability, 6)}
        return Prediction(columns, "  ".join(f"{name} {probability:.1%}" for name, probability in ranked[:3]))

    def output_info(self) -> dict[str, TensorInfo]:
        of = (
            "their sigmoid is the probability of each label by itself"
            if self.multilabel
            else "their softmax is the probability of each class"
        )
        return {
            "logits": TensorInfo(
                f"logits in the order of facts.class_names; {of}",
                ("batch", "class"),
                {"activation": "sigmoid" if self.multilabel else "softmax"},
            )
        }

    def test_rows(self, batch: Batch, output: Tensor) -> list[list[dict[str, Any]]]:
        logits_BK = output.float()
        probs_BK = (logits_BK.sigmoid() if self.multilabel else logits_BK.softmax(dim=-1)).cpu()
        return [
            [self._test_row(self.caption(batch, position), probs_K.tolist())]
            for position, probs_K in enumerate(probs_BK)
        ]

    def _test_row(self, label: str, probs_K: list[float]) -> dict[str, Any]:
        rounded = [round(value, 6) for value in probs_K]
        best = max(range(len(rounded)), key=probs_K.__getitem__)
        row: dict[str, Any] = {
            "label": label,
            "prediction": self.class_names[best],
            "probability": rounded[best],
        }
        if self.multilabel:
            on = [place for place, value in enumerate(probs_K) if value >= 0.5]
            row["prediction"] = ", ".join(self.class_names[place] for place in on)
            del row["probability"]
        if len(rounded) <= MOST_COLUMNS:
            row |= {f"p({name})": value for name, value in zip(self.class_names, rounded, strict=True)}
        return row

    def caption(self, batch: Batch, position: int) -> str:
        target = batch.target[position]
        if target.ndim == 0:
            return self.class_names[int(target)]
        return ", ".join(name for name, on in zip(self.class_names, target, strict=True) if on)

    def test_report(self) -> dict[str, Any]:
        """After a test: accuracy (multi-label: average precision) per class name, None where undefined, and the
        confusion matrix (rows are true classes)."""
        values = self._of_classes("test")
        if values is None:
            return {}
        defined = [None if math.isnan(value) else value for value in values]
        report: dict[str, Any] = {"per_class": dict(zip(self.class_names, defined, strict=True))}
        if self.confusion is not None:
            report["confusion"] = as_plain(self.confusion.compute())
        return report

    def draw_report(self, report: dict[str, Any]) -> "dict[str, Figure]":
        if "confusion" not in report:
            return {}
        title = "Confusion on the test split ({total} samples, {right} right)"
        return {"confusion": draw_confusion(report["confusion"], self.class_names, title)}
