"""The detection task on a network whose answers are given: sizes, scaling, metrics, rows, predictions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torch import Tensor

from backbone.unireplknet import UniRepLKNet
from modalities.image import Pixels
from tasks import coco_results
from tasks.coco_results import run_lengths
from tasks.datasets.batch import Batch
from tasks.datasets.errors import DataError
from tasks.datasets.image.box_folder import BoxFolder
from tasks.datasets.image.box_transforms import join_padded
from tasks.detection import DetectionTask, scaled_target
from tasks.detectors.fcos import FCOSHead
from tasks.detectors.head import DetectionHead, Outputs, Targets
from tasks.detectors.two_stage import TwoStageHead
from tasks.network import Network
from tasks.task import Prediction

NAMES = ["disc", "ring", "star"]
SIZES = ((40, 50), (50, 40), (40, 50))


class Painted(DetectionHead):
    """Finds what is painted in blocks of 3 × 3 pixels: in each column a detection, its box in rows 1 to 4 and its label
    in row 5, with a score that falls from left to right; as many as row 6 says. Coordinates are in the picture's own
    pixels, doubled where it is read at twice its size."""

    has_masks = False

    def __init__(self, masks: bool = False) -> None:
        super().__init__(3, (1,))
        self.has_masks = masks
        self.asked: list[tuple[int, ...]] = []
        self.learnt: list[tuple[Targets, Tensor]] = []

    def outputs(self, features: Any) -> Outputs:
        self.asked.append(tuple(features[0].shape))
        return {"maps": list(features)}

    def losses(self, outputs: Outputs, targets: Targets, sizes_B2: Tensor) -> dict[str, Tensor]:
        self.learnt.append((targets, sizes_B2))
        return {"a": torch.tensor(1.0), "b": torch.tensor(float(len(targets)))}

    def detect(self, outputs: Outputs, sizes_B2: Tensor) -> Any:
        found = torch.zeros(len(sizes_B2), 5, 6)
        for place, (picture, size) in enumerate(
            zip(outputs["maps"][0].round(), sizes_B2.tolist(), strict=True)
        ):
            scale = 2 if size[0] > 50 else 1
            told = picture[0, scale :: 3 * scale, scale :: 3 * scale]  # the middle of each block
            count = int(told[6, 0])
            for column in range(count):
                found[place, column, :4] = told[1:5, column] * scale
                found[place, column, 4] = 0.9 - 0.2 * column
                found[place, column, 5] = told[5, column]
        masks = torch.zeros(len(sizes_B2), 5, 28, 28)
        masks[..., :14] = 1  # the left half
        return (found, masks) if self.has_masks else found


class Given(torch.nn.Module):
    def forward_features(self, x: Tensor) -> list[Tensor]:
        return [x]


def task_of(masks: bool = False, **options: Any) -> DetectionTask:
    embedder = Pixels(32, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    return DetectionTask(
        network=Network(embedder, Given(), Painted(masks)),  # type: ignore[arg-type]
        data_info={"class_names": NAMES, "has_masks": masks},
        **options,
    ).eval()


BOXES = (
    [(5, 4, 25, 30, 0), (30, 10, 44, 38, 1)],
    [(2, 3, 18, 20, 2)],
    [],
)


def batch() -> tuple[Batch, list[dict[str, Tensor]]]:
    """Pictures of two sizes; the truth is what is painted, but one object more in the second, and a crowd."""
    raws, targets = [], []
    for (height, width), boxes in zip(SIZES, BOXES, strict=True):
        pixels = torch.zeros(3, height, width, dtype=torch.uint8)
        pixels[:, 18:21] = len(boxes)
        for column, box in enumerate(boxes):
            rows = torch.tensor(box, dtype=torch.uint8).repeat_interleave(3)[:, None]
            pixels[:, 3:18, 3 * column : 3 * column + 3] = rows
        raws.append({"pixels": pixels, "size": torch.tensor([height, width])})
        given = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2, _) in zip(masks, boxes, strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = True
        targets.append(
            {
                "boxes": given[:, :4],
                "labels": given[:, 4].long(),
                "crowd": torch.zeros(len(boxes), dtype=torch.bool),
                "masks": masks,
            }
        )
    more = {
        "boxes": torch.tensor([[1.0, 22, 12, 31], [0, 0, 20, 33]]),
        "labels": torch.tensor([1, 2]),
        "crowd": torch.tensor([False, True]),
        "masks": torch.ones(2, 50, 40, dtype=torch.bool),
    }
    targets[1] = {name: torch.cat([value, more[name]]) for name, value in targets[1].items()}
    return Batch(join_padded(raws), targets, torch.arange(3)), targets


@pytest.mark.parametrize("resize", [None, (100, 80)])
def test_pictures_are_read_at_their_size_and_answered_in_it(resize: tuple[int, int] | None) -> None:
    task = task_of(inference={"resize": resize})
    head: Any = task.head
    whole, targets = batch()
    task.begin_test(3)
    with torch.no_grad():
        out = task.step(whole, "test")
    if resize is None:
        assert head.asked == [(3, 3, 64, 64)], "filled up to multiples of 32, those of one such size together"
    else:
        assert head.asked == [(2, 3, 96, 128), (1, 3, 128, 96)], "within 100 × 80: at twice their size"
    for found, boxes in zip(out["output"], BOXES, strict=True):
        assert found["boxes"].tolist() == [list(box[:4]) for box in boxes]
        assert found["labels"].tolist() == [box[4] for box in boxes]
        assert found["scores"].tolist() == pytest.approx([0.9, 0.7][: len(boxes)])
    order = [0, 1, 2] if resize is None else [0, 2, 1]
    assert float(out["loss"]) == 1 + 1, "image by image"
    factor = 1 if resize is None else 2
    for ((scaled,), sizes), place in zip(head.learnt, order, strict=True):
        assert scaled["boxes"].equal(factor * targets[place]["boxes"])
        assert sizes.tolist() == [[factor * side for side in SIZES[place]]]
    values = task.epoch_metrics("test")
    # Discs and stars are found; of two rings one is: a precision of 1 up to a recall of one half, 51 of 101 places.
    assert float(values["test/ap"]) == pytest.approx((1 + 51 / 101 + 1) / 3)
    assert task.test_report() == {
        "per_class": {"disc": 1.0, "ring": pytest.approx(51 / 101, abs=1e-6), "star": 1.0}
    }
    figures = task.draw_report(task.test_report())
    assert set(figures) == {"ap", "predictions"}
    assert task.epoch_metrics("test") == {}, "reset"
    assert task.draw_report({}) == {}


@torch.no_grad()
def test_a_picture_is_answered_alike_alone_and_among_others() -> None:
    torch.manual_seed(0)
    backbone = UniRepLKNet(3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), kernel_sizes=(3, 13, 13, 13))
    head = TwoStageHead((8, 8, 16, 16), (4, 8, 16, 32), 3, channels=16, box={"convs": 0, "width": 32})
    torch.nn.init.normal_(head.roi_head.bbox_head[0].fc_cls.weight, std=1.0)  # type: ignore[union-attr, arg-type]
    info = {"class_names": NAMES, "has_masks": False}
    task = DetectionTask(network=Network(Pixels(32), backbone, head), data_info=info).eval()
    several = [
        {"pixels": torch.randint(256, (3, *size), dtype=torch.uint8), "size": torch.tensor(size)}
        for size in ((60, 40), (33, 64), (64, 50), (70, 40))
    ]
    asked: list[int] = []
    head.register_forward_hook(lambda _, given, out: asked.append(len(given[0][0])))
    targets = [{**batch()[1][2]} for _ in several]

    def answers(raws: list[Any]) -> list[dict[str, Tensor]]:
        given = Batch(join_padded(raws), targets[: len(raws)], torch.arange(len(raws)))
        return task.step(given, "val")["output"]

    together = answers(several)
    assert asked == [3, 1]
    for raw, found in zip(several, together, strict=True):
        (alone,) = answers([raw])
        assert len(found["boxes"]) > 5
        for name, value in found.items():
            assert torch.allclose(value.float(), alone[name].float(), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["two-stage", "masks", "fcos"])
def test_the_loss_of_a_split_depends_neither_on_its_batches_nor_on_draws(kind: str) -> None:
    torch.manual_seed(0)
    backbone = UniRepLKNet(3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), kernel_sizes=(3, 13, 13, 13))
    sides: Any = ((8, 8, 16, 16), (4, 8, 16, 32), 3)
    head: DetectionHead
    if kind == "fcos":
        head = FCOSHead(*sides, channels=16)
    else:
        head = TwoStageHead(
            *sides,
            data_have_masks=kind == "masks",
            channels=16,
            samples=8,
            box={"convs": 0, "width": 32},
            rpn={"samples": 8},
        )
    whole, targets = batch()
    task = DetectionTask(
        network=Network(Pixels(32), backbone, head),
        data_info={"class_names": NAMES, "has_masks": kind == "masks"},
    ).eval()
    raws = [
        {"pixels": pixels[:, :height, :width], "size": torch.tensor([height, width])}
        for pixels, (height, width) in zip(whole.raw["pixels"], SIZES, strict=True)
    ]

    def loss_in(*sizes: int) -> float:
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            task.measured_step(Batch(join_padded(raws[part]), targets[part], torch.arange(3)[part]), "val")
            start += size
        return float(task.epoch_values("val")["val/loss"])

    assert loss_in(3) == pytest.approx(loss_in(3), rel=1e-6)
    assert loss_in(1, 1, 1) == pytest.approx(loss_in(3), rel=1e-5)
    assert loss_in(2, 1) == pytest.approx(loss_in(3), rel=1e-5)


def test_a_batch_is_trained_on_as_it_is() -> None:
    task = task_of().train()
    head: Any = task.head
    whole, targets = batch()
    raw = {"pixels": whole.raw["pixels"][..., :50], "size": whole.raw["size"]}
    out = task.step(Batch(raw, targets, whole.index), "train")
    assert head.asked == [(3, 3, 64, 64)]
    assert float(out["loss"]) == 4
    (learnt,) = head.learnt
    assert learnt[0] is targets
    assert learnt[1].equal(whole.raw["size"])
    assert task.epoch_metrics("train") == {}


def test_masks_are_measured_and_pasted() -> None:
    task = task_of(masks=True)
    whole, targets = batch()
    with torch.no_grad():
        out = task.step(whole, "val")
    for found, target in zip(out["output"], targets, strict=True):
        for mask, true in zip(found["masks"], target["masks"], strict=False):
            assert (mask & true).sum() / (mask | true).sum() > 0.9
    values = {name: float(value) for name, value in task.epoch_metrics("val").items()}
    assert values["val/ap50"] == pytest.approx((2 + 51 / 101) / 3)
    assert values["val/mask_ap50"] == pytest.approx((2 + 51 / 101) / 3)
    assert DetectionTask.metric_names({"has_masks": True})[0] == "ap"
    assert set(DetectionTask.metric_names({"has_masks": True})) == {
        name.removeprefix("val/") for name in values
    } | {"loss"}


def test_rows_say_what_is_found_and_what_is_missed() -> None:
    task = task_of()
    whole, _ = batch()
    with torch.no_grad():
        out = task.step(whole, "test")
    first, second, third = task.test_rows(whole, out["output"])
    assert [(row["label"], row["truth"], row["iou"]) for row in first] == [
        ("disc", "disc", 1.0),
        ("ring", "ring", 1.0),
    ]
    assert [(row["label"], row["truth"], row["score"]) for row in second] == [
        ("star", "star", pytest.approx(0.9)),
        ("", "ring", None),
    ], "a crowd is not missed"
    assert (second[1]["x1"], second[1]["y2"]) == (1, 31)
    assert third == [{"label": "", "score": None, "truth": ""}]
    assert task.caption(whole, 0) == "1 disc, 1 ring"
    assert task.caption(whole, 2) == "no object"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("masks", [False, True])
def test_predictions_are_cocos(masks: bool) -> None:
    task = task_of(masks=masks, shown_score=0.8)
    whole, _ = batch()
    with torch.no_grad():
        predictions = task.predict(whole.raw)
    assert [p.columns["objects"] for p in predictions] == [1, 1, 0]
    assert predictions[0].columns == {
        "label": "disc",
        "score": pytest.approx(0.9),
        "objects": 1,
        "count(disc)": 1,
        "count(ring)": 0,
        "count(star)": 0,
    }
    assert predictions[0].tables["boxes"]["label"] == ["disc", "ring"]
    assert predictions[2].columns["label"] == ""
    assert "nothing of a score of 0.8" in predictions[2].shown
    data = annotated(category_ids=None)
    files, written = joined(predictions, data, [f"000{number}.jpg" for number in range(3)])
    assert written["images"][1] == {"id": 1, "file_name": "0001.jpg", "height": 50, "width": 40}
    assert written["info"]["image_ids"] == "places in this file"
    assert written["categories"] == [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in written["annotations"]] == [
        (0, 1, [5, 4, 20, 26]),
        (0, 2, [30, 10, 14, 28]),
        (1, 3, [2, 3, 16, 17]),
    ]
    assert coco_results.results(files, data) is None
    assert ("segmentation" in written["annotations"][0]) == masks
    if masks:
        mask = coco.decode(written["annotations"][0]["segmentation"])
        assert mask.shape == (40, 50)
        assert mask[4:30, 5:15].all()
        assert mask.sum() == 26 * 10
    assert set(predictions[0].figures) == {"overlays/{name}.png"}
    assert predictions[0].figures["overlays/{name}.png"]().axes[0].texts[0].get_text() == "disc 0.90"


def annotated(category_ids: list[int] | None, **facts: Any) -> BoxFolder:
    """The data of a model, as it remembers them."""
    data = BoxFolder(name="box_folder")
    data.recall({"class_names": NAMES, "has_masks": False, "category_ids": category_ids, **facts})
    return data


def joined(predictions: list[Prediction], data: BoxFolder, names: list[str]) -> tuple[Any, Any]:
    files = [(name, p.shared["detections.json"].content) for name, p in zip(names, predictions, strict=True)]
    return files, json.loads(json.dumps(predictions[0].shared["detections.json"].join(files, data)))


def test_ids_are_those_of_the_annotations() -> None:
    with torch.no_grad():
        predictions = task_of().predict(batch()[0].raw)
    data = annotated([44, 1, 90], ids_in_names=True)
    names = ["000139.jpg", "000285.jpg", "000007.jpg"]
    files, written = joined(predictions, data, names)
    assert written["info"] == {"image_ids": "of the annotations", "category_ids": "of the annotations"}
    assert [image["id"] for image in written["images"]] == [139, 285, 7]
    assert [category["id"] for category in written["categories"]] == [44, 1, 90]
    ids = [(139, 44), (139, 1), (285, 90)]
    assert [(row["image_id"], row["category_id"]) for row in written["annotations"]] == ids
    results = coco_results.results(files, data)
    assert results is not None
    assert [(row["image_id"], row["category_id"]) for row in results] == ids
    assert results[0].keys() == {"image_id", "category_id", "bbox", "score"}
    # Data whose names only look like ids; a name that is none; twice the same id.
    for other, given in (
        (annotated([44, 1, 90]), names),
        (data, [*names[:2], "a.jpg"]),
        (data, ["a/139.jpg", "b/139.jpg", "7.jpg"]),
    ):
        files, written = joined(predictions, other, given)
        assert [image["id"] for image in written["images"]] == [0, 1, 2]
        assert written["info"]["image_ids"] == "places in this file"
        assert coco_results.results(files, other) is None


@pytest.mark.parametrize("ids", [[1, 2], [1, 2, 2], [1, 2, 2**63], [1, 2, "3"], "abc", [True, 2, 3]])
def test_wrong_ids_in_a_checkpoint_are_one_sentence(ids: Any) -> None:
    with pytest.raises(DataError, match="3 different whole numbers"):
        annotated(ids)


def test_scores_that_are_no_numbers_are_not_lost() -> None:
    """A damaged network's answers stay, so that they can be noticed."""
    task = task_of()

    class Damaged(Painted):
        def detect(self, outputs: Outputs, sizes_B2: Tensor) -> Any:
            return super().detect(outputs, sizes_B2) * math.nan

    task.network.head = Damaged().eval()
    with torch.no_grad():
        (prediction, *_) = task.predict(batch()[0].raw)
    assert math.isnan(prediction.columns["score"])


def test_a_target_follows_its_picture() -> None:
    target = batch()[1][0]
    scaled = scaled_target(target, (40, 50), (60, 100))
    assert scaled["boxes"][0].tolist() == [10, 6, 50, 45]
    assert scaled["masks"].shape == (2, 60, 100)
    assert scaled["masks"][0, 6:45, 10:30].float().mean() > 0.95
    assert scaled_target({**target, "image_id": torch.tensor(7)}, (40, 50), (40, 50)) == target
    empty = scaled_target(batch()[1][2], (40, 50), (60, 100))
    assert len(empty["boxes"]) == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_run_lengths_are_cocos() -> None:
    mask = torch.rand(17, 23) < 0.5
    coded = run_lengths(mask)
    assert coded["size"] == [17, 23]
    assert np.array_equal(coco.decode({**coded, "counts": coded["counts"].encode()}), mask.numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inference": {"resize": (100,)}}, "resize takes a longer and a shorter side"),
        ({"inference": {"multiple": 0}}, "multiple is at least 1"),
        ({"mask_threshold": 1.0}, "mask_threshold lies between"),
        ({"shown_score": 1.0}, "shown_score in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(**options)


def test_exported_answers_may_change_places() -> None:
    task = task_of()
    rows = torch.tensor([[[0.0, 0, 100, 50, 0.9, 1], [5, 5, 20, 30, 0.9, 1], [0, 0, 0, 0, 0, 0]]])
    assert task.difference(rows[:, [1, 0, 2]], rows) == 0
    moved = rows.clone()
    moved[0, 1, 2] += 1
    assert task.difference(moved, rows) == pytest.approx(0.01)
    other = rows.clone()
    other[0, 1, 5] = 2
    assert task.difference(other, rows) == pytest.approx(0.8), "the nearest one of its class"
    assert task.difference(torch.zeros_like(rows), rows) == math.inf
    masks = torch.rand(1, 3, 28, 28)
    assert task.difference((rows[:, [1, 0, 2]], masks[:, [1, 0, 2]]), (rows, masks)) == 0
    assert task.difference((rows, masks + 0.25), (rows, masks)) == pytest.approx(0.25)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    task = task_of(masks=True)
    whole, _ = batch()
    task.begin_test(3)
    with torch.no_grad():
        task.step(whole, "test")
    task.epoch_metrics("test")
    for name, figure in task.draw_report(task.test_report()).items():
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
    truth = task.pictures[1].truth
    assert truth.crowds == [False, False, True]
