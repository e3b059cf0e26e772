"""What timm expects of a model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay

import backbone
from backbone import SIZES, UniRepLKNet

Build = Callable[..., UniRepLKNet]


@pytest.mark.parametrize("size", SIZES)
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
        for unknown in ({"disable_iGEMM": True}, {"global_pool": "max"}):
            with pytest.raises(TypeError, match="unexpected keyword argument"):
                timm.create_model("unireplknet_t", **unknown)
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
