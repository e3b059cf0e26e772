"""Image sources: reading, transforms, splits, samples. Small files are written by the tests."""

import contextlib
import hashlib
import io
import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from PIL import Image
from tests_support import TINY

from backbone import UniRepLKNet
from tasks.datasets.base import DataError, ReadError, spread
from tasks.datasets.batch import Batch
from tasks.datasets.download import Source
from tasks.datasets.image import sample as sample
from tasks.datasets.image.cifar import Cifar10, Cifar100, read_pickle
from tasks.datasets.image.files import ImageData, ImageTransforms
from tasks.datasets.image.folder import ImageFolder
from tasks.datasets.image.imagenet import ImageNet, Pictures, describe_synset
from tasks.datasets.image.imagenet22k import ImageNet22K
from tasks.datasets.image.reading import open_image
from tasks.datasets.image.tiny_imagenet import TinyImageNet
from tasks.datasets.seeding import seeded_by
from tasks.datasets.splits import held_out_files

SMALL = ImageTransforms(size=16, crop_pct=1.0)
RED, WHITE = (200, 30, 60), (255, 255, 255)


def save(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (20, 16), RED)).save(path, **options)
    return path


def colour(path: Path, x: int = 2, y: int = 2) -> tuple[int, ...]:
    image = open_image(path)
    assert image.mode == "RGB"
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


def close(one: tuple[int, ...], other: tuple[int, ...], most: int = 6) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= most


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "ppm", "gif"])
def test_every_format_reads_alike(tmp_path: Path, suffix: str) -> None:
    assert close(colour(save(tmp_path / f"a.{suffix}")), RED, most=10)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "RGBA", "LA", "I;16", "I"])
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode in ("I", "I;16"):
        dtype = np.uint16 if mode == "I;16" else np.int32
        image = Image.fromarray(np.full((16, 20), 200 * 257, dtype=dtype))
        path = save(tmp_path / "a.tiff", image)
    else:
        image = Image.new("L" if mode in ("L", "1", "LA") else "RGB", (20, 16), 255 if mode == "1" else 200)
        path = save(tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"), image.convert(mode))
    wanted = {"P": (200, 0, 0), "CMYK": (200, 0, 0), "YCbCr": (200, 0, 0), "RGBA": (200, 0, 0), "1": WHITE}
    assert close(colour(path), wanted.get(mode, (200, 200, 200)))


def test_16_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    read = np.asarray(open_image(save(tmp_path / "a.png", Image.fromarray(ramp))))
    np.testing.assert_allclose(read[0, :, 0], np.arange(256), atol=1)


def test_transparent_parts_lie_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (20, 16), (*RED, 0))
    assert colour(save(tmp_path / "a.png", clear)) == WHITE
    palette = Image.new("P", (20, 16), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert colour(save(tmp_path / "b.png", palette, transparency=bytes([255, 0]))) == WHITE
    assert colour(save(tmp_path / "c.gif", palette, transparency=1)) == WHITE
    assert colour(save(tmp_path / "d.png", palette)) == RED


def test_orientation_and_frames(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), WHITE)
    image.paste(RED, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    path = save(tmp_path / "a.jpg", image, exif=exif, quality=95)
    assert open_image(path).size == (10, 20)
    assert close(colour(path, 5, 3), RED, 12)
    assert close(colour(path, 5, 17), WHITE, 12)
    frames = [Image.new("RGB", (20, 10), shade) for shade in (RED, WHITE)]
    for suffix in ("gif", "webp", "png"):
        path = save(tmp_path / f"b.{suffix}", frames[0], save_all=True, append_images=frames[1:], duration=50)
        assert close(colour(path), RED, 10)


def broken_files(folder: Path) -> Iterator[tuple[Path, str]]:
    (folder / "empty.jpg").touch()
    yield folder / "empty.jpg", "is empty"
    (folder / "text.png").write_text("no picture\n" * 100)
    yield folder / "text.png", "cannot be read as an image"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("jpg", "png", "webp", "gif", "tiff"):
        path = save(folder / f"cut.{suffix}", noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        yield path, "cannot be read as an image"
    yield save(folder / "float.tiff", Image.fromarray(np.zeros((4, 4), np.float32))), "floating-point"
    (folder / "bomb.ppm").write_bytes(b"P6\n60000 60000\n255\n" + bytes(100))
    yield folder / "bomb.ppm", "more pixels than can be read safely"
    (folder / "folder.png").mkdir()
    yield folder / "folder.png", "no such file"
    yield folder / "absent.png", "no such file"


def test_a_broken_file_is_one_sentence(tmp_path: Path) -> None:
    for path, message in broken_files(tmp_path):
        with pytest.raises(ReadError, match=message) as caught:
            open_image(path)
        assert "\n" not in str(caught.value), path
        assert str(tmp_path) not in str(caught.value), "the caller adds the name"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), suffix=st.sampled_from(["jpeg", "png", "gif", "tiff", "webp", "bmp"]))
def test_damage_anywhere_never_crashes(
    seed: int, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, suffix)
    content = bytearray(buffer.getvalue()[: rng.integers(1, buffer.tell() + 1)])
    for place in rng.integers(0, len(content), 6):
        content[place] = rng.integers(256)
    path = tmp_path_factory.mktemp("damaged") / f"a.{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(ReadError):
        assert open_image(path).mode == "RGB"


# -- transforms ----------------------------------------------------------------------------------------------


def noise_image(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.sampled_from([8, 31, 32]),
    crop=st.sampled_from(["resized", "padded", "whole"]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    auto_augment=st.sampled_from([None, "rand-m9-mstd0.5-inc1"]),
)
@example(width=90, height=1, size=32, crop="whole", crop_mode="border", auto_augment=None)
def test_size_is_fixed_whatever_the_picture(
    width: int, height: int, size: int, crop: str, crop_mode: str, auto_augment: str | None
) -> None:
    transforms = ImageTransforms(size, crop=crop, crop_mode=crop_mode, auto_augment=auto_augment, vflip=0.5)
    for pipeline in (transforms.for_training(), transforms.for_evaluation()):
        pixels = torch.as_tensor(pipeline(noise_image(width, height)))
        assert pixels.shape == (3, size, size)
        assert pixels.dtype == torch.uint8


def test_evaluation_is_the_official_one() -> None:
    from torchvision import transforms as tv

    image = noise_image(90, 60)
    bicubic = tv.InterpolationMode.BICUBIC
    official = tv.Compose([tv.Resize(64, bicubic), tv.CenterCrop(56), tv.PILToTensor()])
    assert ImageTransforms(56).for_evaluation()(image).equal(official(image))
    warped = tv.Compose([tv.Resize((56, 56), bicubic), tv.PILToTensor()])
    assert ImageTransforms(56, crop_mode="squash", crop_pct=1.0).for_evaluation()(image).equal(warped(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1"),
        ({"crop": "random"}, "crop takes resized, padded, whole"),
        ({"crop_mode": "five"}, "crop_mode center, squash, border"),
        ({"scale": (0.5, 0.1)}, "scale takes two parts"),
    ],
)
def test_impossible_transforms_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageTransforms(**options)


def test_an_unknown_policy_is_one_sentence() -> None:
    with pytest.raises(DataError, match="auto_augment=rand-x9"):
        ImageTransforms(auto_augment="rand-x9").for_training()


def global_draws() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_reading_neither_uses_nor_disturbs_the_trainers_generators(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise_image(64, 48))
    transforms = ImageTransforms(16, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, vflip=0.5)
    data = ImageData(name="x", transforms=transforms)
    item = sample_item(path)

    def read(seed: int) -> torch.Tensor:
        return data.read_item(item, True, np.random.default_rng(seed))

    def seed_all(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)

    seed_all(1)
    wanted = global_draws()
    seed_all(1)
    first = read(5)
    assert global_draws() == wanted, "training draws what it would have drawn"
    seed_all(2)
    assert read(5).equal(first), "an item depends on its own generator alone"
    assert any(not read(seed).equal(first) for seed in range(3))
    seed_all(1)
    with contextlib.suppress(RuntimeError), seeded_by(np.random.default_rng(0)):
        random.random()
        raise RuntimeError
    assert global_draws() == wanted, "also after an error"


def test_color_jitter_and_flips_draw_from_the_item(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise_image(32, 32))
    data = ImageData(name="x", transforms=ImageTransforms(16, crop="padded", color_jitter=0.5, hflip=0.5))
    reads = [data.read_item(sample_item(path), True, np.random.default_rng(seed)) for seed in range(6)]
    assert len({hashlib.sha1(read.numpy().tobytes()).hexdigest() for read in reads}) == 6
    still = [data.read_item(sample_item(path), False, np.random.default_rng(seed)) for seed in range(2)]
    assert still[0].equal(still[1])
    assert data.read_file(path).equal(still[0])


def sample_item(path: Path) -> Any:
    from tasks.datasets.base import Item

    return Item(path, 0)


# -- splits and sources --------------------------------------------------------------------------------------


def built(source: type[ImageData], root: Path, **options: Any) -> ImageData:
    data = source(name="task", data_dir=str(root), num_workers=0, transforms=SMALL, **options)
    data.setup()
    return data


def sizes(data: ImageData) -> dict[str, int]:
    return {split: len(items) for split, items in data.splits.items()}


def per_class(data: ImageData, split: str) -> list[int]:
    return np.bincount([item.target for item in data.splits[split]], minlength=len(data.class_names)).tolist()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[type[ImageData], Path]:
    """Small versions of all samples."""
    folder = tmp_path_factory.mktemp("images")
    sample.image_folder(folder / "folder", (6, 2, 3))
    sample.imagenet(folder / "imagenet", train=5, val=2)
    sample.imagenet22k(folder / "imagenet22k", count=6)
    sample.tiny_imagenet(folder / "tiny", train=6, val=3)
    sample.cifar10(folder / "cifar10", train=20, test=20)
    sample.cifar100(folder / "cifar100", train=50, test=20)
    names = {
        ImageFolder: "folder",
        ImageNet: "imagenet",
        ImageNet22K: "imagenet22k",
        TinyImageNet: "tiny",
        Cifar10: "cifar10",
        Cifar100: "cifar100",
    }
    return {source: folder / name for source, name in names.items()}


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_held_out_files_take_from_every_class_and_never_all(fraction: float) -> None:
    files = [(label, f"{label}_{index}") for label in "abc" for index in range(10 if label == "a" else 3)]
    held = held_out_files(files, fraction)
    for label, count in (("a", 10), ("b", 3), ("c", 3)):
        taken = sum(name.startswith(label) for name in held)
        assert taken == min(max(round(fraction * count), 1), count - 1)
    assert held == held_out_files(reversed(files), fraction)
    assert held_out_files([("a", "only")], 0.5) == set()


SOURCES = (ImageFolder, ImageNet, ImageNet22K, TinyImageNet, Cifar10, Cifar100)


@pytest.mark.parametrize("source", SOURCES)
def test_an_empty_or_absent_folder_says_what_was_expected(source: type[ImageData], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match=r"; task expects .*"):
            built(source, folder)


@pytest.mark.parametrize("source", SOURCES)
def test_batches_are_small_on_their_way(source: type[ImageData], roots: dict[type[ImageData], Path]) -> None:
    data = built(source, roots[source], batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch.raw.shape == (4, 3, 16, 16)
    assert batch.raw.dtype == torch.uint8
    assert data.read_file(roots[ImageFolder] / "test" / "circle" / "circle_000.png").shape == (3, 16, 16)


@pytest.mark.parametrize("source", [ImageNet, TinyImageNet, Cifar10, Cifar100])
@pytest.mark.parametrize("val_part", [0, 1, -0.1])
def test_val_part_is_a_part(source: type[ImageData], val_part: float) -> None:
    with pytest.raises(DataError, match="val_part must lie between 0 and 1"):
        source(name="task", val_part=val_part)  # type: ignore[call-arg]


def test_worker_processes_read_the_very_same(roots: dict[type[ImageData], Path]) -> None:
    batches = []
    for workers in (0, 2):
        data = ImageFolder(
            name="x",
            data_dir=str(roots[ImageFolder]),
            num_workers=workers,
            batch_size=8,
            transforms=ImageTransforms(16, auto_augment="rand-m9-mstd0.5-inc1"),
        )
        data.setup()
        batches.append(torch.cat([batch.raw for batch in data.train_dataloader()]))
    assert batches[0].equal(batches[1])


# -- ImageNet ------------------------------------------------------------------------------------------------


def test_imagenet_tests_on_val_and_validates_on_a_part_of_train(roots: dict[type[ImageData], Path]) -> None:
    data = built(ImageNet, roots[ImageNet])
    assert sizes(data) == {"train": 32, "val": 8, "test": 16}
    assert [name.split()[0] for name in data.class_names] == sorted(sample.SYNSETS)
    words = [name.split()[1] for name in data.class_names]
    assert words == ["cross", "heart", "circle", "ring", "quadrate", "triangle", "star", "crescent"]
    assert all("val" in item.path.parts for item in data.splits["test"])
    assert all("train" in item.path.parts for split in ("train", "val") for item in data.splits[split])
    assert per_class(data, "val") == [1] * 8
    for items in data.splits.values():
        for item in items:
            assert data.class_names[item.target].startswith(item.path.parent.name)


def test_imagenet_is_found_below_data_dir_and_keeps_foreign_names(tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for split in ("train", "val"):
        for label in ("b", "a"):
            for index in range(3):
                save(root / split / label / f"{split}{index}.JPEG", format="JPEG")
    data = built(ImageNet, tmp_path)
    assert data.class_names == ["a", "b"]
    assert sizes(data) == {"train": 4, "val": 2, "test": 6}
    assert data.looks_complete(tmp_path)
    assert per_class(data, "val") == [1, 1], "the same names in both classes do not matter"


def test_a_million_pictures_are_kept_as_names(tmp_path: Path) -> None:
    names = [(f"a/{index}.JPEG", index % 3) for index in range(10)] + [("b/größe.JPEG", 2)]
    items = Pictures(tmp_path, names)
    assert [(item.path.relative_to(tmp_path).as_posix(), item.target) for item in items] == names
    assert items[-1] == items[10] == items[9:][1]
    assert isinstance(items[0].target, int)
    with pytest.raises(IndexError):
        items[11]
    assert spread(items, None) is items
    assert [item.target for item in spread(items, 2)] == [0, 2]


def test_imagenet_that_is_not_sorted_or_not_whole_is_refused(tmp_path: Path) -> None:
    sample.imagenet(tmp_path, train=2, val=1)
    (tmp_path / "val" / "n99999999").mkdir()
    save(tmp_path / "val" / "n99999999" / "x.JPEG", format="JPEG")
    with pytest.raises(DataError, match=r"has classes that .* lacks: n99999999"):
        built(ImageNet, tmp_path)
    for folder in (tmp_path / "val").iterdir():
        for file in folder.iterdir():
            file.rename(tmp_path / "val" / file.name)
        folder.rmdir()
    with pytest.raises(DataError, match="are not sorted into folders by class"):
        built(ImageNet, tmp_path)


def test_synsets_have_names() -> None:
    assert describe_synset("n01440764") == "n01440764 tench"
    assert describe_synset("mine") == "mine"


# -- ImageNet-22K --------------------------------------------------------------------------------------------


def test_imagenet22k_holds_a_part_of_every_class_for_validation_and_another_for_testing(
    roots: dict[type[ImageData], Path], tmp_path: Path
) -> None:
    data = built(ImageNet22K, roots[ImageNet22K])
    assert sizes(data) == {"train": 32, "val": 8, "test": 8}
    assert [name.split()[0] for name in data.class_names] == sorted(sample.SYNSETS)
    assert per_class(data, "val") == per_class(data, "test") == [1] * 8
    paths = [item.path for items in data.splits.values() for item in items]
    assert len(set(paths)) == 48, "no picture is in two splits"
    assert all(
        data.class_names[item.target].startswith(item.path.parent.name) for item in data.splits["test"]
    )
    for label, count in (("one", 1), ("two", 2), ("three", 3)):
        for index in range(count):
            save(tmp_path / label / f"{index}.JPEG", format="JPEG")
    few = built(ImageNet22K, tmp_path)
    assert few.class_names == ["one", "three", "two"]
    assert per_class(few, "train") == [1, 1, 1], "every class is trained on"
    assert per_class(few, "val") == [0, 1, 1]
    assert per_class(few, "test") == [0, 1, 0]


@pytest.mark.parametrize("part", [0, 0.5, -0.1])
def test_imagenet22k_needs_something_on_either_side(part: float) -> None:
    with pytest.raises(DataError, match=r"held_part must lie between 0 and 0\.5"):
        ImageNet22K(name="task", held_part=part)


# -- Tiny ImageNet -------------------------------------------------------------------------------------------


def test_tiny_imagenet_takes_its_lists(roots: dict[type[ImageData], Path]) -> None:
    data = built(TinyImageNet, roots[TinyImageNet], val_part=0.3)
    assert sizes(data) == {"train": 32, "val": 16, "test": 24}
    assert data.class_names[0] == "n03135532 cross"
    assert data.class_names == sorted(data.class_names)
    annotations = (data.root / "tiny-imagenet-200" / "val" / "val_annotations.txt").read_text().splitlines()
    listed = dict(line.split("\t")[:2] for line in annotations)
    for item in data.splits["test"]:
        assert data.class_names[item.target].startswith(listed[item.path.name])


def test_tiny_imagenet_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    sample.tiny_imagenet(tmp_path, train=2, val=1)
    root = tmp_path / "tiny-imagenet-200"
    (root / "words.txt").unlink()
    assert built(TinyImageNet, root).class_names[0] == "n03135532"
    (root / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(DataError, match=r"1 of the 8 pictures .*first: val_3\.JPEG"):
        built(TinyImageNet, tmp_path)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn00000000\t0\t0\t63\t63\n")
    with pytest.raises(DataError, match="names the class n00000000, of which train/ has no picture"):
        built(TinyImageNet, tmp_path)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG n03135532\n")
    with pytest.raises(DataError, match="needs two columns"):
        built(TinyImageNet, tmp_path)


# -- CIFAR ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [Cifar10, Cifar100])
@pytest.mark.filterwarnings("ignore")  # NumPy 2 speaks up when torchvision reads old pickles
def test_torchvision_reads_the_sample_as_we_do(
    source: type[Cifar10], roots: dict[type[ImageData], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets.cifar as theirs

    monkeypatch.setattr(theirs.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(theirs, "check_integrity", lambda *_: True)
    reference = {Cifar10: theirs.CIFAR10, Cifar100: theirs.CIFAR100}[source](str(roots[source]), train=False)
    data = built(source, roots[source])
    assert isinstance(data, Cifar10)
    assert data.class_names == reference.classes
    assert len(data.splits["test"]) == len(reference)
    for item, (image, label) in zip(data.splits["test"], reference, strict=True):
        assert item.target == label
        assert data.open_item(item).tobytes() == image.tobytes()
    assert source.archive.url == reference.url


def test_cifar_holds_out_the_same_part_of_every_class(roots: dict[type[ImageData], Path]) -> None:
    data = built(Cifar10, roots[Cifar10], val_part=0.2)
    assert sizes(data) == {"train": 80, "val": 20, "test": 20}
    assert per_class(data, "val") == [2] * 10
    assert built(Cifar10, roots[Cifar10] / "cifar-10-batches-py").class_names == data.class_names
    assert sizes(built(Cifar100, roots[Cifar100], val_part=0.2)) == {"train": 40, "val": 10, "test": 20}


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil").write_bytes(pickle.dumps({"data": Evil(tmp_path / "owned")}))
    with pytest.raises(DataError, match="is refused: it would run code"):
        read_pickle(tmp_path / "evil")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("source", [Cifar10, Cifar100])
def test_class_names_that_run_code_are_refused(
    source: type[Cifar10], roots: dict[type[ImageData], Path], tmp_path: Path
) -> None:
    """The names lie in a pickle of their own, as a list of text."""
    root = tmp_path / source.folder
    shutil.copytree(roots[source] / source.folder, root)
    for hostile in (Evil(tmp_path / "owned"), [Evil(tmp_path / "owned")]):
        (root / source.meta_file).write_bytes(pickle.dumps({source.names_key: hostile}))
        with pytest.raises(DataError, match="is refused: it would run code"):
            built(source, root)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_of_today_read_as_well(tmp_path: Path, protocol: int) -> None:
    pixels = np.arange(3072, dtype=np.uint8)[None]
    (tmp_path / "part").write_bytes(pickle.dumps({"data": pixels, "labels": [1]}, protocol=protocol))
    read = read_pickle(tmp_path / "part")
    np.testing.assert_array_equal(read["data"], pixels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": np.zeros((4, 3000), np.uint8)}, "no array data of 3072 bytes"),
        ({"data": [1, 2]}, "no array data of 3072 bytes"),
        ({"labels": [0, 1]}, "needs labels and filenames, one for each of its 4 rows"),
        ({"labels": [0, 1, 2, 77]}, "labels outside 0 … 9"),
    ],
)
def test_a_wrong_part_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    sample.cifar10(tmp_path, train=20, test=20)
    part = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3], "filenames": list("abcd")} | change
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(sample.python2_pickle(part))
    with pytest.raises(DataError, match=message):
        built(Cifar10, tmp_path)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    sample.cifar10(tmp_path, train=20, test=20)
    part = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    content = part.read_bytes()
    for damaged in (b"", content[:1000], b"garbage", pickle.dumps([1, 2])):
        part.write_bytes(damaged)
        with pytest.raises(DataError, match=r"is damaged, or no pickle|not a dictionary"):
            built(Cifar10, tmp_path)


@pytest.mark.parametrize("source", [Cifar10, TinyImageNet])
def test_download_end_to_end(
    source: type[ImageData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source is Cifar10:
        sample.cifar10(tmp_path / "made", train=20, test=20)
    else:
        sample.tiny_imagenet(tmp_path / "made", train=2, val=1)
    kind = "gztar" if source is Cifar10 else "zip"
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "made"))
    made = Source(archive.as_uri(), hashlib.sha256(archive.read_bytes()).hexdigest())
    if source is Cifar10:
        monkeypatch.setattr(Cifar10, "archive", made)
    else:
        monkeypatch.setattr("tasks.datasets.image.tiny_imagenet.SOURCE", made)
    data = source(
        name="task", data_dir=str(tmp_path / "data"), download=True, num_workers=0, transforms=SMALL
    )
    data.prepare_data()
    data.setup()
    assert data.splits["test"]
    archive.unlink()
    data.prepare_data()  # nothing is fetched twice


# -- a folder of one's own -----------------------------------------------------------------------------------


def test_pictures_of_ones_own_with_several_labels(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for index, (labels, split) in enumerate(
        (("cat;red", "train"), ("dog", "train"), ("cat", "val"), ("", "test"))
    ):
        save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{labels},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = built(ImageFolder, tmp_path, csv="labels.csv", multilabel=True)
    assert data.class_names == ["cat", "dog", "red"]
    assert data.info()["multilabel"]
    assert next(iter(data.loader("test"))).target.tolist() == [[0, 0, 0]]
    assert next(iter(data.loader("train", train=False))).target.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_labels_in_names(tmp_path: Path) -> None:
    for index in range(30):
        for label in ("cat", "dog"):
            save(tmp_path / f"{label}_{index}.png")
    data = built(ImageFolder, tmp_path, label_from="^(?P<label>[a-z]+)_", test_from="_[0-4].png")
    assert sizes(data)["test"] == 10
    assert data.class_names == ["cat", "dog"]


def test_a_broken_picture_is_named_and_left_out(roots: dict[type[ImageData], Path], tmp_path: Path) -> None:
    shutil.copytree(roots[ImageFolder], tmp_path / "data")
    broken = tmp_path / "data" / "test" / "ring" / "ring_001.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    data = built(ImageFolder, tmp_path / "data", batch_size=100)
    (batch,) = data.test_dataloader()
    assert len(batch.raw) == len(data.splits["test"]) - 1
    (error,) = batch.failures
    assert error.startswith(f"{broken}: it cannot be read as an image")


# -- the sample: shape, and nothing but shape ----------------------------------------------------------------


@pytest.mark.parametrize("index", range(4))
def test_texture_and_colour_are_drawn_without_regard_to_the_shape(index: int) -> None:
    """The same scene with any two shapes: equal pixels wherever both show the figure, or both the ground."""
    pictures, covers = [], []
    for shape in sample.EIGHT:
        pictures.append(np.asarray(sample.draw(shape, (1, 0), index, (64, 88)), dtype=int))
        height, width = pictures[0].shape[:2]
        pose = sample.Pose.draw(
            np.random.default_rng((1, 0, index, list(sample.SHAPES).index(shape))), width, height
        )
        covers.append(sample.mask(shape, pose, width, height))
    for picture, cover in zip(pictures[1:], covers[1:], strict=True):
        for value in (0, 1):
            both = (cover == value) & (covers[0] == value)
            assert both.any()
            np.testing.assert_array_equal(picture[both], pictures[0][both])


def test_all_shapes_cover_the_same_area() -> None:
    pose = sample.Pose(x=50, y=50, side=36, turn=0.4, stretch=1.1)
    for shape in sample.SHAPES:
        assert sample.mask(shape, pose, 100, 100).sum() == pytest.approx(36**2, rel=0.04), shape


def chance_and_accuracy(features: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Chance level and test accuracy of a logistic regression on standardised features."""
    (x, y), (x_test, y_test) = features["train"], features["test"]
    mean, std = x.mean(0), x.std(0) + 1e-3
    torch.manual_seed(0)
    model = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model((x - mean) / std), y).backward()
        optimizer.step()
    right = (model((x_test - mean) / std).argmax(1) == y_test).float().mean().item()
    return 1 / (int(y.max()) + 1), right


def test_neither_colours_nor_textures_tell_the_classes(samples: Path) -> None:
    data = ImageFolder(
        name="image_folder", samples_dir=str(samples), transforms=ImageTransforms(64, crop_pct=1.0)
    )
    data.prepare_data()
    data.setup()
    colours, patches = {}, {}
    for split in ("train", "test"):
        batches = list(data.loader(split, train=False, batch_size=80))
        raw = torch.cat([batch.raw for batch in batches]).float()
        target = torch.cat([batch.target for batch in batches])
        histograms = torch.stack(
            [torch.stack([torch.histc(c, 16, 0, 255) for c in picture]) for picture in raw]
        )
        colours[split] = histograms.flatten(1), target
        # Spectra of small patches from the corners, where only the ground is, and from the very middle.
        grey = raw.mean(1)
        spots = [
            grey[:, :12, :12],
            grey[:, -12:, :12],
            grey[:, :12, -12:],
            grey[:, -12:, -12:],
            grey[:, 28:36, 28:36],
        ]
        spectra = [torch.fft.rfft2(spot - spot.mean((1, 2), keepdim=True)).abs().log1p() for spot in spots]
        patches[split] = torch.cat([spectrum.flatten(1) for spectrum in spectra], dim=1), target
    for features in (colours, patches):
        chance, right = chance_and_accuracy(features)
        assert right < 2 * chance


# -- official weights ----------------------------------------------------------------------------------------

TINY_NET: dict[str, Any] = {
    "depths": (1, 1, 1, 1),
    "dims": (8, 8, 16, 16),
    "kernel_sizes": (3, 13, 13, 13),
    "layer_scale_init_value": 0.1,
}


def official(path: Path, num_classes: int) -> UniRepLKNet:
    """A random network with its weights in the official file format."""
    torch.manual_seed(0)
    network = UniRepLKNet(num_classes=num_classes, **TINY_NET).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save({"model": network.state_dict()}, path)
    return network


def test_official_classifier_is_taken_over_whole(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    from workbench.build import build_network

    reference = official(tmp_path / "official.pth", 1000)
    cfg = composed(
        *TINY, "modality=image", "task=imagenet", f"backbone.pretrained={tmp_path / 'official.pth'}"
    )
    data_info = {"class_names": [str(number) for number in range(1000)], "multilabel": False}
    network = build_network(cfg, data_info).eval()
    raw = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = reference(network.embedder(raw)[:, 0])
        torch.testing.assert_close(network(raw), wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 0.1


def test_pretrained_norm_is_kept_and_another_classifier_starts_anew(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """As in the official fine-tuning of ImageNet-22K weights, with the classifier scaled down."""
    from workbench.build import build_network

    reference = official(tmp_path / "official.pth", 50)
    words = [*TINY, "modality=image", "task=imagenet", f"backbone.pretrained={tmp_path / 'official.pth'}"]
    data_info = {"class_names": [str(number) for number in range(10)], "multilabel": False}
    networks = [build_network(composed(*words, f"task.head.init_scale={s}"), data_info) for s in (1, 0.001)]
    for network in networks:
        head: Any = network.head
        torch.testing.assert_close(head.norm.weight, reference.norm.weight)
        torch.testing.assert_close(head.norm.bias, reference.norm.bias)
        assert head.linear.weight.shape == (10, reference.num_features)
        assert not head.linear.bias.any()
    whole, small = (network.head.linear.weight.std().item() for network in networks)  # type: ignore[union-attr]
    assert whole == pytest.approx(0.02, rel=0.2)
    assert small == pytest.approx(0.00002, rel=0.2)


def test_official_weights_are_tested_without_training(
    act: Callable[..., Path],
    roots: dict[type[ImageData], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [*TINY, "action=test", "modality=image", "task=imagenet", f"data_dir={roots[ImageNet]}"]
    words += ["task.data.transforms.size=32", "task.data.num_workers=0"]
    reference = official(tmp_path / "eight.pth", 8)
    result = json.loads(
        (act(*words, f"backbone.pretrained={tmp_path / 'eight.pth'}") / "result.json").read_text()
    )
    data = ImageNet(name="x", data_dir=str(roots[ImageNet]), transforms=ImageTransforms(32))
    data.setup()
    from modalities.image import Pixels

    right = 0
    for batch in data.loader("test", batch_size=16):
        with torch.inference_mode():
            right += int((reference(Pixels()(batch.raw)[:, 0]).argmax(1) == batch.target).sum())
    assert result["metrics"]["test/acc"] == pytest.approx(right / len(data.splits["test"]))
    assert result["checkpoint"] is None
    official(tmp_path / "thousand.pth", 1000)
    with pytest.raises(SystemExit):
        act(*words, f"backbone.pretrained={tmp_path / 'thousand.pth'}", folder="second")
    assert "holds no classifier of as many classes as imagenet has here" in caplog.text


def test_head_starts_as_small_as_asked(composed: Callable[..., DictConfig]) -> None:
    from workbench.build import build_network

    data_info = {"class_names": list("abc"), "multilabel": False}
    scale = {}
    for init_scale in (1.0, 0.001):
        torch.manual_seed(0)
        cfg = composed(*TINY, "modality=image", f"task.head.init_scale={init_scale}")
        head: Any = build_network(cfg, data_info).head
        scale[init_scale] = head.linear.weight.abs().mean().item()
    assert scale[0.001] == pytest.approx(0.001 * scale[1.0])


def test_thousands_of_classes_are_tested_without_a_confusion_matrix() -> None:
    from modalities.image import Pixels
    from tasks.classification import MOST_CONFUSED, ClassificationTask
    from tasks.heads import ClassificationHead
    from tasks.losses import CrossEntropy
    from tasks.network import Network

    for classes, kept in ((MOST_CONFUSED, True), (MOST_CONFUSED + 1, False)):
        network = Network(Pixels(32), UniRepLKNet(num_classes=0, **TINY_NET), ClassificationHead(16, classes))
        data_info = {"class_names": [str(number) for number in range(classes)], "multilabel": False}
        task = ClassificationTask(CrossEntropy(), network=network, data_info=data_info).eval()
        target = torch.arange(4)
        batch = Batch(torch.zeros(4, 3, 32, 32), target, target)
        with torch.no_grad():
            task.measured_step(batch, "test")
        assert "test/acc" in task.epoch_values("test")
        assert ("confusion" in task.test_report()) == kept


# -- the whole path ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretraining_and_fine_tuning_by_the_official_experiments(
    act: Callable[..., Path], roots: dict[type[ImageData], Path]
) -> None:
    """ImageNet-22K, then ImageNet-1K from it with layer-wise rates and averaged weights, at a toy's size."""
    small = [*TINY, "task.data.num_workers=0", "task.data.transforms.size=32", "task.data.batch_size=4"]
    small += ["trainer.accumulate_grad_batches=2", "scheduler.warmup_epochs=0"]
    first = act("experiment=image/imagenet22k_l", *small, f"data_dir={roots[ImageNet22K]}", folder="first")
    start = torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)
    second = act(
        "experiment=image/imagenet_l_384",
        *small,
        f"data_dir={roots[ImageNet]}",
        "backbone.pretrained=null",
        f"init_from={first / 'checkpoints' / 'last.ckpt'}",
        "optimizer.lr=0.01",
        "optimizer.layer_decay=0.1",
        folder="second",
    )
    end = torch.load(second / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(start["optimizer_states"][0]["param_groups"]) == 2
    groups = end["optimizer_states"][0]["param_groups"]
    for group in groups:
        assert group["initial_lr"] == pytest.approx(0.01 * 0.1 ** (5 - group["layer"]))
    assert {group["layer"] for group in groups} == set(range(6))
    trained, average = end["training_state_dict"], end["state_dict"]
    stem = "network.backbone.downsample_layers.0.0.weight"
    last = "network.backbone.stages.3.0.pwconv1.1.weight"
    moved = {name: (trained[name] - start["state_dict"][name]).abs().mean() for name in (stem, last)}
    assert 0 < moved[stem] < 0.01 * moved[last], "the stem learns slowest"
    kept = (average[last] - start["state_dict"][last]).abs().mean()
    assert 0 < kept < 0.01 * moved[last], "an average of decay 0.9999 has hardly left where it began"


@pytest.mark.figures
def test_train_predict_export(
    act: Callable[..., Path], tmp_path: Path, roots: dict[type[ImageData], Path]
) -> None:
    """Every kind of augmentation at once, then the actions on the checkpoint."""
    words = (
        *TINY,
        "modality=image",
        "task=image_folder",
        f"data_dir={roots[ImageFolder]}",
        "task.data.num_workers=0",
        "task.data.transforms.size=32",
        "task.data.transforms.auto_augment=rand-m9-mstd0.5-inc1",
        "task.data.batch_size=8",
        "modality.augment.raw={_target_: modalities.image_augment.RandomErasing}",
        "modality.augment.mixup={_target_: modalities.image_augment.ImageMixup}",
    )
    run = act(*words)
    checkpoint = run / "checkpoints" / "best.ckpt"
    assert (run / "figures" / "inputs.png").is_file()
    folder = tmp_path / "mine"
    save(folder / "a.png", noise_image(70, 40))
    save(folder / "b.jpg", noise_image(20, 90))
    (folder / "c.png").write_bytes(b"nothing")
    predictions = act("trainer=cpu", "action=predict", f"ckpt={checkpoint}", f"input={folder}", folder="p")
    lines = (predictions / "predictions.csv").read_text().splitlines()
    assert len(lines) == 4
    assert "cannot be read as an image" in lines[3]
    export = act("trainer=cpu", "action=export", f"ckpt={checkpoint}", folder="e") / "export"
    about = json.loads((export / "model.json").read_text())
    assert about["input"][1:] == [3, 32, 32]
    raw = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    assert torch.export.load(export / "model.pt2").module()(raw).shape == (5, 8)
