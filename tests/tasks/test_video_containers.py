"""The frames a player would show, whichever container and codec hold them and whichever library reads them."""

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.datasets.base import ReadError
from tasks.datasets.reading import available
from tasks.datasets.shards.data import as_file
from tasks.datasets.video import decoding, seeking
from tasks.datasets.video.decoding import open_video, read_ticks
from tasks.datasets.video.mp4_header import read_header
from tasks.datasets.video.sample import write_video
from tasks.datasets.video.ticks import dense
from tasks.datasets.video.upright import orientation_of_frame

LEVEL = 5  # frame i is all of grey 5·i


@pytest.fixture(params=["decord", "PyAV alone"], autouse=True)
def video_reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "decord":
        monkeypatch.setattr(decoding, "available", lambda module: None)


def greys(count: int) -> NDArray[np.uint8]:
    pictures = np.empty((count, 64, 80, 3), np.uint8)
    pictures[:] = LEVEL * np.arange(count)[:, None, None, None]
    return pictures


def numbers(path: Path) -> list[int]:
    video = open_video(path)
    frames = read_ticks(video, np.arange(video.length))
    found: list[int] = np.round(frames.reshape(video.length, -1).mean(1) / LEVEL).astype(int).tolist()
    return found


def cut_from(source: Path, target: Path, frame: int, last: int | None = None) -> None:
    """As `ffmpeg -ss TIME -i source -c copy target`: packets stay, an edit list hides those before the time."""
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        assert stream.time_base is not None
        shift = round(frame / 25 / stream.time_base)
        for number, packet in enumerate(old.demux(stream)):
            if packet.dts is None or (last is not None and number > last):
                continue
            assert packet.pts is not None
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            new.mux(packet)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.m4v"])
def test_frames_hidden_by_a_cut_are_not_read(name: str, tmp_path: Path) -> None:
    write_video(tmp_path / name, greys(45))
    cut_from(tmp_path / name, tmp_path / f"cut_{name}", 30)
    header = read_header(tmp_path / f"cut_{name}")
    assert header is not None
    assert header.may_hide_frames
    assert numbers(tmp_path / f"cut_{name}") == list(range(30, 45))
    with as_file((tmp_path / f"cut_{name}").read_bytes(), ".mp4") as nameless:  # as in a shard
        assert numbers(nameless) == list(range(30, 45))
    assert dense(open_video(tmp_path / f"cut_{name}").length, 5, 1, 0.5).tolist() == [5, 6, 7, 8, 9]
    assert numbers(tmp_path / name) == list(range(45))
    untouched = read_header(tmp_path / name)
    assert untouched is not None
    assert not untouched.may_hide_frames, "frames in another order than shown have an edit list, too"


CODECS = [
    ("mp4", "libx264"), ("mp4", "libx265"), ("mp4", "libsvtav1"), ("mp4", "mpeg4"), ("mkv", "libx264"),
    ("mkv", "libsvtav1"), ("mkv", "libvpx-vp9"), ("webm", "libvpx-vp9"), ("webm", "libvpx"), ("webm", "libsvtav1"),
    ("mov", "libx264"), ("avi", "mpeg4"), ("avi", "libx264"), ("mpg", "mpeg2video"), ("wmv", "wmv2"), ("m4v", "mpeg4"),
]  # fmt: skip


@pytest.mark.parametrize(("container", "codec"), CODECS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_container_and_codec(
    container: str, codec: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"{codec} cannot be written here")
    path = tmp_path / f"a.{container}"
    write_video(path, greys(30), codec)
    found = numbers(path)
    assert len(found) == 30
    assert (np.diff(found) >= 0).all(), "in order"
    assert np.abs(np.array(found) - np.arange(30)).max() <= 2, "strong compression may be off by two greys"
    if available("decord") is not None:
        read = read_ticks(decoding._open_with_av(path), np.arange(30)).astype(int)
        both = read_ticks(open_video(path), np.arange(30)).astype(int)
        assert np.abs(read - both).mean() < 1


def write_bars(path: Path, codec: str, options: dict[str, str], count: int, flags: str = "") -> None:
    """Frame i shows the binary digits of i as ten bars, which strong compression does not blur."""
    digits = (np.arange(count)[:, None] >> np.arange(10)) & 1
    bars = np.where(digits, 230, 20).astype(np.uint8).repeat(6, axis=1)
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, row in enumerate(bars):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[:, :60] = row[:, None]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def bar_numbers(frames: NDArray[np.uint8]) -> list[int]:
    lit = frames[:, 24, 3:60:6].mean(-1) > 125
    found: list[int] = (lit * (1 << np.arange(10))).sum(1).tolist()
    return found


OPEN = {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0", "crf": "10"}
CLOSED = {"x264-params": "keyint=12:bframes=3:scenecut=0", "crf": "10"}
ROLLING = {"x264-params": "intra-refresh=1:keyint=12:scenecut=0", "crf": "10"}
B_FRAMES = {"bf": "2", "b": "2M"}


@pytest.mark.parametrize(
    ("name", "codec", "options", "by_decord"),
    [
        ("a.mp4", "libx264", OPEN, False),
        ("a.mkv", "libx264", OPEN, False),
        ("a.flv", "libx264", OPEN, False),
        ("a.mp4", "libx264", ROLLING, False),
        ("a.mkv", "libx265", {"x265-params": "keyint=25:log-level=none"}, False),
        ("a.mp4", "libx265", {"x265-params": "keyint=25:log-level=none"}, False),
        ("a.mp4", "mpeg4", B_FRAMES, False),
        ("a.mov", "mpeg4", B_FRAMES, False),
        ("a.mkv", "mpeg2video", B_FRAMES, False),
        ("a.wmv", "wmv2", {"b": "2M"}, False),
        ("a.mpg", "libx264", OPEN, True),
        ("a.mpg", "mpeg1video", {"bf": "2", "g": "8", "b": "2M"}, True),
        ("a.mpg", "mpeg2video", B_FRAMES, True),
        ("a.avi", "mpeg4", B_FRAMES, True),
        ("a.mp4", "libx264", {}, True),
        ("a.mp4", "libx264", CLOSED, True),
        ("a.mkv", "libx264", CLOSED, True),
        ("a.mp4", "mpeg4", {"bf": "0", "b": "2M"}, True),
        ("a.webm", "libvpx-vp9", {"g": "12", "b": "2M"}, True),
    ],
)
def test_every_start_of_a_clip_gives_its_own_frames(
    name: str,
    codec: str,
    options: dict[str, str],
    by_decord: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"{codec} cannot be written here")
    path = tmp_path / name
    write_bars(path, codec, options, 80)
    header = read_header(path)
    if header is not None:
        read_packets = seeking.shown_by_decord(path)
        assert header.leads_a_key_frame in (None, not read_packets)
    opened: list[Path] = []
    open_with_av = decoding._open_with_av
    monkeypatch.setattr(decoding, "_open_with_av", lambda path: opened.append(path) or open_with_av(path))
    video = open_video(path)
    assert video.length == 80
    for start in range(video.length - 7):
        asked = start + np.arange(8)
        assert bar_numbers(read_ticks(video, asked)) == asked.tolist()
    if decoding.available("decord") is not None:
        assert (not opened) == by_decord


def test_the_tables_of_an_mp4_tell_the_order_of_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    told = []
    for options, flags in (
        (OPEN, ""),
        (CLOSED, ""),
        (CLOSED, "frag_keyframe"),
        (OPEN, "frag_keyframe+empty_moov"),
    ):
        write_bars(path, "libx264", options, 40, flags)
        header = read_header(path)
        assert header is not None
        told.append(header.leads_a_key_frame)
    assert told == [True, False, None, None]
    write_bars(path, "libx264", CLOSED, 40)
    patched(path, b"ctts", 8, struct.pack(">I", 0x7FFFFFFF))
    header = read_header(path)
    assert header is not None
    assert header.leads_a_key_frame is None, "a damaged table"


def test_a_file_is_indexed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, counted = tmp_path / "a.mp4", []
    count = seeking.leads_a_key_frame
    monkeypatch.setattr(seeking, "leads_a_key_frame", lambda packets: counted.append(1) or count(packets))
    write_bars(path, "libx264", CLOSED, 40)
    assert [seeking.shown_by_decord(path) for _ in range(3)] == [True] * 3
    write_bars(path, "libx264", OPEN, 40)
    assert not seeking.shown_by_decord(path)
    assert len(counted) == 2


def patched(path: Path, box: bytes, offset: int, what: bytes) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(box) + 4 + offset
    content[place : place + len(what)] = what
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("turns", "matrix"), [(0, (1, 0, 0, 1)), (1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))]
)
@pytest.mark.parametrize("side", [48, 64])  # decord cannot unpack frames 48 wide
def test_a_turned_phone_video_stands_upright(
    turns: int, matrix: tuple[int, int, int, int], side: int, tmp_path: Path
) -> None:
    pictures = np.zeros((8, side, 128, 3), np.uint8)
    pictures[:, :16, :16] = 250  # top left
    path = tmp_path / "a.mp4"
    write_video(path, pictures)
    a, b, c, d = (value << 16 for value in matrix)
    patched(path, b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    frame = read_ticks(open_video(path), np.array([3]))[0]
    expected = np.rot90(pictures[3], -turns)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 10
    with av.open(str(path)) as container:  # FFmpeg counts the other way round
        assert next(container.decode(video=0)).rotation % 360 == -90 * turns % 360


def corners(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Frames whose four corners differ."""
    pictures = np.zeros((6, height, width, 3), np.uint8)
    pictures[:, :16, :16], pictures[:, :16, -16:], pictures[:, -16:, :16] = 250, 170, 90
    return pictures


@pytest.mark.parametrize("turned", [0, 90, -90, 180])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mov", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")],
)
def test_frames_are_turned_and_mirrored_as_a_player_does(
    name: str, codec: str, mirrored: bool, turned: int, tmp_path: Path
) -> None:
    pictures = corners()
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"b": "2M"})
        assert isinstance(stream, av.VideoStream)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write it")
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(turned, hflip=mirrored)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected = np.rot90(pictures[0], turned // 90)
    expected = expected[:, ::-1] if mirrored else expected
    for path in (tmp_path / name, tmp_path / "without_an_extension"):
        path.write_bytes((tmp_path / name).read_bytes())
        found = read_ticks(open_video(path), np.array([4]))[0]
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 10


@pytest.mark.parametrize("turned", [0, 90, 180, -90])
def test_frames_are_turned_beside_data_that_pyav_does_not_know(turned: int) -> None:
    class Frame:
        rotation = turned

        @property
        def side_data(self) -> dict[str, Any]:
            raise ValueError("31 is not a valid Type")

    picture = corners()[0]
    assert np.array_equal(orientation_of_frame(Frame()).applied(picture), np.rot90(picture, turned // 90))


def written_in_turn(path: Path, parts: list[NDArray[np.uint8]]) -> None:
    """VP8, with a change of resolution between the parts, as browsers record calls."""
    number = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *parts[0].shape[1:3], "yuv420p"
        for pictures in parts:
            encoder = stream.codec_context
            if pictures is not parts[0]:
                encoder = av.VideoCodecContext.create("libvpx", "w")
                encoder.height, encoder.width, encoder.pix_fmt = *pictures.shape[1:3], "yuv420p"
                encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            for picture in [*pictures, None]:
                frame = None if picture is None else av.VideoFrame.from_ndarray(picture, format="rgb24")
                if frame is not None:
                    frame.pts, frame.time_base, number = number, Fraction(1, 25), number + 1
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)


@pytest.mark.parametrize("larger_first", [False, True])
def test_frames_of_another_size_are_scaled_to_the_first(larger_first: bool, tmp_path: Path) -> None:
    parts = [corners(), corners(96, 128)[:, ::-1, ::-1].copy()]
    parts = parts[::-1] if larger_first else parts
    written_in_turn(tmp_path / "a.webm", parts)
    video = open_video(tmp_path / "a.webm")
    assert video.length == 12
    frames = read_ticks(video, np.arange(12))
    assert frames.shape[1:3] == parts[0].shape[1:3]
    assert read_ticks(video, np.array([10])).shape[1:3] == parts[0].shape[1:3]
    for number, part in ((0, parts[0]), (11, parts[1])):
        small = [
            array[:: len(array) // 48, :: len(array) // 48].astype(int) for array in (frames[number], part[0])
        ]
        inner = [np.stack([array[4:12, 4:12], array[-12:-4, -12:-4]]) for array in small]
        assert np.abs(inner[0].mean((1, 2)) - inner[1].mean((1, 2))).max() < 40, "the same picture"


def test_the_readable_frames_of_a_file_without_its_end(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.mp4"
    write_video(path, pictures)
    with (
        av.open(str(path)) as old,
        av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"}) as new,
    ):
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)
    whole = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    video = open_video(tmp_path / "cut.mp4")
    assert 20 < video.length < 50
    frames = read_ticks(video, np.arange(video.length)).astype(int)
    same = read_ticks(open_video(path), np.arange(video.length)).astype(int)
    assert np.abs(frames - same).max() <= 3


def test_a_file_of_sound_alone_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ReadError, match=r"^it holds no pictures, only sound$"):
        open_video(path)


READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from pathlib import Path
from typing import Any
from tasks.datasets.video.decoding import open_video
from tasks.datasets.video.upright import orientation_of_frame
print(open_video(Path(sys.argv[1])).length)
"""


def test_numbers_of_frames_that_no_file_holds_do_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, greys(24))
    content = path.read_bytes()
    count = content.index(b"stts") + 4 + 4 + 4  # version and flags, number of entries
    assert struct.unpack_from(">I", content, count)[0] == 24
    patched(path, b"stts", 8, struct.pack(">I", 0x7FFFFFFF))
    run = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.strip() == "24", run.stderr


def test_an_avi_that_states_more_frames_than_it_holds_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_video(path, greys(24), "mpeg4")
    assert struct.unpack_from("<I", path.read_bytes(), path.read_bytes().index(b"strh") + 40)[0] == 24
    patched(path, b"strh", 40 - 4, struct.pack("<I", 0x7FFFFFFF))
    run = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.strip() == "24", run.stderr


def test_pictures_of_no_known_codec_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_video(path, np.zeros((8, 32, 32, 3), np.uint8), "mpeg4")
    content = path.read_bytes()
    assert content.count(b"FMP4") == 2
    path.write_bytes(content.replace(b"FMP4", b"\x01\x02zz"))
    with pytest.raises(ReadError, match="it holds pictures of no known codec"):
        open_video(path)
