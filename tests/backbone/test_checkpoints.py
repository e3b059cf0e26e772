"""Loading: what fits, what is adapted, what is refused."""

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

import backbone
from backbone import CheckpointError, UniRepLKNet, load_pretrained
from backbone.checkpoints import NAMES, PUBLISHED, adapt_first_conv

Build = Callable[..., UniRepLKNet]
State = dict[str, torch.Tensor]


@pytest.fixture
def trained(tiny: Build, shake: Callable[..., None]) -> UniRepLKNet:
    model = tiny(in_chans=3)
    shake(model)
    return model.eval()


def saved(folder: Path, content: Any, name: str = "weights.pth") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


@pytest.mark.parametrize("container", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone._orig_mod."])
def test_loads_a_state_dict_in_any_wrapping(
    tiny: Build, trained: UniRepLKNet, tmp_path: Path, container: str | None, prefix: str
) -> None:
    state: State = {prefix + name: value for name, value in trained.state_dict().items()}
    if prefix:
        state["loss.weight"] = torch.ones(2)
    path = saved(tmp_path, {container: state, "epoch": 3, "args": Namespace(lr=1)} if container else state)
    model = tiny(in_chans=3)
    report = model.load_pretrained(path)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
    assert report.loaded == len(trained.state_dict())
    assert list(report.left_out) == (["loss.weight"] if prefix else [])
    assert str(report).startswith("weights.pth: ")
    assert "\n" not in str(report)


def test_loads_safetensors(tiny: Build, trained: UniRepLKNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(trained.state_dict(), path)
    model = tiny(in_chans=3)
    load_pretrained(model, path)
    assert torch.equal(model.head.weight, trained.head.weight)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        load_pretrained(model, path)


def test_one_input_channel_sees_grey_images_as_before(
    tiny: Build, trained: UniRepLKNet, tmp_path: Path
) -> None:
    model = tiny(in_chans=1).eval()
    report = load_pretrained(model, saved(tmp_path, trained.state_dict()))
    assert report.adapted == ["downsample_layers.0.0.weight (3 -> 1 input channels)"]
    grey = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(model(grey), trained(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("n", [2, 4, 6, 7])
def test_more_input_channels_keep_the_scale(n: int) -> None:
    weight = torch.randn(4, 3, 3, 3)
    adapted = adapt_first_conv(weight, n)
    assert adapted.shape == (4, n, 3, 3)
    torch.testing.assert_close(adapted[:, 1], weight[:, 1] * 3 / n)
    if n % 3 == 0:
        torch.testing.assert_close(adapted.sum(1), weight.sum(1))


def test_classifier_is_left_out_where_classes_differ(
    tiny: Build, trained: UniRepLKNet, tmp_path: Path
) -> None:
    path = saved(tmp_path, {"model": trained.state_dict()})
    other = tiny(in_chans=3, num_classes=7)
    report = load_pretrained(other, path)
    assert set(report.left_out) == {"head.weight", "head.bias"} == set(report.initial)
    assert torch.equal(other.norm.weight, trained.norm.weight)
    for model in (tiny(in_chans=3, num_classes=0), tiny(in_chans=3, feature_norms=True)):
        report = load_pretrained(model, path)
        assert set(report.left_out) == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
        assert "left out norm.weight, norm.bias, head.weight, head.bias" in str(report)
    assert len(report.initial) == 8


def test_batch_counts_may_be_missing(tiny: Build, trained: UniRepLKNet, tmp_path: Path) -> None:
    state = {n: v for n, v in trained.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert load_pretrained(tiny(in_chans=3), saved(tmp_path, state)).loaded == len(state)


@pytest.mark.parametrize("scale", [0.5, None])
def test_train_form_checkpoint_in_a_deploy_form_network(
    tiny: Build, shake: Callable[..., None], tmp_path: Path, scale: float | None
) -> None:
    source = tiny(in_chans=3, layer_scale_init_value=scale).eval()
    shake(source)
    path = saved(tmp_path, source.state_dict())
    model = tiny(in_chans=3, deploy=True).eval()
    state = torch.get_rng_state()
    report = load_pretrained(model, path)
    assert torch.equal(state, torch.get_rng_state())
    assert "merged into deploy form" in str(report)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), source(x), rtol=1e-5, atol=1e-5)
    small = tiny(in_chans=1, num_classes=3, deploy=True)
    before = small.head.weight.detach().clone()
    assert "head.weight" in load_pretrained(small, path).left_out
    assert torch.equal(small.head.weight, before)


def test_train_form_checkpoint_without_dilated_branches(
    tiny: Build, shake: Callable[..., None], tmp_path: Path
) -> None:
    trained = tiny(in_chans=3, dilated_branches=False)
    shake(trained)
    model = tiny(in_chans=3, dilated_branches=False, deploy=True).eval()
    model.load_pretrained(saved(tmp_path, trained.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), trained.eval()(x), rtol=1e-4, atol=1e-5)


def test_norms_between_stages_are_those_of_the_checkpoint(
    tiny: Build, shake: Callable[..., None], trained: UniRepLKNet, tmp_path: Path
) -> None:
    path = saved(tmp_path, trained.state_dict())
    for deploy in (False, True):
        other = tiny(in_chans=3, downsample_norm="batch", deploy=deploy)
        with pytest.raises(
            CheckpointError, match=r"holds .* with layer norms, the network is .* batch norms"
        ):
            load_pretrained(other, path)
    source = tiny(in_chans=3, downsample_norm="batch").eval()
    shake(source)
    path = saved(tmp_path, source.state_dict())
    with pytest.raises(CheckpointError, match=r"with batch norms, the network is .* with layer norms"):
        load_pretrained(tiny(in_chans=3), path)
    model = tiny(in_chans=3, downsample_norm="batch", deploy=True).eval()
    load_pretrained(model, path)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), source(x), rtol=1e-5, atol=1e-5)


def test_deploy_form_checkpoint(tiny: Build, trained: UniRepLKNet, tmp_path: Path) -> None:
    path = saved(tmp_path, trained.reparameterize().state_dict())
    with pytest.raises(CheckpointError, match="deploy=True"):
        load_pretrained(tiny(in_chans=3), path)
    model = tiny(in_chans=3, deploy=True)
    load_pretrained(model, path)
    assert torch.equal(model.head.weight, trained.head.weight)


# -- refused


class Runs:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was_run",)


def test_a_pickle_that_would_run_code_is_refused(
    tiny: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, {"model": Runs()})
    with pytest.raises(
        CheckpointError, match=r"weights\.pth is refused: loading it would run code \(.*system\)"
    ):
        load_pretrained(tiny(), path)
    assert not (tmp_path / "was_run").exists()


def test_what_cannot_be_loaded_is_said_in_one_sentence_and_changes_nothing(
    tiny: Build, trained: UniRepLKNet, tmp_path: Path
) -> None:
    model = tiny(in_chans=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = saved(tmp_path, trained.state_dict(), "whole.pth")
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    saved(tmp_path, [1, 2], "list.pth")
    saved(tmp_path, {"conv1.weight": torch.ones(1)}, "resnet.pth")
    saved(tmp_path, tiny(in_chans=3, dims=(8, 8, 12, 20)).state_dict(), "wide.pth")
    saved(tmp_path, tiny(in_chans=3, depths=(1, 1, 2, 1)).state_dict(), "deep.pth")
    saved(tmp_path, tiny(in_chans=3, kernel_sizes=(3, 7, 7, 13)).state_dict(), "kernel.pth")
    expected = {
        "half.pth": "damaged or incomplete",
        "empty.pth": "damaged or incomplete",
        "text.pth": "not a checkpoint that PyTorch can read",
        "list.pth": "holds a list",
        "resnet.pth": "holds no UniRepLKNet weights",
        "wide.pth": r"dims \(8, 8, 12, 20\), the network is depths \(1, 1, 1, 1\), dims \(8, 8, 12, 16\)",
        "deep.pth": r"it holds depths \(1, 1, 2, 1\)",
        "kernel.pth": "does not fit this network",
        "nowhere.pth": "there is no checkpoint file",
        "imagenet": "unknown weights 'imagenet': use in1k, in22k, in22k_to_in1k",
    }
    for name, message in expected.items():
        with pytest.raises(CheckpointError, match=message) as error:
            load_pretrained(model, name if name == "imagenet" else tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_pretrained(model, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# -- hub


def test_published_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = backbone.unireplknet_a()
    path = saved(tmp_path, {"model": source.state_dict()})
    asked = []

    def download(repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for pretrained in ("in1k", True):
        model = backbone.unireplknet_a(pretrained=pretrained, in_chans=1, num_classes=0)
        assert torch.equal(model.stages[0][0].se.up.weight, source.stages[0][0].se.up.weight)
    assert asked == [("DingXiaoH/UniRepLKNet", "unireplknet_a_in1k_224_acc77.03.pth")] * 2


def test_offline_says_how_to_place_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with torch.device("meta"):
        model = backbone.unireplknet_t()
    with pytest.raises(CheckpointError) as error:
        load_pretrained(model, "in1k")
    message = str(error.value)
    assert "unireplknet_t_in1k_224_acc83.21.pth" in message
    assert "DingXiaoH/UniRepLKNet" in message
    assert "by hand" in message
    assert "\n" not in message


def test_unpublished_weights(tiny: Build) -> None:
    with torch.device("meta"):
        small = backbone.unireplknet_a()
    with pytest.raises(CheckpointError, match="in22k weights are not published for this size, only in1k"):
        load_pretrained(small, "in22k")
    with pytest.raises(CheckpointError, match=r"no weights are published for depths \(1, 1, 1, 1\)"):
        load_pretrained(tiny(), "in1k")


def test_the_list_of_published_weights_is_consistent() -> None:
    assert set(PUBLISHED) == set(backbone.SIZES)
    for size, files in PUBLISHED.items():
        assert set(files) <= set(NAMES)
        assert all(file.startswith(size + "_" + name) for name, file in files.items())
