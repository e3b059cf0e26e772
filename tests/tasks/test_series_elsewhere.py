"""A model's series and others: files keep their names, and scales are those of the training."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.datasets.base import DataError, ReadError
from tasks.datasets.time_series import csv_forecast
from tasks.datasets.time_series.csv_forecast import CsvForecast
from tasks.datasets.time_series.table import read_series


def write(path: Path, values: np.ndarray, names: tuple[str, ...] = ("load",)) -> Path:
    frame = pd.DataFrame(values.reshape(len(values), -1), columns=list(names))
    frame.insert(0, "date", pd.date_range("2021-01-01", periods=len(frame), freq="D"))
    frame.to_csv(path, index=False)
    return path


def opened(place: Path, **options: object) -> CsvForecast:
    data = CsvForecast(name="csv_forecast", data_dir=str(place), look_back=12, horizon=4, **options)  # type: ignore[arg-type]
    data.setup()
    return data


def whole(place: Path, data_info: dict[str, object], **options: object) -> CsvForecast:
    data = CsvForecast(name="csv_forecast", data_dir=str(place), look_back=12, horizon=4, **options)  # type: ignore[arg-type]
    found = data.read_whole(data_info)
    assert found is not None
    data.take_whole(found, data_info)
    return data


NOISE = np.random.default_rng(0).normal(size=300)


def test_windows_name_their_own_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.csv", NOISE)
    data = opened(tmp_path)
    assert {item.path.name for item in data.splits["test"]} == {"a.csv", "b.csv"}
    assert all(item.where["series"] == item.path.stem for item in data.splits["test"])


@pytest.mark.parametrize("names", [("training", "testing"), ("train_set", "test_set")])
def test_files_of_splits_are_no_series(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write(tmp_path / f"{name}.csv", NOISE)
    with pytest.raises(DataError, match="would be read as series of their own"):
        opened(tmp_path)


def test_one_scale_for_the_test_split_the_whole_and_the_last_window(tmp_path: Path) -> None:
    data_info = opened(write(tmp_path / "a.csv", 4e8 + NOISE)).info()
    assert data_info["scaled"]
    other = write(tmp_path / "b.csv", 4e8 + 10 * NOISE)
    adopted = opened(other)
    adopted.adopt(data_info)
    tested = whole(other, data_info)
    np.testing.assert_allclose(adopted.arrays.unit_RN, [data_info["std"]])
    np.testing.assert_allclose(tested.arrays.unit_RN, [data_info["std"]])
    np.testing.assert_allclose(tested.read_file(other)["unit"].numpy(), data_info["std"])


def test_a_level_that_the_model_cannot_read_is_refused(tmp_path: Path) -> None:
    data_info = opened(write(tmp_path / "a.csv", NOISE)).info()
    large = write(tmp_path / "b.csv", 2e9 + NOISE)
    with pytest.raises(DataError, match="its level is too large for a model trained on values near"):
        whole(large, data_info)
    with pytest.raises(ReadError, match="its level is too large"):
        whole(tmp_path / "a.csv", data_info).read_file(large)


def test_other_columns_are_left_alone_where_the_names_are_there(tmp_path: Path) -> None:
    data_info = opened(write(tmp_path / "a.csv", NOISE)).info()
    other = write(tmp_path / "b.csv", np.stack([NOISE, NOISE], axis=1), ("load", "note"))
    frame = pd.read_csv(other)
    frame["note"] = "a remark"
    frame.to_csv(other, index=False)
    assert len(whole(other, data_info).splits["test"]) == 285


def test_a_covariate_is_filled_with_what_was_known_before(tmp_path: Path) -> None:
    price = np.where(np.arange(300) < 60, np.nan, np.where(np.arange(300) < 210, 0.0, 100.0))
    write(tmp_path / "a.csv", np.stack([NOISE, price], axis=1), ("load", "price"))
    data = opened(tmp_path / "a.csv", past="price")
    assert data.arrays.past_TP is not None
    assert data.arrays.past_TP[:60].max() == 0


def test_weeks_from_any_day_on(tmp_path: Path) -> None:
    frame = pd.DataFrame({"date": pd.date_range("2002-01-01", periods=300, freq="W-TUE"), "load": NOISE})
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert opened(tmp_path / "a.csv").info()["frequency"] == "W-TUE"


@pytest.mark.parametrize("names", [("load",), ("heat", "load"), ("load", "heat")])
def test_other_data_are_read_once_and_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    values = np.stack([NOISE, NOISE[::-1], np.arange(300.0)], axis=1)
    data_info = opened(write(tmp_path / "a.csv", values[:, : len(names)], names)).info()
    other = write(tmp_path / "b.csv", values, ("load", "heat", "hour"))
    expected = whole(other, data_info)
    reads: list[Path] = []

    def counted(path: Path, *rest: object) -> object:
        reads.append(path)
        return read_series(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(csv_forecast, "read_series", counted)
    data = opened(other)  # as a test does that looks whether the model was trained on these
    found = data.read_whole(data_info)
    assert found is not None
    assert reads == [other]
    assert data.tables is not None
    assert [table.variates for table in data.tables[1]] == [names]
    data.take_whole(found, data_info)
    for item, wanted in zip(data.splits["test"], expected.splits["test"], strict=True):
        mine, right = (part.read_item(item, False, np.random.default_rng(0)) for part in (data, expected))
        np.testing.assert_array_equal(mine["values"], right["values"])
        np.testing.assert_array_equal(item.target, wanted.target)
