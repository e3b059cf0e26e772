"""Models of series with covariates, gaps, zones and large levels: what reaches the forecast, and what is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests_support import TINY

from backbone import UniRepLKNet
from modalities.time_series import Fold, TokenMap
from tasks.datasets.base import DataError, ReadError
from tasks.datasets.batch import Sample, collate, usable
from tasks.datasets.time_series.csv_forecast import CsvForecast
from tasks.forecast_head import forecast_head
from tasks.forecasting import ForecastingTask, dates_of, digits, in_own_units
from tasks.network import Network

QUICK = (*TINY, "modality=time_series", "logger=csv", "task=csv_forecast")
SIZES = ("task.data.look_back=28", "task.data.horizon=7", "task.data.batch_size=64", "optimizer.lr=0.01")


def covariate_table(path: Path, rows: int = 500, to_come: int = 0) -> Path:
    """y is 5 on chance days that a column announces, 0 on others; the past does not tell which come next."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"date": pd.date_range("2020-01-01", periods=rows), "event": rng.random(rows) < 0.4})
    frame["y"] = 20 + 5 * frame["event"] + 0.1 * rng.normal(size=rows)
    frame["noise"] = rng.normal(size=rows)
    frame["area"] = 3.5
    frame.loc[rows - to_come :, ["y", "noise"]] = np.nan
    frame.to_csv(path, index=False)
    return path


def mse(folder: Path) -> float:
    return float(json.loads((folder / "result.json").read_text())["metrics"]["test/mse"])


def small_task(
    data: CsvForecast, embedder_class: type[Fold] | type[TokenMap], **sizes: Any
) -> ForecastingTask:
    torch.manual_seed(0)
    data_info = data.info()
    embedder = embedder_class(look_back=28, horizon=7, **sizes, **embedder_class.data_arguments(data_info))
    backbone = UniRepLKNet(in_chans=embedder.out_chans, num_classes=0, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    head = forecast_head(hidden=16, **ForecastingTask.head_sizes(data_info, embedder, backbone))
    return ForecastingTask(torch.nn.MSELoss(), network=Network(embedder, backbone, head), data_info=data_info)


def trained_error(data: CsvForecast, embedder_class: type[Fold] | type[TokenMap], **sizes: Any) -> float:
    """Validation MSE of a tiny network after a few steps."""
    task = small_task(data, embedder_class, **sizes)
    optimizer = torch.optim.Adam(task.network.parameters(), lr=0.03)
    for batch in [batch for _ in range(6) for batch in data.loader("train", batch_size=32)]:
        optimizer.zero_grad()
        task.step(batch, "train")["loss"].backward()
        optimizer.step()
    task.eval()
    with torch.no_grad():
        for batch in data.loader("val"):
            task.step(batch, "val")
    return float(task.epoch_metrics("val")["val/mse"])


@pytest.mark.parametrize(
    ("embedder_class", "sizes"),
    [(Fold, {}), pytest.param(TokenMap, {"width": 8}, marks=pytest.mark.slow)],
)
def test_a_known_covariate_is_worth_most_of_the_error(
    embedder_class: type[Fold] | type[TokenMap], sizes: dict[str, int], tmp_path: Path
) -> None:
    path = covariate_table(tmp_path / "a.csv", 300)
    without = trained_error(ready(path, target="y"), embedder_class, **sizes)
    assert without > 0.8, "nothing in the past tells the days to come"
    data = ready(path, target="y", known="event", past="noise", static="area")
    assert trained_error(data, embedder_class, **sizes) < 0.3 * without


@pytest.mark.slow
@pytest.mark.parametrize("embedder", ["fold", "token_map"])
def test_a_known_covariate_determines_the_forecast(
    embedder: str, act: Callable[..., Path], tmp_path: Path
) -> None:
    path = covariate_table(tmp_path / "a.csv")
    words = [*QUICK, *SIZES, f"data_dir={path}", "task.data.target=y", "trainer.max_epochs=8"]
    words += [f"modality/embedder={embedder}", "callbacks.best=null"]
    words += ["modality.embedder.width=16"] if embedder == "token_map" else []
    without = mse(act(*words, folder="without"))
    folder = act(
        *words, "task.data.known=event", "task.data.past=noise", "task.data.static=area", folder="with"
    )
    assert without > 0.8, "nothing in the past tells the days to come"
    assert mse(folder) < 0.25 * without
    if embedder == "fold":
        more = covariate_table(tmp_path / "b.csv", rows=60, to_come=7)
        checkpoint = f"ckpt={folder / 'checkpoints' / 'last.ckpt'}"
        predictions = act("action=predict", checkpoint, "trainer=cpu", f"input={more}", folder="predictions")
        table = pd.read_csv(predictions / "forecast.csv")
        event = pd.read_csv(more)["event"].tail(7).to_numpy()
        assert (
            table["date"].tolist()
            == pd.date_range("2020-02-23", periods=7).strftime("%Y-%m-%d 00:00:00").tolist()
        )
        assert 0 < event.sum() < 7
        assert table["y"][event].min() > table["y"][~event].max() + 1


def ready(path: Path, **settings: Any) -> CsvForecast:
    data = CsvForecast(
        name="csv_forecast", data_dir=str(path), **({"look_back": 28, "horizon": 7} | settings)
    )
    data.setup()
    return data


def test_covariates_lie_beside_their_steps(tmp_path: Path) -> None:
    path = covariate_table(tmp_path / "a.csv", to_come=10)
    data = ready(path, known=["event"], past=["noise"], static=["area"])
    assert data.info()["variates"] == ["y"]
    assert len(data.dates_T) == 490, "rows to come are neither learnt nor tested"
    frame = pd.read_csv(path)
    raw = data.read_item(data.splits["test"][3], False, np.random.default_rng(0))
    row = data.splits["test"][3].where["row"]
    np.testing.assert_allclose(raw["known"][:, 0], frame["event"][row : row + 35].astype(float))
    np.testing.assert_allclose(raw["past"][:, 0], frame["noise"][row : row + 28], rtol=1e-5)
    assert raw["static"].tolist() == [3.5]
    embedder = Fold(look_back=28, horizon=7, periods=[7], **Fold.data_arguments(data.info()))
    batch = {name: value[None] for name, value in raw.items()}
    maps = embedder(batch)
    assert maps.shape == (1, 1, embedder.out_chans, 5, 7)
    known = embedder.covariates.standardised(batch, "known")[0, :, 0]  # type: ignore[union-attr]
    torch.testing.assert_close(maps[0, 0, -3].flatten(), known)
    assert maps[0, 0, -2, 4].abs().max() == 0, "the future of a past covariate is empty"


def test_a_forecast_needs_the_known_future(tmp_path: Path) -> None:
    data = ready(covariate_table(tmp_path / "a.csv"), target="y", known="event")
    with pytest.raises(ReadError, match=r"must know event of the 7 rows after the last value.*there are 0"):
        data.read_file(covariate_table(tmp_path / "b.csv", 60))
    with pytest.raises(ReadError, match="there are 5"):
        data.read_file(covariate_table(tmp_path / "b.csv", 60, to_come=5))
    raw = data.read_file(covariate_table(tmp_path / "b.csv", 60, to_come=9))
    assert raw["known"].shape == (35, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"known": ["weather"]}, r"lacks the column\(s\) weather"),
        ({"known": ["event"], "past": ["event"]}, "event is named twice"),
        ({"static": ["noise"]}, "static column 'noise' must hold one value"),
    ],
)
def test_wrong_covariates_are_one_sentence(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = covariate_table(tmp_path / "a.csv")
    with pytest.raises(DataError, match=said):
        ready(path, **settings)


def test_missing_values_do_not_reach_the_maps() -> None:
    torch.manual_seed(0)
    observed = (torch.rand(3, 24, 2) > 0.4).float()
    values = torch.randn(3, 24, 2)
    raw = {"values": values, "calendar": torch.zeros(3, 36, 4), "observed": observed}
    other = raw | {"values": torch.where(observed > 0, values, 1e3)}
    fold = Fold(look_back=24, horizon=12, periods=[6], mean=[0.0, 0.0], std=[1.0, 1.0])
    torch.testing.assert_close(fold(raw), fold(other))
    assert torch.equal(fold(raw)[:, :, 1].flatten(2)[..., :24], observed.transpose(1, 2))
    tokens = TokenMap(look_back=24, horizon=12, width=6, mean=[0.0, 0.0], std=[1.0, 1.0]).eval()
    torch.testing.assert_close(tokens(raw), tokens(other))
    full = raw | {"observed": torch.ones(3, 24, 2)}
    plain = {name: value for name, value in full.items() if name != "observed"}
    torch.testing.assert_close(fold(full)[:, :, :1], fold(plain)[:, :, :1], rtol=1e-5, atol=1e-6)


def zoned_table(path: Path) -> Path:
    """A day's course about a level of 4e8, hour by hour over a change of clocks, with holes."""
    wall = pd.date_range("2022-09-20", "2022-11-20", freq="h", tz="Europe/Berlin")
    rng = np.random.default_rng(0)
    values = 4e8 + np.sin(2 * np.pi * wall.hour.to_numpy() / 24) + 0.05 * rng.normal(size=len(wall))
    frame = pd.DataFrame({"date": [time.isoformat() for time in wall], "kw": values})
    frame.loc[rng.choice(len(frame) - 1, 100, replace=False), "kw"] = np.nan
    frame.to_csv(path, index=False)
    return path


def test_a_zone_and_a_level_last_from_input_to_answer(tmp_path: Path) -> None:
    path = zoned_table(tmp_path / "a.csv")
    data = ready(path)
    task = small_task(data, Fold).eval()
    task.begin_test(len(data.splits["test"]))
    with torch.no_grad():
        for batch in data.loader("test", batch_size=100):
            task.step(batch, "test")
        (prediction,) = task.predict(usable(collate([Sample(data.read_file(path))])).raw)
    metrics = task.epoch_metrics("test")
    assert float(metrics["test/mse_naive"]) == pytest.approx(1.1, rel=0.2)
    std = float(data.info()["std"][0])
    assert float(metrics["test/mse_own_units"]) == pytest.approx(
        float(metrics["test/mse"]) * std**2, rel=1e-3
    )
    targets = torch.cat([batch.target for batch in data.loader("test")])
    assert int(metrics["test/observed_targets"]) == int((~targets.isnan()).sum()) < targets.numel()
    assert all(abs(np.array(example["past"]) - 4e8).max() < 2 for example in task.test_report()["forecasts"])
    table = prediction.tables["forecast"]
    assert table["date"][:2] == ["2022-11-20T01:00:00+01:00", "2022-11-20T02:00:00+01:00"]
    assert len(set(table["kw"])) == 7
    assert np.abs(np.array(table["kw"]) - 4e8).max() < 50


@pytest.mark.slow
def test_a_zone_and_a_level_last_from_input_to_forecast_csv(act: Callable[..., Path], tmp_path: Path) -> None:
    path = zoned_table(tmp_path / "a.csv")
    folder = act(*QUICK, *SIZES, f"data_dir={path}", folder="fit")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert metrics["test/mse_naive"] == pytest.approx(1.1, rel=0.2)
    assert metrics["test/mse"] < metrics["test/mse_naive"]
    checkpoint = f"ckpt={folder / 'checkpoints' / 'best.ckpt'}"
    again = act("action=test", checkpoint, "trainer=cpu", folder="again")
    assert mse(again) == pytest.approx(metrics["test/mse"], rel=1e-5)
    predictions = act("action=predict", checkpoint, "trainer=cpu", f"input={path}", folder="predictions")
    table = pd.read_csv(predictions / "forecast.csv")
    assert table["date"].iloc[:2].tolist() == ["2022-11-20T01:00:00+01:00", "2022-11-20T02:00:00+01:00"]
    assert table["kw"].nunique() == 7
    assert (table["kw"] - 4e8).abs().max() < 10


def test_own_units_keep_their_digits() -> None:
    raw = {
        "level": torch.tensor([4e8, 0.0], dtype=torch.float64), "unit": torch.tensor([0.5, 2.0], dtype=torch.float64),
        "date": torch.tensor([1_000_000_000, -9_000_000_000]), "offset": torch.tensor([-12600, 0]),
    }  # fmt: skip
    assert in_own_units(torch.tensor([[0.25, 1.0]]), raw).tolist() == [[4e8 + 0.125, 2.0]]
    assert digits(raw, 2) == [15, 7]
    assert dates_of(raw) == ["2001-09-08T22:16:40-03:30", "1684-10-19T08:00:00+00:00"]
