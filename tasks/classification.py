"""Classification: one class per sample, or several (multi-label).

Shapes: B batch, K classes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MultilabelAveragePrecision,
)

from tasks.heads import one_hot
from tasks.task import Answer, Task, as_plain

AVERAGES = ("logits", "probabilities")


class ClassificationTask(Task):
    """Learns class names.

    Targets are class indices (B,), or multi-hot (B, K) when `facts["multilabel"]`. The loss is always given
    targets of shape (B, K), so that cross-entropy, binary cross-entropy and mixed-up targets go one way.

    Facts: `class_names` (list of K names), `multilabel` (bool).

    Args:
        loss: (logits (B, K), targets (B, K)) -> scalar, e.g. `torch.nn.CrossEntropyLoss` or
            `torch.nn.BCEWithLogitsLoss`.
        average: what is averaged over the crops of a sample at test time: `logits`, or `probabilities`, of whose mean
            the output is the logarithm (several labels: the logit).
        **settings: see `Task`.
    """

    def __init__(self, loss: nn.Module, average: str = "logits", **settings: Any) -> None:
        super().__init__(**settings)
        if average not in AVERAGES:
            raise ValueError(f"average must be one of {', '.join(AVERAGES)}, not {average!r}")
        self.average = average
        self.loss = loss
        self.class_names: list[str] = list(self.facts["class_names"])
        self.multilabel = bool(self.facts["multilabel"])
        self.shown_metric = "map" if self.multilabel else "acc"
        if self.multilabel and isinstance(loss, nn.CrossEntropyLoss):
            raise ValueError("several labels per sample need a binary loss: task/loss=bce")
        classes = len(self.class_names)
        self.metrics = nn.ModuleDict(
            {f"{split}_metrics": self._make_metrics(classes, split) for split in ("train", "val", "test")}
        )
        self.confusion = None if self.multilabel else MulticlassConfusionMatrix(classes)
        self.per_class: Metric | None = None
        if not self.multilabel:
            self.per_class = MulticlassAccuracy(classes, average="none")

    def _make_metrics(self, classes: int, split: str) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {}
        if self.multilabel:
            # Exact for evaluation; binned while training, where keeping every score would fill the memory.
            thresholds = 100 if split == "train" else None
            metrics["map"] = MultilabelAveragePrecision(classes, average="macro", thresholds=thresholds)
        else:
            metrics["acc"] = MulticlassAccuracy(classes, average="micro")
            if split != "train":
                metrics["macc"] = MulticlassAccuracy(classes, average="macro")
                if classes > 5:
                    metrics["acc_top5"] = MulticlassAccuracy(classes, average="micro", top_k=5)
        # No compute groups: they mistake top-5 and class-mean accuracy for one when both begin with the same counts.
        return MetricCollection(metrics, prefix=f"{split}/", compute_groups=False)

    @classmethod
    def head_arguments(cls, facts: dict[str, Any]) -> dict[str, Any]:
        return {"num_classes": len(facts["class_names"])}

    def step(self, batch: dict[str, Any], split: str) -> dict[str, Tensor]:
        train = split == "train"
        raw, target = batch["raw"], batch["target"]
        target_BK = one_hot(target, len(self.class_names))
        if train:
            if self.augment.raw is not None:
                raw = self.augment.raw(raw)
            if self.augment.mixup is not None:
                raw, target_BK = self.augment.mixup(raw, target_BK)
            logits_BK = self.network.forward_maps(self.embed(raw, train=True))
        else:
            logits_BK = self.forward_crops(raw)
        loss = self.loss(logits_BK.float(), target_BK)
        self._update_metrics(logits_BK.detach().float(), target, split)
        return {"loss": loss, "output": logits_BK.detach()}

    def average_crops(self, output: Tensor) -> Tensor:
        if self.average == "logits":
            return super().average_crops(output)
        output_BcK = output.float()  # c: crops
        if self.multilabel:
            yes, no = (nn.functional.logsigmoid(sign * output_BcK).logsumexp(dim=1) for sign in (1, -1))
            return yes - no
        return output_BcK.log_softmax(dim=-1).logsumexp(dim=1) - math.log(output.shape[1])

    def _update_metrics(self, logits_BK: Tensor, target: Tensor, split: str) -> None:
        metrics = self.metrics[f"{split}_metrics"]
        assert isinstance(metrics, MetricCollection)
        wanted = target.long() if self.multilabel else target
        metrics.update(logits_BK, wanted)
        if split == "test" and self.confusion is not None and self.per_class is not None:
            self.confusion.update(logits_BK, wanted)
            self.per_class.update(logits_BK, wanted)

    def epoch_metrics(self, split: str) -> dict[str, Tensor]:
        metrics = self.metrics[f"{split}_metrics"]
        assert isinstance(metrics, MetricCollection)
        values = metrics.compute() if any(metric.update_called for metric in metrics.values()) else {}
        metrics.reset()
        return dict(values)

    def begin_test(self, samples: int) -> None:
        for metric in (self.confusion, self.per_class):
            if metric is not None:
                metric.reset()

    def answer(self, raw: Any, top_k: int = 5) -> list[Answer]:
        logits_BK = self.forward_crops(raw).float()
        probs_BK = logits_BK.sigmoid() if self.multilabel else logits_BK.softmax(dim=-1)
        return [self._answer(probs_K, top_k) for probs_K in probs_BK.cpu()]

    def _answer(self, probs_K: Tensor, top_k: int) -> Answer:
        values, indices = torch.sort(probs_K, descending=True, stable=True)
        ranked = [(self.class_names[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)][
            :top_k
        ]
        columns: dict[str, Any] = {"label": ranked[0][0], "probability": round(ranked[0][1], 6)}
        for rank, (name, probability) in enumerate(ranked, start=1):
            columns |= {f"top{rank}": name, f"top{rank}_probability": round(probability, 6)}
        return Answer(columns, "  ".join(f"{name} {probability:.1%}" for name, probability in ranked[:3]))

    def caption(self, batch: dict[str, Any], position: int) -> str:
        target = batch["target"][position]
        if target.ndim == 0:
            return self.class_names[int(target)]
        return ", ".join(name for name, on in zip(self.class_names, target, strict=True) if on)

    def test_report(self) -> dict[str, Any]:
        """After a test: accuracy per class (name -> share) and the confusion matrix (rows are true classes)."""
        if self.confusion is None or self.per_class is None or not self.confusion.update_called:
            return {}
        per_class = as_plain(self.per_class.compute())
        assert isinstance(per_class, list)
        return {
            "per_class": dict(zip(self.class_names, per_class, strict=True)),
            "confusion": as_plain(self.confusion.compute()),
        }
