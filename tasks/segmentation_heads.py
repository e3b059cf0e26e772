"""Segmentation heads: the backbone's four feature maps -> per-pixel class scores.

`UPerHead` and `FCNHead` are those of UPerNet (Xiao et al. 2018, arXiv 1807.10221) as configured in the official
segmentation recipes, with the parameter names of their checkpoints; `MLPHead` is a lightweight alternative (as in
SegFormer, arXiv 2105.15203). A `SegmentationHead` combines one of them with an optional auxiliary head for training.

Shapes: B samples of V maps each, N = B·V, Ci channels of feature map i, C channels inside the head, K classes, H and W
of the largest feature map (the input at the first stage's stride), S bins.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone import CheckpointError
from tasks.bilinear import resized

POOLED_TO = (1, 2, 3, 6)


class ConvNormAct(nn.Module):
    """Convolution without bias -> batch norm -> ReLU: `(N, in, H, W) -> (N, out, H, W)`."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_chans)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_NCHW)))


class PooledTo(nn.Module):
    """Adaptive average pooling, `(N, C, H, W) -> (N, C, side, side)`, that can be exported with dynamic H and W.

    PyTorch's own cannot be exported to ONNX with dynamic sizes; on export, the same means are computed by
    multiplication with binning matrices.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return F.adaptive_avg_pool2d(x_NCHW, self.side)
        height, width = x_NCHW.shape[-2:]
        rows_SH, columns_SW = self.bins(height, x_NCHW), self.bins(width, x_NCHW)
        return rows_SH @ x_NCHW @ columns_SW.transpose(0, 1)

    def bins(self, length: int, like: Tensor) -> Tensor:
        """Binning matrix, `(S, length)`: 1 / size of the bin inside it, else 0; bin s is floor(s·length/S) to
        ceil((s+1)·length/S)."""
        place_L = torch.arange(length, device=like.device)
        bin_S1 = torch.arange(self.side, device=like.device)[:, None]
        first_S1 = torch.div(bin_S1 * length, self.side, rounding_mode="floor")
        end_S1 = torch.div((bin_S1 + 1) * length + self.side - 1, self.side, rounding_mode="floor")
        inside_SL = ((place_L >= first_S1) & (place_L < end_S1)).to(like.dtype)
        return inside_SL / (end_S1 - first_S1).to(like.dtype)


def upsampled(x_NCHW: Tensor, like_NCHW: Tensor) -> Tensor:
    """Bilinear upsampling to the size of another map."""
    return resized(x_NCHW, (like_NCHW.shape[-2], like_NCHW.shape[-1]))


class _Scores(nn.Module):
    """Channel dropout, then a 1 × 1 convolution to class scores: `(N, C, H, W) -> (N, K, H, W)`."""

    conv_seg: nn.Conv2d

    def _build_scores(self, channels: int, num_classes: int, dropout: float) -> None:
        if num_classes < 2:
            raise ValueError(f"a segmentation has at least two classes, not {num_classes}")
        if not 0 <= dropout < 1:
            raise ValueError(f"task.head.dropout must lie in [0, 1), not {dropout}")
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def scores(self, x_NCHW: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x_NCHW))


class UPerHead(_Scores):
    """UPerNet's head: pyramid pooling on the last stage, then a feature pyramid over all four.

    Args:
        in_channels: C1 to C4.
        num_classes: K.
        channels: C.
        pooled_to: sides of the pooled maps.
        dropout: channel dropout before the scores.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        pooled_to: Sequence[int] = POOLED_TO,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, last = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(PooledTo(side), ConvNormAct(last, channels, 1)) for side in pooled_to
        )
        self.bottleneck = ConvNormAct(last + len(pooled_to) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNormAct(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = ConvNormAct(len(in_channels) * channels, channels, 3)
        self._build_scores(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four feature maps -> scores `(N, K, H, W)`."""
        *finer, last = features
        pooled = [upsampled(pool(last), last) for pool in self.psp_modules]
        top = self.bottleneck(torch.cat([last, *pooled], dim=1))
        maps = [*(lateral(x) for lateral, x in zip(self.lateral_convs, finer, strict=True)), top]
        for i in reversed(range(len(finer))):
            maps[i] = maps[i] + upsampled(maps[i + 1], maps[i])
        outs = [*(conv(x) for conv, x in zip(self.fpn_convs, maps[:-1], strict=True)), top]
        joined = torch.cat([outs[0], *(upsampled(x, outs[0]) for x in outs[1:])], dim=1)
        return self.scores(self.fpn_bottleneck(joined))


class FCNHead(_Scores):
    """A few 3 × 3 convolutions on one stage (Long et al. 2015, arXiv 1411.4038).

    Args:
        in_channels: C1 to C4.
        num_classes: K.
        channels: C.
        stage: index of the feature map used, from 0.
        convs: number of convolutions.
        dropout: channel dropout before the scores.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        stage: int = 2,
        convs: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= stage < len(in_channels) or convs < 1:
            raise ValueError(
                f"an FCN head reads a stage from 0 to {len(in_channels) - 1} with at least one convolution, not stage "
                f"{stage} with {convs}"
            )
        self.stage = stage
        widths = [in_channels[stage]] + [channels] * (convs - 1)
        self.convs = nn.Sequential(*(ConvNormAct(width, channels, 3) for width in widths))
        self._build_scores(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four feature maps -> scores `(N, K, …)` at the size of the one used."""
        return self.scores(self.convs(features[self.stage]))


class MLPHead(_Scores):
    """One linear layer per stage; the results are upsampled to the largest map, concatenated and fused by a 1 × 1
    convolution.

    Args:
        in_channels: C1 to C4.
        num_classes: K.
        channels: C.
        dropout: channel dropout before the scores.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, channels: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.fuse = ConvNormAct(len(in_channels) * channels, channels, 1)
        self._build_scores(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four feature maps -> scores `(N, K, H, W)`."""
        # A 1 × 1 convolution of concatenated, upsampled maps is the sum of its parts, each applied before upsampling.
        parts = self.fuse.conv.weight.split(self.fuse.conv.out_channels, dim=1)
        maps = [
            F.conv2d(linear(x), part) for linear, x, part in zip(self.linears, features, parts, strict=True)
        ]
        joined = maps[0] + sum(upsampled(x, maps[0]) for x in maps[1:])
        return self.scores(F.relu(self.fuse.bn(joined)))


class SegmentationHead(nn.Module):
    """A decode head with an optional auxiliary head for training.

    Args:
        decode_head: features -> scores.
        auxiliary_head: likewise, used in training only; `None`: no auxiliary head.
    """

    def __init__(self, decode_head: nn.Module, auxiliary_head: nn.Module | None = None) -> None:
        super().__init__()
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head

    def forward(
        self, features: Sequence[Tensor], views: int, context: dict[str, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Feature maps of N = B·V maps -> logits `(B, K, H, W)`; in training, with an auxiliary head, those of both."""
        logits = _of_samples(self.decode_head(features), views)
        if not self.training or self.auxiliary_head is None:
            return logits
        return logits, _of_samples(self.auxiliary_head(features), views)

    def load_official(self, left_out: Mapping[str, Tensor]) -> bool:
        """Loads the heads of an official checkpoint (`decode_head.*`, `auxiliary_head.*`).

        If the number of classes differs, the score layers are skipped. Returns whether the score layers were loaded.

        Raises:
            CheckpointError: a head of another type or width: tensors are missing, unexpected or of other shapes.
        """
        wanted = self.state_dict()
        given = {
            name: value
            for name, value in left_out.items()
            if name.startswith(("decode_head.", "auxiliary_head."))
        }
        if not given:
            return False
        if self.auxiliary_head is None:  # it is used in training only
            given = {name: value for name, value in given.items() if name.startswith("decode_head.")}
        same = all(
            name not in given or given[name].shape == value.shape
            for name, value in wanted.items()
            if ".conv_seg." in name
        )
        fitting = {name: value for name, value in given.items() if same or ".conv_seg." not in name}
        expected = {name for name in wanted if same or ".conv_seg." not in name}
        wrong = sorted(
            name for name in expected ^ set(fitting) if not name.endswith("num_batches_tracked")
        ) + sorted(name for name in expected & set(fitting) if fitting[name].shape != wanted[name].shape)
        if wrong:
            raise CheckpointError(
                f"the checkpoint's head is another than this: {', '.join(wrong[:3])}"
                f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''} differ: say its task/head= and width"
            )
        self.load_state_dict(fitting, strict=False)
        return same


def _of_samples(scores_NKHW: Tensor, views: int) -> Tensor:
    """Averages the scores of the V maps of a sample."""
    return scores_NKHW if views == 1 else scores_NKHW.unflatten(0, (-1, views)).mean(dim=1)


class UPerNetHead(SegmentationHead):
    """`UPerHead` with an auxiliary `FCNHead` in training: `(B, K, H, W)` at the first stage's stride.

    Args:
        in_channels: C1 to C4, from the backbone.
        num_classes: K, from the data.
        channels: of `UPerHead`.
        dropout: of both.
        auxiliary_channels: of `FCNHead`; 0: no auxiliary head.
        auxiliary_stage: index of the feature map used by `FCNHead`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        dropout: float = 0.1,
        auxiliary_channels: int = 256,
        auxiliary_stage: int = 2,
    ) -> None:
        super().__init__(
            UPerHead(in_channels, num_classes, channels, dropout=dropout),
            FCNHead(in_channels, num_classes, auxiliary_channels, auxiliary_stage, dropout=dropout)
            if auxiliary_channels
            else None,
        )


class FCNNetHead(SegmentationHead):
    """`FCNHead` without an auxiliary head.

    Args:
        in_channels: C1 to C4, from the backbone.
        num_classes: K, from the data.
        channels, stage, convs, dropout: of `FCNHead`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        stage: int = 3,
        convs: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(FCNHead(in_channels, num_classes, channels, stage, convs, dropout))


class MLPNetHead(SegmentationHead):
    """`MLPHead` without an auxiliary head.

    Args:
        in_channels: C1 to C4, from the backbone.
        num_classes: K, from the data.
        channels, dropout: of `MLPHead`.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, channels: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__(MLPHead(in_channels, num_classes, channels, dropout))
