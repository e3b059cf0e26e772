"""What timm expects of a model."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.models._hub import save_for_hf
from timm.optim import param_groups_layer_decay
from timm.utils import reparameterize_model
from torch import nn

import backbone
from backbone import SIZES, UniRepLKNet
from backbone.timm_models import TimmUniRepLKNet

Build = Callable[..., UniRepLKNet]
TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16), "kernel_sizes": (3, 7, 7, 7), "num_classes": 5}


def small(**overrides: Any) -> TimmUniRepLKNet:
    """A network of one block a stage, as timm would get it."""
    torch.manual_seed(0)
    return TimmUniRepLKNet(**(TINY | {"layer_scale_init_value": 0.5} | overrides))


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, marks=pytest.mark.slow) if dims[0] > 96 else size
        for size, (_, dims) in SIZES.items()
    ],
)
def test_every_size_is_registered(size: str) -> None:
    assert timm.is_model(size)
    with torch.device("meta"):
        model = timm.create_model(size, in_chans=1, num_classes=35, drop_path_rate=0.1)
    assert isinstance(model, UniRepLKNet)
    assert (model.depths, model.dims) == SIZES[size]
    assert (model.in_chans, model.num_classes, model.drop_path_rate) == (1, 35, 0.1)
    assert timm.get_pretrained_cfg(size).hf_hub_filename in backbone.checkpoints.PUBLISHED[size].values()


def test_features_only() -> None:
    model = timm.create_model("unireplknet_a", in_chans=1, features_only=True, out_indices=(1, -1))
    assert (model.feature_info.channels(), model.feature_info.reduction()) == ([80, 320], [8, 32])
    with torch.no_grad():
        features = model.eval()(torch.randn(1, 1, 64, 32))
    assert [tuple(f.shape) for f in features] == [(1, 80, 8, 4), (1, 320, 2, 1)]
    with torch.device("meta"):
        assert len(timm.create_model("unireplknet_t", features_only=True).feature_info.channels()) == 4


def test_arguments() -> None:
    with torch.device("meta"):
        assert timm.create_model("unireplknet_t", num_classes=0).num_classes == 0
        assert timm.create_model("unireplknet_t").num_classes == 1000
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            timm.create_model("unireplknet_t", disable_iGEMM=True)
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            backbone.unireplknet_t(disable_iGEMM=True)


def test_pretrained_goes_through_the_same_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = backbone.unireplknet_a()
    path = tmp_path / "weights.pth"
    torch.save({"model": source.state_dict()}, path)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *args, **kwargs: str(path))
    model = timm.create_model("unireplknet_a", pretrained=True, in_chans=1, num_classes=4)
    assert torch.equal(model.stages[3][1].se.up.weight, source.stages[3][1].se.up.weight)
    assert model.downsample_layers[0][0].weight.shape[1] == 1
    features = timm.create_model("unireplknet_a", pretrained=True, features_only=True)
    assert torch.equal(features.model.stages[3][1].se.up.weight, source.stages[3][1].se.up.weight)


def test_layer_decay(tiny: Build) -> None:
    model = tiny(depths=(1, 2, 1, 1))
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    expected = {
        "downsample_layers.0.3.weight": 0,
        "stages.0.0.gamma": 1,
        "downsample_layers.1.0.weight": 2,
        "stages.1.0.se.up.weight": 2,
        "stages.1.1.dwconv.lk_origin.weight": 3,
        "downsample_layers.2.0.bias": 4,
        "stages.2.0.gamma": 4,
        "stages.3.0.gamma": 5,
        "norm.weight": 6,
        "head.weight": 6,
    }
    assert {name: layers[name] for name in expected} == expected
    assert set(layers) == {name for name, _ in model.named_parameters()}
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert [
        coarse[n] for n in ("downsample_layers.0.0.bias", "stages.0.0.gamma", "downsample_layers.1.0.bias")
    ] == [0, 1, 2]
    assert coarse["head.bias"] == 5

    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scales = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(scales) == len(list(model.parameters()))
    assert scales[id(model.head.weight)] == (1.0, 0.05)
    assert scales[id(model.downsample_layers[0][0].weight)] == (0.5**6, 0.05)
    assert scales[id(model.stages[3][0].act[1].gamma)] == (0.5, 0.05)


def test_classifier_can_be_replaced(tiny: Build) -> None:
    model = tiny(head_init_scale=0.5).to(torch.float64)
    norm, width = model.norm, model.num_features
    model.reset_classifier(3)
    assert model.get_classifier() is model.head
    assert (model.num_classes, model.norm is norm) == (3, True)
    assert model(torch.randn(2, 2, 32, 32, dtype=torch.float64)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(torch.randn(2, 2, 32, 32, dtype=torch.float64)).shape == (2, width)
    assert not [name for name in model.state_dict() if name.startswith(("norm", "head"))]
    model.reset_classifier(4)
    assert model.head.weight.dtype == torch.float64
    with pytest.raises(ValueError, match="average pooling"):
        model.reset_classifier(4, "max")
    with pytest.raises(ValueError, match="feature_norms"):
        tiny(feature_norms=True).reset_classifier(4)


def test_forward_intermediates(tiny: Build) -> None:
    model, x = tiny().eval(), torch.randn(1, 2, 32, 32)
    last, chosen = model.forward_intermediates(x, indices=2)
    assert [c.shape[1] for c in chosen] == [12, 16]
    torch.testing.assert_close(last, chosen[-1])
    for wrong in ({"indices": [4]}, {"norm": True}, {"output_fmt": "NLC"}):
        with pytest.raises(ValueError, match=r"indices|feature_norms|NCHW"):
            model.forward_intermediates(x, **wrong)


# -- the model that timm builds: the same parameters, timm's methods


def test_features_are_one_map_for_timm_and_four_for_widefield() -> None:
    ours, theirs = (
        backbone.unireplknet_a(num_classes=7).eval(),
        timm.create_model("unireplknet_a", num_classes=7),
    )
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.eval().state_dict())
    x = torch.randn(2, 3, 64, 40)
    with torch.no_grad():
        maps, last = ours.forward_features(x), theirs.forward_features(x)
        assert ([m.shape[1] for m in maps], last.shape) == ([40, 80, 160, 320], (2, 320, 2, 2))
        torch.testing.assert_close(last, maps[-1])
        torch.testing.assert_close(theirs(x), ours(x))
        torch.testing.assert_close(theirs.forward_head(last), ours(x))
        pre_logits = theirs.forward_head(last, pre_logits=True)
    assert pre_logits.shape == (2, theirs.head_hidden_size) == (2, theirs.num_features)
    torch.testing.assert_close(theirs.get_classifier()(pre_logits), theirs(x))


@pytest.mark.parametrize("remove", [{"num_classes": 0}, {}])
def test_without_classifier_the_output_is_that_before_it(remove: dict[str, int]) -> None:
    full = small().eval()
    with torch.no_grad():
        full.norm.weight.uniform_(0.5, 2.0)
    bare = small(**remove).eval()
    bare.load_state_dict(full.state_dict(), strict=False)
    if not remove:
        bare.reset_classifier(0)
    assert (bare.num_classes, type(bare.get_classifier())) == (0, nn.Identity)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(bare(x), full.forward_head(full.forward_features(x), pre_logits=True))


@pytest.mark.parametrize("name", ["avg", "max", "avgmax", "fast", "fastmax", ""])
def test_global_pool(name: str) -> None:
    model, x = small(global_pool=name).eval(), torch.randn(2, 3, 64, 96)
    last = model.forward_features(x)
    means, maxima = last.mean((2, 3)), last.amax((2, 3))
    pooled = {"max": maxima, "fastmax": maxima, "avgmax": (means + maxima) / 2}.get(name, means)
    if name:
        torch.testing.assert_close(model(x), model.head(model.norm(pooled)))
    else:
        assert model(x).shape == (2, 5, 2, 3)
        pixel = model.head(model.norm(last[:, :, 1, 2]))
        torch.testing.assert_close(model(x)[:, :, 1, 2], pixel)
    model.reset_classifier(3)
    assert model.global_pool.pool_type == name
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 16, 2, 3)
    model.reset_classifier(3, "max")
    torch.testing.assert_close(model(x), model.head(model.norm(maxima)))
    assert all(not m.training for m in model.modules())


def test_drop_rate_acts_before_the_classifier_in_training() -> None:
    model, features = small(drop_rate=0.5), torch.randn(64, 16, 2, 2)
    dropped = model.forward_head(features, pre_logits=True) == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert not (model.eval().forward_head(features, pre_logits=True) == 0).any()
    assert torch.equal(model.forward_head(features), model.forward_head(features))


def test_arguments_of_timm() -> None:
    with torch.device("meta"):
        model = timm.create_model("unireplknet_t", drop_rate=0.2, global_pool="max", img_size=(96, 160))
    assert (model.drop_rate, model.global_pool.pool_type) == (0.2, "max")
    assert timm.create_model("unireplknet_a", img_size=96, device="meta").head.weight.is_meta
    assert small(dtype=torch.float64)(torch.randn(2, 3, 40, 56, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop_rate": 1.0},
        {"drop_rate": -0.1},
        {"global_pool": "mean"},
        {"global_pool": "catavgmax"},
        {"img_size": 0},
        {"img_size": True},
        {"img_size": 96.0},
        {"img_size": (96,)},
        {"img_size": (96, -1)},
        {"img_size": "96"},
    ],
)
def test_wrong_arguments_of_timm_are_one_clear_error(wrong: dict[str, Any]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{next(iter(wrong))} must"):
        timm.create_model("unireplknet_a", **wrong)


def test_a_failed_reset_changes_nothing() -> None:
    model = small(global_pool="max")
    head = model.head
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(3, "catavgmax")
    assert (model.head is head, model.num_classes, model.global_pool.pool_type) == (True, 5, "max")
    normed = small(feature_norms=True)
    with pytest.raises(ValueError, match="feature_norms"):
        normed.reset_classifier(4, "max")
    assert normed.global_pool.pool_type == "avg"


@pytest.mark.parametrize("feature_norms", [False, True])
@pytest.mark.parametrize("indices", [[0], [1, 3], [-2], 4])
def test_pruning_leaves_what_the_features_need(indices: int | list[int], feature_norms: bool) -> None:
    full = small(feature_norms=feature_norms)
    pruned = copy.deepcopy(full)
    x = torch.randn(2, 3, 32, 32)
    expected = full.eval().forward_intermediates(x, indices, intermediates_only=True)
    taken = pruned.prune_intermediate_layers(indices, prune_norm=True)
    features = pruned.eval().forward_intermediates(x, taken, intermediates_only=True)
    torch.testing.assert_close(features, expected)
    sum(f.sum() for f in features).backward()
    assert [n for n, p in pruned.named_parameters() if p.grad is None] == []
    torch.testing.assert_close(pruned.forward_features(x), features[-1])
    pruned.reset_classifier(0)
    torch.testing.assert_close(pruned(x), features[-1].mean((2, 3)))
    if not feature_norms:
        pruned.reset_classifier(3)
        assert pruned(x).shape == (2, 3)


def test_early_features_cost_no_later_stage() -> None:
    model, calls = small().eval(), []
    model.stages[2].register_forward_hook(lambda *_: calls.append(2))
    x = torch.randn(1, 3, 32, 32)
    last, (first,) = model.forward_intermediates(x, [0], norm=True, stop_early=True)
    assert (torch.equal(last, first), calls) == (True, [])
    last, _ = model.forward_intermediates(x, [0])
    torch.testing.assert_close(last, model.forward_features(x))
    for wrong in ({"indices": [4]}, {"output_fmt": "NLC"}):
        with pytest.raises(ValueError, match=r"indices|NCHW"):
            model.forward_intermediates(x, **wrong)
    hooked = timm.create_model("unireplknet_a", features_only=True, feature_cls="hook")
    assert [f.shape[1] for f in hooked.eval()(x)] == [40, 80, 160, 320]


@pytest.mark.parametrize("features_only", [False, True])
def test_timm_reparameterizes(features_only: bool, shake: Callable[[nn.Module], None]) -> None:
    model = timm.create_model("unireplknet_a", features_only=features_only)
    shake(model)
    merged, x = reparameterize_model(model.eval()), torch.randn(1, 3, 64, 64)
    network = merged.model if features_only else merged
    assert network.deploy
    assert not [n for n, _ in merged.named_parameters() if "dil_conv" in n]
    with torch.no_grad():
        torch.testing.assert_close(merged(x), model(x), rtol=1e-3, atol=1e-3)
    if not features_only:
        again = timm.create_model("unireplknet_a", deploy=True)
        again.load_state_dict(merged.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("global_pool", [pytest.param("avg", marks=pytest.mark.slow), ""])
def test_compiles_as_one_graph(global_pool: str) -> None:
    model, x = small(global_pool=global_pool, drop_rate=0.1).eval(), torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_train_form_weights_merge_into_a_deploy_form_model(tmp_path: Path) -> None:
    source = backbone.unireplknet_a(num_classes=3)
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    for classes, pool in ((3, "max"), (0, "")):
        model = timm.create_model("unireplknet_a", num_classes=classes, global_pool=pool, deploy=True)
        report = model.load_pretrained(tmp_path / "weights.pth")
        assert sorted(report.left_out) == ([] if classes else ["head.bias", "head.weight"])
        assert torch.equal(model.norm.weight, source.norm.weight)


@pytest.mark.parametrize(
    ("name", "side", "classes", "crop"),
    [
        ("unireplknet_a", 224, 1000, (0.875, "center")),
        pytest.param(*("unireplknet_s", 224, 1000, (0.875, "center")), marks=pytest.mark.slow),
        ("unireplknet_s.in22k_to_in1k", 384, 1000, (1.0, "squash")),
        pytest.param(*("unireplknet_s.in22k", 224, 21841, (0.875, "center")), marks=pytest.mark.slow),
        pytest.param(*("unireplknet_b.in22k", 224, 21841, (0.875, "center")), marks=pytest.mark.slow),
        pytest.param(*("unireplknet_l.in22k", 192, 21841, (0.875, "center")), marks=pytest.mark.slow),
        ("unireplknet_xl.in22k", 192, 21841, (0.875, "center")),
        pytest.param(*("unireplknet_xl", 384, 1000, (1.0, "squash")), marks=pytest.mark.slow),
    ],
)
def test_preprocessing_of_the_published_weights(
    name: str, side: int, classes: int, crop: tuple[float, str]
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    config = resolve_model_data_config(model)
    assert config["input_size"] == (3, side, side)
    assert (config["crop_pct"], config["crop_mode"]) == crop
    assert (config["interpolation"], config["mean"], config["std"]) == (
        "bicubic",
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
    assert model.default_cfg["pool_size"] == (side // 32, side // 32)
    assert model.num_classes == classes
    x = torch.empty(1, 3, side, side, device="meta")
    assert model.forward_features(x).shape == (1, model.num_features, *model.default_cfg["pool_size"])


def test_squash_shows_the_whole_picture() -> None:
    with torch.device("meta"):
        config = resolve_model_data_config(timm.create_model("unireplknet_s.in22k_to_in1k"))
    picture = Image.new("RGB", (800, 400))
    picture.paste((255, 255, 255), (0, 0, 100, 400))  # the left eighth, which a central square would not show
    pixels = timm.data.create_transform(**config)(picture)
    assert pixels.shape == (3, 384, 384)
    assert pixels[0, 192, 10] > 2 > -2 > pixels[0, 192, 100]


def test_overlay_and_checkpoint_path(tmp_path: Path) -> None:
    source = timm.create_model("unireplknet_a", num_classes=1000)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": source.state_dict()}, path)
    for options in ({"num_classes": 4, "in_chans": 1}, {"features_only": True}, {"num_classes": 0}):
        model = timm.create_model(
            "unireplknet_a", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **options
        )
        network = model.model if "features_only" in options else model
        assert torch.equal(network.stages[3][1].se.up.weight, source.stages[3][1].se.up.weight)
    model = timm.create_model("unireplknet_a", checkpoint_path=path)
    assert torch.equal(model.head.weight, source.head.weight)


def test_saved_as_a_folder_and_built_from_it(tmp_path: Path) -> None:
    model = timm.create_model(
        "unireplknet_a", num_classes=3, in_chans=1, global_pool="max", img_size=48
    ).eval()
    model.reset_classifier(6, "avg")
    save_for_hf(model, str(tmp_path))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 1, 48, 48)
    torch.testing.assert_close(again(x), model(x))
