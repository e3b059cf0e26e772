"""Every YAML below conf/ composes, and what it describes can be built."""

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, get_method, instantiate
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from tests_support import ROOT

from workbench.build import build_network
from workbench.checking import check_composition, tasks_of
from workbench.errors import UsageError
from workbench.extras import _installed
from workbench.instantiation import check_settings, check_types

CONF = ROOT / "conf"
Compose = Callable[..., DictConfig]


def names(group: str) -> list[str]:
    """Options of a group, as typed on the command line."""
    folder = CONF / group
    files = sorted(file for file in folder.rglob("*.yaml") if file.name[0] != "_")
    return [str(file.relative_to(folder).with_suffix("")) for file in files]


MODALITIES = [name for name in names("modality") if "/" not in name]


@cache
def modality_of(task: str) -> str:
    for name in MODALITIES:
        if task in tasks_in(name):
            return name
    raise AssertionError(f"no modality has a task {task}")


tasks_in = cache(tasks_of)  # which reads all their files


TASKS = [name for name in names("task") if "/" not in name and name not in names("modality")]


def test_no_group_is_forgotten() -> None:
    tested = {"modality", "task", "backbone", "optimizer", "scheduler", "trainer", "callbacks", "logger"}
    tested |= {"paths", "action", "experiment", "debug", "hydra"}
    assert {folder.name for folder in CONF.iterdir() if folder.is_dir()} <= tested | {"sweep", "local"}


def test_defaults_resolve(composed: Compose) -> None:
    cfg = composed("paths.run=run")
    OmegaConf.resolve(cfg)
    assert OmegaConf.missing_keys(cfg) == set()


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_file_says_what_it_is(file: Path) -> None:
    first = next(line for line in file.read_text().splitlines() if line != "# @package _global_")
    assert first.startswith("# "), "the first line says what the file is for"
    used_outside = "hydra:" in file.read_text() and "hydra" not in file.relative_to(CONF).parts
    assert not used_outside or "${hydra:" not in file.read_text(), "${hydra:…} belongs below conf/hydra only"


@pytest.mark.parametrize("modality", MODALITIES)
def test_modality_brings_its_default_task(composed: Compose, modality: str) -> None:
    cfg = composed(f"modality={modality}")
    check_composition(cfg)
    check_settings(cfg)
    assert cfg.modality.name == modality == cfg.task.modality
    assert cfg.task.name in tasks_of(modality)


@pytest.mark.parametrize("task", TASKS)
def test_task_builds(composed: Compose, task: str) -> None:
    cfg = composed(f"modality={modality_of(task)}", f"task={task}", "paths.samples=nowhere")
    check_composition(cfg)
    check_settings(cfg)
    assert cfg.task.name == task
    instantiate(cfg.task.data)
    assert instantiate(cfg.task.model, _partial_=True).func is get_class(cfg.task.model._target_)


@pytest.mark.parametrize("backbone", names("backbone"))
def test_backbone_builds(composed: Compose, backbone: str) -> None:
    words = ["backbone.name=resnet18"] if backbone == "timm" else []
    cfg = composed(f"backbone={backbone}", *words)
    assert words or cfg.backbone.name == backbone
    check_types(cfg.backbone)
    with torch.device("meta"):
        model = instantiate(cfg.backbone.model, in_chans=3)
    if "dims" in cfg.backbone.model:
        assert model.num_features == cfg.backbone.model.dims[-1]
    header = (CONF / "backbone" / f"{backbone}.yaml").read_text().partition("defaults:")[0]
    if found := re.search(r"([\d.]+)M params", header):
        # Merged networks are a little smaller than those that are trained.
        millions = sum(value.numel() for value in model.parameters()) / 1e6
        assert millions == pytest.approx(float(found[1]), rel=0.08)


STEPS, PER_EPOCH = 10, 5


def factor_of(node: DictConfig, step: int) -> float:
    """Factor on the learning rate at a step, from what a schedule's file says."""
    name = str(node._target_).rpartition(".")[2]
    if name == "cosine":
        warmup = node.warmup_epochs * PER_EPOCH
        if step < warmup:
            return float(step / (warmup - 1) if node.from_zero else (step + 1) / warmup)
        half = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))
        return float(node.min_ratio + (1 - node.min_ratio) * half)
    if name == "exponential":
        return float(node.gamma ** max(0, step // PER_EPOCH - node.start_epoch + 1))
    if name == "poly":
        warmup = min(node.warmup_steps, STEPS // 2)
        rise = 1 - (1 - step / warmup) * (1 - node.warmup_ratio) if step < warmup else 1
        return float((node.min_ratio + (1 - node.min_ratio) * (1 - step / STEPS) ** node.power) * rise)
    if name == "milestones":
        warmup = min(node.warmup_steps, STEPS // 2)
        rise = 1 - (1 - step / warmup) * (1 - node.warmup_ratio) if step < warmup else 1
        return float(rise * node.gamma ** len([epoch for epoch in node.epochs if step // PER_EPOCH >= epoch]))
    assert name == "constant", f"the formula of {name} belongs into this test"
    return 1.0


@pytest.mark.parametrize(
    "words", [(), ("scheduler.start_epoch=1",), ("scheduler.from_zero=true",), ("scheduler.epochs=[1]",)]
)
@pytest.mark.parametrize("scheduler", names("scheduler"))
@pytest.mark.parametrize("optimizer", names("optimizer"))
def test_partials_fit_a_network(
    composed: Compose, optimizer: str, scheduler: str, words: tuple[str, ...]
) -> None:
    node = composed(f"scheduler={scheduler}").scheduler
    if not all(word.partition("=")[0].removeprefix("scheduler.") in node for word in words):
        pytest.skip("this schedule has no such option")
    cfg = composed(f"optimizer={optimizer}", f"scheduler={scheduler}", "backbone=widefield_nano", *words)
    check_settings(cfg)
    network = build_network(cfg, {"class_names": ["a", "b"], "multilabel": False})
    made = instantiate(cfg.optimizer)(network)
    schedule = instantiate(cfg.scheduler)(made, total_steps=STEPS, steps_per_epoch=PER_EPOCH)
    assert (
        type(made)
        is {
            "adamw": torch.optim.AdamW,
            "adam": torch.optim.Adam,
            "sgd": torch.optim.SGD,
        }[cfg.optimizer.opt]
    )
    for group in made.param_groups:
        matrices = {p.ndim > 1 for p in group["params"]}
        decays = cfg.optimizer.decay_all or matrices == {True}
        assert group["weight_decay"] == (cfg.optimizer.weight_decay if decays else 0)
        assert tuple(group.get("betas", ())) == tuple(cfg.optimizer.get("betas") or ())
        assert group.get("momentum") == cfg.optimizer.get("momentum")
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(network.parameters()))
    for step in range(STEPS):
        wanted = cfg.optimizer.lr * factor_of(cfg.scheduler, step)
        assert [group["lr"] for group in made.param_groups] == pytest.approx(
            [wanted] * len(made.param_groups)
        )
        made.step()
        schedule.step()


@pytest.mark.parametrize("trainer", names("trainer"))
def test_trainer_arguments_exist(composed: Compose, trainer: str) -> None:
    import inspect

    node = composed(f"trainer={trainer}").trainer
    known = inspect.signature(Trainer.__init__).parameters
    assert {str(key) for key in node if key != "_target_"} <= set(known)
    check_types(node)


@pytest.mark.parametrize("callbacks", names("callbacks"))
def test_callbacks_build(composed: Compose, callbacks: str) -> None:
    for node in composed(f"callbacks=[{callbacks}]", "paths.run=run").callbacks.values():
        for key in OmegaConf.missing_keys(node):  # the user's to say
            node[key.rpartition(".")[2]] = 1
        check_types(node)
        assert isinstance(instantiate(node), Callback)


@pytest.mark.parametrize("logger", names("logger"))
def test_loggers_build(composed: Compose, logger: str, tmp_path: Path) -> None:
    cfg = composed(f"logger=[{logger}]", f"paths.run={tmp_path}")
    if logger in ("wandb", "mlflow") and not _installed(logger):
        with pytest.raises(UsageError, match=rf"pip install -e '.\[{logger}\]'"):
            check_composition(cfg)
        return
    check_settings(cfg)
    for node in cfg.logger.values():
        assert isinstance(instantiate(node), Logger)


def test_a_task_may_have_a_default_learning_rate(composed: Compose) -> None:
    masks = ("modality=image", "task=mask_folder")
    assert composed("modality=image").optimizer.lr == 2e-3
    cfg = composed(*masks)
    assert cfg.optimizer.lr == cfg.task.lr != 2e-3
    assert composed(*masks, "optimizer.lr=1e-4").optimizer.lr == 1e-4


def test_a_task_may_have_a_default_warm_up(composed: Compose) -> None:
    boxes = ("modality=image", "task=box_folder")
    assert composed("modality=image").scheduler.warmup_epochs == 1
    cfg = composed(*boxes)
    assert cfg.scheduler.warmup_epochs == cfg.task.warmup_epochs < 1
    assert composed(*boxes, "scheduler.warmup_epochs=2").scheduler.warmup_epochs == 2
    assert composed("experiment=detection/bccd").scheduler.warmup_epochs == 10


def test_a_task_may_have_a_default_number_of_epochs(composed: Compose) -> None:
    boxes = ("modality=image", "task=box_folder")
    assert composed("modality=image").trainer.max_epochs == 20
    cfg = composed(*boxes)
    assert cfg.trainer.max_epochs == cfg.task.max_epochs != 20
    assert composed(*boxes, "trainer.max_epochs=3").trainer.max_epochs == 3
    assert composed("experiment=detection/bccd").trainer.max_epochs == 40


@pytest.mark.parametrize("action", names("action"))
def test_actions_exist(composed: Compose, action: str) -> None:
    cfg = composed(f"action={action}")
    assert cfg.action.name == action
    assert callable(get_method(cfg.action._target_))


@pytest.mark.parametrize("debug", names("debug"))
def test_debug_wins(composed: Compose, debug: str) -> None:
    cfg = composed(f"debug={debug}", "experiment=audio/speech_commands_s")
    assert cfg.trainer.max_epochs < 100
    check_composition(cfg)
    check_settings(cfg)


@pytest.mark.parametrize("experiment", names("experiment"))
def test_experiments_compose(composed: Compose, experiment: str) -> None:
    cfg = composed(f"experiment={experiment}")
    check_composition(cfg)
    check_settings(cfg)
    folder = experiment.partition("/")[0]
    assert {"segmentation": "image", "detection": "image"}.get(folder, folder) == cfg.modality.name
    header = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert f"experiment={experiment}" in header, "the header gives the command"
    instantiate(cfg.modality.embedder)
    for node in cfg.modality.augment.values():
        instantiate(node)
    for node in cfg.callbacks.values():
        assert node is None or "_target_" in node


def test_wrong_pair_names_the_tasks(composed: Compose) -> None:
    cfg = composed("task=speech_commands")
    cfg.modality.name = "video"
    with pytest.raises(UsageError, match="reads audio, not video: say modality=audio"):
        check_composition(cfg)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        *(
            (("modality=image", "task=box_folder"), f"task/head={name}")
            for name in names("task/head")
            if "rcnn" in name
        ),
        *(
            (("modality=image", "task=mask_folder"), f"task/head={name}")
            for name in ("fcn", "mlp", "upernet")
        ),
        (("modality=image", "task=box_folder"), "task/head=fcos"),
        *((("modality=image", "task=mask_folder"), f"task/loss={name}") for name in names("task/loss")),
        *((("modality=time_series",), f"modality/embedder={name}") for name in ("fold", "token_map")),
        *(
            (("modality=point_cloud",), f"modality/embedder={name}")
            for name in ("point_prompt", "projected_points")
        ),
    ],
)
def test_parts_have_settings_of_their_types(composed: Compose, words: tuple[str, ...], kind: str) -> None:
    check_settings(composed(*words, kind))
