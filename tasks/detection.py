"""Object detection, and instance segmentation on data with masks.

Shapes: B batch, b images of one size, K classes, D detections per image, n objects, H and W of the image in pixels,
h and w of the network's input.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from backbone.protocol import Backbone, strides_of, widths_of
from modalities.tensor_info import TensorInfo
from tasks.bilinear import fitted, resized
from tasks.coco_results import in_cocos_files
from tasks.datasets.batch import Batch
from tasks.dense_inference import up_to
from tasks.detection_drawing import (
    Objects,
    Picture,
    draw_ap,
    draw_overlay,
    draw_pictures,
)
from tasks.detection_metrics import DetectionMetrics
from tasks.detectors.boxes import clipped
from tasks.detectors.head import DetectionHead
from tasks.detectors.mask_head import pasted
from tasks.detectors.matching import matched
from tasks.task import Prediction, Shared, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 6  # number of test images shown in the report
MOST_COLUMNS = 100  # maximum number of classes for which a row has a column per class

Detections = list[dict[str, Tensor]]  # per image boxes, labels, scores, optionally masks


@dataclass(frozen=True)
class DetectionInference:
    """Resizing and padding of images in validation, test and prediction.

    Args:
        resize: (longer, shorter) side into which the image is scaled to fit, keeping its aspect ratio; `None`: its own
            size.
        multiple: the sides of the network's input are padded to multiples of this, on the right and below, with the
            mean colour.

    Raises:
        ValueError: invalid settings.
    """

    resize: Sequence[int] | None = None
    multiple: int = 32

    def __post_init__(self) -> None:
        sides = (1, 1) if self.resize is None else tuple(self.resize)
        if len(sides) != 2 or min(*sides, self.multiple) < 1:
            raise ValueError(
                "task.model.inference.resize takes a longer and a shorter side of at least 1 pixel, or null, and "
                "multiple is at least 1"
            )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for an image, before padding."""
        return (height, width) if self.resize is None else fitted(height, width, self.resize)

    def padded(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width after padding."""
        return up_to(size[0], self.multiple), up_to(size[1], self.multiple)


class DetectionTask(Task):
    """Object detection, with instance masks if the data have them.

    Raw batches are `{"pixels": (B, 3, H, W), "size": (B, 2)}`, padded to one size; targets are a list of B
    dictionaries with `boxes` (n, 4), x1 y1 x2 y2 in pixels, `labels` (n,), `crowd` (n,), `masks` (n, H, W) bool if the
    data have masks, and, outside training, `image_id` () if the annotations have ids. In training the network gets the
    padded batch. In evaluation, images are resized and padded according to `inference`, those of the same padded size
    are batched together, and detections are in the images' own pixels.

    Data info: `class_names` (list of K names), `has_masks`.

    Args:
        inference: see `DetectionInference`.
        mask_threshold: minimum probability of a mask pixel.
        shown_score: minimum score of detections that are drawn and counted; files and metrics include all detections
            that the head keeps.
        **settings: see `Task`.

    Raises:
        ValueError: invalid settings, or augmentations that cannot be applied to boxes.
    """

    shown_metric = "ap50"
    located = True

    def __init__(
        self,
        inference: Annotated[Mapping[str, Any], DetectionInference] | None = None,
        mask_threshold: float = 0.5,
        shown_score: float = 0.5,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if self.augment.raw is not None or self.augment.mixup is not None:
            raise ValueError(
                "boxes would not follow modality.augment.raw and mixup: say modality.augment.raw=null "
                "modality.augment.mixup=null; a detection's augmentation is task.data.transforms"
            )
        if not 0 < mask_threshold < 1 or not 0 <= shown_score < 1:
            raise ValueError("task.model.mask_threshold lies between 0 and 1, shown_score in [0, 1)")
        self.inference = DetectionInference(**dict(inference or {}))
        self.mask_threshold = mask_threshold
        self.shown_score = shown_score
        self.class_names: list[str] = list(self.data_info["class_names"])
        masks = self.head.has_masks
        self.metrics = nn.ModuleDict(
            {f"{split}_metrics": DetectionMetrics(self.class_names, masks) for split in ("val", "test")}
        )
        self.tested: dict[str, Any] = {}  # results of the last test
        self.pictured: set[int] = set()  # indices of the test samples to show
        self.pictures: list[Picture] = []

    @property
    def head(self) -> DetectionHead:
        """The network's head."""
        head = self.network.head
        assert isinstance(head, DetectionHead)
        return head

    @classmethod
    def metric_names(cls, data_info: dict[str, Any]) -> tuple[str, ...]:
        boxes = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        masks = tuple(f"mask_{name}" for name in boxes) if data_info["has_masks"] else ()
        return (*boxes, *masks, "loss")

    @classmethod
    def head_sizes(cls, data_info: dict[str, Any], embedder: nn.Module, backbone: Backbone) -> dict[str, Any]:
        backbone.make_pyramid()
        return {
            "in_channels": list(widths_of(backbone)),
            "strides": strides_of(backbone),
            "num_classes": len(data_info["class_names"]),
            "data_have_masks": bool(data_info["has_masks"]),
        }

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, split: str) -> dict[str, Any]:
        """One batch -> `loss` and `output`, the detections of each image in its own pixels (empty in training)."""
        return self._train_step(batch) if split == "train" else self._whole_step(batch, split)

    def _train_step(self, batch: Batch) -> dict[str, Any]:
        raw = {**batch.raw, "pixels": self._filled(batch.raw["pixels"])}
        with self.head.unfinished():
            outputs: Any = self.network(raw, self.augment.maps)
        losses = self.head.losses(outputs, batch.target, raw["size"])
        return {"loss": torch.stack(list(losses.values())).sum(), "output": []}

    def _whole_step(self, batch: Batch, split: str) -> dict[str, Any]:
        sizes: list[list[int]] = batch.raw["size"].tolist()
        output: Detections = [{} for _ in sizes]
        loss, weight = (batch.raw["size"].new_zeros((), dtype=torch.float32) for _ in range(2))
        for places, raw in self._scaled(batch.raw, sizes):
            with self.head.unfinished():
                outputs: Any = self.network(raw)
            reads: list[list[int]] = raw["size"].tolist()
            targets = [
                scaled_target(batch.target[place], sizes[place], (height, width))
                for place, (height, width) in zip(places, reads, strict=True)
            ]
            found = self._answers(
                self.head.detect(outputs, raw["size"]), reads, [sizes[place] for place in places]
            )
            # Image by image: the loss of several together would depend on which are in a batch.
            for position, target in enumerate(targets):
                part = slice(position, position + 1)
                one = tree_map(lambda x, part=part: x[part], outputs)
                losses = self.head.losses(one, [target], raw["size"][part])
                own = self.head.image_weight(one, target)
                loss, weight = loss + own * torch.stack(list(losses.values())).sum(), weight + own
            for place, one in zip(places, found, strict=True):
                output[place] = one
        self._measured(split).update(output, batch.target)
        if split == "test":
            self._keep_pictures(batch, output, sizes)
        return {"loss": loss / weight, "output": output, "weight": weight}

    def _filled(self, pixels_B3HW: Tensor) -> Tensor:
        before = pixels_B3HW.shape[-2:]
        height, width = (
            after - side for after, side in zip(self.inference.padded(before), before, strict=True)
        )
        return F.pad(pixels_B3HW, (0, width, 0, height)) if height or width else pixels_B3HW

    def _scaled(self, raw: Any, sizes: list[list[int]]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Groups a batch by padded size: yields the indices of each group and the network's input.

        Images are not padded beyond the next multiple to batch more of them together, since padding would change the
        means that the network takes over a whole map.
        """
        together: dict[tuple[int, int], list[int]] = {}
        reads = [self.inference.size(height, width) for height, width in sizes]
        for place, read in enumerate(reads):
            together.setdefault(self.inference.padded(read), []).append(place)
        for places in together.values():
            pixels = []
            for place in places:
                height, width = sizes[place]
                own_13hw = raw["pixels"][place : place + 1, :, :height, :width].float()
                pixels.append(self._filled(resized(own_13hw, reads[place])))
            each = torch.tensor([reads[place] for place in places], device=raw["pixels"].device)
            yield places, {"pixels": torch.cat(pixels), "size": each}

    def _answers(
        self, found: Any, reads: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]
    ) -> Detections:
        """Converts the head's detections to the images' own pixels.

        Args:
            found: (b, D, 6), or a tuple with masks (b, D, M, M).
            reads: height and width of each image in the network's input, without padding.
            sizes: height and width of each image.
        """
        found_bD6, masks = found if isinstance(found, tuple) else (found, None)
        answers = []
        for place, (rows_D6, read, size) in enumerate(zip(found_bD6.float(), reads, sizes, strict=True)):
            own_2 = rows_D6.new_tensor(list(size))
            factor_4 = (own_2 / own_2.new_tensor(list(read))).flip(0).repeat(2)
            there_D = ~(rows_D6[:, 4] <= 0)  # NaN scores are kept, so that they are noticed
            rows_n6 = rows_D6[there_D]
            boxes_n4 = clipped(rows_n6[:, :4] * factor_4, own_2)
            labels_n = rows_n6[:, 5].nan_to_num().long()
            answer = {"boxes": boxes_n4, "scores": rows_n6[:, 4], "labels": labels_n}
            if masks is not None:
                height, width = size
                answer["masks"] = pasted(
                    masks[place][there_D].float(), boxes_n4, (height, width), self.mask_threshold
                )
            answers.append(answer)
        return answers

    # -- metrics ---------------------------------------------------------------------------------------------------

    def _measured(self, split: str) -> DetectionMetrics:
        metric = self.metrics[f"{split}_metrics"]
        assert isinstance(metric, DetectionMetrics)
        return metric

    def epoch_metrics(self, split: str) -> dict[str, Tensor]:
        if split == "train":
            return {}
        metric = self._measured(split)
        values: dict[str, Tensor] = {}
        if metric.update_called:
            values = {f"{split}/{name}": value for name, value in metric.compute().items()}
            if split == "test":
                self.tested = {"per_class": metric.per_class()}
        metric.reset()
        return values

    # -- tests -----------------------------------------------------------------------------------------------------

    def begin_test(self, samples: int) -> None:
        self.tested = {}
        self.pictures = []
        most = min(PICTURES, samples)
        self.pictured = {position * samples // most for position in range(most)} if most else set()

    def _keep_pictures(self, batch: Batch, output: Detections, sizes: list[list[int]]) -> None:
        for position, index in enumerate(batch.index.tolist()):
            if index in self.pictured:
                height, width = sizes[position]
                pixels = batch.raw["pixels"][position, :, :height, :width].cpu().numpy().transpose(1, 2, 0)
                truth = Objects.of(batch.target[position], self.head.has_masks)
                predicted = Objects.of(output[position], self.head.has_masks, self.shown_score)
                self.pictures.append(Picture(index, pixels, truth, predicted))

    def test_rows(self, batch: Batch, output: Any) -> list[list[dict[str, Any]]]:
        return [self._rows_of(found, target) for found, target in zip(output, batch.target, strict=True)]

    def test_shared(self, batch: Batch, output: Any) -> list[dict[str, Shared]]:
        ids = [None if "image_id" not in target else int(target["image_id"]) for target in batch.target]
        return [
            in_cocos_files((height, width), found, image_id)
            for (height, width), found, image_id in zip(batch.raw["size"].tolist(), output, ids, strict=True)
        ]

    def _rows_of(self, found: dict[str, Tensor], target: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The rows of one image: each detection in descending order of score, with the class of its matched object (IoU
        of at least 0.5; empty if unmatched), then the missed objects; a row without a box if there is neither."""
        object_n, iou_n = matched(found, target)
        rows = []
        for label, score, box, place, iou in zip(
            found["labels"].tolist(),
            found["scores"].tolist(),
            found["boxes"].tolist(),
            object_n,
            iou_n,
            strict=True,
        ):
            truth = "" if place is None else self.class_names[label]
            rows.append({**self._row(box, label, score), "truth": truth, "iou": _rounded(iou)})
        for place, (label, box) in enumerate(
            zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
        ):
            if place not in object_n and not bool(target["crowd"][place]):
                row = self._row(box, label, None)
                rows.append({**row, "label": "", "truth": self.class_names[label], "iou": None})
        return rows or [{"label": "", "score": None, "truth": ""}]

    def _row(self, box: list[float], label: int, score: float | None) -> dict[str, Any]:
        corners = dict(zip(("x1", "y1", "x2", "y2"), (round(side, 2) for side in box), strict=True))
        return {"label": self.class_names[label], "score": _rounded(score), **corners}

    def test_report(self) -> dict[str, Any]:
        """After a test: AP per class name, None where undefined."""
        return {
            name: {key: _rounded(value) for key, value in values.items()}
            for name, values in self.tested.items()
        }

    def draw_report(self, report: dict[str, Any]) -> "dict[str, Figure]":
        if not report:
            return {}
        figures = {"ap": draw_ap(report["per_class"])}
        if self.pictures:
            figures["predictions"] = draw_pictures(self.pictures, self.class_names)
        return figures

    # -- predictions -----------------------------------------------------------------------------------------------

    def predict(self, raw: Any, top_k: int = 5) -> list[Prediction]:
        sizes: list[list[int]] = raw["size"].tolist()
        predictions: list[Prediction | None] = [None] * len(sizes)
        for places, scaled in self._scaled(raw, sizes):
            own = [sizes[place] for place in places]
            found = self._answers(self.network(scaled), scaled["size"].tolist(), own)
            for place, one in zip(places, found, strict=True):
                height, width = sizes[place]
                predictions[place] = self._prediction(raw["pixels"][place, :, :height, :width], one, top_k)
        return [prediction for prediction in predictions if prediction is not None]

    def _prediction(self, pixels_3HW: Tensor, found: dict[str, Tensor], top_k: int) -> Prediction:
        labels, scores, boxes = (found[name].tolist() for name in ("labels", "scores", "boxes"))
        rows = [self._row(box, *of) for box, *of in zip(boxes, labels, scores, strict=True)]
        counts = [0] * len(self.class_names)
        for label, score in zip(labels, scores, strict=True):
            counts[label] += score >= self.shown_score
        columns: dict[str, Any] = {
            "label": rows[0]["label"] if rows else "",
            "score": scores[0] if rows else 0.0,
            "objects": sum(counts),
        }
        if len(counts) <= MOST_COLUMNS:
            columns |= {f"count({name})": count for name, count in zip(self.class_names, counts, strict=True)}
        named = ("label", "score", "x1", "y1", "x2", "y2")
        table: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in named}
        if "masks" in found:
            table["pixels"] = found["masks"].flatten(1).sum(dim=1).tolist()
        ranked = sorted(range(len(counts)), key=lambda label: (-counts[label], label))[:top_k]
        shown = "  ".join(f"{counts[label]} {self.class_names[label]}" for label in ranked if counts[label])
        objects = Objects.of(found, self.head.has_masks, self.shown_score)
        picture = pixels_3HW.cpu().numpy().transpose(1, 2, 0)
        return Prediction(
            columns,
            shown or f"nothing of a score of {self.shown_score} or more",
            tables={"boxes": table},
            shared=in_cocos_files((pixels_3HW.shape[1], pixels_3HW.shape[2]), found),
            figures={"overlays/{name}.png": lambda: draw_overlay(picture, objects, self.class_names)},
        )

    # -- export and captions ---------------------------------------------------------------------------------------

    def output_info(self) -> dict[str, TensorInfo]:
        info = {
            "detections": TensorInfo(
                "the detections of an image after non-maximum suppression, the highest score first, filled up with "
                "rows of 0; corners in pixels of the input, scores in (0, 1], classes as indices of facts.class_names",
                ("batch", "detection", "column"),
                {"columns": ["x1", "y1", "x2", "y2", "score", "class"]},
            )
        }
        if self.head.has_masks:
            info["masks"] = TensorInfo(
                "the probability of the mask of each detection, in a grid over its box",
                ("batch", "detection", "row", "column"),
            )
        return info

    def difference(self, given: Any, wanted: Any) -> float:
        """The maximum difference of scores, boxes and masks; that of boxes relative to the largest coordinate.

        Each detection is compared with the most similar one of its class, since detections with almost equal scores may
        be in a different order. NaN if there are values that are not finite.
        """
        ours, theirs = ((each if isinstance(each, tuple) else (each,)) for each in (wanted, given))
        if not all(bool(part.isfinite().all()) for part in (*ours, *theirs)):
            return math.nan  # which the comparisons below would pass over
        scale = max(float(ours[0][..., :4].max()), 1.0)
        far = float((ours[0][..., 4] - theirs[0].detach()[..., 4]).abs().max())
        for place in range(len(ours[0])):
            rows_n6, others_n6 = (
                each[0][place][each[0][place, :, 4] > 0].detach() for each in (ours, theirs)
            )
            if not len(rows_n6):
                continue
            if not len(others_n6):
                return math.inf
            off_nm = torch.cdist(rows_n6[:, :4], others_n6[:, :4], p=math.inf) / scale
            off_nm = torch.maximum(off_nm, (rows_n6[:, None, 4] - others_n6[None, :, 4]).abs())
            off_nm = off_nm.masked_fill(rows_n6[:, None, 5] != others_n6[None, :, 5], math.inf)
            least_n, which_n = off_nm.min(dim=1)
            far = max(far, float(least_n.max()))
            for own, other in zip(ours[1:], theirs[1:], strict=True):
                apart = own[place, : len(rows_n6)] - other.detach()[place][which_n]
                far = max(far, float(apart.abs().max()))
        return far

    def caption(self, batch: Batch, position: int) -> str:
        """The number of objects of the three most frequent classes of a sample, the most frequent first."""
        labels = batch.target[position]["labels"]
        counts_K = torch.bincount(labels, minlength=len(self.class_names))
        most = counts_K.argsort(descending=True, stable=True)[:3].tolist()
        said = [f"{int(counts_K[index])} {self.class_names[index]}" for index in most if counts_K[index]]
        return ", ".join(said) or "no object"


def scaled_target(target: dict[str, Tensor], size: Sequence[int], read: tuple[int, int]) -> dict[str, Tensor]:
    """The objects of an image resized to another size; masks use nearest-neighbour interpolation.

    Args:
        target: in the image's own pixels.
        size: height and width of the image.
        read: height and width after resizing.
    """
    target = {name: value for name, value in target.items() if name != "image_id"}
    if tuple(size) == read:
        return target
    factors = [after / before for after, before in zip(read, size, strict=True)]
    scaled = {
        **target,
        "boxes": target["boxes"] * target["boxes"].new_tensor([*factors[::-1], *factors[::-1]]),
    }
    if "masks" in target and len(target["masks"]):
        masks = F.interpolate(target["masks"][:, None].to(torch.uint8), size=read, mode="nearest")
        scaled["masks"] = masks[:, 0].bool()
    return scaled


def _rounded(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return None if math.isnan(number) else round(number, 6)
