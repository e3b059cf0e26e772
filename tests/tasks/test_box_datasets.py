"""Pictures with boxes: what label files may say, how layouts are found, the benchmarks, what is refused and named."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.datasets.base import DataError
from tasks.datasets.batch import Failure, collate, usable
from tasks.datasets.image import box_scenes, voc_boxes
from tasks.datasets.image.box_data import BoxData
from tasks.datasets.image.box_folder import BoxFolder
from tasks.datasets.image.box_formats import coco_json, voc_xml, yolo_text
from tasks.datasets.image.box_formats.outlines import Outline, read_outline, run_lengths, unpacked
from tasks.datasets.image.box_transforms import DetectionTransforms
from tasks.datasets.image.coco import CATEGORIES, COCO
from tasks.datasets.image.voc_boxes import VOC2007, VOC2012Boxes, VOCBoxes

PLAIN = DetectionTransforms(shorts=None, crop_part=0.0)
RNG = np.random.default_rng(0)
WIDTH, HEIGHT = 40, 30


def built(root: Path, source: type[BoxData] = BoxFolder, **options: Any) -> BoxData:
    data = source(name="task", data_dir=str(root), num_workers=0, transforms=PLAIN, **options)
    data.setup()
    return data


def picture(path: Path, width: int = WIDTH, height: int = HEIGHT, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, **options)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def targets(data: BoxData) -> dict[str, Any]:
    """File name -> [(box, class name, crowd)] of all pictures."""
    found = {}
    for items in data.splits.values():
        for item in items:
            target = data.read_pair(item, False, RNG)[1]
            rows = zip(
                target["boxes"].tolist(), target["labels"].tolist(), target["crowd"].tolist(), strict=True
            )
            found[item.path.name] = [(box, data.class_names[label], crowd) for box, label, crowd in rows]
    return found


def instances(count: int = 4, **parts: Any) -> dict[str, Any]:
    """Pictures p0.jpg, p1.jpg, …, each with a cat."""
    return {
        "images": [
            {"id": n, "file_name": f"p{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(count)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 7, "bbox": [2, 3, 10, 12]} for n in range(count)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        **parts,
    }


def coco_folder(root: Path, content: Any, count: int = 4) -> Path:
    for n in range(count):
        picture(root / "images" / f"p{n}.jpg")
    write(
        root / "annotations" / "instances.json", content if isinstance(content, str) else json.dumps(content)
    )
    return root


def xml(objects: Sequence[tuple[str, Sequence[Any]]], size: str = f"{WIDTH}x{HEIGHT}", more: str = "") -> str:
    width, height = size.split("x")
    inner = "".join(
        f"<object><name>{name}</name>{more}<bndbox>"
        + "".join(f"<{k}>{v}</{k}>" for k, v in zip(voc_xml.CORNERS, box, strict=True))
        + "</bndbox></object>"
        for name, box in objects
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{inner}</annotation>"


def voc_folder(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", text)
    return root


def yolo_folder(root: Path, files: Mapping[str, str | None]) -> Path:
    for name, text in files.items():
        picture(root / "images" / f"{name}.jpg")
        if text is not None:
            write(root / "labels" / f"{name}.txt", text)
    return root


def failures(data: BoxData) -> dict[str, str]:
    """File name -> what is said, of the pictures that cannot be used; the others read on."""
    said = {}
    for split, items in data.splits.items():
        dataset = data.loader(split, train=False).dataset
        read = [dataset[index, 0] for index in range(len(items))]
        batch = usable(collate(read, data.join_targets, data.join_raws))
        assert len(batch) + len(batch.failures) == len(items)
        for item, one in zip(items, read, strict=True):
            if isinstance(one, Failure):
                assert str(item.path) in one.said
                assert "\n" not in one.said
                said[item.path.name] = one.said
    return said


# -- the three formats say the same ----------------------------------------------------------------------------

OBJECTS = [("cat", (2, 3, 12, 15)), ("dog", (20, 10, 40, 30))]


def in_coco(root: Path) -> None:
    boxes = [(name, [x1, y1, x2 - x1, y2 - y1]) for name, (x1, y1, x2, y2) in OBJECTS]
    rows = [
        {"id": 2 * n + k, "image_id": n, "category_id": {"cat": 7, "dog": 9}[name], "bbox": box}
        for n in range(4)
        for k, (name, box) in enumerate(boxes)
    ]
    coco_folder(root, instances(annotations=rows))


def in_voc(root: Path) -> None:
    objects = [(name, (x1 + 1, y1 + 1, x2, y2)) for name, (x1, y1, x2, y2) in OBJECTS]
    voc_folder(root, {f"p{n}": xml(objects) for n in range(4)})


def in_yolo(root: Path) -> None:
    lines = [
        f"{k} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}"
        for k, (_, (x1, y1, x2, y2)) in enumerate(OBJECTS)
    ]
    yolo_folder(root, {f"p{n}": "\n".join(lines) for n in range(4)})
    write(root / "data.yaml", "train: images\nnames:\n  0: cat\n  1: dog\n")


@pytest.mark.parametrize("form", [in_coco, in_voc, in_yolo])
def test_the_formats_say_the_same(tmp_path: Path, form: Callable[[Path], None]) -> None:
    form(tmp_path)
    data = built(tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert (data.info()["class_names"], data.info()["has_masks"]) == (["cat", "dog"], False)
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 2, "val": 1, "test": 1}
    found = targets(data)
    assert set(found) == {f"p{n}.jpg" for n in range(4)}
    for rows in found.values():
        assert [(name, crowd) for _, name, crowd in rows] == [("cat", False), ("dog", False)]
        assert np.allclose([box for box, _, _ in rows], [box for _, box in OBJECTS], atol=1e-4)
    assert data.notes[0].startswith("labels are ")


def test_several_formats_are_refused_until_one_is_said(tmp_path: Path) -> None:
    in_voc(tmp_path)
    for n in range(4):
        write(tmp_path / "Annotations" / f"p{n}.txt", "0 0.5 0.5 0.2 0.2")
    with pytest.raises(
        DataError,
        match=r"has PASCAL VOC's XML files in Annotations/ and YOLO's text files in .*data.labels=voc or yolo",
    ):
        built(tmp_path)
    assert built(tmp_path, labels="voc").class_names == ["cat", "dog"]
    assert built(tmp_path, labels="yolo", classes=["x"]).class_names == ["x"]
    with pytest.raises(DataError, match="no coco labels in"):
        built(tmp_path, labels="coco")
    with pytest.raises(DataError, match="must be coco, voc, yolo or null, not 'xml'"):
        built(tmp_path, labels="xml")
    with pytest.raises(DataError, match=r"no labels of pictures in .*; task expects pictures with COCO's"):
        built(picture(tmp_path / "none" / "a.jpg").parent)


def test_layouts_with_splits(tmp_path: Path) -> None:
    wanted = {"train": 2, "val": 1, "test": 1}
    for split, folder, count in (("train", "train", 2), ("val", "valid", 1), ("test", "test", 1)):
        for n in range(count):
            line = "0 0.5 0.5 0.5 0.5"
            picture(tmp_path / "a" / folder / "images" / f"{split}{n}.jpg")
            write(tmp_path / "a" / folder / "labels" / f"{split}{n}.txt", line)
            picture(tmp_path / "b" / "images" / folder / f"{split}{n}.jpg")
            write(tmp_path / "b" / "labels" / folder / f"{split}{n}.txt", line)
            picture(tmp_path / "c" / folder / f"{split}{n}.jpg")
            write(tmp_path / "c" / folder / f"{split}{n}.xml", xml([("cat", (1, 1, 9, 9))]))
            picture(tmp_path / "d" / folder / f"p{n}.jpg")
            picture(tmp_path / "e" / f"{split}2017" / f"p{n}.jpg")
        write(tmp_path / "d" / folder / "_annotations.coco.json", json.dumps(instances(count)))
        write(tmp_path / "e" / "annotations" / f"instances_{split}2017.json", json.dumps(instances(count)))
    write(tmp_path / "a" / "classes.txt", "cat\n\n")
    write(tmp_path / "b" / "labels" / "classes.txt", "cat\n")
    for name in "abcde":
        data = built(tmp_path / name)
        assert {split: len(items) for split, items in data.splits.items()} == wanted, name
        assert data.class_names[0] == "cat", name
        assert all(len(rows) == 1 for rows in targets(data).values()), name


def test_lists_of_pictures(tmp_path: Path) -> None:
    in_voc(tmp_path)
    for split, names in (("train", "p0 1\np3 -1\n"), ("val", "p1\n"), ("test", "p2\n")):
        write(tmp_path / "ImageSets" / "Main" / f"{split}.txt", names)
    write(tmp_path / "ImageSets" / "Main" / "trainval.txt", "p0\np1\np3\n")
    data = built(tmp_path)
    assert [item.path.name for item in data.splits["train"]] == ["p0.jpg", "p3.jpg"]
    assert [item.path.name for item in data.splits["test"]] == ["p2.jpg"]
    write(tmp_path / "ImageSets" / "Main" / "test.txt", "p2\np9\n")
    with pytest.raises(DataError, match=r"ImageSets/Main/test\.txt names p9, which has no picture in"):
        built(tmp_path)
    write(tmp_path / "ImageSets" / "Main" / "test.txt", "p1\n")
    with pytest.raises(DataError, match=r"test\.txt names p1, which is in val, too"):
        built(tmp_path)


def test_names_with_spaces_in_lists(tmp_path: Path) -> None:
    named = ["a b", "a 1", "a", "c 1"]
    voc_folder(tmp_path, {name: xml([("cat", (1, 1, 9, 9))]) for name in (*named, "d")})
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "a b -1\na 1\n")
    write(tmp_path / "ImageSets" / "Main" / "val.txt", "a  0\n")
    write(tmp_path / "ImageSets" / "Main" / "test.txt", "c 1\n")
    data = built(tmp_path)
    found = {split: [item.path.stem for item in items] for split, items in data.splits.items()}
    assert found == {"train": ["a 1", "a b"], "val": ["a"], "test": ["c 1"]}
    assert data.notes[-1] == "1 pictures are in no split or list and are not read: 1 in JPEGImages"


BOX = "0 0.5 0.5 0.5 0.5"


def yolo_parts(root: Path, counts: Mapping[str, int], labels: str = "labels") -> Path:
    """Pictures in images/FOLDER, or in FOLDER/images where `labels` is `inside`, with label files in labels/."""
    for folder, count in counts.items():
        for n in range(count):
            inside = labels == "inside"
            name = f"{folder.replace('/', '_')} {n}"
            places = [
                root / folder / each if inside else root / each / folder for each in ("images", "labels")
            ]
            picture(places[0] / f"{name}.jpg")
            write(places[1] / f"{name}.txt", BOX)
    return root


def parts_of(data: BoxData) -> dict[str, set[str]]:
    """Split -> beginnings of the names of its pictures."""
    return {split: {item.path.stem.split()[0] for item in items} for split, items in data.splits.items()}


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("train: images/part1\nval: images/part2\n", "train (images/part1), val (images/part2)"),
        ("path: .\ntrain: [./images/part1]\nval: images/part2/\ntest:\n",
         "train (./images/part1), val (images/part2/)"),
        ("path: images\ntrain: part1\nvalidation: part2\n", "train (part1), val (part2)"),
        ("path: /not/there\ntrain: images/part1\nval: images\\part2\n",
         "train (images/part1), val (images\\part2)"),
        ("train: ../images/part1\nval: ../images/part2\ntest: ../images/part3\n",
         "train (../images/part1), val (../images/part2), test (../images/part3)"),
        ("train: lists/one.txt\nval: lists/two.txt\n", "train (lists/one.txt), val (lists/two.txt)"),
    ],
)  # fmt: skip
def test_splits_of_data_yaml(tmp_path: Path, yaml: str, said: str) -> None:
    root = yolo_parts(tmp_path / "data", {"part1": 6, "part2": 3, "unsorted": 2})
    yolo_parts(tmp_path, {"part1": 1})
    for name, folder, count in (("one", "part1", 6), ("two", "part2", 3)):
        lines = (f"images/{folder}/{folder} {n}.jpg" for n in range(count))
        write(root / "lists" / f"{name}.txt", "\n".join(lines))
    write(root / "data.yaml", f"{yaml}names: [cat]\n")
    data = built(root)
    assert parts_of(data) == {"train": {"part1"}, "val": {"part2"}, "test": {"part1"}}
    assert sum(map(len, data.splits.values())) == 9
    assert all(len(rows) == 1 for rows in targets(data).values())
    assert f"splits are those of data.yaml: {said}" in data.notes
    assert "2 pictures are in no split or list and are not read: 2 in images/unsorted" in data.notes
    absent = "data.yaml names ../images/part3 (test), where no pictures are"
    assert any(absent in note for note in data.notes) == ("part3" in yaml)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("train: images/part1\nval: images/none\n", r"data\.yaml names images/none \(val\), where no pictures are"),
        ("train: images/part1\nval: images/part1\n", r"has .*part1 0\.jpg in train and in val: a picture belongs to"),
        ("train: images/part1\nval: images\n", r"has .*part1 0\.jpg in train and in val"),
        ("train: images/part1\nval: 3\n", "says val: 3, which is no folder or list of pictures"),
        ("train: images/part1\nval: [images/part2, {}]\n", "says val: .*, which is no folder or list of pictures"),
        ("train: images/part1\nval: short.txt\n", r"short\.txt names part9\.jpg and 1 more pictures, which do"),
        ("train: images/part1\nval: data.yaml\n", r"data\.yaml is no folder and no list of pictures"),
        ("val: images/part1\n", "states val, but no train"),
        ("train: [" + "x" * 5000 + "]\n", "where no pictures are"),
    ],
)  # fmt: skip
def test_splits_of_data_yaml_that_cannot_be_read(tmp_path: Path, yaml: str, said: str) -> None:
    yolo_parts(tmp_path, {"part1": 6, "part2": 3})
    write(tmp_path / "short.txt", "part9.jpg\nimages/part2/part2 0.jpg\npart8.jpg\n")
    write(tmp_path / "data.yaml", f"{yaml}names: [cat]\n")
    with pytest.raises(DataError, match=said) as raised:
        built(tmp_path)
    assert "\n" not in str(raised.value)


def test_lists_beside_yolo_pictures(tmp_path: Path) -> None:
    yolo_parts(tmp_path, {"part1": 6, "part2": 3})
    write(tmp_path / "train.txt", "\n".join(f"./images/part1/part1 {n}.jpg" for n in range(6)))
    assert parts_of(built(tmp_path, classes=["cat"]))["train"] == {"part1", "part2"}
    write(tmp_path / "valid.txt", "\n".join(f"./images/part2/part2 {n}.jpg" for n in range(3)))
    data = built(tmp_path, classes=["cat"])
    assert parts_of(data) == {"train": {"part1"}, "val": {"part2"}, "test": {"part1"}}
    assert "splits are those of train.txt, valid.txt" in data.notes


def test_data_yaml_beside_folders_of_splits(tmp_path: Path) -> None:
    root = yolo_parts(tmp_path, {"train": 4, "valid": 2, "test": 2, "more": 1}, "inside")
    wanted = {"train": {"train"}, "val": {"valid"}, "test": {"test"}}
    for yaml, note in (
        ("train: ../train/images\nval: ../valid/images\n", "folders taken for further splits: test/images (test)"),
        ("train: /elsewhere/train\nval: /elsewhere/valid\n",
         f"splits are those of the folders: {root}/data.yaml names /elsewhere/train (train), where no pictures are"),
        ("train: train/images\n",
         "splits are those of the folders: data.yaml states train only"),
    ):  # fmt: skip
        write(root / "data.yaml", f"{yaml}names: [cat]\n")
        data = built(root)
        assert parts_of(data) == wanted, yaml
        assert note in data.notes
        assert "1 pictures are in no split or list and are not read: 1 in more/images" in data.notes


def test_pictures_outside_the_folders_of_splits_are_said(tmp_path: Path) -> None:
    yolo_parts(tmp_path, {"train2017": 4, "val2017": 2, "test2017": 1, "unsorted": 2})
    for n in range(3):
        picture(tmp_path / "images" / f"{n}.jpg")
    data = built(tmp_path, classes=["cat"])
    assert parts_of(data) == {"train": {"train2017"}, "val": {"val2017"}, "test": {"test2017"}}
    assert data.notes[-1] == (
        "5 pictures are in no split or list and are not read: 3 in images, 2 in images/unsorted"
    )


def test_label_files_of_other_names_are_said_or_refused(tmp_path: Path) -> None:
    files: dict[str, str | None] = {f"p{n}": BOX for n in range(4)}
    yolo_folder(tmp_path, {**files, "empty": None})
    write(tmp_path / "labels" / "other.txt", BOX)
    notes = built(tmp_path, classes=["cat"]).notes
    other = tmp_path / "labels" / "other.txt"
    assert f"1 label files have no picture of the same name and are not read; the first: {other}" in notes
    assert "1 pictures have no label file and count as empty" in notes
    for name in files:
        (tmp_path / "labels" / f"{name}.txt").unlink()
    with pytest.raises(DataError, match=r"none of 5 pictures has a label file of its own name: .*other\.txt"):
        built(tmp_path, classes=["cat"])


def test_folders_that_names_in_instances_begin_with_are_splits(tmp_path: Path) -> None:
    names = [f"{split}/{split} {n}.jpg" for split, count in (("train", 4), ("test", 2)) for n in range(count)]
    for name in names:
        picture(tmp_path / "images" / name)
    content = instances(len(names))
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    write(tmp_path / "annotations.json", json.dumps(content))
    data = built(tmp_path)
    assert parts_of(data) == {"train": {"train"}, "val": {"train"}, "test": {"test"}}
    assert "splits are those of the folders that paths begin with: test, train" in data.notes


def test_a_part_of_the_classes(tmp_path: Path) -> None:
    for form in (in_coco, in_voc):
        form(tmp_path / form.__name__)
        data = built(tmp_path / form.__name__, classes=["dog"])
        assert [rows for rows in targets(data).values()] == [[([20.0, 10.0, 40.0, 30.0], "dog", False)]] * 4
        assert any(
            "objects of cat are left out, which task.data.classes does not name" in n for n in data.notes
        )
        with pytest.raises(DataError, match="has no category horse; it has cat, dog"):
            built(tmp_path / form.__name__, classes=["horse"])


# -- objects that are not what they should be ------------------------------------------------------------------


def test_boxes_are_clipped_or_left_out_and_counted(tmp_path: Path) -> None:
    boxes = {
        "fine": [2, 3, 10, 12], "beyond": [-5, 3, 100, 12], "rounded": [0, 0, WIDTH + 0.9, HEIGHT],
        "thin": [5, 5, 0, 9], "negative": [5, 5, -3, 9], "nan": [float("nan"), 1, 2, 3],
        "infinite": [1, 1, float("inf"), 3], "outside": [WIDTH + 5, 1, 10, 10],
    }  # fmt: skip
    rows = [{"id": n, "image_id": 0, "category_id": 7, "bbox": box} for n, box in enumerate(boxes.values())]
    data = built(coco_folder(tmp_path, instances(annotations=rows)))
    found = targets(data)
    assert [box for box, _, _ in found["p0.jpg"]] == [
        [2, 3, 12, 15], [0, 3, WIDTH, 15], [0, 0, WIDTH, HEIGHT],
    ]  # fmt: skip
    assert found["p1.jpg"] == [], "an empty picture is one"
    assert "1 of 3 boxes reached beyond their picture and are clipped (the first in p0.jpg)" in data.notes
    assert any("5 boxes without width or height in their picture are left out" in note for note in data.notes)
    assert not failures(data)


def test_empty_pictures_join(tmp_path: Path) -> None:
    data = built(
        coco_folder(
            tmp_path,
            instances(annotations=[{"id": 1, "image_id": 0, "category_id": 9, "bbox": [1, 1, 5, 5]}]),
        )
    )
    for split in ("train", "val"):
        batch = next(iter(data.loader(split, batch_size=2)))
        assert batch.raw["pixels"].shape[-2:] == (32, 64), "filled up to a multiple of 32"
        assert batch.raw["size"].tolist() == [[HEIGHT, WIDTH]] * len(batch)
        for target in batch.target:
            count = len(target["labels"])
            assert target["boxes"].shape == (count, 4)
            assert target["boxes"].dtype == torch.float32
            assert (target["labels"].dtype, target["crowd"].dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": [{"id": 1, "file_name": "p0.jpg"}] * 2}, "two pictures with the id 1"),
        (
            {"images": [{"id": n, "file_name": "p0.jpg"} for n in range(2)], "annotations": []},
            r"two pictures with the file_name p0\.jpg",
        ),
        ({"images": [{"id": "x", "file_name": "p0.jpg"}]}, "a picture has the id 'x', no whole number"),
        ({"images": [{"id": 1}]}, r"a picture without file_name \(id 1\)"),
        (
            {"images": [{"id": 0, "file_name": "../../etc/passwd"}], "annotations": []},
            "would lie outside its folder",
        ),
        (
            {"images": [{"id": 0, "file_name": "gone.jpg"}], "annotations": []},
            r"names 1 pictures that do not exist in .*images.*: gone\.jpg",
        ),
        ({"annotations": [{"id": 1, "image_id": 99, "category_id": 7}]}, "is of the picture 99, which it does not"),
        ({"annotations": [{"id": 1, "image_id": 0, "category_id": 8}]}, "is of the category 8, which it does not"),
        ({"annotations": [{"id": 1, "image_id": 0, "category_id": 7}] * 2}, "two annotations with the id 1"),
        ({"annotations": [3]}, "something in its annotations that is no object: 3"),
        ({"annotations": None}, "it has no list of annotations"),
        ({"categories": [{"id": 7, "name": "a"}] * 2}, "two categories with the id 7"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 9, "name": "a"}]}, "names the class a twice"),
        ({"categories": []}, "is of the category 7|names no classes"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_instances_is_one_sentence(tmp_path: Path, change: Any, said: str) -> None:
    coco_folder(tmp_path, instances(**change))
    with pytest.raises(DataError, match=said) as raised:
        built(tmp_path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [',
        '{"images": ' + "[" * 200_000,
        '{"images": ' + "1" * 5000 + "}",
        '"images"',
        "\ufeff[]",
        '{"images": 1e999}',
    ],
)
def test_no_json_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "a.json", text)
    with pytest.raises(DataError, match=r"is no JSON|is no file of COCO's instances") as raised:
        coco_json.read_instances(file)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"bbox": [1, 2, 3]}, "its annotation 5: its bbox is no list of x, y, width and height"),
        ({"bbox": [1, 2, 3, None]}, "its bbox is no list"),
        ({"bbox": [1, 2, 3, 10**400]}, "its bbox is no list"),
        ({}, "its bbox is no list"),
        ({"bbox": [1, 2, 3, 4], "iscrowd": 2}, "its iscrowd is 2, not 0 or 1"),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3]]}, "a polygon that is no list of three corners"),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5, "x"]]}, "something else than numbers"),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5, 1e12]]}, "a polygon that is not finite"),
        (
            {"bbox": [1, 2, 3, 4], "segmentation": {"size": [3, 3], "counts": [9]}},
            "run lengths are for 3×3 pixels",
        ),
        (
            {"bbox": [1, 2, 3, 4], "segmentation": {"size": [HEIGHT, WIDTH], "counts": [9]}},
            "its run lengths are of 9 pixels, not 30×40",
        ),
        (
            {"bbox": [1, 2, 3, 4], "segmentation": {"size": [HEIGHT, WIDTH], "counts": "zz\x00"}},
            "counts are no run lengths",
        ),
        (
            {"bbox": [1, 2, 3, 4], "segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, 1201]}},
            "no whole numbers from 0",
        ),
        ({"bbox": [1, 2, 3, 4], "segmentation": 3}, "neither polygons nor run lengths"),
    ],
)
def test_a_wrong_annotation_takes_its_picture_only(tmp_path: Path, row: Any, said: str) -> None:
    rows = [{"id": 5, "image_id": 0, "category_id": 7, **row}]
    data = built(coco_folder(tmp_path, instances(annotations=rows)))
    found = failures(data)
    assert set(found) == {"p0.jpg"}
    assert said in found["p0.jpg"]


def test_a_picture_of_another_size_than_its_labels_say(tmp_path: Path) -> None:
    root = coco_folder(tmp_path, instances())
    picture(root / "images" / "p1.jpg", 20, 20)
    # Lying on its side, as a camera's file may: upright it is 30 wide.
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / "images" / "p2.jpg", exif=exif)
    found = failures(built(root))
    assert set(found) == {"p1.jpg", "p2.jpg"}
    assert "its labels are for 40×30 pixels, the picture has 20×20" in found["p1.jpg"]
    assert "its labels are for 40×30 pixels, the picture has 30×40" in found["p2.jpg"]


def test_labels_without_a_size_are_for_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for n in range(4):
        picture(tmp_path / "images" / f"p{n}.jpg", exif=exif)  # upright 30 × 40
        write(tmp_path / "labels" / f"p{n}.txt", "0 0.5 0.5 1 0.5")
    data = built(tmp_path, classes=["cat"])
    assert all(rows == [([0, 10, 30, 30], "cat", False)] for rows in targets(data).values())
    raw, _ = data.read_pair(data.splits["train"][0], False, RNG)
    assert raw["pixels"].shape == (3, 40, 30)


# -- masks -----------------------------------------------------------------------------------------------------


def test_polygons_and_run_lengths_are_the_same_mask(tmp_path: Path) -> None:
    from pycocotools import mask as coco

    wanted = np.zeros((HEIGHT, WIDTH), dtype=bool)
    wanted[5:15, 8:20] = True
    packed = coco.encode(np.asfortranarray(wanted.astype(np.uint8)))["counts"].decode()
    said: list[Any] = [
        [[8, 5, 20, 5, 20, 15, 8, 15]],
        {"size": [HEIGHT, WIDTH], "counts": run_lengths(wanted)},
        {"size": [HEIGHT, WIDTH], "counts": packed},
    ]
    rows = [
        {
            "id": n,
            "image_id": n,
            "category_id": 7,
            "bbox": [8, 5, 12, 10],
            "segmentation": each,
            "iscrowd": n // 2,
        }
        for n, each in enumerate(said)
    ]
    data = built(coco_folder(tmp_path, instances(annotations=rows)))
    assert data.info()["has_masks"] is True
    seen = {}
    for items in data.splits.values():
        for item in items:
            target = data.read_pair(item, False, RNG)[1]
            assert (target["masks"].dtype, target["masks"].shape[1:]) == (torch.bool, (HEIGHT, WIDTH))
            seen[item.path.name] = target
    for n in range(3):
        assert np.array_equal(seen[f"p{n}.jpg"]["masks"][0].numpy(), wanted), said[n]
    assert seen["p2.jpg"]["crowd"].tolist() == [True]
    assert seen["p3.jpg"]["masks"].shape == (0, HEIGHT, WIDTH)


def test_run_lengths_on_random_masks() -> None:
    from pycocotools import mask as coco

    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.uniform(size=rng.integers(1, 40, 2)) < rng.uniform()
        height, width = mask.shape
        packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert unpacked(packed) == run_lengths(mask)
        outline = read_outline({"size": [height, width], "counts": packed}, (width, height))
        assert outline is not None
        assert np.array_equal(outline.mask(height, width), mask)


def test_a_polygon_may_reach_beyond_its_picture() -> None:
    far = Outline((np.array([-1e8, -1e8, 1e8, -1e8, 1e8, 1e8, -1e8, 1e8], dtype=np.float32),))
    assert far.mask(6, 8).all()


def test_masks_are_used_where_every_object_has_one(tmp_path: Path) -> None:
    content = instances()
    content["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    data = built(coco_folder(tmp_path, content))
    assert data.has_masks is False
    assert any("1 of 4 objects have an outline: masks are not used" in note for note in data.notes)
    assert all("masks" not in data.read_pair(item, False, RNG)[1] for item in data.splits["train"])


# -- VOC -------------------------------------------------------------------------------------------------------


def test_difficult_objects_are_crowd_and_one_pixel_is_none(tmp_path: Path) -> None:
    files = {
        "a": xml([("cat", (1, 1, 10, 10))], more="<difficult>1</difficult>"),
        "b": xml([("cat", (5, 5, 5, 5)), ("cat", ("nan", 1, 4, 4)), ("dog", (1.5, 2, 10, 10.5))]),
        "c": xml([("cat", (3, 3, 9, 9))], size="0x0"),
        "d": xml([]),
    }
    data = built(voc_folder(tmp_path, files))
    found = targets(data)
    assert found["a.jpg"] == [([0, 0, 10, 10], "cat", True)]
    assert found["b.jpg"] == [([0.5, 1, 10, 10.5], "dog", False)]
    assert found["c.jpg"] == [([2, 2, 9, 9], "cat", False)]
    assert found["d.jpg"] == []
    assert any("2 boxes without width or height in their picture are left out" in note for note in data.notes)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol">'
    + "".join(f'<!ENTITY lol{n} "{f"&lol{n - 1 or chr(0)};".replace(chr(0), "") * 10}">' for n in range(1, 9))
    + "]><annotation>&lol8;</annotation>"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><object>", "is no XML"),
        ("", "is no XML"),
        ("no xml", "is no XML"),
        (BOMB, r"declares a document type (DOCTYPE)"),
        ("<!doctype a SYSTEM 'file:///etc/passwd'><annotation/>", "declares a document type"),
        ("<annotation>" * 3000, "nested too deeply"),
        ("<html/>", "is no annotation of PASCAL VOC: it begins with <html>"),
        ("<annotation><object><bndbox/></object></annotation>", "has no name"),
        ("<annotation><object><name>cat</name></object></annotation>", "(cat) has no bndbox"),
        (xml([("cat", ("a", 1, 2, 3))]), "(cat) has no four numbers in its bndbox"),
        (xml([("cat", ("1_0", 1, 2, 3))]), "has no four numbers"),
        (
            xml([("cat", (1, 1, 5, 5))], more="<difficult>maybe</difficult>"),
            "is difficult='maybe', not 0 or 1",
        ),
    ],
)
def test_a_wrong_xml_takes_its_picture_only(tmp_path: Path, text: str, said: str) -> None:
    files = {f"p{n}": xml([("cat", (1, 1, 10, 10))]) for n in range(3)}
    data = built(voc_folder(tmp_path, {**files, "wrong": text}))
    found = failures(data)
    assert set(found) == {"wrong.jpg"}
    assert said in found["wrong.jpg"]
    assert "wrong.xml" in found["wrong.jpg"]
    assert any("1 pictures have labels that cannot be used; the first: " in note for note in data.notes)


def test_pictures_and_label_files_that_have_no_other(tmp_path: Path) -> None:
    in_voc(tmp_path)
    picture(tmp_path / "JPEGImages" / "alone.jpg")
    with pytest.raises(DataError, match=r"alone\.jpg has no label file of the same name in .*Annotations"):
        built(tmp_path)
    (tmp_path / "JPEGImages" / "alone.jpg").unlink()
    (tmp_path / "JPEGImages" / "p0.jpg").unlink()
    with pytest.raises(DataError, match=r"p0\.xml has no picture of the same name in .*JPEGImages"):
        built(tmp_path)
    picture(tmp_path / "JPEGImages" / "p0.jpg")
    picture(tmp_path / "JPEGImages" / "p0.png")
    with pytest.raises(DataError, match=r"p0\.jpg and p0\.png have the same labels p0"):
        built(tmp_path)


# -- YOLO ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 0.5 0.5 0.2", "line 1 of {} has 4 numbers, not a class and x, y, width, height"),
        ("0 0.5 0.5 0.2 0.2\n\n2 0.5 0.5 0.2 0.2", "line 3 of {} has the class 2: there are 2, from 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", "begins with '-1', no number of a class"),
        ("cat 0.5 0.5 0.2 0.2", "begins with 'cat', no number of a class"),
        ("0 320 240 50 50", "has 320, no part of a picture from 0 to 1 (YOLO's boxes are not in pixels)"),
        ("0 0.5 nan 0.2 0.2", "has nan, no part of a picture"),
        ("0 0.5 x 0.2 0.2", "has something else than numbers"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.3", "has 8 numbers"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
    ],
)
def test_a_wrong_line_takes_its_picture_only(tmp_path: Path, text: str | bytes, said: str) -> None:
    in_yolo(tmp_path)
    file = tmp_path / "labels" / "p0.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = failures(built(tmp_path))
    assert set(found) == {"p0.jpg"}
    assert said.format(file) in found["p0.jpg"]


def test_yolo_without_files_names_or_with_polygons(tmp_path: Path) -> None:
    line = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"
    root = yolo_folder(tmp_path / "a", {"a": line, "b": line, "c": line, "d": None, "e": ""})
    data = built(root)
    assert data.class_names == ["class 0"]
    assert data.has_masks
    assert any("nothing names the classes: labels hold 1 numbers" in note for note in data.notes)
    assert "1 pictures have no label file and count as empty" in data.notes
    found = targets(data)
    assert found["a.jpg"] == [([10, 7.5, 30, 22.5], "class 0", False)]
    assert found["d.jpg"] == found["e.jpg"] == []
    item = next(item for items in data.splits.values() for item in items if item.path.name == "a.jpg")
    mask = data.read_pair(item, False, RNG)[1]["masks"][0]
    assert int(mask.sum()) == pytest.approx(20 * 15, abs=35)
    write(root / "labels" / "b.txt", "999999 0.5 0.5 0.1 0.1")
    assert "has the class 999999" in failures(built(root))["b.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("data.yaml", "names: [cat, cat]", "names the class cat twice"),
        ("data.yaml", "names: {1: cat, 2: dog}", "numbers its names otherwise than from 0 to 1"),
        ("data.yaml", "nc: 2", "has no list of names"),
        ("data.yaml", "names: [[[", "is no YAML"),
        ("data.yaml", "!!python/object/apply:os.system ['true']", "is no YAML"),
        ("data.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nnames: *b", "uses aliases of YAML"),
        ("data.yaml", "names: " + "[" * 50_000, "is nested too deeply"),
        ("classes.txt", "cat\n\ndog\n", "has a class without a name"),
    ],
)
def test_wrong_names_of_classes_are_one_sentence(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as raised:
        yolo_text.read_names(write(tmp_path / name, text))
    assert "\n" not in str(raised.value)


# -- benchmarks ------------------------------------------------------------------------------------------------


def test_coco_has_80_classes_of_90_ids(tmp_path: Path) -> None:
    assert len(CATEGORIES) == 80
    assert (CATEGORIES["person"], CATEGORIES["stop sign"], CATEGORIES["toothbrush"]) == (1, 13, 90)
    assert set(range(1, 91)) - set(CATEGORIES.values()) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    box_scenes.coco(tmp_path, (6, 2))
    data = built(tmp_path, COCO, val_part=0.3)
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert data.has_masks
    assert len(data.class_names) == 80
    assert data.info()["category_ids"] == list(CATEGORIES.values())
    assert data.info()["ids_in_names"] is True
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][3]["name"] = "velocipede"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="has other categories than COCO's 80"):
        built(tmp_path, COCO)
    file.unlink()
    with pytest.raises(DataError, match=r"no annotations/instances_val2017\.json"):
        built(tmp_path, COCO)


@pytest.mark.parametrize(("source", "count"), [(VOC2007, 32), (VOC2012Boxes, 24)])
def test_voc(tmp_path: Path, source: type[VOCBoxes], count: int) -> None:
    source(name="voc", samples_dir=str(tmp_path), num_workers=0).write_sample(tmp_path)
    data = built(tmp_path, source)
    sizes = {split: len(items) for split, items in data.splits.items()}
    assert sizes["train"] + sizes["val"] == count
    assert sizes["test"] == 8
    assert data.class_names[:2] == ["aeroplane", "bicycle"]
    assert len(data.class_names) == 20
    assert data.title == f"PASCAL VOC {source.year}"
    file = next((tmp_path / "VOCdevkit" / f"VOC{source.year}" / "Annotations").glob("*.xml"))
    write(file, xml([("unicorn", (1, 1, 5, 5))]))
    with pytest.raises(DataError, match="objects of unicorn, which is no class"):
        built(tmp_path, source)
    file.unlink()
    with pytest.raises(DataError, match=f"names {file.stem}, and there is no "):
        built(tmp_path, source)
    with pytest.raises(DataError, match="takes a list for train and test"):
        built(tmp_path, source, lists={"train": "train"})


def test_voc_is_found_where_its_archives_unpack(tmp_path: Path) -> None:
    for folder, counts in (("VOCtrainval", {"train": 4, "val": 2}), ("VOCtest", {"test": 3})):
        box_scenes.voc(tmp_path / folder, 2007, counts)
    for path in list((tmp_path / "VOCtest").rglob("2007_*")):
        path.rename(path.with_name(path.name.replace("2007_0", "2007_9")))
    names = tmp_path / "VOCtest" / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    names.write_text(names.read_text().replace("2007_0", "2007_9"))
    data = built(tmp_path, VOC2007, val_part=0.2)
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 5, "val": 1, "test": 3}
    assert VOC2007(name="v", data_dir=str(tmp_path)).looks_complete(tmp_path)
    assert not VOC2007(name="v", data_dir=str(tmp_path)).looks_complete(tmp_path / "VOCtest")


@pytest.mark.parametrize("source", [VOC2007, COCO])
def test_downloads_go_where_they_are_read(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for is official and has its checksum; what has been fetched is not fetched again."""
    fetched = []

    def fake(archive: Any, folder: Path) -> None:
        assert archive.sha256 is not None
        fetched.append((archive.file, folder.relative_to(tmp_path).as_posix()))
        if source is COCO:
            (folder / archive.file.partition(".")[0].partition("_")[0]).mkdir(parents=True)
        else:
            folder.mkdir(parents=True)

    module = "tasks.datasets.image.coco" if source is COCO else voc_boxes.__name__
    monkeypatch.setattr(f"{module}.download_and_unpack", fake)
    data = source(name="x", data_dir=str(tmp_path), download=True)
    data.fetch(tmp_path)
    data.fetch(tmp_path)
    assert (
        fetched
        == {
            VOC2007: [("VOCtrainval_06-Nov-2007.tar", "VOCtrainval"), ("VOCtest_06-Nov-2007.tar", "VOCtest")],
            COCO: [("annotations_trainval2017.zip", "."), ("val2017.zip", "."), ("train2017.zip", ".")],
        }[source]
    )


# -- models of other data --------------------------------------------------------------------------------------


def test_a_model_of_other_classes_is_asked_about_these(tmp_path: Path) -> None:
    in_voc(tmp_path)
    data = built(tmp_path)
    known = {"class_names": ["bird", "dog", "cat"], "has_masks": False}
    whole = data.read_whole(known)
    assert whole is not None
    assert whole.said == "all 4 pictures are tested"
    data.take_whole(whole, known)
    assert data.read_pair(data.splits["test"][0], False, RNG)[1]["labels"].tolist() == [2, 1]
    data = built(tmp_path)
    data.adopt(known)
    assert data.read_pair(data.splits["test"][0], False, RNG)[1]["labels"].tolist() == [2, 1]
    with pytest.raises(DataError, match="classes that the model does not know: dog"):
        built(tmp_path).adopt({"class_names": ["cat"], "has_masks": False})
    with pytest.raises(DataError, match=r"answers with masks, and .* has boxes only"):
        built(tmp_path).adopt({"class_names": ["cat", "dog"], "has_masks": True})


def test_the_digest_follows_boxes_and_outlines(tmp_path: Path) -> None:
    content = instances()
    for n, row in enumerate(content["annotations"]):
        row["segmentation"] = [[1, 1, 9, 1, 9, 9 + n]]
    digests = [built(coco_folder(tmp_path, content)).digest()]
    content["annotations"][2]["segmentation"] = [[1, 1, 9, 1, 8, 9]]
    digests.append(built(coco_folder(tmp_path, content)).digest())
    content["annotations"][2]["bbox"] = [2, 3, 10, 13]
    digests.append(built(coco_folder(tmp_path, content)).digest())
    assert len(set(digests)) == 3
    assert digests[-1] == built(tmp_path).digest()


def ids_of(data: BoxData) -> dict[str, int | None]:
    """File name -> the id that comes with its target."""
    found = {}
    for items in data.splits.values():
        for item in items:
            target = data.read_pair(item, False, RNG)[1]
            found[item.path.name] = int(target["image_id"]) if "image_id" in target else None
    return found


def with_ids(root: Path, ids: Sequence[int], names: str = "p{0}.jpg") -> Path:
    """Four pictures whose annotations number them; `names` of the place 0 and the id 1."""
    content = instances()
    for row, number in zip(content["images"], ids, strict=True):
        row |= {"id": number, "file_name": names.format(row["id"], number)}
        picture(root / "images" / row["file_name"])
    for row, number in zip(content["annotations"], ids, strict=True):
        row["image_id"] = number
    write(root / "annotations" / "instances.json", json.dumps(content))
    return root


def test_images_and_classes_keep_the_ids_of_their_annotations(tmp_path: Path) -> None:
    data = built(with_ids(tmp_path, [31, 4, 1500, 16]))
    assert ids_of(data) == {"p0.jpg": 31, "p1.jpg": 4, "p2.jpg": 1500, "p3.jpg": 16}
    assert data.info() == {"class_names": ["cat", "dog"], "has_masks": False, "category_ids": [7, 9]}
    assert "image_id" not in data.read_pair(data.splits["train"][0], True, RNG)[1]
    # The order of the classes is the one that is said, and their ids follow.
    assert built(tmp_path, classes=["dog", "cat"]).info()["category_ids"] == [9, 7]
    # File names are ids only if all annotations say so.
    assert data.image_id(Path("16.jpg")) is None
    named = built(with_ids(tmp_path / "named", [31, 4, 1500, 16], "{1:012d}.jpg"))
    assert named.info()["ids_in_names"] is True
    assert named.image_id(Path("000000000017.jpg")) == 17
    assert named.image_id(Path("a17.jpg")) is None
    assert named.image_id(Path(f"{2**63}.jpg")) is None
    voc = tmp_path / "voc"
    in_voc(voc)
    assert "category_ids" not in built(voc).info()
    assert set(ids_of(built(voc)).values()) == {None}


def test_other_data_keep_their_own_ids(tmp_path: Path) -> None:
    """Of a model's classes that their annotations do not have, ids are free ones."""
    data = built(with_ids(tmp_path, [31, 4, 1500, 16]))
    known = {"class_names": ["bird", "dog", "cat"], "has_masks": False, "category_ids": [1, 2, 3]}
    data.adopt(known)
    assert data.category_ids == [10, 9, 7]
    data = built(tmp_path)
    whole = data.read_whole(known)
    assert whole is not None
    data.take_whole(whole, known)
    assert data.category_ids == [10, 9, 7]
    voc = tmp_path / "voc"
    in_voc(voc)
    data = built(voc)
    data.adopt(known)
    assert data.category_ids == [1, 2, 3]


def test_files_that_annotations_name(tmp_path: Path) -> None:
    """Also pictures without labels, as of COCO's test images."""
    root = with_ids(tmp_path / "data", [31, 4, 1500, 16])
    data = BoxFolder(name="task", data_dir=str(tmp_path / "elsewhere"), transforms=PLAIN)
    data.recall({"class_names": ["dog", "bird", "cat"], "has_masks": False, "category_ids": [1, 2, 3]})
    file = root / "annotations" / "instances.json"
    listed = data.files_listed_in(file)
    assert listed is not None
    assert [(path.name, data.image_id(path)) for path in listed] == [
        ("p0.jpg", 31),
        ("p1.jpg", 4),
        ("p2.jpg", 1500),
        ("p3.jpg", 16),
    ]
    assert data.category_ids == [9, 10, 7]
    unlabelled = {"images": [{"id": 8, "file_name": "q.jpg"}], "categories": [{"id": 5, "name": "bird"}]}
    picture(root / "test2017" / "q.jpg")
    info = write(root / "annotations" / "image_info_test-dev2017.json", json.dumps(unlabelled))
    listed = data.files_listed_in(info)
    assert listed == [root / "test2017" / "q.jpg"]
    assert data.image_id(listed[0]) == 8
    assert data.category_ids == [6, 5, 7]
    assert data.files_listed_in(picture(tmp_path / "a.jpg")) is None
    assert data.files_listed_in(write(tmp_path / "a.json", "{}")) is None
    (root / "test2017" / "q.jpg").unlink()
    with pytest.raises(DataError, match="names 1 pictures that do not exist"):
        data.files_listed_in(info)


def test_a_polygon_is_cut_off_at_the_border_not_bent() -> None:
    """Half of a triangle that reaches beyond the picture; moving its corner to the border would leave a quarter."""
    triangle = Outline((np.array([0, 0, 40, 20, 0, 40], dtype=np.float32),))
    whole, part = triangle.mask(40, 40), triangle.mask(40, 20)
    assert part.sum() == pytest.approx(whole[:, :20].sum(), abs=45)
    assert whole[:, :20].sum() == pytest.approx(600, abs=45)
