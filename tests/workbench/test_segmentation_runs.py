"""Segmentation from end to end on a tiny network: what runs leave, and what the other actions make of them."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from figures_support import is_drawn, rendered
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from PIL import Image
from tests_support import TINY, weights

from tasks.datasets.image.dense_transforms import VOID
from tasks.metrics import confusion_of, iou_of
from tasks.segmentation_heads import UPerNetHead
from workbench.errors import TrainingError, UsageError, sentence

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
WORDS = (
    *TINY,
    "modality=image",
    "task=mask_folder",
    "task.data.limit=12",
    "task.data.batch_size=4",
    "task.data.transforms.size=64",
    "task.head.channels=8",
    "logger=csv",
)
FIGURES = {f"figures/{name}.png" for name in ("inputs", "curves", "iou", "confusion", "predictions")}


def picture(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.copy()


def result(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def run(composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / "fit"
    with rendered():
        run_action(composed(*WORDS, f"paths.samples={samples}", f"paths.run={folder}"))
    return folder


@pytest.fixture
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def test_a_run_leaves_numbers_and_pictures(run: Path) -> None:
    files = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert files >= {"config.yaml", "result.json", "metrics.csv", "test_report.json", *FIGURES}
    assert all(is_drawn(run / name) for name in FIGURES)
    metrics = result(run)["metrics"]
    assert {
        f"{split}/{name}" for split in ("val", "test") for name in ("miou", "macc", "acc", "loss")
    } <= set(metrics)
    assert result(run)["monitor"] == "val/miou"
    report = json.loads((run / "test_report.json").read_text())
    counts = torch.tensor(report["pixels"], dtype=torch.float64)
    assert metrics["test/miou"] == pytest.approx(float(iou_of(counts).nanmean()), abs=1e-6)
    assert metrics["test/acc"] == pytest.approx(float(counts.trace() / counts.sum()), abs=1e-6)
    given = [value for value in report["per_class"].values() if value is not None]
    assert metrics["test/miou"] == pytest.approx(sum(given) / len(given), abs=1e-6)


def test_a_test_has_a_row_for_each_picture(run: Path, checkpoint: Path, act: Act) -> None:
    again = act("trainer=cpu", "action=test", f"ckpt={checkpoint}", "action.predictions=true")
    assert result(again)["metrics"]["test/miou"] == pytest.approx(
        result(run)["metrics"]["test/miou"], rel=1e-6
    )
    table = pd.read_csv(again / "predictions.csv")
    assert len(table) == 12
    areas = table[[column for column in table if column.startswith("area(")]]
    assert np.allclose(areas.sum(axis=1), 1, atol=1e-4)
    assert {"miou", "macc", "acc", "iou(ground)", "iou(ring)"} <= set(table)


@pytest.mark.slow
def test_windows_scales_and_mirrors_may_be_asked_for(
    run: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    inference = (
        "mode=slide",
        "crop=64",
        "stride=40",
        "ratios=[0.5,1.0]",
        "flip=true",
        "resize=[128,64]",
        "fit=resize",
    )
    words = ("modality=image", "task=mask_folder", *(f"task.model.inference.{word}" for word in inference))
    done = command(tmp_path, "trainer=cpu", "action=test", f"ckpt={run}", "paths.run=other", *words)
    assert done.returncode == 0, done.stderr
    metrics = result(tmp_path / "other")["metrics"]
    assert metrics["test/loss"] != pytest.approx(result(run)["metrics"]["test/loss"], rel=1e-5)
    assert 0 <= metrics["test/miou"] <= 1


@pytest.mark.figures
def test_predict_writes_masks_overlays_and_areas(
    checkpoint: Path, act: Act, samples: Path, composed: Compose, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    source = samples / "mask_folder" / "images" / "test"
    picture(source / "scene_000.png").save(pictures / "a.png")
    picture(source / "scene_001.jpg").resize((60, 45)).save(pictures / "b.png")
    (pictures / "c.png").write_bytes(b"no picture")
    folder = act("trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"input={pictures}")
    table = pd.read_csv(folder / "predictions.csv")
    assert table["error"].isna().tolist() == [True, True, False]
    names = json.loads(json.dumps([c[5:-1] for c in table if c.startswith("area(")]))
    for number, stem in enumerate("ab"):
        name = f"{number:03d}_{stem}"
        mask = picture(folder / "masks" / f"{name}.png")
        assert mask.mode == "P"
        assert mask.size == picture(pictures / f"{stem}.png").size
        counts = np.bincount(np.asarray(mask).reshape(-1), minlength=len(names)) / (mask.width * mask.height)
        assert np.allclose(table.loc[number, [f"area({n})" for n in names]].astype(float), counts, atol=1e-5)
        assert names[int(counts.argmax())] == table.loc[number, "label"]
        assert picture(folder / "overlays" / f"{name}.png").width > 100
        areas = pd.read_csv(folder / name / "areas.csv")
        assert areas["pixels"].sum() == mask.width * mask.height
        colour = np.asarray(mask.convert("RGB")).reshape(-1, 3)[0].tolist()
        at_0 = int(np.asarray(mask).reshape(-1)[0])
        assert colour == mask.getpalette()[3 * at_0 : 3 * at_0 + 3]  # type: ignore[index]
    # By hand: the largest score at every pixel.
    from workbench.restore import restore

    cfg = composed("trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"paths.samples={samples}")
    task = restore(cfg).task
    pixels = torch.from_numpy(np.array(picture(pictures / "b.png").convert("RGB"))).permute(2, 0, 1)[None]
    filled = torch.zeros(1, 3, 64, 64)
    filled[..., :45, :60] = pixels
    with torch.inference_mode():
        scores = task.network({"pixels": filled, "size": torch.tensor([[45, 60]])})
        scores = torch.nn.functional.interpolate(scores, (64, 64), mode="bilinear")[..., :45, :60]
    said = np.asarray(picture(folder / "masks" / "001_b.png"))
    assert (scores.argmax(1)[0].numpy() == said).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mlp", "upernet"])
def test_export_takes_pictures_of_any_size(head: str, run: Path, act: Act) -> None:
    checkpoint = run / "checkpoints" / "best.ckpt"
    if head != "mlp":
        small = ("task.head.auxiliary_channels=8", "task.data.limit=4", "backbone.model.feature_norms=true")
        other = act(*WORDS, f"task/head={head}", *small, "action.test_after=false", folder="fit")
        checkpoint = other / "checkpoints" / "best.ckpt"
    folder = act("trainer=cpu", "action=export", f"ckpt={checkpoint}", folder="exported")
    about = json.loads((folder / "export" / "model.json").read_text())
    assert about["input"] == ["batch", 3, "height", "width"]
    assert about["output"] == ["batch", 7, "height/4", "width/4"]
    program = torch.export.load(folder / "export" / "model.pt2").module()
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "export" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    torch.manual_seed(0)
    for size in ((2, 3, 64, 96), (1, 3, 128, 64)):
        pixels = torch.randint(256, size, dtype=torch.uint8)
        out = program(pixels)
        assert out.shape == (size[0], 7, size[2] // 4, size[3] // 4)
        (onnx,) = session.run(None, {name: pixels.numpy()})
        assert np.allclose(onnx, out.detach().numpy(), atol=1e-3)


def test_info_counts_the_whole(act: Act, capsys: pytest.CaptureFixture[str]) -> None:
    act(*WORDS, "action=info", "task/head=upernet")
    said = capsys.readouterr().out
    assert "MACs of a sample" in said
    assert "class_names" in said


@pytest.mark.slow
def test_freezing_and_starting_from_a_run(run: Path, act: Act, samples: Path) -> None:
    begun = act(*WORDS, f"init_from={run}", "freeze=all", "action.test_after=false", folder="begun")
    before, after = weights(run), weights(begun)
    for name, value in after.items():
        if name.startswith("network.backbone."):
            assert value.equal(before[name]), name
    head = [name for name in after if name.startswith("network.head.") and after[name].is_floating_point()]
    assert any(not after[name].equal(before[name]) for name in head)
    # A classifier's stages are a start, too.
    classifier = act(*TINY, "modality=image", "task=image_folder", "task.data.limit=16", folder="classifier")
    act(*WORDS, f"init_from={classifier}", "action.test_after=false", folder="segmenter")
    taken = json.loads((begun.parent / "segmenter" / "init_from.json").read_text())
    assert taken["backbone"]["tensors"] > 50
    assert taken["head"] == []


@pytest.mark.slow
def test_a_run_that_is_continued_ends_as_an_unbroken_one(act: Act) -> None:
    words = (*WORDS, "action.test_after=false")
    whole = act(*words, "trainer.max_epochs=2", "scheduler=constant", folder="whole")
    act(*words, "trainer.max_epochs=1", "scheduler=constant", folder="parts")
    parts = act(
        *words,
        "trainer.max_epochs=2",
        "scheduler=constant",
        f"resume={whole.parent / 'parts'}",
        folder="parts",
    )
    one, other = weights(whole), weights(parts)
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.slow
def test_joint_with_a_classification(act: Act) -> None:
    folder = act(
        *TINY,
        "experiment=joint/four_modalities",
        "+modality@task.members.scenes.modality=image",
        "+task@task.members.scenes.task=mask_folder",
        "+task.members.scenes.data_dir=null",
        "+task.members.scenes.weight=1.0",
        "~task.members.point_cloud",
        "~task.members.video",
        "~task.members.time_series",
        "task@task.members.audio.task=audio_folder",
        "task.data.limit=8",
        "task.data.batch_size=4",
        "logger=csv",
    )
    metrics = result(folder)["metrics"]
    assert {"test/scenes/miou", "test/audio/acc", "test/score"} <= set(metrics)
    assert (folder / "figures" / "scenes" / "predictions.png").is_file()


# -- official checkpoints ------------------------------------------------------------------------------------


def official_checkpoint(path: Path, classes: int = 7, drop: str = "") -> dict[str, torch.Tensor]:
    """A file as mmsegmentation writes one: the official release's names, optimiser and notes beside the weights."""
    from backbone import UniRepLKNet

    torch.manual_seed(5)
    backbone = UniRepLKNet(
        3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), kernel_sizes=(3, 13, 13, 13), feature_norms=True
    )
    head = UPerNetHead((8, 8, 16, 16), classes, channels=8, auxiliary_channels=8)
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()} | head.state_dict()
    state = {
        name: torch.randn_like(value)
        if value.is_floating_point() and not name.endswith("running_var")
        else value
        for name, value in state.items()
        if name != drop
    }
    meta = {"mmseg_version": "0.27.0", "CLASSES": ["wall"], "PALETTE": [[120, 120, 120]], "iter": 160000}
    optimizer = {
        "state": {0: {"step": 1, "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 1e-4, "params": [0]}],
    }
    torch.save({"meta": meta, "state_dict": state, "optimizer": optimizer}, path)
    return state


OFFICIAL = ("task/head=upernet", "task.head.auxiliary_channels=8", "backbone.model.feature_norms=true")


def test_an_official_checkpoint_is_tested_as_it_is(composed: Compose, act: Act, tmp_path: Path) -> None:
    from workbench.build import build_network

    path = tmp_path / "upernet.pth"
    state = official_checkpoint(path)
    words = (*WORDS, *OFFICIAL, f"backbone.pretrained={path}")
    data_info = {"class_names": list("abcdefg"), "palette": [[0, 0, 0]] * 7}
    network = build_network(composed(*words), data_info)
    ours = {
        name.removeprefix("head.") if name.startswith("head.") else name: value
        for name, value in network.state_dict().items()
        if not name.startswith("embedder.")
    }
    assert ours.keys() == state.keys()
    assert all(value.equal(state[name]) for name, value in ours.items())
    folder = act(*words, "action=test")
    assert 0 <= result(folder)["metrics"]["test/acc"] <= 1


def test_an_official_checkpoint_that_does_not_fit_is_refused(composed: Compose, tmp_path: Path) -> None:
    from backbone import CheckpointError
    from workbench.build import build_network

    path = tmp_path / "upernet.pth"
    words = (*WORDS, *OFFICIAL, f"backbone.pretrained={path}")
    data_info = {"class_names": list("abcdefg"), "palette": [[0, 0, 0]] * 7}
    for missing in ("decode_head.bottleneck.conv.weight", "auxiliary_head.conv_seg.bias"):
        official_checkpoint(path, drop=missing)
        with pytest.raises((UsageError, TrainingError, CheckpointError), match=missing):
            build_network(composed(*words), data_info)
    for missing in ("backbone.norm2.bias", "backbone.stages.2.0.norm.weight"):
        official_checkpoint(path, drop=missing)
        with pytest.raises(
            (UsageError, TrainingError, CheckpointError), match=missing.removeprefix("backbone.")
        ):
            build_network(composed(*words), data_info)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("task.model.inference.mode=some",), "mode takes whole or slide"),
        (("task.model.auxiliary_weight=-1",), "auxiliary_weight must be at least 0"),
        (("task.loss.weight=even",), "a list of numbers, class name: number, or balanced, not 'even'"),
        (("task.loss.weight=[1,2]",), "2 class weights were given for 7 classes"),
        (("task.monitor=val/map",), "task.monitor=val/map is not measured here"),
        (("+modality.augment.mixup._target_=modalities.image_augment.ImageMixup",), "masks would not follow"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(
    words: tuple[str, ...], message: str, composed: Compose
) -> None:
    from workbench.build import build_task

    data_info = {"class_names": list("abcdefg"), "palette": [[0, 0, 0]] * 7}
    with pytest.raises((UsageError, InstantiationException)) as caught:
        build_task(composed(*WORDS, *words), data_info)
    assert re.search(message, sentence(caught.value) or ""), sentence(caught.value)


def test_ground_truth_measures_as_perfect(composed: Compose, samples: Path) -> None:
    """The sample's masks against themselves, as a batch of several sizes goes through the task's own path."""
    from workbench.build import build_data

    data = build_data(composed(*WORDS, f"paths.samples={samples}"))
    batch = next(iter(data.loader("test")))
    truth = batch.target
    counts = confusion_of(torch.where(truth == VOID, 0, truth), truth, 7)
    assert int(counts.sum()) == int((truth != VOID).sum())
    assert counts.trace() == counts.sum()


@pytest.mark.slow
def test_as_a_user_types_it(
    new_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = new_command(tmp_path, *WORDS, "task.data.data_dir=nowhere")
    assert done.returncode == 1
    assert "nowhere does not exist; mask_folder expects images/ and masks/" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_balanced_weights_are_measured_said_and_kept(act: Act, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run = act(
            *WORDS,
            "task.loss.weight=balanced",
            "trainer.limit_train_batches=1",
            "trainer.limit_val_batches=1",
        )
    (said,) = (line for line in caplog.messages if "class weights are balanced" in line)
    assert re.search(
        r"of what is trained on, (circle|cross|ring|square|star|triangle) is .* and ground ", said
    )
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = [value for name, value in kept.items() if name.endswith("class_weight")]
    assert len(weights) == 2, "of cross-entropy and of Dice"
    assert weights[0].equal(weights[1])
    assert float(weights[0][0]) == float(weights[0].min()) < 0.5, "the ground is what there is most of"
    assert float(weights[0].median()) == pytest.approx(1.0, abs=0.2)
