"""init_from and freeze on tiny runs: what is taken, what is adapted, what stays."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig
from tests_support import TINY

from backbone.checkpoints import adapt_first_conv

Act = Callable[..., Path]
STEM = "network.backbone.downsample_layers.0.0.weight"
AUDIO = (*TINY, "task=audio_folder", "task.data.limit=24", "task.data.num_workers=0")
IMAGE = (*TINY, "modality=image", "task.data.transforms.size=32", "task.data.limit=8", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def audio_run(
    composed: Callable[..., DictConfig], samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / "audio"
    run_action(composed(*AUDIO, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


def state(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    found: dict[str, torch.Tensor] = content["state_dict"]
    return found


def record(run: Path) -> dict:  # type: ignore[type-arg]
    content: dict = json.loads((run / "init_from.json").read_text())  # type: ignore[type-arg]
    return content


def test_another_modality_takes_the_stages_and_an_adapted_stem(
    audio_run: Path, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = act(*IMAGE, f"init_from={audio_run}", "freeze=all")
    source, ours = state(audio_run, "best"), state(run)
    backbone = [name for name in source if name.startswith("network.backbone.") and name != STEM]
    assert all(torch.equal(source[name], ours[name]) for name in backbone)
    torch.testing.assert_close(ours[STEM], adapt_first_conv(source[STEM], 3))
    taken = record(run)
    assert (taken["modality"], taken["task"]) == ("audio", "audio_folder")
    assert taken["backbone"]["tensors"] == len(backbone) + 1
    assert taken["backbone"]["adapted"] == ["downsample_layers.0.0.weight (1 -> 3 input channels)"]
    assert taken["embedder"] == taken["head"] == []
    assert "adapted: downsample_layers.0.0.weight (1 -> 3 input channels)" in caplog.text
    assert "freeze: embedder, backbone; 168 of" in caplog.text  # norm 2·16, linear 16·8 + 8


def test_the_same_task_goes_on_with_head_and_statistics(audio_run: Path, act: Act) -> None:
    run = act(*AUDIO, f"init_from={audio_run / 'checkpoints' / 'last.ckpt'}", "optimizer.lr=0")
    taken = record(run)
    assert "linear.weight" in taken["head"]
    assert "normalize.mean" in taken["embedder"]
    source, ours = state(audio_run), state(run)
    for name in ("network.head.linear.weight", "network.embedder.normalize.mean", STEM):
        assert torch.equal(source[name], ours[name])


def test_other_classes_keep_the_norm_in_front_of_the_classifier(
    audio_run: Path, act: Act, tmp_path: Path
) -> None:
    """As official fine-tuning from ImageNet-22K to 1K does: `norm` is kept, `head` starts anew."""
    for split in ("train", "val", "test"):
        for label, pitch in (("high", 0.5), ("low", 0.05)):
            (tmp_path / "two" / split / label).mkdir(parents=True)
            for index in range(2):
                soundfile.write(
                    tmp_path / "two" / split / label / f"{index}.wav", np.sin(np.arange(16000) * pitch), 16000
                )
    words = (*TINY, "task=audio_folder", f"data_dir={tmp_path / 'two'}", "task.data.num_workers=0")
    run = act(*words, f"init_from={audio_run / 'checkpoints' / 'last.ckpt'}", "optimizer.lr=0")
    assert record(run)["head"] == ["norm.bias", "norm.weight"]
    source, ours = state(audio_run), state(run)
    for name in ("network.head.norm.weight", "network.head.norm.bias"):
        assert torch.equal(source[name], ours[name])
        assert not torch.equal(ours[name], untrained_norm(name)), (
            "trained weights are told from untrained ones"
        )
    assert ours["network.head.linear.weight"].shape == (2, 16)


def untrained_norm(name: str) -> torch.Tensor:
    """A layer norm's first values."""
    return torch.ones(16) if name.endswith("weight") else torch.zeros(16)


def test_other_settings_of_the_embedder_measure_anew(audio_run: Path, act: Act) -> None:
    words = (*AUDIO, f"init_from={audio_run}", "modality.embedder.num_mel_bins=32")
    run = act(*words, "freeze=stages.1-2")
    assert record(run)["embedder"] == []
    source, ours = state(audio_run, "best"), state(run)
    assert not torch.equal(source["network.embedder.normalize.mean"], ours["network.embedder.normalize.mean"])
    same = {name for name in source if torch.equal(source[name], ours[name])}
    frozen = (
        "network.backbone.stages.1",
        "network.backbone.stages.2",
        "network.backbone.downsample_layers.2",
    )
    assert {name for name in source if name.startswith(frozen)} <= same
    assert STEM not in same


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("init_from=nowhere",), "there is no file nowhere"),
        (("init_from={empty}",), "there is no checkpoint in the folder"),
        (("freeze=stages.0-4",), "stages.0-4 is not one of none, all, embedder, stem"),
        (("freeze=[stem,mouth]",), "mouth is not one of"),
        (("init_from={audio}", "backbone.model.dims=[8,8,16,32]"), "does not fit this network"),
    ],
)
def test_wrong_input_gets_one_sentence(
    words: tuple[str, ...],
    said: str,
    audio_run: Path,
    act: Act,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "empty").mkdir()
    words = tuple(word.format(empty=tmp_path / "empty", audio=audio_run) for word in words)
    with pytest.raises(SystemExit):
        act(*IMAGE, *words)
    (error,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said in error
    assert "\n" not in error


def test_two_sources_of_the_backbone_are_told_apart(
    audio_run: Path, act: Act, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = "network.backbone."
    other = {
        name.removeprefix(prefix): 0 * value for name, value in state(audio_run).items() if prefix in name
    }
    torch.save(other, tmp_path / "other.pth")
    words = (*AUDIO, f"init_from={audio_run / 'checkpoints' / 'last.ckpt'}", "optimizer.lr=0")
    run = act(*words, f"backbone.pretrained={tmp_path / 'other.pth'}")
    assert torch.equal(state(audio_run)[STEM], state(run)[STEM])
    assert f"not from those of backbone.pretrained={tmp_path / 'other.pth'}" in caplog.text
