"""Forecasting: the next steps of every variate of a series.

Shapes: B batch, L look-back and T horizon in steps, N variates.
"""

from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tasks.task import Answer, Task, as_plain

BASELINES = ("naive", "seasonal_naive")
LOSS_SCALES = ("standardised", "own_units")
SHOWN = 4  # windows of the test part that are kept for pictures …
SHOWN_VARIATES = 8  # … and how many of their variates, the last ones, where a table's target usually stands


class ForecastErrors(Metric):
    """Squared and absolute errors of every step and variate, added up over all windows, whatever the batches.

    Args:
        horizon, variates: T and N.
    """

    full_state_update = False
    squared: Tensor
    absolute: Tensor
    windows: Tensor

    def __init__(self, horizon: int, variates: int) -> None:
        super().__init__()
        zeros_TN = torch.zeros(horizon, variates, dtype=torch.float64)
        self.add_state("squared", zeros_TN.clone(), dist_reduce_fx="sum")
        self.add_state("absolute", zeros_TN.clone(), dist_reduce_fx="sum")
        self.add_state("windows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, forecast_BTN: Tensor, truth_BTN: Tensor) -> None:
        error_BTN = (forecast_BTN - truth_BTN).detach().double()
        self.squared += error_BTN.square().sum(dim=0)
        self.absolute += error_BTN.abs().sum(dim=0)
        self.windows += len(error_BTN)

    def compute(self) -> Tensor:
        """Means over windows, squared and absolute: (2, T, N)."""
        return torch.stack([self.squared, self.absolute]) / self.windows


class ForecastingTask(Task):
    """Learns the horizon from the look-back.

    The network answers in the data's own units; MSE and MAE are on the standardised scale (mean and standard
    deviation of the training part), as published tables are; the loss is on either. A test also measures two
    forecasts that learn nothing, `naive` (the last value stays) and `seasonal_naive` (the last season repeats),
    and the errors in own units.

    Facts: `variates` (names), `mean` and `std` of each, `horizon`, `season` in steps, `frequency`.

    Args:
        loss: (forecast (B, T, N), truth (B, T, N)) -> scalar, e.g. `torch.nn.MSELoss`.
        loss_in: `standardised`, where all variates count alike, or `own_units`, where those of large variance count
            more.
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
        self.variates: list[str] = list(self.facts["variates"])
        self.season = int(self.facts["season"])
        self.register_buffer("mean", torch.tensor(self.facts["mean"], dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(self.facts["std"], dtype=torch.float32), persistent=False)
        size = (int(self.facts["horizon"]), len(self.variates))
        names = ("train", "val", "test", *BASELINES)
        self.errors = nn.ModuleDict({f"{name}_errors": ForecastErrors(*size) for name in names})
        self.examples: list[dict[str, Any]] = []
        self.wanted: set[int] = set()  # windows of the test part to keep
        self.found: dict[str, tuple[Tensor, Tensor]] = {}  # MSE and MAE of the last test, (T, N)

    @classmethod
    def metric_names(cls, facts: dict[str, Any]) -> tuple[str, ...]:
        return ("mse", "mae", "loss")

    @classmethod
    def head_sizes(cls, facts: dict[str, Any], embedder: nn.Module, backbone: nn.Module) -> dict[str, Any]:
        stages: Any = backbone.feature_info
        parts: Any = embedder
        if not parts.has_future:
            size = tuple(-(-side // stages[-1]["reduction"]) for side in parts.map_size)
            return {
                "in_features": backbone.num_features,
                "size": size,
                "group": parts.group,
                "horizon": facts["horizon"],
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
            "horizon": facts["horizon"],
        }

    def standardised(self, x_BTN: Tensor) -> Tensor:
        """Own units -> the scale of the metrics."""
        return (x_BTN - self.mean) / self.std

    def step(self, batch: dict[str, Any], split: str) -> dict[str, Tensor]:
        raw = batch["raw"]
        if split == "train" and self.augment.raw is not None:
            raw = self.augment.raw(raw)
        maps_BVCHW = self.embed(raw, train=split == "train")
        embedder: Any = self.network.embedder
        forecast_BTN = self.network.forward_maps(maps_BVCHW, embedder.context(raw))
        truth_BTN = self.standardised(batch["target"])
        standard_BTN = self.standardised(forecast_BTN)
        own_units = self.loss_in == "own_units"
        loss = self.loss(forecast_BTN, batch["target"]) if own_units else self.loss(standard_BTN, truth_BTN)
        self._errors_of(split).update(standard_BTN, truth_BTN)
        if split == "test":
            past_BLN = self.standardised(raw["values"])
            for name, season in zip(BASELINES, (1, self.season), strict=True):
                self._errors_of(name).update(naive(past_BLN, truth_BTN.shape[1], season), truth_BTN)
            self._keep_examples(batch, forecast_BTN)
        return {"loss": loss, "output": forecast_BTN.detach()}

    def _errors_of(self, name: str) -> ForecastErrors:
        errors = self.errors[f"{name}_errors"]
        assert isinstance(errors, ForecastErrors)
        return errors

    def epoch_metrics(self, split: str) -> dict[str, Tensor]:
        errors = self._errors_of(split)
        if not errors.update_called:
            return {}
        mse_TN, mae_TN = errors.compute()
        values = {f"{split}/mse": mse_TN.mean(), f"{split}/mae": mae_TN.mean()}
        if split == "test":
            self.found = {"model": (mse_TN, mae_TN)}
            std_N = self.std.double()
            values["test/mse_own_units"] = (mse_TN * std_N**2).mean()
            values["test/mae_own_units"] = (mae_TN * std_N).mean()
            for name in BASELINES:
                mse_TN, mae_TN = self._errors_of(name).compute()
                self.found[name] = (mse_TN, mae_TN)
                values |= {f"test/mse_{name}": mse_TN.mean(), f"test/mae_{name}": mae_TN.mean()}
        errors.reset()
        return {name: value.float() for name, value in values.items()}

    def begin_test(self, samples: int) -> None:
        for name in ("test", *BASELINES):
            self._errors_of(name).reset()
        self.examples, self.found = [], {}
        self.wanted = {samples * (2 * number + 1) // (2 * SHOWN) for number in range(SHOWN)}

    def _keep_examples(self, batch: dict[str, Any], forecast_BTN: Tensor) -> None:
        """Keep `SHOWN` windows, evenly spread over the test part."""
        for position, index in enumerate(batch["index"].tolist()):
            if index in self.wanted:
                past_LN, date_X = batch["raw"]["values"][position], batch["raw"]["date"][position]
                example = self._example(past_LN, forecast_BTN[position], date_X)
                self.examples.append(
                    example | {"truth": columns(batch["target"][position])[-SHOWN_VARIATES:]}
                )

    def _example(self, past_LN: Tensor, forecast_TN: Tensor, date_X: Tensor) -> dict[str, Any]:
        """A window and its forecast as plain values, a list a variate."""
        return {
            "variates": self.variates[-SHOWN_VARIATES:],
            "step": self.facts["frequency"],
            "period": self.season,
            "start": readable(int(date_X[len(past_LN)])),
            "past": columns(past_LN)[-SHOWN_VARIATES:],
            "forecast": columns(forecast_TN)[-SHOWN_VARIATES:],
        }

    def test_report(self) -> dict[str, Any]:
        """After a test: errors by variate (own units) and by step (standardised), and windows to look at."""
        if not self.found:
            return {}
        std_N, (mse_TN, mae_TN) = self.std.double(), self.found["model"]
        mse_N, mae_N = mse_TN.mean(0) * std_N**2, mae_TN.mean(0) * std_N
        by_step = {
            name.replace("_", " "): as_plain(mse_TN.mean(1)) for name, (mse_TN, _) in self.found.items()
        }
        return {
            "per_variate": {
                name: {"mse": mse, "mae": mae}
                for name, mse, mae in zip(self.variates, mse_N.tolist(), mae_N.tolist(), strict=True)
            },
            "error_by_step": {"step": self.facts["frequency"], "season": self.season, "mse": by_step},
            "forecasts": self.examples,
        }

    def answer(self, raw: Any, top_k: int = 5) -> list[Answer]:
        forecast_BTN = self.network(raw).float()
        return [
            self._answer(raw["values"][position], forecast_BTN[position], raw["date"][position])
            for position in range(len(forecast_BTN))
        ]

    def _answer(self, past_LN: Tensor, forecast_TN: Tensor, date_X: Tensor) -> Answer:
        dates = [readable(seconds) for seconds in date_X[len(past_LN) :].tolist()]
        values = columns(forecast_TN)
        table: dict[str, list[Any]] = {"date": list(dates)}
        table |= {
            name: [round_to(value, 7) for value in part]
            for name, part in zip(self.variates, values, strict=True)
        }
        row = {"from": dates[0], "to": dates[-1], "steps": len(dates)}
        summary = ", ".join(
            f"{name} {part[0]:.4g} … {part[-1]:.4g}"
            for name, part in list(zip(self.variates, values, strict=True))[-3:]
        )
        example = self._example(past_LN, forecast_TN, date_X)
        return Answer(
            row, f"{dates[0]} to {dates[-1]}: {summary}", {"forecast": table}, {"forecasts": [example]}
        )

    def test_rows(self, batch: dict[str, Any], output: Tensor) -> list[list[dict[str, Any]]]:
        raw, past = batch["raw"], batch["raw"]["values"].shape[1]
        return [
            self._test_rows(date_X[past:].tolist(), truth_TN.tolist(), forecast_TN.tolist())
            for date_X, truth_TN, forecast_TN in zip(
                raw["date"].cpu(), batch["target"].cpu(), output.float().cpu(), strict=True
            )
        ]

    def _test_rows(
        self, seconds_T: list[int], truth_TN: list[list[float]], forecast_TN: list[list[float]]
    ) -> list[dict[str, Any]]:
        rows = []
        for step, (seconds, truth_N, forecast_N) in enumerate(
            zip(seconds_T, truth_TN, forecast_TN, strict=True), start=1
        ):
            row: dict[str, Any] = {"from": readable(seconds_T[0]), "step": step, "date": readable(seconds)}
            for name, truth, forecast in zip(self.variates, truth_N, forecast_N, strict=True):
                row |= {name: round_to(truth, 7), f"{name} forecast": round_to(forecast, 7)}
            rows.append(row)
        return rows

    def caption(self, batch: dict[str, Any], position: int) -> str:
        raw = batch["raw"]
        start = readable(int(raw["date"][position][raw["values"].shape[1]]))
        return f"{self.variates[0]}, forecast from {start}"


def naive(past_BLN: Tensor, horizon: int, season: int) -> Tensor:
    """Repeat the last `season` steps over the horizon: (B, T, N); a season of 1 repeats the last value."""
    last_BSN = past_BLN[:, past_BLN.shape[1] - season :]
    return last_BSN.repeat(1, -(-horizon // season), 1)[:, :horizon]


def columns(x_XN: Tensor) -> list[list[float]]:
    """(any steps, N) -> a list a variate."""
    plain: list[list[float]] = x_XN.detach().to("cpu", torch.float64).T.tolist()
    return plain


def readable(seconds: int) -> str:
    """A point in time as `2016-07-01 00:00:00`."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def round_to(value: float, digits: int) -> float:
    """Round to significant digits: what a forecast in single precision holds."""
    return float(f"{value:.{digits}g}")
