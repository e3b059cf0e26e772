"""Tables as people and their programs write them: read rightly, or refused with the line and the option that helps."""

import logging
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.datasets.base import DataError, ReadError
from tasks.datasets.time_series.csv_forecast import CsvForecast
from tasks.datasets.time_series.table import Columns, Table, read_csv, read_series
from tasks.datasets.time_series.text import Format

DAYS = pd.date_range("2021-01-01", periods=60, freq="D")
WEEK = np.tile([10.0, 11.1, 1234.5, -3.25, 0.0, 2000.0, 1e6], 9)[:60]


def write(
    path: Path, dates: Sequence[str], values: Sequence[str], separator: str = ",", head: str = "date"
) -> Path:
    lines = [
        f"{head}{separator}v",
        *(f"{date}{separator}{value}" for date, value in zip(dates, values, strict=True)),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def written(number: float, thousands: str, decimal: str) -> str:
    return f"{number:,.2f}".replace(",", "#").replace(".", decimal).replace("#", thousands)


def ready(path: Path, **settings: object) -> CsvForecast:
    given: dict[str, object] = {"look_back": 28, "horizon": 7} | settings
    data = CsvForecast(name="csv_forecast", data_dir=str(path), **given)  # type: ignore[arg-type]
    data.setup()
    return data


# -- numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thousands", "decimal", "separator", "quote"),
    [
        (",", ".", ",", '"'),
        (",", ".", ";", ""),
        (".", ",", ";", ""),
        (".", ",", ",", '"'),
        ("\u202f", ",", "\t", ""),
        (" ", ".", "|", ""),
        ("’", ".", ",", ""),
        ("", ",", ",", '"'),
        ("", ",", ";", ""),
    ],
)
def test_numbers_written_for_people(
    thousands: str, decimal: str, separator: str, quote: str, tmp_path: Path
) -> None:
    values = [f"{quote}{written(number, thousands, decimal)}{quote}" for number in WEEK]
    path = write(tmp_path / "a.csv", DAYS.astype(str).tolist(), values, separator)
    table = read_csv(path)
    assert table.values_TN[:, 0].tolist() == WEEK.tolist()
    assert f"decimal sign '{decimal}'" in table.said


def test_decimal_commas_beside_whole_numbers(tmp_path: Path) -> None:
    """A spreadsheet writes 10,0 as 10: the column is text all the same, and 1.234 beside it is a thousand."""
    (tmp_path / "a.csv").write_text(
        'date,v,w\n2021-01-01,"10",1.234\n2021-01-02,"11,1",2.500\n2021-01-03,"-0,5",3.000\n'
    )
    assert read_csv(tmp_path / "a.csv").values_TN.tolist() == [[10, 1234], [11.1, 2500], [-0.5, 3000]]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            ["1", "<9.0", "3"],
            r"1 cells of its column 'v' are no numbers, the first in line 3: '<9.0'.*missing=\[\"<9.0\"\]",
        ),
        (
            ["broken", "broken", "3"],
            r"2 cells .* the first in line 2: 'broken'; .*'task.data.missing=\[broken\]'",
        ),
        (["1.5 kg", "2.5 kg", "3"], "the first in line 2: '1.5 kg'"),
        (
            ['"1,234"', '"5,678"', '"9,012"'],
            r"'1,234' in column 'v', line 2, may have thousands .* task.data.decimal",
        ),
        (['"1,5"', '"2.5"', "3"], r"decimal commas and, in column 'v', line 3, '2.5'"),
    ],
)
def test_a_cell_that_is_no_number_is_named(cells: list[str], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ["2021-01-01", "2021-01-02", "2021-01-03"], cells)
    with pytest.raises(ReadError, match=said) as raised:
        read_csv(path)
    assert "\n" not in str(raised.value)


def test_the_options_settle_what_was_refused(tmp_path: Path) -> None:
    dates = ["2021-01-01", "2021-01-02", "2021-01-03"]
    path = write(tmp_path / "a.csv", dates, ['"1,234"', '"5,678"', '"9,012"'])
    assert read_csv(path, form=Format(decimal=".")).values_TN[0, 0] == 1234
    assert read_csv(path, form=Format(decimal=",")).values_TN[0, 0] == 1.234
    path = write(tmp_path / "b.csv", dates, ["1", "<9.0", "3"])
    table = read_csv(path, form=Format(missing=("<9.0",)))
    assert np.isnan(table.values_TN[:, 0]).tolist() == [False, True, False]
    with pytest.raises(DataError, match="decimal must be"):
        Format(decimal=";")


def test_the_line_counts_blank_lines_and_breaks_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'date,note,v\n2021-01-01,"two\nlines",1\n\n2021-01-02,x,2\n2021-01-03,x,oh\n'
    )
    with pytest.raises(ReadError, match="line 6: 'oh'"):
        read_csv(tmp_path / "a.csv")


def test_a_sentinel_is_named_with_the_option(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = [*map(str, 10 + np.sin(np.arange(60)))]
    values[7] = values[30] = "-9999"
    path = write(tmp_path / "a.csv", DAYS.astype(str).tolist(), values)
    with caplog.at_level(logging.WARNING):
        read_csv(path)
    assert "-9999 stands 2 times in column v" in caplog.text
    assert "say 'task.data.missing=[-9999]'" in caplog.text
    caplog.clear()
    table = read_csv(path, form=Format(missing=("-9999",)))
    assert int(np.isnan(table.values_TN).sum()) == 2
    read_csv(write(tmp_path / "b.csv", DAYS.astype(str).tolist(), [*map(str, np.arange(-20, 40))]))
    assert "stands" not in caplog.text, "-1 and -9 among like numbers are numbers"


# -- dates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "pattern"),
    [
        ("D", "%d/%m/%Y"), ("D", "%m/%d/%Y"), ("D", "%d.%m.%Y"), ("D", "%d-%m-%y"), ("h", "%d/%m/%Y %H:%M"),
        ("h", "%m/%d/%Y %I:%M %p"), ("MS", "%d/%m/%Y"), ("MS", "%m/%d/%Y"), ("B", "%d/%m/%Y"), ("D", "%d %b %Y"),
        ("h", "%Y-%m-%dT%H:%M:%SZ"), ("D", "%Y%m%d"), ("MS", "%Y%m"), ("YS", "%Y"), ("h", "%Y%m%d%H"),
        ("5min", "%Y%m%d%H%M"), ("h", "%s"),
    ],
)  # fmt: skip
def test_dates_in_usual_dress(step: str, pattern: str, tmp_path: Path) -> None:
    dates = pd.date_range("2019-01-01", periods=60, freq=step)
    texts = (
        dates.as_unit("s").asi8.astype(str).tolist() if pattern == "%s" else dates.strftime(pattern).tolist()
    )
    table = read_csv(write(tmp_path / "a.csv", texts, [*map(str, range(60))]))
    assert table.dates.tolist() == dates.tolist()
    assert table.values_TN[:, 0].tolist() == list(range(60))


def test_day_first_is_cut_like_the_same_dates_year_first(tmp_path: Path) -> None:
    dates = pd.date_range("2021-01-01", periods=500, freq="D")
    values = [
        *map(
            str, np.tile([1, 5, 2, 8, 3, 9, 4], 72)[:500] + np.random.default_rng(0).normal(size=500).round(2)
        )
    ]
    one = ready(write(tmp_path / "iso.csv", dates.astype(str).tolist(), values))
    other = ready(write(tmp_path / "day.csv", dates.strftime("%d/%m/%Y").tolist(), values))
    assert one.info() == other.info()
    assert [len(other.splits[split]) for split in ("train", "val", "test")] == [316, 44, 94]
    assert other.info()["season"] == 7


def test_an_ambiguous_order_is_refused_and_settled(tmp_path: Path) -> None:
    texts = pd.date_range("2021-01-01", periods=12, freq="D").strftime("%d/%m/%Y").tolist()
    path = write(tmp_path / "a.csv", texts, [*map(str, range(12))])
    with pytest.raises(
        ReadError, match=r"'02/01/2021' .* line 3, may have the day or the month first.*date_order=day"
    ):
        read_csv(path)
    assert read_csv(path, form=Format(date_order="day")).frequency == "D"
    assert read_csv(path, form=Format(date_order="month")).frequency == "MS"
    (tmp_path / "b.csv").write_text("date,v\n13/01/2021,1\n14/01/2021,2\n01/15/2021,3\n")
    with pytest.raises(ReadError, match="day first and others with the month first"):
        read_csv(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "date,v\nJan-21,1\nFeb-21,2\nMar-21,3\n",
            "3 entries .* are no dates, the first in line 2: 'Jan-21'",
        ),
        ("date,v\n10:00,1\n11:00,2\n12:00,3\n", "are no dates"),
        ("date,v\n1,1\n2,2\n3,3\n", "holds numbers, from 1 to 3, that are no dates"),
        ("date,v\n2021-01-01,1\n,2\n2021-01-03,3\n", "has no date in line 3"),
        ("2021-01-01,1\n2021-01-02,2\n2021-01-03,3\n2021-01-04,4\n", "it has no header"),
        ("date,v\n2021-01-01,10,0\n2021-01-02,11,1\n2021-01-03,9,5\n", "line 2 has 3 cells and the header 2"),
        (
            "date,v\n2021-01-01 00:00+01:00,1\n2021-01-02 00:00,2\n2021-01-03 00:00,3\n",
            "a zone and others none",
        ),
        ("date,v,v \n2021-01-01,1,2\n2021-01-02,1,2\n2021-01-03,1,2\n", "two of its columns are named 'v'"),
    ],
)
def test_what_is_in_doubt_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ReadError, match=said) as raised:
        read_csv(tmp_path / "a.csv")
    assert "\n" not in str(raised.value)


def test_date_and_time_in_two_columns(tmp_path: Path) -> None:
    hours = pd.date_range("2021-01-01", periods=60, freq="h")
    path = tmp_path / "a.csv"
    pd.DataFrame({"Date": hours.strftime("%d.%m.%Y"), "Time": hours.strftime("%H:%M:%S"), "kw": 1.0}).to_csv(
        path, index=False
    )
    table = read_csv(path)  # month first, there would be a month between two days
    assert table.dates.tolist() == hours.tolist()
    assert table.variates == ("kw",)
    pd.DataFrame({"a": hours.strftime("%Y-%m-%d"), "b": hours.strftime("%H:%M"), "kw": 1.0}).to_csv(
        path, index=False
    )
    assert read_csv(path, form=Format(date=("a", "b"))).dates.tolist() == hours.tolist()
    with pytest.raises(ReadError, match=r"task\.data\.date names when"):
        read_csv(path, form=Format(date="when"))


def test_jitter_is_moved_to_the_step(tmp_path: Path) -> None:
    steps = pd.date_range("2022-01-01 00:00:30", periods=200, freq="5min")
    off = pd.to_timedelta(np.random.default_rng(0).integers(-3, 4, 200), unit="s")
    table = read_csv(write(tmp_path / "a.csv", (steps + off).astype(str).tolist(), [*map(str, range(200))]))
    assert table.values_TN[:, 0].tolist() == list(range(200))
    assert table.frequency == "5min"
    assert np.abs((table.dates - steps).total_seconds()).max() <= 1
    assert "times up to" in table.said


# -- time zones ----------------------------------------------------------------------------------------------


def zoned(path: Path, start: str, periods: int, step: str = "h") -> Path:
    wall = pd.date_range(start, periods=periods, freq=step, tz="Europe/Berlin")
    values = 10 + np.sin(2 * np.pi * wall.hour.to_numpy() / 24) + 0.01 * np.arange(periods) % 0.5
    return write(path, [time.isoformat() for time in wall], [*map(str, values)])


@pytest.mark.parametrize("start", ["2022-09-20", "2022-02-20"])
def test_the_hour_of_the_day_is_that_of_the_wall(start: str, tmp_path: Path) -> None:
    path = zoned(tmp_path / "a.csv", start, 1400)
    data = ready(path)
    table = read_csv(path)
    assert table.dates.is_unique
    hours = pd.date_range(start, periods=1400, freq="h", tz="Europe/Berlin").hour
    assert table.wall.hour.tolist() == hours.tolist()
    angle = np.arctan2(*data.calendar_TF[:, :2].numpy().T) % (2 * np.pi)
    np.testing.assert_allclose(angle * 24 / (2 * np.pi) % 23.9999, hours, atol=1e-3)
    raw = data.read_file(path)
    assert raw["offset"][-1] == {"2022-09-20": 3600, "2022-02-20": 7200}[start]
    assert "time zone as written" in table.said


def test_days_of_a_zone_stay_days_when_clocks_change(tmp_path: Path) -> None:
    path = zoned(tmp_path / "a.csv", "2022-03-01", 60, "D")
    table = read_csv(path)
    assert table.frequency == "D"
    assert not np.isnan(table.values_TN).any()
    assert set(table.wall.hour) == {0}
    assert table.offsets_T is not None
    assert set(table.offsets_T) == {3600, 7200}


def test_a_named_zone_reads_local_times_and_knows_changes_to_come(tmp_path: Path) -> None:
    wall = pd.date_range("2022-09-20", "2022-10-29 23:00", freq="h", tz="Europe/Berlin")
    path = write(
        tmp_path / "a.csv", wall.strftime("%Y-%m-%d %H:%M").tolist(), [*map(str, np.arange(len(wall)) % 24)]
    )
    data = ready(path, time_zone="Europe/Berlin")
    raw = data.read_file(path)
    assert raw["offset"].tolist()[-7:] == [7200] * 3 + [3600] * 4
    assert data.info()["time_zone"] == "Europe/Berlin"
    with pytest.raises(DataError, match="no time zone named 'Berlin'"):
        ready(path, time_zone="Berlin")


# -- size ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            None,
            r"more than 50% have no row .*between 2020-01-01 00:04:59 and 2200-01-01.*task.data.max_missing",
        ),
        ("7" * 2_000_000, "has 2,000,000 characters"),
        ("x" * 2_000_000, "has 2,000,000 characters"),
        ("," * 2_000_000, "cannot be read as a CSV table"),
    ],
)
def test_what_would_fill_the_memory_is_refused_at_once(cell: str | None, said: str, tmp_path: Path) -> None:
    dates = pd.date_range("2020-01-01", periods=300, freq="s").astype(str).tolist()
    values = [*map(str, range(300))]
    if cell is None:
        dates, values = [*dates, "2200-01-01 00:00:00"], [*values, "1"]
    else:
        values[150] = cell
    path = write(tmp_path / "a.csv", dates, values)
    started = time.monotonic()
    tracemalloc.start()
    with pytest.raises(ReadError, match=said) as raised:
        read_csv(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - started < 5
    assert peak < 2**27
    assert len(str(raised.value)) < 500


def test_the_limit_of_memory_is_an_option(tmp_path: Path) -> None:
    dates = [*pd.date_range("2020-01-01", periods=300, freq="s").astype(str), "2020-02-01 00:00:00"]
    path = write(tmp_path / "a.csv", dates, [*map(str, range(301))])
    with pytest.raises(
        ReadError, match=r"would take 0.0 GiB, more than the limit of 0.01.*task.data.max_gib"
    ):
        read_csv(path, form=Format(max_missing=0.9999, max_gib=0.01))
    assert len(read_csv(path, form=Format(max_missing=0.9999)).dates) == 31 * 86400 + 1


# -- level and gaps ------------------------------------------------------------------------------------------


def series_of(values: np.ndarray, path: Path, step: str = "h") -> Path:
    dates = pd.date_range("2022-01-01", periods=len(values), freq=step).astype(str).tolist()
    return write(path, dates, [repr(float(value)) for value in values])


def naive_mse(data: CsvForecast) -> float:
    """Of the forecast that repeats the last value, on the standardised scale, from the batches a model gets."""
    scaled = data.info().get("scaled", False)
    std = 1.0 if scaled else float(data.info()["std"][0])
    errors = [
        ((batch.raw["values"][:, -1:] - batch.target) / std).double().square()
        for batch in data.test_dataloader()
    ]
    return float(np.nanmean(np.concatenate([error.numpy().ravel() for error in errors])))


@pytest.mark.parametrize("level", [2e6, -2e7, 4e8, 1e12])
def test_a_large_level_blurs_nothing(level: float, tmp_path: Path) -> None:
    wave = np.sin(2 * np.pi * np.arange(600) / 24) + 0.1 * np.random.default_rng(0).normal(size=600)
    wave = (wave + level) - level  # what double precision keeps of it
    near = ready(series_of(wave, tmp_path / "near.csv"))
    far = ready(series_of(wave + level, tmp_path / "far.csv"))
    assert naive_mse(far) == pytest.approx(naive_mse(near), rel=1e-4)
    assert naive_mse(far) > 0.5
    assert far.info()["scaled"] is True
    assert "scaled" not in near.info()
    assert far.info()["season"] == near.info()["season"] == 24
    raw = far.read_file(tmp_path / "far.csv")
    own = raw["values"].double() * raw["unit"] + raw["level"]
    np.testing.assert_allclose(own[:, 0].numpy() - level, wave[-28:], atol=1e-5 + 1e-16 * abs(level))


def test_a_missing_target_counts_nowhere_and_a_fill_never_looks_ahead(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.normal(size=400))
    holes = rng.random(400) < 0.6
    holes[0] = False
    cells = ["" if hole else repr(float(value)) for hole, value in zip(holes, values, strict=True)]
    path = write(tmp_path / "a.csv", pd.date_range("2015-01-01", periods=400).astype(str).tolist(), cells)
    data = ready(path, horizon=1)
    last, errors = values[0], []
    for time_step in range(400):
        if not holes[time_step]:
            if time_step >= 320:
                errors.append((values[time_step] - last) ** 2)
            last = values[time_step]
    assert naive_mse(data) == pytest.approx(np.mean(errors) / data.info()["std"][0] ** 2, rel=1e-4)
    assert "240 of 400 values missing" in data.describe().replace(str(holes.sum()), "240")
    # What comes after a window's end changes nothing in it.
    item = data.splits["train"][40]
    end = item.where["row"] + 28
    cells[end:] = ["" if hole else "1000" for hole in holes[end:]]
    other = ready(
        write(tmp_path / "b.csv", pd.date_range("2015-01-01", periods=400).astype(str).tolist(), cells),
        horizon=1,
    )
    one, two = (source.read_item(item, False, rng) for source in (data, other))
    assert one["values"].tolist() == two["values"].tolist()
    assert one["observed"].tolist() == two["observed"].tolist()
    assert one["observed"][:, 0].tolist() == (~holes[item.where["row"] : end]).astype(float).tolist()


def test_the_first_lines_say_what_was_inferred(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dates = pd.date_range("2021-01-01", periods=300).strftime("%d.%m.%Y").tolist()
    path = write(tmp_path / "a.csv", dates, [f"{value % 7},5" for value in range(300)], ";")
    with caplog.at_level(logging.INFO):
        ready(path)
    said = (
        "UTF-8, separator semicolon, decimal sign ',', dates day first, no time zone, a step is D, period 7"
    )
    assert f"read: a.csv: {said}" in caplog.text


# -- several series ------------------------------------------------------------------------------------------


def long_table(path: Path, names: Sequence[object], key: str = "unique_id", scale: float = 100.0) -> Path:
    rng = np.random.default_rng(0)
    parts = []
    for number, name in enumerate(names):
        wave = np.tile([1, 5, 2, 8, 3, 9, 4], 30)[:200] + 0.1 * rng.normal(size=200)
        days = pd.date_range("2021-01-01", periods=200)
        parts.append(pd.DataFrame({key: name, "ds": days, "y": wave * scale**number}))
    pd.concat(parts).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("names", [["a", "b", "c"], [1, 2, 3]])
def test_the_long_format_is_several_series(names: list[object], tmp_path: Path) -> None:
    data = ready(long_table(tmp_path / "a.csv", names))
    assert data.info()["variates"] == ["y"]
    assert len(data.splits["train"]) == 3 * (140 - 34)
    assert len(data.splits["test"]) == 3 * 34
    assert {item.where["series"] for item in data.splits["test"]} == set(map(str, names))
    for item in data.splits["train"]:  # no window reaches into another series
        assert item.where["row"] // 200 == (item.where["row"] + 34) // 200 == item.where["number"]
    batch = next(iter(data.loader("test")))
    assert batch.target.abs().max() < 5, "every series counts on its own scale"
    assert "of 3 series" in data.describe()


def test_another_name_for_the_column_of_series(tmp_path: Path) -> None:
    path = long_table(tmp_path / "a.csv", ["x", "y"], key="shop")
    with pytest.raises(
        DataError, match=r"200 of its 400 rows repeat the date of another.*task.data.series=COLUMN"
    ):
        ready(path)
    assert "of 2 series" in ready(path, series="shop").describe()
    with pytest.raises(ReadError, match="holds 2 series"):
        read_csv(path, form=Format(series="shop"))


@pytest.mark.parametrize("name", ["id", "", "Unnamed: 0", "row"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_column_that_numbers_the_rows_is_no_variate(
    name: str, place: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.DataFrame({"date": DAYS, "v": WEEK})
    frame.insert(place, name, range(5, 5 + 3 * 60, 3))
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert read_csv(tmp_path / "a.csv").variates == ("v",)
    assert "numbers the rows and is left out" in caplog.text


def test_a_shuffled_index_is_no_variate(tmp_path: Path) -> None:
    frame = pd.DataFrame({"date": DAYS, "v": WEEK}).sample(frac=1, random_state=0)
    frame.to_csv(tmp_path / "a.csv")
    assert read_csv(tmp_path / "a.csv").variates == ("v",)


def test_a_column_that_numbers_the_rows_can_be_asked_for(tmp_path: Path) -> None:
    frame = pd.DataFrame({"date": DAYS, "row": range(60), "v": WEEK})
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert read_csv(tmp_path / "a.csv", columns=Columns(target=("row", "v"))).variates == ("row", "v")
    frame[["date", "row"]].to_csv(tmp_path / "a.csv", index=False)
    assert read_csv(tmp_path / "a.csv").variates == ("row",), "nothing else is there"


@pytest.mark.parametrize("values", [[*range(59), 7], [0.5 * day for day in range(60)], [3] * 60])
def test_other_numbers_are_variates(values: list[float], tmp_path: Path) -> None:
    pd.DataFrame({"date": DAYS, "count": values, "v": WEEK}).to_csv(tmp_path / "a.csv", index=False)
    assert read_csv(tmp_path / "a.csv").variates == ("count", "v")


def test_a_folder_of_files_is_one_training_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long_table(tmp_path / "a.csv", ["one"])
    long_table(tmp_path / "b.csv", ["two"], scale=3)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.csv").write_text("x")
    data = ready(tmp_path)
    assert {item.where["series"] for item in data.splits["val"]} == {"a/one", "b/two"}
    assert "1 other files left out: notes.txt" in caplog.text
    (tmp_path / "b.csv").rename(tmp_path / "test.csv")
    (tmp_path / "a.csv").rename(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"holds test.csv and train.csv, which would be read as series"):
        ready(tmp_path)


def test_series_too_short_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.read_csv(long_table(tmp_path / "a.csv", ["a", "b"]))
    pd.concat([frame[frame.unique_id == "a"], frame[frame.unique_id == "b"].head(30)]).to_csv(
        tmp_path / "a.csv", index=False
    )
    assert "of 1 variates" in ready(tmp_path / "a.csv").describe()
    assert "1 of 2 series are too short" in caplog.text


def test_encodings_of_spreadsheets(tmp_path: Path) -> None:
    text = "date,Größe\n" + "".join(f"2021-01-{day:02d},{day}\n" for day in range(1, 20))
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        (tmp_path / "a.csv").write_text(text, encoding=encoding)
        table: Table = read_series(tmp_path / "a.csv", Format(), Columns())[0]
        assert table.variates == ("Größe",)
