"""What a command says goes before what a checkpoint says, from the command line and from Python alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from tests_support import TINY

from workbench.errors import UsageError
from workbench.members import resolved
from workbench.overrides import overrides, without_words
from workbench.restore import restore

Compose = Callable[..., DictConfig]
WORDS = (*TINY, "task=audio_folder", "task.data.batch_size=4", "task.data.seconds=0.25", "logger=[]")


@pytest.fixture(scope="module")
def run(composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was limited to 12 samples of a split."""
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ("task.data.limit=12", "callbacks=[]", "action.test_after=false", "task.data.num_workers=0")
    run_action(composed(*WORDS, *words, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


def test_settings_said_in_python_go_before_those_of_a_checkpoint(composed: Compose, run: Path) -> None:
    own = restore(composed(f"ckpt={run}", "action=test", "task.data.limit=7", "task.name=mine")).cfg
    assert (own.task.data.limit, own.task.name) == (7, "mine")
    assert own.task.data.seconds == 0.25, "the checkpoint's, which nobody has said"
    assert restore(composed(f"ckpt={run}", "action=test")).cfg.task.data.limit == 12


def test_another_backbone_said_in_python_is_refused(composed: Compose, run: Path) -> None:
    with pytest.raises(UsageError, match=r"is of backbone \w+, not unireplknet_a: leave backbone= out"):
        restore(composed(f"ckpt={run}", "action=test", "backbone=unireplknet_a"))


def test_python_and_the_command_line_test_the_same_samples(
    composed: Compose, samples: Path, run: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    from workbench.actions import run_action

    words = ("action=test", f"ckpt={run}", "task.data.limit=3", "trainer=cpu", "task.data.num_workers=0")
    run_action(composed(*words, f"paths.samples={samples}", f"paths.run={tmp_path / 'python'}"))
    done = command(tmp_path, *words, f"hydra.run.dir={tmp_path / 'command'}")
    assert done.returncode == 0, done.stderr
    kept = [OmegaConf.load(tmp_path / name / "config.yaml") for name in ("python", "command")]
    assert [cfg.task.data.limit for cfg in kept] == [3, 3]
    assert all("overrides" not in cfg for cfg in kept)


def test_where_nobody_recorded_words_the_checkpoint_decides_and_it_is_said(
    composed: Compose, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = composed(f"ckpt={run}", "action=test", "task.data.limit=7")
    without_words(cfg)
    assert restore(cfg).cfg.task.data.limit == 12
    assert "modality, task and backbone are those of the checkpoint" in caplog.text


def test_composing_leaves_hydra_as_it_was(composed: Compose) -> None:
    before = GlobalHydra.instance().hydra
    cfg = composed("task.data.limit=7", "paths.run=${paths.runs}/x")
    assert GlobalHydra.instance().hydra is before
    assert overrides(cfg) == ["task.data.limit=7", "paths.run=${paths.runs}/x"]
    assert "overrides" not in resolved(cfg)
    assert "overrides" in cfg
