"""Semantic segmentation: one class per pixel.

Shapes: B batch, K classes, H and W in pixels.
"""

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from backbone.protocol import Backbone, widths_of
from modalities.tensor_info import TensorInfo
from tasks.bilinear import resized
from tasks.confusion_drawing import draw_confusion
from tasks.datasets.batch import Batch
from tasks.dense_inference import DenseInference
from tasks.losses import ClassificationLoss
from tasks.metrics import PixelConfusion, confusion_of, iou_of, measures_of
from tasks.segmentation_drawing import (
    Picture,
    draw_iou,
    draw_overlay,
    draw_pictures,
    mask_writer,
)
from tasks.segmentation_losses import VOID, PixelLoss
from tasks.task import Prediction, Task, as_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("widefield")

MOST_COLUMNS = 100  # maximum number of classes for which a row has a column per class
PICTURES = 6  # number of test images shown in the report


class SegmentationTask(Task):
    """Semantic segmentation.

    Raw batches are `{"pixels": (B, 3, H, W), "size": (B, 2)}`, targets `(B, H, W)` uint8 with `VOID` for unlabelled
    pixels, both padded to one size. In training the network gets the padded batch. In evaluation, images of the same
    size are batched together, read according to `inference`, and predictions are at the images' own sizes.

    Data info: `class_names` (list of K names), `palette` (one colour per class).

    Args:
        loss: (logits (B, K, H, W), targets (B, H, W)) -> scalar, see `tasks.segmentation_losses`.
        auxiliary_weight: weight of the auxiliary head's loss, if there is one.
        inference: settings of `DenseInference`.
        **settings: see `Task`.

    Raises:
        ValueError: invalid settings, or augmentations that cannot be applied to masks.
    """

    shown_metric = "miou"
    located = True

    def __init__(
        self,
        loss: nn.Module,
        auxiliary_weight: float = 0.4,
        inference: Annotated[Mapping[str, Any], DenseInference] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if self.augment.raw is not None or self.augment.mixup is not None:
            raise ValueError(
                "masks would not follow modality.augment.raw and mixup: say modality.augment.raw=null "
                "modality.augment.mixup=null; a segmentation's augmentation is task.data.transforms"
            )
        if auxiliary_weight < 0:
            raise ValueError(f"task.model.auxiliary_weight must be at least 0, not {auxiliary_weight}")
        self.loss = loss
        self.auxiliary_weight = auxiliary_weight
        self.inference = DenseInference(**dict(inference or {}))
        self.class_names: list[str] = list(self.data_info["class_names"])
        self.palette: list[list[int]] = [list(colour) for colour in self.data_info["palette"]]
        if isinstance(loss, ClassificationLoss):
            loss.set_classes(self.class_names)
        classes = len(self.class_names)
        self.metrics = nn.ModuleDict(
            {f"{split}_metrics": PixelConfusion(classes) for split in ("train", "val", "test")}
        )
        self.told: set[str] = set()  # splits whose undefined classes have been reported
        self.tested: Tensor | None = None  # the confusion matrix of the last test
        self.pictured: set[int] = set()  # indices of the test samples to show
        self.pictures: list[Picture] = []

    @classmethod
    def metric_names(cls, data_info: dict[str, Any]) -> tuple[str, ...]:
        return ("miou", "macc", "acc", "loss")

    @classmethod
    def head_sizes(cls, data_info: dict[str, Any], embedder: nn.Module, backbone: Backbone) -> dict[str, Any]:
        backbone.make_pyramid()
        return {
            "in_channels": list(widths_of(backbone)),
            "num_classes": len(data_info["class_names"]),
        }

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        """One batch -> `loss` and `output`, the class of each pixel, (B, H, W); in evaluation `VOID` in the padding."""
        return self._train_step(batch) if split == "train" else self._whole_step(batch, split)

    def _train_step(self, batch: Batch) -> dict[str, Tensor]:
        raw, target_BHW = self.augment.transformed(batch.raw, batch.target)
        target_BHW = target_BHW.long()
        out = self.network(raw, self.augment.maps)
        each: tuple[Tensor, ...] = out if isinstance(out, tuple) else (out,)
        size: tuple[int, int] = (target_BHW.shape[-2], target_BHW.shape[-1])
        logits_BKHW, *auxiliary = (resized(logits.float(), size) for logits in each)
        loss = self.loss(logits_BKHW, target_BHW)
        for other_BKHW in auxiliary:
            loss = loss + self.auxiliary_weight * self.loss(other_BKHW, target_BHW)
        predicted_BHW = logits_BKHW.detach().argmax(dim=1)
        self._confusion("train").update(predicted_BHW, target_BHW)
        return {"loss": loss, "output": predicted_BHW.to(torch.uint8)}

    def _whole_step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        sizes: list[list[int]] = batch.raw["size"].tolist()
        output_BHW = torch.full_like(batch.target, VOID)
        loss_B = batch.target.new_zeros(len(sizes), dtype=torch.float32)
        for places, logits_bKHW in self._read(batch.raw, sizes):
            height, width = sizes[places[0]]
            target_bHW = batch.target[places, :height, :width].long()
            # Image by image: the loss of several together would depend on which are in a batch.
            for place, logits_KHW, target_HW in zip(places, logits_bKHW, target_bHW, strict=True):
                loss_B[place] = self.loss(logits_KHW[None], target_HW[None])
            predicted_bHW = logits_bKHW.argmax(dim=1)
            self._confusion(split).update(predicted_bHW, target_bHW)
            output_BHW[places, :height, :width] = predicted_bHW.to(torch.uint8)
        if split == "test":
            self._keep_pictures(batch, output_BHW, sizes)
        weight_B = self._image_weights(batch)
        loss = (weight_B * loss_B).sum() / weight_B.sum().clamp(min=torch.finfo(loss_B.dtype).tiny)
        return {"loss": loss, "output": output_BHW, "weight": weight_B.sum()}

    def _image_weights(self, batch: Batch) -> Tensor:
        """The weight of each image's loss in the mean over a split, (B,)."""
        if isinstance(self.loss, PixelLoss):
            return self.loss.image_weights(batch.target.long())
        return torch.ones(len(batch), device=batch.target.device)

    def _read(self, raw: Any, sizes: list[list[int]]) -> Any:
        """Groups a batch by image size: yields the indices of each group and its scores (b, K, H, W).

        Images of different sizes are not batched together, since padding would change the means that the network
        takes over a whole map.
        """
        together: dict[tuple[int, int], list[int]] = {}
        for place, (height, width) in enumerate(sizes):
            together.setdefault((height, width), []).append(place)
        for (height, width), places in together.items():
            pixels_b3HW = raw["pixels"][places, :, :height, :width]
            yield places, self.inference(self._scores, pixels_b3HW).float()

    def _scores(self, pixels_B3HW: Tensor, size: tuple[int, int]) -> Tensor:
        """The network's scores of images whose size without padding is `size`."""
        sizes_B2 = torch.tensor([size] * len(pixels_B3HW), device=pixels_B3HW.device)
        return self.network({"pixels": pixels_B3HW, "size": sizes_B2})

    # -- metrics ---------------------------------------------------------------------------------------------------

    def _confusion(self, split: str) -> PixelConfusion:
        metric = self.metrics[f"{split}_metrics"]
        assert isinstance(metric, PixelConfusion)
        return metric

    def epoch_metrics(self, split: str) -> dict[str, Tensor]:
        metric = self._confusion(split)
        values: dict[str, Tensor] = {}
        if metric.update_called:
            values = {f"{split}/{name}": value for name, value in metric.compute().items()}
            assert metric.of_split is not None
            self._tell_undefined(split, metric.of_split)
            if split == "test":
                self.tested = metric.of_split
        metric.reset()
        return values

    def _tell_undefined(self, split: str, counts_KK: Tensor) -> None:
        undefined = iou_of(counts_KK).isnan().tolist()
        missing = [name for name, nan in zip(self.class_names, undefined, strict=True) if nan]
        if split == "train" or not missing or split in self.told:
            return
        self.told.add(split)
        log.warning(
            "%s: no pixel is or is said to be %s: their IoU is undefined and left out of the mean over classes",
            split,
            ", ".join(missing[:5]) + (f" and {len(missing) - 5} more classes" if len(missing) > 5 else ""),
        )

    # -- tests -----------------------------------------------------------------------------------------------------

    def begin_test(self, samples: int) -> None:
        self.tested = None
        self.pictures = []
        most = min(PICTURES, samples)
        self.pictured = {position * samples // most for position in range(most)} if most else set()

    def _keep_pictures(self, batch: Batch, output_BHW: Tensor, sizes: list[list[int]]) -> None:
        for position, index in enumerate(batch.index.tolist()):
            if index in self.pictured:
                height, width = sizes[position]
                parts = (batch.raw["pixels"][position], batch.target[position], output_BHW[position])
                pixels, truth, predicted = (part[..., :height, :width].cpu().numpy() for part in parts)
                self.pictures.append(Picture(index, pixels.transpose(1, 2, 0), truth, predicted))

    def test_rows(self, batch: Batch, output: Tensor) -> list[list[dict[str, Any]]]:
        return [
            [self._test_row(predicted_HW, target_HW, size)]
            for predicted_HW, target_HW, size in zip(
                output, batch.target, batch.raw["size"].tolist(), strict=True
            )
        ]

    def _test_row(self, predicted_HW: Tensor, target_HW: Tensor, size: list[int]) -> dict[str, Any]:
        """The row of one image: mean IoU, accuracies, and per class the IoU and the predicted fraction of the area."""
        predicted_HW, target_HW = (part[: size[0], : size[1]] for part in (predicted_HW, target_HW))
        counts_KK = confusion_of(predicted_HW, target_HW, len(self.class_names))
        row: dict[str, Any] = {name: _rounded(value) for name, value in measures_of(counts_KK).items()}
        if len(self.class_names) <= MOST_COLUMNS:
            iou = iou_of(counts_KK).tolist()
            areas = self._areas(predicted_HW)
            row |= {
                f"iou({name})": _rounded(value) for name, value in zip(self.class_names, iou, strict=True)
            }
            row |= {f"area({name})": value for name, value in zip(self.class_names, areas, strict=True)}
        return row

    def test_report(self) -> dict[str, Any]:
        """After a test: IoU per class name, None where undefined, and the confusion matrix in pixels (rows are true
        classes)."""
        if self.tested is None:
            return {}
        iou = [None if math.isnan(value) else value for value in iou_of(self.tested).tolist()]
        return {"per_class": dict(zip(self.class_names, iou, strict=True)), "pixels": as_plain(self.tested)}

    def draw_report(self, report: dict[str, Any]) -> "dict[str, Figure]":
        if not report:
            return {}
        title = "Pixels of the test split\n(% of a true class; {right} of all right)"
        figures = {
            "iou": draw_iou(report["per_class"], self.palette),
            "confusion": draw_confusion(report["pixels"], self.class_names, title, percent=True),
        }
        if self.pictures:
            figures["predictions"] = draw_pictures(self.pictures, self.class_names, self.palette)
        return figures

    # -- predictions ---------------------------------------------------------------------------------------------------

    def predict(self, raw: Any, top_k: int = 5) -> list[Prediction]:
        sizes: list[list[int]] = raw["size"].tolist()
        predictions: list[Prediction | None] = [None] * len(sizes)
        for places, logits_bKHW in self._read(raw, sizes):
            height, width = sizes[places[0]]
            sure_bHW, classes_bHW = logits_bKHW.softmax(dim=1).max(dim=1)
            for place, sure_HW, classes_HW in zip(places, sure_bHW, classes_bHW, strict=True):
                pixels_3HW = raw["pixels"][place, :, :height, :width]
                predictions[place] = self._prediction(pixels_3HW, classes_HW, float(sure_HW.mean()), top_k)
        return [prediction for prediction in predictions if prediction is not None]

    def _prediction(
        self, pixels_3HW: Tensor, classes_HW: Tensor, probability: float, top_k: int
    ) -> Prediction:
        areas = self._areas(classes_HW)
        ranked = sorted(range(len(areas)), key=lambda index: (-areas[index], index))
        there = [index for index in ranked if areas[index] > 0]
        columns: dict[str, Any] = {"label": self.class_names[ranked[0]], "probability": round(probability, 6)}
        if len(areas) <= MOST_COLUMNS:
            columns |= {f"area({name})": area for name, area in zip(self.class_names, areas, strict=True)}
        pixels = classes_HW.numel()
        table: dict[str, list[Any]] = {
            "class": [self.class_names[index] for index in there],
            "pixels": [round(areas[index] * pixels) for index in there],
            "area": [areas[index] for index in there],
        }
        classes = classes_HW.to("cpu", torch.uint8).numpy()
        picture = pixels_3HW.cpu().numpy().transpose(1, 2, 0)
        shown = "  ".join(f"{self.class_names[index]} {areas[index]:.1%}" for index in there[:top_k])
        return Prediction(
            columns,
            shown,
            tables={"areas": table},
            files={"masks/{name}.png": mask_writer(classes, self.palette, self.class_names)},
            figures={
                "overlays/{name}.png": lambda: draw_overlay(picture, classes, self.class_names, self.palette)
            },
        )

    def _areas(self, classes_HW: Tensor) -> list[float]:
        """The fraction of an image's area predicted as each class."""
        counts_K = torch.bincount(classes_HW.flatten().long(), minlength=len(self.class_names))
        return [round(value, 6) for value in (counts_K / max(classes_HW.numel(), 1)).tolist()][
            : len(self.class_names)
        ]

    # -- export and captions ---------------------------------------------------------------------------------------

    def caption(self, batch: Batch, position: int) -> str:
        """The classes of a sample, the largest first."""
        target_HW = batch.target[position]
        counts_K = torch.bincount(target_HW[target_HW != VOID].long(), minlength=len(self.class_names))
        largest = counts_K.argsort(descending=True)[:3].tolist()
        return ", ".join(self.class_names[index] for index in largest if counts_K[index]) or "void"

    @property
    def free_axes(self) -> dict[int, int]:
        """The batch size, and the height and width of the images in multiples of 32."""
        return {0: 1, 2: 32, 3: 32}

    def output_info(self) -> dict[str, TensorInfo]:
        return {
            "logits": TensorInfo(
                "logits of every pixel of a coarser map, in the order of facts.class_names; scaled bilinearly to the "
                "size of the image, their softmax over the classes is the probability of each class",
                ("batch", "class", "row", "column"),
                {"activation": "softmax"},
            )
        }


def _rounded(value: Tensor | float) -> float | None:
    number = float(value)
    return None if math.isnan(number) else round(number, 6)
