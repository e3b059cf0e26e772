"""Forecasting: the next steps of every variate of a series.

Shapes: B batch, L look-back and T horizon in steps, N variates.
"""

import logging
import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from backbone.protocol import Backbone
from modalities.embedder import Embedder
from modalities.tensor_info import TensorInfo
from tasks.datasets.batch import Batch
from tasks.datasets.time_series.dates import NO_ZONE
from tasks.forecasting_drawing import draw_error_by_step, draw_folded, draw_forecasts
from tasks.task import Prediction, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("widefield")

BASELINES = ("naive", "seasonal_naive")
LOSS_SCALES = ("standardised", "own_units")
SINGLE_DIGITS = 7
SHOWN = 4  # number of test windows kept for figures …
SHOWN_VARIATES = 8  # … and of their variates: the last ones, usually including a table's target


class ForecastErrors(Metric):
    """Squared and absolute errors per step and variate, summed over all windows, independent of the batch size.

    Args:
        horizon, variates: T and N.
    """

    full_state_update = False
    squared: Tensor
    absolute: Tensor
    count: Tensor
    windows: Tensor

    def __init__(self, horizon: int, variates: int) -> None:
        super().__init__()
        zeros_TN = torch.zeros(horizon, variates, dtype=torch.float64)
        for name in ("squared", "absolute", "count"):
            self.add_state(name, zeros_TN.clone(), dist_reduce_fx="sum")
        self.add_state("windows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, forecast_BTN: Tensor, truth_BTN: Tensor) -> None:
        """Adds windows; a NaN in `truth_BTN` is a missing value and is ignored."""
        error_BTN = (forecast_BTN - truth_BTN).detach().double()
        seen_BTN = ~torch.isnan(truth_BTN)
        error_BTN = torch.where(seen_BTN, error_BTN, 0.0)
        self.squared += error_BTN.square().sum(dim=0)
        self.absolute += error_BTN.abs().sum(dim=0)
        self.count += seen_BTN.sum(dim=0)
        self.windows += len(error_BTN)

    def compute(self) -> Tensor:
        """Mean squared and absolute errors over windows, (2, T, N); NaN where no value was observed."""
        return torch.stack([self.squared, self.absolute]) / self.count

    def observed(self) -> tuple[int, int]:
        """Total number of observed and of missing targets."""
        seen = int(self.count.sum())
        return seen, int(self.windows) * self.count.numel() - seen


class ForecastingTask(Task):
    """Multivariate forecasting of the horizon from the look-back window.

    The network predicts in the data's own units; MSE and MAE are on the standardised scale (mean and standard
    deviation of the training split), as in published tables; the loss is on either scale. A test also evaluates two
    baselines, `naive` (repeats the last value) and `seasonal_naive` (repeats the last season), and the errors in own
    units.

    Missing targets (NaN) are ignored in the loss and the metrics; a test reports the number of observed ones.
    If samples have a scale of their own (`level` and `unit`, see `SeriesData`), the network predicts on that scale,
    which is the standardised one, and predictions are converted to own units in double precision.

    Data info: `variates` (names), `mean` and `std` of each, `horizon`, `season` in steps, `frequency`;
    `scaled`, `gaps`.

    Args:
        loss: (forecast (B, T, N), truth (B, T, N)) -> scalar, e.g. `torch.nn.MSELoss`.
        loss_in: scale of the loss: `standardised`, which weights all variates equally, or `own_units`, which gives
            variates of large variance more weight.
        **settings: see `Task`.
    """

    shown_metric = "mse"
    regression = True
    mean: Tensor
    std: Tensor

    def __init__(self, loss: nn.Module, loss_in: str = "standardised", **settings: Any) -> None:
        super().__init__(**settings)
        if loss_in not in LOSS_SCALES:
            raise ValueError(f"loss_in must be one of {', '.join(LOSS_SCALES)}, not {loss_in!r}")
        self.loss = loss
        self.loss_in = loss_in
        self.variates: list[str] = list(self.data_info["variates"])
        self.season = int(self.data_info["season"])
        count = len(self.variates)
        scaled = self.data_info.get("scaled", False)
        mean, std = (
            ([0.0] * count, [1.0] * count) if scaled else (self.data_info["mean"], self.data_info["std"])
        )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)
        size = (int(self.data_info["horizon"]), count)
        names = ("train", "val", "test", "own", *BASELINES)
        self.errors = nn.ModuleDict({f"{name}_errors": ForecastErrors(*size) for name in names})
        self.examples: list[dict[str, Any]] = []
        self.wanted: set[int] = set()  # indices of the test windows to keep
        self.found: dict[str, tuple[Tensor, Tensor]] = {}  # MSE and MAE of the last test, (T, N)
        self.own_units: tuple[Tensor, Tensor] | None = None  # MSE and MAE of every variate, in own units

    @classmethod
    def metric_names(cls, data_info: dict[str, Any]) -> tuple[str, ...]:
        return ("mse", "mae", "loss")

    @classmethod
    def wants_pyramid(cls, embedder: Embedder) -> bool:
        return bool(getattr(embedder, "has_future", False))

    @classmethod
    def head_sizes(cls, data_info: dict[str, Any], embedder: nn.Module, backbone: Backbone) -> dict[str, Any]:
        stages = backbone.feature_info
        parts: Any = embedder
        kinds = data_info.get("covariates", {})
        counts = tuple(len(kinds.get(kind, {}).get("names", ())) for kind in ("known", "static"))
        extra = {"covariates": counts, "variates": len(data_info["variates"])} if any(counts) else {}
        if not parts.has_future:
            size = tuple(-(-side // stages[-1]["reduction"]) for side in parts.map_size)
            return {
                "in_features": backbone.num_features,
                "size": size,
                "group": parts.group,
                "horizon": data_info["horizon"],
                **extra,
            }
        stride = stages[0]["reduction"]
        if stride % parts.pixel:
            raise ValueError(
                f"pixel={parts.pixel} must divide the stride {stride} of the backbone's first feature map"
            )
        return {
            "widths": [stage["num_chs"] for stage in stages],
            "grid": parts.grid,
            "cell": stride // parts.pixel,
            "horizon": data_info["horizon"],
            **extra,
        }

    def input_info(self) -> dict[str, TensorInfo]:
        info = super().input_info()
        orders = {"values": "variates", "observed": "variates", "calendar": "calendar"}
        orders |= {kind: f"covariates.{kind}.names" for kind in self.data_info.get("covariates", {})}
        info = {
            name: replace(one, facts={**one.facts, "order": f"facts.{orders[name]}"})
            if name in orders
            else one
            for name, one in info.items()
        }
        if self.data_info.get("scaled") and "values" in info:
            info["values"] = replace(
                info["values"],
                meaning="the look-back of every variate, oldest step first, standardised: (value - level) / unit, in "
                f"double precision; the level is the last value of the look-back, the unit {self._unit()}",
            )
        return info

    def output_info(self) -> dict[str, TensorInfo]:
        scale = "in the data's own units"
        if self.data_info.get("scaled"):
            scale = (
                "standardised: times unit plus level, in double precision, it is in the data's own units; the level is "
                f"the last value of the look-back before it was standardised, the unit {self._unit()}"
            )
        return {
            "forecast": TensorInfo(
                f"the steps after the look-back, {scale}",
                ("batch", "step", "variate"),
                {"order": "facts.variates", "step": self.data_info["frequency"]},
            )
        }

    def _unit(self) -> str:
        """What the values of scaled data are divided by, in words; see `SeriesData`."""
        if "series" in self.data_info:
            return "the standard deviation of the series, per variate"
        return "facts.std, per variate"

    def standardised(self, x_BTN: Tensor) -> Tensor:
        """Own units -> the scale of the metrics."""
        return (x_BTN - self.mean) / self.std

    def step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        raw = batch.raw
        if split == "train" and self.augment.raw is not None:
            raw = self.augment.raw(raw)
        forecast_BTN = self(raw, train=split == "train")
        truth_BTN = self.standardised(batch.target)
        standard_BTN = self.standardised(forecast_BTN)
        unit_B1N = raw["unit"][:, None].float() if "unit" in raw else self.std.new_ones(())
        if self.loss_in == "own_units":
            loss = self._loss(forecast_BTN * unit_B1N, batch.target * unit_B1N)
        else:
            loss = self._loss(standard_BTN, truth_BTN)
        self._errors_of(split).update(standard_BTN, truth_BTN)
        if split == "test":
            if "unit" in raw:
                self._errors_of("own").update(forecast_BTN * unit_B1N, batch.target * unit_B1N)
            past_BLN = self.standardised(raw["values"])
            for name, season in zip(BASELINES, (1, self.season), strict=True):
                self._errors_of(name).update(naive(past_BLN, truth_BTN.shape[1], season), truth_BTN)
            self._keep_examples(batch, forecast_BTN)
        out = {"loss": loss, "output": forecast_BTN.detach()}
        if split != "train":
            out["weight"] = (~torch.isnan(batch.target)).sum()  # the observed targets
        return out

    def _loss(self, forecast_BTN: Tensor, truth_BTN: Tensor) -> Tensor:
        """The loss of the observed targets; 0 if a batch has none."""
        # New data may have gaps even if the training data have none.
        if self.data_info.get("gaps", False) or (not self.training and bool(torch.isnan(truth_BTN).any())):
            seen_BTN = ~torch.isnan(truth_BTN)
            if not seen_BTN.any():
                return (forecast_BTN * 0.0).sum()
            forecast_BTN, truth_BTN = forecast_BTN[seen_BTN], truth_BTN[seen_BTN]
        loss: Tensor = self.loss(forecast_BTN, truth_BTN)
        return loss

    def _errors_of(self, name: str) -> ForecastErrors:
        errors = self.errors[f"{name}_errors"]
        assert isinstance(errors, ForecastErrors)
        return errors

    def epoch_metrics(self, split: str) -> dict[str, Tensor]:
        errors = self._errors_of(split)
        if not errors.update_called:
            return {}
        mse_TN, mae_TN = errors.compute()
        values = {f"{split}/mse": mse_TN.nanmean(), f"{split}/mae": mae_TN.nanmean()}
        if split == "test":
            values |= self._test_metrics()
        errors.reset()
        return {name: value.float() for name, value in values.items()}

    def _test_metrics(self) -> dict[str, Tensor]:
        """Errors in own units, errors of the baselines, and the number of observed targets."""
        errors = self._errors_of("test")
        mse_TN, mae_TN = errors.compute()
        self.found = {"model": (mse_TN, mae_TN)}
        own = self._errors_of("own")
        if own.update_called:
            own_mse_TN, own_mae_TN = own.compute()
        else:
            std_N = self.std.double()
            own_mse_TN, own_mae_TN = mse_TN * std_N**2, mae_TN * std_N
        self.own_units = own_mse_TN.nanmean(0), own_mae_TN.nanmean(0)
        values = {"test/mse_own_units": own_mse_TN.nanmean(), "test/mae_own_units": own_mae_TN.nanmean()}
        for name in BASELINES:
            mse_TN, mae_TN = self._errors_of(name).compute()
            self.found[name] = (mse_TN, mae_TN)
            values |= {f"test/mse_{name}": mse_TN.nanmean(), f"test/mae_{name}": mae_TN.nanmean()}
        seen, missing = errors.observed()
        if missing or self.data_info.get("gaps", False):
            log.info("test: %s targets observed; %s missing ones do not count", f"{seen:,}", f"{missing:,}")
            values["test/observed_targets"] = torch.tensor(float(seen))
        return values

    def begin_test(self, samples: int) -> None:
        for name in ("test", "own", *BASELINES):
            self._errors_of(name).reset()
        self.examples, self.found = [], {}
        self.wanted = {samples * (2 * number + 1) // (2 * SHOWN) for number in range(SHOWN)}

    def _keep_examples(self, batch: Batch, forecast_BTN: Tensor) -> None:
        """Keeps `SHOWN` windows, evenly spread over the test split."""
        for position, index in enumerate(batch.index.tolist()):
            if index in self.wanted:
                raw = {name: value[position] for name, value in batch.raw.items()}
                example = self._example(raw, forecast_BTN[position])
                truth = in_own_units(batch.target[position], raw)
                self.examples.append(
                    example | {"truth": [_none_for_nan(part) for part in columns(truth)[-SHOWN_VARIATES:]]}
                )

    def _example(self, raw: dict[str, Tensor], forecast_TN: Tensor) -> dict[str, Any]:
        """A window and its forecast as plain values, one list per variate."""
        past_LN = in_own_units(raw["values"], raw)
        return {
            "variates": self.variates[-SHOWN_VARIATES:],
            "step": self.data_info["frequency"],
            "period": self.season,
            "start": dates_of(raw)[len(past_LN)],
            "past": columns(past_LN)[-SHOWN_VARIATES:],
            "forecast": columns(in_own_units(forecast_TN, raw))[-SHOWN_VARIATES:],
        }

    def test_report(self) -> dict[str, Any]:
        """After a test: errors per variate (own units) and per step (standardised), and example windows."""
        if not self.found:
            return {}
        assert self.own_units is not None
        mse_N, mae_N = self.own_units
        by_step = {
            name.replace("_", " "): _none_for_nan(mse_TN.nanmean(1).tolist())
            for name, (mse_TN, _) in self.found.items()
        }
        return {
            "per_variate": {
                name: {"mse": mse, "mae": mae}
                for name, mse, mae in zip(
                    self.variates, *(_none_for_nan(part.tolist()) for part in (mse_N, mae_N)), strict=True
                )
            },
            "error_by_step": {"step": self.data_info["frequency"], "season": self.season, "mse": by_step},
            "forecasts": self.examples,
        }

    def draw_report(self, report: dict[str, Any]) -> "dict[str, Figure]":
        figures: dict[str, Figure | None] = {}
        if report.get("forecasts"):
            figures["forecasts"] = draw_forecasts(report["forecasts"])
            figures["folded"] = draw_folded(report["forecasts"])
        if "error_by_step" in report:
            figures["error_by_step"] = draw_error_by_step(report["error_by_step"])
        return {name: figure for name, figure in figures.items() if figure is not None}

    def predict(self, raw: Any, top_k: int = 5) -> list[Prediction]:
        forecast_BTN = self(raw).float()
        return [
            self._prediction({name: value[position] for name, value in raw.items()}, forecast_BTN[position])
            for position in range(len(forecast_BTN))
        ]

    def _prediction(self, raw: dict[str, Tensor], forecast_TN: Tensor) -> Prediction:
        dates = dates_of(raw)[len(raw["values"]) :]
        digits_N = digits(raw, len(self.variates))
        values = [
            [round_to(value, digits) for value in part]
            for part, digits in zip(columns(in_own_units(forecast_TN, raw)), digits_N, strict=True)
        ]
        table: dict[str, list[Any]] = {"date": list(dates)}
        table |= dict(zip(self.variates, values, strict=True))
        row = {"from": dates[0], "to": dates[-1], "steps": len(dates)}
        summary = ", ".join(
            f"{name} {part[0]:.{max(4, digits - 3)}g} … {part[-1]:.{max(4, digits - 3)}g}"
            for name, part, digits in list(zip(self.variates, values, digits_N, strict=True))[-3:]
        )
        example = self._example(raw, forecast_TN)
        return Prediction(
            row, f"{dates[0]} to {dates[-1]}: {summary}", {"forecast": table}, {"forecasts": [example]}
        )

    def test_rows(self, batch: Batch, output: Tensor) -> list[list[dict[str, Any]]]:
        rows = []
        for position, forecast_TN in enumerate(output.float().cpu()):
            raw = {name: value[position].cpu() for name, value in batch.raw.items()}
            rows.append(self._test_rows(raw, batch.target[position].cpu(), forecast_TN))
        return rows

    def _test_rows(
        self, raw: dict[str, Tensor], truth_TN: Tensor, forecast_TN: Tensor
    ) -> list[dict[str, Any]]:
        """One row per step, in the data's own units."""
        dates = dates_of(raw)[len(raw["values"]) :]
        kept_N = digits(raw, len(self.variates))
        truths, forecasts = in_own_units(truth_TN, raw).tolist(), in_own_units(forecast_TN, raw).tolist()
        rows = []
        for step, (date, truth_N, forecast_N) in enumerate(
            zip(dates, truths, forecasts, strict=True), start=1
        ):
            row: dict[str, Any] = {"from": dates[0], "step": step, "date": date}
            for name, truth, forecast, kept in zip(self.variates, truth_N, forecast_N, kept_N, strict=True):
                row |= {name: round_to(truth, kept), f"{name} forecast": round_to(forecast, kept)}
            rows.append(row)
        return rows

    def caption(self, batch: Batch, position: int) -> str:
        raw = {name: value[position] for name, value in batch.raw.items()}
        return f"{self.variates[0]}, forecast from {dates_of(raw)[len(raw['values'])]}"


def in_own_units(values_XN: Tensor, raw: dict[str, Tensor]) -> Tensor:
    """Values of one sample in the data's own units, in double precision if it has a level and a unit."""
    if "level" not in raw:
        return values_XN
    return values_XN.double() * raw["unit"].double() + raw["level"].double()


def dates_of(raw: dict[str, Tensor]) -> list[str]:
    """The dates of one sample, past and future, as strings (see `readable`)."""
    seconds = raw["date"].tolist()
    offsets = raw["offset"].tolist() if "offset" in raw else [NO_ZONE] * len(seconds)
    return [readable(second, offset) for second, offset in zip(seconds, offsets, strict=True)]


def digits(raw: dict[str, Tensor], variates: int) -> list[int]:
    """Significant digits of the forecast of every variate: those of single precision, plus those due to its level."""
    if "level" not in raw:
        return [SINGLE_DIGITS] * variates
    ratio_N = (raw["level"].abs() / raw["unit"]).tolist()
    return [min(15, SINGLE_DIGITS + max(0, math.ceil(math.log10(max(ratio, 1.0))))) for ratio in ratio_N]


def _none_for_nan(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def naive(past_BLN: Tensor, horizon: int, season: int) -> Tensor:
    """Repeats the last `season` steps over the horizon: (B, T, N); a season of 1 repeats the last value."""
    last_BSN = past_BLN[:, past_BLN.shape[1] - season :]
    return last_BSN.repeat(1, -(-horizon // season), 1)[:, :horizon]


def columns(x_XN: Tensor) -> list[list[float]]:
    """(any number of steps, N) -> one list per variate."""
    plain: list[list[float]] = x_XN.detach().to("cpu", torch.float64).T.tolist()
    return plain


def readable(seconds: int, offset: int = NO_ZONE) -> str:
    """A point in time as `2016-07-01 00:00:00`, or with its offset from UTC in seconds as
    `2016-07-01T00:00:00+02:00`."""
    if offset == NO_ZONE:
        # Not `fromtimestamp`: some systems do not support dates before 1901 or after 2038.
        return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")
    zone = timezone(timedelta(seconds=offset))
    return (
        (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)).astimezone(zone).isoformat()
    )


def round_to(value: float, digits: int) -> float:
    """Rounds to a number of significant digits."""
    return float(f"{value:.{digits}g}")
