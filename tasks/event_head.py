"""Head for sound event detection: feature maps -> class scores per frame.

Shapes: B samples of V maps each, N = B·V, Ci channels of feature map i, C channels inside the head, K classes, H and W
of a feature map, T its W at the first stage, F frames.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

READS = ("pyramid", "last")
POOLS = ("mean", "max", "both")


class EventHead(nn.Module):
    """Pooling over frequency -> linear layers to C channels -> upsampling to the time resolution of the finest map ->
    convolution over time -> frame scores.

    Multi-label: a score is the logit of an independent binary classifier per class.

    Args:
        in_channels: Ci, from the backbone.
        strides: of the feature maps, from the backbone.
        num_classes: K, from the data.
        channels: C.
        reads: `pyramid`: all feature maps; `last`: the last one.
        pool: over frequency: `mean`, `max`, or `both` concatenated.
        kernel_size: of the convolution over time, in steps of the finest map used.
        dropout: before the scores.
        prior: probability of every class at initialisation; low, since most frames are silent.

    Raises:
        ValueError: invalid settings.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        channels: int = 64,
        reads: str = "pyramid",
        pool: str = "both",
        kernel_size: int = 5,
        dropout: float = 0.0,
        prior: float = 0.05,
    ) -> None:
        super().__init__()
        if reads not in READS:
            raise ValueError(f"task.head.reads must be one of {', '.join(READS)}, not {reads!r}")
        if pool not in POOLS:
            raise ValueError(f"task.head.pool must be one of {', '.join(POOLS)}, not {pool!r}")
        if kernel_size < 1 or kernel_size % 2 == 0 or channels < 1:
            raise ValueError(
                f"task.head needs channels of at least 1 and an odd kernel_size, not {channels} and {kernel_size}"
            )
        if not 0 <= dropout < 1 or not 0 < prior < 1:
            raise ValueError("task.head.dropout must lie in [0, 1), prior between 0 and 1")
        self.first = 0 if reads == "pyramid" else len(in_channels) - 1
        self.stride = int(strides[self.first])
        self.pool = pool
        parts = 2 if pool == "both" else 1
        self.linears = nn.ModuleList(
            nn.Conv1d(parts * width, channels, 1) for width in in_channels[self.first :]
        )
        self.mix = nn.Conv1d(
            len(self.linears) * channels, channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Conv1d(channels, num_classes, 1)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.constant_(self.scores.bias, torch.logit(torch.tensor(prior)).item())  # type: ignore[arg-type]

    def forward(
        self, features: Sequence[Tensor], views: int, context: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Feature maps of N = B·V maps -> logits ``(B, F, K)``; F is the map's width, rounded up to the stride."""
        rows_NCT = [
            linear(self.pooled(x_NCHW))
            for linear, x_NCHW in zip(self.linears, features[self.first :], strict=True)
        ]
        size = rows_NCT[0].shape[-1]
        joined = torch.cat([rows_NCT[0], *(stretched(row, size) for row in rows_NCT[1:])], dim=1)
        x_NCT = self.dropout(fn.relu(self.norm(self.mix(joined))))
        logits_NKF = stretched(self.scores(x_NCT), size * self.stride)
        logits_BKF = logits_NKF if views == 1 else logits_NKF.unflatten(0, (-1, views)).mean(dim=1)
        return logits_BKF.transpose(1, 2)

    def pooled(self, x_NCHW: Tensor) -> Tensor:
        """A feature map pooled over its rows, ``(N, C, W)``, or ``(N, 2C, W)`` with both poolings."""
        if self.pool == "mean":
            return x_NCHW.mean(dim=-2)
        largest_NCW = x_NCHW.amax(dim=-2)
        return largest_NCW if self.pool == "max" else torch.cat([x_NCHW.mean(dim=-2), largest_NCW], dim=1)


def stretched(x_NCT: Tensor, size: int) -> Tensor:
    """Linear interpolation to another length, with `align_corners=False`."""
    if x_NCT.shape[-1] == size:
        return x_NCT
    return fn.interpolate(x_NCT, size=size, mode="linear", align_corners=False)
