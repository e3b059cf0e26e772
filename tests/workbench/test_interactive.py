"""Training from Python: the model comes back as the command would leave it, without a word on the screen."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from tests_support import ROOT, TINY

from workbench.errors import UsageError
from workbench.interactive import train, train_jointly

Compose = Callable[..., DictConfig]
SMALL = (*TINY, "task.data.limit=12", "task.data.batch_size=4", "logger=csv", "~callbacks.pictures")
JOINT = (
    *SMALL,
    "experiment=joint/four_modalities",
    "task@task.members.audio.task=audio_folder",
    "~task.members.point_cloud",
    "~task.members.video",
)


def test_train_returns_what_the_run_left(
    composed: Compose, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed(
        *SMALL,
        "task=audio_folder",
        "trainer.max_epochs=2",
        f"paths.samples={samples}",
        f"paths.runs={tmp_path}",
    )
    before = cfg.copy()
    run = train(cfg)
    assert capsys.readouterr() == ("", "")
    assert cfg == before
    assert run.folder.parent == tmp_path / "audio_folder"
    assert run.history["epoch"].tolist() == [0, 1]
    assert not run.task.training
    # The model that came back gives the very accuracy that was measured.
    (batch,) = run.data.loader("test", batch_size=12)
    with torch.no_grad():
        right = run.task(batch.raw).argmax(dim=1) == batch.target
    assert right.double().mean().item() == pytest.approx(run.result["metrics"]["test/acc"])


def test_train_jointly_returns_every_member(composed: Compose, samples: Path, tmp_path: Path) -> None:
    runs = train_jointly(composed(*JOINT, f"paths.samples={samples}", f"paths.runs={tmp_path}"))
    assert list(runs) == ["audio", "time_series"]
    audio, series = runs["audio"], runs["time_series"]
    assert audio.folder == series.folder
    assert {"test/audio/acc", "test/time_series/mse"} <= set(audio.result["metrics"])
    assert len(audio.data.splits["train"]) == len(series.data.splits["train"]) == 12
    first, second = (run.task.network.backbone.state_dict() for run in (audio, series))
    kernels = [name for name in first if name.startswith("stages.") and name.endswith("lk_origin.weight")]
    assert kernels
    assert all(torch.equal(first[name], second[name]) for name in kernels)
    (batch,) = audio.data.loader("test", batch_size=12)
    with torch.no_grad():
        right = audio.task(batch.raw).argmax(dim=1) == batch.target
    assert right.double().mean().item() == pytest.approx(audio.result["metrics"]["test/audio/acc"])


def test_the_wrong_one_is_refused_in_a_sentence(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train_jointly returns them all"):
        train(composed(*JOINT, f"paths.runs={tmp_path}"))
    with pytest.raises(UsageError, match="audio_folder is one task: train returns it"):
        train_jointly(composed(*SMALL, "task=audio_folder", f"paths.runs={tmp_path}"))
    with pytest.raises(UsageError, match="training needs action=fit, not info"):
        train(composed(*SMALL, "task=audio_folder", "action=info", f"paths.runs={tmp_path}"))
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_can_read_what_it_composes() -> None:
    """In a process of its own: the tests register the configuration's functions for themselves."""
    code = (
        "from hydra import compose, initialize_config_dir\n"
        "from workbench.interactive import train\n"
        f"with initialize_config_dir({str(ROOT / 'conf')!r}, version_base='1.3'):\n"
        "    print(compose('config').task.mode, compose('config', ['modality=time_series']).task.mode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["max", "min"], done.stderr
