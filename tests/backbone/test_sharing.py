"""Networks that share their stages: what is one, what is each one's own, and each as a network on its own."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from backbone import UniRepLKNet
from backbone.checkpoints import adapt_first_conv
from backbone.sharing import AdaptedConv2d, plain_stem, share

CHANNELS = (1, 3, 6)


@pytest.fixture(params=[(True, 0), (True, 3), (False, 0), (False, 4)], ids=str)
def setting(request: pytest.FixtureRequest) -> tuple[bool, int]:
    found: tuple[bool, int] = request.param
    return found


@pytest.fixture
def networks(setting: tuple[bool, int], tiny: Callable[..., UniRepLKNet]) -> list[UniRepLKNet]:
    torch.manual_seed(0)
    found = [tiny(in_chans=channels, num_classes=0, kernel_sizes=(3, 13, 7, 13)) for channels in CHANNELS]
    share(found, batch_norm=setting[0], stem_chans=setting[1])
    return found


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in torch.nn.ModuleList(modules).parameters())


def batch_norm_weights(network: UniRepLKNet) -> int:
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return sum(parameter.numel() for norm in norms for parameter in norm.parameters())


def test_weights_are_counted_once(
    networks: list[UniRepLKNet], setting: tuple[bool, int], tiny: Callable[..., UniRepLKNet]
) -> None:
    shares_norms, stem_chans = setting
    alone = tiny(in_chans=1, num_classes=0, kernel_sizes=(3, 13, 7, 13))
    stem, first_conv = count(alone.downsample_layers[0]), alone.downsample_layers[0][0]
    wanted = count(alone) - stem
    per_channel = first_conv.weight.numel()
    if stem_chans:
        wanted += stem + (stem_chans - 1) * per_channel + stem_chans * sum(CHANNELS)
    else:
        wanted += len(CHANNELS) * stem + sum(channels - 1 for channels in CHANNELS) * per_channel
    if not shares_norms:
        wanted += (len(CHANNELS) - 1) * batch_norm_weights(alone)
    assert count(*networks) == wanted


def test_a_step_of_one_moves_the_stages_of_all(
    networks: list[UniRepLKNet], setting: tuple[bool, int]
) -> None:
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    optimizer = torch.optim.SGD(torch.nn.ModuleList(networks).parameters(), lr=1.0)
    networks[1].train()(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = [
        {name for name, value in network.state_dict().items() if not torch.equal(value, old[name])}
        for network, old in zip(networks, before, strict=True)
    ]
    shared = {
        name
        for name, parameter in networks[1].named_parameters()
        if not name.startswith("downsample_layers.0.")
    }
    norms = {
        f"{place}.{name}"
        for place, module in networks[1].named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in [*module.named_parameters(), *module.named_buffers()]
    }
    assert norms <= moved[1]
    for others in (moved[0], moved[2]):
        assert shared - norms <= others
        assert norms <= others if setting[0] else not norms & others
        assert ("downsample_layers.0.3.weight" in others) == bool(setting[1])


def test_each_is_a_network_on_its_own(networks: list[UniRepLKNet], tiny: Callable[..., UniRepLKNet]) -> None:
    for network, channels in zip(networks, CHANNELS, strict=True):
        x = torch.randn(2, channels, 32, 32)
        network.train()(x)  # other statistics than at the start
        alone = tiny(in_chans=channels, num_classes=0, kernel_sizes=(3, 13, 7, 13)).eval()
        alone.load_state_dict(plain_stem(network.state_dict()))
        torch.testing.assert_close(alone(x), network.eval()(x))
        torch.testing.assert_close(alone.reparameterize()(x), network(x), rtol=1e-4, atol=1e-5)
    prefixed = {f"net.{name}": value for name, value in networks[0].state_dict().items()}
    assert set(plain_stem(prefixed, "net.")) == {f"net.{name}" for name in alone_names(tiny)}


def alone_names(tiny: Callable[..., UniRepLKNet]) -> set[str]:
    return set(tiny(in_chans=1, num_classes=0, kernel_sizes=(3, 13, 7, 13)).state_dict())


def test_copies_share_among_themselves_only(networks: list[UniRepLKNet]) -> None:
    copies = copy.deepcopy(torch.nn.ModuleList(networks))
    assert count(*copies) == count(*networks)
    assert not {id(p) for p in copies.parameters()} & {id(p) for n in networks for p in n.parameters()}


@pytest.mark.parametrize("channels", [1, 3, 7])
def test_the_mixing_of_channels_begins_as_repetition(channels: int) -> None:
    shared = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    adapted = AdaptedConv2d(shared, channels)
    plain = torch.nn.Conv2d(channels, 5, 3, stride=2, padding=1)
    plain.weight.data, plain.bias.data = adapt_first_conv(shared.weight, channels), shared.bias.data
    x = torch.randn(2, channels, 9, 8)
    torch.testing.assert_close(adapted(x), plain(x))
    # … and is a 1 × 1 convolution followed by the shared one.
    mixing = adapted.adapter[:, :, None, None]
    torch.testing.assert_close(adapted(x), shared(torch.nn.functional.conv2d(x, mixing)))


def test_other_shapes_are_refused(tiny: Callable[..., UniRepLKNet]) -> None:
    with pytest.raises(ValueError, match="same depths, dims and kernel sizes"):
        share([tiny(in_chans=1), tiny(in_chans=1, kernel_sizes=(3, 3, 3, 3))])
