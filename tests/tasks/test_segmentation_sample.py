"""The drawn scenes: what has no class is there, and colour alone does not tell the classes."""

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from tasks.datasets.image.dense_transforms import VOID
from tasks.datasets.image.scenes import CLASSES, _scenes
from tasks.metrics import confusion_of, iou_of


def drawn(part: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours (P, 3) and classes (P,) of the pixels of some scenes, those without a class left out."""
    colours, classes = [], []
    for picture, mask in _scenes(41, part, count, (64, 64)):
        colours.append(np.asarray(picture)[mask != VOID])
        classes.append(mask[mask != VOID])
    return np.concatenate(colours), np.concatenate(classes)


def test_colour_alone_tells_no_shape_from_another() -> None:
    """A forest that is given the colour of a pixel, of thousands of scenes' pixels, stays far below 40 % mIoU."""
    import torch

    colours, classes = drawn(0, 60)
    seen = np.random.default_rng(0).permutation(len(classes))[:30_000]
    # As many of each class: else it would say ground wherever it can.
    forest = RandomForestClassifier(20, min_samples_leaf=20, class_weight="balanced", random_state=0)
    forest.fit(colours[seen], classes[seen])
    plain = RandomForestClassifier(20, min_samples_leaf=20, random_state=0).fit(colours[seen], classes[seen])
    tested, truth = drawn(2, 15)
    for model in (forest, plain):
        said = model.predict(tested)
        counts = confusion_of(torch.from_numpy(said), torch.from_numpy(truth), len(CLASSES))
        assert float(iou_of(counts).nanmean()) < 0.4
        # What colour does tell: a shape from the ground.
        assert float(((said == 0) == (truth == 0)).mean()) > 0.8


def test_scenes_have_every_class_and_void() -> None:
    masks = [mask for _, mask in _scenes(41, 0, 40, (64, 72))]
    assert set(np.unique(np.concatenate([mask.reshape(-1) for mask in masks]))) == {
        *range(len(CLASSES)),
        VOID,
    }
    shares = [np.mean(mask == VOID) for mask in masks]
    assert 0.02 < np.mean(shares) < 0.2
    assert len({mask.shape for mask in masks}) > 10
