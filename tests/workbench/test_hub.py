"""Models on a hub: written, read back, asked from Python; a repository is data, as a checkpoint is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from tests_support import ROOT, TINY

from backbone import CheckpointError
from tasks.datasets.base import DataError
from workbench import api as widefield
from workbench.errors import UsageError
from workbench.hub import fetch, repository, without_places
from workbench.model_card import model_card

Act = Callable[..., Path]
WORDS = ("task=audio_folder", "task.data.limit=24", "task.data.num_workers=0")


@pytest.fixture(scope="module")
def run(composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / "fit"
    run_action(composed(*TINY, *WORDS, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: a folder a repository; its cache is another one."""
    top, cache = tmp_path / "hub", tmp_path / "cache"

    class Api:
        def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
            (top / repo).mkdir(parents=True, exist_ok=exist_ok)
            (top / repo / ".private").write_text(str(private))
            return f"https://hub.example/{repo}"

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
            shutil.copytree(folder_path, top / repo_id, dirs_exist_ok=True)

    def snapshot_download(*, repo_id: str, allow_patterns: list[str]) -> str:
        if not (top / repo_id).is_dir():
            raise FileNotFoundError(f"404: no repository {repo_id}")
        for name in allow_patterns:
            if (top / repo_id / name).is_file():
                (cache / repo_id).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(top / repo_id / name, cache / repo_id / name)
        return str(cache / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return top


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    file = tmp_path / "clip.wav"
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(file, noise, 16000)
    return file


def test_a_run_is_published_and_answers_as_before(
    run: Path, hub: Path, act: Act, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    act("action=push", f"ckpt={run}", "action.repo=me/words", "action.license=mit", folder="push")
    assert "action=info ckpt=hf://me/words" in capsys.readouterr().out.replace("'", "")
    assert (hub / "me/words/.private").read_text() == "True"
    names = {file.name for file in (hub / "me/words").iterdir()}
    assert names == {".private", "model.safetensors", "widefield.json", "config.yaml", "README.md"}
    card = (hub / "me/words/README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    assert f"| test/acc | {result['metrics']['test/acc']:.4f} |" in card
    assert "license: mit" in card
    assert "rained on a drawn sample" in card
    ours = act("trainer=cpu", "action=predict", f"ckpt={run}", f"input={clip}", folder="ours")
    theirs = act("trainer=cpu", "action=predict", "ckpt=hf://me/words", f"input={clip}", folder="theirs")
    assert (ours / "predictions.csv").read_text() == (theirs / "predictions.csv").read_text()
    act(*TINY, *WORDS, "init_from=hf://me/words", "freeze=all", folder="started")


def test_nothing_of_the_machine_is_published(run: Path, hub: Path, act: Act, tmp_path: Path) -> None:
    act("action=push", f"ckpt={run}", "action.repo=me/words", "action.private=false")
    assert (hub / "me/words/.private").read_text() == "False"
    for name in ("widefield.json", "config.yaml", "README.md"):
        text = (hub / "me/words" / name).read_text()
        assert str(tmp_path.parent) not in text
        assert "samples_dir: /" not in text
    kept = OmegaConf.load(hub / "me/words/config.yaml")
    assert kept.optimizer.lr > 0
    assert "paths" not in kept
    places = {"csv": "/home/me/t.csv", "data_dir": "${data_dir}", "x": ["~/a/b.txt", "val/loss"]}
    assert without_places(places) == {"csv": None, "data_dir": "${data_dir}", "x": ["b.txt", "val/loss"]}


def test_without_upload_only_a_folder_is_written(run: Path, hub: Path, act: Act, clip: Path) -> None:
    folder = act("action=push", f"ckpt={run}", "action.repo=me/words", "action.upload=false")
    assert not hub.exists()
    assert widefield.load(folder / "model").predict(clip).columns


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("action.repo=words",), "is no repository of a hub"),
        (("action.repo=../x/y",), "is no repository of a hub"),
        ((), "needs action.repo=OWNER/NAME"),
    ],
)
def test_what_cannot_be_published_is_said(
    run: Path, hub: Path, act: Act, caplog: pytest.LogCaptureFixture, words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit):
        act("action=push", f"ckpt={run}", *words)
    assert said in caplog.text
    assert not hub.exists()


def test_a_hub_that_refuses_is_one_sentence(
    run: Path, hub: Path, act: Act, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: object, repo: str, **_: object) -> str:
        raise PermissionError("401 Client Error.\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(SystemExit):
        act("action=push", f"ckpt={run}", "action.repo=me/words")
    assert "me/words was not published: 401 Client Error.; what would be uploaded lies in" in caplog.text


# -- from Python ---------------------------------------------------------------------------------------------


def test_a_run_is_loaded_and_asked(run: Path, clip: Path) -> None:
    model = widefield.load(run)
    one = model.predict(clip)
    waveform, _ = soundfile.read(clip, dtype="float32")
    several = model.predict([str(clip), waveform, torch.from_numpy(waveform), waveform.astype(np.float64)])
    assert [prediction.columns["label"] for prediction in several] == [one.columns["label"]] * 4
    assert one.columns["label"] in model.data_info["class_names"]
    assert len(model.predict([waveform] * 5, batch_size=2)) == 5
    assert not model.task.training
    assert "audio + audio_folder + widefield_nano" in repr(model)


def test_what_cannot_be_asked_is_said(run: Path, tmp_path: Path) -> None:
    model = widefield.load(run)
    with pytest.raises(UsageError, match=r"has 1 dimensions, this array 2: \(3, 16000\)"):
        model.predict(np.zeros((3, 16000), np.float32))
    with pytest.raises(DataError, match="there is no such file"):
        model.predict(tmp_path / "gone.wav")
    with pytest.raises(UsageError, match="called nowhere"):
        widefield.load("nowhere")
    with torch.no_grad():
        next(model.task.network.head.parameters()).fill_(float("nan"))
    with pytest.raises(UsageError, match="not finite"):
        model.predict(np.zeros(16000, np.float32))


def test_a_series_is_asked_by_its_table_or_by_windows(act: Act, samples: Path) -> None:
    short = [f"trainer.limit_{split}_batches=1" for split in ("train", "val", "test")]
    model = widefield.load(act("modality=time_series", *TINY, *short, "callbacks=[default]"))
    table = samples / "etth1" / "ETTh1.csv"
    prediction = model.predict(table)
    assert "forecast" in prediction.tables
    window = model.data.read_file(table)
    assert model.predict([window, table]) == [prediction, prediction]
    with pytest.raises(UsageError, match=r"a sample of etth1 is a dictionary with .*values.*, or a file"):
        model.predict(window["values"])
    with pytest.raises(UsageError, match="lacks date"):
        model.predict({key: value for key, value in window.items() if key != "date"})


def test_a_name_of_the_hub_is_enough(run: Path, hub: Path, act: Act, clip: Path) -> None:
    act("action=push", f"ckpt={run}", "action.repo=me/words")
    for name in ("me/words", "hf://me/words"):
        assert widefield.load(name).predict(clip) == widefield.load(run).predict(clip)
    with pytest.raises(CheckpointError, match="hf://me/gone cannot be fetched: 404"):
        widefield.load("me/gone")


def test_hydra_is_left_as_it_was(run: Path) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        widefield.load(run)
        assert GlobalHydra.instance().hydra is before
        assert compose("config").action.name == "fit"


# -- a repository is data ------------------------------------------------------------------------------------


def crafted(run: Path, act: Act, hub: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    act("action=push", f"ckpt={run}", "action.repo=me/bad", folder="pushed")
    file = hub / "me/bad/widefield.json"
    stored = json.loads(file.read_text())
    change(stored)
    file.write_text(json.dumps(stored))
    return file


def test_a_crafted_repository_runs_nothing(run: Path, act: Act, hub: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def change(stored: dict[str, Any]) -> None:
        stored["composition"]["task"]["loss"] = {"_target_": "os.mkdir", "path": str(marker)}

    crafted(run, act, hub, change)
    with pytest.raises(CheckpointError, match=r"names os\.mkdir as task\.loss"):
        widefield.load("me/bad")
    assert not marker.exists()


@pytest.mark.parametrize(
    "said", ["[]", "{", '{"format": 1}', '{"format": true}', "[" * 100_000, "null", '""']
)
def test_a_damaged_description_is_refused(
    run: Path, act: Act, hub: Path, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    crafted(run, act, hub, lambda stored: None).write_text(said)
    with pytest.raises(CheckpointError, match=r"widefield\.json"):
        widefield.load("me/bad")


def test_other_weights_are_refused(run: Path, act: Act, hub: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "owned",))

    weights = crafted(run, act, hub, lambda stored: None).with_name("model.safetensors")
    torch.save({"a": Evil()}, weights)  # a pickle under another name
    with pytest.raises(CheckpointError):
        widefield.load("me/bad")
    assert not (tmp_path / "owned").exists()
    weights.unlink()
    shutil.rmtree(hub.parent / "cache")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        widefield.load("me/bad")


@pytest.mark.parametrize(
    "name", ["hf://me", "hf://me/x/y", "hf://../x", "hf://me/..", "hf://a b/c", "hf://-/x"]
)
def test_other_names_are_no_repository(hub: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no repository of a hub"):
        fetch(name)
    with pytest.raises(UsageError):
        repository(name)


def test_a_card_holds_no_markup_of_a_result(run: Path) -> None:
    stored = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["widefield"]
    result = {
        "metrics": {"a|<b>": 1.0, "text": "<img>", "nan": float("nan")},
        "device": "`x`\n# y",
        "git": "[a](b)",
    }
    card = model_card("me/words", stored, result, "mit\ntags: [evil]")
    assert "<img>" not in card
    assert "a  b" in card
    assert "\n# y" not in card
    assert "[a](b)" not in card
    assert "\ntags: [evil]" not in card
    assert "None are recorded" in model_card("me/words", stored, {}, None)
