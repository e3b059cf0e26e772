"""The five long-term forecasting benchmarks: their files, and the parameters of their embedded samples."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """File name, parameters of the embedded sample (variates, first date, step, season in steps), and title."""

    file: str
    variates: int
    start: str
    step: str
    season: int
    title: str


BENCHMARKS = {
    "weather": Benchmark("weather.csv", 21, "2020-01-01 00:10", "10min", 144, "Weather"),
    "electricity": Benchmark("electricity.csv", 321, "2016-07-01 02:00", "h", 24, "Electricity"),
    "traffic": Benchmark("traffic.csv", 862, "2016-07-01 02:00", "h", 24, "Traffic"),
    "exchange": Benchmark("exchange_rate.csv", 8, "1990-01-01", "D", 1, "Exchange"),
    "ili": Benchmark("national_illness.csv", 7, "2002-01-01", "7D", 52, "ILI"),
}
