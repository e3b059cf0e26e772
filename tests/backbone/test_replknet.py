"""RepLKNet: official names and sizes, the merge, its weights."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from backbone import CheckpointError
from backbone.replknet import RepLKNet


def tiny(**settings: object) -> RepLKNet:
    torch.manual_seed(0)
    return RepLKNet(**({"in_chans": 2, "depths": (1, 1, 2, 1), "dims": (8, 8, 12, 16)} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "millions"), [(128, 79), (192, 172)])
def test_published_parameter_counts(width: int, millions: int) -> None:
    with torch.device("meta"):
        net = RepLKNet(dims=[width * factor for factor in (1, 2, 4, 8)])
    classifier = 8 * width * 1000 + 1000 + 2 * 8 * width  # with the norm before it
    assert int((sum(value.numel() for value in net.parameters()) + classifier) / 1e6) == millions


def test_names_are_those_of_the_official_release() -> None:
    names = set(tiny().state_dict())
    for name in (
        "stem.0.conv.weight",
        "stem.3.bn.running_mean",
        "stages.0.blocks.0.prelkb_bn.weight",
        "stages.0.blocks.0.pw1.conv.weight",
        "stages.0.blocks.0.large_kernel.lkb_origin.conv.weight",
        "stages.0.blocks.0.large_kernel.small_conv.bn.bias",
        "stages.2.blocks.3.preffn_bn.weight",
        "stages.2.blocks.3.pw2.bn.weight",
        "transitions.2.1.conv.weight",
    ):
        assert name in names
    merged = set(tiny().reparameterize().state_dict())
    assert "stages.0.blocks.0.large_kernel.lkb_reparam.bias" in merged
    assert not any("lkb_origin" in name or "small_conv" in name for name in merged)


@pytest.mark.parametrize("small_kernel", [5, None])
def test_merging_changes_nothing(small_kernel: int | None, shake: Callable[[nn.Module], None]) -> None:
    net = tiny(small_kernel=small_kernel).eval()
    shake(net)
    x = torch.randn(2, 2, 64, 40)
    before = net.forward_features(x)
    fields = net.receptive_fields()
    merged = net.reparameterize().reparameterize()
    for ours, wanted in zip(merged.forward_features(x), before, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    assert merged.receptive_fields() == fields
    assert fields[0] == 11 + 4 * 30, "a stem of three 3 × 3, two of stride 2, then 31 × 31 at stride 4"


def test_the_field_of_its_convolutions_is_what_it_depends_on() -> None:
    net = tiny(kernel_sizes=(5, 5, 5, 3), small_kernel=3).double().eval()
    x = torch.randn(1, 2, 257, 257, dtype=torch.double, requires_grad=True)
    net.forward_features(x)[1][0, :, 16, 16].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0).nonzero()
    assert int(seen[:, 0].max() - seen[:, 0].min()) + 1 == net.receptive_fields()[1]


def test_layers_parts_and_outputs() -> None:
    net = tiny().eval()
    x = torch.randn(1, 2, 64, 64)
    found = net.layer_outputs(x)
    assert list(found) == ["stem", "1.1", "down 2", "2.1", "down 3", "3.1", "3.2", "down 4", "4.1"]
    for name, feature in zip(("1.1", "2.1", "3.2", "4.1"), net.forward_features(x), strict=True):
        torch.testing.assert_close(found[name], feature)
    layers = net.parameter_layers()
    assert set(layers.values()) == set(range(net.layer_count()))
    assert layers["transitions.1.0.conv.weight"] == layers["stages.2.blocks.0.pw1.conv.weight"] == 3
    parts = [*net.stem_parts(), *(part for stage in net.stage_parts() for part in stage)]
    assert all(sum(name.startswith(f"{part}.") for part in parts) == 1 for name in layers)
    assert [(stage, block, conv.kernel_size[0]) for stage, block, conv in net.depthwise_convs()] == [
        (1, 1, 31),
        (2, 1, 29),
        (3, 1, 27),
        (3, 2, 27),
        (4, 1, 13),
    ]


def test_recomputing_gives_the_same_gradients_and_statistics() -> None:
    plain, frugal = tiny().train(), tiny(grad_checkpointing=True).train()
    frugal.load_state_dict(copy.deepcopy(plain.state_dict()))
    x = torch.randn(2, 2, 32, 32)
    for net in (plain, frugal):
        net(x).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, one), other in zip(plain.named_buffers(), frugal.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_an_official_file(tmp_path: Path) -> None:
    source = tiny(in_chans=3)
    state = source.state_dict() | {"norm.weight": torch.ones(16), "head.weight": torch.ones(1000, 16)}
    torch.save({"model": state}, tmp_path / "RepLKNet.pth")
    net = tiny(in_chans=1)
    report = net.load_pretrained(tmp_path / "RepLKNet.pth")
    assert report.adapted == ["stem.0.conv.weight (3 -> 1 input channels)"]
    assert set(report.left_out) == {"its norm.weight", "its head.weight"}
    last = "stages.3.blocks.1.pw2.conv.weight"
    torch.testing.assert_close(net.state_dict()[last], state[last])
    with pytest.raises(CheckpointError, match="does not fit this RepLKNet"):
        tiny(dims=(8, 8, 12, 24)).load_pretrained(tmp_path / "RepLKNet.pth")
    with pytest.raises(CheckpointError, match="on no hub"):
        net.load_pretrained(True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kernel_sizes": (31, 29, 27, 12)}, "kernels are odd"),
        ({"kernel_sizes": (3, 3, 3, 3)}, "small_kernel must be at most 3"),
        ({"depths": (1, 1, 1)}, "four positive integers"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
    ],
)
def test_wrong_settings(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny(**settings)
