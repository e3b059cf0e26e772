"""A checkpoint is data: whatever a crafted or damaged one says, nothing of it runs, and the command ends in a sentence."""

import copy
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from omegaconf import DictConfig, OmegaConf
from tests_support import TINY

Act = Callable[..., Path]
Change = Callable[[dict[str, Any]], None]
SECRET = "swordfish-4711"


@pytest.fixture(scope="module")
def run(composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / "fit"
    words = ("task=audio_folder", "trainer.max_epochs=2", "task.data.limit=24", "task.data.num_workers=0")
    run_action(composed(*TINY, *words, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("clips") / "clip.wav"
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    soundfile.write(file, noise.numpy(), 16000)
    return file


@pytest.fixture
def crafted(run: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """`crafted(change)` -> a copy of the run's checkpoint, its description changed in place."""

    def make(change: Change) -> Path:
        content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        change(content["widefield"])
        path = tmp_path / "crafted.ckpt"
        torch.save(content, path)
        return path

    return make


def put(node: dict[str, Any], key: str, value: Any) -> None:
    """`put(stored, "composition.task.loss", …)`; nodes on the way are made."""
    *way, last = key.split(".")
    for part in way:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[last] = value


def putting(key: str, value: Any) -> Change:
    return lambda stored: put(stored["composition"], key, value)


def joint_of(change: Change) -> Change:
    """The description of a joint run whose only member is changed so."""

    def make(stored: dict[str, Any]) -> None:
        inner = copy.deepcopy(stored)
        change(inner)
        own = inner["composition"]
        member = {"modality": own["modality"], "task": own["task"], "data_dir": None, "weight": 1.0}
        data = {"batch_size": None, "eval_batch_size": None, "limit": None}
        task = {"name": "both", "modality": "joint", "monitor": "val/score", "mode": "max"}
        task |= {"stem": "per_modality", "stem_chans": 3, "batch_norm": "per_modality", "weighting": "fixed"}
        stored["composition"] = {
            "modality": {"name": "joint", "embedder": None, "augment": {}},
            "task": task | {"data": data, "members": {"audio": member}},
            "backbone": own["backbone"],
        }
        stored["facts"] = {"audio": stored["facts"]}

    return make


def refused(act: Act, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must end with one sentence and exit code 1; returns the sentence."""
    with pytest.raises(SystemExit) as stop:
        act(*words)
    assert stop.value.code == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert "\n" not in said[0]
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err + caplog.text
    return said[0].removeprefix("error: ")


def entries(bad: Path, good: Path, clip: Path) -> dict[str, tuple[str, ...]]:
    """Every way in that names a checkpoint."""
    ways = {
        name: (*TINY[3:4], f"action={name}", f"ckpt={bad}")
        for name in ("test", "info", "probe_erf", "probe_kernels", "probe_cka", "probe_robustness")
    }
    ways["predict"] = ("trainer=cpu", "action=predict", f"ckpt={bad}", f"input={clip}")
    ways["export"] = ("action=export", "action.formats=[torch_export]", f"ckpt={bad}")
    ways["probe_shape_bias"] = ("action=probe_shape_bias", f"ckpt={bad}")
    ways["against"] = ("trainer=cpu", "action=probe_cka", f"ckpt={good}", f"action.against=[{bad}]")
    ways["compare"] = ("trainer=cpu", "action=probe_erf", f"ckpt={good}", f"action.compare=[{bad}]")
    ways["init_from"] = (*TINY, "task=audio_folder", "task.data.limit=24", f"init_from={bad}")
    return ways


WAYS = list(entries(Path(), Path(), Path()))


def node(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_in_runs_what_a_checkpoint_says(
    way: str,
    crafted: Callable[[Change], Path],
    run: Path,
    clip: Path,
    act: Act,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    marker = tmp_path / "marker"
    bad = crafted(putting("modality.augment.raw", node("os.mkdir", path=str(marker))))
    said = refused(act, caplog, capsys, *entries(bad, run / "checkpoints" / "best.ckpt", clip)[way])
    assert not marker.exists()
    assert "os.mkdir" in said
    assert "modality.augment.raw" in said


SHELL = {"args": ["touch", "MARKER"]}
PAYLOADS: dict[str, tuple[str, Any]] = {
    "augment": ("modality.augment.maps", node("os.mkdir", path="MARKER")),
    "mixup": ("modality.augment.mixup", node("os.mkdir", path="MARKER")),
    "exec": ("task.loss", node("builtins.exec", _args_=["open('MARKER', 'w')"])),
    "shell": ("task.loss", node("subprocess.run", **SHELL)),
    "hydra": ("task.loss", node("hydra.utils.instantiate", config=node("os.mkdir", path="MARKER"))),
    "loss in model": ("task.model.loss", node("os.mkdir", path="MARKER")),
    "nested in data": ("task.data.transforms", node("os.mkdir", path="MARKER")),
    "nested in a list": ("task.data.steps", [[node("os.mkdir", path="MARKER")]]),
    "nested in an argument": ("task.head.dropout", node("os.mkdir", path="MARKER")),
    "embedder": ("modality.embedder", node("os.mkdir", path="MARKER")),
    "data": ("task.data", node("os.mkdir", path="MARKER")),
    "head": ("task.head", node("os.mkdir", path="MARKER")),
    "backbone": ("backbone.model", node("os.mkdir", path="MARKER")),
    "by reference": ("task.head", "${task.hidden}"),
    "partial": ("task.loss._partial_", True),
    "args": ("task.loss._args_", ["MARKER"]),
    "recursive": ("task.loss._recursive_", False),
    "convert": ("task.loss._convert_", "all"),
    "module of a module": ("task.loss", node("tasks.heads.os.mkdir", path="MARKER")),
    "module of a data set": ("task.data", node("tasks.datasets.base.shutil.rmtree", path="MARKER")),
    "imported class": ("task.head", node("tasks.heads.nn.Linear", in_features=1, out_features=1)),
    "imported name": ("task.head", node("tasks.heads.Tensor")),
    "private": ("task.data", node("tasks.datasets.base._Reader")),
    "function": ("task.head", node("tasks.heads.one_hot")),
    "class of another slot": ("task.head", node("tasks.datasets.audio_folder.AudioFolder", name="x")),
    "class of nothing": ("modality.embedder", node("backbone.UniRepLKNet", depths=[1], dims=[8])),
    "base class's file": ("task.loss", node("torch.hub.load", repo_or_dir="MARKER")),
    "torch.nn": ("task.loss", node("torch.nn.Linear", in_features=1, out_features=1)),
    "pickle": ("task.loss", node("torch.load", f="MARKER", weights_only=False)),
    "no name": ("task.loss", {"_target_": 3}),
    "no such class": ("task.loss", node("tasks.losses.Nothing")),
    "spaces": ("task.loss", node("tasks.losses.CrossEntropy ; os")),
    "environment": ("task.name", "${oc.env:WIDEFIELD_TEST_SECRET}"),
    "environment inside": ("task.data.csv", "a ${oc.env:WIDEFIELD_TEST_SECRET} b"),
    "environment twice": ("task.data.csv", "${oc.env:${task.name}}"),
    "decoded": ("task.data.csv", "${oc.decode:'1'}"),
    "created": ("task.loss", "${oc.create:{_target_: os.mkdir}}"),
    "hydra's": ("task.data.csv", "${hydra:runtime.cwd}"),
    "ours": ("task.monitor", "${mode_of:val/loss}"),
    "escaped": ("task.data.csv", "\\${task.name}"),
    "relative": ("task.data.csv", "${.name}"),
    "another root": ("task.data.csv", "${logger.wandb.key}"),
    "nowhere": ("task.data.csv", "${task.nothing}"),
    "circle": ("task.data.csv", "${task.data.csv}"),
    "circle of nodes": ("task.data.csv", "${task.data}"),
    "missing": ("task.data.csv", "???"),
    "path as a name": ("task.name", "../../x"),
    "name with colour": ("task.name", "\x1b[31mred"),
    "name of two lines": ("backbone.name", "a\nb"),
    "path as a data set": ("task.data.name", "../x"),
    "number as a name": ("modality.name", 3),
    "no modality": ("modality", None),
    "no model": ("task.model", {}),
    "list for a node": ("backbone", [1]),
    "bytes": ("task.data.csv", b"x"),
    "tensor": ("task.data.csv", torch.zeros(2)),
    "wrong argument": ("modality.embedder.nothing", 1),
    "wrong value": ("backbone.model.dims", ["a"]),
    "key with a dot": ("task.data", {"a.b": 1}),
}


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("joint", [False, True], ids=["alone", "member"])
def test_no_crafted_description_is_believed(
    name: str,
    joint: bool,
    crafted: Callable[[Change], Path],
    clip: Path,
    act: Act,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WIDEFIELD_TEST_SECRET", SECRET)
    marker = tmp_path / "marker"
    key, value = PAYLOADS[name]
    if name not in ("bytes", "tensor"):
        value = json.loads(json.dumps(value).replace("MARKER", str(marker)))

    def change(stored: dict[str, Any]) -> None:
        put(stored["composition"], "task.hidden", node("os.mkdir", path=str(marker))) if "ref" in name else None
        put(stored["composition"], key, value)

    if joint and key == "backbone":
        pytest.skip("a member has no backbone of its own")
    bad = crafted(joint_of(change) if joint else change)
    part = "@audio" if joint else ""
    said = refused(
        act, caplog, capsys, "trainer=cpu", "action=predict", f"ckpt='{bad}{part}'", f"input={clip}"
    )
    assert not marker.exists()
    assert str(bad) in said or name == "wrong argument"  # refused by the class itself
    assert "\x1b" not in said


def test_the_sentence_for_a_plug_in_says_what_to_do(
    crafted: Callable[[Change], Path],
    act: Act,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = crafted(putting("task.loss", node("mine.losses.Focal")))
    said = refused(act, caplog, capsys, "action=info", f"ckpt={bad}")
    assert "mine.losses.Focal" in said
    assert "--config-dir" in said
