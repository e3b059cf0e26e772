"""A package outside the repository is found as if it were built in, by its entry point or by `--config-dir`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests_support import ROOT
from warm_runs import WarmRuns
from wheel_support import pip

from tasks.datasets.base import DataError
from workbench import conf_folders

EXAMPLE = ROOT / "docs" / "plugin_example"
SHORT = ("trainer=cpu", "trainer.max_epochs=1", "task.data.limit=24", "task.data.num_workers=0")
EEG = ("modality=eeg", "backbone=eeg_net")

Widefield = Callable[..., str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the example installed in it."""
    project = tmp_path_factory.mktemp("example") / "project"
    subprocess.run(["cp", "-r", str(EXAMPLE), str(project)], check=True)
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", folder, project)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands are typed: a folder that knows nothing of the repository."""
    return tmp_path_factory.mktemp("home")


def commanded(home: Path, packages: Path, *words: str, code: int = 0, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "COLUMNS": "160"} | environ,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return said_by(done, code)


def said_by(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def widefield(home: Path, site: Path) -> Iterator[Widefield]:
    """`widefield("modality=eeg", …)` types a command and returns what it says."""
    with WarmRuns(packages=site) as runs:

        def type_(*words: str, code: int = 0, **environ: str) -> str:
            return said_by(runs.finish(home, *words, timeout=280, **environ), code)

        yield type_


@pytest.fixture(scope="module")
def run(home: Path, site: Path) -> Path:
    """In a new interpreter, which imports the package where it is needed."""
    said = commanded(home, site, *EEG, *SHORT, "paths.runs=first")
    assert "drawn sample, not EEG recordings" in said
    (folder,) = (home / "first" / "eyes").iterdir()
    return folder


def test_it_is_listed_and_completed(widefield: Widefield) -> None:
    said = widefield("--help")
    for choice in ("modality=eeg", "task=eyes", "backbone=eeg_net", "experiment=eeg/quick"):
        assert choice in said
    assert "task=eeg " not in said, "it only stands for the first task of the modality"
    line = "python run.py backbone=eeg"
    assert widefield("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).split() == [
        "backbone=eeg_net"
    ]


def test_a_folder_that_is_named_is_completed(home: Path, tmp_path: Path) -> None:
    line = f"python run.py --config-dir={EXAMPLE / 'widefield_eeg' / 'conf'} backbone=eeg"
    said = commanded(home, tmp_path, "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert said.split() == ["backbone=eeg_net"]


def test_typing_errors_know_it(widefield: Widefield) -> None:
    assert "did you mean eyes?" in widefield("modality=eeg", "task=eyess", code=1)
    assert "eyes" in widefield("modality=eeg", "task=esc50", "action=info", code=1)
    said = widefield("modality=eeg", "+modality.embedder.window=2", code=1)
    assert "BandPower takes no window: did you mean window_s?" in said


def test_a_run_is_tested_asked_and_exported(widefield: Widefield, run: Path, home: Path) -> None:
    clip = next((home / "data" / "samples" / "eyes" / "eyes_open").glob("*.npz"))
    widefield("action=predict", f"ckpt={run}", f"input={clip}", "trainer=cpu")
    (folder,) = (home / "runs" / "predict").iterdir()
    header = (folder / "predictions.csv").read_text().splitlines()[0]
    assert "entropy" in header
    widefield(*EEG, *SHORT, f"init_from={run}", "freeze=stages.0-1", "paths.runs=started", "callbacks=[]")
    widefield("action=export", f"ckpt={run}", "action.formats=[torch_export]")
    assert list((home / "runs" / "export").glob("*/export/model.pt2"))


def test_its_composition_is_counted(widefield: Widefield) -> None:
    said = widefield(*EEG, "action=info")
    assert "8×49×25" in said
    assert "modality=eeg backbone=eeg_net" in said


def test_its_data_go_into_shards_and_come_back(widefield: Widefield, home: Path) -> None:
    said = widefield("modality=eeg", "action=shard", "action.out=shards", "task.data.limit=24")
    assert "modality=eeg task=eyes task.data.format=webdataset data_dir=shards" in said
    said = widefield(*EEG, *SHORT, "task.data.format=webdataset", "data_dir=shards", "callbacks=[]")
    assert "recordings" in said


def test_a_report_knows_what_its_task_reads(widefield: Widefield, run: Path, home: Path) -> None:
    widefield("action=report", "input=first")
    assert "eeg_net" in (home / "first" / "report" / "runs.csv").read_text()


@pytest.mark.slow
def test_a_sweep_keeps_its_yaml(widefield: Widefield, site: Path, home: Path) -> None:
    """Made with the entry point; gone on with after the plug-in's YAML has changed."""
    widefield("-m", *EEG, *SHORT, "seed=0,1", "hydra.sweep.dir=swept")
    sweep = home / "swept"
    assert (sweep / "conf" / "backbone" / "eeg_net.yaml").is_file()
    assert (sweep / "report" / "runs.csv").is_file()
    record = sweep / "1_seed-1" / "job.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "failed"}))
    yaml = site / "widefield_eeg" / "conf" / "backbone" / "eeg_net.yaml"
    before = yaml.read_text()
    try:
        yaml.write_text(before.replace("[16, 32, 48, 64]", "[8, 8, 8, 8]"))
        assert "2 done" in widefield("sweep.resume=swept")
    finally:
        yaml.write_text(before)
    params = {
        json.loads((sweep / job / "result.json").read_text())["params"] for job in ("0_seed-0", "1_seed-1")
    }
    assert len(params) == 1, "composed from the snapshot"


@pytest.mark.slow
def test_it_joins_a_run_of_several_modalities(widefield: Widefield, home: Path) -> None:
    tiny = ("backbone.model.depths=[1,1,1,1]", "backbone.model.dims=[8,8,16,16]")
    widefield("experiment=eeg/with_audio", *SHORT[:2], *tiny, "task.data.limit=70", "task.data.num_workers=0")
    (run,) = (home / "runs" / "eeg_with_audio").iterdir()
    assert "val/eeg/acc" in json.loads((run / "result.json").read_text())["metrics"]
    widefield("action=test", f"ckpt={run}@eeg", "trainer=cpu")


@pytest.mark.slow
def test_a_folder_of_yaml_does_without_an_entry_point(tmp_path: Path) -> None:
    """`--config-dir`: trained, swept, gone on with; without the flag nothing of it is believed."""
    packages, home = tmp_path / "packages", tmp_path / "home"
    home.mkdir()
    packages.mkdir()
    (packages / "widefield_eeg").symlink_to(EXAMPLE / "widefield_eeg")
    flag = f"--config-dir={EXAMPLE / 'widefield_eeg' / 'conf'}"
    said = commanded(home, packages, flag, *EEG, *SHORT)
    assert f"{flag} action=predict" in said, "what is to be typed next needs it, too"
    (run,) = (home / "runs" / "eyes").iterdir()
    said = commanded(home, packages, "action=info", f"ckpt={run}", code=1)
    assert "which is no class for that" in said
    assert "0.0" in commanded(home, packages, flag, "action=info", f"ckpt={run}")
    said = commanded(home, packages, flag, "-m", *EEG, *SHORT, "seed=0,1", "hydra.sweep.dir=swept")
    assert "2 done" in said
    (home / "swept" / "0_seed-0" / "job.json").unlink()
    refused = commanded(home, packages, "sweep.resume=swept", code=1)
    assert "is no class of the installed configuration" in refused
    assert "2 done" in commanded(home, packages, flag, "sweep.resume=swept")


# -- in this process -----------------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))


@pytest.mark.usefixtures("example")
def test_a_plug_in_without_its_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = conf_folders.Plugin("eeg", "widefield-eeg", "widefield_eeg.gone", None)
    monkeypatch.setattr(conf_folders, "plugins", lambda: (plugin,))
    with pytest.raises(SystemExit, match=r"the plug-in eeg of widefield-eeg .* install widefield-eeg again"):
        conf_folders.check_plugins()
    assert conf_folders.conf_folders()[0] == conf_folders.CONF


@pytest.mark.usefixtures("example")
def test_its_maps_show_where_the_power_is() -> None:
    from widefield_eeg.embedder import BandPower  # type: ignore[import-not-found]

    embedder = BandPower(electrodes=2)
    time = torch.arange(512) / 128
    raw = 20 * torch.stack([torch.sin(2 * torch.pi * 10 * time), torch.sin(2 * torch.pi * 30 * time)])
    maps = embedder(raw[None])
    assert maps.shape == (1, 1, 2, 49, 25)
    assert maps[0, 0].mean(dim=-1).argmax(dim=-1).tolist() == [10, 30]
    spectrum = torch.fft.rfft((raw - raw.mean(-1, keepdim=True))[:, :128] * torch.hann_window(128))
    expected = (spectrum.abs().square()[:, :49] / 128**2 + 0.1).log10() - 0.5
    torch.testing.assert_close(maps[0, 0, :, :, 0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.usefixtures("example")
def test_its_files_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    import numpy as np
    from widefield_eeg.recordings import EegFolder, draw  # type: ignore[import-not-found]

    from tasks.datasets.base import ReadError

    data = EegFolder(name="eyes", samples_dir=str(tmp_path))
    signal = draw("eyes_open", np.random.default_rng(0))
    good = tmp_path / "good.npz"
    np.savez(good, signal=signal, rate=128)
    assert data.read_file(good).shape == (8, 512)
    bad = {"signal": signal[:3], "rate": 128}, {"signal": signal, "rate": 100}, {"x": signal}
    for number, content in enumerate(bad):
        file = tmp_path / f"{number}.npz"
        np.savez(file, **content)
        with pytest.raises(ReadError):
            data.read_file(file)
    with pytest.raises(DataError, match=r"a folder of \.npz files"):
        EegFolder(name="eyes", data_dir=str(tmp_path / "nowhere")).setup()
