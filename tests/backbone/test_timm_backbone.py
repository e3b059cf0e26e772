"""timm's networks as backbones: what they read, what they give, their parts and their weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from backbone import CheckpointError
from backbone.checkpoints import adapt_first_conv
from backbone.sharing import plain_stem, share
from backbone.timm_backbone import TimmBackbone

CONV, PLAIN, HYBRID = "resnet18", "vit_tiny_patch16_224", "fastvit_t8"
KINDS = (CONV, PLAIN, HYBRID)
SMALL = {PLAIN: {"depth": 4, "embed_dim": 32, "num_heads": 2}}


def built(name: str, in_chans: int = 2, **settings: Any) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(name, in_chans, options=SMALL.get(name), **settings)


# -- maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 62), (8, 24), (33, 96)])
@pytest.mark.parametrize("name", [*KINDS, "convnext_atto"])
def test_features_have_the_sizes_that_their_strides_say(name: str, size: tuple[int, int]) -> None:
    net = built(name).eval()
    net.fit_input(*size)
    features = net.forward_features(torch.randn(2, 2, *size))
    assert len(features) == len(net.feature_info) == 4
    for feature, entry in zip(features, net.feature_info, strict=True):
        stride = entry["reduction"]
        assert feature.shape == (2, entry["num_chs"], -(-size[0] // stride), -(-size[1] // stride))
    assert features[-1].shape[1] == net.num_features
    strides = [entry["reduction"] for entry in net.feature_info]
    assert strides == ([16] * 4 if name == PLAIN else [4, 8, 16, 32])


def test_what_is_done_to_maps_is_said() -> None:
    net = built("convnext_atto")
    assert net.fit_input(64, 96) is None
    assert net.fit_input(64, 62) == "are padded with zeros to 64×64, sizes that convnext_atto reads"
    assert built(CONV).fit_input(64, 62) is None, "evenly padded convolutions read any size"
    fixed = built("levit_128s")
    assert fixed.fit_input(40, 64) == "are resized to 224×224, the size that levit_128s was made for"
    assert [
        tuple(feature.shape[-2:]) for feature in fixed.eval().forward_features(torch.randn(1, 2, 40, 64))
    ] == [
        (3, 4),
        (2, 2),
        (1, 1),
    ]


def test_padding_is_zeros_below_and_on_the_right() -> None:
    net = built("convnext_atto").eval()
    net.fit_input(40, 50)
    x = torch.randn(1, 2, 40, 50)
    whole = net.forward_features(nn.functional.pad(x, (0, 14, 0, 24)))
    for feature, found in zip(whole, net.forward_features(x), strict=True):
        torch.testing.assert_close(feature[..., : found.shape[-2], : found.shape[-1]], found)


def test_reading_an_empty_map_leaves_the_network_as_it_is() -> None:
    net = built(CONV).train()
    before = copy.deepcopy(net.state_dict())
    net.fit_input(64, 62)
    assert net.training
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_map_that_no_way_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = built(CONV)

    def fails(*_: Any, **__: Any) -> list[Tensor]:
        raise AssertionError("Input height (8) should be divisible by 7\nand more")

    monkeypatch.setattr(net.model, "forward_intermediates", fails)
    with pytest.raises(ValueError, match=r"resnet18 cannot read maps of 8×9 pixels: Input height.*by 7$"):
        net.fit_input(8, 9)


def test_a_plain_transformer_gives_rising_strides_where_asked() -> None:
    net = built(PLAIN)
    net.make_pyramid()
    net.make_pyramid()
    assert [(entry["num_chs"], entry["reduction"]) for entry in net.feature_info] == [
        (8, 4),
        (16, 8),
        (32, 16),
        (32, 32),
    ]
    assert net.fit_input(64, 40) == "are padded with zeros to 64×64, sizes that vit_tiny_patch16_224 reads"
    features = net.forward_features(torch.randn(2, 2, 64, 40))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (8, 16, 10),
        (16, 8, 5),
        (32, 4, 3),
        (32, 2, 2),
    ]
    assert net.stage_parts()[-1][-1] == "pyramid"
    sum(feature.sum() for feature in features).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    stages = built(CONV)
    stages.make_pyramid()
    assert stages.pyramid is None


def test_a_finer_patch_is_an_option() -> None:
    net = TimmBackbone(PLAIN, 1, options={**SMALL[PLAIN], "patch_size": 4})
    assert [entry["reduction"] for entry in net.feature_info] == [4] * 4
    assert net.forward_features(torch.zeros(1, 1, 16, 24))[-1].shape == (1, 32, 4, 6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet19", {}, "timm knows no network resnet19"),
        ("hf-hub:someone/network", {}, "timm knows no network hf-hub:someone/network"),
        (CONV, {"checkpoint_path": "x.pth"}, "checkpoint_path is not for the network to say"),
        (CONV, {"pretrained_cfg": {}}, "pretrained_cfg is not for the network to say"),
        (CONV, {"colour": "red"}, "timm could not build resnet18: .*colour"),
    ],
)
def test_wrong_settings_are_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        TimmBackbone(name, 3, options=options)
    assert "\n" not in str(caught.value)


def test_drop_path_and_checkpointing() -> None:
    torch.manual_seed(0)
    net = built(PLAIN, drop_path_rate=0.9, grad_checkpointing=True).train()
    x = torch.randn(8, 2, 32, 32)
    assert not torch.equal(net(x), net(x)), "residuals are dropped in training"
    net(x).sum().backward()
    assert net.eval()(x).equal(net(x))
    with pytest.raises(ValueError, match="drop_path_rate"):
        TimmBackbone("vgg11", 1, drop_path_rate=0.1)


# -- parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*KINDS, "convnext_atto", "efficientnet_b0", "caformer_s18"])
def test_every_parameter_has_one_part_and_one_layer(name: str) -> None:
    net = built(name)
    parts = [net.stem_parts(), *net.stage_parts()]
    for parameter, _ in net.named_parameters():
        owners = [
            number
            for number, names in enumerate(parts)
            if any(parameter == part or parameter.startswith(f"{part}.") for part in names)
        ]
        assert len(owners) == 1, parameter
    assert all(parts)
    layers = net.parameter_layers()
    assert set(layers) == {parameter for parameter, _ in net.named_parameters()}
    assert set(layers.values()) == set(range(net.layer_count()))
    rank = [max(layers[name] for name in layers if name.startswith(tuple(part))) for part in parts]
    assert rank == sorted(rank)
    assert rank[0] == 0


def test_own_names_of_the_parts() -> None:
    net = built(CONV)
    assert net.stem_parts() == ["model.conv1", "model.bn1"]
    assert net.stage_parts() == [[f"model.layer{i}"] for i in (1, 2, 3, 4)]
    assert built(PLAIN).stage_parts()[1] == ["model.blocks.1"]


@pytest.mark.parametrize("name", [*KINDS, "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_nothing_in_the_network_goes_untrained(name: str) -> None:
    net = built(name).train()
    sum(feature.sum() for feature in net.forward_features(torch.randn(2, 2, 64, 64))).backward()
    assert [parameter for parameter, value in net.named_parameters() if value.grad is None] == []


def test_layers_by_name_and_depthwise_convolutions() -> None:
    x = torch.randn(1, 2, 64, 64)
    resnet, convnext = built(CONV).eval(), built("convnext_atto").eval()
    found = resnet.layer_outputs(x)
    assert list(found) == ["act1", "layer1", "layer2", "layer3", "layer4"]
    torch.testing.assert_close(found["layer4"], resnet.forward_features(x)[-1])
    assert list(built(PLAIN).eval().layer_outputs(x)) == [f"blocks.{i}" for i in range(4)]
    assert list(resnet.depthwise_convs()) == []
    convs = list(convnext.depthwise_convs())
    assert [(stage, number) for stage, number, _ in convs][:3] == [(1, 1), (1, 2), (2, 1)]
    assert {conv.kernel_size for _, _, conv in convs} == {(7, 7)}


def test_branches_are_merged() -> None:
    net = built(HYBRID).train()
    for _ in range(3):
        net(torch.randn(4, 2, 64, 64))
    x = torch.randn(2, 2, 64, 64)
    before = net.eval()(x)
    parameters = sum(value.numel() for value in net.parameters())
    torch.testing.assert_close(net.reparameterize().reparameterize()(x), before, rtol=1e-3, atol=1e-4)
    assert sum(value.numel() for value in net.parameters()) < parameters


# -- weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_maps_of_other_channels(name: str) -> None:
    source, target = built(name, 3), built(name, 1)
    report = target.load_weights(source.state_dict(), "run")
    for key, value in source.state_dict().items():
        wanted = adapt_first_conv(value, 1) if value.ndim == 4 and value.shape[1] == 3 else value
        torch.testing.assert_close(target.state_dict()[key], wanted)
    assert report.loaded == len(source.state_dict())
    assert all("(3 -> 1 input channels)" in change for change in report.adapted)
    assert len(report.adapted) == (2 if name == HYBRID else 1)


def test_weights_of_another_network_change_nothing() -> None:
    net = built(CONV)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        CheckpointError, match=r"run does not fit timm's resnet18: .* and \d+ more are missing"
    ):
        net.load_weights(built("convnext_atto").state_dict(), "run")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_published_weights_come_through_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    published = timm.create_model(CONV, num_classes=1000)
    asked: list[Any] = []

    def fetch(where: str, *_: Any, **__: Any) -> dict[str, Tensor]:
        asked.append(where)
        return {name: value.clone() for name, value in published.state_dict().items()}

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    for source in (True, "a1_in1k"):
        net = built(CONV, 1)
        report = net.load_pretrained(source)
        assert report.adapted == ["conv1.weight (3 -> 1 input channels)"]
        torch.testing.assert_close(net.model.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
        torch.testing.assert_close(net.model.conv1.weight.squeeze(1), published.conv1.weight.sum(1))
    assert asked[1] == "timm/resnet18.a1_in1k"


def test_weights_that_cannot_be_had_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(*_: Any, **__: Any) -> dict[str, Tensor]:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    net = built(CONV)
    with pytest.raises(
        CheckpointError, match=r"could not fetch the weights resnet18 \(no route to the hub\)"
    ):
        net.load_pretrained(True)
    with pytest.raises(CheckpointError, match=r"timm has no weights resnet18\.moon: it has .*a1_in1k"):
        net.load_pretrained("moon")
    with pytest.raises(CheckpointError, match="there is no checkpoint file"):
        net.load_pretrained(tmp_path / "none.pth")


def test_files_of_timm_and_of_the_authors(tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = timm.create_model("convnext_atto", num_classes=10)
    state = published.state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "timm.pth"
    )
    # The official release of ConvNeXt has downsample_layers, pwconv1 and gamma's neighbours under other names.
    official = {}
    for name, value in state.items():
        name = name.replace("stem.", "downsample_layers.0.").replace("conv_dw.", "dwconv.")
        name = name.replace("mlp.fc1.", "pwconv1.").replace("mlp.fc2.", "pwconv2.")
        if ".downsample." in name:
            stage, rest = name.removeprefix("stages.").split(".downsample.")
            name = f"downsample_layers.{stage}.{rest}"
        elif name.startswith("stages."):
            name = name.replace(".blocks.", ".")
        official[name.replace("head.norm.", "norm.").replace("head.fc.", "head.")] = value
    torch.save({"model": official}, tmp_path / "official.pth")
    for file in ("timm.pth", "official.pth"):
        net = built("convnext_atto", 3)
        report = net.load_pretrained(tmp_path / file)
        assert report.left_out, "the classifier"
        for name, value in net.model.state_dict().items():
            assert torch.equal(value, state[name]), (file, name)


def test_a_file_of_authors_with_names_like_those_of_timm(tmp_path: Path) -> None:
    """Swin's release has the downsampling behind a stage, timm in front of the next."""
    options = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    name = "swin_tiny_patch4_window7_224"
    state = timm.create_model(name, num_classes=10, **options).state_dict()
    official = {}
    for key, value in state.items():
        if ".downsample." in key:
            _, stage, rest = key.split(".", 2)
            key = f"layers.{int(stage) - 1}.{rest}"
        official[key.replace("head.fc.", "head.")] = value
    torch.save({"model": official}, tmp_path / "swin.pth")
    net = TimmBackbone(name, 3, options=options)
    net.load_pretrained(tmp_path / "swin.pth")
    for key, value in net.model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_file_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    for name in (CONV, "convnext_atto", PLAIN):
        with pytest.raises(
            CheckpointError, match=r"other\.pth does not fit timm's .* missing or of another shape"
        ) as said:
            built(name).load_pretrained(tmp_path / "other.pth")
        assert "\n" not in str(said.value)


def test_a_pyramid_goes_along() -> None:
    source, target, flat = built(PLAIN), built(PLAIN, 1), built(PLAIN)
    source.make_pyramid()
    target.make_pyramid()
    target.load_weights(source.state_dict(), "run")
    assert source.pyramid is not None
    assert target.pyramid is not None
    assert torch.equal(source.pyramid.to_half.weight, target.pyramid.to_half.weight)
    report = target.load_weights(flat.state_dict(), "flat")
    assert report.initial[0].startswith("pyramid.")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return (Path.touch, (self.path,))


def test_a_file_runs_nothing(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Evil(tmp_path / "owned")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="would run code"):
        built(CONV).load_pretrained(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


# -- several modalities --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_norm", "stem_chans"), [(True, 0), (False, 0), (True, 3), (False, 3)])
@pytest.mark.parametrize("name", [CONV, PLAIN])
def test_shared_stages(name: str, batch_norm: bool, stem_chans: int) -> None:
    networks = [built(name, channels) for channels in (1, 3)]
    share(networks, batch_norm=batch_norm, stem_chans=stem_chans)
    one, other = networks
    assert one.stage_parts() == other.stage_parts()
    mine = {key: id(value) for key, value in one.named_parameters()}
    yours = {key: id(value) for key, value in other.named_parameters()}
    stem = tuple(one.stem_parts())
    norms = {
        f"{place}.{key}"
        for place, module in one.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key, _ in module.named_parameters()
    }
    for key in set(mine) & set(yours):
        own = (
            (key in norms and not batch_norm) or (key.startswith(stem) and not stem_chans) or "adapter" in key
        )
        assert (mine[key] == yours[key]) != own, key
    for network in networks:
        network.train()(torch.randn(4, network.in_chans, 32, 32)).sum().backward()
    alone = built(name, 1).eval()
    alone.load_state_dict(plain_stem(one.state_dict()))
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(alone(x), one.eval()(x), rtol=1e-4, atol=1e-5)
    assert one.layer_count() == alone.layer_count()


def test_what_cannot_be_shared_is_said() -> None:
    with pytest.raises(ValueError, match="only networks of the same"):
        share([built(CONV), built("resnet10t")])
    with pytest.raises(ValueError, match=r"read by no single convolution: take task\.stem=per_modality"):
        share([built(HYBRID), built(HYBRID)], stem_chans=3)


# -- other forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONV, PLAIN, pytest.param(HYBRID, marks=pytest.mark.slow)])
def test_the_compiler_sees_one_graph(name: str) -> None:
    net = built(name).eval()
    net.fit_input(64, 62)
    x = torch.randn(2, 2, 64, 62)
    torch._dynamo.reset()
    compiled = torch.compile(net.forward_features, backend="eager", fullgraph=True)
    for ours, wanted in zip(compiled(x), net.forward_features(x), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)]
)
def test_a_program_takes_any_batch(name: str) -> None:
    net = built(name).eval().reparameterize()
    net.fit_input(40, 50)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(net, (torch.randn(3, 2, 40, 50),), dynamic_shapes=({0: batch},))
        x = torch.randn(5, 2, 40, 50)
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-4)
