"""Box head: classification and box regression of regions, by convolutions followed by linear layers.

Shapes: R regions, C channels, S side of the pooled features, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from tasks.detectors.boxes import BoxCoding
from tasks.detectors.layers import begin
from tasks.segmentation_heads import ConvNormAct

LOSSES = ("giou", "smooth_l1")


@dataclass(frozen=True)
class BoxHeadSettings:
    """Settings shared by the box heads of all stages.

    Args:
        size: S, the RoIAlign output size.
        convs: number of 3 × 3 convolutions with batch norm and ReLU.
        linears: number of linear layers followed by ReLU.
        width: of the linear layers.
        loss: `giou`, 1 - GIoU of decoded boxes, or `smooth_l1` of deltas; normalised by the number of sampled regions.
        loss_weight: weight of the box loss; the classification loss has weight 1.
        beta: the smooth L1 threshold between its quadratic and its linear part.
    """

    size: int = 7
    convs: int = 4
    linears: int = 1
    width: int = 1024
    loss: str = "giou"
    loss_weight: float = 10.0
    beta: float = 1 / 9

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"task.head.box.loss takes {' or '.join(LOSSES)}, not {self.loss}")
        if (
            self.convs < 0
            or min(self.size, self.linears, self.width) < 1
            or self.loss_weight < 0
            or self.beta <= 0
        ):
            raise ValueError(
                "task.head.box: size, linears and width are at least 1, convs and loss_weight at least 0"
            )


class BoxHead(nn.Module):
    """`(R, C, S, S)` region features -> class logits `(R, K + 1)`, background last, and deltas `(R, 4 · K)`.

    Parameter names are those of mmdetection's `ConvFCBBoxHead`.

    Args:
        channels: C.
        num_classes: K.
        coding: encodes and decodes the deltas.
        settings: see `BoxHeadSettings`.
    """

    def __init__(self, channels: int, num_classes: int, coding: BoxCoding, settings: BoxHeadSettings) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.coding = coding
        self.settings = settings
        self.shared_convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in range(settings.convs))
        widths = [channels * settings.size**2] + [settings.width] * (settings.linears - 1)
        self.shared_fcs = nn.ModuleList(nn.Linear(width, settings.width) for width in widths)
        self.fc_cls = nn.Linear(settings.width, num_classes + 1)
        self.fc_reg = nn.Linear(settings.width, 4 * num_classes)
        for layer in self.shared_fcs:
            assert isinstance(layer, nn.Linear)
            begin(layer, "xavier")
        begin(self.fc_cls, "normal", 0.01)
        begin(self.fc_reg, "normal", 0.001)

    def forward(self, x_RCSS: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.shared_convs:
            x_RCSS = conv(x_RCSS)
        x_RD = x_RCSS.flatten(1)
        for linear in self.shared_fcs:
            x_RD = F.relu(linear(x_RD))
        return self.fc_cls(x_RD).float(), self.fc_reg(x_RD).float()

    def losses(
        self,
        logits_RK: Tensor,
        deltas_R4K: Tensor,
        regions_R4: Tensor,
        labels_R: Tensor,
        true_P4: Tensor,
        objects_P: Tensor,
    ) -> dict[str, Tensor]:
        """Classification (cross-entropy) loss of all regions, and box loss of the positive ones.

        Args:
            logits_RK, deltas_R4K: returned by `forward`.
            regions_R4: the regions' boxes.
            labels_R: class of each region; K for background.
            true_P4: ground-truth box of each positive region.
            objects_P: indices of the positive regions.
        """
        deltas_P4 = self.of_class(deltas_R4K[objects_P], labels_R[objects_P])
        references_P4 = regions_R4[objects_P]
        if self.settings.loss == "giou":
            decoded_P4 = self.coding.decode(deltas_P4, references_P4)
            off = generalized_box_iou_loss(decoded_P4, true_P4, reduction="sum")
        else:
            wanted_P4 = self.coding.encode(true_P4, references_P4)
            off = F.smooth_l1_loss(deltas_P4, wanted_P4, reduction="sum", beta=self.settings.beta)
        return {
            "class": F.cross_entropy(logits_RK, labels_R, reduction="sum") / max(len(labels_R), 1),
            "box": self.settings.loss_weight * off / max(len(labels_R), 1),
        }

    def of_class(self, deltas_R4K: Tensor, labels_R: Tensor) -> Tensor:
        """The deltas of one class for each region, `(R, 4)`."""
        each_RK4 = deltas_R4K.view(-1, self.num_classes, 4)
        return each_RK4.gather(1, labels_R[:, None, None].expand(-1, 1, 4))[:, 0]

    def refined(self, deltas_R4K: Tensor, regions_R4: Tensor, labels_R: Tensor) -> Tensor:
        """The regions refined by the deltas of their class, `(R, 4)`."""
        return self.coding.decode(self.of_class(deltas_R4K, labels_R), regions_R4)


def likeliest(logits_RK: Tensor) -> Tensor:
    """The most likely class of each region, excluding background."""
    return logits_RK[:, :-1].argmax(dim=1)


def mean_of_stages(logits: Sequence[Tensor]) -> Tensor:
    """The mean of the logits of all stages, before softmax."""
    return torch.stack(list(logits)).mean(dim=0)
