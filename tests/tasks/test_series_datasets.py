"""Every forecasting source on its own embedded sample, and what a CSV of one's own may look like."""

import hashlib
import http.server
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.datasets.base import SPLITS, DataError, ReadError
from tasks.datasets.time_series import ett as ett_file
from tasks.datasets.time_series.benchmarks import BENCHMARKS
from tasks.datasets.time_series.corrformer import GlobalStations, load_npy
from tasks.datasets.time_series.csv_forecast import CsvForecast
from tasks.datasets.time_series.ett import ETT
from tasks.datasets.time_series.long_term import LongTerm
from tasks.datasets.time_series.table import (
    calendar_features,
    calendar_names,
    future_dates,
    infer_frequency,
    read_csv,
)
from tasks.datasets.time_series.windows import SeriesData

Make = Callable[[Path], SeriesData]

SOURCES: dict[str, Make] = {
    **{
        variant.lower(): lambda folder, variant=variant: ETT(  # type: ignore[misc]
            name=variant.lower(), variant=variant, samples_dir=str(folder)
        )
        for variant in ("ETTh1", "ETTh2", "ETTm1", "ETTm2")
    },
    **{
        name: lambda folder, name=name: LongTerm(  # type: ignore[misc]
            name=name, benchmark=name, look_back=104, horizon=24, samples_dir=str(folder)
        )
        for name in BENCHMARKS
    },
    "csv_forecast": lambda folder: CsvForecast(
        name="csv_forecast", look_back=56, horizon=14, samples_dir=str(folder)
    ),
    "global_temp": lambda folder: GlobalStations(name="global_temp", samples_dir=str(folder)),
    "global_wind": lambda folder: GlobalStations(
        name="global_wind", quantity="wind", samples_dir=str(folder)
    ),
}


def ready(data: SeriesData) -> SeriesData:
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("series")


@pytest.mark.parametrize("name", SOURCES)
def test_contract(name: str, folder: Path) -> None:
    data = ready(SOURCES[name](folder))
    again = ready(SOURCES[name](folder))
    assert data.info() == again.info()
    rows: dict[str, set[int]] = {}
    for split in SPLITS:
        starts = [item.where["row"] for item in data.splits[split]]
        assert starts == list(range(starts[0], starts[-1] + 1)), "every window counts"
        rows[split] = set(range(starts[0] + data.look_back, starts[-1] + data.look_back + data.horizon))
    assert not rows["train"] & rows["val"] | rows["val"] & rows["test"] | rows["train"] & rows["test"]
    assert max(rows["train"]) < min(rows["val"]) <= max(rows["val"]) < min(rows["test"])
    training = data.truth_TN[: max(rows["train"]) + 1].double().numpy()
    training = pd.DataFrame(training).interpolate(limit_direction="both").to_numpy()
    np.testing.assert_allclose(data.info()["mean"], training.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(data.info()["std"], training.std(0), rtol=1e-4)
    batch = next(iter(data.loader("train")))
    length, variates = data.look_back + data.horizon, len(data.info()["variates"])
    assert batch.raw["values"].shape == (32, data.look_back, variates)
    assert batch.raw["calendar"].shape == (32, length, len(data.info()["calendar"]))
    assert batch.target.shape == (32, data.horizon, variates)
    first = int(batch.index[0])
    item = data.splits["train"][first].where["row"]
    truth = data.truth_TN[item + data.look_back : item + length]
    torch.testing.assert_close(batch.target[0], truth, rtol=0, atol=0, equal_nan=True)
    assert 1 <= data.info()["season"] <= data.look_back


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_every_test_window_counts_whatever_the_batch(batch_size: int, folder: Path) -> None:
    data = ready(ETT(name="etth1", samples_dir=str(folder), eval_batch_size=batch_size))
    seen = [index for batch in data.test_dataloader() for index in batch.index.tolist()]
    assert seen == list(range(len(data.splits["test"])))


def write_csv(path: Path, rows: int, columns: int = 7, step: str = "h") -> Path:
    values = np.random.default_rng(0).normal(size=(rows, columns)).round(3)
    frame = pd.DataFrame(values, columns=[*map(str, range(columns - 1)), "OT"])
    frame.insert(0, "date", pd.date_range("2016-07-01", periods=rows, freq=step).astype(str))
    frame.to_csv(path, index=False)
    return path


def test_the_published_borders_of_ett(tmp_path: Path) -> None:
    write_csv(tmp_path / "ETTh1.csv", 17420)
    data = ready(ETT(name="etth1", data_dir=str(tmp_path)))
    assert [len(data.splits[split]) for split in SPLITS] == [8449, 2785, 2785]
    assert data.splits["val"][0].where["row"] == 8640 - 96
    assert data.splits["test"][-1].where["row"] == 14400 - 96 - 96
    assert data.source == "full"


def test_the_published_borders_of_exchange(tmp_path: Path) -> None:
    write_csv(tmp_path / "exchange_rate.csv", 7588, 8, "D")
    data = ready(LongTerm(name="exchange", benchmark="exchange", season=1, data_dir=str(tmp_path)))
    assert [len(data.splits[split]) for split in SPLITS] == [5311 - 191, 760 - 95, 1517 - 95]


def test_statistics_do_not_see_validation_and_test(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "ETTh1.csv", 1000)
    before = ready(ETT(name="etth1", data_dir=str(path))).info()
    frame = pd.read_csv(path)
    frame.iloc[600:, 1:] += 1000
    frame.to_csv(path, index=False)
    assert ready(ETT(name="etth1", data_dir=str(path))).info() == before


@pytest.mark.parametrize("name", ["etth1", "exchange", "global_temp", "csv_forecast"])
def test_wrong_folder_is_one_sentence(name: str, tmp_path: Path) -> None:
    data = SOURCES[name](tmp_path / "samples")
    data.root, data.source = tmp_path, "full"
    with pytest.raises(DataError, match=f"; {name} expects") as raised:
        data.setup()
    assert "\n" not in str(raised.value)


def test_too_short_a_series(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "short.csv", 100)
    with pytest.raises(DataError, match=r"100 rows .* too few for windows of 96"):
        ready(CsvForecast(name="csv_forecast", data_dir=str(path)))
    with pytest.raises(DataError, match="does not lie in the look-back"):
        CsvForecast(name="csv_forecast", season=97)


# -- tables -------------------------------------------------------------------------------------------------


def test_gaps_are_reported_and_stay_gaps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame(
        {
            "when": pd.date_range("2024-01-01", periods=12, freq="D").strftime("%d %b %Y"),
            "sales": [np.nan, 1.0, 2.0, np.nan, np.nan, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, np.nan],
            "shop": "north",
        }
    )
    shuffled = pd.concat([frame.drop(index=7), frame.loc[[1]]]).sample(frac=1, random_state=0)
    shuffled.to_csv(tmp_path / "a.csv", index=False)
    with caplog.at_level(logging.WARNING):
        table = read_csv(tmp_path / "a.csv")
    assert np.nan_to_num(table.values_TN[:, 0]).tolist() == [0, 1, 2, 0, 0, 5, 6, 0, 8, 9, 10, 0]
    assert table.variates == ("sales",)
    assert table.frequency == "D"
    for words in (
        "rows sorted",
        "1 rows repeat",
        "1 missing rows added",
        "left out: shop",
    ):
        assert words in caplog.text


def test_rows_stay_as_they_are_where_a_protocol_says_so(tmp_path: Path) -> None:
    frame = pd.read_csv(write_csv(tmp_path / "a.csv", 50)).drop(index=[10, 11])
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert len(read_csv(tmp_path / "a.csv", even=False).dates) == 48
    assert len(read_csv(tmp_path / "a.csv").dates) == 50


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("\n", "cannot be read as a CSV table"),
        ("date,a\n2024-01-01,1\n", "it has 1 rows"),
        ("a,b\n1,2\n3,4\n5,6\n", "holds numbers; a column named date"),
        ("date,a\n2024-01-01,1\nsoon,2\n2024-01-03,3\n", "are no dates, the first in line 3: 'soon'"),
        ("date,a\n2024-01-01,x\n2024-01-02,y\n2024-01-03,z\n", "none of its columns holds numbers"),
        ("date,a\n2024-01-01,1\n2024-01-01,2\n2024-01-01,3\n", "1 different dates"),
        (
            "date,a\n" + "".join(f"2024-01-{day:02d} {day % 7}:{day}:00,1\n" for day in range(1, 29)),
            "not evenly spaced",
        ),
    ],
)
def test_unusable_tables_are_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ReadError, match=said) as raised:
        read_csv(tmp_path / "a.csv")
    assert "\n" not in str(raised.value)


def test_absent_target(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"lacks the column\(s\) sales; it has 0, OT"):
        read_csv(write_csv(tmp_path / "a.csv", 20, 2), ["sales"])


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frequency=st.sampled_from(["10min", "15min", "h", "3h", "D", "B", "W-SUN", "MS", "QS-OCT", "YS-JAN"]),
    drops=st.sets(st.integers(1, 38), max_size=4),
)
def test_frequency_is_inferred_despite_gaps(frequency: str, drops: set[int]) -> None:
    dates = pd.date_range("2023-03-01", periods=40, freq=frequency)
    kept = dates.delete(sorted(drops))
    found = infer_frequency(kept)
    if frequency.startswith(("QS", "YS")):
        assert found[:2] == frequency[:2], "the month a quarter or year is named after may differ"
    else:
        assert found == frequency
        assert pd.date_range(dates[0], periods=40, freq=found).equals(dates)


def test_dates_to_come() -> None:
    last = pd.Timestamp("2024-01-31")
    assert future_dates(last, "ME", 2).strftime("%m-%d").tolist() == ["02-29", "03-31"]
    assert future_dates(pd.Timestamp("2024-03-01"), "B", 1)[0] == pd.Timestamp("2024-03-04")


def test_calendar_features() -> None:
    names = calendar_names("h", pd.Timedelta(days=300))
    assert names == ("sin(hour_of_day)", "cos(hour_of_day)", "sin(day_of_week)", "cos(day_of_week)")
    assert "sin(day_of_year)" in calendar_names("D", pd.Timedelta(days=800))
    assert calendar_names("YS", pd.Timedelta(days=8000)) == ()
    dates = pd.date_range("2024-01-01", periods=24 * 14, freq="h")  # a Monday
    table = calendar_features(dates, names)
    assert table.shape == (24 * 14, 4)
    np.testing.assert_allclose(table[:24, :2], table[24:48, :2], atol=1e-6)
    np.testing.assert_allclose(table[: 24 * 7], table[24 * 7 :], atol=1e-6)
    assert calendar_features(dates, ()).shape == (24 * 14, 0)


# -- prediction, download, published arrays -----------------------------------------------------------------


def test_a_users_file_is_read_like_a_test_window(folder: Path, tmp_path: Path) -> None:
    data = ready(ETT(name="etth1", samples_dir=str(folder)))
    item = data.splits["test"][0]
    wanted = data.read_item(item, False, np.random.default_rng(0))
    assert data.file is not None
    frame = pd.read_csv(data.file).iloc[: item.where["row"] + data.look_back]
    frame[["OT", "date", *frame.columns[1:-1]]].to_csv(tmp_path / "mine.csv", index=False)
    other = ETT(name="etth1")
    other.recall(data.info())
    found = other.read_file(tmp_path / "mine.csv")
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key])
    frame.tail(50).to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(ReadError, match="50 rows; the model looks 96 rows back"):
        other.read_file(tmp_path / "short.csv")
    frame.iloc[::4].to_csv(tmp_path / "slow.csv", index=False)
    with pytest.raises(ReadError, match="a step is 4h in it and was h"):
        other.read_file(tmp_path / "slow.csv")
    frame.drop(columns="OT").to_csv(tmp_path / "narrow.csv", index=False)
    with pytest.raises(ReadError, match=r"lacks the column\(s\) OT"):
        other.read_file(tmp_path / "narrow.csv")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as service:
        thread = threading.Thread(target=service.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{service.server_address[1]}", root
        service.shutdown()
        thread.join()


def test_download(server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, root = server
    write_csv(root / "ETTh2.csv", 1000)
    monkeypatch.setattr(ett_file, "ADDRESS", address + "/{name}.csv")
    digest = hashlib.sha256((root / "ETTh2.csv").read_bytes()).hexdigest()
    monkeypatch.setitem(ett_file.SHA256, "ETTh2", digest)
    place = tmp_path / "data"
    data = ready(ETT(name="etth2", variant="ETTh2", data_dir=str(place), download=True))
    assert len(data.splits["train"]) == 600 - 191
    with pytest.raises(DataError, match="answered 404"):
        ready(ETT(name="ettm1", variant="ETTm1", data_dir=str(tmp_path / "other"), download=True))


def test_stations_are_in_degrees(folder: Path) -> None:
    data = ready(SOURCES["global_temp"](folder))
    raw = np.load(data.root / "temp_global_hourly_train.npy")
    np.testing.assert_allclose(data.values_TN[:10], raw[:10, :, 0] / 10, rtol=1e-5)
    assert np.asarray(data.info()["positions"]).shape == (22, 3)


def test_pickled_arrays_are_read_but_run_nothing(tmp_path: Path) -> None:
    dates = np.array([pd.Timestamp("2019-01-01").to_pydatetime()] * 3, dtype=object)
    np.save(tmp_path / "dates.npy", dates, allow_pickle=True)
    assert load_npy(tmp_path / "dates.npy").tolist() == dates.tolist()

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "owned",))

    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read safely"):
        load_npy(tmp_path / "evil.npy")
    assert not (tmp_path / "owned").exists()
    (tmp_path / "torn.npy").write_bytes(pickle.dumps([1])[:5])
    with pytest.raises(DataError, match=r"torn\.npy"):
        load_npy(tmp_path / "torn.npy")
