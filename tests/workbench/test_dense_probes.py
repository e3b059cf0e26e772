"""Probes, features and shards of segmentation, detection and sound events, whose samples differ in size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from tests_support import TINY

from modalities.audio import LogMel
from modalities.embedder import by_size
from modalities.image import Pixels
from tasks.network import Network
from workbench.errors import UsageError
from workbench.probes.common import maps_of, middles
from workbench.probes.robustness import corruptions
from workbench.representations.features import Features

Act = Callable[..., Path]
LIMIT = ("task.data.limit=8", "task.data.batch_size=4")
TASKS = {
    "mask_folder": (*TINY, *LIMIT, "modality=image", "task=mask_folder"),
    "box_folder": (
        *TINY,
        *LIMIT,
        "modality=image",
        "task=box_folder",
        "task/head=fcos",
        "task.head.channels=8",
    ),
    "sound_events": (*TINY, *LIMIT, "modality=audio", "task=sound_events"),
}
EVERY = pytest.mark.parametrize("task", list(TASKS))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return min(image.size) > 100


@pytest.mark.figures
@EVERY
def test_receptive_field_and_similarity_without_padding(task: str, act: Act) -> None:
    folder = act(*TASKS[task], "action=probe_erf", "action.inputs=5", "action.batch_size=3", folder="erf")
    found = read(folder, "erf")
    assert found["networks"][0]["inputs"] == 5
    assert 0 < found["networks"][0]["areas"][0]["area_ratio"] < 1
    assert is_picture(folder / "figures" / "erf.png")
    folder = act(*TASKS[task], "action=probe_cka", "action.inputs=8", "action.batch_size=4", folder="cka")
    values = np.array(read(folder, "cka")["pairs"][0]["cka"])
    assert np.allclose(np.diag(values), 1, atol=1e-4)
    assert is_picture(folder / "figures" / "cka.png")


@pytest.mark.figures
@EVERY
def test_kernels(task: str, act: Act) -> None:
    folder = act(*TASKS[task], "action=probe_kernels")
    assert len(read(folder, "kernels")["blocks"]) == 4
    assert is_picture(folder / "figures" / "kernels.png")


@pytest.mark.figures
@EVERY
def test_features_of_every_sample_and_what_they_are_not_asked(
    task: str, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    """Masks, boxes and events are no class of a sample."""
    folder = act(*TASKS[task], "action=embed", "action.splits=[val,test]", folder="embed")
    rows = pd.read_parquet(folder / "embeddings.parquet")
    assert len(rows) == 16
    assert rows["error"].isna().all()
    assert rows["label"].isna().all()
    assert rows["target"].isna().all()
    assert rows["where"].dropna().map(len).max() < 500, "labels are no place in a file"
    assert is_picture(folder / "figures" / "embedding.png")
    with pytest.raises(SystemExit):
        act(*TASKS[task], "action=evaluate", folder="evaluate")
    assert f"asks for the class of a whole sample, which those of {task} do not have" in caplog.text
    with pytest.raises(SystemExit):
        act(
            *TASKS[task],
            "action=embed",
            "action.pool=false",
            "action.stage=0",
            "action.splits=[test]",
            folder="maps",
        )
    assert "maps of one size are needed, or action.pool=true" in caplog.text


@EVERY
def test_shape_bias_is_for_classifiers(task: str, act: Act, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit):
        act(*TASKS[task], "action=probe_shape_bias", "ckpt=nowhere.ckpt", folder="shape")
    assert "nowhere.ckpt" in caplog.text


def test_shards_of_events_are_refused(act: Act, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit):
        act(*TASKS["sound_events"], "action=shard", f"action.out={tmp_path / 'out'}")
    assert "action=shard writes sounds and videos with classes" in caplog.text
    assert "not sound_events (audio)" in caplog.text


@pytest.mark.figures
@pytest.mark.slow
@EVERY
def test_a_trained_run_is_asked_everything(
    task: str, act: Act, composed: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    words = ("trainer=cpu", f"ckpt={act(*TASKS[task], 'logger=csv', folder='fit')}")
    with pytest.raises(SystemExit):
        act(*words, "action=probe_shape_bias", folder="shape")
    assert "shape bias is that of a classifier of images with one class each" in caplog.text
    folder = act(*words, "action=probe_robustness", folder="robustness")
    found = read(folder, "robustness")
    tested = read(act(*words, "action=test", folder="test"), "result")["metrics"]
    assert found["metric"] in tested
    names = {"noise"} if task == "sound_events" else {"noise", "blur", "contrast"}
    assert set(found["corruptions"]) == names
    for curve in found["corruptions"].values():
        assert curve["scores"][0] == pytest.approx(tested[found["metric"]], abs=1e-6)
    assert is_picture(folder / "figures" / "robustness.png")
    for name in ("probe_erf", "probe_kernels", "probe_cka", "embed"):
        folder = act(*words, f"action={name}", folder=name)
        assert any((folder / "figures").glob("*.png")), name


# -- parts ---------------------------------------------------------------------------------------------------------


def images() -> dict[str, torch.Tensor]:
    sizes = [(40, 64), (64, 48), (40, 64)]
    pixels = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(1)
    for image, (height, width) in zip(pixels, sizes, strict=True):
        image[:, :height, :width] = torch.randint(256, (3, height, width), generator=generator)
    return {"pixels": pixels, "size": torch.tensor(sizes)}


class Stages(torch.nn.Module):
    """Two feature maps."""

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x[:, :, ::2, ::2].square()]


class Asked(torch.nn.Module):
    """A task, as far as a probe asks it."""

    network = Network(Pixels(64), Stages(), torch.nn.Identity())  # type: ignore[arg-type]


def test_features_do_not_depend_on_the_rest_of_the_batch() -> None:
    raw, network = images(), Asked.network
    found = Features().of(network, raw)
    for place, (height, width) in enumerate(raw["size"].tolist()):
        alone = Features().of(network, raw["pixels"][place : place + 1, :, :height, :width])
        torch.testing.assert_close(found[place : place + 1], alone)
    same = {name: value[[0, 2]] for name, value in raw.items()}
    assert Features(pool=False).of(network, same).shape == (2, 3, 20, 32)
    with pytest.raises(UsageError, match="maps of one size are needed"):
        Features(pool=False).of(network, raw)


def test_maps_of_several_sizes_are_their_middles() -> None:
    raw = images()
    maps = maps_of(Asked(), raw)  # type: ignore[arg-type]
    assert maps.shape == (3, 1, 3, 40, 48)
    own = Asked.network.embedder(raw["pixels"][:1, :, :40, :64])
    torch.testing.assert_close(maps[:1], own[..., :, 8:56])
    own = Asked.network.embedder(raw["pixels"][1:2, :, :64, :48])
    torch.testing.assert_close(maps[1:2], own[..., 12:52, :])
    one = torch.arange(6.0).reshape(1, 2, 3)
    assert [each.tolist() for each in middles([one, torch.zeros(1, 5, 1)])] == [[[[1], [4]]], [[[0], [0]]]]


def test_samples_are_stacked_by_size() -> None:
    raw = {"waveform": torch.arange(12.0).reshape(3, 4), "length": torch.tensor([2, 4, 2])}
    samples = LogMel(seconds=0.25).unpadded(raw)
    assert samples is not None
    assert [(places, stack.tolist()) for places, stack in by_size(samples)] == [
        ([0, 2], [[0, 1], [8, 9]]),
        ([1], [[4, 5, 6, 7]]),
    ]
    assert LogMel(seconds=0.25).unpadded(raw["waveform"]) is None
    assert Pixels(8).unpadded(torch.zeros(1, 3, 8, 8)) is None


def test_what_moves_an_event_is_left_out_or_refused() -> None:
    assert set(corruptions("audio", None, None)) == {"noise", "time_shift"}
    assert set(corruptions("audio", None, None, located=True)) == {"noise"}
    assert set(corruptions("image", None, None, located=True)) == {"noise", "blur", "contrast"}
    with pytest.raises(UsageError, match="time_shift moves what the targets say the place or time of"):
        corruptions("audio", ["time_shift"], None, located=True)
