"""Sound events from end to end on a tiny network: what runs leave, and what the other actions make of them."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from figures_support import is_drawn, rendered
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from tests_support import TINY, weights

from tasks.event_metrics import event_counts, f1_of
from workbench.errors import UsageError, sentence

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
WORDS = (
    *TINY,
    "task=sound_events",
    "task.data.limit=12",
    "task.data.batch_size=4",
    "task.head.channels=8",
    "task.head.prior=0.3",
    "task.model.decoding.threshold=0.3",
    "logger=csv",
)
FIGURES = {f"figures/{name}.png" for name in ("inputs", "curves", "f1", "psd_curve", "events")}
DATA_INFO = {"class_names": list("abc"), "seconds": 3.0}


def result(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def run(composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / "fit"
    with rendered():
        run_action(composed(*WORDS, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.fixture
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def test_a_run_leaves_numbers_and_pictures(run: Path) -> None:
    files = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert files >= {"config.yaml", "result.json", "metrics.csv", "test_report.json", *FIGURES}
    assert all(is_drawn(run / name) for name in FIGURES)
    metrics = result(run)["metrics"]
    names = ("event_f1", "event_f1_micro", "segment_f1", "segment_f1_micro", "frame_f1", "psds", "loss")
    assert {f"{split}/{name}" for split in ("val", "test") for name in names} <= set(metrics)
    assert result(run)["monitor"] == "val/event_f1"
    report = json.loads((run / "test_report.json").read_text())
    given = [value for value in report["per_class"].values() if value is not None]
    assert metrics["test/event_f1"] == pytest.approx(sum(given) / len(given), abs=1e-6)
    curve = report["psd_curve"]
    area = (np.diff(curve["false_positives_an_hour"]) * np.array(curve["effective"])[:-1]).sum() / 100
    assert metrics["test/psds"] == pytest.approx(area, abs=1e-6)


def test_a_test_has_a_row_for_each_event(run: Path, checkpoint: Path, act: Act, samples: Path) -> None:
    again = act("trainer=cpu", "action=test", f"ckpt={checkpoint}", "action.predictions=true")
    metrics = result(again)["metrics"]
    assert metrics["test/segment_f1"] == pytest.approx(result(run)["metrics"]["test/segment_f1"], rel=1e-6)
    rows = pd.read_csv(again / "predictions.csv")
    assert set(rows["is"]) <= {"right", "wrong", "missed"}
    truth = pd.read_csv(samples / "sound_events" / "events.csv")
    counts = np.zeros((3, 6))
    classes = sorted(truth["label"].dropna().unique())
    report = json.loads((again / "test_report.json").read_text())
    assert list(report["counts"]) == classes
    for path in rows["path"].unique():
        name = "test/" + Path(path).name
        own, said = (
            truth[(truth["path"] == name) & truth["label"].notna()],
            rows[(rows["path"] == path) & (rows["is"] != "missed")],
        )
        each = [
            part[["onset", "offset"]]
            .assign(label=part["label"].map(classes.index))
            .to_numpy(dtype=np.float64)
            for part in (own, said)
        ]
        counts += event_counts(*each, 6)[0]
        missed = (rows["path"] == path) & (rows["is"] == "missed")
        right = (rows["path"] == path) & (rows["is"] == "right")
        assert missed.sum() + right.sum() == len(own)
    for number, name in enumerate(classes):
        assert report["counts"][name]["found"] == counts[2, number]
        assert report["counts"][name]["right"] == counts[0, number]
    assert np.nanmean(f1_of(counts)) == pytest.approx(metrics["test/event_f1"], abs=1e-6)


@pytest.mark.slow
def test_decoding_may_be_set_anew_for_a_test(
    run: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = ("task.model.decoding.threshold=0.9", "task.model.overlap=0.25", "task.model.collars.onset=0.5")
    done = command(
        tmp_path, "trainer=cpu", "action=test", f"ckpt={run}", "paths.run=other", "task=sound_events", *words
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "other" / "test_report.json").read_text())
    first = json.loads((run / "test_report.json").read_text())
    found = [sum(one["found"] for one in each["counts"].values()) for each in (first, report)]
    assert found[0] > found[1]


@pytest.mark.figures
def test_predict_writes_one_table_of_events_and_pictures(
    checkpoint: Path, act: Act, samples: Path, composed: Compose, tmp_path: Path
) -> None:
    from tasks.datasets.audio.sample import write_wav

    clips = tmp_path / "clips"
    clips.mkdir()
    source = samples / "sound_events" / "test"
    shutil.copy(source / "recording_005.wav", clips / "a.wav")  # a long one
    write_wav(
        clips / "b.wav", 0.1 * np.random.default_rng(0).normal(size=8000), 16000
    )  # shorter than a window
    (clips / "c.wav").write_bytes(b"no sound")
    folder = act("trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"input={clips}")
    table = pd.read_csv(folder / "predictions.csv")
    assert table["error"].isna().tolist() == [True, True, False]
    events = pd.read_csv(folder / "events.csv")
    assert list(events)[:5] == ["path", "onset", "offset", "label", "score"]
    assert len(events) == table["events"].sum() > 0
    assert (events["offset"] > events["onset"]).all()
    assert events["score"].between(0, 1).all()
    assert events[events["path"].str.endswith("b.wav")]["offset"].max() <= 0.5
    for number, stem in enumerate("ab"):
        assert (folder / "figures" / f"{number:03d}_{stem}.png").stat().st_size > 5000
    # By hand: the same scores and events of the long recording.
    from workbench.restore import restore

    cfg = composed("trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"paths.samples={samples}")
    task: Any = restore(cfg).task
    import soundfile

    wave = torch.from_numpy(soundfile.read(clips / "a.wav", dtype="float32")[0])
    with torch.inference_mode():
        (probs,) = task.frame_scores({"waveform": wave[None], "length": torch.tensor([len(wave)])})
    wanted = task.decoded(probs, len(wave) / 16000)
    own = events[events["path"].str.endswith("a.wav")]
    assert np.allclose(own[["onset", "offset"]].to_numpy(), wanted[:, :2], atol=1e-3)


def test_a_loaded_model_takes_files_and_waveforms_of_any_length(run: Path, samples: Path) -> None:
    from workbench.loading import load

    model = load(run)
    files = [samples / "sound_events" / "test" / f"recording_{number:03d}.wav" for number in (0, 5)]
    import soundfile

    waves = [soundfile.read(file, dtype="float32")[0] for file in files]
    assert len(waves[0]) != len(waves[1])
    said = model.predict(files)
    heard = model.predict(waves)
    assert [one.shared for one in said] == [one.shared for one in heard]
    assert model.predict(waves[0][:4000]).columns["events"] >= 0


@pytest.mark.slow
def test_a_recording_in_which_nothing_sounds_leaves_an_empty_table(
    checkpoint: Path, command: Callable[..., subprocess.CompletedProcess[str]], samples: Path, tmp_path: Path
) -> None:
    clip = samples / "sound_events" / "test" / "recording_000.wav"
    words = ("trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"input={clip}", "paths.run=run")
    done = command(tmp_path, *words, "task=sound_events", "task.model.decoding.threshold=0.999")
    assert done.returncode == 0, done.stderr
    assert "no event" in done.stdout
    lines = (tmp_path / "run" / "events.csv").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("path,onset,offset,label,score")


def test_export_answers_as_the_model(checkpoint: Path, act: Act) -> None:
    words = ("trainer=cpu", "action=export", f"ckpt={checkpoint}", "action.formats=[torch_export]")
    folder = act(*words, folder="exported")
    about = json.loads((folder / "export" / "model.json").read_text())
    assert about["input"] == ["batch", 48000]
    assert about["output"] == ["batch", 188, 6]  # 186 frames, up to the stride of 4


@pytest.mark.slow
def test_both_exports_answer_alike(checkpoint: Path, act: Act) -> None:
    folder = act("trainer=cpu", "action=export", f"ckpt={checkpoint}", folder="exported")
    program = torch.export.load(folder / "export" / "model.pt2").module()
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "export" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    wave = 0.1 * torch.randn(2, 48000)
    (onnx,) = session.run(None, {session.get_inputs()[0].name: wave.numpy()})
    assert np.allclose(onnx, program(wave).detach().numpy(), atol=1e-3)


def test_info_counts_the_whole(act: Act, capsys: pytest.CaptureFixture[str]) -> None:
    act(*WORDS, "action=info")
    said = capsys.readouterr().out
    assert "MACs of a sample" in said
    assert "class_names" in said


def test_embed_reads_recordings_whole(checkpoint: Path, act: Act, samples: Path) -> None:
    folder = act(
        "trainer=cpu",
        "action=embed",
        f"ckpt={checkpoint}",
        f"input={samples / 'sound_events' / 'test'}",
        folder="embedded",
    )
    assert any(file.suffix in (".npz", ".npy", ".csv") for file in folder.rglob("*"))


@pytest.mark.slow
def test_a_run_that_is_continued_ends_as_an_unbroken_one(act: Act) -> None:
    words = (*WORDS, "action.test_after=false", "scheduler=constant")
    whole = act(*words, "trainer.max_epochs=2", folder="whole")
    act(*words, "trainer.max_epochs=1", folder="parts")
    parts = act(*words, "trainer.max_epochs=2", f"resume={whole.parent / 'parts'}", folder="parts")
    one, other = weights(whole), weights(parts)
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.slow
def test_starting_from_a_classifier_with_frozen_stages(act: Act) -> None:
    classifier = act(
        *TINY, "task=audio_folder", "task.data.limit=16", "action.test_after=false", folder="classifier"
    )
    words = (*WORDS, f"init_from={classifier}", "freeze=all", "action.test_after=false")
    begun = act(*words, folder="begun")
    before, after = weights(classifier), weights(begun)
    stages = [name for name in after if name.startswith("network.backbone.stages")]
    assert len(stages) > 20
    assert all(after[name].equal(before[name]) for name in stages)


@pytest.mark.slow
def test_joint_with_a_classification(act: Act) -> None:
    folder = act(
        *TINY,
        "experiment=joint/four_modalities",
        "+modality@task.members.events.modality=audio",
        "+task@task.members.events.task=sound_events",
        "+task.members.events.data_dir=null",
        "+task.members.events.weight=1.0",
        *(f"~task.members.{name}" for name in ("point_cloud", "video", "time_series")),
        "task@task.members.audio.task=audio_folder",
        "task.data.limit=8",
        "task.data.batch_size=4",
        "logger=csv",
    )
    metrics = result(folder)["metrics"]
    assert {"test/events/event_f1", "test/audio/acc", "test/score"} <= set(metrics)
    assert (folder / "figures" / "events" / "events.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny", "convnext_atto"])
def test_on_other_backbones(backbone: str, act: Act) -> None:
    words = [word for word in WORDS if "backbone" not in word]
    folder = act(f"backbone={backbone}", *words, "task.data.limit=4", "action.test_after=true")
    assert np.isfinite(result(folder)["metrics"]["test/loss"])


@pytest.mark.slow
def test_a_sweep_compares_event_f1(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = command(tmp_path, "-m", *WORDS, "task.data.limit=4", "task.head.pool=mean,both", timeout=400)
    assert done.returncode == 0, done.stderr
    (table,) = tmp_path.rglob("report/*.csv")
    runs = pd.read_csv(table)
    assert len(runs) == 2
    assert any("event_f1" in column for column in runs)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("task/loss=cross_entropy",), "need a binary loss: task/loss=bce"),
        (("task.model.overlap=1",), "overlap in"),
        (("task.model.psds.dtc=0",), "dtc, gtc and cttc"),
        (("task.model.collars.onset=-1",), "of at least 0"),
        (("modality.embedder.num_frames=128",), "say modality.embedder.num_frames=null"),
        (("modality.augment.raw.roll=0.1",), "events would not follow"),
        (("task.monitor=val/map",), "task.monitor=val/map is not measured here"),
        (("task.mode=min",), "would keep the worst checkpoint"),
        (("task.head.reads=some",), "reads must be one of pyramid, last"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(
    words: tuple[str, ...], message: str, composed: Compose
) -> None:
    from workbench.build import build_task

    with pytest.raises((UsageError, InstantiationException)) as caught:
        build_task(composed(*WORDS, *words), DATA_INFO)
    assert re.search(message, sentence(caught.value) or ""), sentence(caught.value)


@pytest.mark.slow
def test_as_a_user_types_it(
    new_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "events.csv").write_text("path,onset,offset,label\nx.wav,2,1,dog\n")
    done = new_command(tmp_path, *WORDS, "data_dir=mine")
    assert done.returncode == 1
    assert "line 2 names mine/x.wav, which does not exist" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
