"""The embedded time series samples: small imitations of the real benchmarks, generated from a seed.

Every variate is the sum of a daily season, modulated over the week, a slow drift, and autocorrelated noise. The last
season alone therefore predicts the next one less well than all seasons of the look-back window and the calendar.

Shapes: T steps, N variates.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.datasets.time_series.benchmarks import Benchmark

ETT_COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")


def seasons(
    place_T: NDArray[np.float64], lengths: tuple[float, ...], harmonics: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A periodic signal with period `lengths[0]`, modulated by slower periods; standard deviation 1."""
    course_T = np.zeros(len(place_T))
    for number in range(1, harmonics + 1):
        phase = rng.uniform(0, 2 * np.pi)
        course_T += rng.normal() / number * np.sin(2 * np.pi * number * place_T / lengths[0] + phase)
    for length in lengths[1:]:
        phase = rng.uniform(0, 2 * np.pi)
        course_T *= 1 + 0.5 * np.sin(2 * np.pi * place_T / length + phase)
        course_T += 0.4 * course_T.std() * np.sin(2 * np.pi * place_T / length + rng.uniform(0, 2 * np.pi))
    return course_T / course_T.std()


def wander(steps: int, keep: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """AR(1) noise with coefficient `keep`; standard deviation 1 (for keep = 1 a random walk with unit steps)."""
    shocks_T = rng.normal(size=steps) * (np.sqrt(1 - keep**2) if keep < 1 else 1.0)
    out_T = np.empty(steps)
    last = rng.normal()
    for step, shock in enumerate(shocks_T):
        last = keep * last + shock
        out_T[step] = last
    return out_T


def draw(
    steps: int,
    variates: int,
    lengths: tuple[float, ...],
    seed: int,
    noise: float = 0.5,
    drift: float = 0.5,
) -> NDArray[np.float64]:
    """Series (T, N): a season of standard deviation 1, noise of `noise`, drift of `drift` over 400 steps."""
    place_T = np.arange(steps, dtype=np.float64)
    series = []
    for number in range(variates):
        rng = np.random.default_rng((seed, number))
        values_T = noise * wander(steps, 0.6, rng)
        if lengths:
            values_T += seasons(place_T, lengths, 4, rng)
        slow_T = np.cumsum(wander(steps, 0.98, rng))
        values_T += drift * slow_T / max(float(np.abs(slow_T[:400]).std()), 1e-9)
        series.append(values_T)
    return np.stack(series, axis=1)


def write(path: Path, values_TN: NDArray[np.float64], start: str, step: str, names: tuple[str, ...]) -> None:
    """Write a CSV with a date column, like the benchmarks."""
    dates = pd.date_range(start, periods=len(values_TN), freq=step).strftime("%Y-%m-%d %H:%M:%S")
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(values_TN, columns=list(names)).round(4)
    frame.insert(0, "date", dates)
    frame.to_csv(path, index=False, lineterminator="\n")


def ett(path: Path, steps_an_hour: int, days: int = 56) -> None:
    """Seven columns, hourly or quarter-hourly, with daily and weekly seasons, drift and noise."""
    if steps_an_hour > 1:
        days //= 2
    day = 24 * steps_an_hour
    values_TN = draw(days * day, len(ETT_COLUMNS), (day, 7 * day), 2016 + steps_an_hour, noise=0.9, drift=0.2)
    values_TN = 10 + 4 * values_TN
    step = "h" if steps_an_hour == 1 else f"{60 // steps_an_hour}min"
    write(path, values_TN, "2016-07-01", step, ETT_COLUMNS)


def long_term(path: Path, benchmark: Benchmark, most: int = 8) -> None:
    """The first variates of a benchmark, 1,500 steps; a season of 1 means random walks without a season."""
    variates = min(benchmark.variates, most)
    names = (*map(str, range(variates - 1)), "OT")
    if benchmark.season == 1:
        rng = np.random.default_rng(1990)
        walks_TN = np.cumsum(rng.normal(size=(1500, variates)), axis=0)
        write(path, 1 + 0.005 * walks_TN, benchmark.start, benchmark.step, names)
        return
    lengths = (benchmark.season,) if benchmark.season > 24 else (benchmark.season, 7 * benchmark.season)
    values_TN = 5 + draw(1500, variates, lengths, seed=benchmark.variates)
    write(path, values_TN, benchmark.start, benchmark.step, names)


def csv_forecast(path: Path) -> None:
    """Daily sales of three shops with a weekly season, and a few missing days and values."""
    rng = np.random.default_rng(5)
    values_TN = 100 + 20 * draw(900, 3, (7.0,), seed=5, noise=0.4, drift=0.3)
    frame = pd.DataFrame(values_TN.round(1), columns=["berlin", "paris", "rome"])
    frame.insert(0, "date", pd.date_range("2021-03-01", periods=len(frame), freq="D").strftime("%Y-%m-%d"))
    frame.loc[rng.choice(len(frame), 20, replace=False), "paris"] = np.nan
    frame = frame.drop(index=sorted(rng.choice(np.arange(1, len(frame) - 1), 10, replace=False)))
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, lineterminator="\n")


def stations(
    root: Path, quantity: str, count: int = 22, hours: tuple[int, int, int] = (720, 168, 168)
) -> None:
    """Hourly data of stations around the globe, in tenths of a unit; the daily phase depends on the longitude."""
    rng = np.random.default_rng(17)
    places_N3 = np.stack(
        [rng.uniform(-60, 70, count), np.sort(rng.uniform(-180, 180, count)), rng.uniform(0, 2000, count)],
        axis=1,
    )
    total = sum(hours)
    hour_T = np.arange(total)[:, None]
    sun_TN = np.sin(2 * np.pi * (hour_T / 24 + places_N3[None, :, 1] / 360))
    weather_TN = draw(total, count, (), seed=17, noise=0.6, drift=1.0)
    height = 100 if quantity == "temp" else 50
    values_TN = height + 40 * sun_TN + 15 * weather_TN
    if quantity == "wind":
        values_TN = np.abs(values_TN)
    dates_T = pd.date_range("2019-01-01", periods=total, freq="h").to_numpy().astype("datetime64[s]")
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "stations_sorted.npy", places_N3.round(3))
    start = 0
    for split, length in zip(("train", "val", "test"), hours, strict=True):
        part = slice(start, start + length)
        np.save(
            root / f"{quantity}_global_hourly_{split}.npy",
            values_TN[part].round()[:, :, None].astype(np.float32),
        )
        np.save(root / f"data_time_{split}.npy", dates_T[part])
        start += length
