"""Figures of features: a PCA scatter plot, and hyperparameter selection by validation."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA

MOST_POINTS = 3000
METRICS = {
    "knn_acc": "accuracy of k nearest neighbours",
    "knn_map": "mean average precision of k nearest neighbours",
    "linear_acc": "accuracy of logistic regression",
    "linear_map": "mean average precision of logistic regression",
}
MOST_NAMED = 20  # maximum number of classes listed in the legend


def scatter(
    basis_ND: NDArray[Any],
    shown_ND: NDArray[Any],
    targets_N: NDArray[np.int64] | None,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """Scatter plot over the first two principal components of `basis_ND`, coloured by class.

    Args:
        basis_ND: features to which the PCA is fitted (of the training split).
        shown_ND: features to plot.
        targets_N: their class indices, -1 for none; None if there are no classes.
        class_names: names of the classes.
        title: title of the figure.
    """
    components = min(2, basis_ND.shape[1], len(basis_ND))
    pca = PCA(components, svd_solver="full").fit(basis_ND.astype(np.float64))
    xy_N2 = np.zeros((len(shown_ND), 2))
    xy_N2[:, :components] = pca.transform(shown_ND.astype(np.float64))
    shares = [*pca.explained_variance_ratio_, 0.0]
    figure, panel = plt.subplots(figsize=(7.6, 5.6), layout="constrained")
    there = [] if targets_N is None else [int(k) for k in np.unique(targets_N) if k >= 0]
    named = len(there) <= MOST_NAMED
    if targets_N is None or not there:
        panel.scatter(xy_N2[:, 0], xy_N2[:, 1], s=10, color="tab:blue", linewidths=0)
    else:
        colours = plt.get_cmap("tab10" if len(there) <= 10 else "tab20" if named else "hsv")
        lacking = targets_N < 0
        panel.scatter(xy_N2[lacking, 0], xy_N2[lacking, 1], s=8, color="lightgrey", linewidths=0)
        for number, k in enumerate(there):
            own = targets_N == k
            colour = colours(number if named else number / len(there))
            panel.scatter(
                xy_N2[own, 0], xy_N2[own, 1], s=12, color=[colour], linewidths=0, label=_short(class_names[k])
            )
        if named:
            figure.legend(loc="outside right upper", fontsize=8, markerscale=1.6, frameon=False)
        else:
            title += f" ({len(there)} classes, a colour each)"
    panel.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    panel.set_ylabel(f"second principal component ({shares[1]:.0%} of the variance)")
    panel.set_title(title, fontsize=10, wrap=True)
    panel.grid(alpha=0.25)
    return figure


def chosen_by_validation(
    details: dict[str, Any], chosen: float, test: float, floor: float | None, metric: str, title: str
) -> Figure:
    """Validation metric over the hyperparameter (k or C), the chosen value, and its test metric."""
    values = {float(key): value for key, value in details["val"].items()}
    figure, panel = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    panel.plot(list(values), list(values.values()), marker="o", label="validation")
    panel.scatter(
        [chosen], [test], marker="*", s=130, color="tab:orange", zorder=3, label=f"test: {test:.3f}"
    )
    panel.axvline(chosen, color="grey", linewidth=1, linestyle=":")
    if floor is not None:
        panel.axhline(
            floor, color="grey", linewidth=1, linestyle="--", label=f"most frequent class: {floor:.3f}"
        )
    panel.set_xscale("log")
    panel.set_xticks(list(values), [f"{value:g}" for value in values], minor=False)
    panel.set_xticks([], minor=True)
    labels = {"k": "k, nearest training samples", "C": "C, inverse strength of the penalty"}
    panel.set_xlabel(labels[details["over"]])
    panel.set_ylabel(METRICS.get(metric, metric))
    panel.set_title(title, fontsize=10, wrap=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=9)
    return figure


def over_shots(details: dict[str, Any], floor: float | None, title: str) -> Figure:
    """Test accuracy over the number of training samples per class: mean and standard deviation over draws."""
    shots = [int(key) for key in details["accuracies"]]
    draws = [np.array(one["test"]) for one in details["accuracies"].values()]
    figure, panel = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    deviations = [one.std(ddof=1) if len(one) > 1 else 0.0 for one in draws]
    panel.errorbar(shots, [one.mean() for one in draws], yerr=deviations, marker="o", capsize=4, label="test")
    if floor is not None:
        panel.axhline(
            floor, color="grey", linewidth=1, linestyle="--", label=f"most frequent class: {floor:.3f}"
        )
    panel.set_xscale("log")
    panel.set_xticks(shots, [str(k) for k in shots], minor=False)
    panel.set_xticks([], minor=True)
    panel.set_xlabel("training samples of each class")
    panel.set_ylabel(f"accuracy (mean ± standard deviation of {details['draws']} draws)")
    panel.set_title(title, fontsize=10, wrap=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=9)
    return figure


def _short(name: str, most: int = 24) -> str:
    text = name if len(name) <= most else f"{name[: most - 1]}…"
    return text.replace("$", r"\$").lstrip("_") or "?"
