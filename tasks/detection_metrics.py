"""Average precision of boxes and masks as COCO defines it (Lin et al. 2014, arXiv 1405.0312; pycocotools).

Shapes: n objects or m detections of an image of H × W pixels, K classes.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

#: Measure -> IoU threshold and range of areas: columns of COCO's precision, `None` for the mean over all thresholds.
MEASURES: dict[str, tuple[int | None, int]] = {
    "ap": (None, 0),
    "ap50": (0, 0),
    "ap75": (5, 0),
    "ap_small": (None, 1),  # below 32² pixels
    "ap_medium": (None, 2),
    "ap_large": (None, 3),  # above 96²
}
COLUMNS = 7  # image, class, score or crowd, x1, y1, x2, y2
# All states are 1-D, so that they can be gathered even if a process has no data.
STATES = {
    "detections": torch.float32,
    "truths": torch.float32,
    "detection_masks": torch.uint8,
    "truth_masks": torch.uint8,
    "detection_sizes": torch.int64,
    "truth_sizes": torch.int64,
}


class DetectionMetrics(Metric):
    """AP over a whole split: the mean over classes and IoU thresholds .5, .55, …, .95 of the precision at 101 recalls.

    Classes without ground truth have no AP and are excluded from the means; an area range without ground truth is NaN.
    Crowd objects are COCO's `iscrowd`: detections matched to them are ignored. An object's area is that of its mask if
    there are masks, otherwise that of its box.

    Args:
        class_names: the K names.
        masks: also compute mask AP.

    Attributes:
        of_classes: (K,) after `compute`, the box AP of each class; NaN for classes without ground truth.
        mask_of_classes: likewise for masks; None without masks.
    """

    full_state_update = False
    higher_is_better = True
    detections: list[Tensor]
    truths: list[Tensor]

    def __init__(self, class_names: Sequence[str], masks: bool = False) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.masks = masks
        self.of_classes: Tensor | None = None
        self.mask_of_classes: Tensor | None = None
        self.pictures = 0
        for name in STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Adds images.

        Args:
            predictions: per image `boxes` (m, 4) x1, y1, x2, y2, `scores` and `labels` (m,), with masks `masks`
                (m, H, W).
            targets: per image `boxes`, `labels`, `crowd` (n,), with masks `masks`.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"{len(predictions)} predictions are not those of {len(targets)} pictures")
        rank, processes = _place()
        for predicted, true in zip(predictions, targets, strict=True):
            number = self.pictures * processes + rank
            self.pictures += 1
            self._take("detection", predicted, predicted["scores"], number)
            self._take("truth", true, true["crowd"], number)

    def _take(self, kind: str, objects: Mapping[str, Tensor], third: Tensor, number: int) -> None:
        boxes_n4 = objects["boxes"].detach().float().reshape(-1, 4)
        columns = (torch.full_like(third, number, dtype=torch.float32), objects["labels"], third)
        rows_n7 = torch.cat([torch.stack([each.detach().float() for each in columns], 1), boxes_n4], 1)
        getattr(self, f"{kind}s").append(rows_n7.to(self.device).reshape(-1))
        if not self.masks:
            return
        from pycocotools import mask as coco

        masks_HWn = objects["masks"].detach().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        packed = coco.encode(np.asfortranarray(masks_HWn)) if masks_HWn.shape[2] else []
        content = b"".join(each["counts"] for each in packed)
        sizes = [(len(each["counts"]), *each["size"]) for each in packed]
        runs = torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
        getattr(self, f"{kind}_masks").append(runs.to(self.device))
        getattr(self, f"{kind}_sizes").append(
            torch.tensor(sizes, dtype=torch.int64, device=self.device).reshape(-1)
        )

    def compute(self) -> dict[str, Tensor]:
        """`ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, and with masks `mask_ap`, …; NaN without ground
        truth."""
        truth, found = self._objects("truth"), self._objects("detection")
        values, self.of_classes = self._measured(truth, found, "bbox", "")
        if self.masks:
            of_masks, self.mask_of_classes = self._measured(truth, found, "segm", "mask_")
            values |= of_masks
        return values

    def per_class(self) -> dict[str, float]:
        """The last computed box AP of each class; NaN for classes without ground truth."""
        if self.of_classes is None:
            raise RuntimeError("nothing has been computed yet")
        return dict(zip(self.class_names, self.of_classes.tolist(), strict=True))

    def reset(self) -> None:
        super().reset()
        self.pictures = 0

    def _sync_dist(self, *arguments: Any, **options: Any) -> None:
        for name, dtype in STATES.items():  # a process without data needs empty states of the right dtype
            if not getattr(self, name):
                setattr(self, name, [torch.zeros(0, dtype=dtype, device=self.device)])
        super()._sync_dist(*arguments, **options)

    def _measured(self, truth: Any, found: Any, kind: str, prefix: str) -> tuple[dict[str, Tensor], Tensor]:
        """The measures of boxes (`bbox`) or masks (`segm`), and the AP of each class."""
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # silences its progress output
            evaluation = COCOeval(self._as_coco(truth, found, kind), self._as_coco(found, truth, kind), kind)
            evaluation.evaluate()
            evaluation.accumulate()
        # IoU thresholds T, recalls R, classes K, areas A; at the largest maxDets.
        precision_TRKA: NDArray[np.float64] = evaluation.eval["precision"][..., -1]
        precision_TRKA = np.where(precision_TRKA < 0, np.nan, precision_TRKA)
        values = {}
        for name, (threshold, area) in MEASURES.items():
            chosen = precision_TRKA if threshold is None else precision_TRKA[[threshold]]
            values[f"{prefix}{name}"] = _mean(torch.from_numpy(chosen[..., area]))
        each_K = [_mean(torch.from_numpy(precision_TRKA[:, :, k, 0])) for k in range(len(self.class_names))]
        return values, torch.stack(each_K) if each_K else torch.zeros(0)

    def _objects(self, kind: str) -> list[dict[str, Any]]:
        """COCO's annotations."""
        rows = _joined(getattr(self, f"{kind}s"), torch.float32).reshape(-1, COLUMNS)
        found = []
        for place, row in enumerate(rows.double().tolist(), start=1):  # ids from 1: 0 means no match
            picture, label, third, x1, y1, x2, y2 = row
            each: dict[str, Any] = {"id": place, "image_id": int(picture), "category_id": int(label)}
            each |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            each |= {"score": third, "iscrowd": 0} if kind == "detection" else {"iscrowd": int(third)}
            found.append(each)
        if self.masks:
            self._add_masks(kind, found)
        return found

    def _add_masks(self, kind: str, found: list[dict[str, Any]]) -> None:
        from pycocotools import mask as coco

        content = _joined(getattr(self, f"{kind}_masks"), torch.uint8).numpy().tobytes()
        sizes = _joined(getattr(self, f"{kind}_sizes"), torch.int64).reshape(-1, 3).tolist()
        begin = 0
        for each, (length, height, width) in zip(found, sizes, strict=True):
            each["segmentation"] = {"size": [height, width], "counts": content[begin : begin + length]}
            begin += length
            if kind == "truth":
                each["area"] = float(coco.area(each["segmentation"]))
            else:
                each["mask_area"] = float(coco.area(each["segmentation"]))

    def _as_coco(self, objects: list[dict[str, Any]], others: list[dict[str, Any]], kind: str) -> Any:
        from pycocotools.coco import COCO

        numbers = sorted({each["image_id"] for each in (*objects, *others)})
        own_area = kind == "segm"  # of a detection that is measured by its mask
        built = COCO()
        built.dataset = {
            "images": [{"id": number, "height": 0, "width": 0} for number in numbers],
            "categories": [{"id": place, "name": name} for place, name in enumerate(self.class_names)],
            "annotations": [
                {**each, "area": each["mask_area"]} if own_area and "mask_area" in each else dict(each)
                for each in objects
            ],
        }
        built.createIndex()
        return built


def _mean(values: Tensor) -> Tensor:
    """The mean ignoring NaN; NaN if all values are NaN."""
    return values.nanmean().float()


def _joined(parts: Any, dtype: torch.dtype) -> Tensor:
    """A state, a list of tensors or an already gathered tensor, as one 1-D tensor on the CPU."""
    parts = [parts] if isinstance(parts, Tensor) else list(parts)
    return torch.cat([torch.zeros(0, dtype=dtype), *(part.cpu().to(dtype) for part in parts)])


def _place() -> tuple[int, int]:
    """Rank and world size."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
