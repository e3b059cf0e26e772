"""The drawn scenes with boxes: of every kind there is some, and colour tells no class."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.datasets.image.box_folder import BoxFolder
from tasks.datasets.image.box_scenes import SIX, box_folder, scenes
from tasks.datasets.image.box_transforms import DetectionTransforms


def drawn(part: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the pixels of some scenes their colours (P, 3), about -1 to 1; whether they are on a shape (P,); of those that
    are, the classes."""
    colours, classes = [], []
    for picture, things in scenes(51, part, count, (64, 80)):
        pixels = np.asarray(picture)
        of_class = np.full(pixels.shape[:2], -1)
        for thing in things:
            of_class[thing.seen] = thing.label
        colours.append(pixels.reshape(-1, 3))
        classes.append(of_class.reshape(-1))
    pixels_P3 = torch.from_numpy(np.concatenate(colours)).float() / 128 - 1
    classes_P = torch.from_numpy(np.concatenate(classes))
    return pixels_P3, classes_P >= 0, classes_P[classes_P >= 0]


def test_colour_alone_tells_no_class() -> None:
    """A network that is given the colours of a shape's pixels is right about few of them."""
    colours, on, classes = drawn(0, 60)
    tested, tested_on, truth = drawn(2, 25)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(SIX)))
    weight = len(classes) / torch.bincount(classes, minlength=len(SIX)) / len(SIX)
    loss, optimizer = nn.CrossEntropyLoss(weight), torch.optim.Adam(model.parameters(), 5e-3)
    colours, tested = colours[on], tested[tested_on]
    for _ in range(400):
        seen = torch.randint(len(classes), (1024,))
        optimizer.zero_grad()
        loss(model(colours[seen]), classes[seen]).backward()
        optimizer.step()
    said = model(tested).argmax(1)
    right = [float((said[truth == k] == k).float().mean()) for k in range(len(SIX))]
    assert np.mean(right) < 0.4, "of six classes"


def test_scenes_have_every_kind_of_object() -> None:
    all_of = [(picture, things) for picture, things in scenes(51, 0, 120, (96, 112))]
    counts = [len(things) for _, things in all_of]
    assert set(counts) == set(range(7)) - ({6} - set(counts)), "from none to five, and a crowd"
    things = [thing for _, own in all_of for thing in own]
    assert {thing.label for thing in things} == set(range(len(SIX)))
    crowds = [thing for thing in things if thing.crowd]
    assert 1 <= len(crowds) < 0.1 * len(all_of)
    hidden = [thing for thing in things if thing.outline is None and not thing.crowd]
    assert 0.1 < len(hidden) / len(things) < 0.6, "covered in part, or rings"
    overlaps = sum((a.seen & b.seen).any() for _, own in all_of for k, a in enumerate(own) for b in own[:k])
    assert overlaps == 0, "what is seen of one is not seen of another"
    sides = [
        max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) for thing in things if not thing.crowd
    ]
    assert np.percentile(sides, 90) > 1.8 * np.percentile(sides, 10)
    shares = [
        thing.seen.sum() / ((thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1])) for thing in things
    ]
    assert min(shares) > 0.1


def test_what_is_kept_in_memory_is_what_is_read(tmp_path: Path) -> None:
    box_folder(tmp_path / "a", (10, 2, 2))
    transforms = DetectionTransforms(
        shorts=(60, 70), crop_part=0.5, crop_shorts=(90,), crop=(50, 80), photometric=True
    )
    plain, kept = (
        BoxFolder(
            name="box_folder",
            data_dir=str(tmp_path / "a"),
            num_workers=0,
            batch_size=4,
            transforms=transforms,
            in_memory=in_memory,
        )
        for in_memory in (False, True)
    )
    for epoch in range(2):
        for split in ("train", "val"):
            loaders = []
            for data in (plain, kept):
                data.setup()
                loaders.append(data.loader(split))
                loaders[-1].batch_sampler.set_epoch(epoch)
            for one, other in zip(*loaders, strict=True):
                assert one.raw["pixels"].equal(other.raw["pixels"])
                assert one.raw["size"].equal(other.raw["size"])
                for ours, theirs in zip(one.target, other.target, strict=True):
                    assert ours.keys() == theirs.keys()
                    assert all(value.equal(theirs[name]) for name, value in ours.items())
    for picture in (tmp_path / "a" / "images" / "train").iterdir():
        picture.unlink()
    assert all(not batch.failures for batch in kept.loader("train"))
    assert any(batch.failures for batch in plain.loader("train"))


def test_what_is_written_is_what_is_drawn(tmp_path: Path) -> None:
    """Polygons and run lengths give the masks that the scenes have, boxes hold them; the same files each time."""
    for folder in ("a", "b"):
        box_folder(tmp_path / folder, (10, 2, 2))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    content = json.loads((tmp_path / "a" / "annotations" / "instances_train.json").read_text())
    kinds = {type(row["segmentation"]) for row in content["annotations"]}
    assert kinds == {list, dict}
    data = BoxFolder(name="box_folder", data_dir=str(tmp_path / "a"), num_workers=0)
    data.setup()
    assert data.class_names == list(SIX)
    for item, (_, things) in zip(data.splits["train"], scenes(51, 0, 10, (96, 128)), strict=True):
        target = data.read_pair(item, False, np.random.default_rng(0))[1]
        assert target["labels"].tolist() == [thing.label for thing in things]
        assert target["boxes"].tolist() == [list(thing.box) for thing in things]
        for mask, thing in zip(target["masks"].numpy(), things, strict=True):
            both, either = (mask & thing.seen).sum(), (mask | thing.seen).sum()
            assert both / either > 0.88
            assert (mask & thing.seen).sum() == pytest.approx(thing.seen.sum(), rel=0.08)
