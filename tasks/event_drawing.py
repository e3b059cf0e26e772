"""Figures of sound event detection: predicted events, spectrogram and true events; F1 per class; the PSD-ROC curve.

Shapes: F rows (mel bins), N frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modalities.embedder import MapAxes
from tasks.event_metrics import Events

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LANE = 0.17  # inches
MOST_COLUMNS = 2000  # of a spectrogram; longer ones are max-pooled over time
MOST_CLASSES = 40  # maximum number of classes for which each is named


@dataclass(frozen=True)
class Heard:
    """A recording to draw: title, map (F, N), length, predicted and true events (`None`: unknown)."""

    title: str
    map: NDArray[np.float32]
    seconds: float
    found: Events
    truth: Events | None


def draw_heard(heard: Sequence[Heard], names: Sequence[str], axes: MapAxes) -> "Figure":
    """Draws recordings below each other, with one lane per class that is present or predicted in any of them."""
    every = [events for one in heard for events in (one.found, one.truth) if events is not None]
    lanes = sorted({int(label) for events in every for label in events[:, 2]}) or [0]
    high = max(LANE * len(lanes), 0.35)
    rows = [
        height for one in heard for height in ((high, 1.5, high) if one.truth is not None else (high, 1.5))
    ]
    figure = _figure((10.5, sum(rows) + 0.55 * len(heard) + 0.5))
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    place = 0
    for one in heard:
        above, middle = panels[place], panels[place + 1]
        _lanes(above, one.found, lanes, names, one.seconds, "found")
        above.set_title(one.title, fontsize=9, loc="left")
        _spectrogram(middle, one, axes)
        place += 2
        if one.truth is not None:
            _lanes(panels[place], one.truth, lanes, names, one.seconds, "truth")
            middle.tick_params(labelbottom=False)
            panels[place].tick_params(labelbottom=True, labelsize=7)
            place += 1
    panels[-1].set_xlabel(axes.x, fontsize=8)
    return figure


def _lanes(
    panel: "Axes", events: Events, lanes: Sequence[int], names: Sequence[str], seconds: float, label: str
) -> None:
    """Draws a bar for each event, in the lane of its class."""
    for number, lane in enumerate(lanes):
        spans = [(onset, offset - onset) for onset, offset, kind in events.tolist() if int(kind) == lane]
        panel.broken_barh(spans, (number - 0.38, 0.76), facecolors=_colour(number))
    panel.set_xlim(0, seconds)
    panel.set_ylim(len(lanes) - 0.5, -0.5)
    shown = range(len(lanes)) if len(lanes) <= MOST_CLASSES else ()
    panel.set_yticks(list(shown), [names[lanes[number]] for number in shown], fontsize=7)
    panel.set_ylabel(label, fontsize=8)
    panel.tick_params(labelbottom=False, length=2)
    panel.grid(axis="x", alpha=0.3)


def _spectrogram(panel: "Axes", one: Heard, axes: MapAxes) -> None:
    map_FN = one.map
    several = -(-map_FN.shape[1] // MOST_COLUMNS)
    if several > 1:
        filled = np.pad(map_FN, ((0, 0), (0, -map_FN.shape[1] % several)), mode="edge")
        map_FN = filled.reshape(len(filled), -1, several).max(axis=2)
    panel.imshow(
        map_FN,
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(0, one.seconds, -0.5, len(map_FN) - 0.5),
        vmin=float(np.percentile(map_FN, 2)),
        vmax=float(np.percentile(map_FN, 99.8)),
    )
    panel.set_yticks([row for row, _ in axes.y_ticks], [tick for _, tick in axes.y_ticks])
    panel.set_ylabel("Hz", fontsize=8)
    panel.tick_params(labelsize=7)


def draw_f1(events: Mapping[str, float | None], segments: Mapping[str, float | None]) -> "Figure":
    """Draws event and segment F1 per class; undefined values are marked."""
    names = list(events)
    figure = _figure((6.4, min(max(0.36 * len(names) + 1.5, 2.8), 30.0)))
    panel = figure.subplots()
    for shift, values, label, colour in (
        (-0.2, events, "events (onset and offset within their collars)", "tab:blue"),
        (0.2, segments, "segments", "tab:orange"),
    ):
        heights = [values[name] or 0.0 for name in names]
        places = [number + shift for number in range(len(names))]
        panel.barh(places, heights, 0.38, color=colour, label=label)
        for place, value in zip(places, values.values(), strict=True):
            said = "not defined" if value is None else f"{100 * value:.0f}"
            panel.text((value or 0.0) + 0.01, place, said, va="center", fontsize=7)
    panel.set_yticks(range(len(names)), names, fontsize=9 if len(names) <= MOST_CLASSES else 5)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.08)
    panel.set_xlabel("F1 over the whole test split")
    panel.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", fontsize=8, ncols=2)
    return figure


def draw_psd_curve(curve: Mapping[str, Any]) -> "Figure":
    """Draws the true positive rate over effective false positives per hour, for each class and for all together."""
    points = curve["false_positives_an_hour"]
    figure = _figure((6.8, 4.2))
    panel = figure.subplots()
    for number, (name, rates) in enumerate(curve["by_class"].items()):
        known = [np.nan if rate is None else rate for rate in rates]
        label = name if len(curve["by_class"]) <= MOST_CLASSES else None
        panel.step(points, known, where="post", color=_colour(number), linewidth=1, label=label)
    effective = [np.nan if rate is None else rate for rate in curve["effective"]]
    panel.step(points, effective, where="post", color="black", linewidth=2, label="mean − α·deviation")
    area = float((np.diff(points) * np.array(effective[:-1])).sum() / points[-1])
    panel.set_title(f"PSDS {area:.3f} (the area below the black line)", fontsize=10)
    panel.set_xlim(0, points[-1])
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("effective false positives an hour")
    panel.set_ylabel("true positive rate")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


def _colour(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](number % 20 if number >= 10 else 2 * number)


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")
