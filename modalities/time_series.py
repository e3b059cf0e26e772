"""Time series: the look-back of every variate becomes a 2-D map, folded by its period or made of tokens.

A raw batch is a dict: `values` (B, L, N), the look-back in the data's original units, and `calendar` (B, L + T,
F), calendar features of every past and future step (`tasks.datasets.time_series.windows`). Optional entries:
`observed` (B, L, N), 1 where a value is known, and the covariates `known` (B, L + T, K), `past`
(B, L, K) and `static` (B, K). Other entries are ignored.

Shapes: B batch, L look-back and T horizon in steps, N variates, F calendar features, K covariates, P steps of a
period, R rows of a map, V maps per sample, C channels, H height, W width, D width of a token, S variates of a token.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modalities.covariates import Covariates
from modalities.embedder import Embedder, MapAxes
from modalities.tensor_info import TensorInfo

RawSeries = dict[str, Tensor]
CENTRES = ("mean", "last", "season")
VARIANCE_FLOOR = 1e-5  # of a window, in units of the training variance (Kim et al. 2022, RevIN)
FACTOR_FLOOR = 1e-10  # keeps the learnt scale nonzero


class SeriesEmbedder(Embedder):
    """Base class of both embedders: sizes, training statistics, instance normalisation.

    Args:
        look_back, horizon: L and T.
        centre: value subtracted from a window before scaling: its `mean`; its `last` value, which suits series with
            random-walk behaviour (exchange rates); or the mean of its last `season`, which follows the level without
            the season's swing.
        mean, std: of every variate (N,), measured on the training split.
        num_calendar: F.
        step: name of the time step, for axis labels.
        masked: whether the data have gaps, so that an exported model takes `observed` as an input.
        covariates: maps each kind (known, past, static) to the `mean` and `std` of its covariates.
        found: period detected in the training split, in steps: the season of `centre=season`. `None`, where there is
            none, makes that the last value.
    """

    raw_ndim = 3
    mean: Tensor
    std: Tensor
    has_future = (
        False  # whether the maps have pixels for the horizon, from which a head can read its forecast
    )

    def __init__(
        self,
        look_back: int,
        horizon: int,
        centre: str,
        mean: Sequence[float],
        std: Sequence[float],
        num_calendar: int,
        step: str,
        masked: bool = False,
        covariates: Mapping[str, Any] | None = None,
        found: int | None = None,
    ) -> None:
        super().__init__()
        if look_back < 2 or horizon < 1:
            raise ValueError(
                f"look_back must be at least 2 and horizon at least 1, not {look_back} and {horizon}"
            )
        if centre not in CENTRES:
            raise ValueError(f"centre must be one of {', '.join(CENTRES)}, not {centre!r}")
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError("mean and std need one entry per variate, and std must be positive")
        self.look_back = look_back
        self.horizon = horizon
        self.level_steps = {"mean": look_back, "last": 1, "season": found or 1}[centre]
        self.num_calendar = num_calendar
        self.step = step
        self.masked = masked
        self.covariates = Covariates(covariates) if covariates else None
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @classmethod
    def data_arguments(cls, data_info: dict[str, Any]) -> dict[str, Any]:
        count = len(data_info["mean"])
        scaled = data_info.get("scaled", False)  # already standardised by the dataset, in double precision
        return {
            "mean": [0.0] * count if scaled else data_info["mean"],
            "std": [1.0] * count if scaled else data_info["std"],
            "num_calendar": len(data_info["calendar"]),
            "step": data_info["frequency"],
            "masked": data_info.get("gaps", False),
            "covariates": data_info.get("covariates"),
            "found": data_info["period"],
        }

    @property
    def num_variates(self) -> int:
        return len(self.mean)

    def context(self, raw: RawSeries) -> dict[str, Tensor]:
        """Location `loc` and scale `scale` of every window, (B, N) in original units, to undo the
        normalisation."""
        values_BLN = raw["values"].float()
        if values_BLN.shape[1:] != (self.look_back, self.num_variates):
            raise ValueError(
                f"the model reads {self.look_back} steps of {self.num_variates} variates, "
                f"not {values_BLN.shape[1]} of {values_BLN.shape[2]}"
            )
        # Standardised with training statistics, so that the variance floor is comparable across variates.
        x_BLN = (values_BLN - self.mean) / self.std
        if "observed" in raw:
            variance_BN, mean_BN = masked_moments(x_BLN, raw["observed"].to(x_BLN))
        else:
            variance_BN, mean_BN = torch.var_mean(x_BLN, dim=1, correction=0)
        loc_BN = mean_BN if self.level_steps >= self.look_back else x_BLN[:, -self.level_steps :].mean(1)
        scale_BN = (variance_BN + VARIANCE_FLOOR).sqrt()
        context = self.learnt({"loc": loc_BN * self.std + self.mean, "scale": scale_BN * self.std})
        return context if self.covariates is None else context | self.covariates.context(raw)

    def learnt(self, context: dict[str, Tensor]) -> dict[str, Tensor]:
        """Applies learnt changes to `loc` and `scale`; the identity by default."""
        return context

    def normalise(self, raw: RawSeries) -> Tensor:
        """Instance-normalised look-back, 0 where a value is missing: (B, N, L)."""
        context = self.context(raw)
        x_BLN = (raw["values"].float() - context["loc"][:, None]) / context["scale"][:, None]
        if "observed" in raw:
            x_BLN = x_BLN * raw["observed"].to(x_BLN)
        return x_BLN.transpose(1, 2)

    def example_raw(self, batch_size: int = 1) -> RawSeries:
        device = self.mean.device
        noise_BLN = torch.randn(batch_size, self.look_back, self.num_variates, device=device)
        steps = self.look_back + self.horizon
        calendar_BLF = 2 * torch.rand(batch_size, steps, self.num_calendar, device=device) - 1
        raw = {"values": self.mean + self.std * noise_BLN, "calendar": calendar_BLF}
        if self.masked:
            raw["observed"] = torch.ones_like(noise_BLN)
        if self.covariates is not None:
            raw |= self.covariates.example_raw(batch_size, self.look_back, self.horizon)
        return raw

    def raw_info(self) -> dict[str, TensorInfo]:
        info = {
            "values": TensorInfo(
                "the look-back of every variate, oldest step first, in the data's own units; where a value is missing, "
                "the last one before it",
                ("batch", "step", "variate"),
                {"step": self.step},
            ),
            "calendar": TensorInfo(
                "calendar features in [-1, 1] of every step of the look-back and then of the horizon",
                ("batch", "step", "feature"),
            ),
            "observed": TensorInfo(
                "1 where a value is known, 0 where it is missing", ("batch", "step", "variate")
            ),
            "known": TensorInfo(
                "covariates whose future is known, of every step of the look-back and then of the horizon, in their "
                "own units",
                ("batch", "step", "covariate"),
            ),
            "past": TensorInfo(
                "covariates of every step of the look-back, in their own units",
                ("batch", "step", "covariate"),
            ),
            "static": TensorInfo(
                "covariates with one value a series, in their own units", ("batch", "covariate")
            ),
        }
        given = {"values", "calendar"} | ({"observed"} if self.masked else set())
        given |= set() if self.covariates is None else set(self.covariates.sizes)
        return {name: one for name, one in info.items() if name in given}


class Fold(SeriesEmbedder):
    """Folds each variate into a map with one period per row; the rows of the horizon are empty, to be predicted.

    ``values (B, L, N), calendar (B, L + T, F) -> (B, N, C, R·pixel, P·pixel)``. A 2-D kernel then covers
    neighbouring steps along a row and the same phase of neighbouring periods along a column (as in TimesNet,
    Wu et al. 2023, arXiv 2210.02186). The look-back ends at the end of a row, so the horizon starts a new one; the
    first and last rows are padded. Channels: the normalised value; for each further period, the value that many
    steps earlier; a mask, 1 where the value is known; the calendar features; the covariates. Empty
    pixels are 0, the window's centre.

    Args:
        look_back, horizon, centre, mean, std, num_calendar, step, masked, covariates, found: see `SeriesEmbedder`.
        periods: in steps; the first is the row length, each further one adds a lagged channel. `None` uses
            `found`; without it, too, the map is nearly square.
        calendar: whether to add the calendar channels.
        pixel: side in pixels of the square that represents one value. With `pixel` equal to the stem's stride there
            is one feature per value; with a smaller one, a feature covers several values.

    Raises:
        ValueError: invalid map settings.

    Example:
        >>> Fold(look_back=96, horizon=96, periods=[24])({"values": torch.randn(2, 96, 1), "calendar":
        ...     torch.zeros(2, 192, 4)}).shape
        torch.Size([2, 1, 6, 8, 24])
    """

    has_future = True

    def __init__(
        self,
        look_back: int = 96,
        horizon: int = 96,
        periods: Sequence[int] | None = None,
        found: int | None = None,
        centre: str = "mean",
        calendar: bool = True,
        pixel: int = 1,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        num_calendar: int = 4,
        step: str = "step",
        masked: bool = False,
        covariates: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(look_back, horizon, centre, mean, std, num_calendar, step, masked, covariates, found)
        chosen = list(periods or ()) or [found or round(math.sqrt(look_back))]
        if pixel < 1 or min(chosen) < 2 or max(chosen) > look_back:
            raise ValueError(
                f"pixel must be at least 1 and every period between 2 and the look-back of {look_back} "
                f"steps, not {pixel} and {chosen}"
            )
        self.period, self.further = chosen[0], tuple(chosen[1:])
        self.pixel = pixel
        self.calendar = calendar
        self.past_rows = math.ceil(look_back / self.period)
        self.future_rows = math.ceil(horizon / self.period)
        self.out_chans = 2 + len(self.further) + (num_calendar if calendar else 0)
        if self.covariates is not None:
            self.out_chans += self.covariates.count

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a map, in values."""
        return self.past_rows + self.future_rows, self.period

    def forward(self, raw: RawSeries) -> Tensor:
        with torch.autocast(raw["values"].device.type, enabled=False):
            known_BNL = self.normalise(raw)
            value_BNX = self.lay_out(known_BNL, 0)
            channels = [value_BNX]
            channels += [self.lay_out(known_BNL, lag) for lag in self.further]
            seen_BNL = (
                raw["observed"].to(known_BNL).transpose(1, 2)
                if "observed" in raw
                else torch.ones_like(known_BNL)
            )
            channels.append(self.lay_out(seen_BNL, 0))
            x_BNCX = torch.stack(channels, dim=2)
            if self.calendar:
                calendar_BFX = self.pad(raw["calendar"].float().transpose(1, 2), self.look_back)
                x_BNCX = self.for_all_variates(x_BNCX, calendar_BFX)
            if self.covariates is not None:
                for covariates_BXK in self.covariates.in_time(raw):
                    x_BNCX = self.for_all_variates(
                        x_BNCX, self.pad(covariates_BXK.transpose(1, 2), self.look_back)
                    )
            x_BNCRP = x_BNCX.unflatten(-1, self.grid)
            return x_BNCRP.repeat_interleave(self.pixel, -2).repeat_interleave(self.pixel, -1)

    def for_all_variates(self, x_BNCX: Tensor, more_BKX: Tensor) -> Tensor:
        """Append channels shared by the maps of all variates."""
        return torch.cat([x_BNCX, more_BKX[:, None].expand(-1, x_BNCX.shape[1], -1, -1)], dim=2)

    def lay_out(self, x_BNL: Tensor, lag: int) -> Tensor:
        """The look-back delayed by `lag` steps, on all pixels of the map in time order: (B, N, R·P)."""
        return self.pad(x_BNL, self.look_back - lag)

    def pad(self, x: Tensor, past: int) -> Tensor:
        """Pad (…, steps) to the R·P pixels of a map, with step `past` at the first pixel of the horizon."""
        before = self.past_rows * self.period - past
        after = (self.past_rows + self.future_rows) * self.period - before - x.shape[-1]
        return nn.functional.pad(x, (before, after))

    def map_axes(self) -> MapAxes:
        rows = self.past_rows + self.future_rows
        every = max(1, rows // 8)
        ticks = tuple(
            ((row + 0.5) * self.pixel, f"{row - self.past_rows:+d}" if row != self.past_rows else "next")
            for row in range(rows)
            if (row - self.past_rows) % every == 0
        )
        return MapAxes(
            x=f"place in the period (steps of {self.step})",
            y="period, from the forecast's start",
            x_range=(0.0, float(self.period)),
            y_ticks=ticks,
            value="value, normalised by its window",
            channel=0,
        )


class TokenMap(SeriesEmbedder):
    """The UniRepLKNet paper's embedding: the tokens of a group of variates, reshaped into a near-square map.

    ``values (B, L, N), calendar (B, L + T, F) -> (B, V, 1, H, W)`` with V = ⌈N / S⌉ and H·W = L·D (48 tokens
    of width 768 give 192×192). A token is a circular convolution over three steps of S variates, plus linear
    embeddings of the calendar and of the S station positions (arXiv 2410.08049, Section 4, after Corrformer, Wu et al.
    2023).

    Args:
        look_back, horizon, centre, mean, std, num_calendar, step, masked, covariates, found: see `SeriesEmbedder`.
        group: S; an incomplete last group is zero-padded.
        width: D.
        dropout: dropout rate after the sum.
        affine: learn a scale w and a shift b for each position in a group, shared by all groups, applied to the
            normalised values and inverted on the forecast (RevIN, Kim et al. 2022, equations 2 and 3).
        positions: coordinates of every variate, (N, any number), or empty if variates have no location.

    Example:
        >>> TokenMap(look_back=48, horizon=24, width=768)(
        ...     {"values": torch.randn(1, 48, 1), "calendar": torch.zeros(1, 72, 4)}).shape
        torch.Size([1, 1, 1, 192, 192])
    """

    out_chans = 1
    places: Tensor

    def __init__(
        self,
        look_back: int = 48,
        horizon: int = 24,
        group: int = 11,
        width: int = 768,
        centre: str = "mean",
        dropout: float = 0.1,
        affine: bool = False,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        num_calendar: int = 4,
        step: str = "step",
        positions: Sequence[Sequence[float]] = (),
        masked: bool = False,
        covariates: Mapping[str, Any] | None = None,
        found: int | None = None,
    ) -> None:
        super().__init__(look_back, horizon, centre, mean, std, num_calendar, step, masked, covariates, found)
        if group < 1 or width < 1:
            raise ValueError(f"group and width must be at least 1, not {group} and {width}")
        self.group = min(group, self.num_variates)
        self.views = math.ceil(self.num_variates / self.group)
        self.map_size = near_square(look_back * width)
        self.token = nn.Conv1d(self.group, width, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.token.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.calendar = nn.Linear(num_calendar, width, bias=False)
        self.covariate = (
            None if self.covariates is None else nn.Linear(self.covariates.count, width, bias=False)
        )
        if len(positions) not in (0, self.num_variates):
            raise ValueError(f"{len(positions)} positions were given for {self.num_variates} variates")
        places_VK = torch.zeros(0, 0)
        if positions:
            places_ND = torch.tensor(positions, dtype=torch.float32)
            places_ND = (places_ND - places_ND.mean(0)) / places_ND.std(0, correction=0).clamp(min=1e-6)
            places_VK = self._fill_up(places_ND.T).T.reshape(self.views, -1)
        self.register_buffer("places", places_VK, persistent=False)
        self.place = nn.Linear(places_VK.shape[1], width) if positions else None
        self.dropout = nn.Dropout(dropout)
        self.factor = nn.Parameter(torch.ones(self.group)) if affine else None
        self.shift = nn.Parameter(torch.zeros(self.group)) if affine else None

    @classmethod
    def data_arguments(cls, data_info: dict[str, Any]) -> dict[str, Any]:
        return super().data_arguments(data_info) | {"positions": data_info.get("positions", ())}

    def learnt(self, context: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.factor is None or self.shift is None:
            return context
        # w·(x − loc) / scale + b equals (x − loc') / scale' with these, so the same code inverts both.
        factor_N = self.factor.repeat(self.views)[: self.num_variates] + FACTOR_FLOOR
        shift_N = self.shift.repeat(self.views)[: self.num_variates]
        scale_BN = context["scale"] / factor_N
        return {"loc": context["loc"] - shift_N * scale_BN, "scale": scale_BN}

    def _fill_up(self, x: Tensor) -> Tensor:
        """Zero-pad (…, N) -> (…, V·S)."""
        return nn.functional.pad(x, (0, self.views * self.group - self.num_variates))

    def forward(self, raw: RawSeries) -> Tensor:
        with torch.autocast(raw["values"].device.type, enabled=False):
            x_BLN = self.normalise(raw).transpose(1, 2)
            x_BVSL = self._fill_up(x_BLN).unflatten(-1, (self.views, self.group)).permute(0, 2, 3, 1)
        x_BVLD = self.token(x_BVSL.flatten(0, 1)).transpose(1, 2).unflatten(0, (-1, self.views))
        calendar_BLF = raw["calendar"][:, : self.look_back].to(self.calendar.weight.dtype)
        x_BVLD = x_BVLD + self.calendar(calendar_BLF)[:, None]
        if self.covariate is not None and self.covariates is not None:
            now_BLK = [part_BXK[:, : self.look_back] for part_BXK in self.covariates.in_time(raw)]
            covariates_BLK = torch.cat(now_BLK, dim=2).to(self.covariate.weight.dtype)
            x_BVLD = x_BVLD + self.covariate(covariates_BLK)[:, None]
        if self.place is not None:
            x_BVLD = x_BVLD + self.place(self.places)[:, None]
        x_BVLD = self.dropout(x_BVLD)
        return x_BVLD.flatten(2).unflatten(2, self.map_size)[:, :, None]

    def map_axes(self) -> MapAxes:
        return MapAxes(
            x="place in the map (pixels)", y="tokens in order of time (pixels)", value="token value"
        )


def masked_moments(x_BLN: Tensor, observed_BLN: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean (B, N) of the values where `observed_BLN` is 1; of all values if none is observed."""
    weight_BLN = torch.where(observed_BLN.sum(dim=1, keepdim=True) > 0, observed_BLN, 1.0)
    count_BN = weight_BLN.sum(dim=1)
    mean_BN = (x_BLN * weight_BLN).sum(dim=1) / count_BN
    variance_BN = ((x_BLN - mean_BN[:, None]).square() * weight_BLN).sum(dim=1) / count_BN
    return variance_BN, mean_BN


def near_square(area: int) -> tuple[int, int]:
    """Height and width (height <= width) with exactly this area, as close to a square as possible.

    >>> near_square(48 * 768)
    (192, 192)
    """
    height = next(side for side in range(math.isqrt(area), 0, -1) if area % side == 0)
    return height, area // height


def find_period(values_TN: NDArray[np.float64], longest: int) -> int | None:
    """The dominant period of a series in steps, or ``None`` if there is none.

    The differenced series (differencing removes drift) is autocorrelated by FFT and averaged over variates; the
    period is the shortest lag with a peak of at least three quarters of the highest. Peaks before the
    autocorrelation first falls below zero are ignored as ripple on a smooth course, as are peaks below 0.1 or
    within chance level. The estimate is then refined to the neighbouring lag with the highest mean autocorrelation
    at its multiples, which is more robust to noise.

    Args:
        values_TN: the training split, without gaps, in any units.
        longest: maximum period.

    >>> find_period(np.sin(2 * np.pi * np.arange(500)[:, None] / 24), longest=96)
    24
    """
    values_TN = np.asarray(values_TN, dtype=np.float64)
    values_TN = values_TN[:, np.diff(values_TN, axis=0).std(axis=0) > 1e-12]
    longest = min(longest, len(values_TN) // 3)
    if values_TN.shape[1] == 0 or longest < 2:
        return None
    likeness_L = autocorrelation(np.diff(values_TN, axis=0))
    lags_L, chance = np.arange(longest + 1), 2 / math.sqrt(len(values_TN))
    # From lag 2 on: differenced noise is negatively correlated at lag 1.
    unlike_L = (likeness_L[lags_L] < -chance) & (lags_L > 1)
    first = int(unlike_L.argmax()) if unlike_L.any() else longest
    peaks = []
    for lag in range(max(first, 2), longest + 1):
        reach = max(lag // 20, 1)
        if likeness_L[lag] == likeness_L[lag - reach : lag + reach + 1].max():
            peaks.append(lag)
    highest = max((likeness_L[lag] for lag in peaks), default=0.0)
    if highest < max(0.1, 2 * chance):
        return None
    peak = next(lag for lag in peaks if likeness_L[lag] >= 0.75 * highest)
    # Subtracting a running mean, unlike differencing, removes drift without amplifying noise.
    width = 2 * peak + 1
    total_TN = np.cumsum(np.pad(values_TN, ((peak + 1, peak), (0, 0)), mode="edge"), axis=0)
    level_TN = (total_TN[width:] - total_TN[:-width]) / width
    likeness_L = autocorrelation(values_TN[: len(level_TN)] - level_TN)
    beside = range(max(peak - max(peak // 5, 1), 2), min(peak + max(peak // 5, 1), longest) + 1)
    return max(beside, key=lambda lag: likeness_L[lag::lag].mean())


def autocorrelation(x_TN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Autocorrelation at lags 0 to T/2, averaged over variates, each standardised first."""
    x_TN = (x_TN - x_TN.mean(axis=0)) / x_TN.std(axis=0)
    count = len(x_TN)
    lags = np.arange(count // 2)
    power_K = (np.abs(np.fft.rfft(x_TN, n=2 * count, axis=0)) ** 2).mean(axis=1)
    return np.asarray(np.fft.irfft(power_K)[lags] / (count - lags))
