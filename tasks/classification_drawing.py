"""Figures of a classification test.

Shapes: K classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_confusion(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> "Figure":
    """Draws a confusion matrix, normalised per true class."""
    from matplotlib.figure import Figure

    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(0.22 * len(names) + 2.5, 4.5, 16))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    panel = figure.subplots()
    shown = panel.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    if len(names) <= 60:
        font = 9 if len(names) <= 20 else 6.5
        panel.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
        panel.set_yticks(range(len(names)), names, fontsize=font)
    if len(names) <= 15:
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column]:
                dark = shares[row, column] > 0.5
                panel.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center",
                           color="white" if dark else "black", fontsize=8)  # fmt: skip
    panel.set_xlabel("predicted class")
    panel.set_ylabel("true class")
    accuracy = counts.trace() / max(counts.sum(), 1)
    panel.set_title(f"Confusion on the test split ({counts.sum():.0f} samples, {accuracy:.1%} right)")
    figure.colorbar(shown, ax=panel, shrink=0.8, label="share of the true class")
    return figure
