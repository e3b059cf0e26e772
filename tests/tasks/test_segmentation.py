"""The segmentation task on a network whose predictions are given: sizes, void, metrics, rows, predictions."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from modalities.image import Pixels
from tasks.datasets.batch import Batch
from tasks.datasets.image.dense_transforms import join_masks, join_pictures
from tasks.network import Network
from tasks.segmentation import SegmentationTask
from tasks.segmentation_losses import VOID, LovaszSoftmax, PixelCrossEntropy, PixelLoss, SoftDice, Summed

NAMES = ["ground", "road", "tree", "moon"]
PALETTE = [[0, 0, 0], [128, 64, 128], [0, 128, 0], [200, 200, 200]]
SIZES = ((40, 50), (33, 20), (40, 50))


class Painted(Network):
    """Answers with the class that is painted in red: 10 a class."""

    def __init__(self) -> None:
        super().__init__(Pixels(32), nn.Identity(), nn.Identity())
        self.asked: list[tuple[int, ...]] = []

    def forward(self, raw: Any, augment: Any = None) -> Tensor:
        self.asked.append(tuple(raw["pixels"].shape))
        said = (raw["pixels"][:, 0].float() / 10).round().long()
        return 50.0 * nn.functional.one_hot(said, len(NAMES)).permute(0, 3, 1, 2).float()


def task_of(loss: PixelLoss | None = None, **options: Any) -> SegmentationTask:
    return SegmentationTask(
        loss or PixelCrossEntropy(),
        network=Painted(),
        data_info={"class_names": NAMES, "palette": PALETTE},
        **options,
    )


def painted() -> tuple[Batch, list[Tensor], list[Tensor]]:
    """Pictures of two sizes, what is said of them, and the truth: some of it void, some else."""
    torch.manual_seed(0)
    said = [torch.randint(3, size) for size in SIZES]
    truth = [
        torch.where(torch.rand(size) < 0.7, one, torch.randint(3, size))
        for one, size in zip(said, SIZES, strict=True)
    ]
    truth = [torch.where(torch.rand(one.shape) < 0.2, VOID, one).to(torch.uint8) for one in truth]
    raws = [
        {"pixels": (10 * one)[None].repeat(3, 1, 1).to(torch.uint8), "size": torch.tensor(one.shape)}
        for one in said
    ]
    return Batch(join_pictures(raws), join_masks(truth), torch.arange(3)), said, truth


def test_pictures_are_read_at_their_own_size(caplog: pytest.LogCaptureFixture) -> None:
    task = task_of()
    batch, said, truth = painted()
    task.begin_test(3)
    with torch.no_grad():
        out = task.step(batch, "test")
    for one, output in zip(said, out["output"], strict=True):
        height, width = one.shape
        assert output[:height, :width].equal(one.to(torch.uint8))
        assert (output[height:] == VOID).all()
        assert (output[:, width:] == VOID).all()
    network: Any = task.network
    assert network.asked == [(2, 3, 64, 64), (1, 3, 64, 32)], (
        "those of one size together, padded to multiples of 32"
    )
    y_true = np.concatenate([one.numpy().reshape(-1) for one in truth])
    y_said = np.concatenate([one.numpy().reshape(-1) for one in said])[y_true != VOID]
    y_true = y_true[y_true != VOID]
    iou = [np.sum((y_true == k) & (y_said == k)) / np.sum((y_true == k) | (y_said == k)) for k in range(3)]
    with caplog.at_level(logging.WARNING, logger="widefield"):
        values = task.epoch_metrics("test")
    assert values["test/miou"].item() == pytest.approx(np.mean(iou))
    assert values["test/acc"].item() == pytest.approx(np.mean(y_true == y_said))
    assert "no pixel is or is said to be moon: their IoU is undefined" in caplog.text
    assert task.test_report()["per_class"]["moon"] is None
    assert sum(map(sum, task.test_report()["pixels"])) == len(y_true)
    assert set(task.draw_report(task.test_report())) == {"iou", "confusion", "predictions"}
    # The loss counts every pixel, those without a class as 0.
    wrong = [
        float((one != true)[true != VOID].sum()) / one.numel() * 50
        for one, true in zip(said, truth, strict=True)
    ]
    assert out["loss"].item() == pytest.approx(np.mean(wrong), rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        PixelCrossEntropy(),
        PixelCrossEntropy("labelled"),
        PixelCrossEntropy("labelled", weight={"road": 5.0}),
        SoftDice(),
        LovaszSoftmax(),
        Summed({"ce": PixelCrossEntropy("labelled"), "dice": SoftDice()}),
    ],
    ids=lambda loss: f"{type(loss).__name__} {getattr(loss, 'divisor', '')} {loss.weight or ''}",
)
def test_the_loss_of_a_split_does_not_depend_on_its_batches(loss: PixelLoss) -> None:
    torch.manual_seed(1)
    said = [torch.randint(3, (20, 30)) for _ in range(5)]
    truth = [torch.where(torch.rand(20, 30) < 0.8, one, 1) for one in said]
    for one, void in zip(truth, (0.0, 0.9, 0.5, 0.0, 1.0), strict=True):  # the last has no label at all
        one[torch.rand(20, 30) < void] = VOID
    raws = [
        {"pixels": (10 * one)[None].repeat(3, 1, 1).to(torch.uint8), "size": torch.tensor(one.shape)}
        for one in said
    ]
    masks = [one.to(torch.uint8) for one in truth]

    def loss_in(*sizes: int) -> float:
        task, start = task_of(loss), 0
        for size in sizes:
            part = slice(start, start + size)
            batch = Batch(join_pictures(raws[part]), join_masks(masks[part]), torch.arange(5)[part])
            with torch.no_grad():
                task.measured_step(batch, "val")
            start += size
        return task.epoch_values("val")["val/loss"].item()

    assert loss_in(1, 1, 1, 1, 1) == pytest.approx(loss_in(5), rel=1e-5)
    assert loss_in(3, 2) == pytest.approx(loss_in(5), rel=1e-5)
    if isinstance(loss, PixelCrossEntropy):  # the mean over the pixels of the split
        logits = (
            50.0 * torch.nn.functional.one_hot(torch.cat(said), len(NAMES)).permute(2, 0, 1)[None].float()
        )
        whole = loss(logits, torch.cat(truth)[None])
        assert loss_in(2, 3) == pytest.approx(whole.item(), rel=1e-5)


def test_rows_have_the_areas_of_one_picture() -> None:
    task = task_of()
    batch, said, truth = painted()
    with torch.no_grad():
        out = task.step(batch, "test")
    for (row,), one, true in zip(task.test_rows(batch, out["output"]), said, truth, strict=True):
        assert row["area(tree)"] == pytest.approx(float((one == 2).float().mean()), abs=1e-6)
        both = ((one == 1) & (true == 1)).sum() / (((one == 1) | (true == 1)) & (true != VOID)).sum()
        assert row["iou(road)"] == pytest.approx(float(both), abs=1e-6)
        assert row["iou(moon)"] is None
    largest = torch.bincount(truth[1][truth[1] != VOID].long(), minlength=4).argsort(descending=True)
    assert task.caption(batch, 1).split(", ")[0] == NAMES[int(largest[0])]


def test_answers_are_masks(tmp_path: Path) -> None:
    batch, said, _ = painted()
    with torch.no_grad():
        predictions = task_of().predict(batch.raw)
    for one, prediction in zip(said, predictions, strict=True):
        prediction.files["masks/{name}.png"](tmp_path / "mask", "drawn, not real")
        with Image.open(tmp_path / "mask") as image:
            assert np.array_equal(np.asarray(image), one.numpy())
            assert image.text == {"classes": ", ".join(NAMES), "drawn": "drawn, not real"}  # type: ignore[attr-defined]
            palette = image.getpalette()
        assert palette is not None
        assert [palette[3 * k : 3 * k + 3] for k in range(4)] == PALETTE
        assert sum(prediction.tables["areas"]["pixels"]) == one.numel()
        assert prediction.columns["area(road)"] == pytest.approx(float((one == 1).float().mean()), abs=1e-6)


def test_an_auxiliary_answer_counts_in_training() -> None:
    """Loss of the prediction, and 0.4 times that of the auxiliary head's, each brought to the pictures' size."""

    class Both(Painted):
        def forward(self, raw: Any, augment: Any = None) -> Tensor:
            return Network.forward(self, raw, augment)

        def forward_maps(self, maps: Tensor, context: Any = None) -> Any:
            torch.manual_seed(1)
            return torch.randn(3, 4, 10, 13), torch.randn(3, 4, 3, 4)

    task = task_of(auxiliary_weight=0.4)
    task.network = Both()
    batch, _, _ = painted()
    main, other = Both().forward_maps(torch.zeros(1))
    target = batch.target.long()
    losses = [
        nn.functional.cross_entropy(
            nn.functional.interpolate(scores, target.shape[-2:], mode="bilinear"),
            target,
            ignore_index=VOID,
            reduction="sum",
        )
        / target.numel()
        for scores in (main, other)
    ]
    assert task.step(batch, "train")["loss"].item() == pytest.approx(
        (losses[0] + 0.4 * losses[1]).item(), rel=1e-5
    )
