"""The network equals the official release: names, shapes, sizes, numbers."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import backbone
from backbone import SIZES, UniRepLKNet

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONF = Path(__file__).parents[2] / "conf" / "backbone"
MANIFEST: dict[str, Any] = {
    f"unireplknet_{size}": entry
    for size, entry in json.loads(
        gzip.decompress((FIXTURES / "unireplknet_state_dicts.json.gz").read_bytes())
    ).items()
}


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_the_official_names_shapes_and_parameter_counts(size: str) -> None:
    entry = MANIFEST[size]
    with torch.device("meta"):
        train, deploy = getattr(backbone, size)(), getattr(backbone, size)(deploy=True)
    assert count(train) == entry["params_train"]
    assert count(deploy) == entry["params_deploy"]
    if "train" in entry:
        assert shapes(train) == entry["train"]
        assert shapes(deploy) == entry["deploy"]
    assert shapes(train.reparameterize()) == shapes(deploy)


@pytest.mark.parametrize("size", SIZES)
def test_config_of_an_official_size_is_that_size(size: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(size)
    assert config.name == size
    assert (tuple(config.model.depths), tuple(config.model.dims)) == SIZES[size]
    with torch.device("meta"):
        model = instantiate(config.model, in_chans=1)
    assert isinstance(model, UniRepLKNet)
    header = (CONF / f"{size}.yaml").read_text().splitlines()[0]
    written = float(header.split(": ")[1].split("M params")[0])
    assert written == pytest.approx(MANIFEST[size]["params_deploy"] / 1e6, rel=5e-3)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = torch.load(FIXTURES / "unireplknet_golden_small.pt", weights_only=True)
    return content


def golden_model(golden: dict[str, Any]) -> UniRepLKNet:
    model = UniRepLKNet(**golden["config"])
    model.load_state_dict(golden["state_dict"], strict=True)
    return model.eval()


@torch.no_grad()
def test_golden_evaluation(golden: dict[str, Any]) -> None:
    model = golden_model(golden)
    features = model.forward_features(golden["input"])
    for ours, official in zip(features, golden["features"], strict=True):
        torch.testing.assert_close(ours, official.float(), rtol=1e-3, atol=1e-3)  # they are stored as halves
    torch.testing.assert_close(model.forward_head(features), golden["logits"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_golden_deploy_form(golden: dict[str, Any]) -> None:
    model = golden_model(golden).reparameterize()
    assert shapes(model) == {name: list(shape) for name, shape in golden["deploy_state_dict"].items()}
    torch.testing.assert_close(model(golden["input"]), golden["deploy_logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_golden_training(golden: dict[str, Any], grad_checkpointing: bool) -> None:
    model = golden_model(golden).train()
    model.set_grad_checkpointing(grad_checkpointing)
    x = golden["input"].clone().requires_grad_()
    logits = model(x)
    torch.testing.assert_close(logits, golden["train_logits"], rtol=1e-4, atol=1e-5)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)  # the loss of the golden file
    (logits * weights).sum().backward()
    assert x.grad is not None
    error = (x.grad - golden["input_grad"]).norm() / golden["input_grad"].norm()
    assert error < 1e-4
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    # A bias in front of a batch norm has a gradient of zero but for rounding; hence the absolute part.
    assert norms == pytest.approx(
        {n: float(v) for n, v in golden["param_grad_norms"].items()}, rel=1e-4, abs=1e-5
    )
