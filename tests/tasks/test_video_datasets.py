"""Video files are read as asked, whatever their timing; each source keeps to its data contract."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omegaconf import DictConfig
from tests_support import TINY

from tasks.datasets.base import DataError, Item, ItemDataset, ReadError
from tasks.datasets.batch import collate, usable
from tasks.datasets.reading import available
from tasks.datasets.video import decoding
from tasks.datasets.video import sample as samples_video
from tasks.datasets.video.crops import largest_box, rand_augment_of, random_box, random_resized_box, same_draw
from tasks.datasets.video.decoding import decode_in_order, open_cached, open_video, read_ticks
from tasks.datasets.video.files import VideoData
from tasks.datasets.video.folder import VideoFolder
from tasks.datasets.video.hmdb51 import HMDB51
from tasks.datasets.video.kinetics400 import Kinetics400, read_list
from tasks.datasets.video.sample import MOTIONS, OPPOSITE, clip, write_video
from tasks.datasets.video.ticks import clock, dense, uniform
from tasks.datasets.video.ucf101 import UCF101
from workbench.build import build_data
from workbench.restore import restore


@pytest.fixture(params=["decord", "PyAV alone"], autouse=True)
def video_reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of this file with decord, and as where decord is not to be had."""
    name: str = request.param
    if name != "decord":
        monkeypatch.setattr(decoding, "available", lambda module: None)
    return name


LEVEL = 6  # frame i of a numbered video is all of grey 6·i


def numbered(
    path: Path, frames: int = 40, codec: str = "libx264", ticks: list[int] | None = None, width: int = 48
) -> Path:
    pictures = np.empty((frames, 32, width, 3), np.uint8)
    pictures[:] = LEVEL * np.arange(frames)[:, None, None, None]
    write_video(path, pictures, codec, None if ticks is None else np.array(ticks))
    return path


def numbers(frames: NDArray[np.uint8] | torch.Tensor) -> list[int]:
    return (
        np.round(np.asarray(frames, dtype=float).reshape(len(frames), -1).mean(1) / LEVEL)
        .astype(int)
        .tolist()
    )


# -- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("untimed.avi", "libx264")]
)
@pytest.mark.parametrize("width", [48, 64, 90])  # decord cannot unpack frames 48 wide
def test_frames_are_those_asked_for(tmp_path: Path, name: str, codec: str, width: int) -> None:
    video = open_video(numbered(tmp_path / name, codec=codec, width=width))
    assert video.length == 40
    wanted = np.array([0, 5, 20, 39, 3, 11, 11])
    assert numbers(read_ticks(video, wanted)) == wanted.tolist(), "in the order asked, with repetitions"
    assert numbers(decode_in_order(tmp_path / name, np.array([2, 7, 39, 50]))) == [2, 7, 39, 39]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
def test_both_readers_give_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str
) -> None:
    # Moving noise: a frame taken for its neighbour is far off. 300 frames: more than one key frame.
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 255, (12, 80, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    pictures = np.stack([wide[:, place % 256 : place % 256 + 64] for place in range(300)])
    write_video(tmp_path / name, pictures, codec)
    wanted = np.array([0, 1, 7, 130, 131, 255, 290, 299, 60, 60])
    frames = {}
    for reader_name in ("decord", "PyAV alone"):
        with monkeypatch.context() as patch:
            # Hidden from us, not taken out of the process: importing it a second time corrupts what it has registered.
            patch.setattr(
                decoding, "available", available if reader_name == "decord" else lambda module: None
            )
            video = open_video(tmp_path / name)
            assert video.length == 300
            frames[reader_name] = read_ticks(video, wanted).astype(int)
    off = np.abs(frames["decord"] - frames["PyAV alone"])
    assert off.max() <= 4, "but for the rounding of colours"
    assert off.mean() < 1
    neighbours = read_ticks(video, np.minimum(wanted + 1, 299)).astype(int)
    assert np.abs(frames["decord"] - neighbours)[:5].mean() > 5, "the comparison would tell"


def test_without_pyav_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        DataError, match=r"^av is not installed, and video files need it: pip install"
    ) as caught:
        reader().read_file(path)
    assert not isinstance(caught.value, ReadError), "no file is at fault"


def test_useless_time_stamps_do_not_mislead_the_seeking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Re-encoded files with all stamps 0 exist; decord seeks in them to other frames than asked for.
    assert clock(np.zeros(10)) is None
    assert clock(np.full(10, np.nan)) is None
    monkeypatch.setattr("tasks.datasets.video.decoding.clock", lambda times: None)
    decoded = []

    def decode(path: Path, ticks: NDArray[np.int64]) -> NDArray[np.uint8]:
        decoded.append(path)
        return decode_in_order(path, ticks)

    monkeypatch.setattr("tasks.datasets.video.decoding.decode_in_order", decode)
    video = open_video(numbered(tmp_path / "a.mp4"))
    assert numbers(read_ticks(video, np.array([30, 4]))) == [30, 4]
    assert decoded == [tmp_path / "a.mp4"]


def test_variable_frame_rate_plays_at_its_own_pace(tmp_path: Path) -> None:
    # 20 frames a tick apart, then 10 frames three ticks apart: a uniform clock shows the latter more often.
    ticks = [*range(20), *range(20, 50, 3)]
    video = open_video(numbered(tmp_path / "vfr.mp4", 30, ticks=ticks))
    shown = numbers(read_ticks(video, np.arange(video.length)))
    times = np.array(ticks)
    expected = [int((times <= now + 1e-6).sum()) - 1 for now in np.linspace(0, 47, 30)]
    assert shown == expected
    assert clock(np.arange(30) / 29.97 + 1e-3 * (np.arange(30) % 2)) is not None
    rounded = clock(np.round(np.arange(30) / 29.97, 3))
    assert rounded is not None
    assert rounded.tolist() == list(range(30)), "rounding is no variable rate"


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 80),
    frames=st.integers(1, 20),
    stride=st.integers(1, 8),
    place=st.floats(0, 1, exclude_max=True),
)
def test_ticks_lie_in_the_file(length: int, frames: int, stride: int, place: float) -> None:
    ticks = dense(length, frames, stride, place)
    assert len(ticks) == frames
    assert 0 <= ticks.min() <= ticks.max() < length
    if (frames - 1) * stride < length:
        assert (np.diff(ticks) == stride).all(), "long enough: no jump"
    else:
        assert ticks.tolist() == [stride * index % length for index in range(frames)], (
            "too short: starts over"
        )
    ticks = uniform(length, frames, place)
    assert len(ticks) == frames
    assert 0 <= ticks.min() <= ticks.max() < length
    assert (np.diff(ticks) >= 0).all()
    part = (np.arange(length) * frames // length).tolist()
    if length % frames == 0:
        assert [part[tick] for tick in ticks] == list(range(frames)), "one of each part"


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(4, 90),
    width=st.integers(4, 90),
    view=st.sampled_from(["square", "whole"]),
    seed=st.integers(0, 999),
)
def test_boxes_lie_in_the_frame(height: int, width: int, view: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for box in (
        largest_box((height, width), view, rng.random()),
        random_box((height, width), view, (0.2, 1.0), (0.5, 2.0), rng),
    ):
        top, left, high, wide = box
        assert 0 <= top <= top + high <= height
        assert 0 <= left <= left + wide <= width
        assert min(high, wide) >= 1
    if view == "square":
        assert largest_box((height, width), view)[2:] == (min(height, width),) * 2


class _Files(VideoData):
    layout = "anything"


def reader(**options: object) -> _Files:
    return _Files(**{"name": "files", "frames": 4, "size": 16, **options})  # type: ignore[arg-type]


def test_segments_and_crops_of_one_decoding(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.mp4")
    one = reader(stride=2).read_file(path)
    assert one.shape == (4, 3, 16, 16)
    assert one.dtype == torch.uint8
    assert numbers(one) == [16, 18, 20, 22], "in the middle"
    many = reader(stride=2, test_segments=3, test_crops=2).read_file(path)
    assert many.shape == (6, 4, 3, 16, 16)
    assert [numbers(part)[0] for part in many] == [0, 0, 16, 16, 33, 33]
    spread = reader(sampling="uniform", test_segments=2).read_file(path)
    assert [numbers(part) for part in spread] == [[2, 12, 22, 32], [7, 17, 27, 37]]
    assert numbers(reader(frames=8, stride=10).read_file(path)) == [0, 10, 20, 30, 0, 10, 20, 30]


def test_crops_spread_along_the_longer_side(tmp_path: Path) -> None:
    pictures = np.zeros((4, 32, 64, 3), np.uint8)
    pictures[:, :, 32:] = 200  # dark on the left, bright on the right
    write_video(tmp_path / "a.mp4", pictures)
    left, middle, right = reader(test_crops=3).read_file(tmp_path / "a.mp4").float().mean((1, 2, 3, 4))
    assert left < 20
    assert 90 < middle < 110
    assert right > 180
    whole = reader(view="whole").read_file(tmp_path / "a.mp4").float()
    assert whole[..., :6].mean() < 20
    assert whole[..., -6:].mean() > 180


def test_a_training_clip_depends_on_its_generator_alone(tmp_path: Path) -> None:
    item = Item(numbered(tmp_path / "a.mp4"), 0)
    for options in ({}, {"sampling": "uniform"}, {"scale": (0.3, 1.0), "ratio": (0.5, 2.0)}):
        data = reader(**options)
        first, again, other = (data.read_item(item, True, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first.shape == (4, 3, 16, 16)
        torch.testing.assert_close(first, again)
        assert not torch.equal(first, other)


POLICY = "rand-m7-n4-mstd0.5-inc1"


def still(path: Path, frames: int = 20, side: int = 64) -> Path:
    """A video of one picture, with structure that every change of RandAugment shows."""
    picture = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    picture = picture.repeat(8, 0).repeat(8, 1)
    write_video(path, np.broadcast_to(picture, (frames, side, side, 3)).copy())
    return path


def test_all_frames_of_a_clip_get_the_same_draw_of_randaugment() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    frames = np.broadcast_to(picture, (6, 32, 48, 3)).copy()
    transform = rand_augment_of(POLICY, 32)
    kinds = set()
    for seed in range(12):
        out = same_draw(transform, frames, np.random.default_rng(seed))
        assert out.shape == frames.shape
        assert (out == out[:1]).all(), "what flickers would be seen as motion"
        again = same_draw(transform, frames, np.random.default_rng(seed))
        assert (out == again).all()
        kinds.add(out[0].tobytes())
    assert len(kinds) > 6, "clips get draws of their own"


def test_randaugment_changes_training_alone_and_leaves_the_global_generators(tmp_path: Path) -> None:
    item = Item(still(tmp_path / "a.mp4"), 0)
    plain, augmented = reader(size=64), reader(size=64, rand_augment=POLICY)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    first = [augmented.read_item(item, True, np.random.default_rng(seed)) for seed in range(8)]
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002
    second = [augmented.read_item(item, True, np.random.default_rng(seed)) for seed in range(8)]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    unchanged = plain.read_item(item, True, np.random.default_rng(0))
    assert sum(not torch.equal(one, unchanged) for one in first) >= 6
    assert torch.equal(
        augmented.read_item(item, False, np.random.default_rng(0)),
        plain.read_item(item, False, np.random.default_rng(0)),
    )
    with pytest.raises(DataError, match="rand_augment=nonsense is no RandAugment policy"):
        reader(rand_augment="nonsense")


def test_copies_of_a_clip_are_samples_of_the_batch(tmp_path: Path) -> None:
    """Repeated augmentation: the same frames, cropped differently, one after the other, with the target of the clip."""
    items = [Item(numbered(tmp_path / f"{name}.mp4"), target) for target, name in enumerate("ab")]
    data = reader(repeats=2, scale=(0.2, 0.8), num_workers=0)
    dataset = ItemDataset(items, lambda item, rng: data.read_pair(item, True, rng), seed=0)
    batch = usable(collate([dataset[0, 5], dataset[1, 5]]))
    assert batch.raw.shape == (4, 4, 3, 16, 16)
    assert batch.target.tolist() == [0, 0, 1, 1]
    assert batch.index.tolist() == [0, 0, 1, 1]
    assert numbers(batch.raw[0]) == numbers(batch.raw[1]), "the same frames"
    item = Item(still(tmp_path / "c.mp4"), 0)
    one, two = data.read_item(item, True, np.random.default_rng(0))
    assert not torch.equal(one, two), "differently cropped"
    single = reader(repeats=2).read_item(item, False, np.random.default_rng(0))
    assert single.shape == (4, 3, 16, 16), "evaluation reads one"


@settings(max_examples=60, deadline=None)
@given(height=st.integers(8, 200), width=st.integers(8, 200), seed=st.integers(0, 2**16))
def test_crops_of_a_frames_area(height: int, width: int, seed: int) -> None:
    """Area and ratio are absolute, where they fit (`RandomResizedCrop`)."""
    top, left, high, wide = random_resized_box(
        (height, width), (0.08, 1.0), (0.75, 4 / 3), np.random.default_rng(seed)
    )
    assert 0 <= top <= height - high
    assert 0 <= left <= width - wide
    assert 0.75 * (high - 1) - 1 <= wide <= 4 / 3 * (high + 1) + 1
    assert high * wide >= 0.06 * height * width - 2 * (height + width) or max(height, width) > 4 * min(
        height, width
    )


def test_a_crop_of_the_frame_reaches_beyond_the_largest_square(tmp_path: Path) -> None:
    draws = [np.random.default_rng(seed) for seed in range(300)]
    areas = [
        high * wide / (60 * 80)
        for _, _, high, wide in (
            random_resized_box((60, 80), (0.08, 1.0), (0.75, 4 / 3), rng) for rng in draws
        )
    ]
    assert 0.07 < min(areas) < 0.12
    assert max(areas) > 0.9
    pictures = np.zeros((8, 32, 64, 3), np.uint8)
    pictures[:, :, 32:] = 200  # dark on the left, bright on the right
    write_video(tmp_path / "a.mp4", pictures)
    seen = {}
    for scale_of in ("view", "frame"):
        data = reader(scale=(1.0, 1.0), ratio=(2.0, 2.0), scale_of=scale_of)
        clips = [
            data.read_item(Item(tmp_path / "a.mp4", 0), True, np.random.default_rng(k)) for k in range(12)
        ]
        seen[scale_of] = torch.stack([clip.float().mean((0, 1, 2)) for clip in clips])  # (draw, column)
    assert seen["frame"][:, :6].max() < 20, "the whole frame, always"
    assert seen["frame"][:, -6:].min() > 180
    assert seen["view"].mean(1).std() > 10, "a part of it"
    with pytest.raises(DataError, match="scale_of must be one of view, frame"):
        reader(scale_of="picture")


@pytest.mark.parametrize("content", [None, b"", b"no video", "cut", "damaged"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "clip.mp4"
    if isinstance(content, str):
        noise = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
        write_video(path, noise)
        whole = bytearray(path.read_bytes())
        if content == "cut":
            whole = whole[: len(whole) // 2]
        else:
            part = slice(len(whole) // 4, len(whole) // 2)
            whole[part] = np.random.default_rng(1).bytes(part.stop - part.start)
        path.write_bytes(bytes(whole))
    elif content is not None:
        path.write_bytes(content)
    for data in (reader(), reader(cache_dir=str(tmp_path / "cache"))):
        with pytest.raises(ReadError) as error:
            data.read_file(path)
        assert "\n" not in str(error.value)
        assert str(tmp_path) not in str(error.value)
        assert len(str(error.value)) < 200
    assert not list(tmp_path.glob("cache/*"))


def test_the_cache_holds_what_was_decoded(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.mp4")
    cache = tmp_path / "cache"
    plain, cached = reader(), reader(cache_dir=str(cache))
    torch.testing.assert_close(cached.read_file(path), plain.read_file(path))
    torch.testing.assert_close(cached.read_file(path), plain.read_file(path))
    assert len(list(cache.iterdir())) == 1, "read once, and no draft left"
    assert read_ticks(open_cached(path, cache, 16), np.arange(3)).shape == (3, 16, 24, 3)
    assert len(list(cache.iterdir())) == 2, "other settings are another entry"
    numbered(path, 30)
    assert open_cached(path, cache, None).length == 30, "a changed file is decoded anew"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"frames": 0}, "at least 1"),
        ({"sampling": "random"}, "dense, uniform"),
        ({"view": "half"}, "square, whole"),
        ({"scale": (0.5, 0.2)}, "scale must be"),
        ({"ratio": (0.0, 1.0)}, "ratio must be"),
    ],
)
def test_wrong_settings(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        reader(**wrong)


# -- sources -----------------------------------------------------------------------------------------------

DRAW: dict[type[VideoData], Callable[[Path], None]] = {
    Kinetics400: lambda root: samples_video.kinetics400(root, (4, 2, 2)),
    UCF101: lambda root: samples_video.ucf101(root, groups=10, clips=1),
    HMDB51: lambda root: samples_video.hmdb51(root, films=10, clips=1),
    VideoFolder: lambda root: samples_video.video_folder(root, 20),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[VideoData]], Path]:
    """The small sample of a source, drawn once."""
    roots: dict[type[VideoData], Path] = {}

    def root(source: type[VideoData]) -> Path:
        if source not in roots:
            roots[source] = tmp_path_factory.mktemp(source.__name__)
            DRAW[source](roots[source])
        return roots[source]

    return root


def opened(source: type[VideoData], root: Path, **options: object) -> VideoData:
    small = {"name": "x", "data_dir": str(root), "frames": 4, "size": 16, "num_workers": 0, "batch_size": 4}
    if source in (UCF101, HMDB51):
        small["val_fraction"] = 0.3
    data = source(**{**small, **options})  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("source", list(DRAW))
def test_data_contract(source: type[VideoData], drawn: Callable[[type[VideoData]], Path]) -> None:
    data = opened(source, drawn(source))
    again = opened(source, drawn(source))
    assert data.splits == again.splits
    assert data.class_names == again.class_names
    assert len(data.class_names) == len(MOTIONS)
    parts = {split: {item.path for item in items} for split, items in data.splits.items()}
    assert all(parts.values())
    assert not parts["train"] & parts["test"]
    assert not parts["val"] & (parts["train"] | parts["test"])
    assert {item.target for item in data.splits["train"]} == set(range(len(MOTIONS)))
    batch = next(iter(data.loader("train")))
    assert batch.raw.shape == (4, 4, 3, 16, 16)
    assert batch.raw.dtype == torch.uint8
    seen = sum(len(batch.index) for batch in data.loader("test"))
    assert seen == len(data.splits["test"])
    raw = opened(source, drawn(source), test_segments=2).loader("val")
    assert next(iter(raw)).raw.ndim == 5, "validation looks at one clip a file"
    assert next(iter(opened(source, drawn(source), test_segments=2).loader("test"))).raw.ndim == 6


@pytest.mark.parametrize("source", list(DRAW))
def test_samples_are_the_same_everywhere(source: type[VideoData], tmp_path: Path) -> None:
    pictures = clip("left", np.random.default_rng(3))
    write_video(tmp_path / "a.mp4", pictures)
    write_video(tmp_path / "b.mp4", pictures)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with pytest.raises(DataError, match=r"expects .*"):
        opened(source, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expects .*"):
        opened(source, tmp_path / "empty")


def test_kinetics_lists(tmp_path: Path, drawn: Callable[[type[VideoData]], Path]) -> None:
    root = drawn(Kinetics400)
    data = opened(Kinetics400, root)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [24, 12, 12]
    assert data.class_names == list(MOTIONS)
    (tmp_path / "list.csv").write_text("a b,c.mp4 3\n\nd.mp4,11\n/e/f.mp4 , 0\n")
    assert read_list(tmp_path / "list.csv") == {"a b,c.mp4": 3, "d.mp4": 11, "/e/f.mp4": 0}
    (tmp_path / "list.csv").write_text("a.mp4 dancing\n")
    with pytest.raises(DataError, match=r"line 1 of .* is not 'path label'"):
        read_list(tmp_path / "list.csv")

    (tmp_path / "list.csv").write_text("a.mp4 1\nb.mp4 0\na.mp4 1\n")
    assert read_list(tmp_path / "list.csv") == {"a.mp4": 1, "b.mp4": 0}
    (tmp_path / "list.csv").write_text("a.mp4 1\nb.mp4 0\na.mp4 2\n")
    with pytest.raises(DataError, match=r"line 3 of .* gives a.mp4 the label 2, an earlier one 1"):
        read_list(tmp_path / "list.csv")

    # No test list, or a copy of val.csv: val.csv is the test split, validation comes out of train.csv.
    for copy in (False, True):
        other = tmp_path / f"copy{copy}"
        other.mkdir()
        for split in ("train", "val"):
            lines = (root / f"{split}.csv").read_text().splitlines()
            (other / f"{split}.csv").write_text("".join(f"{root}/{line}\n" for line in lines))
        if copy:
            (other / "test.csv").write_text((other / "val.csv").read_text())
        data = opened(Kinetics400, other, val_fraction=0.3)
        listed = set(read_list(other / "val.csv"))
        assert {str(item.path) for item in data.splits["test"]} == listed
        assert len(data.splits["train"]) + len(data.splits["val"]) == 24
        assert data.class_names == [str(label) for label in range(6)]
    names = "".join(f"{number},{name}\n" for number, name in enumerate([*MOTIONS, "more"]))
    for wrong in (names, "id,name\n" + names.replace("0,", "9,", 1)):  # no header; a gap
        (other / "kinetics_400_labels.csv").write_text(wrong)
        with pytest.raises(DataError, match="number the classes as 0, 1, 2"):
            opened(Kinetics400, other)
    (other / "kinetics_400_labels.csv").unlink()
    (other / "train.csv").write_text((other / "train.csv").read_text() + (other / "val.csv").read_text())
    with pytest.raises(DataError, match="for test too"):
        opened(Kinetics400, other)
    (other / "train.csv").write_text("gone.mp4 1\n")
    with pytest.raises(DataError, match="names files that are not there"):
        opened(Kinetics400, other)


def test_ucf101_keeps_groups_together(drawn: Callable[[type[VideoData]], Path]) -> None:
    tested = []
    for split in (1, 2):
        data = opened(UCF101, drawn(UCF101), split=split)
        groups = {
            part: {item.path.stem.rsplit("_", 1)[0] for item in items} for part, items in data.splits.items()
        }
        assert not groups["train"] & groups["val"]
        assert not groups["test"] & (groups["train"] | groups["val"])
        tested.append(groups["test"])
    assert not tested[0] & tested[1]
    assert {name.rsplit("_g", 1)[1] for name in tested[0]} == {f"{number:02d}" for number in range(1, 8)}
    assert data.class_names[0] == "ApplyEyeMakeup"
    with pytest.raises(DataError, match="split must be 1, 2 or 3"):
        opened(UCF101, drawn(UCF101), split=4)


def test_hmdb51_keeps_films_together_and_leaves_out_what_the_lists_do(
    drawn: Callable[[type[VideoData]], Path],
) -> None:
    data = opened(HMDB51, drawn(HMDB51), split=2)
    films = {part: {item.path.name[:7] for item in items} for part, items in data.splits.items()}
    by_class = {
        part: {item.path.name.split("_u_")[0] for item in items} for part, items in data.splits.items()
    }
    assert films["test"] == {"Film_03", "Film_04", "Film_05"}
    assert not by_class["train"] & by_class["val"]
    assert "Film_09" not in set.union(*films.values())


@pytest.mark.parametrize("source", [UCF101, HMDB51])
def test_an_incomplete_archive_is_said(source: type[VideoData], tmp_path: Path) -> None:
    DRAW[source](tmp_path)
    gone = next(
        path for path in sorted(tmp_path.rglob("*.avi")) if "g01" in path.name or "Film_00" in path.name
    )
    gone.unlink()
    with pytest.raises(DataError, match=r"1 of the .* clips .* not there"):
        opened(source, tmp_path)


@pytest.mark.parametrize("folds_by", ["number", "block"])
def test_folds_test_every_file_once(folds_by: str, tmp_path: Path) -> None:
    for label in ("fight", "noFight"):
        (tmp_path / label).mkdir()
        for number in range(1, 24):
            (tmp_path / label / f"{label}{number}.mp4").touch()
    tested: list[Path] = []
    for fold in range(1, 6):
        data = opened(VideoFolder, tmp_path, fold=fold, folds_by=folds_by)
        counts = [sum(item.target == label for item in data.splits["test"]) for label in (0, 1)]
        assert counts[0] == counts[1]
        assert counts[0] in (4, 5)
        assert sum(map(len, data.splits.values())) == 46
        tested += [item.path for item in data.splits["test"]]
        if folds_by == "block":
            found = sorted(
                int("".join(filter(str.isdigit, i.path.stem))) for i in data.splits["test"] if not i.target
            )
            assert found == list(range(found[0], found[0] + len(found))), "numbers, not names, are in order"
    assert len(tested) == len(set(tested)) == 46
    with pytest.raises(DataError, match="fold must be between 1 and folds=5"):
        opened(VideoFolder, tmp_path, fold=6)


def test_folder_splits(tmp_path: Path) -> None:
    def touch(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    touch(*[f"{label}/{index}.mp4" for label in "ab" for index in range(40)])
    before = opened(VideoFolder, tmp_path).splits
    where = {item.path: split for split, items in before.items() for item in items}
    touch("a/new.mp4", "b/newer.avi", "a/notes.txt")
    after = {
        item.path: split for split, items in opened(VideoFolder, tmp_path).splits.items() for item in items
    }
    assert len(after) == 82
    assert where.items() <= after.items(), "a new file moves no other"
    touch(
        *[
            f"{part}/{label}/{part}{label}{i}.mp4"
            for part in ("train", "test")
            for label in "xy"
            for i in range(30)
        ]
    )
    fixed = opened(VideoFolder, tmp_path)
    assert fixed.class_names == ["x", "y"]
    assert len(fixed.splits["test"]) == 60
    assert len(fixed.splits["train"]) + len(fixed.splits["val"]) == 60
    with pytest.raises(DataError, match="leave fold out"):
        opened(VideoFolder, tmp_path, fold=1)


# -- the sample --------------------------------------------------------------------------------------------


def guess(clip_TCHW: torch.Tensor) -> str:
    """The motion by which each frame best becomes the next but one: no learning, only looking."""
    before, after = clip_TCHW[:-2].float(), clip_TCHW[2:].float()
    errors = {}
    for speed in (0.1, 0.14, 0.18):  # of two frames, in sides
        for motion in MOTIONS:
            if motion in samples_video.TURNS:
                angle = torch.tensor(-samples_video.TURNS[motion] * speed * 1.8)
                theta = [[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]]
            else:
                right, down = samples_video.SHIFTS[motion]
                theta = [[1.0, 0.0, -2 * right * speed], [0.0, 1.0, -2 * down * speed]]
            grid = torch.nn.functional.affine_grid(
                torch.tensor(theta).expand(len(before), 2, 3), list(before.shape), align_corners=False
            )
            moved = torch.nn.functional.grid_sample(before, grid, padding_mode="border", align_corners=False)
            inner = slice(12, -12)  # what comes in at the edges was not seen before
            errors[motion, speed] = float((moved - after)[..., inner, inner].abs().mean())
    return min(errors, key=lambda key: errors[key])[0]


def test_the_class_of_a_sample_is_its_motion() -> None:
    assert all(OPPOSITE[OPPOSITE[motion]] == motion for motion in MOTIONS)
    right = opposite = 0
    for index in range(4):
        for motion in MOTIONS:
            frames = clip(motion, np.random.default_rng((9, index, MOTIONS.index(motion))))
            raw = torch.from_numpy(frames).permute(0, 3, 1, 2)[:12]
            right += guess(raw) == motion
            opposite += guess(raw.flip(0)) == OPPOSITE[motion]
    assert right >= 23
    assert opposite >= 23


def test_a_single_frame_tells_nothing() -> None:
    """Level, spread and balance of frames are alike in all classes, at a clip's ends and in between."""
    count, places = 30, [0, 12, 23]
    seen = np.array(
        [
            [clip(motion, np.random.default_rng((label, index)))[places] / 255 for index in range(count)]
            for label, motion in enumerate(MOTIONS)
        ]
    )  # (motions, clips, places, H, W, 3)
    level, spread = seen.mean((3, 4, 5)), seen.std((3, 4, 5))
    sideways = seen[..., :20, :].mean((3, 4, 5)) - seen[..., -20:, :].mean((3, 4, 5))
    upright = seen[..., :20, :, :].mean((3, 4, 5)) - seen[..., -20:, :, :].mean((3, 4, 5))
    for value in (level, spread, sideways, upright):
        error = value.std((0, 1)) / count**0.5  # of a class's mean, for each place
        differences = value.mean(1) - value.mean((0, 1))
        assert (np.abs(differences) < 3.5 * error).all()


# -- through the workbench ---------------------------------------------------------------------------------


@pytest.mark.figures
def test_from_training_to_export(
    act: Callable[..., Path],
    drawn: Callable[[type[VideoData]], Path],
    tmp_path: Path,
    video_reader: str,
) -> None:
    words = (*TINY, "modality=video", "modality.embedder.frames=4", "modality.embedder.size=16")
    data = (
        f"data_dir={drawn(Kinetics400)}",
        "task.data.num_workers=0",
        "task.data.test_segments=2",
        "task.data.limit=24",
    )
    run = act(*words, *data)
    result = json.loads((run / "result.json").read_text())
    assert (result["modality"], result["task"]) == ("video", "kinetics400")
    assert {"test/acc", "test/acc_top5"} <= set(result["metrics"])
    assert {"inputs.png", "samples.png", "confusion.png"} <= {
        file.name for file in (run / "figures").iterdir()
    }

    clips = tmp_path / "clips"
    numbered(clips / "long.mp4")
    numbered(clips / "short.avi", 2, codec="mpeg4")
    (clips / "broken.mp4").write_bytes(b"no video")
    checkpoint = f"ckpt={run / 'checkpoints' / 'best.ckpt'}"
    table = pd.read_csv(
        act("trainer=cpu", "action=predict", checkpoint, f"input={clips}") / "predictions.csv"
    )
    assert table["error"].notna().tolist() == [True, False, False]
    assert set(table["label"].dropna()) <= set(MOTIONS)
    if video_reader != "decord":
        return  # an export reads no video
    exported = act("trainer=cpu", "action=export", checkpoint) / "export"
    assert json.loads((exported / "model.json").read_text())["input"] == ["batch", 4, 3, 16, 16]


@pytest.mark.slow
def test_a_trained_model_reads_motion_not_pictures(
    act: Callable[..., Path], composed: Callable[..., DictConfig], samples: Path
) -> None:
    run = act("modality=video", "trainer=cpu", "trainer.max_epochs=10")
    assert json.loads((run / "result.json").read_text())["metrics"]["test/acc"] >= 0.9
    cfg = composed("modality=video", f"paths.samples={samples}", f"ckpt={run / 'checkpoints' / 'best.ckpt'}")
    task, data = restore(cfg).task, build_data(cfg)
    right = dict.fromkeys(("as it is", "backwards", "one frame repeated"), 0.0)
    share = 1 / len(data.splits["test"])
    opposite = torch.tensor([MOTIONS.index(OPPOSITE[motion]) for motion in MOTIONS])
    for batch in data.loader("test"):
        raw, target = batch.raw, batch.target
        for name, seen, wanted in (
            ("as it is", raw, target),
            ("backwards", raw.flip(1), opposite[target]),
            ("one frame repeated", raw[:, 8:9].expand_as(raw), target),
        ):
            with torch.inference_mode():
                right[name] += share * float((task(seen).argmax(1) == wanted).sum())
    assert right["as it is"] >= 0.9
    assert right["backwards"] >= 0.9
    assert right["one frame repeated"] == pytest.approx(1 / len(MOTIONS), abs=0.08)
