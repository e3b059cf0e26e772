"""What the figures of segmentation and detection share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 60  # maximum number of classes with full-size axis labels


def empty_figure(size: tuple[float, float]) -> "Figure":
    """A figure of this width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def draw_class_values(
    values: Mapping[str, float | None],
    colours: Sequence[Any],
    *,
    label: str,
    short: str,
    linewidth: float | None = None,
) -> "Figure":
    """Draws a measure of each class as a bar, the largest first; undefined values (None) have no bar.

    Args:
        values: class name -> value between 0 and 1.
        colours: a colour of matplotlib's for each class, in the same order.
        label: of the axis.
        short: name of the measure, for the mean in the title.
        linewidth: of the bars' edges.
    """
    names = list(values)
    order = sorted(range(len(names)), key=lambda index: -(values[names[index]] or 0.0))
    ranked = [names[index] for index in order]
    shown = [value for value in values.values() if value is not None]
    figure = empty_figure((6.4, min(max(0.24 * len(order) + 1.4, 2.6), 30.0)))
    panel = figure.subplots()
    panel.barh(
        range(len(order)),
        [values[name] or 0.0 for name in ranked],
        color=[colours[index] for index in order],
        edgecolor="0.3",
        linewidth=linewidth,
    )
    panel.set_yticks(range(len(order)), ranked, fontsize=9 if len(order) <= MOST_CLASSES else 5)
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.set_xlabel(label)
    panel.set_ylabel("class")
    panel.grid(axis="x", alpha=0.3)
    if shown:
        mean = sum(shown) / len(shown)
        panel.axvline(mean, color="black", linestyle="--", linewidth=1)
        panel.set_title(f"mean {short} {mean:.1%} of {len(shown)} classes", fontsize=10)
    return figure
