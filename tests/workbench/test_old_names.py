"""Configurations, checkpoints and sweeps that name classes by where they stood before."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tests_support import ROOT

from workbench.errors import UsageError
from workbench.old_names import DATASETS, current_name, take_current_names, with_current_names
from workbench.sweeps.frozen import check_word


def test_every_old_file_has_its_place() -> None:
    for old, place in DATASETS.items():
        importlib.import_module(f"tasks.datasets.{place}")
        assert not (ROOT / "tasks" / "datasets" / f"{old}.py").exists()
        assert current_name(f"tasks.datasets.{old}.X") == f"tasks.datasets.{place}.X"


@pytest.mark.parametrize(
    "name", ["tasks.datasets.base.Item", "tasks.datasets.time_series.ett", "os.system", 3, None, ["x"]]
)
def test_other_names_stay(name: object) -> None:
    assert current_name(name) == name


def test_nodes_at_any_depth() -> None:
    old = {
        "a": [{"_target_": "tasks.datasets.time_series.ett.ETT", "b": "tasks.datasets.time_series.ett.ETT"}],
        "c": None,
        "d": "${a}",
    }
    new = {"a": [{"_target_": "tasks.datasets.time_series.ett.ETT", "b": "tasks.datasets.time_series.ett.ETT"}],
           "c": None, "d": "${a}"}  # fmt: skip
    assert with_current_names(old) == new
    cfg = OmegaConf.create({**old, "e": "???"})
    OmegaConf.set_readonly(cfg, True)
    take_current_names(cfg)
    assert OmegaConf.to_container(cfg) == {**new, "e": "???"}


def test_a_checkpoint_of_before(act: Callable[..., Path], tmp_path: Path) -> None:
    run = act("modality=audio", "task=audio_folder", "backbone.model.dims=[8,8,16,16]", "task.data.limit=24",
              "trainer.max_epochs=1")  # fmt: skip
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    data = content["widefield"]["composition"]["task"]["data"]
    assert data["_target_"] == "tasks.datasets.audio.folder.AudioFolder"
    data["_target_"] = "tasks.datasets.audio.folder.AudioFolder"
    torch.save(content, tmp_path / "old.ckpt")
    test = act("action=test", f"ckpt={tmp_path / 'old.ckpt'}", "task.data.limit=24", folder="test")
    then, now = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (run, test))
    assert now["test/acc"] == then["test/acc"]


def test_a_sweep_of_before(tmp_path: Path) -> None:
    word = "task.data._target_=tasks.datasets.{}"
    check_word(word.format("audio_folder.AudioFolder"), tmp_path / "sweep.json")
    with pytest.raises(UsageError, match="no class of the installed configuration"):
        check_word(word.format("audio_files.torch"), tmp_path / "sweep.json")


def test_a_configuration_of_before(composed: Callable[..., DictConfig], act: Callable[..., Path]) -> None:
    run = act("modality=audio", "task=audio_folder", "task.data._target_=tasks.datasets.audio.folder.AudioFolder",
              "backbone.model.dims=[8,8,16,16]", "task.data.limit=24", "trainer.max_epochs=1")  # fmt: skip
    assert OmegaConf.load(run / "config.yaml").task.data._target_ == "tasks.datasets.audio.folder.AudioFolder"
