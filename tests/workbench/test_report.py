"""The report on a folder of runs: right numbers, quick, and a page that works in a browser."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from omegaconf import DictConfig
from PIL import Image

from workbench.errors import UsageError
from workbench.report import plots
from workbench.report.gather import gather
from workbench.report.table import Cell, Table, tables
from workbench.report.write import write_report

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
TASKS = {"audio": ("speech_commands", "acc", "max"), "time_series": ("etth1", "mse", "min")}


def put_run(
    folder: Path, words: list[str], score: float | None, error: str | None = None, **result: Any
) -> None:
    """A run's folder as a sweep leaves it."""
    folder.mkdir(parents=True)
    status = "failed" if error else "done"
    record = {"status": status, "error": error, "value": score, "overrides": words}
    (folder / "job.json").write_text(json.dumps(record))
    if error:
        return
    said = dict(word.split("=", 1) for word in words)
    modality = said.get("modality", "audio")
    task, metric, mode = TASKS[modality]
    whole = {
        **{
            "modality": modality,
            "task": task,
            "backbone": "widefield_nano",
            "seed": int(said.get("seed", 0)),
        },
        **{
            "data": {"source": "sample", "data_dir": "x"},
            "params": 800_000,
            "epochs": 2,
            "monitor": f"val/{metric}",
        },
        **{
            "metrics": {f"test/{metric}": score, f"val/{metric}": 0.5, "test/loss": 1.0},
            "best": 0.5,
            "wall_s": 60.0,
        },
        **{"device": "cpu", "precision": "32-true", "git": "abc", "versions": {}, "checkpoint": None},
    } | result
    (folder / "result.json").write_text(json.dumps(whole))
    (folder / "config.yaml").write_text(f"task:\n  mode: {mode}\n")
    (folder / "metrics.csv").write_text(f"epoch,step,val/{metric}\n0,1,0.25\n1,2,0.5\n")


@pytest.fixture(autouse=True)
def _no_vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """SVG and PDF take two thirds of the time: they are written where they are looked at."""
    if request.node.name not in ("test_files_of_a_report", "test_names_are_shown_as_they_are"):
        monkeypatch.setattr("workbench.report.rendering.SUFFIXES", (".png",))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two modalities × two kernel sizes × two seeds, one of them failed."""
    scores = {("audio", 3): (0.5, 0.7), ("audio", 13): (0.8, 0.9), ("time_series", 3): (0.4, 0.6)}
    for (modality, kernel), pair in scores.items():
        for seed, score in enumerate(pair):
            words = [
                f"modality={modality}",
                f"backbone.kernel_size={kernel}",
                f"seed={seed}",
                "paths.samples=x",
            ]
            cost: dict[str, Any] = {"params": 800_000 + kernel, "wall_s": 60.0 + seed}
            put_run(tmp_path / "sweep" / f"{modality}_{kernel}_{seed}", words, score, **cost)
    for seed, error in enumerate((None, "the loss became <nan>")):
        words = ["modality=time_series", "backbone.kernel_size=13", f"seed={seed}", "paths.samples=x"]
        put_run(tmp_path / "sweep" / f"time_series_13_{seed}", words, 0.3, error)
    return tmp_path / "sweep"


def column(table: Table, name: str) -> list[Cell]:
    return [row[table.columns.index(name)] for row in table.rows]


def test_known_means_and_deviations(sweep: Path) -> None:
    overview, audio, series = tables(gather(sweep))
    assert audio.title == "audio: speech_commands"
    assert audio.columns == [
        "kernel_size",
        "n",
        "test/acc",
        "test/loss",
        "val/acc",
        "parameters",
        "wall time (s)",
    ]
    assert [cell.text for cell in column(audio, "kernel_size")] == ["13", "3"], "the best first"
    # Sample standard deviations by hand: of (.8, .9) and of (.5, .7).
    assert [cell.text for cell in column(audio, "test/acc")] == ["0.8500 ± 0.071", "0.6000 ± 0.14"]
    assert [cell.best for cell in column(audio, "test/acc")] == [True, False]
    assert not any(cell.best for cell in column(audio, "test/loss")), "equal means have no best"
    assert [cell.text for cell in column(series, "n")] == ["1", "2"]
    assert [cell.text for cell in column(series, "unfinished")] == ["1", ""]
    assert [cell.text for cell in column(series, "test/mse")] == ["0.3000", "0.5000 ± 0.14"]
    assert [cell.best for cell in column(series, "test/mse")] == [True, False], "less is better"
    assert [cell.text for cell in column(overview, "audio: speech_commands test/acc")] == [
        "0.6000 ± 0.14 (2)",
        "0.8500 ± 0.071 (2)",
    ]
    assert [cell.best for cell in column(overview, "time_series: etth1 test/mse")] == [False, True]
    assert "| 13 | 2 | **0.8500 ± 0.071** |" in audio.markdown()


def test_what_networks_cost_beside_what_they_reach(tmp_path: Path) -> None:
    """Two backbones of two seeds; one result of an earlier version says nothing of its cost."""
    for backbone, macs, step_s in (("convnext_atto", 9.0e8, 0.020), ("resnet18", 1.8e9, 0.030)):
        for seed, more in enumerate((0.0, 0.002)):
            words = [f"backbone={backbone}", f"seed={seed}"]
            cost = {"macs": macs, "step_s": step_s + more, "latency_s": None, "params": round(macs / 100)}
            put_run(tmp_path / f"{backbone}_{seed}", words, 0.5 + 0.1 * seed, backbone=backbone, **cost)
    put_run(tmp_path / "old", ["backbone=vit_tiny", "seed=0"], 0.4, backbone="vit_tiny")
    runs = gather(tmp_path)
    assert runs.axes == ["backbone"], "what a network costs is measured, not chosen"
    (table,) = tables(runs)
    assert table.columns[-4:] == ["parameters", "GMAC a sample", "training step (ms)", "wall time (s)"]
    said = {row[0].text: [cell.text for cell in row[-3:-1]] for row in table.rows}
    assert said == {
        "convnext_atto": ["0.9", "21 ± 1.4"],
        "resnet18": ["1.8", "31 ± 1.4"],
        "vit_tiny": ["–", "–"],
    }
    drawn = {path.name for path in plots.draw(runs, tmp_path / "figures")}
    assert {"metric_by_parameters.png", "metric_by_macs.png", "metric_by_training_step.png"} <= drawn
    assert "metric_by_latency.png" not in drawn, "nothing was measured"


def test_axes_are_what_varies(sweep: Path) -> None:
    runs = gather(sweep)
    assert runs.axes == ["modality", "kernel_size"], (
        "a task says no more than its modality, samples' place nothing"
    )
    assert runs.table["kernel_size"].dtype.kind == "i"
    assert runs.table["task"].notna().all(), "a failed run's task is known from its modality"
    failed = runs.table[runs.table["status"] == "failed"]
    assert failed["error"].tolist() == ["the loss became <nan>"]


def test_a_setting_left_out_is_a_value(tmp_path: Path) -> None:
    put_run(tmp_path / "a", ["seed=0"], 0.5)
    put_run(tmp_path / "b", ["seed=0", "optimizer.lr=0.1"], 0.6)
    runs = gather(tmp_path)
    assert runs.axes == ["lr"]
    assert runs.table["lr"].tolist() == ["default", "0.1"]


@pytest.mark.parametrize(
    ("one", "other", "axis"),
    [
        (["backbone.pretrained=in1k"], ["backbone.pretrained=in1k", "action=test"], "action"),
        (["action=evaluate", "action.k=5"], ["action=evaluate", "action.k=20"], "k"),
        (["action=evaluate", "action.draws=5"], ["action=evaluate", "action.draws=20"], "draws"),
        (["action=test", "ckpt=x", "action.split=all"], ["action=test", "ckpt=x"], "split"),
    ],
)
def test_what_is_measured_otherwise_is_no_repetition(
    one: list[str], other: list[str], axis: str, tmp_path: Path
) -> None:
    put_run(tmp_path / "a", one, 0.9)
    put_run(tmp_path / "b", other, 0.3)
    runs = gather(tmp_path)
    assert runs.axes == [axis]
    (table,) = tables(runs)
    assert [row[table.columns.index("n")].value for row in table.rows] == [1, 1]


def test_the_default_action_may_be_said(tmp_path: Path) -> None:
    put_run(tmp_path / "a", ["seed=0"], 0.5)
    put_run(tmp_path / "b", ["seed=1", "action=fit", "action.test_after=true"], 0.6)
    assert gather(tmp_path).axes == []


def test_settings_without_the_metric_come_last(tmp_path: Path) -> None:
    for number, score in enumerate((0.3, None, 0.9, None, 0.5)):
        metrics = {"val/acc": 0.5} | ({} if score is None else {"test/acc": score})
        put_run(tmp_path / str(number), [f"optimizer.lr={number + 1}"], score, metrics=metrics)
    table = tables(gather(tmp_path))[-1]
    position = table.columns.index("test/acc")
    assert [row[position].text for row in table.rows] == ["0.9000", "0.5000", "0.3000", "–", "–"]


def test_single_runs_and_strangers(tmp_path: Path) -> None:
    """Runs without a sweep, a run that was killed at once, a broken file, a sweep's run that was never started."""
    put_run(tmp_path / "runs" / "esc50" / "one", [], 0.5)
    (tmp_path / "runs" / "esc50" / "one" / "job.json").unlink()
    hydra = tmp_path / "runs" / "esc50" / "one" / ".hydra"
    hydra.mkdir()
    (hydra / "overrides.yaml").write_text("- optimizer.lr=0.1\n- 'task.name=''a b'''\n")
    broken = tmp_path / "runs" / "esc50" / "two"
    broken.mkdir()
    (broken / "result.json").write_text('{"modality": "au')
    wrong = tmp_path / "runs" / "esc50" / "three"
    wrong.mkdir()
    (wrong / "error.json").write_text('{"error": "no such file"}')
    sweep = tmp_path / "runs" / "sweeps" / "now"
    sweep.mkdir(parents=True)
    about = {
        "config_name": "config",
        "hydra_words": [],
        "words": [],
        "cwd": ".",
        "axes": ["seed"],
        "started": "",
    }
    jobs = [{"folder": "0_seed=0", "overrides": ["seed=0"]}]
    (sweep / "sweep.json").write_text(json.dumps(about | {"jobs": jobs}))
    table = gather(tmp_path / "runs").table.set_index("run")
    assert table["status"].to_dict() == {
        "esc50/one": "done",
        "esc50/two": "damaged",
        "esc50/three": "failed",
        "sweeps/now/0_seed=0": "missing",
    }
    assert table.loc["esc50/three", "error"] == "no such file"
    assert table.loc["esc50/two", "error"] == "damaged: result.json (no JSON)"
    assert table.loc["esc50/one", "lr"] == 0.1
    assert (write_report(tmp_path / "runs")).is_file()


@pytest.mark.figures
def test_files_of_a_report(sweep: Path, recwarn: pytest.WarningsRecorder) -> None:
    page = write_report(sweep)
    report = page.parent
    names = {str(file.relative_to(report)) for file in report.rglob("*") if file.is_file()}
    figures = {"metric_by_modality", "metric_by_kernel_size", "metric_by_parameters", "metric_by_wall_time"}
    figures |= {"learning_curves"}
    # One metric a modality: there is nothing to compare along that axis.
    figures -= {"metric_by_modality"}
    assert names == {"runs.csv", "runs.parquet", "report.md", "report.html"} | {
        f"figures/{name}{end}" for name in figures for end in (".png", ".svg", ".pdf", "_dark.png")
    }
    for name in figures:
        assert (report / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
        assert "</svg>" in (report / "figures" / f"{name}.svg").read_text()
        light, dark = (
            np.asarray(Image.open(report / "figures" / f"{name}{end}.png").convert("L"), dtype=float)
            for end in ("", "_dark")
        )
        assert light.shape == dark.shape
        assert light.mean() > 230
        assert dark.mean() < 60
    csv, parquet = pd.read_csv(report / "runs.csv"), pd.read_parquet(report / "runs.parquet")
    assert len(csv) == len(parquet) == 8
    assert list(csv) == list(parquet)
    np.testing.assert_allclose(csv["score"], parquet["score"])
    text = (report / "report.md").read_text()
    assert "- `time_series_13_1` failed: the loss became <nan>" in text
    assert "8 runs: 7 done, 1 failed" in text
    assert "> **drawn sample, not speech_commands; drawn sample, not etth1**" in text, "at the top"
    assert "http" not in page.read_text().replace("http://www.w3.org", ""), "self-contained"
    again = write_report(sweep)
    assert len(pd.read_csv(again.parent / "runs.csv")) == 8, "a report does not count itself"


def test_no_result_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no runs below"):
        write_report(tmp_path)
    put_run(tmp_path / "a", ["modality=audio"], None, error="no")
    put_run(tmp_path / "b", ["modality=video"], None, error="no")
    assert "2 failed" in write_report(tmp_path).with_name("report.md").read_text()


def test_words_that_look_like_markup(tmp_path: Path) -> None:
    put_run(tmp_path / "a", ["task.name=</script><b>|"], 0.5)
    put_run(tmp_path / "b", ["task.name=other"], 0.6)
    page = write_report(tmp_path)
    assert page.read_text().count("</script>") == 2, "the page's own"
    assert "\\|" in page.with_name("report.md").read_text()


def test_references_are_no_formulas_and_secrets_no_axes(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        told = f"task.data.shards.storage={{secret:${{secret:{name}}}}}"
        words = [
            f"task.data.csv=${{oc.env:{name}}}_$x^$",
            f"storage.secret=hunter2{name}",
            told,
            f"seed={seed}",
        ]
        put_run(tmp_path / name, words, 0.5)
    page = write_report(tmp_path)
    assert gather(tmp_path).axes == ["csv"]
    text = (page.read_text(), page.with_name("report.md").read_text())
    assert "hunter2" not in str(text)


@pytest.mark.figures
def test_names_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib reads formulas, SVG and HTML markup: of a value that looks like either all of it is shown, once."""
    name = "a & b <c> $x$"
    for number, value in enumerate((name, "plain")):
        put_run(
            tmp_path / str(number), [f"backbone.act={value}"], 0.5, wall_s=100.0**number, params=10**number
        )
        (tmp_path / str(number) / "metrics.csv").write_text("epoch,val/acc\n0,0.5\n")
    drawn: list[Figure] = []
    kept = plots.save

    def save(figure: Figure, path: Path, note: str | None) -> None:
        kept(figure, path, note)
        drawn.append(figure)

    monkeypatch.setattr(plots, "save", save)
    page = write_report(tmp_path)
    assert len(drawn) == 4
    for figure in drawn:
        texts = [text for text in figure.findobj(Text) if "a & b" in text.get_text()]
        assert {text.get_text() for text in texts} <= {name, f"act={name}"}
        assert texts
        assert not any(text.get_parse_math() for text in texts)
    shown = [file.read_text() for file in page.parent.rglob("*.svg")]
    assert len(shown) == 4
    assert all("a &amp; b &lt;c&gt; $x$" in svg and "&amp;amp;" not in svg for svg in shown)
    assert "&amp;amp;" not in page.read_text()
    # Powers of ten are formulas.
    assert any("mathdefault" in text.get_text() for figure in drawn for text in figure.findobj(Text))


def test_action(sweep: Path, composed: Callable[..., DictConfig]) -> None:
    from workbench.actions import run_action

    run_action(composed("action=report", f"input={sweep}", f"paths.run={sweep / 'report'}"))
    assert (sweep / "report" / "report.html").is_file()
    with pytest.raises(SystemExit):
        run_action(composed("action=report", "input=/does/not/exist", f"paths.run={sweep / 'other'}"))


@pytest.mark.parametrize("kind", ["grid", pytest.param("search", marks=pytest.mark.slow)])
def test_ten_thousand_results_in_ten_seconds(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(10_000):
        words = [f"seed={number % 5}", f"modality={'audio' if number % 2 else 'time_series'}"]
        words += [f"backbone.kernel_size={(3, 7, 13)[number // 5 % 3]}"] if kind == "grid" else []
        words += [f"optimizer.lr={rng.lognormal():.6g}"] if kind == "search" else []
        put_run(tmp_path / f"{number:05d}", words, float(rng.uniform()))
    started = time.process_time()  # of one core; on a busy machine the clock on the wall says nothing
    page = write_report(tmp_path)
    assert time.process_time() - started < 10
    assert len(pd.read_parquet(page.with_name("runs.parquet"))) == 10_000


# -- what is an axis, what is a result ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("+score=1", "+score=2"),
        ("+status=x", "+status=y"),
        ("+run=1", "+run=2"),
        ("+params=1", "+params=2"),
        ("+metric=2", "+error=3"),
        ("+test/acc=3", "+my.test/acc=4"),
        ("+plugin.alpha=1", "+plugin.alpha=2"),
        ("++data.x=1", "+data=2"),
        ("+drawn=1", "+debugged=2"),
    ],
)
def test_an_added_key_of_any_name(words: tuple[str, str], tmp_path: Path) -> None:
    for number, word in enumerate((*words, "seed=2")):
        put_run(tmp_path / str(number), [word], 0.5 + number / 10)
    runs = gather(tmp_path)
    assert runs.table["score"].tolist() == [0.5, 0.6, 0.7]
    assert runs.table["status"].tolist() == ["done"] * 3
    assert runs.axes == []
    assert runs.table.columns.is_unique


@pytest.mark.parametrize(
    ("word", "config", "axes"),
    [
        # Trained with the setting ignored: nobody reads it.
        ("+optimiser.lr=1", "optimiser: {lr: 1}", []),
        ("+epochs=3", "epochs: 3", []),
        ("+optimizer.lrr=2", "optimizer: {_target_: workbench.files.write_text, lrr: 2}", []),
        ("+task.scroe=1", "task: {scroe: 1}", []),
        # Read: by a class of ours, by what a plug-in's own YAML brought along.
        (
            "+task.data.num_points=2",
            "task: {data: {_target_: tasks.datasets.point_cloud.files.PointData, num_points: 2}}",
            ["num_points"],
        ),
        ("+plugin.alpha=1", "plugin: {alpha: 1, beta: 2}", ["alpha"]),
        ("+optimizer=mine", "optimizer: {_target_: a.B, lr: 2}", ["optimizer"]),
    ],
)
def test_a_key_that_nobody_reads_is_no_axis(word: str, config: str, axes: list[str], tmp_path: Path) -> None:
    put_run(tmp_path / "a", [word], 0.5)
    (tmp_path / "a" / "config.yaml").write_text(config)
    put_run(tmp_path / "b", [], 0.6)
    assert gather(tmp_path).axes == axes


def test_failed_and_debug_runs_are_set_apart(tmp_path: Path) -> None:
    for seed, score in enumerate((0.5, 0.7)):
        put_run(tmp_path / f"good_{seed}", [f"seed={seed}", "optimizer.lr=0.1"], score)
    put_run(tmp_path / "trial", ["seed=0", "debug=fast", "optimizer.lr=0.1", "task.data.limit=4"], 0.1)
    put_run(tmp_path / "typo", ["optimiser.lr=1", "optimizer.lr=fast"], None, error="optimiser is no group")
    runs = gather(tmp_path)
    assert runs.axes == []
    assert runs.table["lr"].dropna().tolist() == [0.1, 0.1, 0.1], "numbers, whatever a failed run was told"
    (table,) = tables(runs)
    assert [cell.text for cell in column(table, "test/acc")] == ["0.6000 ± 0.14"]
    assert [cell.text for cell in column(table, "n")] == ["2"]
    page = write_report(tmp_path)
    text = page.with_name("report.md").read_text()
    assert "## Set apart" in text
    assert "- `trial` debug=fast: –" in text
    assert "- `typo` failed: optimiser is no group" in text
    assert "4 runs: 3 done, 1 failed (1 of debug=, no results)." in text


def test_headings_name_the_modality_of_their_task(tmp_path: Path) -> None:
    """A failed run of another modality's task says nothing of its modality."""
    put_run(tmp_path / "a", ["modality=audio"], 0.5)
    put_run(tmp_path / "b", ["task=etth1"], None, error="no")
    put_run(tmp_path / "c", ["task=cifar10"], None, error="no")
    table = gather(tmp_path).table.set_index("run")
    assert table["modality"].to_dict() == {"a": "audio", "b": "time_series", "c": "image"}
    assert [table.title for table in tables(gather(tmp_path))] == ["audio: speech_commands"]


def test_mean_over_folds(tmp_path: Path) -> None:
    """Of a fold its seeds are averaged first; one command leaves the fold to the configuration."""
    scores = {1: (0.5, 0.7), 2: (0.8, 0.8), 3: (0.9, 0.9)}
    for fold, pair in scores.items():
        for seed, score in enumerate(pair):
            run = tmp_path / f"{fold}_{seed}"
            put_run(run, [f"seed={seed}", *([f"task.data.fold={fold}"] if fold > 1 else [])], score)
            (run / "config.yaml").write_text(f"task: {{mode: max, data: {{fold: {fold}}}}}")
    runs = gather(tmp_path)
    assert (runs.axes, runs.folds) == ([], ["fold"])
    assert runs.table["fold"].tolist() == [1, 1, 2, 2, 3, 3]
    (table,) = tables(runs)
    assert [cell.text for cell in column(table, "n")] == ["6"]
    assert [cell.text for cell in column(table, "folds")] == ["3"]
    # Of the folds' means .6, .8, .9.
    assert [cell.text for cell in column(table, "test/acc")] == ["0.7667 ± 0.15"]
    assert "Mean ± standard deviation over folds" in write_report(tmp_path).with_name("report.md").read_text()


# -- drawn data ---------------------------------------------------------------------------------------------


def test_a_report_says_what_is_of_drawn_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    save = Figure.savefig

    def spied(self: Figure, *args: Any, **kwargs: Any) -> None:
        said.append(" ".join(text.get_text() for text in self.texts).replace("\n", " "))
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spied)
    put_run(tmp_path / "a", ["seed=0"], 0.5, drawn="drawn sample, not Speech Commands")
    put_run(tmp_path / "b", ["seed=1"], 0.6, data={"source": "full", "data_dir": "y"})
    page = write_report(tmp_path)
    note = "1 of 2 runs: drawn sample, not Speech Commands"
    assert said
    assert all(note in text for text in said)
    assert page.read_text().count(note) == 2, "a badge, and the table's"
    assert pd.read_csv(page.with_name("runs.csv"))["drawn"].fillna("").tolist() == [note[13:], ""]
    shutil.rmtree(tmp_path / "a")
    said.clear()
    page = write_report(tmp_path)
    assert not any("drawn" in text for text in said)
    assert "drawn sample" not in page.read_text() + page.with_name("report.md").read_text()


# -- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser of this machine; CI sets WIDEFIELD_BROWSER=required, so that it cannot be missing there."""
    required = os.environ.get("WIDEFIELD_BROWSER") == "required"
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None and not required:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium-headless-shell)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab that may reach nothing but files, and in which no error may happen."""
    errors: list[str] = []
    context = browser.new_context()
    tab = context.new_page()
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
    yield tab
    context.close()
    assert errors == []


def texts(page: Any, table: str, column: str) -> list[str]:
    """A column of the table with this heading, as shown."""
    names = page.locator(f"h2:text-is('{table}') ~ div table").first.locator("thead button").all_inner_texts()
    position = names.index(column) + 1
    rows = page.locator(f"h2:text-is('{table}') ~ div table").first.locator(f"tbody td:nth-child({position})")
    found: list[str] = rows.all_inner_texts()
    return found


def head(page: Any, table: str, column: str) -> Any:
    heads = page.locator(f"h2:text-is('{table}') ~ div table").first.locator("thead th")
    return heads.filter(has=page.locator(f"button:text-is('{column}')"))


def test_a_name_in_a_wide_table_stays_on_one_line(page: Any, tmp_path: Path) -> None:
    metrics = {f"test/metric_with_a_name_{number}": 0.5 for number in range(12)} | {"test/acc": 0.5}
    for backbone in ("resnet18", "a_network_with_a_rather_long_name"):
        put_run(tmp_path / backbone, [f"backbone={backbone}"], 0.5, backbone=backbone, metrics=metrics)
    page.goto(write_report(tmp_path).as_uri())
    rows = page.locator("#tables tbody tr")
    heights = rows.evaluate_all("rows => rows.map(row => row.getBoundingClientRect().height)")
    assert len(heights) == 2
    assert max(heights) < 1.2 * min(heights)


def test_page_in_a_browser(page: Any, sweep: Path) -> None:
    page.goto(write_report(sweep).as_uri())
    assert page.title() == "Report on sweep"
    # Figures are drawn, not broken.
    widths = page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 4
    assert min(widths) > 300
    # The best is bold.
    best = page.locator("h2:text-is('All tasks') ~ div table").first.locator("td.best").all_inner_texts()
    assert best == ["0.8500 ± 0.071 (2)", "0.3000 (1)"]
    # Sorting: up, then down; what is missing stays last.
    head(page, "Runs", "score").locator("button").click()
    scores = [float(text) for text in texts(page, "Runs", "score") if text]
    assert scores == sorted(scores)
    head(page, "Runs", "score").locator("button").click()
    assert [float(text) for text in texts(page, "Runs", "score") if text] == sorted(scores, reverse=True)
    head(page, "All tasks", "kernel_size").locator("button").click()
    # Numbers are sorted as numbers.
    head(page, "Runs", "kernel_size").locator("button").click()
    assert [int(text) for text in texts(page, "Runs", "kernel_size")] == [3] * 4 + [13] * 3
    # Filters: words, bounds, ranges, the opposite; together.
    head(page, "Runs", "modality").locator("input").fill("AUDIO")
    assert len(texts(page, "Runs", "run")) == 4
    head(page, "Runs", "score").locator("input").fill(">=0.7")
    assert sorted(texts(page, "Runs", "score")) == ["0.7", "0.8", "0.9"]
    head(page, "Runs", "score").locator("input").fill("0.75..0.85")
    assert texts(page, "Runs", "score") == ["0.8"]
    head(page, "Runs", "score").locator("input").fill("")
    head(page, "Runs", "modality").locator("input").fill("!audio")
    assert len(texts(page, "Runs", "run")) == 3
    # What is no result stands apart.
    assert texts(page, "Set apart", "status") == ["failed"]
    assert texts(page, "Set apart", "error") == ["the loss became <nan>"]
    # What is of drawn data says so.
    assert "drawn sample, not etth1" in page.locator(".badge").inner_text()
    # The link leads to the run.
    link = page.locator("h2:text-is('Set apart') ~ div table tbody a").first
    target = page.evaluate("link => link.href", link.element_handle())
    assert target == (sweep / "time_series_13_1").as_uri() + "/"
    listing = page.context.new_page()
    listing.goto(target)
    assert "job.json" in listing.content()


@pytest.mark.figures
def test_a_dark_and_a_narrow_page(page: Any, sweep: Path) -> None:
    address = write_report(sweep).as_uri()
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(address)
    figure = page.locator("figure img").first
    light = figure.evaluate("image => image.currentSrc")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("before => document.querySelector('figure img').currentSrc !== before", arg=light)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400, "only the tables scroll"
    # The first column stays where it is.
    scroll = page.locator("#runs .scroll").first
    cell = scroll.locator("tbody td").first
    left = cell.bounding_box()["x"]
    scroll.evaluate("box => { box.scrollLeft = 300; }")
    assert scroll.evaluate("box => box.scrollLeft") == 300
    assert abs(cell.bounding_box()["x"] - left) < 2
    assert cell.bounding_box()["width"] < 200


def test_many_runs_in_a_browser(page: Any, tmp_path: Path) -> None:
    for number in range(450):
        put_run(tmp_path / f"{number:03d}", [f"seed={number}"], number / 450)
    page.goto(write_report(tmp_path).as_uri())
    assert len(texts(page, "Runs", "run")) == 200
    bar = page.locator("#runs .bar")
    assert "1–200 of 450 rows" in bar.inner_text()
    bar.locator("button:text-is('next ›')").click()
    bar.locator("button:text-is('next ›')").click()
    assert texts(page, "Runs", "run")[-1] == "449"
    assert bar.locator("button:text-is('next ›')").is_disabled()


def test_settings_of_a_figure_are_told_apart() -> None:
    """No two look the same, and a legend too long for every panel stands once, beside them."""
    assert len({plots._style(position) for position in range(plots.MOST_COLOURS)}) == plots.MOST_COLOURS
    for settings, beside in ((plots.IN_PANEL, 0), (plots.IN_PANEL + 1, 1)):
        figure, panels = plots._panels(2)
        for panel in panels[:2]:
            for position in range(settings):
                panel.plot([0, 1], [0, position], label=f"backbone=network{position}")
            panel.legend()
        plots._share_legend(figure)
        assert len(figure.legends) == beside
        assert [panel.get_legend() is None for panel in panels[:2]] == [bool(beside)] * 2


def test_libraries_below_say_nothing_of_fonts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from workbench.console import quiet_libraries

    caplog.set_level("INFO")
    figure = Figure()
    figure.suptitle("a title")
    quiet_libraries()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(tmp_path / "figure.pdf")
    assert [record.name for record in caplog.records] == []


def drawn_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures of a report by name, without their files."""
    found: dict[str, Figure] = {}
    monkeypatch.setattr(plots, "save", lambda figure, path, note: found.update({path.stem: figure}))
    plots.draw(gather(folder), folder / "figures")
    for figure in found.values():
        figure.draw_without_rendering()
    return found


def labels_of(figure: Figure, panel: int = 0) -> list[str]:
    return [label.get_text() for label in figure.axes[panel].get_xticklabels()]


def legend_of(figure: Figure) -> list[str]:
    legend = (figure.legends or [figure.axes[0].get_legend()])[0]
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_fractions_that_double_have_a_logarithmic_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fraction in ("0.125", "0.25", "0.5", "1.0"):
        for kernel in (3, 7, 13):
            words = [f"task.data.train_fraction={fraction}", f"backbone.kernel_size={kernel}", "seed=0"]
            put_run(tmp_path / f"{fraction}_{kernel}", words, float(fraction))
    found = drawn_figures(tmp_path, monkeypatch)
    curve, kernels = found["metric_by_train_fraction"], found["metric_by_kernel_size"]
    assert curve.axes[0].get_xscale() == "log"
    assert labels_of(curve) == ["0.125", "0.25", "0.5", "1"]
    assert not [text for text in curve.axes[0].get_xticklabels(minor=True) if text.get_text()]
    assert kernels.axes[0].get_xscale() == "linear"
    assert labels_of(kernels) == ["3", "7", "13"]
    assert legend_of(kernels) == [f"train_fraction={part}" for part in ("0.125", "0.25", "0.5", "1")]


def test_a_single_run_has_neither_dash_nor_error_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel, scores in {3: (0.1,), 7: (0.2, 0.4)}.items():
        for seed, score in enumerate(scores):
            words = [f"backbone.kernel_size={kernel}", f"seed={seed}"]
            put_run(tmp_path / f"{kernel}_{seed}", words, score)
    figure = drawn_figures(tmp_path, monkeypatch)["metric_by_kernel_size"]
    dashes = [
        line for line in figure.axes[0].lines if line.get_marker() == "_" and line.get_color() == "black"
    ]
    assert [list(line.get_ydata()) for line in dashes] == [[0.2, 0.4]]  # type: ignore[arg-type]
    (bars,) = figure.axes[0].collections
    drawn = [path for path in bars.get_paths() if len(path.vertices) and np.isfinite(path.vertices).all()]
    assert len(drawn) == 1
    assert "mean ± std" in figure.get_suptitle()
    shutil.rmtree(tmp_path / "7_1")
    figure = drawn_figures(tmp_path, monkeypatch)["metric_by_kernel_size"]
    assert "±" not in figure.get_suptitle(), "there is no deviation to be seen"
    assert not figure.axes[0].collections


def test_networks_stand_from_small_to_large_and_names_by_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"base": 90, "nano": 1, "tiny": 30, "twin": 30}
    for backbone, size in sizes.items():
        for act in ("[13,13]", "[3,3]"):
            words = [f"backbone={backbone}", f"backbone.act={act}"]
            put_run(tmp_path / f"{backbone}_{act}", words, 0.5, backbone=backbone, params=size * 10**6)
    found = drawn_figures(tmp_path, monkeypatch)
    assert labels_of(found["metric_by_backbone"]) == ["nano", "tiny", "twin", "base"]
    assert labels_of(found["metric_by_act"]) == ["[3,3]", "[13,13]"]
    assert legend_of(found["metric_by_act"]) == [
        f"backbone={name}" for name in ("nano", "tiny", "twin", "base")
    ]


def test_settings_have_one_order_and_colour_in_all_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, kernel in enumerate((13, 3, 7)):
        for seed in range(1 if kernel == 7 else 2):  # one with a single run, which has no error bar
            words = [f"backbone.kernel_size={kernel}", f"seed={seed}"]
            put_run(tmp_path / f"{number}_{seed}", words, 0.5, params=kernel, wall_s=1.0 + kernel)
    found = drawn_figures(tmp_path, monkeypatch)
    expected = [f"kernel_size={kernel}" for kernel in (3, 7, 13)]
    for name in ("metric_by_parameters", "metric_by_wall_time", "learning_curves"):
        figure = found[name]
        assert legend_of(figure) == expected
        handles, labels = figure.axes[0].get_legend_handles_labels()
        assert [handle.get_color() for handle in handles] == ["C0", "C1", "C2"], (name, labels)


def test_very_long_names_leave_a_panel_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"hf_hub:an-organisation/a_very_large_network.pretrained_in22k_in1k_{n}" for n in range(14)]
    for number, name in enumerate(names):
        put_run(tmp_path / str(number), [f"backbone.act={name}", f"task.data.a={number % 2}"], 0.5)
    figure = drawn_figures(tmp_path, monkeypatch)["metric_by_act"]
    panel = figure.axes[0].get_position()
    assert panel.width * figure.get_figwidth() > 3
    assert panel.height * figure.get_figheight() > 2.4
    assert len(set(labels_of(figure))) == 14
    assert max(map(len, labels_of(figure))) <= plots.LONGEST_NAME
    alike = ["a" * 40, "a" * 41]
    assert plots._shortened(alike) == alike, "shortened they would be the same"


def test_a_cost_that_does_not_differ_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for modality, params in (("audio", 10), ("time_series", 20)):
        for kernel in (3, 7):
            words = [f"modality={modality}", f"backbone.kernel_size={kernel}"]
            put_run(tmp_path / f"{modality}_{kernel}", words, 0.5, params=params, wall_s=kernel * 1.0)
    found = drawn_figures(tmp_path, monkeypatch)
    assert "metric_by_wall_time" in found
    assert "metric_by_parameters" not in found


def test_a_title_stays_within_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in (3, 7):
        for seed in (0, 1):
            words = [f"modality.augment.{'strength_of_' * 7}it={kernel}", f"seed={seed}"]
            put_run(tmp_path / f"{kernel}_{seed}", words, 0.5)
    (figure,) = (f for name, f in drawn_figures(tmp_path, monkeypatch).items() if "strength" in name)
    title = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
    assert title.x0 > 0
    assert title.x1 < figure.bbox.x1


def test_a_dark_page_keeps_the_grid_faint() -> None:
    from workbench.report.rendering import darken

    figure = Figure()
    panel = figure.subplots()
    plots._finish(panel, "title", "test/acc", legend=False)
    figure.draw_without_rendering()
    darken(figure)
    figure.draw_without_rendering()
    assert {line.get_alpha() for line in panel.get_xgridlines()} == {0.3}
