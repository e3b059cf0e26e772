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
            "task.monitor=val/map",
        ),
        *("task.data.batch_size=8", "modality.augment.maps=null"),
    )
    run = act(*TINY, *words)
    assert 0 <= json.loads((run / "result.json").read_text())["metrics"]["test/map"] <= 1


def test_statistics_come_from_the_training_part(composed: Callable[..., DictConfig], samples: Path) -> None:
    from workbench.build import build_data, build_network

    cfg = composed("task=audio_folder", "backbone=widefield_nano", f"paths.samples={samples}")
    data = build_data(cfg)
    embedder = build_network(cfg, data.facts()).embedder
    assert embedder.needs_statistics
    data.splits["val"], data.splits["test"] = [], []  # whatever they hold, it is not looked at
    embedder.fit_statistics(data.training_raws())  # type: ignore[operator]
    maps = torch.cat([embedder(raw) for raw in data.training_raws()])
    assert abs(float(maps.mean())) < 1e-3
    assert not embedder.needs_statistics


def test_two_processes_share_the_work(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = (*TINY, "task=audio_folder", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    done = command(tmp_path, *words, "trainer.precision=32-true", "trainer.sync_batchnorm=false", timeout=200)
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
