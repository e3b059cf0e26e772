"""Figures of segmentation: coloured class maps with a legend, error maps, IoU per class.

Shapes: H and W in pixels, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.dense_drawing import draw_class_values, empty_figure
from tasks.segmentation_losses import VOID

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Palette = Sequence[Sequence[int]]
VOID_COLOUR = (224, 224, 224)
SHARE = 0.55  # opacity of an overlay
MOST_IN_LEGEND = 24


@dataclass(frozen=True)
class Picture:
    """A test image: its index in the split, pixels (H, W, 3), truth and prediction (H, W)."""

    index: int
    pixels: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


def coloured(classes_HW: NDArray[np.uint8], palette: Palette) -> NDArray[np.uint8]:
    """Maps classes to their colours, (H, W, 3); `VOID` is light grey."""
    table = np.full((256, 3), VOID_COLOUR, dtype=np.uint8)
    table[: len(palette)] = np.asarray(palette, dtype=np.uint8)
    shown: NDArray[np.uint8] = table[classes_HW]
    return shown


def overlaid(pixels_HW3: NDArray[Any], classes_HW: NDArray[np.uint8], palette: Palette) -> NDArray[np.uint8]:
    """Blends an image with the colours of its classes, (H, W, 3)."""
    mixed = SHARE * coloured(classes_HW, palette) + (1 - SHARE) * pixels_HW3.astype(np.float64)
    shown: NDArray[np.uint8] = mixed.round().clip(0, 255).astype(np.uint8)
    return shown


def write_mask(
    classes_HW: NDArray[np.uint8], palette: Palette, names: Sequence[str], path: Path, note: str | None
) -> None:
    """Writes a class map as a palette PNG, whose pixel values are the class indices.

    Args:
        note: the provenance note for embedded samples; stored in the file as text, like the class names.
    """
    from PIL import Image, PngImagePlugin

    image = Image.fromarray(classes_HW)
    image.putpalette(
        [part for colour in palette for part in colour] + [0] * 3 * (255 - len(palette)) + [*VOID_COLOUR]
    )
    about = PngImagePlugin.PngInfo()
    about.add_itxt("classes", ", ".join(names))
    if note:
        about.add_itxt("drawn", note)
    image.save(path, "PNG", pnginfo=about)


def mask_writer(
    classes_HW: NDArray[np.uint8], palette: Palette, names: Sequence[str]
) -> Callable[[Path, str | None], None]:
    """Returns a function (path, note) that calls `write_mask` for this class map."""
    return lambda path, note: write_mask(classes_HW, palette, names, path, note)


def draw_overlay(
    pixels_HW3: NDArray[np.uint8], classes_HW: NDArray[np.uint8], names: Sequence[str], palette: Palette
) -> "Figure":
    """Draws an image overlaid with its classes, and a legend of the classes present, the largest first."""
    height, width = classes_HW.shape
    figure = empty_figure((6.4 + 1.8, min(max(6.4 * height / width, 2.0), 12.0) + 0.4))
    panel = figure.subplots()
    panel.imshow(overlaid(pixels_HW3, classes_HW, palette))
    panel.axis("off")
    counts = np.bincount(classes_HW.reshape(-1), minlength=256)[: len(names)]
    there = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    labels = {index: f"{names[index]} {counts[index] / classes_HW.size:.1%}" for index in there}
    _legend(figure, labels, palette)
    return figure


def draw_pictures(pictures: Sequence[Picture], names: Sequence[str], palette: Palette) -> "Figure":
    """Draws one row per image: the image, truth, prediction, and the wrong pixels."""
    pictures = sorted(pictures, key=lambda picture: picture.index)
    figure = empty_figure((11.5, 2.4 * len(pictures) + 0.7))
    grid = figure.subplots(len(pictures), 4, squeeze=False)
    there: set[int] = set()
    for row, picture in zip(grid, pictures, strict=True):
        known = picture.truth != VOID
        wrong = known & (picture.truth != picture.predicted)
        share = wrong.sum() / max(int(known.sum()), 1)
        marked = np.where(wrong[..., None], (214, 39, 40), picture.pixels // 2 + 110)
        marked = np.where(known[..., None], marked, VOID_COLOUR)
        parts = (
            picture.pixels,
            coloured(picture.truth, palette),
            coloured(picture.predicted, palette),
            marked,
        )
        titles = (f"picture {picture.index}", "truth", "prediction", f"wrong: {share:.1%} of its pixels")
        for panel, part, title in zip(row, parts, titles, strict=True):
            panel.imshow(part.astype(np.uint8), interpolation="nearest")
            panel.set_title(title, fontsize=9)
            panel.axis("off")
        there |= {
            int(index) for index in np.unique(np.stack([picture.truth, picture.predicted])) if index != VOID
        }
    labels: dict[int, str] = {index: names[index] for index in sorted(there)}
    _legend(figure, {**labels, VOID: "no class"}, palette)
    return figure


def draw_iou(iou: Mapping[str, float | None], palette: Palette) -> "Figure":
    """Draws the IoU of each class, the largest first; classes with undefined IoU have no bar."""
    return draw_class_values(
        iou,
        [np.asarray(colour) / 255 for colour in palette],
        label="intersection over union, over the whole test split",
        short="IoU",
        linewidth=0.5,
    )


def _legend(figure: "Figure", labels: Mapping[int, str], palette: Palette) -> None:
    from matplotlib.patches import Patch

    shown = list(labels.items())[:MOST_IN_LEGEND]
    handles = []
    for index, label in shown:
        red, green, blue = (part / 255 for part in (VOID_COLOUR if index == VOID else palette[index]))
        handles.append(Patch(facecolor=(red, green, blue), edgecolor="0.3", label=label))
    if len(labels) > len(shown):
        handles.append(Patch(alpha=0, label=f"and {len(labels) - len(shown)} more"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
