"""Figure of a confusion matrix.

Shapes: K classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMED = 60  # maximum number of classes whose names are on the axes
MOST_WRITTEN = 15  # and for which each cell is written


def draw_confusion(
    matrix: Sequence[Sequence[float]], names: Sequence[str], title: str, percent: bool = False
) -> "Figure":
    """Draws a confusion matrix, normalised per true class.

    Args:
        matrix: (K, K) counts; rows are true classes.
        names: of the classes.
        title: `{total}`, the sum of all counts, and `{right}`, the share on the diagonal, are filled in.
        percent: whether cells are written as percentages of their true class instead of counts.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(0.22 * len(names) + 2.5, 4.5, 16))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    panel = figure.subplots()
    shown = panel.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    if len(names) <= MOST_NAMED:
        font = 9 if len(names) <= 20 else 6.5
        panel.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
        panel.set_yticks(range(len(names)), names, fontsize=font)
    if len(names) <= MOST_WRITTEN:
        written = 100 * shares if percent else counts
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column]:
                dark = shares[row, column] > 0.5
                panel.text(column, row, f"{written[row, column]:.0f}", ha="center", va="center",
                           color="white" if dark else "black", fontsize=8)  # fmt: skip
    panel.set_xlabel("predicted class")
    panel.set_ylabel("true class")
    total = float(counts.sum())
    panel.set_title(title.format(total=f"{total:.0f}", right=f"{counts.trace() / max(total, 1):.1%}"))
    figure.colorbar(shown, ax=panel, shrink=0.8, label="share of the true class")
    return figure
