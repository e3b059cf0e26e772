"""Forecasting: heads, metrics, and the whole path from a CSV to forecast.csv."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from tests_support import TINY

from backbone import UniRepLKNet
from modalities.time_series import Fold, TokenMap
from tasks.datasets.batch import Batch
from tasks.forecast_head import MapForecastHead, forecast_head, undo_normalisation
from tasks.forecasting import ForecastErrors, ForecastingTask, naive, readable
from tasks.network import Network

FACTS: dict[str, Any] = {
    "variates": ["a", "b", "c"],
    "mean": [10.0, -5.0, 0.0],
    "std": [2.0, 0.1, 1.0],
    "look_back": 48,
    "horizon": 30,
    "season": 24,
    "period": 24,
    "frequency": "h",
    "calendar": ["sin(hour_of_day)", "cos(hour_of_day)"],
}
QUICK = (*TINY, "modality=time_series", "logger=csv")


def network(embedder_class: type[Fold] | type[TokenMap], stem_stride: int = 4, **arguments: Any) -> Network:
    torch.manual_seed(0)
    embedder = embedder_class(look_back=48, horizon=30, **arguments, **embedder_class.data_arguments(FACTS))
    backbone = UniRepLKNet(
        in_chans=embedder.out_chans,
        num_classes=0,
        depths=(1, 1, 1, 1),
        dims=(8, 8, 8, 16),
        stem_stride=stem_stride,
    )
    sizes = ForecastingTask.head_sizes(FACTS, embedder, backbone)
    return Network(embedder, backbone, forecast_head(hidden=8, **sizes)).eval()


def example(model: Network, batch_size: int) -> dict[str, torch.Tensor]:
    raw: dict[str, torch.Tensor] = model.embedder.example_raw(batch_size)
    return raw


@pytest.mark.parametrize(("stem_stride", "pixel"), [(4, 1), (4, 2), (4, 4), (2, 1), (1, 1)])
def test_fold_forecasts_in_own_units(stem_stride: int, pixel: int) -> None:
    model = network(Fold, stem_stride, pixel=pixel)
    assert isinstance(model.head, MapForecastHead)
    assert model.head.cell == stem_stride // pixel
    raw = example(model, 5)
    forecast = model(raw)
    assert forecast.shape == (5, 30, 3)
    moved = raw | {"values": raw["values"] + 100 * torch.tensor(FACTS["std"])}
    shift = (model(moved) - forecast) / torch.tensor(FACTS["std"])
    torch.testing.assert_close(shift, torch.full_like(shift, 100.0), atol=1e-2, rtol=1e-3)


def test_pixel_must_divide_the_stride() -> None:
    with pytest.raises(ValueError, match="pixel=4 must divide the stride 2"):
        network(Fold, 2, pixel=4)


def test_token_map_forecasts_every_variate() -> None:
    model = network(TokenMap, group=2, width=48, dropout=0.0)
    assert model(example(model, 5)).shape == (5, 30, 3)
    assert model.embedder(example(model, 5)).shape == (5, 2, 1, 48, 48)


def test_a_view_is_its_own_variate() -> None:
    model = network(Fold)
    raw = example(model, 2)
    changed = raw["values"].clone()
    changed[:, :, 1] *= torch.linspace(0.5, 1, 48)[:, None].T
    difference = (model(raw | {"values": changed}) - model(raw)).abs().amax(dim=(0, 1))
    assert difference[1] > 0
    assert difference[0] == difference[2] == 0


def test_the_learnt_affine_is_undone_in_the_forecast() -> None:
    """Reversible: with a head that repeats the last normalised values the forecast is the last values."""
    embedder = TokenMap(
        look_back=48, horizon=48, group=2, width=4, affine=True, **TokenMap.data_arguments(FACTS)
    )
    assert embedder.factor is not None
    assert embedder.shift is not None
    raw = embedder.example_raw(3)
    before = embedder.normalise(raw)
    with torch.no_grad():
        embedder.factor.copy_(torch.tensor([0.5, -2.0]))
        embedder.shift.copy_(torch.tensor([1.0, -3.0]))
    after = embedder.normalise(raw)
    # Three variates in groups of two: the third has the first place of its group.
    factor, shift = torch.tensor([[0.5], [-2.0], [0.5]]), torch.tensor([[1.0], [-3.0], [1.0]])
    torch.testing.assert_close(after, before * factor + shift, rtol=1e-4, atol=1e-4)
    back = undo_normalisation(after.transpose(1, 2), embedder.context(raw))
    torch.testing.assert_close(back, raw["values"], rtol=1e-4, atol=1e-4)


def test_the_affine_learns_and_an_untrained_one_changes_nothing() -> None:
    plain, affine = (network(TokenMap, group=2, width=48, dropout=0.0, affine=on) for on in (False, True))
    raw = example(plain, 2)
    torch.testing.assert_close(affine(raw), plain(raw), rtol=1e-5, atol=1e-5)
    affine(raw).square().mean().backward()
    for name in ("factor", "shift"):
        assert affine.get_parameter(f"embedder.{name}").grad.abs().min() > 0  # type: ignore[union-attr]


class Still(torch.nn.Module):
    """A network whose forecast is 1 in own units, whatever the past."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = Fold(look_back=48, horizon=30, **Fold.data_arguments(FACTS))
        self.level = torch.nn.Parameter(torch.ones(3))

    def forward(self, raw: Any, augment: Any = None) -> torch.Tensor:
        return self.level.expand(len(raw["values"]), 30, 3)


@pytest.mark.parametrize(("loss_in", "power"), [("standardised", 2), ("own_units", 0)])
def test_in_own_units_variates_of_large_variance_count_more(loss_in: str, power: int) -> None:
    """An error of 1 in each variate: its pull on the forecast is 1/std² standardised, the same in own units."""
    task = ForecastingTask(torch.nn.MSELoss(), loss_in=loss_in, network=Still(), data_info=FACTS)  # type: ignore[arg-type]
    raw = task.network.embedder.example_raw(2)
    batch = Batch(raw, torch.zeros(2, 30, 3), torch.arange(2))
    out = task.step(batch, "train")
    weight = torch.tensor(FACTS["std"]) ** -power
    torch.testing.assert_close(out["loss"], weight.mean())
    out["loss"].backward()
    torch.testing.assert_close(task.network.level.grad, 2 * weight / 3)
    values = task.epoch_metrics("train")
    assert float(values["train/mse"]) == pytest.approx(
        float((torch.tensor(FACTS["std"]) ** -2).mean()), rel=1e-4
    )


def test_the_loss_of_series_with_gaps_does_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    task = ForecastingTask(torch.nn.MSELoss(), network=Still(), data_info=FACTS | {"gaps": True})  # type: ignore[arg-type]
    raw = task.network.embedder.example_raw(6)
    target = torch.randn(6, 30, 3)
    target[0], target[1, 3:], target[2, :, 1] = torch.nan, torch.nan, torch.nan
    for size in (1, 4, 6):
        for first in range(0, 6, size):
            part = slice(first, first + size)
            batch = Batch(
                {name: value[part] for name, value in raw.items()}, target[part], torch.arange(6)[part]
            )
            task.measured_step(batch, "val")
        off = (torch.ones(3) - target) / torch.tensor(FACTS["std"])
        torch.testing.assert_close(task.epoch_values("val")["val/loss"], off.square().nanmean())


def test_an_unknown_scale_of_the_loss_is_named() -> None:
    with pytest.raises(ValueError, match="loss_in must be one of standardised, own_units, not 'tenths'"):
        ForecastingTask(torch.nn.MSELoss(), loss_in="tenths", network=Still(), data_info=FACTS)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    horizon=st.integers(1, 6),
    variates=st.integers(1, 3),
)
def test_errors_do_not_depend_on_the_batches(sizes: list[int], horizon: int, variates: int) -> None:
    torch.manual_seed(0)
    truth, forecast = torch.randn(2, sum(sizes), horizon, variates)
    errors = ForecastErrors(horizon, variates)
    for part in zip(forecast.split(sizes), truth.split(sizes), strict=True):
        errors.update(*part)
    mse, mae = errors.compute()
    torch.testing.assert_close(mse, (forecast - truth).double().square().mean(0))
    torch.testing.assert_close(mae, (forecast - truth).double().abs().mean(0))


def test_forecasts_that_learn_nothing() -> None:
    past = torch.arange(6.0)[None, :, None].repeat(2, 1, 3)
    assert naive(past, 4, 1)[0, :, 0].tolist() == [5, 5, 5, 5]
    assert naive(past, 5, 2)[1, :, 2].tolist() == [4, 5, 4, 5, 4]


def test_dates_are_readable() -> None:
    assert readable(int(pd.Timestamp("2016-07-01 13:00").timestamp())) == "2016-07-01 13:00:00"


# -- the whole path -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / "fit"
    words = (*QUICK, "task=csv_forecast", "task.data.batch_size=128", "optimizer.lr=0.01")
    cfg = composed(*words, f"paths.samples={samples}", f"paths.run={folder}")
    run_action(cfg)
    return folder


@pytest.mark.figures
def test_a_run_reports_the_naive_forecasts_beside_the_model(run: Path) -> None:
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    for name in ("mse", "mae", "mse_naive", "mse_seasonal_naive", "mse_own_units", "mae_own_units"):
        assert metrics[f"test/{name}"] > 0
    # The loss is averaged by windows, the metric by steps; they differ where values are missing, as in this sample.
    assert metrics["test/loss"] == pytest.approx(metrics["test/mse"], rel=2e-3)
    report = json.loads((run / "test_report.json").read_text())
    assert set(report["per_variate"]) == {"berlin", "paris", "rome"}
    assert report["error_by_step"]["season"] == 7
    assert len(report["error_by_step"]["mse"]["model"]) == 14
    assert np.mean(report["error_by_step"]["mse"]["model"]) == pytest.approx(metrics["test/mse"], rel=1e-4)
    mean = np.mean([errors["mse"] for errors in report["per_variate"].values()])
    assert mean == pytest.approx(metrics["test/mse_own_units"], rel=1e-4)
    pictures = {file.name for file in (run / "figures").iterdir()}
    assert pictures >= {"forecasts.png", "folded.png", "error_by_step.png", "inputs.png", "curves.png"}
    assert len(report["forecasts"]) == 4


def test_the_naive_errors_are_those_of_all_test_windows(run: Path, samples: Path) -> None:
    from tasks.datasets.time_series.csv_forecast import CsvForecast

    data = CsvForecast(name="csv_forecast", look_back=56, horizon=14, samples_dir=str(samples))
    data.prepare_data()
    data.setup()
    data_info = data.info()
    values = (data.values_TN.numpy() - data_info["mean"]) / np.array(data_info["std"])
    truth = (data.truth_TN.numpy() - data_info["mean"]) / np.array(data_info["std"])
    squares = np.stack(
        [
            (values[row + 55] - truth[row + 56 : row + 70]) ** 2
            for row in (item.where["row"] for item in data.splits["test"])
        ]
    )
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert np.nanmean(squares, axis=0).mean() == pytest.approx(metrics["test/mse_naive"], rel=1e-5)
    assert metrics["test/observed_targets"] == np.isfinite(squares).sum() < squares.size


def test_test_repeats_the_metrics_with_another_batch_size(run: Path, act: Callable[..., Path]) -> None:
    checkpoint = run / "checkpoints" / "best.ckpt"
    again = act("action=test", f"ckpt={checkpoint}", "trainer=cpu", "task.data.eval_batch_size=50")
    before, after = (json.loads((path / "result.json").read_text())["metrics"] for path in (run, again))
    for name in ("test/mse", "test/mae", "test/mse_seasonal_naive"):
        assert after[name] == pytest.approx(before[name], rel=1e-5)


def test_predict_writes_a_forecast_and_a_picture(run: Path, act: Callable[..., Path], tmp_path: Path) -> None:
    shops = pd.DataFrame(
        np.random.default_rng(0).normal(100, 20, (60, 3)), columns=["rome", "berlin", "paris"]
    )
    shops["date"] = pd.date_range("2030-01-01", periods=60, freq="D")
    shops.to_csv(tmp_path / "shops.csv", index=False)
    checkpoint = f"ckpt={run / 'checkpoints' / 'best.ckpt'}"
    folder = act("action=predict", checkpoint, "trainer=cpu", f"input={tmp_path / 'shops.csv'}")
    table = pd.read_csv(folder / "forecast.csv", parse_dates=["date"])
    assert table.columns.tolist() == ["date", "berlin", "paris", "rome", "drawn"], (
        "the model is of a drawn sample"
    )
    assert table["date"].tolist() == pd.date_range("2030-03-02", periods=14, freq="D").tolist()
    assert table.notna().all().all()
    assert (folder / "figures" / "forecasts.png").is_file()
    several = tmp_path / "several"
    several.mkdir()
    shops.to_csv(several / "a.csv", index=False)
    (several / "b.csv").write_text("nothing")
    shops.drop(columns="rome").to_csv(several / "c.csv", index=False)
    folder = act("action=predict", checkpoint, "trainer=cpu", f"input={several}", folder="several_run")
    rows = pd.read_csv(folder / "predictions.csv")
    assert rows["error"].isna().tolist() == [True, False, False]
    assert "lacks the column(s) rome" in rows["error"][2]
    assert (folder / "000_a" / "forecast.csv").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch reading back its own export
def test_export_answers_in_own_units(run: Path, act: Callable[..., Path]) -> None:
    folder = act("action=export", f"ckpt={run / 'checkpoints' / 'best.ckpt'}", "trainer=cpu") / "export"
    about = json.loads((folder / "model.json").read_text())
    torch.manual_seed(0)
    raw = {name: torch.randn(4, *shape[1:]) for name, shape in about["input"].items()}
    raw["values"] = 100 + 20 * raw["values"]
    raw["observed"] = (raw["observed"] > -1).float()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    theirs = session.run(None, dict(zip(names, (raw[name].numpy() for name in raw), strict=True)))[0]
    ours = torch.export.load(folder / "model.pt2").module()(raw).detach()
    assert ours.shape == (4, 14, 3)
    assert 50 < float(ours.mean()) < 150
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3)


@pytest.mark.parametrize(
    "words",
    [
        ("task=global_temp", "modality/embedder=token_map", "modality.embedder.width=64"),
        pytest.param(
            ("task=exchange", "modality.embedder.centre=last", "backbone.model.stem_stride=2"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("task=etth1", "modality.embedder.periods=[24,48]", "modality.embedder.pixel=2"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_compositions_train(words: tuple[str, ...], act: Callable[..., Path]) -> None:
    folder = act(*QUICK, *words, "debug=fast")
    assert json.loads((folder / "result.json").read_text())["metrics"]["test/mse"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("task=csv_forecast", "task.data.season=99"), "season=99 does not lie in the look-back"),
        (("task=csv_forecast", "task.data.target=oslo"), "lacks the column(s) oslo"),
        (("task=csv_forecast", "task.data.look_back=800"), "too few for windows"),
        (("task=csv_forecast", "modality.embedder.periods=[99]"), "every period between 2 and the look-back"),
        (("task=etth1", "data_dir=/does/not/exist.csv"), "does not exist; etth1 expects ETTh1.csv"),
        (("task=etth1", "modality.embedder.pixel=3"), "pixel=3 must divide"),
    ],
)
def test_wrong_input_gets_one_sentence(
    words: tuple[str, ...], said: str, act: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        act(*QUICK, *words)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert said in errors[0]
    assert "\n" not in errors[0]
