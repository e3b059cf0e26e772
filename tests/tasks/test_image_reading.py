"""Pictures and folders as people have them: other endings, 12 bits in 16, hidden folders, thin pictures."""

import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from tests_support import ROOT

from tasks.datasets.audio.folder import AudioFolder
from tasks.datasets.base import DataError, ReadError
from tasks.datasets.image.files import ImageTransforms
from tasks.datasets.image.folder import ImageFolder
from tasks.datasets.image.reading import EXTENSIONS, PictureOptions, depth_notes, open_image
from tasks.datasets.listing import Listing, list_files
from tasks.datasets.point_cloud.folder import PointFolder
from tasks.datasets.split_folders import split_of_folder
from workbench.predict import find_files

SHADES = np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)


def save(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def opened(root: Path, **options: Any) -> ImageFolder:
    transforms = ImageTransforms(size=16, **options)
    data = ImageFolder(
        name="x", data_dir=str(root), samples_dir=str(root / ".samples"), transforms=transforms
    )
    data.setup()
    return data


def sizes(data: ImageFolder) -> list[int]:
    return [len(data.splits[split]) for split in ("train", "val", "test")]


# -- folders


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Train", "train"), ("TRAINING", "train"), ("training_set", "train"), ("train-data", "train"),
        ("Val", "val"), ("valid_set", "val"), ("Validation Set", "val"), ("dev", "val"), ("Test", "test"),
        ("test_set", "test"), ("testing", "test"), ("tests", None), ("cat", None), ("set", None), ("trainer", None),
    ],
)  # fmt: skip
def test_folders_that_are_splits(name: str, split: str | None) -> None:
    assert split_of_folder(name) == split


@pytest.mark.parametrize("names", [("Train", "Val", "Test"), ("training_set", "validation_set", "test_set")])
def test_splits_are_no_classes(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for name, count in zip(names, (4, 2, 3), strict=True):
        for label in ("cat", "dog"):
            for number in range(count):
                save(tmp_path / name / label / f"{number}.png")
    (tmp_path / "extra" / "cat").mkdir(parents=True)
    data = opened(tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert sizes(data) == [8, 4, 6]
    said = {f"{name} ({split})" for name, split in zip(names, ("train", "val", "test"), strict=True)}
    assert any(all(part in note for part in said | {"extra (not read)"}) for note in data.notes)


def test_nothing_hidden_is_read_and_what_is_passed_over_is_said(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for number in range(20):
            save(tmp_path / label / f"{number}.PNG")
        save(tmp_path / label / ".ipynb_checkpoints" / "0-checkpoint.png")
        save(tmp_path / label / "__MACOSX" / "0.png")
        save(tmp_path / label / "._1.png")
        (tmp_path / label / "Thumbs.db").write_bytes(b"x")
        (tmp_path / label / "notes").write_bytes(b"x")
    save(tmp_path / "stray.png")
    save(tmp_path / ".ipynb_checkpoints" / "x.png")
    data = opened(tmp_path)
    assert sum(sizes(data)) == 40
    assert data.notes == [
        "1 files lie in no folder of a class and are not read",
        "files passed over: 2 .db, 2 without ending, 6 hidden (names beginning with a dot, a folder counted as one)",
    ]
    predicted = find_files(str(tmp_path), data.extensions)
    assert len(predicted) == 41, "prediction reads the same, and the stray one"
    assert not [path for path in predicted if "checkpoint" in path.name or path.name.startswith(".")]


@pytest.mark.parametrize(
    ("source", "ending"), [(AudioFolder, ".wav"), (PointFolder, ".xyz"), (ImageFolder, ".png")]
)
def test_every_kind_of_folder_skips_what_is_hidden(tmp_path: Path, source: Any, ending: str) -> None:
    for label in ("a", "b"):
        for folder in (".", ".ipynb_checkpoints"):
            (tmp_path / label / folder).mkdir(parents=True, exist_ok=True)
            for number in range(30):
                (tmp_path / label / folder / f"{number}{ending}").write_text("1 2 3\n")
    data = source(name="x", data_dir=str(tmp_path), samples_dir=str(tmp_path / ".samples"))
    data.setup()
    assert sum(map(len, data.splits.values())) == 60
    assert [note for note in data.notes if "2 hidden" in note]


def test_a_listing_counts_the_rest(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"x.{number}").touch()
    listing = Listing()
    assert list_files(tmp_path, (".0",), listing) == [tmp_path / "x.0"]
    assert str(listing.passed_over()).endswith(", 2 others")
    assert Listing().passed_over() is None


# -- formats


@pytest.mark.parametrize(
    ("ending", "form"),
    [(".jfif", "JPEG"), (".jpe", "JPEG"), (".jp2", "JPEG2000"), (".j2k", "JPEG2000"), (".avif", "AVIF"),
     (".pnm", "PPM"), (".dib", "DIB")],
)  # fmt: skip
def test_other_endings(tmp_path: Path, ending: str, form: str) -> None:
    needed = {"JPEG2000": "jpg_2000", "AVIF": "avif"}.get(form)
    if needed and not features.check(needed):
        pytest.skip(f"this Pillow has no {form}")
    assert ending in EXTENSIONS
    pixels = np.full((16, 16, 3), [200, 100, 50], np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a{ending}", format=form)
    assert np.abs(np.asarray(open_image(tmp_path / f"a{ending}")).astype(int) - pixels).max() <= 6


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_twelve_bits_in_sixteen(tmp_path: Path, name: str) -> None:
    Image.fromarray(SHADES).save(tmp_path / name)
    bright = np.asarray(open_image(tmp_path / name, PictureOptions(bits=12)))[..., 0]
    np.testing.assert_array_equal(bright, (SHADES / 4095 * 255).round())
    assert np.asarray(open_image(tmp_path / name)).max() == 16, "all bits count unless said otherwise"
    with pytest.raises(ReadError, match=r"its pixels reach 4,095, more than the 1,023 of .*bits=10"):
        open_image(tmp_path / name, PictureOptions(bits=10))
    (note,) = depth_notes([tmp_path / name], PictureOptions())
    assert "reach 4,095 only, and come out dark" in note
    assert "task.data.transforms.bits=12" in note
    assert "dark" not in depth_notes([tmp_path / name], PictureOptions(bits=12))[0]
    Image.fromarray(SHADES * 16).save(tmp_path / name)
    assert "dark" not in depth_notes([tmp_path / name], PictureOptions())[0]
    assert depth_notes([save(tmp_path / "b.png")], PictureOptions()) == []


def test_bits_are_an_option_of_the_task(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(20):
            Image.fromarray(SHADES).save(tmp_path / label / f"{number}.png")
    data = opened(tmp_path, bits=12)
    assert data.read_file(tmp_path / "a" / "0.png").max() > 240
    assert data.notes == ["grey pictures with 16 bits, of which 12 count (task.data.transforms.bits)"]
    with pytest.raises(DataError, match="bits lie between 8 and 16"):
        ImageTransforms(bits=4)


def png(width: int, height: int, depth: int = 8, color: int = 0) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    row = b"\0" + bytes(width * (depth // 8) * (3 if color else 1))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = zlib.compress(row * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_colours_of_sixteen_bits_do_not_lose_the_upper_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 4, depth=16, color=2))
    assert np.asarray(open_image(path)).shape == (4, 4, 3)
    with pytest.raises(ReadError, match="16 bits in each of several channels"):
        open_image(path, PictureOptions(bits=12))


# -- bombs


@pytest.mark.parametrize("crop_mode", ["center", "border"])
@pytest.mark.parametrize(("width", "height"), [(1, 500_000), (2_000_000, 1)])
def test_a_thin_picture_does_not_grow(tmp_path: Path, crop_mode: str, width: int, height: int) -> None:
    (tmp_path / "thin.png").write_bytes(png(width, height))
    data = ImageFolder(
        name="x", data_dir=str(tmp_path), transforms=ImageTransforms(size=64, crop_mode=crop_mode)
    )
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(
        ReadError, match=r"so thin, .* more than 178,956,970: say task.data.transforms.max_pixels=N"
    ):
        data.read_file(tmp_path / "thin.png")
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_the_limit_of_pixels_is_an_option(tmp_path: Path) -> None:
    (tmp_path / "thin.png").write_bytes(png(1, 900))
    (tmp_path / "wide.png").write_bytes(png(300, 300))

    def read(name: str, **options: Any) -> Any:
        return ImageFolder(
            name="x", data_dir=str(tmp_path), transforms=ImageTransforms(size=32, crop_pct=1.0, **options)
        ).read_file(tmp_path / name)

    assert read("thin.png", max_pixels=32 * 32 * 900).shape == (3, 32, 32)
    with pytest.raises(ReadError, match="scaled it would have 921,600, more than 921,599"):
        read("thin.png", max_pixels=32 * 32 * 900 - 1)
    assert read("thin.png", max_pixels=1000, crop_mode="squash").shape == (3, 32, 32)
    with pytest.raises(ReadError, match=r"it has 300×300 pixels, more than can be read safely \(80,000\)"):
        read("wide.png", max_pixels=80_000)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485, "Pillow's own limit is as it was"


@pytest.mark.slow
def test_thin_pictures_need_little_memory(tmp_path: Path) -> None:
    """In a process of its own, libraries included."""
    (tmp_path / "thin.png").write_bytes(png(1, 2_000_000))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from tasks.datasets.image.folder import ImageFolder\n"
        "try: ImageFolder(name='x', data_dir=sys.argv[1]).read_file(Path(sys.argv[1], 'thin.png'))\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "so thin" in ran.stdout
    assert int(ran.stdout.split()[-1]) < 1_000_000
