"""A checkpoint is data: nothing that a crafted or damaged one says is run; the command ends in one sentence."""

import copy
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from omegaconf import DictConfig
from tests_support import TINY

Act = Callable[..., Path]
Change = Callable[[dict[str, Any]], None]
SECRET = "swordfish-4711"


@pytest.fixture(scope="module")
def run(composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs; its best checkpoint is of the first."""
    from workbench.actions import run_action
    from workbench.callbacks.best import BestCheckpoint

    folder = tmp_path_factory.mktemp("runs") / "fit"
    words = ("task=audio_folder", "trainer.max_epochs=2", "task.data.limit=24", "task.data.num_workers=0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestCheckpoint, "_rank", lambda self, metrics: (0.0, 0.0))
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


def refused(
    act: Act, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
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


def entries(bad: Path | str, good: Path, clip: Path) -> dict[str, tuple[str, ...]]:
    """Every way in that names a checkpoint."""
    ways = {
        name: (*TINY[3:4], f"action={name}", f"ckpt={bad}")
        for name in ("test", "info", "probe_erf", "probe_kernels", "probe_cka", "probe_robustness")
    }
    ways["predict"] = ("trainer=cpu", "action=predict", f"ckpt={bad}", f"input={clip}")
    ways["embed"] = ("trainer=cpu", "action=embed", f"ckpt={bad}", f"input={clip}")
    ways["evaluate"] = ("trainer=cpu", "action=evaluate", f"ckpt={bad}")
    ways["export"] = ("action=export", "action.formats=[torch_export]", f"ckpt={bad}")
    ways["push"] = ("action=push", f"ckpt={bad}", "action.repo=me/words", "action.upload=false")
    ways["probe_shape_bias"] = ("action=probe_shape_bias", f"ckpt={bad}")
    ways["against"] = ("trainer=cpu", "action=probe_cka", f"ckpt={good}", f"action.against=[{bad}]")
    ways["compare"] = ("trainer=cpu", "action=probe_erf", f"ckpt={good}", f"action.compare=[{bad}]")
    ways["init_from"] = (*TINY, "task=audio_folder", "task.data.limit=24", f"init_from={bad}")
    return ways


WAYS = list(entries(Path(), Path(), Path()))


def node(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """`published(path)` -> the name of a hub's repository that says what a checkpoint says."""
    import huggingface_hub

    from workbench.hub import write_model

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **_: str(tmp_path / "hub"))

    def make(path: Path) -> str:
        write_model(tmp_path / "hub", torch.load(path, weights_only=True), "", "")
        return "hf://me/bad"

    return make


@pytest.mark.parametrize("source", ["file", "hub"])
@pytest.mark.parametrize("way", WAYS)
def test_no_way_in_runs_what_a_checkpoint_says(
    way: str,
    source: str,
    published: Callable[[Path], str],
    crafted: Callable[[Change], Path],
    run: Path,
    clip: Path,
    act: Act,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    marker = tmp_path / "marker"
    bad: Path | str = crafted(putting("modality.augment.raw", node("os.mkdir", path=str(marker))))
    if source == "hub":
        bad = published(Path(bad))
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
    "module of a data set": ("task.data", node("tasks.datasets.drawn.shutil.rmtree", path="MARKER")),
    "imported class": ("task.head", node("tasks.heads.nn.Linear", in_features=1, out_features=1)),
    "imported name": ("task.head", node("tasks.heads.Tensor")),
    "private": ("task.data", node("tasks.datasets.base._Reader")),
    "function": ("task.head", node("tasks.heads.one_hot")),
    "class of another slot": ("task.head", node("tasks.datasets.audio.folder.AudioFolder", name="x")),
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
        put(
            stored["composition"], "task.hidden", node("os.mkdir", path=str(marker))
        ) if "ref" in name else None
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


# -- what is allowed ---------------------------------------------------------------------------------------------------


def test_our_own_checkpoints_hold_no_resolver(run: Path) -> None:
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["widefield"]
    text = json.dumps(stored["composition"])
    assert stored["composition"]["task"]["mode"] == "max"
    assert "${mode_of" not in text
    assert "${task.data.seconds}" in text, "a command can still change it: task.data.seconds=2"


def test_what_a_resolver_gives_is_stored_as_a_value(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.stored_config import plain_config

    monkeypatch.setenv("WIDEFIELD_TEST_SECRET", "/data/table.csv")
    word = "task.data.csv='${oc.env:WIDEFIELD_TEST_SECRET}'"
    stored = plain_config(composed("task=audio_folder", word, "task.monitor=val/loss"))
    assert stored["task"]["data"]["csv"] == "/data/table.csv"
    assert stored["task"]["mode"] == "min"
    assert stored["task"]["data"]["samples_dir"] == "${paths.samples}"
    joint = plain_config(composed("experiment=joint/four_modalities"))
    assert joint["task"]["members"]["time_series"]["task"]["mode"] == "min"
    assert "${" not in str(joint["task"]["mode"])


@pytest.mark.parametrize("mode", ["max", "${mode_of:${task.monitor}}"])
def test_checkpoints_of_before_are_read(
    mode: str, crafted: Callable[[Change], Path], clip: Path, act: Act
) -> None:
    old = crafted(putting("task.mode", mode))
    folder = act("trainer=cpu", "action=predict", f"ckpt={old}", f"input={clip}")
    assert (folder / "predictions.csv").is_file()
    assert act("trainer=cpu", "action=test", f"ckpt={old}", "task.monitor=val/loss", folder="test").is_dir()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task.loss", node("torch.nn.MSELoss")),
        ("modality.augment.maps", node("modalities.audio_augment.SpecAugment", freq_mask=1)),
        ("modality.augment.raw", None),
    ],
)
def test_other_classes_of_a_slot_are_allowed(
    key: str, value: Any, crafted: Callable[[Change], Path], act: Act
) -> None:
    act("action=info", f"ckpt={crafted(putting(key, value))}")


@pytest.mark.slow
def test_a_plug_in_is_found_by_its_yaml(
    crafted: Callable[[Change], Path], new_command: Callable[..., Any], tmp_path: Path
) -> None:
    """In a process of its own: the search path is Hydra's."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Focal(nn.CrossEntropyLoss):\n    pass\n"
    )
    (tmp_path / "conf" / "task" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "loss" / "focal.yaml").write_text("_target_: mine.Focal\n")
    bad = crafted(putting("task.loss", node("mine.Focal")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        without = new_command(tmp_path, "action=info", f"ckpt={bad}")
        found = new_command(tmp_path, f"--config-dir={tmp_path / 'conf'}", "action=info", f"ckpt={bad}")
    assert without.returncode == 1
    assert "mine.Focal" in without.stdout + without.stderr
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_file_does_not_choose_where_is_written(
    crafted: Callable[[Change], Path], composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    from workbench.checkpoint_files import read_checkpoint

    def change(stored: dict[str, Any]) -> None:
        data = stored["composition"]["task"]["data"]
        data |= {"samples_dir": "/etc", "download": True, "cache_dir": "/root", "data_dir": "https://x.y/z"}
        data["shards"] |= {"cache_dir": "${paths.data}/../..", "storage": {"endpoint_url": "https://x.y"}}

    content = read_checkpoint(crafted(change), composed("action=info"))
    data = content["widefield"]["composition"]["task"]["data"]
    assert data["samples_dir"] == "${paths.samples}"
    assert data["download"] == "${download}"
    assert data["cache_dir"] is None
    assert data["data_dir"] is None
    assert data["shards"]["cache_dir"] == "${paths.data}/shards"
    assert data["shards"]["storage"] == {}


# -- the rest of the file ----------------------------------------------------------------------------------------------


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


REST: dict[str, Change] = {
    "another format": lambda stored: stored.update(format=2),
    "no format": lambda stored: stored.pop("format"),
    "true for a format": lambda stored: stored.update(format=True),
    "data info of tensors": lambda stored: stored["facts"].update(class_names=torch.zeros(3)),
    "no data info": lambda stored: stored.update(facts=None),
    "data info that lacks": lambda stored: stored.update(facts={}),
    "data info of nothing": lambda stored: stored["facts"].update(class_names=3),
    "a record of nothing": lambda stored: stored.update(trained_on={"samples": 3}),
    "a record of texts": lambda stored: stored.update(trained_on={"samples": {"train": "x"}}),
    "metrics of nothing": lambda stored: stored.update(validated=3),
    "a validation at no step": lambda stored: stored.update(validated_step="x"),
    "metrics of texts": lambda stored: stored.update(validated={"val/acc": "x"}),
    "deep data info": lambda stored: stored["facts"].update(class_names=deep(200)),
    "no composition": lambda stored: stored.pop("composition"),
    "laughs": lambda stored: stored["composition"]["task"].update(
        {f"x{i}": [f"${{task.x{i + 1}}}"] * 9 for i in range(9)} | {"x9": "ha"}
    ),
    "long laughs": lambda stored: stored["composition"]["task"].update(
        {f"x{i}": f"${{task.x{i + 1}}}" * 9 for i in range(9)} | {"x9": "ha"}
    ),
}


@pytest.mark.parametrize("name", REST)
def test_the_rest_of_a_description_is_checked(
    name: str,
    crafted: Callable[[Change], Path],
    act: Act,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = crafted(REST[name])
    assert str(bad) in refused(act, caplog, capsys, "action=info", f"ckpt={bad}")


@pytest.mark.parametrize("lacking", ["members", "data", "facts"])
def test_a_joint_description_is_checked(
    lacking: str,
    crafted: Callable[[Change], Path],
    act: Act,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def change(stored: dict[str, Any]) -> None:
        joint_of(lambda _: None)(stored)
        if lacking == "facts":
            stored["facts"] = {}
        else:
            stored["composition"]["task"][lacking] = {}

    bad = crafted(change)
    assert str(bad) in refused(act, caplog, capsys, "action=info", f"ckpt='{bad}@audio'")
    words = (*TINY, "task=audio_folder", "task.data.limit=24", f"init_from={bad}")
    caplog.clear()
    assert str(bad) in refused(act, caplog, capsys, *words)


def test_class_names_may_be_any_text(
    crafted: Callable[[Change], Path], clip: Path, act: Act, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(stored: dict[str, Any]) -> None:
        names = stored["facts"]["class_names"]
        stored["facts"]["class_names"] = [f"\x1b]0;x\x07[/bold]${{oc.env:HOME}} {name}" for name in names]

    act("trainer=cpu", "action=predict", f"ckpt={crafted(change)}", f"input={clip}")
    shown = capsys.readouterr().out
    assert "\\x1b" in shown
    assert "\x1b]0" not in shown
    assert "[/bold]" in shown


# -- damage ------------------------------------------------------------------------------------------------------------


ANYWHERE = 50  # so many bytes of the whole file; any other number: so many of its tensors


def weights_in(path: Path) -> list[int]:
    """Where the bytes of an archive's tensors lie."""
    content, places = path.read_bytes(), []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if "/data/" in member.filename:
                header = member.header_offset
                lengths = [
                    int.from_bytes(content[header + at : header + at + 2], "little") for at in (26, 28)
                ]
                start = header + 30 + sum(lengths)
                places += range(start, start + member.file_size)
    return places


def flip(source: Path, target: Path, seed: int, count: int = 50) -> None:
    """Random bytes changed, as bit rot or a bad copy would."""
    content = bytearray(source.read_bytes())
    chance = random.Random(seed)
    places = range(len(content)) if count == ANYWHERE else weights_in(source)
    for place in chance.choices(places, k=count):
        content[place] = chance.randrange(256)
    target.write_bytes(content)


def believed(run: Path, folder: Path, clip: Path, act: Act, seeds: range, count: int) -> list[int]:
    """The seeds whose damaged checkpoint answers otherwise than the intact one, without an error."""
    words = ("trainer=cpu", "action=predict", f"input={clip}")
    whole = run / "checkpoints" / "best.ckpt"
    right = (act(*words, f"ckpt={whole}", folder="whole") / "predictions.csv").read_text()
    wrong = []
    for seed in seeds:
        damaged = folder / "damaged.ckpt"
        flip(whole, damaged, seed, count)
        with suppress(SystemExit):
            answer = act(*words, f"ckpt={damaged}", folder=f"damaged{seed}") / "predictions.csv"
            if answer.read_text() != right:
                wrong.append(seed)
    return wrong


@pytest.mark.parametrize("count", [ANYWHERE, 5])
def test_no_damaged_checkpoint_is_believed(
    count: int, run: Path, tmp_path: Path, clip: Path, act: Act
) -> None:
    assert believed(run, tmp_path, clip, act, range(20), count) == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [ANYWHERE, 5])
def test_none_of_many_damaged_checkpoints_is_believed(
    count: int, run: Path, tmp_path: Path, clip: Path, act: Act
) -> None:
    assert believed(run, tmp_path, clip, act, range(110), count) == []


def test_an_archive_that_grows_is_refused(run: Path, tmp_path: Path) -> None:
    from backbone import CheckpointError, read_safely

    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="more than its size"):
        read_safely(bomb)


def test_answers_that_are_not_finite_are_refused(
    run: Path,
    tmp_path: Path,
    clip: Path,
    act: Act,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    for name, value in content["state_dict"].items():
        if name.startswith("network.head.") and value.is_floating_point():
            value.fill_(float("nan"))
    broken = tmp_path / "nan.ckpt"
    torch.save(content, broken)
    said = refused(act, caplog, capsys, "trainer=cpu", "action=predict", f"ckpt={broken}", f"input={clip}")
    assert "clip.wav" in said
    assert "not finite" in said
    assert "nan" not in (tmp_path / "run" / "predictions.csv").read_text().replace("NaN", "")


# -- a run's folder ----------------------------------------------------------------------------------------------------

GOES_ON = (
    *TINY,
    "task=audio_folder",
    "trainer.max_epochs=2",
    "task.data.limit=24",
    "task.data.num_workers=0",
)


@pytest.fixture
def unfinished(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that has its checkpoints and no result."""
    folder = tmp_path / "unfinished"
    shutil.copytree(run, folder)
    (folder / "result.json").unlink()
    return folder


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the copy lies elsewhere
def test_a_damaged_last_checkpoint_falls_back_to_the_best(
    run: Path, unfinished: Path, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    assert torch.load(unfinished / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0
    last = unfinished / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    with caplog.at_level("INFO", "widefield"):
        act(*GOES_ON, f"resume={unfinished}", folder="unfinished")
    assert "last.ckpt is damaged" in caplog.text
    assert "going on from" in caplog.text
    assert (unfinished / "result.json").is_file()
    ours, whole = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (unfinished, run)
    )
    assert ours["epoch"] == whole["epoch"] == 1
    different = [
        name
        for name, value in whole["state_dict"].items()
        if not torch.equal(value, ours["state_dict"][name])
    ]
    assert not different, "an epoch was lost, and trained again as before"


def test_two_damaged_checkpoints_are_one_sentence(
    unfinished: Path, act: Act, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*GOES_ON, f"resume={unfinished}", f"paths.run={unfinished}")
    for name in ("last.ckpt", "best.ckpt"):
        flip(unfinished / "checkpoints" / name, unfinished / "checkpoints" / name, 0)
    with pytest.raises(SystemExit):
        act(*words, folder="unfinished")
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "start a new run" in said
    (unfinished / "checkpoints" / "best.ckpt").unlink()
    caplog.clear()
    with pytest.raises(SystemExit):
        act(*words, folder="unfinished")
    assert "there is no best.ckpt" in caplog.text


@pytest.mark.parametrize(
    "what", ["composition", "loops", "epochs", "callbacks", "state", "pickle", "config", "yaml", "no config"]
)
def test_a_crafted_run_folder_is_not_gone_on_from(
    what: str,
    unfinished: Path,
    act: Act,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WIDEFIELD_TEST_SECRET", SECRET)
    marker, last = tmp_path / "marker", unfinished / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    config = unfinished / "config.yaml"
    if what == "composition":
        put(content["widefield"]["composition"], "task.loss", node("os.mkdir", path=str(marker)))
    elif what == "loops":
        del content["loops"]["fit_loop"]["epoch_progress"]
    elif what == "epochs":
        content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] = None
    elif what == "callbacks":
        content["callbacks"]["ModelCheckpoint"] = {"best_model_path": "s3://bucket/file"}
    elif what == "state":
        del content["optimizer_states"]
    elif what == "pickle":
        content["extra"] = Runs(marker)
    elif what == "config":
        text = config.read_text().replace("name: audio_folder", "name: ${oc.env:WIDEFIELD_TEST_SECRET}")
        config.write_text(text)
    elif what == "yaml":
        config.write_text(f"task: !!python/object/apply:os.mkdir ['{marker}']\n")
    else:
        config.unlink()
    torch.save(content, last)
    with pytest.raises(SystemExit) as stop:
        act(*GOES_ON, f"resume={unfinished}", folder="unfinished")
    assert stop.value.code == 1
    assert not marker.exists()
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err + caplog.text


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_report_runs_nothing(run: Path, act: Act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEFIELD_TEST_SECRET", SECRET)
    marker = tmp_path / "marker"
    tag = f"!!python/object/apply:os.mkdir ['{marker}']"
    for number, text in enumerate(
        (tag, "a: " + "[" * 5000, "task: {mode: '${oc.env:WIDEFIELD_TEST_SECRET}'}")
    ):
        folder = tmp_path / "runs" / str(number)
        (folder / ".hydra").mkdir(parents=True)
        shutil.copy(run / "result.json", folder)
        (folder / "config.yaml").write_text(text)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- 'seed={number}'\n- {tag}\n")
    (tmp_path / "runs" / "sweep").mkdir()
    (tmp_path / "runs" / "sweep" / "sweep.json").write_text('{"jobs": [{"evil": 1}]}')
    act("action=report", f"input={tmp_path / 'runs'}", folder="report")
    assert not marker.exists()
    page = "".join(
        file.read_text() for file in tmp_path.rglob("*") if file.suffix in (".html", ".csv", ".md")
    )
    assert page
    assert SECRET not in page


@pytest.mark.parametrize("name", ["in1k", "file"])
def test_official_weights_run_nothing(
    name: str,
    act: Act,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file from the hub is a file like any other."""
    import huggingface_hub

    file, marker = tmp_path / "weights.pth", tmp_path / "marker"
    torch.save({"model": {"x": Runs(marker)}}, file)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: str(file))
    weights = name if name == "in1k" else str(file)
    words = ("trainer=cpu", "task=audio_folder", "backbone=unireplknet_a", f"backbone.pretrained={weights}")
    said = refused(act, caplog, capsys, *words, "task.data.limit=24")
    assert not marker.exists()
    assert "mkdir" in said


# -- a sweep's folder --------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    from tests_support import ROOT

    from workbench.sweeps.folder import Job, SweepFolder

    words = [
        *("task=esc50", "seed=0,1", "+note='a b'", "backbone.model.depths=[1,1,1,1]"),
        *("task.loss={_target_: tasks.losses.CrossEntropy}", "task@task.other=esc50", "optimizer.lr=1e-3"),
    ]
    folder = SweepFolder(
        tmp_path / "sweep", "config", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], words, "."
    )
    folder.jobs = [Job(f"{seed}_seed-{seed}", ["task=esc50", f"seed={seed}"]) for seed in (0, 1)]
    folder.take_snapshot([ROOT / "conf"])
    folder.save()
    return folder.path


def test_a_sweep_of_ones_own_goes_on(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.conf_folders import CONF
    from workbench.sweeps.words import expand_resume

    monkeypatch.chdir(sweep.parent)
    task = sweep / "conf" / "task" / "esc50.yaml"
    task.write_text(task.read_text() + "\nmore: ${task.data.seconds}\nrun: ${mode_of:${task.monitor}}\n")
    default = sweep / "conf" / "hydra" / "default.yaml"
    default.write_text("job_logging: {formatters: {simple: {'()': os.system}}}\n")
    assert expand_resume([f"sweep.resume={sweep}"])
    assert default.read_bytes() == (CONF / "hydra" / "default.yaml").read_bytes(), "the installed one"


WORDS = (
    "trainer.logger={_target_: os.system, command: x}",
    "+x={a: [{_target_: os.system}]}",
    "action._target_=os.system",
    "hydra.job.env_set.PYTHONSTARTUP=x.py",
    "+hydra.callbacks.x._target_=os.system",
    "hydra.searchpath=[file:///tmp]",
    "hydra.launcher.setup=[rm]",
    "hydra.launcher={setup: [rm]}",
    "hydra/job_logging=mine",
    "task.name=${oc.env:HOME}",
    "task.name='${oc.decode:${oc.env:HOME}}'",
    "--config-dir=/tmp",
    "-cd",
    "a=choice({_target_: os.system},1)",
    "experiment=choice(../../x,null)",
    "+modality.augment.raw={_target_: workbench.shard.shard}",
    "= =",
)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("where", ["words", "hydra_words", "jobs"])
def test_a_crafted_record_of_a_sweep_is_refused(word: str, where: str, sweep: Path) -> None:
    from workbench.errors import UsageError
    from workbench.sweeps.words import expand_resume

    record = json.loads((sweep / "sweep.json").read_text())
    (record["jobs"][0]["overrides"] if where == "jobs" else record[where]).append(word)
    (sweep / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="is refused"):
        expand_resume([f"sweep.resume={sweep}"])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("action/fit.yaml", "name: fit\n_target_: os.system\n"),
        ("task/esc50.yaml", "name: x\ndata: {nested: [{_target_: os.system}]}\n"),
        ("local/default.yaml", "# @package _global_\ntrainer: {callbacks: {_target_: os.system}}\n"),
        ("local/default.yaml", "# @package _global_\nhydra: {job: {env_set: {PYTHONSTARTUP: x}}}\n"),
        ("hydra/evil.yaml", "callbacks: {a: {b: c}}\n"),
        ("hydra/evil.yaml", "job_logging: {formatters: {simple: {'()': os.system}}}\n"),
        ("task/esc50.yaml", "defaults: [../../../evil]\n"),
        ("task/esc50.yaml", "name: x\nloss: {_target_: workbench.shard.shard}\n"),
        ("paths/default.yaml", "runs: ${oc.env:HOME}\n"),
        ("paths/default.yaml", "runs: ${${x}:HOME}\n"),
        ("paths/default.yaml", "runs: !!python/object/apply:os.mkdir [x]\n"),
        ("paths/default.yaml", "runs: " + "[" * 5000),
    ],
)
def test_a_crafted_snapshot_is_refused(file: str, text: str, sweep: Path) -> None:
    from workbench.errors import UsageError
    from workbench.sweeps.words import expand_resume

    target = sweep / "conf" / file
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)
    with pytest.raises(UsageError, match=target.name):
        expand_resume([f"sweep.resume={sweep}"])


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"jobs": [{"folder": "../x", "overrides": []}]}', "1"])
def test_a_damaged_record_of_a_sweep_is_one_sentence(text: str, sweep: Path) -> None:
    from workbench.errors import UsageError
    from workbench.sweeps.words import expand_resume

    record = json.loads((sweep / "sweep.json").read_text())
    if "folder" in text:
        text = json.dumps(record | json.loads(text))
    (sweep / "sweep.json").write_text(text)
    with pytest.raises(UsageError, match=r"sweep\.json"):
        expand_resume([f"sweep.resume={sweep}"])
