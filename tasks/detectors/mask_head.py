"""Mask head of Mask R-CNN (He et al. 2017, arXiv 1703.06870).

Shapes: R regions, C channels, S side of the pooled features, M = 2 · S side of a mask, K classes, G objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from tasks.detectors.layers import NamedConv, begin


@dataclass(frozen=True)
class MaskHeadSettings:
    """Settings shared by the mask heads of all stages.

    Args:
        size: S, the RoIAlign output size.
        convs: number of 3 × 3 convolutions with ReLU.
    """

    size: int = 14
    convs: int = 4

    def __post_init__(self) -> None:
        if self.size < 1 or self.convs < 0:
            raise ValueError("task.head.mask: size is at least 1 and convs at least 0")


class MaskHead(nn.Module):
    """`(R, C, S, S)` region features -> mask logits `(R, K, M, M)`; parameter names are mmdetection's.

    Args:
        channels: C.
        num_classes: K.
        settings: see `MaskHeadSettings`.
    """

    def __init__(self, channels: int, num_classes: int, settings: MaskHeadSettings) -> None:
        super().__init__()
        self.settings = settings
        self.convs = nn.ModuleList(NamedConv(channels, channels, 3, relu=True) for _ in range(settings.convs))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                begin(layer, "kaiming")

    def forward(self, x_RCSS: Tensor) -> Tensor:
        for conv in self.convs:
            x_RCSS = conv(x_RCSS)
        logits: Tensor = self.conv_logits(F.relu(self.upsample(x_RCSS))).float()
        return logits

    @staticmethod
    def loss(logits_RKMM: Tensor, labels_R: Tensor, wanted_RMM: Tensor) -> Tensor:
        """Mean binary cross-entropy of the mask of each region's true class; 0 without regions."""
        if not len(labels_R):
            return 0 * logits_RKMM.sum()
        return F.binary_cross_entropy_with_logits(of_class(logits_RKMM, labels_R), wanted_RMM)


def of_class(logits_RKMM: Tensor, labels_R: Tensor) -> Tensor:
    """The mask of one class for each region, `(R, M, M)`."""
    side = logits_RKMM.shape[-1]
    return logits_RKMM.gather(1, labels_R[:, None, None, None].expand(-1, 1, side, side))[:, 0]


def mask_targets(masks_GHW: Tensor, objects_R: Tensor, boxes_R4: Tensor, side: int) -> Tensor:
    """Mask targets of regions, `(R, side, side)` of 0 and 1: 1 where the object covers at least half of a cell.

    Args:
        masks_GHW: masks of the objects of an image, bool.
        objects_R: index of the object matched to each region.
        boxes_R4: the regions' boxes.
        side: M.
    """
    if not len(objects_R):
        return boxes_R4.new_zeros((0, side, side))
    height, width = masks_GHW.shape[-2:]
    most = boxes_R4.new_tensor([width, height, width, height])
    regions_R5 = torch.cat([objects_R[:, None].to(boxes_R4), boxes_R4.clamp(min=0).minimum(most)], dim=1)
    covered = roi_align(masks_GHW[:, None].to(boxes_R4), regions_R5, side, 1.0, 0, True)
    return (covered[:, 0] >= 0.5).to(boxes_R4)


def mean_of_stages(logits: Sequence[Tensor]) -> Tensor:
    """The mean of the mask probabilities of all stages."""
    return torch.stack([each.sigmoid() for each in logits]).mean(dim=0)


def pasted(probs_NMM: Tensor, boxes_N4: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Pastes the masks of boxes into full-size masks of the image, `(N, H, W)` bool.

    Probabilities are interpolated bilinearly at pixel centres, as in mmdetection.

    Args:
        probs_NMM: one mask per box.
        boxes_N4: in image pixels.
        size: H and W.
        threshold: minimum probability of a mask pixel.
    """
    height, width = size
    masks_NHW = torch.zeros((len(boxes_N4), height, width), dtype=torch.bool, device=probs_NMM.device)
    for mask_HW, probs_MM, (x1, y1, x2, y2) in zip(masks_NHW, probs_NMM, boxes_N4.tolist(), strict=True):
        if not (x2 > x1 and y2 > y1):  # also skips NaN
            continue
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, width), min(int(y2) + 2, height)
        if right <= left or bottom <= top:
            continue
        x_w = (torch.arange(left, right, device=probs_NMM.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y_h = (torch.arange(top, bottom, device=probs_NMM.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid_hw2 = torch.stack(torch.broadcast_tensors(x_w[None], y_h[:, None]), dim=-1)
        found = F.grid_sample(probs_MM[None, None], grid_hw2[None].to(probs_MM), align_corners=False)
        mask_HW[top:bottom, left:right] = found[0, 0] >= threshold
    return masks_NHW
