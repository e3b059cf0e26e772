"""Kinds of target are composed: a source of pictures has classes or anything else."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.datasets.base import ClassificationData, DataError, DataModule, Item
from tasks.datasets.image.files import ImageData, ImageTransforms
from tasks.datasets.image.mask_data import MaskData
from tasks.datasets.image.mask_targets import MaskTargets
from tasks.datasets.shards.data import ReadsShards, ShardableData
from tasks.datasets.targets import ClassTargets, Kind, Targets, translation


class Brightness(ImageData):
    """Pictures with a number each, their grey value; a sample is drawn for the test."""

    layout = "pictures named by their grey value"
    kind: ClassVar[Kind] = Targets

    def write_sample(self, root: Path) -> None:
        for grey in range(0, 250, 25):
            Image.new("RGB", (8, 8), (grey, grey, grey)).save(root / f"{grey}.png")

    def read_splits(self, root: Path) -> dict[str, list[Item]]:
        items = [Item(path, np.float32(path.stem)) for path in sorted(root.glob("*.png"))]
        return {"train": items[2:], "val": items[:1], "test": items[1:2]}


def opened(folder: Path, **settings: Any) -> Brightness:
    data = Brightness(
        name="grey", samples_dir=str(folder), transforms=ImageTransforms(size=8, crop="whole"), **settings
    )
    data.prepare_data()
    data.setup()
    return data


def test_pictures_may_have_targets_that_are_no_classes(tmp_path: Path) -> None:
    data = opened(tmp_path, batch_size=4, num_workers=0)
    assert not issubclass(Brightness, ClassificationData)
    assert (data.info(), data.class_names, "classes" in data.describe()) == ({}, [], False)
    batch = next(iter(data.train_dataloader()))
    grey = batch.raw[:, 0, 0, 0].float()
    torch.testing.assert_close(batch.target.float(), grey)
    data.adopt({})
    with pytest.raises(DataError, match="of another kind"):
        data.adopt({"class_names": ["a", "b"], "multilabel": False})


def test_settings_and_shards_are_those_of_the_kind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'balance'"):
        opened(tmp_path, balance="labels")
    with pytest.raises(DataError, match="shards hold classes, and the targets of grey are none"):
        opened(tmp_path, format="webdataset")


def test_no_kind_of_target_is_a_link_between_readers_and_shards() -> None:
    assert ShardableData.__mro__[1:3] == (ReadsShards, DataModule)
    assert ClassificationData not in ImageData.__mro__
    assert MaskData.kind is MaskTargets


def test_several_labels_are_said_by_the_kind() -> None:
    with pytest.raises(TypeError, match="Tags: say kind = partial"):
        type("Tags", (ClassificationData,), {"multilabel": True})


def test_targets_are_translated_to_the_classes_of_a_model() -> None:
    targets = ClassTargets()
    targets.class_names = ["cow", "dog"]
    info = targets.info()
    items = [Item(Path("a"), 0), Item(Path("b"), 1)]
    known = {"class_names": ["cat", "cow", "dog"], "multilabel": False}
    assert [item.target for item in targets.adopt(items, info, known, "here")] == [1, 2]
    assert targets.class_names == ["cat", "cow", "dog"]
    assert translation(["b"], ["a", "b"])(np.array([1.0])).tolist() == [0, 1]
    with pytest.raises(DataError, match=r"here has classes that the model does not know: cat"):
        targets.adopt(items, info, {"class_names": ["cow", "dog"], "multilabel": False}, "here")
    with pytest.raises(DataError, match="gives each sample several labels, here one"):
        targets.adopt(items, info, {**known, "multilabel": True}, "here")
