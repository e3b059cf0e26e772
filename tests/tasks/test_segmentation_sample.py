"""The drawn scenes: what has no class is there, and colour alone does not tell the classes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.datasets.image.dense_transforms import VOID
from tasks.datasets.image.scenes import CLASSES, _scenes
from tasks.metrics import confusion_of, iou_of


def drawn(part: int, count: int) -> tuple[Tensor, Tensor]:
    """Colours (P, 3), about -1 to 1, and classes (P,) of the pixels of some scenes, those without a class left out."""
    colours, classes = [], []
    for picture, mask in _scenes(41, part, count, (64, 64)):
        colours.append(np.asarray(picture)[mask != VOID])
        classes.append(mask[mask != VOID])
    pixels = torch.from_numpy(np.concatenate(colours)).float() / 128 - 1
    return pixels, torch.from_numpy(np.concatenate(classes)).long()


@pytest.mark.parametrize("balanced", [False, True])
def test_colour_alone_tells_no_shape_from_another(balanced: bool) -> None:
    """A network that is given a pixel's colour stays far below 40 % mIoU, also where every class counts as much."""
    colours, classes = drawn(0, 60)
    tested, truth = drawn(2, 15)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(CLASSES))
    )
    weight = len(classes) / torch.bincount(classes) / len(CLASSES) if balanced else None
    loss, optimizer = nn.CrossEntropyLoss(weight), torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(400):
        seen = torch.randint(len(classes), (1024,))
        optimizer.zero_grad()
        loss(model(colours[seen]), classes[seen]).backward()
        optimizer.step()
    said = model(tested).argmax(1)
    assert float(iou_of(confusion_of(said, truth, len(CLASSES))).nanmean()) < 0.4
    # What colour does tell: a shape from the ground.
    assert float(((said == 0) == (truth == 0)).float().mean()) > 0.8


def test_scenes_have_every_class_and_void() -> None:
    masks = [mask for _, mask in _scenes(41, 0, 40, (64, 72))]
    assert set(np.unique(np.concatenate([mask.reshape(-1) for mask in masks]))) == {
        *range(len(CLASSES)),
        VOID,
    }
    shares = [np.mean(mask == VOID) for mask in masks]
    assert 0.02 < np.mean(shares) < 0.2
    assert len({mask.shape for mask in masks}) > 10
