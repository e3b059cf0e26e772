"""FCOS (Tian et al. 2019, arXiv 1904.01355): each pyramid location predicts a class and the distances to a box's sides.

Shapes: B images, N locations of all levels, G objects, P positive locations, K classes, D detections.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from tasks.detectors.answers import chosen
from tasks.detectors.boxes import clipped
from tasks.detectors.fpn import FPN, pyramid_strides
from tasks.detectors.head import DetectionHead, Outputs, Targets, TestSettings, without_crowds
from tasks.detectors.layers import begin

RARE = 0.01  # prior probability of each class at initialisation
MOST_SIDES = 8  # upper bound of a level's regression range, in strides; the lower bound is half of it


class FCOSHead(DetectionHead):
    """FPN, then two convolutional towers shared by all levels: one for classes, one for the distances to the four sides
    and the centre-ness.

    Args:
        in_channels, strides: of the backbone's feature maps.
        num_classes: K.
        data_have_masks: ignored; FCOS predicts boxes only.
        channels: of the pyramid and the towers.
        convs: number of convolutions per tower, each with group norm and ReLU.
        first: index of the first feature map used, from 0.
        extra_levels: number of pyramid levels beyond the backbone's.
        radius: centre sampling radius in strides: locations closer to an object's centre may be positive.
        alpha, gamma: of the focal loss.
        test: see `TestSettings`; a score is the square root of probability times centre-ness.

    Raises:
        ValueError: invalid settings.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        data_have_masks: bool = False,
        channels: int = 64,
        convs: int = 2,
        first: int = 0,
        extra_levels: int = 1,
        radius: float = 1.5,
        alpha: float = 0.25,
        gamma: float = 2.0,
        test: Annotated[Mapping[str, Any], TestSettings] | None = None,
    ) -> None:
        if not 0 <= first < len(in_channels) or extra_levels < 0:
            raise ValueError(
                f"task.head.first is from 0 to {len(in_channels) - 1}, extra_levels at least 0, not {first} and "
                f"{extra_levels}"
            )
        if channels < 8 or channels % 8 or convs < 0 or radius <= 0 or not 0 <= alpha <= 1 or gamma < 0:
            raise ValueError(
                "task.head: channels are a multiple of 8, convs and gamma at least 0, radius above 0, alpha in [0, 1]"
            )
        super().__init__(num_classes, pyramid_strides(strides[first:], extra_levels))
        self.first = first
        self.finest_stride = strides[0]
        self.radius = radius
        self.alpha = alpha
        self.gamma = gamma
        self.test = TestSettings(**dict(test or {}))
        self.neck = FPN(in_channels[first:], channels, extra_levels)
        self.class_tower = _tower(channels, convs)
        self.box_tower = _tower(channels, convs)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.sides = nn.Conv2d(channels, 4, 3, padding=1)
        self.centreness = nn.Conv2d(channels, 1, 3, padding=1)
        for layer in (self.classes, self.sides, self.centreness):
            begin(layer, "normal")
        nn.init.constant_(self.classes.bias, -math.log((1 - RARE) / RARE))  # type: ignore[arg-type]
        self.scales = nn.Parameter(torch.ones(len(self.strides)))

    def sizes(self, finest_BCHW: Tensor, context: dict[str, Tensor] | None) -> Tensor:
        if context and "size" in context:
            return context["size"]
        one_2 = torch.tensor(
            [s * self.finest_stride for s in finest_BCHW.shape[-2:]], device=finest_BCHW.device
        )
        return one_2.expand(finest_BCHW.shape[0], 2)

    def outputs(self, features: Sequence[Tensor]) -> Outputs:
        """Per level: `classes` (B, K, H, W), logits; `sides` (B, 4, H, W), distances in strides to the left, top, right
        and bottom; `centreness` (B, 1, H, W), logits."""
        found: Outputs = {"classes": [], "sides": [], "centreness": []}
        for number, x_BCHW in enumerate(self.neck(features[self.first :])):
            of_class, of_box = self.class_tower(x_BCHW), self.box_tower(x_BCHW)
            found["classes"].append(self.classes(of_class))
            found["sides"].append(F.softplus(self.scales[number] * self.sides(of_box).float()))
            found["centreness"].append(self.centreness(of_box))
        return found

    # -- locations -------------------------------------------------------------------------------------------------

    def places(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """The image coordinates of each location, `(N, 2)` x and y in pixels, and its level's stride, `(N,)`."""
        points, strides = [], []
        for x_BCHW, stride in zip(outputs["classes"], self.strides, strict=True):
            height, width = x_BCHW.shape[-2:]
            y_H = (torch.arange(height, device=x_BCHW.device) + 0.5) * stride
            x_W = (torch.arange(width, device=x_BCHW.device) + 0.5) * stride
            grid = torch.stack([x_W.expand(height, width), y_H[:, None].expand(height, width)], dim=-1)
            points.append(grid.reshape(-1, 2))
            strides.append(x_W.new_full((height * width,), stride))
        return torch.cat(points), torch.cat(strides)

    def assigned(self, points_N2: Tensor, strides_N: Tensor, boxes_G4: Tensor) -> Tensor:
        """Index of the object assigned to each location, `(N,)`, or -1: the smallest one whose box contains it, whose
        centre is within the radius, and whose farthest side is within the level's regression range."""
        if not len(boxes_G4):
            return torch.full((len(points_N2),), -1, device=points_N2.device)
        left_top_NG2 = points_N2[:, None] - boxes_G4[:, :2]
        right_bottom_NG2 = boxes_G4[:, 2:] - points_N2[:, None]
        sides_NG4 = torch.cat([left_top_NG2, right_bottom_NG2], dim=-1)
        off_NG2 = (points_N2[:, None] - (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2).abs()
        near_NG = off_NG2.amax(dim=-1) < self.radius * strides_N[:, None]
        farthest_NG = sides_NG4.amax(dim=-1)
        least_N = torch.where(strides_N == self.strides[0], 0, strides_N * MOST_SIDES / 2)
        most_N = torch.where(strides_N == self.strides[-1], torch.inf, strides_N * MOST_SIDES)
        of_level_NG = (farthest_NG > least_N[:, None]) & (farthest_NG <= most_N[:, None])
        area_G = (boxes_G4[:, 2:] - boxes_G4[:, :2]).prod(dim=1)
        its_NG = (sides_NG4.amin(dim=-1) > 0) & near_NG & of_level_NG
        least_area_N, object_N = torch.where(its_NG, area_G, torch.inf).min(dim=1)
        return torch.where(least_area_N < torch.inf, object_N, -1)

    def _flat(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """All levels concatenated: class logits (B, N, K), distances in pixels (B, N, 4), centre-ness logits (B, N)."""

        def joined(maps: Sequence[Tensor]) -> Tensor:
            return torch.cat([x.float().flatten(2).transpose(1, 2) for x in maps], dim=1)

        in_pixels = [x * stride for x, stride in zip(outputs["sides"], self.strides, strict=True)]
        return joined(outputs["classes"]), joined(in_pixels), joined(outputs["centreness"])[..., 0]

    # -- losses ------------------------------------------------------------------------------------------------------

    def losses(self, outputs: Outputs, targets: Targets, sizes_B2: Tensor) -> dict[str, Tensor]:
        """`class` (focal), `box` (1 - GIoU, weighted by the true centre-ness) and `centreness` (binary cross-entropy),
        each normalised over the positive locations of all images."""
        logits_BNK, sides_BN4, centre_BN = self._flat(outputs)
        points_N2, strides_N = self.places(outputs)
        true_BNK = torch.zeros_like(logits_BNK)
        found, wanted, centres, points = [], [], [], []
        for place, target in enumerate(without_crowds(targets)):
            object_N = self.assigned(points_N2, strides_N, target["boxes"])
            at_P = torch.nonzero(object_N >= 0)[:, 0]
            its_P = object_N[at_P]
            true_BNK[place, at_P, target["labels"][its_P]] = 1
            found.append(around(points_N2[at_P], sides_BN4[place, at_P]))
            wanted.append(target["boxes"][its_P])
            centres.append(centre_BN[place, at_P])
            points.append(points_N2[at_P])
        found_P4, wanted_P4, centre_P = torch.cat(found), torch.cat(wanted), torch.cat(centres)
        true_P = true_centreness(torch.cat(points), wanted_P4)
        number = max(len(true_P), 1)
        off_P = generalized_box_iou_loss(found_P4, wanted_P4)
        return {
            "class": sigmoid_focal_loss(logits_BNK, true_BNK, self.alpha, self.gamma, "sum") / number,
            "box": (off_P * true_P).sum() / true_P.sum().clamp(min=1e-6),
            "centreness": F.binary_cross_entropy_with_logits(centre_P, true_P, reduction="sum") / number,
        }

    def image_weight(self, outputs: Outputs, target: dict[str, Tensor]) -> Tensor:
        """The number of positive locations, at least 1."""
        (single,) = without_crowds([target])
        object_N = self.assigned(*self.places(outputs), single["boxes"])
        return (object_N >= 0).sum().clamp(min=1)

    # -- detections --------------------------------------------------------------------------------------------------

    def detect(self, outputs: Outputs, sizes_B2: Tensor) -> Tensor:
        """Detections `(B, D, 6)`."""
        logits_BNK, sides_BN4, centre_BN = self._flat(outputs)
        points_N2, _ = self.places(outputs)
        boxes_BN4 = clipped(around(points_N2, sides_BN4), sizes_B2[:, None])
        scores_BNK = (logits_BNK.sigmoid() * centre_BN.sigmoid()[..., None]).sqrt()
        return chosen(boxes_BN4, scores_BNK, self.test)


def _tower(channels: int, convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        begin(conv, "kaiming")
        layers += [conv, nn.GroupNorm(channels // 8, channels), nn.ReLU()]
    return nn.Sequential(*layers)


def around(points: Tensor, sides: Tensor) -> Tensor:
    """Boxes `(…, 4)` from points (…, 2) and distances to the left, top, right and bottom (…, 4)."""
    return torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=-1)


def true_centreness(points_P2: Tensor, boxes_P4: Tensor) -> Tensor:
    """Centre-ness targets, `(P,)`: 1 at a box's centre, 0 at its edge; the square root of the product of the ratios of
    opposite distances (equation 3)."""
    before_P2, behind_P2 = points_P2 - boxes_P4[:, :2], boxes_P4[:, 2:] - points_P2
    ratio_P2 = torch.minimum(before_P2, behind_P2) / torch.maximum(before_P2, behind_P2)
    return ratio_P2.clamp(min=0).prod(dim=1).sqrt()
