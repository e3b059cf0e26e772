"""Options of the engine that a run may combine: averaging, stopping early, accumulation, several labels, processes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from omegaconf import DictConfig
from tests_support import TINY

from workbench.errors import UsageError
from workbench.extras import need

Act = Callable[..., Path]


def test_average_early_stop_accumulate(act: Act) -> None:
    run = act(
        *TINY,
        "task=audio_folder",
        "callbacks=[default,ema,early_stopping]",
        "callbacks.early_stopping.patience=1",
        "optimizer.lr=0",  # nothing improves
        "trainer.max_epochs=9",
        "trainer.accumulate_grad_batches=2",
        "scheduler=exponential",
    )
    assert json.loads((run / "result.json").read_text())["epochs"] == 2
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (average,) = (state for name, state in content["callbacks"].items() if "ExponentialAverage" in name)
    assert average["updates"] == content["global_step"] > 0


def test_several_labels(act: Act, tmp_path: Path) -> None:
    """Two tones, present or not: a CSV with labels separated by semicolons, binary loss, mean average precision."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(60):
        on = rng.integers(0, 2, 2) if index % 3 else np.array([1, 1])
        wave = 0.01 * rng.standard_normal(4000)
        wave += sum(0.3 * on[tone] * np.sin(np.arange(4000) * (0.1 + 0.5 * tone)) for tone in range(2))
        soundfile.write(tmp_path / f"{index}.wav", wave, 16000)
        names = ";".join(name for name, there in zip(("low", "high"), on, strict=True) if there)
        if names:
            split = ("train", "train", "val", "test")[index % 4]
            rows.append({"path": f"{index}.wav", "label": names, "split": split})
    pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
    words = (
        *(
            "task=audio_folder",
            "task/loss=bce",
            f"data_dir={tmp_path}",
            f"task.data.csv={tmp_path / 'labels.csv'}",
        ),
        *(
            "task.data.multilabel=true",
            "task.data.seconds=0.25",
            "task.data.num_workers=0",
        ),
        *(
            "task.data.batch_size=8",
            "modality.augment.raw=null",
            "modality.augment.maps=null",
            "optimizer.lr=0.01",
            "trainer.max_epochs=8",
        ),
    )
    run = act(*TINY, *words)
    result = json.loads((run / "result.json").read_text())
    assert result["monitor"] == "val/map", "chosen by the task, as several labels have no accuracy"
    assert result["best"] == result["metrics"]["val/map"]
    assert result["metrics"]["test/map"] > 0.8


def test_class_weights_change_what_is_learnt(act: Act, tmp_path: Path) -> None:
    """Balanced weights lift the rare class; a test of the checkpoint has the same loss."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 16), ("test", 16)):
        for label, part in (("often", count), ("rare", count // 8)):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for index in range(part):
                wave = rng.standard_normal(2000) * (0.1 if label == "often" else 0.11)
                soundfile.write(tmp_path / "data" / split / label / f"{index}.wav", wave, 16000)
    words = (
        *(*TINY, "task=audio_folder", f"data_dir={tmp_path / 'data'}", "task.data.seconds=0.125"),
        *("task.data.num_workers=0", "task.data.batch_size=9", "trainer.max_epochs=2"),
    )
    found = {}
    for weight in ("null", "balanced", "[1,7]", "{rare: 7}"):
        run = act(*words, f"task.loss.weight={weight}", folder=f"run{len(found)}")
        content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        found[weight] = content["state_dict"]["network.head.linear.bias"]
        if weight == "balanced":
            expected = torch.tensor([45 / (2 * 40), 45 / (2 * 5)])
            torch.testing.assert_close(content["state_dict"]["loss.class_weight"], expected)
            test = act(*words, "action=test", f"ckpt={run}", folder="again")
            again, before = (json.loads((folder / "result.json").read_text()) for folder in (test, run))
            assert again["metrics"]["test/loss"] == pytest.approx(before["metrics"]["test/loss"], rel=1e-5)
    rare = {weight: float(bias[1] - bias[0]) for weight, bias in found.items()}
    assert rare["balanced"] > rare["null"]
    assert torch.equal(found["[1,7]"], found["{rare: 7}"])
    assert not torch.equal(found["[1,7]"], found["null"])


def test_statistics_come_from_the_training_part(composed: Callable[..., DictConfig], samples: Path) -> None:
    from workbench.build import build_data, build_network

    cfg = composed("task=audio_folder", "backbone=widefield_nano", f"paths.samples={samples}")
    data = build_data(cfg)
    embedder = build_network(cfg, data.info()).embedder
    assert embedder.needs_statistics
    data.splits["val"], data.splits["test"] = [], []  # whatever they hold, it is not looked at
    embedder.fit_statistics(data.training_raws())  # type: ignore[operator]
    maps = torch.cat([embedder(raw) for raw in data.training_raws()])
    assert abs(float(maps.mean())) < 1e-3
    assert not embedder.needs_statistics


@pytest.mark.slow
def test_two_processes_share_the_work(
    new_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = (*TINY, "task=audio_folder", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    done = new_command(
        tmp_path, *words, "trainer.precision=32-true", "trainer.sync_batchnorm=false", timeout=200
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "audio_folder").iterdir()
    assert (run / "result.json").is_file()
    history = pd.read_csv(run / "metrics.csv")
    assert history["epoch"].tolist() == [0]


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.extras.find_spec", lambda module: None)
    with pytest.raises(
        UsageError, match=r"formats=\[onnx\] needs onnx, onnxscript, onnxruntime: pip install -e '.\[onnx\]'"
    ):
        need("onnx", "formats=[onnx]")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler imports torch.jit
@pytest.mark.parametrize("how", ["true", "graphs"])
def test_compiled_run(act: Act, how: str) -> None:
    run = act(*TINY, "task=audio_folder", f"compile={how}")
    assert (run / "result.json").is_file()


@pytest.mark.gpu
def test_mixed_precision_on_a_gpu(act: Act) -> None:
    run = act(*TINY, "task=audio_folder", "trainer=gpu")
    assert json.loads((run / "result.json").read_text())["precision"] == "bf16-mixed"
