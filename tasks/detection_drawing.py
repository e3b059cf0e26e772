"""Figures of detection: boxes with labels, scores and masks; truth beside prediction; AP per class.

Shapes: n objects, H and W in pixels.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from tasks.dense_drawing import draw_class_values, empty_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARE = 0.45  # opacity of masks
MOST_NAMED = 40  # maximum number of objects for which each is labelled


@dataclass(frozen=True)
class Objects:
    """The objects drawn on an image: boxes (n, 4), labels (n,), scores (n,) or None, masks (n, H, W) or None, and crowd
    flags (n,) or None."""

    boxes: NDArray[Any]
    labels: list[int]
    scores: list[float] | None = None
    masks: NDArray[np.bool_] | None = None
    crowds: list[bool] | None = None

    @classmethod
    def of(cls, found: Mapping[str, Tensor], with_masks: bool, least: float = 0.0) -> Self:
        """From a target or from detections; detections with a score below `least` are dropped."""
        if "scores" in found:
            found = {name: value[found["scores"] >= least] for name, value in found.items()}
        plain = {name: value.cpu() for name, value in found.items()}
        return cls(
            plain["boxes"].float().numpy(),
            plain["labels"].tolist(),
            plain["scores"].tolist() if "scores" in plain else None,
            plain["masks"].numpy() if with_masks and "masks" in plain else None,
            plain["crowd"].tolist() if "crowd" in plain else None,
        )


@dataclass(frozen=True)
class Picture:
    """A test image: its index in the split, pixels (H, W, 3), truth and prediction."""

    index: int
    pixels: NDArray[np.uint8]
    truth: Objects
    predicted: Objects


def colour_of(label: int) -> tuple[float, float, float]:
    """The colour of a class; hues of consecutive classes differ by the golden ratio."""
    return colorsys.hsv_to_rgb((0.03 + label * 0.618034) % 1, 0.85, 0.95 if label % 2 else 0.75)


def draw_overlay(pixels_HW3: NDArray[Any], objects: Objects, names: Sequence[str]) -> "Figure":
    """Draws an image with its objects."""
    height, width = pixels_HW3.shape[:2]
    figure = empty_figure((7.2, min(max(7.2 * height / width, 2.0), 14.0)))
    _draw(figure.subplots(), pixels_HW3, objects, names)
    return figure


def draw_pictures(pictures: Sequence[Picture], names: Sequence[str]) -> "Figure":
    """Draws truth and prediction side by side, one row per image."""
    pictures = sorted(pictures, key=lambda picture: picture.index)
    heights = [3.6 * picture.pixels.shape[0] / picture.pixels.shape[1] + 0.35 for picture in pictures]
    figure = empty_figure((7.6, sum(heights) + 0.3))
    grid = figure.subplots(len(pictures), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, picture in zip(grid, pictures, strict=True):
        for panel, objects, what in zip(
            row, (picture.truth, picture.predicted), ("truth", "prediction"), strict=True
        ):
            _draw(panel, picture.pixels, objects, names)
            panel.set_title(f"picture {picture.index}: {what}, {len(objects.labels)} objects", fontsize=9)
    return figure


def draw_ap(ap: Mapping[str, float | None]) -> "Figure":
    """Draws the AP of each class, the largest first; classes with undefined AP have no bar."""
    return draw_class_values(
        ap,
        [colour_of(index) for index in range(len(ap))],
        label="average precision of boxes, mean over IoU 0.50 to 0.95, on the whole test split",
        short="AP",
    )


def _draw(panel: "Axes", pixels_HW3: NDArray[Any], objects: Objects, names: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    shown = pixels_HW3.astype(np.float64) / 255
    if objects.masks is not None:
        for mask, label in zip(objects.masks, objects.labels, strict=True):
            shown[mask] = (1 - SHARE) * shown[mask] + SHARE * np.asarray(colour_of(label))
    panel.imshow(shown.clip(0, 1), interpolation="nearest")
    height, width = shown.shape[:2]
    for place, (label, (x1, y1, x2, y2)) in enumerate(zip(objects.labels, objects.boxes, strict=True)):
        colour = colour_of(label)
        crowd = objects.crowds is not None and objects.crowds[place]
        style = "dotted" if crowd else "solid"
        # imshow puts pixel centres at integer coordinates; boxes are measured from the image's edge.
        corner = (float(x1) - 0.5, float(y1) - 0.5)
        sides = (float(x2 - x1), float(y2 - y1))
        panel.add_patch(
            Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=1.4, linestyle=style)
        )
        if len(objects.labels) > MOST_NAMED:
            continue
        score = "" if objects.scores is None else f" {objects.scores[place]:.2f}"
        panel.text(
            *corner,
            f"{names[label]}{' (crowd)' if crowd else ''}{score}",
            fontsize=6,
            color="white",
            verticalalignment="bottom" if y1 > 0.06 * height else "top",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            clip_on=True,
        )
    panel.set_xlim(-0.5, width - 0.5)
    panel.set_ylim(height - 0.5, -0.5)
    panel.axis("off")
