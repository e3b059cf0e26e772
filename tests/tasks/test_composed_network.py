"""The composed network: shapes through the path, and learning-rate groups for fine-tuning."""

import pytest
import torch

from backbone import UniRepLKNet
from modalities.audio import LogMel
from tasks.heads import ClassificationHead
from tasks.network import Network
from tasks.optimizers import create_optimizer


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    embedder = LogMel(num_mel_bins=32, num_frames=32)
    backbone = UniRepLKNet(in_chans=1, num_classes=0, depths=(1, 1, 2, 1), dims=(8, 8, 16, 16))
    return Network(embedder, backbone, ClassificationHead(backbone.num_features, 3))


def test_raw_to_answer_and_merged_form(network: Network) -> None:
    raw = torch.randn(2, 16000)
    network.eval()
    before = network(raw)
    assert before.shape == (2, 3)
    torch.testing.assert_close(network.reparameterize()(raw), before, rtol=1e-4, atol=1e-5)


def test_layer_decay_falls_from_head_to_stem(network: Network) -> None:
    optimizer = create_optimizer(network, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(list(network.parameters()))
    named = {name: rate[id(parameter)] for name, parameter in network.named_parameters()}
    head, last = named["head.linear.weight"], named["backbone.stages.3.0.pwconv1.1.weight"]
    first, stem = (
        named["backbone.stages.0.0.pwconv1.1.weight"],
        named["backbone.downsample_layers.0.0.weight"],
    )
    assert head == 1.0
    assert head > last > first > stem


@pytest.mark.parametrize("per_block", [False, True])
def test_layers_cover_everything(network: Network, per_block: bool) -> None:
    layers = network.parameter_layers(per_block)
    assert set(layers) == {name for name, _ in network.named_parameters()}
    assert set(layers.values()) == set(range(1 + max(layers.values()))), "no layer is empty"
    assert {layers[name] for name in layers if name.startswith("head.")} == {max(layers.values())}
