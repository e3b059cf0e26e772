"""Classification head: the backbone's features of V maps -> logits of a sample.

Shapes: B batch, V maps per sample, C channels, H height, W width, D features, K classes; N = B·V.
"""

import torch
from torch import Tensor, nn

FUSIONS = ("mean", "max", "attention", "temporal", "concat")
POOLS = ("mean", "max", "mean_max")


class ViewFusion(nn.Module):
    """Fuses the V feature vectors of a sample: (B, V, D) -> (B, D), or (B, V·D) for `concat`.

    Args:
        width: D.
        how: `mean`, `max`, `attention` (a learned weight per view, softmax over views), `temporal` (a residual block of
            convolutions along the views, then the mean), or `concat` (concatenation). Only the last two depend on the
            order of the views.
        reach: half-width of the kernel of `temporal`, in views.
    """

    def __init__(self, width: int, how: str = "mean", reach: int = 2) -> None:
        super().__init__()
        if how not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, not {how!r}")
        self.how = how
        self.score = nn.Linear(width, 1) if how == "attention" else None
        self.temporal: nn.Sequential | None = None
        if how == "temporal":
            # Depthwise along V, then across channels, as in the backbone's blocks along H and W.
            self.temporal = nn.Sequential(
                nn.Conv1d(width, width, 2 * reach + 1, padding=reach, groups=width),
                nn.BatchNorm1d(width),
                nn.Conv1d(width, 2 * width, 1),
                nn.GELU(),
                nn.Conv1d(2 * width, width, 1),
            )

    def forward(self, x_BVD: Tensor) -> Tensor:
        if self.score is not None:
            weight_BV1 = self.score(x_BVD).softmax(dim=1)
            return (weight_BV1 * x_BVD).sum(dim=1)
        if self.temporal is not None:
            return (x_BVD.transpose(1, 2) + self.temporal(x_BVD.transpose(1, 2))).mean(dim=2)
        if self.how == "concat":
            return x_BVD.flatten(1)
        return x_BVD.amax(dim=1) if self.how == "max" else x_BVD.mean(dim=1)


class ClassificationHead(nn.Module):
    """Pool -> LayerNorm -> fuse views -> dropout -> linear (UniRepLKNet's head, with V maps per sample).

    With `concat` the views are joined first: the norm is over all V·D features (P2P, arXiv 2208.02812).

    Args:
        in_features: width of the backbone's last stage.
        num_classes: K.
        fusion: how the V maps of a sample are fused, see `ViewFusion`.
        dropout: rate before the linear layer.
        init_scale: factor on the linear layer's initial weight (0.001 in the official fine-tuning on images).
        views: V, required by `concat`.
        pool: what remains of a feature map: `mean`, as in the official head; `max`; or `mean_max`, their sum (PANNs,
            arXiv 1912.10211), which a short event in a long clip moves more than it moves the mean.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        fusion: str = "mean",
        dropout: float = 0.0,
        init_scale: float = 1.0,
        views: int | None = None,
        pool: str = "mean",
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")
        if fusion == "concat" and not views:
            raise ValueError("fusion=concat needs the number of maps of a sample: task.head.views")
        width = in_features * (views or 1) if fusion == "concat" else in_features
        self.pool = pool
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fusion = ViewFusion(in_features, fusion)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight.mul_(init_scale)

    def forward(self, features: list[Tensor], views: int, context: dict[str, Tensor] | None = None) -> Tensor:
        """Feature maps of N = B·V maps -> logits (B, K); `context` is ignored."""
        x_BVD = self.pooled(features[-1]).unflatten(0, (-1, views))
        x_BD = self.norm(self.fusion(x_BVD)) if self.fusion.how == "concat" else self.fusion(self.norm(x_BVD))
        return self.linear(self.dropout(x_BD))

    def pooled(self, x_NCHW: Tensor) -> Tensor:
        """Feature maps -> (N, C)."""
        if self.pool == "mean":
            return x_NCHW.mean(dim=(-2, -1))
        most_NC = x_NCHW.amax(dim=(-2, -1))
        return most_NC if self.pool == "max" else x_NCHW.mean(dim=(-2, -1)) + most_NC

    def load_official(self, left_out: dict[str, Tensor]) -> bool:
        """Loads the norm and, if the number of classes matches, the linear layer of an official classifier.

        A norm over several concatenated views is not loaded. Returns whether the linear layer was loaded.
        """
        if "norm.weight" in left_out and left_out["norm.weight"].shape == self.norm.weight.shape:
            self.norm.load_state_dict({"weight": left_out["norm.weight"], "bias": left_out["norm.bias"]})
        taken = "head.weight" in left_out and left_out["head.weight"].shape == self.linear.weight.shape
        if taken:
            self.linear.load_state_dict({"weight": left_out["head.weight"], "bias": left_out["head.bias"]})
        return taken


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    """Class indices (B,) -> one-hot (B, K) float; targets of shape (B, K) are only cast."""
    if target.ndim == 1:
        return torch.nn.functional.one_hot(target, num_classes).float()
    return target.float()
