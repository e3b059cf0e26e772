"""Effective receptive field: which input pixels a central feature depends on, and how far away they are.

The protocol of RepLKNet (Ding et al. 2022, arXiv 2203.06717, Section 4 and its released scripts), after Luo et
al. 2016 (arXiv 1701.04128): the gradient of the summed central feature with respect to the input, with features and
gradient clamped at 0, summed over channels, averaged over inputs; then log10(x + 1), divided by its maximum.

Shapes: N maps, C channels, H height and W width in map pixels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


@dataclass(frozen=True)
class Area:
    """The smallest rectangle around the centre with more than ``threshold`` of all contributions.

    Args:
        threshold: fraction of all contributions.
        side: of the rectangle in map pixels, before clipping at the edges of the map.
        ratio: fraction of the map's area it covers.
    """

    threshold: float
    side: int
    ratio: float


@dataclass(frozen=True)
class ReceptiveField:
    """Result of :func:`effective_receptive_field`.

    Args:
        scores_HW: contribution of every pixel, averaged over inputs, unscaled; float64.
        inputs: number of maps averaged.
        left_out: number of maps excluded because of a non-finite gradient.
        centre: row and column of the pixel at the centre of the rectangles.
        areas: one per threshold, of the log-scaled scores as published.
    """

    scores_HW: Tensor
    inputs: int
    left_out: int
    centre: tuple[int, int]
    areas: tuple[Area, ...]

    @property
    def support(self) -> tuple[int, int]:
        """Height and width of the bounding box of all pixels with a contribution above 0."""
        rows, columns = (self.scores_HW.sum(dim=side).nonzero().flatten() for side in (1, 0))
        if len(rows) == 0:
            return 0, 0
        return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


def effective_receptive_field(
    features: Callable[[Tensor], Tensor],
    maps: Iterable[Tensor],
    stride: int | None = None,
    offset: float = 0.0,
    thresholds: Iterable[float] = THRESHOLDS,
) -> ReceptiveField:
    """Effective receptive field of the central feature.

    Args:
        features: maps ``(N, C, H, W)`` -> features ``(N, D, h, w)``, in evaluation mode.
        maps: batches of maps, all of one H and W.
        stride: stride of the features in map pixels; the rectangles are then centred on the input pixel of the central
            feature, ``stride`` times its index (the middle pixel if there is only one feature). ``None`` centres them
            on the middle pixel, as published; identical if the sides are multiples of the stride.
        offset: added to that pixel, for networks whose features are centred on a patch rather than its
            corner (:func:`backbone.probes.layers.centre_offset`).
        thresholds: fractions of all contributions, each in (0, 1).

    Raises:
        ValueError: no maps, maps of several sizes, or no map with a finite gradient.
    """
    total: Tensor | None = None
    count, left_out = 0, 0
    place = (0, 0)
    for maps_NCHW in maps:
        scores_NHW, place = contribution_scores(features, maps_NCHW)
        finite_N = scores_NHW.flatten(1).isfinite().all(dim=1)
        scores_HW = scores_NHW[finite_N].sum(dim=0)
        if total is not None and total.shape != scores_HW.shape:
            raise ValueError(
                f"maps of one size are needed, not {list(total.shape)} and {list(scores_HW.shape)}"
            )
        total = scores_HW if total is None else total + scores_HW
        count += int(finite_N.sum())
        left_out += int((~finite_N).sum())
    if total is None or count == 0:
        raise ValueError(f"no map gave a finite gradient ({left_out} were tried)")
    scores_HW = (total / count).cpu()
    row, column = (_looked_at(place[side], stride, offset, scores_HW.shape[side]) for side in (0, 1))
    scaled_HW = log_scaled(scores_HW)
    areas = tuple(high_contribution_area(scaled_HW, share, (row, column)) for share in thresholds)
    return ReceptiveField(scores_HW, count, left_out, (row, column), areas)


def _looked_at(place: int, stride: int | None, offset: float, size: int) -> int:
    if stride is None or place == 0:
        return size // 2
    return min(int(place * stride + offset), size - 1)


def contribution_scores(
    features: Callable[[Tensor], Tensor], maps_NCHW: Tensor
) -> tuple[Tensor, tuple[int, int]]:
    """Positive gradient of each map's rectified central feature with respect to its pixels, summed over channels.

    Returns:
        Non-negative scores ``(N, H, W)``, float64; and row and column of the central feature.
    """
    maps_NCHW = maps_NCHW.detach().requires_grad_(True)
    with torch.enable_grad():
        features_NDhw = features(maps_NCHW)
        row, column = features_NDhw.shape[-2] // 2, features_NDhw.shape[-1] // 2
        central = features_NDhw[:, :, row, column].relu().sum()
        (gradient_NCHW,) = torch.autograd.grad(central, maps_NCHW)
    return gradient_NCHW.relu().sum(dim=1, dtype=torch.float64), (row, column)


def log_scaled(scores_HW: Tensor) -> Tensor:
    """log10(x + 1) divided by its maximum, as published, because scores span orders of magnitude.

    The logarithm compresses large scores only: for scores far below 1 it only changes the scale.
    """
    logs_HW = (scores_HW + 1).log10()
    return logs_HW / logs_HW.max().clamp(min=torch.finfo(logs_HW.dtype).tiny)


def high_contribution_area(
    scores_HW: Tensor, threshold: float, centre: tuple[int, int] | None = None
) -> Area:
    """The smallest square of side 2i + 1 around ``centre`` with more than ``threshold`` of the sum.

    It is clipped at the edges, so on a non-square map it keeps growing along the longer side. The
    published script starts at a side of 3 pixels and requires square maps; this one starts at 1.

    Raises:
        ValueError: a threshold outside (0, 1), or scores that are all 0.

    >>> high_contribution_area(torch.ones(9, 9), 0.5)
    Area(threshold=0.5, side=7, ratio=0.6049382716049383)
    """
    if not 0 < threshold < 1:
        raise ValueError(f"a threshold must lie between 0 and 1, not {threshold}")
    height, width = scores_HW.shape
    row, column = centre if centre is not None else (height // 2, width // 2)
    total = scores_HW.sum()
    if total <= 0:
        raise ValueError("the central feature depends on no pixel: every contribution is 0")
    for reach in range(max(height, width)):
        window = scores_HW[
            max(row - reach, 0) : row + reach + 1,
            max(column - reach, 0) : column + reach + 1,
        ]
        if window.sum() / total > threshold:
            break
    return Area(threshold, 2 * reach + 1, window.numel() / scores_HW.numel())
