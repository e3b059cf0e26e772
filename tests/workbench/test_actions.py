"""The actions of run.py on one tiny trained run: what it leaves behind, and what the other actions make of it."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from figures_support import is_drawn, rendered
from omegaconf import DictConfig, OmegaConf
from tests_support import TINY

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / "fit"
    cfg = composed(
        *TINY, "task=audio_folder", "trainer.max_epochs=2", f"paths.samples={samples}", f"paths.run={folder}"
    )
    with rendered():
        value = run_action(cfg)
    assert value == json.loads((folder / "result.json").read_text())["best"]
    return folder


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def test_a_run_leaves_what_the_contract_says(run: Path) -> None:
    files = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert files >= {
        "config.yaml",
        "result.json",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/inputs.png",
        "figures/curves.png",
        "figures/confusion.png",
    }
    assert all(is_drawn(file) for file in (run / "figures").glob("*.png"))
    assert not [file for file in files if "/." in f"/{file}"], "no drafts are left"
    result = json.loads((run / "result.json").read_text())
    assert set(result) == {
        *("macs", "step_s", "latency_s"),
        *("modality", "task", "backbone", "seed", "data", "params", "epochs", "metrics", "monitor"),
        *("best", "best_epoch", "wall_s", "device", "precision", "git", "versions", "checkpoint", "drawn"),
    }
    assert result["data"]["source"] == "sample"
    assert result["epochs"] == 2
    counted = json.loads((run / "test_report.json").read_text())["confusion"]
    right = sum(row[place] for place, row in enumerate(counted))
    assert result["metrics"]["test/acc"] == pytest.approx(right / sum(map(sum, counted)))
    assert result["best"] == result["metrics"]["val/acc"]
    config = OmegaConf.load(run / "config.yaml")
    assert isinstance(config, DictConfig)
    assert OmegaConf.missing_keys(config) == set()
    history = pd.read_csv(run / "metrics.csv")
    assert history["epoch"].tolist() == [0, 1]
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "lr"} <= set(history)
    assert result["best"] == pytest.approx(history["val/acc"].max())
    assert history.loc[result["best_epoch"], "val/acc"] == history["val/acc"].max()


def test_result_metric_is_the_checkpoints_own(run: Path, checkpoint: Path, act: Callable[..., Path]) -> None:
    again = act(*TINY, "action=test", f"ckpt={checkpoint}", "task=audio_folder")
    before, after = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (run, again))
    assert after["test/acc"] == before["test/acc"]
    assert after["test/loss"] == pytest.approx(before["test/loss"], rel=1e-5)


def test_predict_survives_broken_files(
    checkpoint: Path,
    act: Callable[..., Path],
    composed: Callable[..., DictConfig],
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from workbench.test import trained

    clips = tmp_path / "clips"
    clips.mkdir()
    wave = np.sin(np.arange(8000) / 10) * 0.3
    soundfile.write(clips / "a.wav", wave, 16000)
    soundfile.write(clips / "b.flac", wave, 22050)
    (clips / "c.wav").write_bytes(b"not audio")
    (clips / "d.wav").touch()
    folder = act("trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"input={clips}")
    table = pd.read_csv(folder / "predictions.csv")
    assert [Path(path).name for path in table["path"]] == ["a.wav", "b.flac", "c.wav", "d.wav"]
    assert table["error"].isna().tolist() == [True, True, False, False]
    good = table[table["error"].isna()]
    assert (good["top1"] == good["label"]).all()
    _, data, task, _ = trained(
        composed("trainer=cpu", "action=test", f"ckpt={checkpoint}", f"paths.samples={samples}")
    )
    raw = torch.stack([torch.as_tensor(data.read_file(clips / name)) for name in ("a.wav", "b.flac")])
    with torch.inference_mode():
        probs_BK = task(raw).softmax(dim=1)
    values_BK, order_BK = probs_BK.sort(dim=1, descending=True)
    names = task.data_info["class_names"]
    assert good["label"].tolist() == [names[best] for best in order_BK[:, 0].tolist()]
    for rank in range(5):
        shown = good[f"top{rank + 1}_probability"].to_numpy()
        np.testing.assert_allclose(shown, values_BK[:, rank].numpy(), atol=2e-6)
    assert "predictions.csv" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch reading back its own export
def test_export_answers_like_the_model(
    checkpoint: Path, act: Callable[..., Path], composed: Callable[..., DictConfig], samples: Path
) -> None:
    from workbench.test import trained

    folder = act("trainer=cpu", "action=export", f"ckpt={checkpoint}") / "export"
    about = json.loads((folder / "model.json").read_text())
    raw = torch.randn(5, *about["input"][1:])  # another batch size than it was traced with
    program = torch.export.load(folder / "model.pt2").module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in session.get_inputs())
    assert session.get_modelmeta().custom_metadata_map["drawn"] == about["drawn"]
    assert about["drawn"] == "model trained on a drawn sample, not recordings of your own"
    ours, theirs = program(raw), session.run(None, {name: raw.numpy()})[0]
    assert ours.shape == (5, len(about["facts"]["class_names"]))
    with torch.inference_mode():
        merged = trained(
            composed("trainer=cpu", "action=test", f"ckpt={checkpoint}", f"paths.samples={samples}")
        )[2].network(raw)
    np.testing.assert_allclose(ours.detach().numpy(), merged.numpy(), rtol=1e-3, atol=1e-3)
    assert len({tuple(row) for row in merged.round(decimals=4).tolist()}) == 5, "five inputs, five answers"
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-3, atol=1e-3)


def test_info_counts_parameters(act: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    act(*TINY, "action=info", "task=audio_folder")
    shown = capsys.readouterr().out
    for word in ("parameters (deploy form)", "MACs", "receptive field", "audio_folder"):
        assert word in shown


def test_info_repeats_the_settings_of_what_it_describes(
    act: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("modality=image", "task=image_folder", "backbone=timm", "backbone.name=resnet10t", "seed=3")
    act("action=info", *words)
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("train it: "))
    assert all(word in line for word in words)
    assert "action" not in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("action=test",), "needs ckpt=PATH"),
        (("action=predict", "ckpt=nowhere.ckpt", "input=x.wav"), "there is no file nowhere.ckpt"),
        (("data_dir=/does/not/exist",), "/does/not/exist does not exist; speech_commands expects"),
        (("resume=/does/not/exist",), "there is no checkpoint"),
        (("trainer=gpu",), "needs a GPU"),
        (("task.data.batch_size=0",), "batch_size must be at least 1, not 0"),
        (("trainer.max_epochs=soon",), "trainer.max_epochs must be a whole number"),
        (("trainer.accumulate_grad_batches=0",), "trainer.accumulate_grad_batches must be a whole number"),
        (("trainer.check_val_every_n_epoch=0",), "trainer.check_val_every_n_epoch must be a whole number"),
        (("trainer.gradient_clip_val=-1",), "trainer.gradient_clip_val must be at least 0, or null, not -1"),
        (
            ("trainer.limit_train_batches=0",),
            "trainer.limit_train_batches=0: there would be nothing to train on",
        ),
        (
            ("task.data.limit=8", "+trainer.val_check_interval=1000"),
            "trainer.val_check_interval=1000 is more than the training batches of an epoch",
        ),
        (
            ("modality=image", "task.data.transforms.size=[96,160]"),
            "size must be a whole number, not [96, 160]",
        ),
        (("optimizer.lr=[1]",), "optimizer.lr must be a number, not [1]"),
        (("optimizer.layer_decay=2",), "layer_decay must lie in (0, 1]"),
        (("optimizer.lr=-1",), "Invalid learning rate: -1"),
        (("scheduler=milestones", "scheduler.epochs=[3,1]"), "scheduler.epochs takes rising numbers"),
        (("download=true",), "needs data_dir"),
        (("backbone.model.kernel_sizes=[4,4,4,4]",), "4"),
    ],
)
def test_wrong_input_gets_one_sentence(
    act: Callable[..., Path],
    words: tuple[str, ...],
    said: str,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    if "trainer=gpu" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as stop:
        act("backbone=widefield_nano", *words)
    assert stop.value.code == 1
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert said in errors[0]
    assert "\n" not in errors[0]
    assert not (tmp_path / "run" / "result.json").exists()


def test_checkpoint_of_another_task(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    done = command(tmp_path, "action=test", "task=esc50", f"ckpt={checkpoint}")
    assert done.returncode == 1
    assert "is of task audio_folder, not esc50" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_unknown_option_is_an_error(command: Command, tmp_path: Path) -> None:
    done = command(tmp_path, "task.data.batchsize=3")
    assert done.returncode == 1
    assert "batchsize" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_pickle_that_runs_code_is_refused(
    act: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    torch.save({"widefield": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(SystemExit):
        act("action=test", f"ckpt={tmp_path / 'evil.ckpt'}")
    assert "would run code (" in caplog.text
    assert "system" in caplog.text, "what it would run is named"
    assert not (tmp_path / "owned").exists()


def test_a_damaged_checkpoint_is_no_attack(
    checkpoint: Path, act: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "half.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(SystemExit):
        act("action=test", f"ckpt={tmp_path / 'half.ckpt'}")
    assert "half.ckpt is damaged or incomplete" in caplog.text
    assert "would run code" not in caplog.text


def test_nan_loss_stops_before_the_weights(
    act: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        act(
            *TINY,
            "task=audio_folder",
            "optimizer.lr=1e30",
            "trainer.gradient_clip_val=null",
            "trainer.max_epochs=9",
        )
    assert "the loss became" in caplog.text


def test_few_broken_files_are_left_out_many_stop(
    act: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    for split, count in (("train", 60), ("val", 30), ("test", 30)):
        for label in ("high", "low"):
            (root / split / label).mkdir(parents=True)
            for index in range(count):
                wave = np.sin(np.arange(4000) * (0.5 if label == "high" else 0.05)) * 0.3
                soundfile.write(root / split / label / f"{index}.wav", wave, 16000)
    (root / "train" / "low" / "0.wav").write_bytes(b"RIFF broken")
    words = (
        *TINY,
        "task=audio_folder",
        f"data_dir={root}",
        "task.data.num_workers=0",
        "task.data.seconds=0.25",
    )
    run = act(*words, folder="one")
    assert (run / "result.json").exists()
    assert caplog.text.count("broken file:") == 1
    for index in range(1, 3):
        (root / "train" / "low" / f"{index}.wav").write_bytes(b"")
    with pytest.raises(SystemExit):
        act(*words, folder="many")
    assert "3 of 240 files cannot be read" in caplog.text
