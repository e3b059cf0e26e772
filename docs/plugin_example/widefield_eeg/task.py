"""A task with a head and a result of its own: the state of a person, or that the recording does not tell.

Shapes: B batch, V maps of a sample, C channels, K classes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tasks.classification import ClassificationTask
from tasks.task import Prediction


class PooledHead(nn.Module):
    """Mean and maximum over the last feature map and over the V maps -> linear -> logits (B, K).

    Args:
        in_features: channels of the backbone's last stage.
        num_classes: K.
        dropout: rate before the linear layer.
    """

    def __init__(self, in_features: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * in_features)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * in_features, num_classes)

    def forward(self, features: list[Tensor], views: int, context: dict[str, Tensor] | None = None) -> Tensor:
        x_NCHW = features[-1]
        pooled_NC = torch.cat([x_NCHW.mean(dim=(-2, -1)), x_NCHW.amax(dim=(-2, -1))], dim=1)
        return self.linear(self.dropout(self.norm(pooled_NC.unflatten(0, (-1, views)).mean(dim=1))))


class StateTask(ClassificationTask):
    """Classification whose predictions say how sure they are.

    Args:
        unsure_above: entropy of the probabilities, as a share of the largest there can be, above which a recording is
            called unsure.
        **settings: see `ClassificationTask`.
    """

    def __init__(self, *, unsure_above: float = 0.6, **settings: Any) -> None:
        super().__init__(**settings)
        self.unsure_above = unsure_above

    def predict(self, raw: Any, top_k: int = 5) -> list[Prediction]:
        predictions = super().predict(raw, top_k=len(self.class_names))
        return [self._with_doubt(prediction, top_k) for prediction in predictions]

    def _with_doubt(self, prediction: Prediction, top_k: int) -> Prediction:
        """Entropy of all probabilities, and whether that is too much; then only the first classes are listed."""
        ranks = range(1, len(self.class_names) + 1)
        probabilities = torch.tensor([prediction.columns[f"top{rank}_probability"] for rank in ranks])
        entropy = float(torch.special.entr(probabilities).sum()) / math.log(max(len(ranks), 2))
        for rank in ranks[top_k:]:
            del prediction.columns[f"top{rank}"], prediction.columns[f"top{rank}_probability"]
        prediction.columns |= {"entropy": round(entropy, 6), "unsure": entropy > self.unsure_above}
        if entropy > self.unsure_above:
            prediction.shown = f"unsure: {prediction.shown}"
        return prediction
