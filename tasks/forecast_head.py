"""Forecast heads: the backbone's features of V maps -> the next T steps of every variate, in the data's own units.

Shapes: B batch, V maps per sample, N variates, T horizon, C channels, H height, W width, R rows and P columns
of a folded map in values; M = B·V.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backbone.unireplknet import LayerNorm2d


def undo_normalisation(forecast_BTN: Tensor, context: dict[str, Tensor]) -> Tensor:
    """Denormalises a forecast to the scale of its window (reversible instance normalisation, RevIN, Kim et al. 2022):
    `loc` and `scale` are (B, N)."""
    return forecast_BTN.float() * context["scale"][:, None] + context["loc"][:, None]


class KnownFuture(nn.Module):
    """An additive term from covariates for every step of a forecast, on the scale of its window: (B, T, N).

    An MLP is applied to each step separately. Its inputs are the known covariates of the step, their difference from
    their mean in the look-back, and the static covariates. Its last layer is initialised with zeros.

    Args:
        known, static: number of known and of static covariates.
        variates: N.
        horizon: T.
        hidden: width.
    """

    def __init__(self, known: int, static: int, variates: int, horizon: int, hidden: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.first = nn.Linear(2 * known + static, hidden)
        self.last = nn.Linear(hidden, variates)
        for start_at_zero in (self.first.bias, self.last.bias, self.last.weight):
            nn.init.zeros_(start_at_zero)

    def forward(self, context: dict[str, Tensor]) -> Tensor:
        parts = []
        if "known" in context:
            known_BXK = context["known"]
            future_BTK = known_BXK[:, -self.horizon :]
            parts += [future_BTK, future_BTK - known_BXK[:, : -self.horizon].mean(dim=1, keepdim=True)]
        if "static" in context:
            parts.append(context["static"][:, None].expand(-1, self.horizon, -1))
        x_BTK = torch.cat(parts, dim=2)
        added_BTN: Tensor = self.last(nn.functional.gelu(self.first(x_BTK.to(self.first.weight.dtype))))
        return added_BTN


def known_future(covariates: tuple[int, int], variates: int, horizon: int, hidden: int) -> KnownFuture | None:
    """The covariate module of a head; `None` without covariates."""
    return KnownFuture(*covariates, variates, horizon, hidden) if any(covariates) else None


class MapForecastHead(nn.Module):
    """Predicts the forecast as the future pixels of a folded map.

    The four feature maps are projected to one width, upsampled to the finest map's size and summed; each pixel then
    predicts `cell`² values, and the last rows, flattened in order of time, are the forecast.

    Args:
        widths: channels of the four feature maps.
        grid: (R, P).
        cell: side of the square of values that a pixel of the finest feature map represents.
        horizon: T.
        hidden: width of the summed map.
        dropout: rate before the last convolution.
        covariates: number of known and of static covariates (`KnownFuture`).
        variates: N; required with covariates.
    """

    def __init__(
        self,
        widths: Sequence[int],
        grid: tuple[int, int],
        cell: int,
        horizon: int,
        hidden: int = 64,
        dropout: float = 0.0,
        covariates: tuple[int, int] = (0, 0),
        variates: int = 0,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.cell = cell
        self.horizon = horizon
        self.lateral = nn.ModuleList(
            nn.Sequential(LayerNorm2d(width), nn.Conv2d(width, hidden, 1)) for width in widths
        )
        self.act = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.value = nn.Conv2d(hidden, cell * cell, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.future = known_future(covariates, variates, horizon, hidden)

    def forward(self, features: list[Tensor], views: int, context: dict[str, Tensor]) -> Tensor:
        """Four feature maps of M = B·V maps and the windows' statistics -> forecast (B, T, N)."""
        size = features[0].shape[-2:]
        x_MCHW = self.lateral[0](features[0])
        for lateral, feature in zip(self.lateral[1:], features[1:], strict=True):
            coarse_MCHW = lateral(feature)
            x_MCHW = x_MCHW + nn.functional.interpolate(coarse_MCHW, size=size, mode="bilinear")
        y_MHW = nn.functional.pixel_shuffle(self.value(self.dropout(self.act(x_MCHW))), self.cell)[:, 0]
        rows, period = self.grid
        future = math.ceil(self.horizon / period)
        y_MT = y_MHW[:, rows - future : rows, :period].flatten(1)[:, : self.horizon]
        y_BTN = y_MT.unflatten(0, (-1, views)).transpose(1, 2)
        if self.future is not None:
            y_BTN = y_BTN + self.future(context)
        return undo_normalisation(y_BTN, context)


class TokenForecastHead(nn.Module):
    """Decodes the last feature map of every token map into the next steps of its group of variates.

    Layer norm, 1 × 1 convolution to `hidden` channels, flattening (which keeps the positions, i.e. times, apart) and a
    linear layer.

    Args:
        in_features: channels of the last feature map.
        size: its height and width.
        group: variates of a map.
        horizon: T.
        hidden: channels of each pixel after the convolution.
        dropout: rate before the last linear layer.
        covariates: number of known and of static covariates (`KnownFuture`).
        variates: N; required with covariates.
    """

    def __init__(
        self,
        in_features: int,
        size: tuple[int, int],
        group: int,
        horizon: int,
        hidden: int = 64,
        dropout: float = 0.0,
        covariates: tuple[int, int] = (0, 0),
        variates: int = 0,
    ) -> None:
        super().__init__()
        self.group = group
        self.reduce = nn.Sequential(LayerNorm2d(in_features), nn.Conv2d(in_features, hidden, 1), nn.GELU())
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden * size[0] * size[1], horizon * group)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.future = known_future(covariates, variates, horizon, hidden)

    def forward(self, features: list[Tensor], views: int, context: dict[str, Tensor]) -> Tensor:
        """Four feature maps of M = B·V maps and the windows' statistics -> forecast (B, T, N)."""
        y_MK = self.linear(self.dropout(self.reduce(features[-1]).flatten(1)))
        y_BVTS = y_MK.unflatten(1, (-1, self.group)).unflatten(0, (-1, views))
        y_BTN = y_BVTS.transpose(1, 2).flatten(2)[..., : context["loc"].shape[-1]]
        if self.future is not None:
            y_BTN = y_BTN + self.future(context)
        return undo_normalisation(y_BTN, context)


def forecast_head(
    hidden: int = 64, dropout: float = 0.0, **sizes: Any
) -> MapForecastHead | TokenForecastHead:
    """The head for the type of maps: `MapForecastHead` if they have pixels for the future, else `TokenForecastHead`.

    Args:
        hidden, dropout: see either head.
        sizes: the head's other arguments, from `ForecastingTask.head_sizes`.
    """
    head = MapForecastHead if "grid" in sizes else TokenForecastHead
    return head(hidden=hidden, dropout=dropout, **sizes)
