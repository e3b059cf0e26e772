"""Detection from end to end on a tiny network: what runs leave, and what the other actions make of them."""

import json
import re
import shutil
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

from backbone.cross_process_norm import CrossProcessBatchNorm2d, across_processes
from tasks.detectors.two_stage import TwoStageHead
from workbench.errors import TrainingError, UsageError, sentence

Act = Callable[..., Path]
Compose = Callable[..., DictConfig]
TASK = (
    *TINY,
    "modality=image",
    "task=box_folder",
    "task.data.limit=8",
    "task.data.batch_size=4",
    "logger=csv",
)
WORDS = (*TASK, "task/head=fcos", "task.head.channels=8")
CASCADE = (
    *TASK,
    "task/head=cascade_mask_rcnn",
    "task.head.channels=8",
    "task.head.samples=16",
    "task.head.box.width=16",
    "task.head.box.convs=1",
    "task.head.mask.convs=1",
    "task.head.rpn.before=[40,20]",
    "task.head.rpn.after=[30,20]",
    "task.head.test.most=10",
    "task.head.test.score=0.01",
)
FIGURES = {f"figures/{name}.png" for name in ("inputs", "curves", "ap", "predictions")}
DATA_INFO = {"class_names": list("abcdef"), "has_masks": True}
MEASURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def result(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def run(composed: Compose, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cascade Mask R-CNN, boxes and masks."""
    from workbench.actions import run_action

    folder = tmp_path_factory.mktemp("runs") / "fit"
    with rendered():
        run_action(composed(*CASCADE, f"paths.samples={samples}", f"paths.run={folder}"))
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
        f"{split}/{mask}{name}" for split in ("val", "test") for mask in ("", "mask_") for name in MEASURES
    } <= set(metrics)
    assert result(run)["monitor"] == "val/ap"
    report = json.loads((run / "test_report.json").read_text())
    given = [value for value in report["per_class"].values() if value is not None]
    assert metrics["test/ap"] == pytest.approx(sum(given) / len(given), abs=1e-6)


def test_a_test_has_a_row_for_each_detection(run: Path, checkpoint: Path, act: Act, samples: Path) -> None:
    again = act("trainer=cpu", "action=test", f"ckpt={checkpoint}", "action.predictions=true")
    for name, value in result(run)["metrics"].items():
        if name.startswith("test/ap"):
            other = result(again)["metrics"][name]
            assert other == value or other == pytest.approx(value, rel=1e-6)
    table = pd.read_csv(again / "predictions.csv")
    assert table["path"].nunique() == 8
    assert {"label", "score", "x1", "y1", "x2", "y2", "truth", "iou"} <= set(table)
    truth = json.loads((samples / "box_folder" / "annotations" / "instances_test.json").read_text())
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    tested = {Path(path).name for path in table["path"]}
    objects = [
        row
        for row in truth["annotations"]
        if Path(names[row["image_id"]]).name in tested and not row["iscrowd"]
    ]
    assert table["truth"].notna().sum() == len(objects), "each object is found once or missed"


@pytest.mark.figures
def test_predict_writes_cocos_file_overlays_and_tables(
    checkpoint: Path, act: Act, samples: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    source = samples / "box_folder" / "images" / "test"
    with Image.open(source / "scene_001.jpg") as image:
        image.save(pictures / "a.png")
        image.resize((60, 45)).save(pictures / "b.png")
    (pictures / "c.png").write_bytes(b"no picture")
    folder = act("trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"input={pictures}")
    table = pd.read_csv(folder / "predictions.csv")
    assert table["error"].isna().tolist() == [True, True, False]
    found = json.loads((folder / "detections.json").read_text())
    assert [Path(image["file_name"]).name for image in found["images"]] == ["a.png", "b.png"]
    assert (found["images"][1]["width"], found["images"][1]["height"]) == (60, 45)
    assert [category["id"] for category in found["categories"]] == [1, 2, 3, 4, 5, 6]
    from pycocotools.coco import COCO

    read = COCO()
    read.dataset = found
    read.createIndex()
    for number, stem in enumerate("ab"):
        boxes = pd.read_csv(folder / f"{number:03d}_{stem}" / "boxes.csv")
        own = read.imgToAnns[number]
        assert len(boxes) == len(own) > 0
        assert np.allclose([row["bbox"][0] for row in own], boxes["x1"], atol=0.01)
        assert all(row["bbox"][0] >= 0 and row["bbox"][0] + row["bbox"][2] <= 130 for row in own)
        assert boxes["score"].is_monotonic_decreasing
        with Image.open(folder / "overlays" / f"{number:03d}_{stem}.png") as overlay:
            assert overlay.width > 100
    # One file by itself.
    one = act(
        "trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"input={pictures / 'b.png'}", folder="one"
    )
    alone = json.loads((one / "detections.json").read_text())
    assert len(alone["annotations"]) == len(read.imgToAnns[1])


def annotations_from(detections: Any, folder: Path) -> Path:
    """A file of annotations, some of whose objects a model has found, with ids that are neither 1 … n nor in order."""
    images = {row["id"]: 7000 - 13 * row["id"] for row in detections["images"]}
    categories = {row["id"]: 90 - 11 * row["id"] for row in detections["categories"]}
    objects = []
    for number, row in enumerate(detections["annotations"][::3]):
        x, y, width, height = row["bbox"]
        own = {"id": 5 * number + 3, "image_id": images[row["image_id"]], "iscrowd": 0}
        own |= {"category_id": categories[row["category_id"]], "segmentation": row["segmentation"]}
        own |= {"bbox": [x, y, width * (0.57 + 0.1 * (number % 5)), height], "area": row["area"]}
        objects.append(own)
    pictures = [
        {**row, "id": images[row["id"]], "file_name": Path(row["file_name"]).name}
        for row in detections["images"]
    ]
    named = [{**row, "id": categories[row["id"]]} for row in detections["categories"]]
    file = folder / "annotations" / "instances_test.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"images": pictures, "annotations": objects, "categories": named}))
    return file


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_results_can_be_evaluated_against_the_annotations(
    checkpoint: Path, act: Act, samples: Path, tmp_path: Path
) -> None:
    """By COCO's own program, with the ids of the annotations, after a test and after a prediction."""
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    pictures = tmp_path / "data" / "images" / "test"
    pictures.mkdir(parents=True)
    for number in range(6):
        name = f"scene_{number + 1:03d}.jpg"
        shutil.copy(samples / "box_folder" / "images" / "test" / name, pictures)
    words = ("trainer=cpu", "action=predict", f"ckpt={checkpoint}")
    found = json.loads((act(*words, f"input={pictures}") / "detections.json").read_text())
    for row in found["annotations"]:
        row["area"] = float(mask.area(row["segmentation"]))
    file = annotations_from(found, tmp_path / "data")
    tested = act(
        "trainer=cpu",
        "action=test",
        f"ckpt={checkpoint}",
        f"data_dir={tmp_path / 'data'}",
        "action.predictions=true",
        folder="tested",
    )
    predicted = act(
        "trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"input={file}", folder="predicted"
    )
    truth = COCO(file)
    metrics = result(tested)["metrics"]
    assert min(metrics["test/ap50"], metrics["test/mask_ap50"]) > 0.1, "else nothing would be compared"
    for folder in (tested, predicted):
        answers = truth.loadRes(str(folder / "coco_results.json"))
        for kind, prefix in (("bbox", ""), ("segm", "mask_")):
            measured = COCOeval(truth, answers, kind)
            measured.evaluate()
            measured.accumulate()
            measured.summarize()
            for place, name in ((0, "ap"), (1, "ap50"), (2, "ap75")):
                ours = metrics[f"test/{prefix}{name}"]
                assert measured.stats[place] == pytest.approx(ours, abs=1e-5), (folder.name, kind, name)
        described = json.loads((folder / "detections.json").read_text())
        assert {row["id"]: Path(row["file_name"]).name for row in described["images"]} == {
            row["id"]: row["file_name"] for row in json.loads(file.read_text())["images"]
        }


@pytest.mark.slow
def test_pictures_may_be_scaled_for_a_test(
    run: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = ("modality=image", "task=box_folder", "task.model.inference.resize=[64,48]")
    done = command(tmp_path, "trainer=cpu", "action=test", f"ckpt={run}", "paths.run=other", *words)
    assert done.returncode == 0, done.stderr
    metrics = result(tmp_path / "other")["metrics"]
    assert metrics["test/loss"] != pytest.approx(result(run)["metrics"]["test/loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_that_is_continued_ends_as_an_unbroken_one(act: Act) -> None:
    """Also its average of weights."""
    words = (*CASCADE, "action.test_after=false", "scheduler=constant", "callbacks=[default,ema]")
    whole = act(*words, "trainer.max_epochs=2", folder="whole")
    act(*words, "trainer.max_epochs=1", folder="parts")
    parts = act(*words, "trainer.max_epochs=2", f"resume={whole.parent / 'parts'}", folder="parts")
    one, other = weights(whole), weights(parts)
    assert all(one[name].equal(other[name]) for name in one)
    trained = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["training_state_dict"]
    head = [name for name in trained if ".fc_cls.weight" in name]
    assert head
    assert not any(trained[name].equal(one[name]) for name in head), "what is validated is the average"


@pytest.mark.slow
def test_freezing_and_starting_from_a_run(run: Path, act: Act) -> None:
    begun = act(*CASCADE, f"init_from={run}", "freeze=all", "action.test_after=false", folder="begun")
    before, after = weights(run), weights(begun)
    for name, value in after.items():
        if name.startswith("network.backbone."):
            assert value.equal(before[name]), name
    moved = [name for name in after if ".fc_cls.weight" in name and not after[name].equal(before[name])]
    assert len(moved) == 3
    # Another head begins with the backbone.
    act(*WORDS, f"init_from={run}", "action.test_after=false", folder="light")
    taken = json.loads((begun.parent / "light" / "init_from.json").read_text())
    assert taken["backbone"]["tensors"] > 50
    assert taken["head"] == []


def test_layers_learn_at_their_own_rate(act: Act) -> None:
    words = (
        *WORDS,
        "optimizer.layer_decay=0.5",
        "optimizer.layer_groups=official_14",
        "action.test_after=false",
    )
    folder = act(*words, "scheduler=constant", "optimizer.lr=0.001", folder="layers")
    rates = pd.read_csv(folder / "metrics.csv").filter(like="lr/layer_").dropna().iloc[-1]
    assert rates["lr/layer_13"] == pytest.approx(1e-3)
    assert rates["lr/layer_12"] == pytest.approx(5e-4)
    assert rates["lr/layer_00"] == pytest.approx(1e-3 * 0.5**13)
    assert set(rates.index) == {f"lr/layer_{layer:02d}" for layer in (0, 1, 2, 3, 12, 13)}


@pytest.mark.slow
def test_a_backbone_of_timm(act: Act) -> None:
    words = [word for word in CASCADE if not word.startswith("backbone")]
    folder = act(*words, "backbone=convnext_atto", "task.data.limit=4", folder="timm")
    assert 0 <= result(folder)["metrics"]["test/ap50"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "expected"), [("faster_rcnn", set[str]()), ("mask_rcnn", {"test/mask_ap", "test/mask_ap50"})]
)
def test_heads_of_one_stage(head: str, expected: set[str], act: Act) -> None:
    words = [word for word in CASCADE if "task/head" not in word and ("mask.convs" not in word or expected)]
    folder = act(*words, f"task/head={head}", "task.data.limit=4", folder=head)
    metrics = set(result(folder)["metrics"])
    assert "test/ap50" in metrics
    assert {
        name for name in metrics if "mask" in name and name in ("test/mask_ap", "test/mask_ap50")
    } == expected


def test_info_counts_the_whole(act: Act, capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for most in (20, 10):
        act(*CASCADE, "action=info", f"task.head.rpn.after=[30,{most}]", folder=f"info_{most}")
        said[most] = capsys.readouterr().out
    macs = {most: float(re.search(r"MACs of a sample .*?([\d.]+) G", text)[1]) for most, text in said.items()}  # type: ignore[index]
    assert macs[20] > macs[10], "a proposal costs something"
    assert "has_masks" in said[20]


def test_norms_of_the_heads_are_shared_among_processes(composed: Compose) -> None:
    from workbench.build import build_network

    network = build_network(composed(*CASCADE), DATA_INFO)
    across_processes(network)
    assert isinstance(network.head, TwoStageHead)
    for head in network.head.roi_head.bbox_head:
        assert isinstance(head.shared_convs[0].bn, CrossProcessBatchNorm2d)  # type: ignore[union-attr, index]


@pytest.mark.slow
def test_two_processes_train_and_measure_together(
    new_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    words = [word for word in CASCADE if not word.startswith("trainer=")]
    done = new_command(tmp_path, *words, *two, "task.data.limit=9", "paths.run=run", timeout=500)
    assert done.returncode == 0, done.stderr
    metrics = result(tmp_path / "run")["metrics"]
    again = new_command(tmp_path, "trainer=cpu", "action=test", "ckpt=run", "paths.run=again", timeout=300)
    assert again.returncode == 0, again.stderr
    for name in ("test/ap", "test/ap50", "test/mask_ap"):
        assert metrics[name] == pytest.approx(result(tmp_path / "again")["metrics"][name], abs=1e-5)


@pytest.mark.slow
def test_joint_with_a_classification(act: Act) -> None:
    folder = act(
        *TINY,
        "experiment=joint/four_modalities",
        "+modality@task.members.scenes.modality=image",
        "+task@task.members.scenes.task=box_folder",
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
    assert {"test/scenes/ap", "test/audio/acc", "test/score"} <= set(metrics)
    assert (folder / "figures" / "scenes" / "predictions.png").is_file()
    tested = act("trainer=cpu", "action=test", f"ckpt={folder}", "action.predictions=true", folder="tested")
    assert {file.name for file in tested.glob("predictions_*.csv")} == {
        "predictions_audio.csv",
        "predictions_scenes.csv",
    }
    found = json.loads((tested / "detections_scenes.json").read_text())
    assert found["info"]["image_ids"] == "of the annotations"
    assert len(found["images"]) == 8
    assert len(json.loads((tested / "coco_results_scenes.json").read_text())) == len(found["annotations"])


# -- export --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "formats"),
    [
        pytest.param(WORDS, "[torch_export,onnx]", id="fcos"),
        pytest.param(CASCADE, "[torch_export,onnx]", id="cascade"),
    ],
)
def test_a_whole_detector_is_exported(
    words: tuple[str, ...], formats: str, act: Act, samples: Path, composed: Compose
) -> None:
    from workbench.restore import restore

    test = ("task.head.test.score=0.0", "task.head.test.most=10", "task.head.test.candidates=100")
    trained = act(
        *words, *test[: 1 + 2 * ("fcos" in str(words))], "task.data.limit=4", "action.test_after=false"
    )
    export = ("trainer=cpu", "action=export", f"ckpt={trained}", f"action.formats={formats}")
    folder = act(*export, folder="exported")
    about = json.loads((folder / "export" / "model.json").read_text())
    has_masks = words is CASCADE
    boxes = about["output"][0] if has_masks else about["output"]
    assert boxes == ["batch", 10, 6]
    assert about["input"] == ["batch", 3, 128, 128]
    with Image.open(samples / "box_folder" / "images" / "test" / "scene_002.jpg") as image:
        pixels = (
            torch.from_numpy(np.array(image.resize((128, 128)))).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
        )
    task = restore(
        composed("trainer=cpu", "action=export", f"ckpt={trained}", f"paths.samples={samples}")
    ).task
    with torch.inference_mode():
        wanted = task.network(pixels)
    program = torch.export.load(folder / "export" / "model.pt2").module()
    given = program(pixels)
    assert task.difference(given, wanted) < 1e-3
    if "onnx" in formats:
        import onnxruntime

        session = onnxruntime.InferenceSession(
            folder / "export" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        answers = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
        onnx = tuple(torch.from_numpy(answer) for answer in answers)
        assert task.difference(onnx if has_masks else onnx[0], wanted) < 1e-3


# -- official checkpoints ------------------------------------------------------------------------------------------


OFFICIAL = (*CASCADE, "backbone.model.feature_norms=true")


def official_checkpoint(
    path: Path, composed: Compose, drop: str = "", classes: int = 6
) -> dict[str, torch.Tensor]:
    """A file as mmdetection writes one: the official release's names, optimiser and notes beside the weights."""
    from workbench.build import build_network

    torch.manual_seed(5)
    network = build_network(
        composed(*OFFICIAL), {"class_names": list("abcdefgh")[:classes], "has_masks": True}
    )
    state = {}
    for name, value in network.state_dict().items():
        name = name.removeprefix("head.")
        if name.startswith("embedder.") or name == drop:
            continue
        drawn = value.is_floating_point() and not name.endswith("running_var")
        state[name] = torch.randn_like(value) if drawn else value
    meta = {"mmdet_version": "2.28.1", "CLASSES": ("person", "bicycle"), "epoch": 36}
    optimizer = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"meta": meta, "state_dict": state, "optimizer": optimizer}, path)
    return state


def test_an_official_checkpoint_is_tested_as_it_is(
    composed: Compose, act: Act, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from workbench.build import build_network

    path = tmp_path / "cascade.pth"
    state = official_checkpoint(path, composed)
    words = (*OFFICIAL, f"backbone.pretrained={path}")
    network = build_network(composed(*words), DATA_INFO)
    ours = {
        name.removeprefix("head."): value
        for name, value in network.state_dict().items()
        if not name.startswith("embedder.")
    }
    assert ours.keys() == state.keys()
    assert all(value.equal(state[name]) for name, value in ours.items())
    folder = act(*words, "action=test")
    assert 0 <= result(folder)["metrics"]["test/ap50"] <= 1
    official_checkpoint(path, composed, classes=8)
    with pytest.raises(SystemExit):
        act(*words, "action=test", folder="other")
    assert "train first, then test" in caplog.text


@pytest.mark.parametrize(
    "missing",
    [
        "neck.lateral_convs.2.conv.bias",
        "rpn_head.rpn_reg.weight",
        "roi_head.bbox_head.1.shared_fcs.0.weight",
        "roi_head.mask_head.2.upsample.bias",
        "backbone.norm2.bias",
    ],
)
def test_an_official_checkpoint_that_lacks_something_is_refused(
    missing: str, composed: Compose, tmp_path: Path
) -> None:
    from backbone import CheckpointError
    from workbench.build import build_network

    path = tmp_path / "cascade.pth"
    official_checkpoint(path, composed, drop=missing)
    with pytest.raises((UsageError, TrainingError, CheckpointError), match=missing.removeprefix("backbone.")):
        build_network(composed(*OFFICIAL, f"backbone.pretrained={path}"), DATA_INFO)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "data_info", "message"),
    [
        (("task.model.inference.resize=[64]",), DATA_INFO, "resize takes a longer and a shorter side"),
        (("task.model.shown_score=2",), DATA_INFO, "shown_score in"),
        (("task.monitor=val/miou",), DATA_INFO, "task.monitor=val/miou is not measured here"),
        (
            ("+modality.augment.mixup._target_=modalities.image_augment.ImageMixup",),
            DATA_INFO,
            "boxes would not follow",
        ),
        (
            ("task/head=mask_rcnn",),
            {**DATA_INFO, "has_masks": False},
            "needs data with masks, and these have none",
        ),
        (("task.head.rpn.positive=0.1",), DATA_INFO, "0 < negative <= positive"),
        (("+task.head.rpn.anchors=3",), DATA_INFO, "unexpected keyword argument 'anchors'"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(
    words: tuple[str, ...], data_info: dict[str, Any], message: str, composed: Compose
) -> None:
    from workbench.build import build_task

    base = [word for word in CASCADE if not word.startswith("task.head.") and "task/head" not in word]
    head = () if any(word.startswith("task/head") for word in words) else ("task/head=cascade_mask_rcnn",)
    with pytest.raises((UsageError, InstantiationException)) as caught:
        build_task(composed(*base, *head, *words), data_info)
    assert re.search(message, sentence(caught.value) or ""), sentence(caught.value)


@pytest.mark.slow
def test_as_a_user_types_it(
    new_command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = new_command(tmp_path, *WORDS, "task.data.data_dir=nowhere")
    assert done.returncode == 1
    assert "nowhere does not exist" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
