"""The deploy form is the same function, whatever was trained."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from backbone import UniRepLKNet
from backbone.reparam import DILATED_BRANCHES, DilatedReparamBlock, batch_norm_affine, undilate

Build = Callable[..., UniRepLKNet]
Shake = Callable[[nn.Module], None]


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@torch.no_grad()
def assert_merges(model: UniRepLKNet, x: torch.Tensor) -> None:
    model.eval()
    before = model.forward_features(x)
    assert model.reparameterize() is model
    for ours, reference in zip(model.forward_features(x), before, strict=True):
        assert relative_error(ours, reference) < 1e-5


@pytest.mark.parametrize("k", [0, 3, 5, 7, 9, 11, 13, 15, 17])
def test_exact_for_every_kernel_after_training(tiny: Build, k: int) -> None:
    model = tiny(kernel_sizes=(k, k, k, k), drop_path_rate=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 2, 48, 40)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_merges(model, torch.randn(2, 2, 48, 40))
    built = tiny(kernel_sizes=(k, k, k, k), deploy=True)
    assert {n: v.shape for n, v in model.state_dict().items()} == {
        n: v.shape for n, v in built.state_dict().items()
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_scale_init_value": None},
        {"layer_scale_init_value": 0},
        {"feature_norms": True},
        {"num_classes": 0},
        {"kernel_sizes": ([0], [17], [5], 9), "stem_stride": 1},
        {"depths": (1, 2, 2, 1), "kernel_sizes": (0, [13, 3], [5, 7], 15)},
        {"downsample_norm": "batch"},
        {"downsample_norm": "batch", "stem_stride": 2, "feature_norms": True},
    ],
)
def test_exact_for_every_configuration(tiny: Build, shake: Shake, settings: dict[str, Any]) -> None:
    model = tiny(**settings)
    shake(model)
    assert_merges(model, torch.randn(2, 2, 33, 50))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_idempotent(tiny: Build, shake: Shake, norm: str) -> None:
    model = tiny(downsample_norm=norm)
    shake(model)
    once = copy.deepcopy(model.reparameterize().state_dict())
    twice = model.reparameterize().state_dict()
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_keeps_mode_dtype_and_requires_grad_and_leaves_the_random_state(tiny: Build) -> None:
    model = tiny().to(torch.bfloat16).train().requires_grad_(False)
    state = torch.get_rng_state()
    model.reparameterize()
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in model.parameters())
    trainable = tiny().eval().reparameterize()
    assert all(p.requires_grad for p in trainable.parameters())
    assert not any(module.training for module in trainable.modules())


def test_batch_norms_between_stages_are_merged_away(tiny: Build, shake: Shake) -> None:
    model = tiny(downsample_norm="batch")
    shake(model)
    built = tiny(downsample_norm="batch", deploy=True)
    names = set(model.reparameterize().state_dict())
    assert names == set(built.state_dict())
    assert not any("running" in name for name in names)
    assert not any(name.startswith("downsample_layers.1.1") for name in names)
    built.load_state_dict(model.state_dict())
    x = torch.randn(2, 2, 32, 40)
    torch.testing.assert_close(built.eval()(x), model.eval()(x))


def test_after_sync_batch_norm_conversion(tiny: Build, shake: Shake) -> None:
    model = tiny(kernel_sizes=(0, 3, 7, 13), downsample_norm="batch")
    shake(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert_merges(model, torch.randn(2, 2, 32, 32))


@pytest.mark.parametrize("k", DILATED_BRANCHES)
@torch.no_grad()
def test_dilated_block_alone(k: int, shake: Shake) -> None:
    block = DilatedReparamBlock(3, k).eval()
    shake(block)
    x = torch.randn(2, 3, 5, 21)  # lower than the kernel
    before = block(x)
    assert relative_error(block.reparameterize()(x), before) < 1e-5
    assert relative_error(block.reparameterize()(x), before) < 1e-5
    assert set(block.state_dict()) == {"lk_origin.weight", "lk_origin.bias"}


def test_undilated_kernel_is_the_same_convolution() -> None:
    x, kernel = torch.randn(1, 1, 20, 20), torch.randn(1, 1, 3, 3)
    dilated = nn.functional.conv2d(x, kernel, padding=4, dilation=4)
    torch.testing.assert_close(nn.functional.conv2d(x, undilate(kernel, 4), padding=4), dilated)


def test_refuses_what_is_no_fixed_affine_map() -> None:
    with pytest.raises(TypeError, match="GroupNorm"):
        batch_norm_affine(nn.GroupNorm(1, 4))
    with pytest.raises(ValueError, match="kernel size 4"):
        DilatedReparamBlock(4, 4)


def test_without_branches_only_the_training_differs(tiny: Build, shake: Shake) -> None:
    plain, branched = (tiny(kernel_sizes=(3, 13, 13, 7), dilated_branches=choice) for choice in (False, True))
    assert not any(isinstance(module, DilatedReparamBlock) for module in plain.modules())
    shake(plain)
    assert_merges(plain, torch.randn(2, plain.in_chans, 48, 40))
    sizes = [
        sum(parameter.numel() for parameter in model.reparameterize().parameters())
        for model in (plain, branched)
    ]
    assert sizes[0] == sizes[1]
