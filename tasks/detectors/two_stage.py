"""Two-stage and cascaded detectors: region proposals, then classification and box refinement in one or more stages.

Cascade Mask R-CNN (Cai & Vasconcelos 2018, arXiv 1712.00726) as configured in the official detection recipes, with the
parameter names of their checkpoints; with a single stage, Faster and Mask R-CNN (arXiv 1506.01497, 1703.06870).

Shapes: B images, R regions of all images, P regions per image, K classes, D detections, M side of a mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from backbone import CheckpointError
from tasks.detectors import box_head, mask_head
from tasks.detectors.answers import chosen
from tasks.detectors.box_head import BoxHead, BoxHeadSettings, likeliest
from tasks.detectors.boxes import BoxCoding, clipped, has_area
from tasks.detectors.fpn import FPN, pyramid_strides
from tasks.detectors.head import DetectionHead, Outputs, Targets, TestSettings, without_crowds
from tasks.detectors.mask_head import MaskHead, MaskHeadSettings, mask_targets
from tasks.detectors.roi import pooled, with_picture
from tasks.detectors.rpn import RPN, RPNSettings
from tasks.detectors.sampling import Regions, regions_of

MASKS = ("auto", "true", "false")
OFFICIAL_PARTS = ("neck.", "rpn_head.", "roi_head.")
OF_CLASSES = (".fc_cls.", ".fc_reg.", ".conv_logits.")


@dataclass(frozen=True)
class Stage:
    """Settings of one refinement stage.

    Args:
        iou: minimum IoU of a positive region.
        weight: weight of the stage's losses.
        stds: standard deviations of its deltas, see `BoxCoding`.
    """

    iou: float = 0.5
    weight: float = 1.0
    stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2)

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1 or self.weight < 0:
            raise ValueError("task.head.stages: iou lies in (0, 1], and weight is at least 0")


class RoIHead(nn.Module):
    """Container of the box and mask heads, one of each per stage, under their official parameter names."""

    def __init__(self, boxes: Sequence[BoxHead], masks: Sequence[MaskHead]) -> None:
        super().__init__()
        self.bbox_head = nn.ModuleList(boxes)
        if masks:
            self.mask_head = nn.ModuleList(masks)


class TwoStageHead(DetectionHead):
    """FPN, RPN, and one or more stages of box and mask heads on RoIAlign features.

    Args:
        in_channels, strides: of the backbone's feature maps.
        num_classes: K.
        data_have_masks: whether the data set has masks.
        masks: whether to add mask heads: `true`, `false`, or `auto` (if the data set has masks).
        channels: of the pyramid and of all following convolutions.
        samples: number of regions sampled per image to train a stage.
        positive_part: maximum fraction of positive regions among them.
        stages: see `Stage`, from first to last.
        rpn, box, mask, test: see `RPNSettings`, `BoxHeadSettings`, `MaskHeadSettings`, `TestSettings`.

    Raises:
        ValueError: invalid settings, or `masks=true` on data without masks.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        data_have_masks: bool = False,
        masks: str | bool = "auto",
        channels: int = 256,
        samples: int = 512,
        positive_part: float = 0.25,
        stages: Sequence[Annotated[Mapping[str, Any], Stage]] = ({},),
        rpn: Annotated[Mapping[str, Any], RPNSettings] | None = None,
        box: Annotated[Mapping[str, Any], BoxHeadSettings] | None = None,
        mask: Annotated[Mapping[str, Any], MaskHeadSettings] | None = None,
        test: Annotated[Mapping[str, Any], TestSettings] | None = None,
    ) -> None:
        super().__init__(num_classes, strides)
        wanted = str(masks).lower()
        if wanted not in MASKS:
            raise ValueError(f"task.head.masks takes {', '.join(MASKS)}, not {masks}")
        if wanted == "true" and not data_have_masks:
            raise ValueError(
                "task.head.masks=true needs data with masks, and these have none: take task.head.masks=auto, or "
                "another task/head= (faster_rcnn, fcos)"
            )
        if not stages or samples < 1 or not 0 < positive_part <= 1 or channels < 1:
            raise ValueError(
                "task.head: there is at least one of stages, samples and channels, and positive_part lies in (0, 1]"
            )
        self.has_masks = wanted != "false" and data_have_masks
        self.samples = samples
        self.positive_part = positive_part
        self.stages = [Stage(**dict(stage)) for stage in stages]
        self.test = TestSettings(**dict(test or {}))
        of_boxes, of_masks = BoxHeadSettings(**dict(box or {})), MaskHeadSettings(**dict(mask or {}))
        self.neck = FPN(in_channels, channels)
        self.rpn_head = RPN(channels, pyramid_strides(strides, 1), RPNSettings(**dict(rpn or {})))
        self.roi_head = RoIHead(
            [BoxHead(channels, num_classes, BoxCoding(stage.stds), of_boxes) for stage in self.stages],
            [MaskHead(channels, num_classes, of_masks) for _ in self.stages] if self.has_masks else [],
        )

    # -- maps ------------------------------------------------------------------------------------------------------

    def outputs(self, features: Sequence[Tensor]) -> Outputs:
        """`pyramid`, and the RPN's `scores` and `deltas` per level."""
        pyramid = self.neck(features)
        scores, deltas = self.rpn_head(pyramid)
        return {"pyramid": pyramid, "scores": scores, "deltas": deltas}

    def _proposals(self, outputs: Outputs, sizes_B2: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """As `RPN.proposals`; those of evaluation are kept in `outputs`, for loss and detections alike."""
        if training:
            return self.rpn_head.proposals(outputs["scores"], outputs["deltas"], sizes_B2, True)
        kept = outputs.get("proposals")
        if kept is None or not kept[0].equal(sizes_B2):
            found = self.rpn_head.proposals(outputs["scores"], outputs["deltas"], sizes_B2, False)
            kept = outputs["proposals"] = [sizes_B2, *found]
        return kept[1], kept[2]

    def _read(self, outputs: Outputs, regions_R5: Tensor, size: int) -> Tensor:
        """RoIAlign features of regions; the pyramid's last level is used by the RPN only."""
        return pooled(outputs["pyramid"][:-1], self.strides, regions_R5, size)

    def _box_head(self, stage: int) -> BoxHead:
        head = self.roi_head.bbox_head[stage]
        assert isinstance(head, BoxHead)
        return head

    def _mask_head(self, stage: int) -> MaskHead:
        head = self.roi_head.mask_head[stage]
        assert isinstance(head, MaskHead)
        return head

    # -- training ----------------------------------------------------------------------------------------------------

    def losses(self, outputs: Outputs, targets: Targets, sizes_B2: Tensor) -> dict[str, Tensor]:
        """The RPN's losses, and `box`, `class` and `mask` of each stage, e.g. `box_0`.

        In evaluation the same regions are sampled each time.
        """
        targets = without_crowds(targets)
        scores, deltas = outputs["scores"], outputs["deltas"]
        generator = None if self.training else torch.Generator(scores[0].device).manual_seed(0)
        losses = self.rpn_head.losses(scores, deltas, targets, sizes_B2, generator)
        boxes_BP4, there_BP = self._proposals(outputs, sizes_B2, self.training)
        boxes = [boxes[there] for boxes, there in zip(boxes_BP4, there_BP, strict=True)]
        for number, stage in enumerate(self.stages):
            regions = [
                regions_of(
                    _or_whole(own, size_2),
                    target,
                    self.num_classes,
                    stage.iou,
                    self.samples,
                    self.positive_part,
                    generator,
                )
                for own, target, size_2 in zip(boxes, targets, sizes_B2, strict=True)
            ]
            of_stage, deltas_R4K, logits_RK = self._box_losses(number, outputs, regions, targets)
            if self.has_masks:
                of_stage["mask"] = self._mask_loss(number, outputs, regions, targets)
            losses |= {f"{name}_{number}": stage.weight * value for name, value in of_stage.items()}
            if number + 1 < len(self.stages):
                boxes = self._refined(number, regions, logits_RK, deltas_R4K, sizes_B2)
        return losses

    def _box_losses(
        self, number: int, outputs: Outputs, regions: Sequence[Regions], targets: Targets
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        head = self._box_head(number)
        regions_R5 = with_picture([own.boxes for own in regions])
        logits_RK, deltas_R4K = head(self._read(outputs, regions_R5, head.settings.size))
        labels_R = torch.cat([own.labels for own in regions])
        true_P4 = torch.cat(
            [target["boxes"][own.objects] for own, target in zip(regions, targets, strict=True)]
        )
        objects_P = torch.nonzero(labels_R < self.num_classes)[:, 0]
        losses = head.losses(logits_RK, deltas_R4K, regions_R5[:, 1:], labels_R, true_P4, objects_P)
        return losses, deltas_R4K, logits_RK

    def _mask_loss(
        self, number: int, outputs: Outputs, regions: Sequence[Regions], targets: Targets
    ) -> Tensor:
        head = self._mask_head(number)
        boxes = [own.boxes[: len(own.objects)] for own in regions]
        logits_RKMM = head(self._read(outputs, with_picture(boxes), head.settings.size))
        labels_R = torch.cat([own.labels[: len(own.objects)] for own in regions])
        wanted_RMM = torch.cat(
            [
                mask_targets(target["masks"], own.objects, its, 2 * head.settings.size)
                for own, its, target in zip(regions, boxes, targets, strict=True)
            ]
        )
        return head.loss(logits_RKMM, labels_R, wanted_RMM)

    @torch.no_grad()
    def _refined(
        self,
        number: int,
        regions: Sequence[Regions],
        logits_RK: Tensor,
        deltas_R4K: Tensor,
        sizes_B2: Tensor,
    ) -> list[Tensor]:
        """The regions of the next stage, refined by the deltas of their true class, or for background of the predicted
        class; ground-truth boxes are dropped, since the next stage adds them again."""
        labels_R = torch.cat([own.labels for own in regions])
        labels_R = torch.where(labels_R == self.num_classes, likeliest(logits_RK), labels_R)
        moved_R4 = self._box_head(number).refined(
            deltas_R4K, torch.cat([own.boxes for own in regions]), labels_R
        )
        found = []
        for moved, own, size_2 in zip(
            moved_R4.split([len(own.boxes) for own in regions]), regions, sizes_B2, strict=True
        ):
            moved = clipped(moved[~own.are_truth], size_2)
            found.append(moved[has_area(moved)])
        return found

    # -- detections --------------------------------------------------------------------------------------------------

    def detect(self, outputs: Outputs, sizes_B2: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Detections `(B, D, 6)`, and with mask heads their mask probabilities `(B, D, M, M)`.

        Each stage refines the boxes with the deltas of the most likely class; class logits are averaged over stages,
        boxes are those of the last stage.
        """
        boxes_BP4, there_BP = self._proposals(outputs, sizes_B2, False)
        batch, each = there_BP.shape
        each_size_B12 = sizes_B2[:, None]
        picture_BP1 = torch.arange(batch, device=boxes_BP4.device)[:, None, None].expand(batch, each, 1)
        logits: list[Tensor] = []
        for number in range(len(self.stages)):
            head = self._box_head(number)
            regions_R5 = torch.cat([picture_BP1.to(boxes_BP4.dtype), boxes_BP4], dim=-1).reshape(-1, 5)
            logits_RK, deltas_R4K = head(self._read(outputs, regions_R5, head.settings.size))
            logits.append(logits_RK)
            if number + 1 < len(self.stages):
                moved_R4 = head.refined(deltas_R4K, regions_R5[:, 1:], likeliest(logits_RK))
                boxes_BP4 = clipped(moved_R4.reshape(batch, each, 4), each_size_B12)
        scores_RK = box_head.mean_of_stages(logits).softmax(dim=1)[:, :-1]
        scores_BPK = scores_RK.reshape(batch, each, -1) * there_BP[..., None]
        deltas_BPK4 = deltas_R4K.reshape(batch, each, self.num_classes, 4)
        found_BPK4 = clipped(
            head.coding.decode(deltas_BPK4, boxes_BP4[:, :, None]), each_size_B12[:, :, None]
        )
        found_BD6 = chosen(found_BPK4, scores_BPK, self.test)
        return (found_BD6, self._masks(outputs, found_BD6)) if self.has_masks else found_BD6

    def _masks(self, outputs: Outputs, found_BD6: Tensor) -> Tensor:
        batch, each = found_BD6.shape[:2]
        picture_BD1 = torch.arange(batch, device=found_BD6.device)[:, None, None].expand(batch, each, 1)
        regions_R5 = torch.cat([picture_BD1.to(found_BD6.dtype), found_BD6[..., :4]], dim=-1).reshape(-1, 5)
        labels_R = found_BD6[..., 5].reshape(-1).long()
        logits = []
        for number in range(len(self.stages)):
            head = self._mask_head(number)
            logits_RKMM = head(self._read(outputs, regions_R5, head.settings.size))
            logits.append(mask_head.of_class(logits_RKMM, labels_R))
        side = logits[0].shape[-1]
        probs_BDMM = mask_head.mean_of_stages(logits).reshape(batch, each, side, side)
        return probs_BDMM * (found_BD6[..., 4] > 0)[..., None, None]

    # -- official weights --------------------------------------------------------------------------------------------

    def load_official(self, left_out: Mapping[str, Tensor]) -> bool:
        """Loads the heads of an official checkpoint (`neck.*`, `rpn_head.*`, `roi_head.*`).

        If the number of classes differs, the class-specific layers are skipped; without mask heads, the checkpoint's
        mask heads are ignored. Returns whether the class-specific layers were loaded.

        Raises:
            CheckpointError: a head of another type or width: tensors are missing, unexpected or of other shapes.
        """
        given = {name: value for name, value in left_out.items() if name.startswith(OFFICIAL_PARTS)}
        if not given:
            return False
        if not self.has_masks:
            given = {
                name: value for name, value in given.items() if not name.startswith("roi_head.mask_head.")
            }
        wanted = self.state_dict()
        of_classes = {name for name in wanted if any(part in name for part in OF_CLASSES)}
        same = all(name not in given or given[name].shape == wanted[name].shape for name in of_classes)
        left = set() if same else of_classes
        fitting = {name: value for name, value in given.items() if name not in left}
        expected = set(wanted) - left
        wrong = sorted(name for name in expected ^ set(fitting) if not name.endswith("num_batches_tracked"))
        wrong += sorted(name for name in expected & set(fitting) if fitting[name].shape != wanted[name].shape)
        if wrong:
            raise CheckpointError(
                f"the checkpoint's head is another than this: {', '.join(wrong[:3])}"
                f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''} differ: say its task/head= and width"
            )
        self.load_state_dict(fitting, strict=False)
        return same


def _or_whole(boxes_P4: Tensor, size_2: Tensor) -> Tensor:
    """The proposals, or the whole image if there are none: batch norm layers need at least one region."""
    if len(boxes_P4):
        return boxes_P4
    height, width = size_2.tolist()
    return boxes_P4.new_tensor([[0.0, 0.0, width, height]])
