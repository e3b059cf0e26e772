"""The heads of segmentation: sizes as published, the arithmetic of UPerNet, official names."""

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backbone.sizes import SIZES
from backbone.unireplknet import UniRepLKNet
from tasks.network import Network
from tasks.segmentation_heads import FCNNetHead, MLPHead, MLPNetHead, PooledTo, SegmentationHead, UPerNetHead

CHANNELS = (8, 16, 24, 32)
PUBLISHED = {"t": 60.98, "s": 86.38, "b": 130.3, "l": 253.9, "xl": 425.1}  # M, without the auxiliary head
AUXILIARY = {"t": 0.78, "s": 0.92, "b": 1.22, "l": 1.81, "xl": 2.40}
GFLOPS = {"t": 946, "s": 1036}  # at 512 × 2048, as published: multiply-accumulates


def deploy(size: str) -> UniRepLKNet:
    depths, dims = SIZES[f"unireplknet_{size}"]
    return UniRepLKNet(3, depths=depths, dims=dims, deploy=True, feature_norms=True)


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_ones(size: str) -> None:
    with torch.device("meta"):
        backbone = deploy(size)
        head = UPerNetHead([info["num_chs"] for info in backbone.feature_info], 150)
    assert head.auxiliary_head is not None
    assert millions(backbone) + millions(head.decode_head) == pytest.approx(PUBLISHED[size], rel=1e-3)
    assert millions(head.auxiliary_head) == pytest.approx(AUXILIARY[size], abs=0.006)


@pytest.mark.parametrize("size", GFLOPS)
def test_multiply_accumulates_are_the_published_ones(size: str) -> None:
    with torch.device("meta"):
        backbone = deploy(size).eval()
        head = UPerNetHead([info["num_chs"] for info in backbone.feature_info], 150).eval()
        picture = torch.zeros(1, 3, 512, 2048)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head(backbone.forward_features(picture), 1)
    assert counter.get_total_flops() / 2 / 1e9 == pytest.approx(GFLOPS[size], rel=0.02)


def features(batch: int = 2, side: int = 16) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, chans, side >> i, side >> i) for i, chans in enumerate(CHANNELS)]


@pytest.mark.parametrize("make", [UPerNetHead, FCNNetHead, MLPNetHead])
def test_shapes_and_gradients(make: type[SegmentationHead]) -> None:
    head = make(CHANNELS, 5, channels=8)  # type: ignore[call-arg, arg-type]
    out = head(features(), 1)
    logits, *others = out if isinstance(out, tuple) else (out,)
    side = 2 if make is FCNNetHead else 16
    assert logits.shape == (2, 5, side, side)
    assert [other.shape for other in others] == ([(2, 5, 4, 4)] if make is UPerNetHead else [])
    sum(part.square().sum() for part in (logits, *others)).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert isinstance(head.eval()(features(), 1), torch.Tensor), "the auxiliary head only helps in training"


def test_several_maps_of_a_sample_are_averaged() -> None:
    head = MLPNetHead(CHANNELS, 5, channels=8).eval()
    four = features(batch=4)
    assert torch.allclose(head(four, 2), head(four, 1).view(2, 2, 5, 16, 16).mean(1))


def test_upernet_by_hand() -> None:
    """Every step written out once more with plain functions."""
    head = UPerNetHead(CHANNELS, 3, channels=4).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias)
            module.running_mean.uniform_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    state = {name.removeprefix("decode_head."): value for name, value in head.state_dict().items()}
    maps = features(side=24)

    def unit(name: str, x: torch.Tensor) -> torch.Tensor:
        weight = state[f"{name}.conv.weight"]
        y = nn.functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
        mean, var, gamma, beta = (
            state[f"{name}.bn.{key}"][:, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((y - mean) / (var + 1e-5).sqrt() * gamma + beta).relu()

    def up(x: torch.Tensor, side: int) -> torch.Tensor:
        return nn.functional.interpolate(x, (side, side), mode="bilinear", align_corners=False)

    pooled = []
    for i, bins in enumerate((1, 2, 3, 6)):
        small = nn.functional.adaptive_avg_pool2d(maps[3], bins)
        pooled.append(up(unit(f"psp_modules.{i}.1", small), 3))
    top = unit("bottleneck", torch.cat([maps[3], *pooled], 1))
    third = unit("lateral_convs.2", maps[2]) + up(top, 6)
    second = unit("lateral_convs.1", maps[1]) + up(third, 12)
    first = unit("lateral_convs.0", maps[0]) + up(second, 24)
    outs = [unit(f"fpn_convs.{i}", x) for i, x in enumerate((first, second, third))]
    joined = torch.cat([outs[0], up(outs[1], 24), up(outs[2], 24), up(top, 24)], 1)
    wanted = nn.functional.conv2d(
        unit("fpn_bottleneck", joined), state["conv_seg.weight"], state["conv_seg.bias"]
    )
    with torch.no_grad():
        assert torch.allclose(head(maps, 1), wanted, atol=1e-5)


def test_the_light_head_by_hand() -> None:
    """One linear layer per stage, upsampled, concatenated, fused: in this order."""
    head = MLPNetHead(CHANNELS, 3, channels=4).eval()
    decode = head.decode_head
    assert isinstance(decode, MLPHead)
    nn.init.uniform_(decode.fuse.bn.weight, 0.5, 2)
    nn.init.uniform_(decode.fuse.bn.bias)
    maps = features()
    with torch.no_grad():
        wide = [
            nn.functional.interpolate(linear(x), (16, 16), mode="bilinear", align_corners=False)
            for linear, x in zip(decode.linears, maps, strict=True)
        ]
        wanted = decode.conv_seg(decode.fuse(torch.cat(wide, dim=1)))
        assert torch.allclose(head(maps, 1), wanted, atol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(16, 64), (7, 5), (2, 3), (6, 6)])
def test_pooling_by_matrices_is_adaptive_pooling(side: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    pool = PooledTo(side)
    by_matrices = pool.bins(size[0], x) @ x @ pool.bins(size[1], x).T
    assert torch.allclose(by_matrices, pool(x), atol=1e-6)


def official_names() -> set[str]:
    unit = (
        "conv.weight",
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    )
    blocks = [f"decode_head.psp_modules.{i}.1" for i in range(4)]
    blocks += [f"decode_head.{kind}.{i}" for kind in ("lateral_convs", "fpn_convs") for i in range(3)]
    blocks += ["decode_head.bottleneck", "decode_head.fpn_bottleneck", "auxiliary_head.convs.0"]
    scores = [
        f"{head}.conv_seg.{key}" for head in ("decode_head", "auxiliary_head") for key in ("weight", "bias")
    ]
    return {f"{block}.{key}" for block in blocks for key in unit} | set(scores)


def test_names_are_the_official_ones() -> None:
    assert set(UPerNetHead(CHANNELS, 3, channels=4).state_dict()) == official_names()


def test_an_official_head_is_taken_whole_or_refused() -> None:
    source, target = (UPerNetHead(CHANNELS, 3, channels=4) for _ in range(2))
    given = source.state_dict()
    assert target.load_official({**given, "head.weight": torch.zeros(1)})
    assert all(value.equal(given[name]) for name, value in target.state_dict().items())
    assert not target.load_official({"head.weight": torch.zeros(1)}), "a classifier's checkpoint"
    # Other classes: all but the scores.
    other = UPerNetHead(CHANNELS, 5, channels=4)
    assert not other.load_official(given)
    assert other.decode_head.get_parameter("bottleneck.conv.weight").equal(
        given["decode_head.bottleneck.conv.weight"]
    )
    # Without an auxiliary head of ours, theirs is left out.
    assert UPerNetHead(CHANNELS, 3, channels=4, auxiliary_channels=0).load_official(given)
    for wrong in (
        {name: value for name, value in given.items() if "fpn_convs.1.bn.bias" not in name},
        {**given, "decode_head.more.weight": torch.zeros(1)},
        UPerNetHead(CHANNELS, 3, channels=8).state_dict(),
        MLPNetHead(CHANNELS, 3, channels=4).state_dict(),
    ):
        with pytest.raises(ValueError, match="head is another than this"):
            target.load_official(wrong)


def test_heads_learn_as_the_last_layer() -> None:
    depths, dims = SIZES["unireplknet_s"]
    with torch.device("meta"):
        backbone = UniRepLKNet(3, depths=depths, dims=dims, feature_norms=True)
        layers = Network(nn.Identity(), backbone, UPerNetHead(dims, 3)).parameter_layers()
    last = {name for name, layer in layers.items() if layer == 13}
    assert {
        name for name in layers if name.startswith("head.") or re.match(r"backbone\.norm\d", name)
    } == last
    assert max(layers.values()) == 13
