"""What stands both in code and in YAML says the same: the official sizes, and the settings of UniRepLKNet."""

import inspect

import pytest
from omegaconf import OmegaConf
from tests_support import ROOT

from backbone import SIZES, UniRepLKNet, unireplknet_a

FOLDER = ROOT / "conf" / "backbone"


@pytest.mark.parametrize("name", SIZES)
def test_a_size_in_yaml_is_the_official_one(name: str) -> None:
    model = OmegaConf.load(FOLDER / f"{name}.yaml").model
    assert (tuple(model.depths), tuple(model.dims)) == SIZES[name]


def test_settings_in_yaml_are_those_of_the_constructor() -> None:
    yaml = OmegaConf.to_container(OmegaConf.load(FOLDER / "_base.yaml").model)
    assert isinstance(yaml, dict)
    known = {name: parameter.default for name, parameter in inspect.signature(UniRepLKNet).parameters.items()}
    assert yaml.pop("_target_") == "backbone.UniRepLKNet"
    assert (yaml.pop("depths"), yaml.pop("dims")) == ("???", "???"), "of each size"
    assert yaml.pop("num_classes") == 0, "the task's head answers"
    assert yaml == {name: known[name] for name in yaml}
    assert set(known) - set(yaml) == {
        *("in_chans", "num_classes", "depths", "dims"),
        *("head_init_scale", "deploy"),
    }


def test_a_size_takes_what_the_network_takes() -> None:
    known = dict(inspect.signature(UniRepLKNet).parameters)
    taken = dict(inspect.signature(unireplknet_a).parameters)
    assert set(taken) == (set(known) - {"depths", "dims"}) | {"pretrained"}
    assert all(taken[name].default == known[name].default for name in taken if name != "pretrained")
