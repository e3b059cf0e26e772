"""What is said of masks before training: classes without a pixel, 255 as a class, rotation, what is not read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.datasets.base import DataError
from tasks.datasets.image import mask_looks
from tasks.datasets.image.dense_transforms import VOID, SegmentationTransforms
from tasks.datasets.image.mask_folder import MaskFolder
from tasks.datasets.image.masks import MaskCoding, ReadError, numbered, read_class_table
from tasks.datasets.image.reading import PictureOptions, open_image, open_unchanged, size_of

SMALL = SegmentationTransforms(size=24, resize=None)
RNG = np.random.default_rng(0)
BINARY = np.where(np.eye(4, 6), 255, 0)
TWO = np.eye(4, 6)
NAMES = ["background", "cell"]


def opened(root: Path, **options: Any) -> MaskFolder:
    return MaskFolder(name="task", data_dir=str(root), num_workers=0, transforms=SMALL, **options)


def built(root: Path, **options: Any) -> MaskFolder:
    data = opened(root, **options)
    data.setup()
    return data


def save(path: Path, pixels: Any, dtype: Any = np.uint8, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=dtype)).save(path, **options)
    return path


def folder(
    root: Path, mask: Callable[[int], Any], count: int = 6, dtype: Any = np.uint8, ending: str = ".png"
) -> Path:
    for index in range(count):
        save(root / "images" / f"p{index}.jpg", np.zeros((4, 6, 3)))
        save(root / "masks" / f"p{index}{ending}", mask(index), dtype)
    return root


def first_mask(data: MaskFolder) -> np.ndarray:
    target = data.read_pair(data.splits["train"][0], False, RNG)[1]
    array: np.ndarray = target.numpy()
    return array


# -- numbers that are no class


def test_negative_numbers_are_no_class(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 1], [1, -1, 0]], dtype=np.int32)
    with pytest.raises(ReadError, match="the value -1 at x=1, y=1 is that of no class"):
        numbered(["a", "b"]).decoded(Image.fromarray(numbers))
    lowest = numbers.copy()
    lowest[1, 1] = -(2**31)
    for values, void in ((numbers, -1), (lowest, -(2**31))):
        found = numbered(["a", "b"], (VOID, void)).decoded(Image.fromarray(values))
        assert found.tolist() == [[0, 1, 1], [1, VOID, 0]]
    root = folder(tmp_path, lambda index: np.eye(4, 6) - 1, dtype=np.int32, ending=".tif")
    with pytest.raises(
        DataError, match=r"the class a and no pixel of another \(-1 is the number of no class\)"
    ):
        built(root, classes=["a", "b"])
    root = folder(tmp_path / "b", lambda index: np.eye(4, 6) * 2 - 1 + np.eye(4, 6, 1), 6, np.int32, ".tif")
    data = built(root, classes=["a", "b"], void=[-1])
    assert first_mask(data)[0].tolist() == [1, 0, VOID, VOID, VOID, VOID]
    assert any("hold -1, the number of no class" in note for note in built(root, classes=["a", "b"]).notes)
    assert built(root, void=[-1]).class_names == ["class 0", "class 1"]
    with pytest.raises(DataError, match=r"task\.data\.void takes numbers from -2147483648 to 65535"):
        opened(root, void=[-(2**31) - 1])


def test_a_table_may_name_negative_numbers_void(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("name,index\na,0\nb,1\nignore,-1\n")
    assert read_class_table(tmp_path / "classes.csv").values == {255: VOID, 0: 0, 1: 1, -1: VOID}
    (tmp_path / "classes.csv").write_text("name,index\na,0\nb,-1\n")
    with pytest.raises(DataError, match="index is '-1', not a whole number from 0 to 65535"):
        read_class_table(tmp_path / "classes.csv")


def test_floating_point_masks_hold_whole_numbers_or_are_refused() -> None:
    values = np.array([[0, 1], [1, 255]], dtype=np.float32)
    coding = numbered(["a", "b"], (VOID, -9999))
    assert coding.decoded(Image.fromarray(values)).tolist() == [[0, 1], [1, VOID]]
    assert coding.decoded(Image.fromarray(np.where(values == 1, -9999, values))).tolist() == [
        [0, VOID],
        [VOID, VOID],
    ]
    for wrong in (1.9, np.nan, np.inf, 1e20):
        with pytest.raises(ReadError, match=r"the value .* at x=1, y=0 is no whole number$"):
            coding.decoded(Image.fromarray(np.array([[0, wrong]], dtype=np.float32)))


def test_grey_of_more_than_8_bits_is_not_cut_to_a_colour() -> None:
    coding = MaskCoding(["a", "b"], {}, {(0, 0, 0): 0, (255, 255, 255): 1})
    for dtype in (np.uint16, np.int32, np.float32):
        assert coding.decoded(Image.fromarray(np.array([[0, 255]], dtype=dtype))).tolist() == [[0, 1]]
        with pytest.raises(ReadError, match=r"the colour \(300, 300, 300\) at x=1, y=0 is that of no class"):
            coding.decoded(Image.fromarray(np.array([[0, 300]], dtype=dtype)))


def test_masks_of_16_bits_in_several_channels_are_refused(tmp_path: Path) -> None:
    from tests.tasks.test_image_reading import png

    (tmp_path / "a.png").write_bytes(png(4, 4, depth=16, color=2))
    with pytest.raises(ReadError, match="16 bits in each of several channels: save it with 8, or as grey"):
        open_unchanged(tmp_path / "a.png")
    save(tmp_path / "a.bmp", np.zeros((2, 53, 3)))  # rows of 160 bytes
    assert open_image(tmp_path / "a.bmp", PictureOptions(bits=12)).size == (53, 2)


# -- classes without a pixel


@pytest.mark.parametrize("classes", [NAMES, None])
def test_binary_masks_of_0_and_255_are_refused_with_the_cure(
    tmp_path: Path, classes: list[str] | None
) -> None:
    root = folder(tmp_path, lambda index: BINARY)
    other = classes[1] if classes else "NAME"
    cure = rf"classes\.csv with the lines name,r,g,b and background,0,0,0 and {other},255,255,255 into"
    with pytest.raises(DataError, match=cure) as raised:
        built(root, classes=classes)
    assert ("and leave task.data.classes out" in str(raised.value)) == bool(classes)
    (root / "classes.csv").write_text("name,r,g,b\nbackground,0,0,0\ncell,255,255,255\n")
    data = built(root)
    assert data.class_names == NAMES
    assert first_mask(data)[0].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_table_that_numbers_255_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("name,index\nbackground,0\ncell,255\n")
    with pytest.raises(DataError, match=r"the number 255, which is no class: .* cell,255,255,255"):
        read_class_table(tmp_path / "classes.csv")


def test_a_table_of_numbers_and_colours_is_checked_by_its_numbers(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda index: BINARY)
    (root / "classes.csv").write_text("name,index,r,g,b\nbackground,0,0,0,0\ncell,1,255,255,255\n")
    with pytest.raises(DataError, match="hold the class background and the number 255, which is no class"):
        built(root)
    root = folder(tmp_path / "b", lambda index: np.repeat(BINARY[..., None], 3, axis=2))
    (root / "classes.csv").write_text((tmp_path / "classes.csv").read_text())
    assert first_mask(built(root))[0].tolist() == [1, 0, 0, 0, 0, 0]


def test_masks_of_one_class_can_be_tested_but_not_trained_on(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda index: np.zeros((4, 6)))
    with pytest.raises(DataError, match="hold the class a and no pixel of another: nothing can be learned"):
        built(root, classes=["a", "b"])
    data = opened(root, classes=["a", "b"])
    whole = data.read_whole({"class_names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]]})
    assert whole is not None
    assert len(whole.items) == 6
    assert "the 6 masks there are hold no pixel of b" in data.notes
    folder(tmp_path, lambda index: BINARY)
    known = {"class_names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]]}
    with pytest.raises(DataError, match="hold the class a and the number 255"):
        opened(root, classes=["a", "b"]).read_whole(known)
    assert opened(root, classes=["a", "b"], void=[255]).read_whole(known) is not None
    with pytest.raises(DataError, match="hold the class a and the number 255"):
        built(root, classes=["a", "b"], void=[255])


def test_a_rare_class_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, lambda index: np.full((4, 6), index % 2), count=40)
    assert "the 40 masks there are hold no pixel of c" in built(root, classes=["a", "b", "c"]).notes
    monkeypatch.setattr(mask_looks, "FEW", 10)
    monkeypatch.setattr(mask_looks, "LOOKED_AT", 20)
    for index in range(40):
        save(root / "masks" / f"p{index}.png", np.full((4, 6), index == 7))
    notes = built(root, classes=["a", "b"]).notes
    assert notes == ["the 20 masks looked at hold no pixel of b"], "what was not looked at may hold it"
    monkeypatch.setattr(mask_looks, "LOOKED_AT", 40)
    assert built(root, classes=["a", "b"]).notes == [], "one class in a few masks: more of them are looked at"


# -- tables of colours


@pytest.mark.parametrize("option", [{"void": [0]}, {"reduce_zero_label": True}])
def test_what_is_about_numbers_is_refused_with_colours(tmp_path: Path, option: dict[str, Any]) -> None:
    root = folder(tmp_path, lambda index: BINARY)
    (root / "classes.csv").write_text("name,r,g,b\nbackground,0,0,0\ncell,255,255,255\n")
    for table in (None, "classes.csv"):
        with pytest.raises(
            DataError, match=rf"task\.data\.{next(iter(option))} is about numbers, and .* colours"
        ):
            built(root, classes=table, **option)


# -- orientation


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_a_mask_is_turned_by_its_own_orientation(tmp_path: Path, orientation: int, ending: str) -> None:
    stored = np.arange(24, dtype=np.uint8).reshape(4, 6)
    mask = tmp_path / f"m{ending}"
    options: dict[str, Any] = (
        {"tiffinfo": {274: orientation}} if ending == ".tif" else {"exif": tagged(orientation)}
    )
    Image.fromarray(stored).save(mask, **options)
    shown = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T, 6: np.rot90(stored, 3),
        7: stored[::-1, ::-1].T, 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    assert np.array_equal(np.asarray(open_unchanged(mask)), shown)
    assert np.array_equal(np.asarray(open_image(mask))[..., 0], shown)
    assert size_of(mask) == shown.shape[::-1]
    names = [f"c{index}" for index in range(24)]
    found = numbered(names).read(mask, (shown.shape[1], shown.shape[0]), PictureOptions())
    assert np.array_equal(found, shown)


@pytest.mark.parametrize(
    ("orientation", "size", "said"),
    [(1, (4, 6), False), (3, (4, 6), True), (6, (4, 6), False), (6, (5, 5), True)],
)
def test_masks_of_turned_pictures_are_those_of_the_picture_as_shown(
    tmp_path: Path, orientation: int, size: tuple[int, int], said: bool
) -> None:
    shown = size[::-1] if orientation == 6 else size
    for index in range(6):
        save(tmp_path / "images" / f"p{index}.jpg", np.zeros((*size, 3)), exif=tagged(orientation))
        save(tmp_path / "masks" / f"p{index}.png", np.eye(*shown))
    data = built(tmp_path, classes=["a", "b"])
    assert np.array_equal(first_mask(data), np.eye(*shown))
    note = "6 of 6 pictures looked at are turned or mirrored by their EXIF orientation, and their masks state none"
    assert any(note in each for each in data.notes) == said
    for index in range(6):
        save(tmp_path / "masks" / f"p{index}.png", np.eye(*size), exif=tagged(orientation))
    assert not built(tmp_path, classes=["a", "b"]).notes, (
        "a mask with an orientation is turned as its picture is"
    )


def test_a_mask_of_the_stored_picture_is_named(tmp_path: Path) -> None:
    mask = save(tmp_path / "m.png", np.zeros((4, 6)))
    with pytest.raises(
        ReadError, match=r"6×4 pixels, the picture 4×6 \(a mask is one of the picture as shown"
    ):
        numbered(["a", "b"]).read(mask, (4, 6), PictureOptions())


# -- 32 bits


def test_pixels_of_32_bits_are_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 65_535]], dtype=np.int32)).save(path)
    assert np.asarray(open_image(path))[0, :, 0].tolist() == [0, 255]
    Image.fromarray(np.array([[0, 65_536]], dtype=np.int32)).save(path)
    with pytest.raises(
        ReadError, match=r"reach 65,536, more than the 65,535 of task\.data\.transforms\.bits=16"
    ):
        open_image(path)
    Image.fromarray(np.array([[0, -5]], dtype=np.int32)).save(path)
    with pytest.raises(ReadError, match="its pixels go down to -5, and black is 0"):
        open_image(path)


# -- tables of pairs


def table(root: Path, header: str, row: Callable[[int], str], count: int = 12, mark: str = ",") -> Path:
    folder(root, lambda index: TWO, count)
    lines = [header, *(f"images/p{index}.jpg,masks/p{index}.png{row(index)}" for index in range(count))]
    (root / "pairs.csv").write_text("\n".join(lines).replace(",", mark), encoding="utf-8")
    return root


def test_a_picture_in_two_rows_is_refused(tmp_path: Path) -> None:
    root = table(tmp_path, "image,mask,split", lambda index: ",train" if index < 8 else ",test")
    with (root / "pairs.csv").open("a") as file:
        file.write("\nimages/../images/p0.jpg,masks/p0.png,test")
    with pytest.raises(
        DataError, match=r"lines 2 and 14 of .*pairs\.csv both name images/\.\./images/p0\.jpg"
    ):
        built(root, csv="pairs.csv", classes=NAMES)


def test_a_table_of_pairs_in_any_dress(tmp_path: Path) -> None:
    root = table(
        tmp_path / "a", "Image_Path; Mask;Subset;Fold", lambda i: ",Train,1" if i < 9 else ",test,2", 12, ";"
    )
    data = built(root, csv="pairs.csv", classes=NAMES)
    assert len(data.splits["test"]) == 3
    assert "columns of pairs.csv: Image_Path = image, Subset = split" in data.notes
    assert "pairs.csv is separated by semicolons" in data.notes
    assert "the column Fold of pairs.csv is not used" in data.notes
    root = table(tmp_path / "b", "images/p12.jpg,masks/p12.png", lambda index: "")
    save(root / "images" / "p12.jpg", np.zeros((4, 6, 3)))
    save(root / "masks" / "p12.png", TWO)
    data = built(root, csv="pairs.csv", classes=NAMES)
    assert sum(map(len, data.splits.values())) == 13
    assert "pairs.csv has no header: its columns are taken as image, mask" in data.notes
    for text, message in (
        ("image,mask\nimages/p0.jpg,masks/p0.png,x\n", r"line 2 of .* has 3 cells, the header 2"),
        ("image,mask\nimages/p0.jpg\n", r"line 2 of .* lacks an image or a mask"),
        (
            "image,mask,split\nimages/p0.jpg,masks/p0.png,x\n",
            "has the split 'x'; it takes train, val or test",
        ),
        ("image,image,mask\n", "has two columns 'image'"),
        ("", "is empty"),
    ):
        (root / "pairs.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            built(root, csv="pairs.csv", classes=NAMES)


def test_groups_of_a_table_stay_together(tmp_path: Path) -> None:
    def groups(data: MaskFolder) -> list[set[int]]:
        return [{int(item.path.stem[1:]) // 4 for item in items} for items in data.splits.values()]

    root = table(tmp_path / "a", "image,mask,patient", lambda index: f",g{index // 4}")
    data = built(root, csv="pairs.csv", classes=NAMES)
    assert sorted(map(len, groups(data))) == [1, 1, 1]
    assert set.union(*groups(data)) == {0, 1, 2}
    root = table(tmp_path / "b", "image,mask,group", lambda index: f",g{index // 6}")
    with pytest.raises(DataError, match=r"belong to the group g. alone, and a group belongs to one split"):
        built(root, csv="pairs.csv", classes=NAMES)
    root = table(tmp_path / "c", "image,mask,group,split", lambda i: f",g{i // 2},{'test' if i == 0 else ''}")
    assert {item.path.stem for item in built(root, csv="pairs.csv", classes=NAMES).splits["test"]} == {
        "p0",
        "p1",
    }
    root = table(
        tmp_path / "d", "image,mask,group,split", lambda i: f",g{i // 2},{'test' if i == 0 else 'train'}"
    )
    with pytest.raises(DataError, match="the group g0 lies in test and train: a group belongs to one"):
        built(root, csv="pairs.csv", classes=NAMES)


def test_a_suffix_beside_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mask_suffix is about files of folders"):
        opened(tmp_path, csv="pairs.csv", mask_suffix="_L")


# -- what is not read


def test_masks_without_a_picture_are_said(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda index: TWO)
    save(root / "masks" / "a.png", TWO)
    save(root / "masks" / "b.png", TWO)
    (note,) = built(root, classes=NAMES).notes
    assert note == f"2 masks in {root / 'masks'} belong to no picture, a.png the first of them"
    for index in range(6):
        save(root / "masks" / f"p{index}_L.png", TWO)
    (note,) = built(root, classes=NAMES, mask_suffix="_L").notes
    assert note.startswith(f"8 files in {root / 'masks'} are not read, as their names do not end in _L")


def test_what_lies_beside_the_folders_of_splits_is_said(tmp_path: Path) -> None:
    for split in ("train", "val", "test", "extra", ".hidden"):
        for index in range(2):
            save(tmp_path / "a" / "images" / split / f"p{index}.jpg", np.zeros((4, 6, 3)))
            save(tmp_path / "a" / "masks" / split / f"p{index}.png", TWO)
            save(tmp_path / "b" / split / "images" / f"p{index}.jpg", np.zeros((4, 6, 3)))
            save(tmp_path / "b" / split / "masks" / f"p{index}.png", TWO)
    save(tmp_path / "a" / "images" / "p.jpg", np.zeros((4, 6, 3)))
    save(tmp_path / "a" / "masks" / "extra" / "p.png", TWO)
    (tmp_path / "a" / "images" / "extra" / "p0.jpg").unlink()
    (tmp_path / "a" / "images" / "extra" / "p1.jpg").unlink()
    (tmp_path / "a" / "images" / "extra").rmdir()
    said = "folders taken for splits: {}test (test), train (train), val (val){}"
    stray = f"1 pictures lie in {tmp_path / 'a' / 'images'}, in no folder of a split, and are not read"
    assert built(tmp_path / "a", classes=NAMES).notes == [said.format("", ", extra (not read)"), stray]
    assert built(tmp_path / "b", classes=NAMES).notes == [said.format("extra (not read), ", "")]


def test_split_folders_without_one_for_training_are_said(tmp_path: Path) -> None:
    for split in ("val", "test"):
        for index in range(4):
            save(tmp_path / "images" / split / f"p{index}.jpg", np.zeros((4, 6, 3)))
            save(tmp_path / "masks" / split / f"p{index}.png", TWO)
    (note,) = built(tmp_path, classes=NAMES).notes
    assert note.startswith(f"test and val in {tmp_path / 'images'} are not taken for splits")
