"""Arguments, shapes, small inputs, precision, memory, compilation, export."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from backbone import UniRepLKNet
from backbone.unireplknet import GRN, DropPath, LayerNorm2d, default_kernel_sizes, expand_kernel_sizes

Build = Callable[..., UniRepLKNet]


# -- arguments


@pytest.mark.parametrize(
    ("depths", "third"),
    [
        ((2, 2, 6, 2), (13,) * 6),
        ((2, 2, 8, 2), (13,) * 8),
        ((3, 3, 18, 3), (13, 3) * 9),
        ((3, 3, 27, 3), (13, 3, 3) * 9),
        ((1, 1, 1, 1), (13,)),
        ((1, 1, 36, 1), (13, 3, 3, 3) * 9),
    ],
)
def test_default_kernels(depths: tuple[int, ...], third: tuple[int, ...]) -> None:
    assert default_kernel_sizes(depths) == ((3,) * depths[0], (13,) * depths[1], third, (13,) * depths[3])


def test_arguments_may_be_lists_or_omegaconf_lists() -> None:
    config = OmegaConf.create(
        {"depths": [1, 1, 2, 1], "dims": [8, 8, 8, 8], "kernel_sizes": [3, 7, [13, 3], 0]}
    )
    model = UniRepLKNet(**config)
    assert model.kernel_sizes == expand_kernel_sizes(((3,), (7,), (13, 3), (0,)), (1, 1, 2, 1))
    assert copy.deepcopy(model).depths == (1, 1, 2, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel_sizes": (3, 7, 7, 8)}, "kernel size 8 in stage 4"),
        ({"kernel_sizes": (3, 7, 7)}, "four entries"),
        ({"kernel_sizes": (3, 7, 7, 7.0)}, "kernel size 7.0 in stage 4"),
        ({"kernel_sizes": (3, 7, 7, "13")}, "stage 4 has 1 blocks"),
        ({"kernel_sizes": 13}, "four entries"),
        ({"kernel_sizes": (3, 7, (7, 7), 7)}, "stage 3 has 1 blocks"),
        ({"depths": (1, 1, 1)}, "depths takes four integers"),
        ({"depths": (1, 0, 1, 1)}, "depths takes four integers"),
        ({"dims": (8, 8, 8, 2)}, "dims takes four integers of at least 4"),
        ({"dims": (8, 8, 8, 8.0)}, "dims takes four integers"),
        ({"stem_stride": 3}, "stem_stride"),
        ({"downsample_norm": "group"}, "downsample_norm is layer or batch"),
        ({"weight_init": "xavier"}, "weight_init official or fan_in"),
        ({"in_chans": 0}, "in_chans"),
        ({"num_classes": -1}, "num_classes"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"layer_scale_init_value": -1.0}, "layer_scale_init_value"),
    ],
)
def test_wrong_arguments_are_one_clear_error(tiny: Build, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**wrong)


def test_unknown_arguments_are_errors(tiny: Build) -> None:
    with pytest.raises(TypeError, match="disable_iGEMM"):
        tiny(disable_iGEMM=True)


def test_drop_path_grows_linearly(tiny: Build) -> None:
    model = tiny(depths=(1, 1, 2, 1), drop_path_rate=0.4)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])  # the first block drops nothing: no module


def test_drop_path_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 1, 1, 1)
    assert drop(x).mean().item() == pytest.approx(1.0, abs=0.05)
    assert drop(x).unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert drop.eval()(x) is x


# -- shapes


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2, 4]))
def test_features_of_any_input(height: int, width: int, stem_stride: int) -> None:
    model = UniRepLKNet(2, 3, (1, 1, 1, 1), (4, 4, 8, 8), (0, 3, 7, 13), stem_stride=stem_stride).eval()
    with torch.no_grad():
        features = model.forward_features(torch.randn(1, 2, height, width))
    assert [info["num_chs"] for info in model.feature_info] == [f.shape[1] for f in features]
    for info, feature in zip(model.feature_info, features, strict=True):
        stride = info["reduction"]
        assert feature.shape[2:] == (-(-height // stride), -(-width // stride))
        assert feature.isfinite().all()


def test_forms_without_classifier(tiny: Build) -> None:
    x = torch.randn(2, 2, 32, 32)
    plain, dense = tiny(num_classes=0).eval(), tiny(feature_norms=True).eval()
    assert not [n for n in plain.state_dict() if n.startswith(("norm", "head"))]
    assert {n.split(".")[0] for n in dense.state_dict()} == {
        "downsample_layers",
        "stages",
        "norm0",
        "norm1",
        "norm2",
        "norm3",
    }
    assert dense.num_classes == 0
    with torch.no_grad():
        torch.testing.assert_close(plain(x), plain.forward_features(x)[-1].mean((2, 3)))
        features = dense.forward_features(x)
    assert all(f.mean(1).abs().max() < 1e-5 for f in features)  # normalised over the channels


def test_layer_norm_is_over_channels() -> None:
    norm, x = LayerNorm2d(6), torch.randn(2, 6, 3, 5)
    deviation = x - x.mean(1, keepdim=True)
    expected = deviation / (deviation.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)


def test_a_layer_norm_enlarges_silence_and_a_batch_norm_does_not(tiny: Build) -> None:
    x = torch.randn(4, 2, 64, 64)
    x[..., 32:] *= 1e-3  # almost silent
    quiet = {}
    for norm in ("layer", "batch"):
        model = tiny(downsample_norm=norm, weight_init="fan_in").train()
        y = model.layer_outputs(x)["stem"]
        assert y.is_contiguous(memory_format=torch.channels_last)
        changes = y[..., 10:] - y[..., 10:].mean((0, 2, 3), keepdim=True)
        quiet[norm] = changes.std().item() / y[..., :6].std().item()
    assert quiet["layer"] > 0.3
    assert quiet["batch"] < 0.1


@pytest.mark.parametrize(("how", "expected"), [("official", 0.02), ("fan_in", 8**-0.5)])
def test_initial_weights(tiny: Build, how: str, expected: float) -> None:
    model = tiny(weight_init=how)
    linear = next(model.blocks()).pwconv1[1]
    assert linear.weight.std().item() == pytest.approx(expected, rel=0.15)
    assert not linear.bias.any()
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_grn_equals_its_definition_and_has_a_finite_gradient_at_zero() -> None:
    grn, x = GRN(6), torch.randn(2, 3, 5, 6, requires_grad=True)
    nn.init.normal_(grn.gamma)
    nn.init.normal_(grn.beta)
    energy = (x**2).sum((1, 2), keepdim=True).sqrt()
    expected = x * (grn.gamma * energy / (energy.mean(-1, keepdim=True) + 1e-6) + 1) + grn.beta
    torch.testing.assert_close(grn(x), expected)
    zero = torch.zeros(2, 3, 5, 6, requires_grad=True)
    grn(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()
    assert (
        GRN(6)(torch.full((1, 40, 40, 6), 3e4, dtype=torch.float16)).isfinite().all()
    )  # energy > fp16's maximum


# -- training


@pytest.mark.parametrize("size", [(16, 16), (128, 11), (384, 128), (32, 300), (1, 1)])
def test_finite_in_training_on_small_and_narrow_inputs(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = UniRepLKNet(1, 4, (1, 1, 1, 1), (8, 8, 8, 8), drop_path_rate=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for x in (torch.randn(2, 1, *size), torch.zeros(2, 1, *size), torch.randn(2, 1, *size)):
        loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 3]))
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    with torch.no_grad():
        assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_checkpointing_changes_nothing(tiny: Build, compiled: bool) -> None:
    x = torch.randn(3, 2, 32, 32)
    plain, saving = tiny(drop_path_rate=0.3), tiny(drop_path_rate=0.3, grad_checkpointing=True)
    if compiled:
        plain, saving = tiny(), tiny(grad_checkpointing=True)  # compiled random numbers may differ
        torch._dynamo.reset()
    for model in (plain, saving):
        torch.manual_seed(3)
        step = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        step(x).pow(2).sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=name)
    for (name, a), (_, b) in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=name)  # statistics have seen the batch once, not twice
    assert {m.num_batches_tracked.item() for m in saving.modules() if isinstance(m, nn.BatchNorm2d)} == {1}


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny: Build, form: str, dtype: torch.dtype) -> None:
    model = tiny(deploy=form == "deploy")
    x = torch.randn(2, 2, 40, 24)
    with torch.autocast("cpu", dtype):
        y = model(x)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert tiny().to(dtype)(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("form", ["train", "eval", "deploy"])
def test_compiles_as_one_graph(tiny: Build, form: str) -> None:
    torch._dynamo.reset()
    model = tiny(deploy=form == "deploy").train(form == "train")
    twin = copy.deepcopy(model)
    x = torch.randn(2, 2, 32, 32)
    ours, expected = torch.compile(model, fullgraph=True, backend="aot_eager")(x), twin(x)
    torch.testing.assert_close(ours, expected)
    ours.sum().backward()
    expected.sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_exports_in_deploy_form_with_a_dynamic_batch(tiny: Build) -> None:
    model = tiny(kernel_sizes=(0, 3, 7, 13)).eval().reparameterize()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 2, 32, 48),), dynamic_shapes=({0: batch},))
    for n in (1, 5):
        x = torch.randn(n, 2, 32, 48)
        torch.testing.assert_close(program.module()(x), model(x))
