"""What `freeze` names, and that a frozen part neither learns nor counts."""

import pytest
import torch

from backbone import UniRepLKNet
from modalities.audio import LogMel
from tasks.freezing import frozen_modules
from tasks.heads import ClassificationHead
from tasks.network import Network


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    backbone = UniRepLKNet(
        in_chans=1, num_classes=0, depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), drop_path_rate=0.5
    )
    return Network(LogMel(num_mel_bins=32, num_frames=32), backbone, ClassificationHead(16, 3))


@pytest.mark.parametrize(
    ("freeze", "names"),
    [
        (None, []),
        ("none", []),
        ("all", ["embedder", "backbone"]),
        ("stages.0", ["backbone.stages.0"]),
        ("stages.2", ["backbone.downsample_layers.2", "backbone.stages.2"]),
        (
            ["stem", "stages.0-1"],
            [
                "backbone.downsample_layers.0",
                "backbone.stages.0",
                "backbone.downsample_layers.1",
                "backbone.stages.1",
            ],
        ),
        (["stages.3", "stages.3"], ["backbone.downsample_layers.3", "backbone.stages.3"]),
    ],
)
def test_names(freeze: str | list[str] | None, names: list[str], network: Network) -> None:
    assert frozen_modules(freeze, network.backbone) == names
    network.freeze(names)  # they exist


@pytest.mark.parametrize(
    "freeze", ["stages", "stages.4", "stages.0-4", "stages.2-1", "head", ["all", "stem"]]
)
def test_other_words_are_refused(freeze: str | list[str], network: Network) -> None:
    with pytest.raises(ValueError, match="is not one of none, all, embedder, stem"):
        frozen_modules(freeze, network.backbone)


@pytest.mark.parametrize("freeze", ["all", "stages.0-2", ["stem", "stages.1"]])
def test_a_frozen_part_stays_bit_for_bit(freeze: str | list[str], network: Network) -> None:
    names = frozen_modules(freeze, network.backbone)
    network.freeze(names)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        network.train()
        network(torch.randn(4, 16000)).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {name for name in before if name.startswith(tuple(f"{part}." for part in names))}
    assert changed
    assert not changed & frozen
    assert {name for name, _ in network.named_parameters()} - frozen <= changed
    statistics = {name for name in before if name.endswith("running_mean")}
    assert statistics - frozen <= changed


def test_frozen_everything_before_the_head_is_deterministic(network: Network) -> None:
    raw = torch.randn(4, 16000)
    network.freeze(frozen_modules("all", network.backbone))
    network.train()
    assert torch.equal(network(raw), network(raw)), "drop path and batch statistics rest"
