"""Other backbones in the workbench: every ready YAML on every modality; runs, their checkpoints and their probes."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from backbone.checkpoints import adapt_first_conv
from tasks.datasets.base import DataModule
from workbench.build import build_data, build_network, build_task
from workbench.conf_folders import CONF
from workbench.cost import count_macs
from workbench.other_backbone import leave_out_others_settings

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
MODALITIES = ("audio", "image", "point_cloud", "time_series", "video")
LIGHT = (
    "resnet18",
    "convnext_atto",
    "convnextv2_atto",
    "vit_tiny",
    "mambaout_femto",
    "fastvit_t8",
    "efficientnet_b0",
)
HEAVY = (
    "resnet50",
    "convnext_tiny",
    "swin_tiny",
    "deit3_small",
    "inception_next_tiny",
    "replknet_31b",
    "replknet_31l",
)
READY = [*LIGHT, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)]
SHORT = ("trainer=cpu", "trainer.max_epochs=1", "task.data.limit=12", "logger=csv")
VIT = ("backbone=timm", "backbone.name=vit_tiny_patch16_224", "+backbone.model.options.depth=4",
       "+backbone.model.options.embed_dim=32", "+backbone.model.options.num_heads=2")  # fmt: skip
KINDS = {
    "conv": (
        "backbone=timm",
        "backbone.name=convnext_atto",
        "+backbone.model.options.depths=[1,1,1,1]",
        "+backbone.model.options.dims=[16,16,32,32]",
    ),
    "transformer": VIT,
    "hybrid": (
        "backbone=fastvit_t8",
        "+backbone.model.options.layers=[1,1,1,1]",
        "+backbone.model.options.embed_dims=[16,16,32,32]",
    ),
}


@pytest.fixture(scope="module")
def data_of(composed: Compose, samples: Path) -> Callable[[str], DataModule]:
    """`data_of("audio")` -> a few samples of the embedded data of a modality, read once."""
    read: dict[str, DataModule] = {}

    def data(modality: str) -> DataModule:
        if modality not in read:
            words = ("task.data.limit=4", "task.data.batch_size=4", "task.data.num_workers=0")
            read[modality] = build_data(composed(f"modality={modality}", *words, f"paths.samples={samples}"))
        return read[modality]

    return data


def test_all_ready_backbones_are_tested() -> None:
    files = {file.stem for file in (CONF / "backbone").glob("*.yaml") if file.stem[0] != "_"}
    own = {name for name in files if name.startswith(("unireplknet", "widefield"))}
    assert files - own - {"timm"} == {*LIGHT, *HEAVY}


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("backbone", READY)
def test_two_steps_of_every_backbone_on_every_modality(
    backbone: str, modality: str, composed: Compose, data_of: Callable[[str], DataModule]
) -> None:
    data = data_of(modality)
    cfg = composed(
        f"modality={modality}", f"backbone={backbone}", "optimizer.lr=1e-3", "optimizer.layer_decay=0.9"
    )
    torch.manual_seed(0)
    task = build_task(cfg, data.info())
    batch = next(iter(data.loader("train")))
    assert task.make_optimizer is not None
    optimizer = task.make_optimizer(task.network)
    before = {name: value.clone() for name, value in task.network.named_parameters()}
    task.train()
    for _ in range(2):
        optimizer.zero_grad()
        loss = task.step(batch, "train")["loss"]
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
    moved = [
        not torch.equal(value, before[name])
        for name, value in task.network.named_parameters()
        if name.startswith("backbone.")
    ]
    assert np.mean(moved) > 0.9, "it learns from the stem to the last stage"
    predictions = task.eval().predict(batch.raw)
    assert len(predictions) == len(batch)


# -- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def run(
    request: pytest.FixtureRequest, composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / request.param
    words = ("modality=audio", "task=audio_folder", *KINDS[request.param], *SHORT)
    run_action(composed(*words, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


def result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def state(folder: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return content


def test_a_checkpoint_tests_as_its_run_did(run: Path, act: Act) -> None:
    tested = act("trainer=cpu", "action=test", f"ckpt={run}")
    assert result(tested)["metrics"]["test/acc"] == result(run)["metrics"]["test/acc"]
    assert result(tested)["metrics"]["test/loss"] == pytest.approx(
        result(run)["metrics"]["test/loss"], rel=1e-5
    )


def test_it_predicts_and_is_explained(
    run: Path, act: Act, samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = next(samples.rglob("*.wav"))
    predicted = act("trainer=cpu", "action=predict", f"ckpt={run}", f"input={clip}", folder="predicted")
    assert len(pd.read_csv(predicted / "predictions.csv")) == 1
    act("action=info", f"ckpt={run}", folder="info")
    said = capsys.readouterr().out
    assert "parameters (train form)" in said
    assert "MACs" in said
    assert "receptive field" not in said, "which is counted of convolutions in a row only"


@pytest.mark.slow
def test_both_forms_are_exported(run: Path, act: Act) -> None:
    folder = act("action=export", f"ckpt={run}", "action.formats=[torch_export,onnx]", folder="exported")
    assert (folder / "export" / "model.pt2").is_file()
    assert (folder / "export" / "model.onnx").is_file()


def test_a_program_is_exported(run: Path, act: Act) -> None:
    folder = act("action=export", f"ckpt={run}", "action.formats=[torch_export]", folder="exported")
    assert (folder / "export" / "model.pt2").is_file()


def test_probes(run: Path, act: Act, caplog: pytest.LogCaptureFixture) -> None:
    words = ("trainer=cpu", f"ckpt={run}", "action.inputs=4")
    (field,) = json.loads((act(*words, "action=probe_erf", folder="erf") / "erf.json").read_text())[
        "networks"
    ]
    assert 0 < field["areas"][0]["area_ratio"] <= field["areas"][-1]["area_ratio"] <= 1
    assert field["stride"] == (16 if run.name == "transformer" else 32)
    cka = json.loads(
        (act(*words, "action=probe_cka", "action.batch_size=4", folder="cka") / "cka.json").read_text()
    )
    assert np.allclose(np.diag(cka["pairs"][0]["cka"]), 1)
    kernels = ("trainer=cpu", f"ckpt={run}", "action=probe_kernels")
    if run.name != "transformer":
        blocks = json.loads((act(*kernels, folder="kernels") / "kernels.json").read_text())["blocks"]
        assert {block["kernel_size"] for block in blocks} >= {7}
        return
    with pytest.raises(SystemExit):
        act(*kernels, folder="kernels")
    assert "this network has no depthwise convolution" in caplog.text


@pytest.mark.slow
def test_shape_bias_and_robustness(act: Act) -> None:
    image = ("modality=image", "task.data.transforms.size=64", *VIT, *SHORT)
    made = act(*image)
    found = act("trainer=cpu", "action=probe_shape_bias", f"ckpt={made}", folder="shape")
    assert 0 <= json.loads((found / "shape_bias.json").read_text())["cue_share"] <= 1
    found = act("trainer=cpu", "action=probe_robustness", f"ckpt={made}", "action.corruptions=[noise]",
                "+action.severities.noise=[0.5]", folder="robust")  # fmt: skip
    assert len(json.loads((found / "robustness.json").read_text())["corruptions"]["noise"]["scores"]) == 2


def test_another_modality_starts_from_it(run: Path, act: Act) -> None:
    image = ("modality=image", "task.data.transforms.size=32", *KINDS[run.name], *SHORT)
    tuned = act(*image, f"init_from={run}", "freeze=[stages.0-1]", "optimizer.lr=0", folder="tuned")
    taken = json.loads((tuned / "init_from.json").read_text())
    first = {"conv": "stem.0", "transformer": "patch_embed.proj", "hybrid": "stem.0.conv_kxk.0.conv"}[
        run.name
    ]
    assert taken["backbone"]["adapted"][0] == f"{first}.weight (1 -> 3 input channels)"
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    name = f"network.backbone.model.{first}.weight"
    torch.testing.assert_close(state(tuned)[name], adapt_first_conv(best[name], 3))


def test_freezing_by_stages_and_by_own_names(
    act: Act, composed: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("modality=audio", "task=audio_folder", "backbone=resnet18", *SHORT)
    caplog.set_level(logging.INFO)
    frozen = act(*words, "freeze=[stem,stages.0,layer2]", folder="frozen")
    said = "freeze: backbone.model.conv1, backbone.model.bn1, backbone.model.layer1, backbone.model.layer2; "
    assert said in caplog.text
    assert state(frozen)["network.backbone.model.bn1.running_mean"].eq(0).all(), "statistics rest too"
    assert state(frozen)["network.backbone.model.layer2.1.bn2.running_mean"].eq(0).all()
    assert not state(frozen)["network.backbone.model.layer3.1.bn2.running_mean"].eq(0).all()
    with pytest.raises(SystemExit):
        act(*words, "freeze=layer5", folder="wrong")
    assert (
        "layer5 is not one of none, all, embedder, stem, stages.A and stages.A-B (A and B from 0 to 3)"
        in caplog.text
    )


@pytest.mark.parametrize("kind", ["conv", pytest.param("transformer", marks=pytest.mark.slow)])
def test_several_modalities_share_one(kind: str, act: Act) -> None:
    words = (
        *KINDS[kind],
        "experiment=joint/four_modalities",
        "task@task.members.audio.task=audio_folder",
        "~task.members.point_cloud",
        "~task.members.video",
        "task.data.batch_size=4",
        *SHORT,
    )
    made = act(*words)
    weights = state(made)
    names = [name for name in weights if name.startswith("members.audio.network.backbone.model.")]
    stage = next(name for name in names if "stages.1" in name or "blocks.1" in name)
    other = stage.replace("members.audio", "members.time_series")
    assert weights[stage].data_ptr() == weights[other].data_ptr()
    part = act("trainer=cpu", "action=test", "task=audio_folder", f"ckpt={made}", folder="part")
    assert result(part)["metrics"]["test/acc"] == result(made)["metrics"]["test/audio/acc"]


def test_published_weights_are_taken(
    composed: Compose,
    data_of: Callable[[str], DataModule],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    published = timm.create_model("resnet18", num_classes=1000)
    state = {name: value.clone() for name, value in published.state_dict().items()}
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))
    caplog.set_level(logging.INFO)
    cfg = composed("modality=video", "backbone=resnet18", "backbone.pretrained=true")
    network = build_task(cfg, data_of("video").info()).network
    assert torch.equal(
        network.backbone.state_dict()["model.layer4.1.conv2.weight"], state["layer4.1.conv2.weight"]
    )
    assert "conv1.weight (3 -> 6 input channels)" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [*LIGHT, *HEAVY])
def test_headers_give_the_multiply_accumulates(backbone: str, composed: Compose) -> None:
    header = (CONF / "backbone" / f"{backbone}.yaml").read_text().partition("defaults:")[0]
    network = instantiate(composed(f"backbone={backbone}").backbone.model, in_chans=3).reparameterize()
    wanted = float(re.findall(r"([\d.]+) GMAC", header)[0])
    assert count_macs(network, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(wanted, abs=0.06)


# -- wrong input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("backbone=timm",), "which of timm's networks? Say backbone.name=NAME"),
        (("backbone=timm", "backbone.name=resnet19"), "timm knows no network resnet19"),
        (("backbone=resnet18", "+backbone.model.options.colour=red"), "timm could not build resnet18"),
        (("backbone=resnet18", "backbone.pretrained=nowhere.pth"), "there is no checkpoint file"),
        (
            ("backbone=vit_tiny", "+backbone.model.options.patch_size=6", "modality=time_series"),
            "multiples of 4",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_training(
    words: tuple[str, ...], said: str, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        act(*words, *SHORT)
    (error,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said in error
    assert "\n" not in error


def test_what_is_done_to_maps_is_said_at_the_start(act: Act, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    act("modality=time_series", *KINDS["conv"], *SHORT)
    (said,) = [record.message for record in caplog.records if "are padded" in record.message]
    assert said.startswith("backbone: maps of ")


def test_a_checkpoint_may_not_name_what_timm_would_fetch(
    composed: Compose, samples: Path, act: Act, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = act("modality=audio", "task=audio_folder", *VIT, *SHORT)
    content = torch.load(made / "checkpoints" / "last.ckpt", weights_only=True)
    for key, value in (("name", "hf-hub:someone/network"), ("options", {"checkpoint_path": "x.pth"})):
        node = content["widefield"]["composition"]["backbone"]["model"]
        before = node[key]
        node[key] = value
        torch.save(content, tmp_path / "changed.ckpt")
        node[key] = before
        caplog.clear()
        with pytest.raises(SystemExit):
            act("trainer=cpu", "action=test", f"ckpt={tmp_path / 'changed.ckpt'}", folder="changed")
        (error,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
        assert "timm knows no network" in error or "is not for the network to say" in error


RECIPE = "experiment=segmentation/camvid"


def test_a_recipe_takes_another_backbone(composed: Compose, caplog: pytest.LogCaptureFixture) -> None:
    """What it says of its own network is left out, and said; what it says of every network is kept."""
    cfg = composed(RECIPE, "backbone=convnext_atto")
    assert cfg.backbone.model.feature_norms, "the recipe sets it"
    with caplog.at_level(logging.INFO, "widefield"):
        leave_out_others_settings(cfg)
    assert caplog.messages == [
        "backbone: convnext_atto has no feature_norms, layer_scale_init_value: left out"
    ]
    assert "feature_norms" not in cfg.backbone.model
    assert cfg.backbone.model.drop_path_rate == 0.1
    network = build_network(cfg, {"class_names": list("abc"), "palette": [[0, 0, 0]] * 3})
    assert network.backbone.feature_info[-1]["num_chs"] == 320


def test_only_what_other_backbones_know_is_left_out(composed: Compose) -> None:
    own = composed(RECIPE)
    before = dict(own.backbone.model)
    leave_out_others_settings(own)
    assert dict(own.backbone.model) == before
    cfg = composed(RECIPE, "backbone=convnext_atto", "+backbone.model.feature_norm=true")
    leave_out_others_settings(cfg)
    assert cfg.backbone.model.feature_norm, "nobody's setting is refused where the network is built"
