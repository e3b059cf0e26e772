"""Pictures with masks: what masks may hold, how pairs are found, the benchmarks' layouts, what is refused and where."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.datasets.base import DataError, Item
from tasks.datasets.batch import Failure, collate, usable
from tasks.datasets.image import ade20k, camvid, cityscapes, scenes, voc2012
from tasks.datasets.image.dense_transforms import VOID, SegmentationTransforms
from tasks.datasets.image.mask_data import MaskData
from tasks.datasets.image.mask_folder import MaskFolder
from tasks.datasets.image.masks import MaskCoding, ReadError, numbered, read_class_table, usual_palette

SMALL = SegmentationTransforms(size=24, resize=None)
RNG = np.random.default_rng(0)
TWO = np.eye(4, 6)  # a mask of two classes


def built(source: type[MaskData], root: Path, **options: Any) -> MaskData:
    data = source(name="task", data_dir=str(root), num_workers=0, transforms=SMALL, **options)
    data.setup()
    return data


def save(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    image.save(path)
    return path


def picture(path: Path, width: int = 6, height: int = 4) -> Path:
    return save(path, np.zeros((height, width, 3)))


def folder(
    root: Path, mask: Callable[[int], Any], count: int = 6, places: Sequence[str] = ("images", "masks")
) -> Path:
    """Pictures and masks of the same names."""
    for index in range(count):
        picture(root / places[0] / f"p{index}.jpg")
        save(root / places[1] / f"p{index}.png", mask(index))
    return root


def mask_of(data: MaskData, split: str = "train", index: int = 0) -> np.ndarray:
    target: torch.Tensor = data.read_pair(data.splits[split][index], False, RNG)[1]
    return target.numpy()


# -- what masks hold -----------------------------------------------------------------------------------------


def test_numbers_palettes_and_colours_say_the_same(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], dtype=np.uint8)
    colours = {0: (10, 20, 30), 1: (200, 0, 0), 2: (0, 200, 0), 255: (255, 255, 255)}
    palette = Image.fromarray(numbers)
    palette.putpalette([part for index in range(256) for part in colours.get(index, (index, 0, 1))])
    painted = Image.fromarray(np.array([[colours[int(v)] for v in row] for row in numbers], dtype=np.uint8))
    grey = Image.fromarray(np.repeat(numbers[..., None], 3, axis=2))
    by_number = numbered(["a", "b", "c"])
    by_colour = MaskCoding(["a", "b", "c"], {}, {colours[k]: k for k in (0, 1, 2)} | {(255, 255, 255): VOID})
    for image, coding in (
        (Image.fromarray(numbers), by_number),
        (palette, by_number),
        (grey, by_number),
        (palette, by_colour),
        (painted, by_colour),
        (painted.convert("RGBA"), by_colour),
    ):
        assert np.array_equal(coding.decoded(image), numbers), image.mode
    with pytest.raises(ReadError, match="no table of classes says what they mean"):
        by_number.decoded(painted)


def test_a_wrong_pixel_is_refused_by_its_place() -> None:
    numbers = np.zeros((4, 6), dtype=np.uint8)
    numbers[2, 3] = numbers[3, 0] = 7
    with pytest.raises(
        ReadError, match=r"the value 7 at x=3, y=2 is that of no class \(of 2 such pixels the first\)"
    ):
        numbered(["a", "b"]).decoded(Image.fromarray(numbers))
    colours = np.zeros((4, 6, 3), dtype=np.uint8)
    colours[1, 5] = (1, 2, 3)
    with pytest.raises(ReadError, match=r"the colour \(1, 2, 3\) at x=5, y=1 is that of no class$"):
        MaskCoding(["a", "b"], {}, {(0, 0, 0): 0, (9, 9, 9): 1}).decoded(Image.fromarray(colours))
    deep = Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16))
    with pytest.raises(ReadError, match="the value 40000 at x=0, y=0"):
        numbered(["a", "b"]).decoded(deep)


def test_wrong_masks_are_named_failures(tmp_path: Path) -> None:
    """One wrong mask takes no other along; the sentence has both files, and the place."""
    root = folder(tmp_path, lambda index: np.full((4, 6), index % 2), count=40)
    data = built(MaskFolder, root, classes=["a", "b"])
    first, second, third, _ = data.splits["train"][:4]
    wrong = np.zeros((4, 6), dtype=np.uint8)
    wrong[3, 1] = 9
    save(Path(first.where["mask"]), wrong)
    save(Path(second.where["mask"]), np.zeros((3, 6)))
    Path(third.where["mask"]).write_bytes(b"nothing")
    dataset = data.loader("train", train=False).dataset
    read = [dataset[index, 0] for index in range(4)]
    said = [sample.said for sample in read if isinstance(sample, Failure)]
    assert len(said) == 3
    assert str(first.path) in said[0]
    assert f"its mask {first.where['mask']}: the value 9 at x=1, y=3 is that of no class" in said[0]
    assert "has 6×3 pixels, the picture 6×4" in said[1]
    assert "cannot be read as an image" in said[2]
    batch = usable(collate(read, data.join_targets, data.join_raws))
    assert len(batch) == 1
    assert len(batch.failures) == 3


def test_zero_label_reduced(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda index: [[0, 1, 2, 2, 255, 1]] * 4)
    data = built(MaskFolder, root, classes=["a", "b"], reduce_zero_label=True)
    assert mask_of(data)[0].tolist() == [VOID, 0, 1, 1, VOID, 0]
    data = built(MaskFolder, root, classes=["x", "a", "b"], void=[2])
    assert mask_of(data)[0].tolist() == [0, 1, VOID, VOID, VOID, 1]


def test_numbers_that_nothing_names(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda index: np.full((4, 6), index % 3))
    data = built(MaskFolder, root)
    assert data.class_names == ["class 0", "class 1", "class 2"]
    assert any("nothing names the classes" in note for note in data.notes)
    one = folder(tmp_path / "one", lambda index: np.zeros((4, 6)))
    with pytest.raises(DataError, match="hold fewer than two classes"):
        built(MaskFolder, one)
    painted = folder(tmp_path / "painted", lambda index: np.full((4, 6, 3), (9, 8, 7)))
    with pytest.raises(DataError, match=r"has colours, and nothing says what they mean: put classes\.csv"):
        built(MaskFolder, painted)


# -- tables of classes ---------------------------------------------------------------------------------------


def test_tables_of_classes(tmp_path: Path) -> None:
    tables = {
        "a.csv": "name,r,g,b\nroad,1,2,3\nvoid,0,0,0\ntree,4,5,6\n",
        "b.csv": "Class;Color\nroad;#010203\nvoid;#000000\ntree;#040506\n",
        "c.json": json.dumps({"road": [1, 2, 3], "void": [0, 0, 0], "tree": [4, 5, 6]}),
        "d.json": json.dumps(
            [
                {"name": "road", "color": "010203"},
                {"name": "void", "r": 0, "g": 0, "b": 0},
                {"name": "tree", "rgb": [4, 5, 6]},
            ]
        ),
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
        coding = read_class_table(tmp_path / name)
        assert coding.names == ["road", "tree"], name
        assert coding.colours == {(1, 2, 3): 0, (0, 0, 0): VOID, (4, 5, 6): 1}
        assert coding.palette == [(1, 2, 3), (4, 5, 6)]
        assert not coding.values
    (tmp_path / "e.csv").write_text("name,index\nroad,7\nunlabelled,3\ntree,26\n")
    coding = read_class_table(tmp_path / "e.csv")
    assert coding.values == {255: VOID, 7: 0, 3: VOID, 26: 1}
    (tmp_path / "f.csv").write_text("name\nroad\ntree\n")
    assert read_class_table(tmp_path / "f.csv", reduce_zero_label=True).values == {
        255: VOID,
        0: VOID,
        1: 0,
        2: 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("r,g,b\n1,2,3\n", "has no column name"),
        ("name,r,g,b\nroad,1,2\n", "row 1 of .* has 3 cells, its header 4"),
        ("name,r,g,b\nroad,1,2,256\n", "row 1 of .*: b is '256', not a whole number from 0 to 255"),
        ("name,r,g,b\nroad,1,2,x\n", "not a whole number"),
        (
            "name,r,g,b\nroad,1,2,3\ntree,1,2,3\n",
            r"row 2 of .* gives tree the colour \(1, 2, 3\), which another",
        ),
        ("name,index\nroad,1\ntree,1\n", "row 2 of .* gives tree the number 1, which is taken"),
        ("name,colour\nroad,red\ntree,blue\n", "has the colour 'red'"),
        ("name,r,g,b\nroad,1,2,3\nroad,4,5,6\n", "the class road is named twice"),
        ("name,r,g,b\nroad,1,2,3\n", "between 2 and 254 classes, not 1"),
        ("name,r,g,b\n,1,2,3\n", "row 1 of .* names no class"),
        ("name,r,g,b\nroad,1,2,3\ntree,,,\n", "but not tree"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_class_table(tmp_path / "classes.csv")


def test_a_wrong_json_is_one_sentence(tmp_path: Path) -> None:
    for text, message in (
        ("{", "is no JSON"),
        ("[1]", "neither a list of classes nor"),
        ("[" * 100_000, "is no JSON"),
    ):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_class_table(tmp_path / "classes.json")


def test_the_usual_palette_tells_classes_apart() -> None:
    palette = usual_palette(254)
    assert palette[:3] == [(128, 0, 0), (0, 128, 0), (128, 128, 0)], "as PASCAL VOC's"
    assert len(set(palette)) == 254


# -- pairs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split_first", [True, False])
def test_layouts_with_splits(tmp_path: Path, split_first: bool) -> None:
    for split, count in (("training", 3), ("val", 1), ("test", 2)):
        for index in range(count):
            stem = f"{split}_{index}"
            parts = (("images", split), ("masks", split))
            for (kind, part), ending in zip(parts, (".jpg", ".png"), strict=True):
                place = tmp_path / part / kind if split_first else tmp_path / kind / part
                (picture if kind == "images" else lambda path: save(path, TWO))(place / f"{stem}{ending}")
    data = built(MaskFolder, tmp_path, classes=["a", "b"])
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 3, "val": 1, "test": 2}
    for items in data.splits.values():
        for item in items:
            assert Path(item.where["mask"]).stem == item.path.stem


def test_splits_are_drawn_by_name_where_none_is_stated(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda index: np.full((4, 6), index % 2), count=30)
    data = built(MaskFolder, root, classes=["a", "b"])
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 24, "val": 3, "test": 3}
    before = {item.path.name: split for split, items in data.splits.items() for item in items}
    again = built(MaskFolder, root, classes=["a", "b"])
    assert before == {item.path.name: split for split, items in again.splits.items() for item in items}


def test_a_table_of_pairs(tmp_path: Path) -> None:
    rows = []
    for index, split in enumerate(("train", "train", "val", "test")):
        picture(tmp_path / "x" / f"{index}.jpg")
        save(tmp_path / "y" / f"m{index}.png", TWO)
        rows.append((f"x/{index}.jpg", f"y/m{index}.png", split))
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "mask", "split"), *rows])
    data = built(MaskFolder, tmp_path, csv="pairs.csv", classes=["a", "b"])
    assert [Path(item.where["mask"]).name for item in data.splits["test"]] == ["m3.png"]
    (tmp_path / "pairs.csv").write_text("image,mask\nx/0.jpg,y/absent.png\n")
    with pytest.raises(DataError, match=r"line 2 of .* names .*absent.png, which does not exist"):
        built(MaskFolder, tmp_path, csv="pairs.csv", classes=["a", "b"])
    (tmp_path / "pairs.csv").write_text("a,b\nx/0.jpg,y/m0.png\n")
    with pytest.raises(DataError, match="needs the columns image and mask"):
        built(MaskFolder, tmp_path, csv="pairs.csv", classes=["a", "b"])


def test_folders_of_a_table_of_pairs_are_splits(tmp_path: Path) -> None:
    rows = ["image,mask"]
    for split, count in (("train", 6), ("val", 2), ("test", 2), ("extra", 1)):
        for index in range(count):
            names = [f"{kind}/{split}/{index}.png" for kind in ("images", "masks")]
            picture(tmp_path / names[0])
            save(tmp_path / names[1], TWO)
            rows.append(",".join(names))
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    data = built(MaskFolder, tmp_path, csv="pairs.csv", classes=["a", "b"])
    found = {split: {item.path.parent.name for item in items} for split, items in data.splits.items()}
    assert found == {split: {split} for split in ("train", "val", "test")}
    assert data.notes == [
        "splits are those of the folders that paths begin with: test, train, val",
        "1 pictures lie in none of these folders and are not read",
    ]


def test_pairs_that_are_none_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", lambda index: TWO)
    (root / "masks" / "p2.png").unlink()
    with pytest.raises(DataError, match=r"p2.jpg has no mask of the same name"):
        built(MaskFolder, root, classes=["a", "b"])
    root = folder(tmp_path / "b", lambda index: TWO)
    save(root / "masks" / "p2.bmp", TWO)
    with pytest.raises(DataError, match=r"p2\.bmp and p2\.png are both the mask of p2"):
        built(MaskFolder, root, classes=["a", "b"])
    with pytest.raises(DataError, match=r"no pictures with masks in .* expects images/ and masks/"):
        built(MaskFolder, picture(tmp_path / "c" / "x.jpg").parent)
    root = folder(tmp_path / "d", lambda index: TWO)
    with pytest.raises(DataError, match=r"table of classes .*no\.csv does not exist"):
        built(MaskFolder, root, classes="no.csv")


def test_a_suffix_of_masks(tmp_path: Path) -> None:
    for index in range(6):
        picture(tmp_path / "images" / f"p{index}.png")
        save(tmp_path / "labels" / f"p{index}_L.png", TWO)
    data = built(MaskFolder, tmp_path, classes=["a", "b"], mask_suffix="_L")
    assert sum(map(len, data.splits.values())) == 6


# -- the benchmarks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small versions of all samples."""
    place = tmp_path_factory.mktemp("scenes")
    scenes.mask_folder(place / "mask_folder", (4, 2, 2))
    scenes.camvid(place / "camvid", (4, 2, 2))
    scenes.ade20k(place / "ade20k", (6, 2))
    scenes.cityscapes(place / "cityscapes", (6, 2))
    scenes.voc2012(place / "voc2012", (6, 2))
    return {path.name: path for path in place.iterdir()}


def found_classes(data: MaskData) -> set[str]:
    found = set()
    for split, items in data.splits.items():
        for index in range(len(items)):
            found |= {int(value) for value in np.unique(mask_of(data, split, index))}
    assert VOID in found, "something has no class"
    return {data.class_names[value] for value in found - {VOID}}


@pytest.mark.parametrize(
    ("name", "source", "classes", "there"),
    [
        ("mask_folder", MaskFolder, 7, set(scenes.CLASSES)),
        ("camvid", camvid.CamVid, 11, {"road", "sky", "building", "tree", "car", "pedestrian", "bicyclist"}),
        ("ade20k", ade20k.ADE20K, 150, {"wall", "person", "table", "chair", "car", "pillow", "flower"}),
        (
            "cityscapes",
            cityscapes.Cityscapes,
            19,
            {"road", "building", "pole", "traffic sign", "person", "car", "bicycle"},
        ),
        (
            "voc2012",
            voc2012.VOC2012,
            21,
            {"background", "aeroplane", "bottle", "car", "cat", "person", "tvmonitor"},
        ),
    ],
)
def test_benchmarks_are_read(
    roots: dict[str, Path], tmp_path: Path, name: str, source: type[MaskData], classes: int, there: set[str]
) -> None:
    data = built(source, roots[name], **({} if name in ("mask_folder", "camvid") else {"val_part": 0.3}))
    assert len(data.class_names) == len(data.palette) == classes
    assert all(data.splits.values())
    assert found_classes(data) <= there
    raw, target = data.read_pair(data.splits["train"][0], True, np.random.default_rng(1))
    assert raw["pixels"].shape == (3, 24, 24)
    assert target.shape == (24, 24)
    assert raw["pixels"].dtype == target.dtype == torch.uint8
    with pytest.raises(DataError, match="expects"):
        built(source, tmp_path)


def test_ade20k_has_its_150_classes_in_order() -> None:
    assert len(ade20k.CLASSES) == len(set(ade20k.CLASSES)) == 150
    assert (ade20k.CLASSES[0], ade20k.CLASSES[12], ade20k.CLASSES[149]) == ("wall", "person", "flag")
    assert ade20k.CLASSES[44] == "chest of drawers"


def test_cityscapes_maps_label_ids_to_train_ids() -> None:
    labels = np.arange(34, dtype=np.uint8)[None]
    mapped = cityscapes.coding(train_ids=False).decoded(Image.fromarray(labels))[0]
    official = {
        7: 0,
        8: 1,
        11: 2,
        12: 3,
        13: 4,
        17: 5,
        19: 6,
        20: 7,
        21: 8,
        22: 9,
        23: 10,
        24: 11,
        25: 12,
        26: 13,
    }
    official |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert {k: int(v) for k, v in enumerate(mapped) if v != VOID} == official
    with pytest.raises(ReadError, match="the value 19 at"):
        cityscapes.coding(train_ids=True).decoded(Image.fromarray(np.full((1, 1), 19, dtype=np.uint8)))


def test_a_model_of_other_masks_is_asked_by_name(roots: dict[str, Path]) -> None:
    data = built(MaskFolder, roots["mask_folder"])
    known = [*reversed(data.class_names), "moon"]
    before = mask_of(data, "test")
    data.adopt({"class_names": known, "palette": [list(colour) for colour in usual_palette(8)]})
    after = mask_of(data, "test")
    assert np.array_equal(after[before != VOID], 6 - before[before != VOID])
    with pytest.raises(DataError, match="has classes that the model does not know: circle"):
        built(MaskFolder, roots["mask_folder"]).adopt({"class_names": ["ground"], "palette": [[0, 0, 0]]})


def test_the_digest_knows_the_masks(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda index: TWO)
    before = built(MaskFolder, root, classes=["a", "b"]).digest()
    assert built(MaskFolder, root, classes=["a", "b"]).digest() == before
    save(root / "masks" / "p3.png", np.random.default_rng(0).integers(0, 2, (4, 6)))
    assert built(MaskFolder, root, classes=["a", "b"]).digest() != before


def test_items_say_where_their_mask_is(roots: dict[str, Path]) -> None:
    data = built(camvid.CamVid, roots["camvid"])
    item: Item = data.splits["val"][0]
    assert Path(item.where["mask"]) == item.path.parent.with_name("valannot") / item.path.name


def test_pixels_of_each_class_are_counted_in_training_masks(tmp_path: Path) -> None:
    """Pixels without a class do not count, nor do masks that cannot be read, nor those of other splits."""
    root = folder(tmp_path, lambda index: [[0, 0, 0, 0, 1, 255]] * 4, count=10)
    data = built(MaskFolder, root, classes=["a", "b", "c"])
    train = len(data.splits["train"])
    Path(data.splits["train"][0].where["mask"]).write_bytes(b"nothing")
    pixels, total = data.class_counts() or (None, 0)
    assert pixels is not None
    assert pixels.tolist() == [16 * (train - 1), 4 * (train - 1), 0]
    assert total == 20 * (train - 1)
