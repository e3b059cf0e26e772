"""Reading video files as clips of fixed shape: what every video source shares.

Shapes: L frames of a file, T frames of a clip, K clips of a file at test time, H and W of a frame.

A clip's frames are chosen on a uniform clock of L ticks from a file's first frame to its last, so a file of
variable frame rate does not play faster where its frames are dense. At a constant rate ticks are frames.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from tasks.datasets.array_cache import keep_array, read_array
from tasks.datasets.batch import Copies
from tasks.datasets.errors import DataError, ReadError
from tasks.datasets.image.files import seeded_by
from tasks.datasets.items import Item
from tasks.datasets.reading import available, require
from tasks.datasets.shards.data import ShardableData, ShardableSettings
from tasks.datasets.splits import held_out_groups
from tasks.datasets.targets import ClassTargets, Kind
from tasks.datasets.video import avi_header, mp4_header
from tasks.datasets.video.mp4_header import Header, read_header

EXTENSIONS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp")
MOST_FRAMES = 2**31 - 1  # stated by a damaged header
SAMPLINGS = ("dense", "uniform")
VIEWS = ("square", "whole")
AREAS = ("view", "frame")
ATTEMPTS = 10  # boxes drawn for a crop of a frame's area, of which the first that fits is taken

Frames = NDArray[np.uint8]  # (T, H, W, 3)
Places = NDArray[np.int64]  # (T,)


@dataclass(frozen=True)
class Video:
    """An open file: how many ticks it has, and how to read the frames at some ticks (rising, none twice)."""

    length: int
    read: Callable[[Places], Frames]


class VideoSettings(ShardableSettings, total=False):
    """Arguments every video source takes, passed on to `VideoData`."""

    frames: int
    size: int
    sampling: str
    stride: int
    test_segments: int
    test_crops: int
    view: str
    scale: Sequence[float]
    ratio: Sequence[float]
    scale_of: str
    rand_augment: str | None
    repeats: int
    cache_dir: str | None
    cache_side: int | None


class VideoData(ShardableData):
    """A source whose items are video files and whose raw sample is a clip ``(T, 3, S, S)``, uint8 RGB.

    Which frames: ``dense`` takes T frames ``stride`` ticks apart, beginning anywhere in training and so that
    they lie in the middle otherwise; a file shorter than that starts over from its beginning (loops).
    ``uniform`` cuts the file into T equal parts and takes one frame of each, a random one in training and the
    middle one otherwise (temporal segments, arXiv 1608.00859); a file of fewer than T frames shows some
    twice.

    Testing reads K = ``test_segments`` × ``test_crops`` clips of one decoding, ``(K, T, 3, S, S)``, whose
    answers are averaged; validation and K = 1 read one, ``(T, 3, S, S)``. Segments spread evenly from start
    to end, crops along the longer side.

    Args:
        frames: T.
        size: S, side of a frame in pixels.
        sampling: ``dense`` or ``uniform``.
        stride: ticks from frame to frame; only with ``dense``.
        test_segments, test_crops: see above.
        view: ``square`` sees the largest square of a frame, ``whole`` the whole frame squeezed to a square.
        scale: area of a training crop as a part of the view, drawn between the two.
        ratio: a training crop is wider than the view by a factor drawn between the two (and less high).
        scale_of: what ``scale`` and ``ratio`` are relative to: the ``view``, or the area of the whole ``frame`` and a
            square (torchvision's ``RandomResizedCrop``).
        rand_augment: a policy of timm's, such as ``rand-m7-n4-mstd0.5-inc1`` (RandAugment, arXiv 1909.13719), for the
            whole frames before the crop, in training; a draw holds for all frames of a clip.
        repeats: so many differently augmented copies of a clip, the same frames, are in a training batch (repeated
            augmentation, arXiv 1901.09335): it has ``batch_size`` · ``repeats`` samples.
        cache_dir: keep the decoded frames of every file here (uint8, short side at most ``cache_side``); for
            small sets that are read many times. ``None`` decodes each time.
        cache_side: in pixels; ``None`` keeps the frames' own size.
        **common: see `ShardableData` and `DataModule`.
    """

    kind: ClassVar[Kind] = ClassTargets
    modality = "video"
    extensions = EXTENSIONS
    unit = "clips"

    def __init__(
        self,
        *,
        frames: int = 16,
        size: int = 224,
        sampling: str = "dense",
        stride: int = 1,
        test_segments: int = 1,
        test_crops: int = 1,
        view: str = "square",
        scale: Sequence[float] = (1.0, 1.0),
        ratio: Sequence[float] = (1.0, 1.0),
        scale_of: str = "view",
        rand_augment: str | None = None,
        repeats: int = 1,
        cache_dir: str | None = None,
        cache_side: int | None = None,
        **common: Unpack[ShardableSettings],
    ) -> None:
        super().__init__(**common)
        if cache_dir is not None and self.format != "files":
            raise DataError("cache_dir keeps decoded frames of files: leave it out with format=webdataset")
        if min(frames, size, stride, test_segments, test_crops, repeats, cache_side or 1) < 1:
            raise DataError(
                "frames, size, stride, test_segments, test_crops, repeats and cache_side must be at least 1"
            )
        if sampling not in SAMPLINGS:
            raise DataError(f"sampling must be one of {', '.join(SAMPLINGS)}, not {sampling!r}")
        if view not in VIEWS:
            raise DataError(f"view must be one of {', '.join(VIEWS)}, not {view!r}")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise DataError(f"scale must be two rising numbers above 0 and at most 1, not {list(scale)}")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise DataError(f"ratio must be two rising numbers above 0, not {list(ratio)}")
        if scale_of not in AREAS:
            raise DataError(f"scale_of must be one of {', '.join(AREAS)}, not {scale_of!r}")
        self.frames = frames
        self.size = size
        self.sampling = sampling
        self.stride = stride
        self.test_segments = test_segments
        self.test_crops = test_crops
        self.view = view
        self.scale = (float(scale[0]), float(scale[1]))
        self.ratio = (float(ratio[0]), float(ratio[1]))
        self.scale_of = scale_of
        self.rand_augment = None if rand_augment is None else rand_augment_of(rand_augment, size)
        self.repeats = repeats
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.cache_side = cache_side

    def setup(self, stage: str | None = None) -> None:
        fresh = not self.splits
        super().setup(stage)
        if fresh:  # validation, once an epoch, looks at one clip of a file; only the test pays for several
            self.splits["val"] = [
                replace(item, where={**item.where, "clips": 1}) for item in self.splits["val"]
            ]

    def find_class_folders(self, root: Path, places: Sequence[str]) -> Path:
        """The first of ``places`` below ``root`` that holds a folder of one of the classes."""
        for place in places:
            if any((root / place / name).is_dir() for name in self.class_names):
                return root / place
        raise self.bad_layout(f"there are no class folders such as {self.class_names[0]} in {root}")

    def read_item(self, item: Item, train: bool, rng: np.random.Generator) -> Tensor | Copies:
        if not train:
            return (
                self._read_clips(item.path, 1, 1)
                if item.where.get("clips") == 1
                else self.read_file(item.path)
            )
        video = self._open(item.path)
        if self.sampling == "dense":
            ticks = dense(video.length, self.frames, self.stride, rng.random())
        else:
            ticks = uniform(video.length, self.frames, rng.random(self.frames))
        frames = read_ticks(video, ticks)
        if self.repeats == 1:
            return self._augmented(frames, rng)
        return Copies(self._augmented(frames, rng) for _ in range(self.repeats))

    def _augmented(self, frames: Frames, rng: np.random.Generator) -> Tensor:
        """Whole frames -> a training clip (T, 3, S, S)."""
        if self.rand_augment is not None:
            frames = same_draw(self.rand_augment, frames, rng)
        if self.scale_of == "frame":
            box = random_resized_box(frames.shape[1:3], self.scale, self.ratio, rng)
        else:
            box = random_box(frames.shape[1:3], self.view, self.scale, self.ratio, rng)
        return crop(frames, box, self.size)

    def read_file(self, path: Path) -> Tensor:
        return self._read_clips(path, self.test_segments, self.test_crops)

    def _read_clips(self, path: Path, segments: int, crops: int) -> Tensor:
        video = self._open(path)
        if self.sampling == "dense":
            ticks = [dense(video.length, self.frames, self.stride, place) for place in _spread(segments)]
        else:
            places = (np.arange(segments) + 0.5) / segments
            ticks = [uniform(video.length, self.frames, place) for place in places]
        frames = read_ticks(video, np.concatenate(ticks))
        boxes = [largest_box(frames.shape[1:3], self.view, place) for place in _spread(crops)]
        clips = [crop(part, box, self.size) for part in np.split(frames, segments) for box in boxes]
        return clips[0] if len(clips) == 1 else torch.stack(clips)

    def _open(self, path: Path) -> Video:
        return (
            open_video(path) if self.cache_dir is None else open_cached(path, self.cache_dir, self.cache_side)
        )


# -- splits --------------------------------------------------------------------------------------------------


def check_split(split: int, val_fraction: float) -> None:
    """Refuse what is no official split of UCF101 or HMDB51."""
    if split not in (1, 2, 3):
        raise DataError(f"split must be 1, 2 or 3, not {split}")
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must be between 0 and 1, not {val_fraction}")


def carve_validation(
    train: list[Item], test: list[Item], group: Callable[[Item], str], val_fraction: float
) -> dict[str, list[Item]]:
    """Official train and test lists -> three parts; validation is whole groups of the training list."""
    held = held_out_groups(((str(item.target), group(item)) for item in train), val_fraction)
    return {
        "train": [item for item in train if group(item) not in held],
        "val": [item for item in train if group(item) in held],
        "test": test,
    }


# -- which frames --------------------------------------------------------------------------------------------


def dense(length: int, frames: int, stride: int, place: float) -> Places:
    """``frames`` ticks, ``stride`` apart, of ``length``: at the start for place 0, at the end for place 1.

    A file that is too short starts over.
    """
    spare = max(length - ((frames - 1) * stride + 1), 0)
    return (round(place * spare) + stride * np.arange(frames, dtype=np.int64)) % length


def uniform(length: int, frames: int, place: float | NDArray[np.float64]) -> Places:
    """One tick of each of ``frames`` equal parts of a file, at ``place`` in [0, 1) of the part."""
    part = np.arange(frames)
    last = np.ceil((part + 1) * length / frames) - 1  # rounding up must not lead into the next part
    return np.minimum((part + place) * length / frames, last).astype(np.int64)


def clock(times: NDArray[np.float64]) -> Places | None:
    """The frame shown at each tick of a uniform clock, from the start times (L,) of the frames, in seconds.

    ``None`` for times that mean nothing (missing, not rising): such a file can be neither timed nor sought.
    """
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any() or np.abs(times).max(initial=0) > 1e9:
        return None
    ticks = np.linspace(times[0], times[-1], len(times))
    step = (times[-1] - times[0]) / max(len(times) - 1, 1)
    if np.abs(times - ticks).max() < step / 2:  # constant but for rounding
        return np.arange(len(times), dtype=np.int64)
    return np.searchsorted(times, ticks + 1e-6, side="right").astype(np.int64) - 1


def _spread(count: int) -> NDArray[np.float64]:
    """``count`` places from 0 to 1; the middle for one."""
    return np.linspace(0, 1, count) if count > 1 else np.array([0.5])


# -- which part of a frame -----------------------------------------------------------------------------------

Box = tuple[int, int, int, int]  # top, left, height, width in pixels


def largest_box(shape: tuple[int, ...], view: str, place: float = 0.5) -> Box:
    """A whole frame of ``shape`` (H, W), or its largest square at ``place`` (0 to 1) on the longer side."""
    height, width = shape
    if view == "whole":
        return 0, 0, height, width
    side = min(height, width)
    return round(place * (height - side)), round(place * (width - side)), side, side


def random_box(
    shape: tuple[int, ...],
    view: str,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """A random box in a frame of ``shape``; ``scale`` and ``ratio`` are relative to `largest_box`."""
    height, width = shape
    _, _, high, wide = largest_box(shape, view)
    area = rng.uniform(*scale)
    stretch = float(np.exp(rng.uniform(*np.log(ratio))))
    box_height = int(np.clip(round(high * (area / stretch) ** 0.5), 1, height))
    box_width = int(np.clip(round(wide * (area * stretch) ** 0.5), 1, width))
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    return top, left, box_height, box_width


def random_resized_box(
    shape: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A random box in a frame of ``shape``, of an area relative to the frame's and a ratio of its own, as in
    torchvision's ``RandomResizedCrop``: of ten draws the first that fits, else the largest central box of an
    allowed ratio."""
    height, width = shape
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        stretch = float(np.exp(rng.uniform(*np.log(ratio))))
        box_width, box_height = round((area * stretch) ** 0.5), round((area / stretch) ** 0.5)
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            return top, int(rng.integers(width - box_width + 1)), box_height, box_width
    box_width = min(width, round(height * ratio[1]))
    box_height = min(height, round(width / ratio[0]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def rand_augment_of(policy: str, size: int) -> Callable[[Any], Any]:
    """timm's RandAugment: PIL picture -> PIL picture, drawing from the global generators of Python and NumPy.

    Args:
        policy: e.g. ``rand-m7-n4-mstd0.5-inc1``.
        size: side of a training clip in pixels; shifts in pixels go up to 0.45 of it.

    Raises:
        DataError: timm has no such policy.
    """
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    options = {"translate_const": int(size * 0.45), "interpolation": Image.Resampling.BICUBIC}
    try:
        transform: Callable[[Any], Any] = rand_augment_transform(policy, options)
    except (AssertionError, ValueError, KeyError) as error:
        raise DataError(f"rand_augment={policy} is no RandAugment policy of timm's ({error})") from error
    return transform


def same_draw(transform: Callable[[Any], Any], frames: Frames, rng: np.random.Generator) -> Frames:
    """Apply a random transform of PIL pictures to ``(T, H, W, 3)`` frames, with the same random numbers for each."""
    from PIL import Image

    changed = []
    with seeded_by(rng):
        start = random.getstate(), np.random.get_state()  # noqa: NPY002  timm draws from both
        for frame in frames:
            random.setstate(start[0])
            np.random.set_state(start[1])  # noqa: NPY002
            changed.append(np.asarray(transform(Image.fromarray(frame))))
    return np.stack(changed)


def crop(frames: Frames, box: Box, size: int) -> Tensor:
    """Cut a box out of ``(T, H, W, 3)`` frames and resize it (antialiased) to ``(T, 3, size, size)``."""
    top, left, height, width = box
    cut = torch.from_numpy(np.ascontiguousarray(frames[:, top : top + height, left : left + width]))
    return _resize(cut.permute(0, 3, 1, 2), size, size)


def _resize(frames: Tensor, height: int, width: int) -> Tensor:
    if tuple(frames.shape[-2:]) == (height, width):
        return frames.contiguous()
    resized = torch.nn.functional.interpolate(frames, (height, width), mode="bilinear", antialias=True)
    return resized.contiguous()


# -- files ---------------------------------------------------------------------------------------------------


def open_video(path: Path) -> Video:
    """Open a file for reading by tick: with decord, or with PyAV where that cannot or is not to be had.

    Frames stand upright as a player shows them; those that a cut without re-encoding hides are none of the video's.
    Of a file whose end is missing, the frames that can be read are all it has.

    Raises:
        ReadError: the file is missing, empty, no video or broken.
        MissingLibrary: PyAV does not import.
    """
    require("av", "video files")
    if not path.is_file():
        raise ReadError("there is no such file")
    if path.stat().st_size == 0:
        raise ReadError("the file is empty (0 bytes)")
    # A sample of a shard has no ending.
    header = read_header(path) if path.suffix.lower() in (*mp4_header.KINDS, "") else None
    try:
        return _open(path, header)
    except _broken() as error:
        raise ReadError(_why(error)) from error


def _open(path: Path, header: Header | None) -> Video:
    decord = available("decord")
    # Decord shows the frames that an edit list hides, and some numbers of frames bring the process down.
    if decord is None or (header and (header.may_hide_frames or not header.counts_agree)):
        return _open_with_av(path)
    if not avi_header.is_plausible(path):
        return _open_with_av(path)
    try:
        return _open_with_decord(path, decord)
    except decord.DECORDError:  # a codec that it lacks, such as AV1, or a file without its end
        return _open_with_av(path)


def _open_with_decord(path: Path, decord: Any) -> Video:
    decord.logging.set_level(decord.logging.QUIET)
    # One thread: the reader processes are parallel already.
    reader = decord.VideoReader(str(path), num_threads=1)
    length = len(reader)
    if length == 0:
        raise ReadError("it holds no frames")
    shown = clock(reader.get_frame_timestamp(np.arange(length))[:, 0].astype(np.float64))

    def seek(ticks: Places) -> Frames:
        assert shown is not None
        try:
            return np.asarray(reader.get_batch(shown[ticks]).asnumpy())
        except decord.DECORDError as error:
            if "DECORDArrayCopyFromTo" not in str(error):
                raise
            return decode_in_order(path, shown[ticks])  # decord cannot unpack some small widths (48, 72, …)

    # Decord seeks by time stamp: where those mean nothing, it silently returns other frames than asked for.
    read = seek if shown is not None else lambda ticks: decode_in_order(path, ticks)
    return Video(length, read)


def _open_with_av(path: Path) -> Video:
    """Without decoding: a packet holds a frame, its time stamp says when that is shown, a flag that it is hidden."""
    import av

    with av.open(str(path)) as container:
        stream = _video_stream(container)
        all_packets = [packet for packet in container.demux(stream) if packet.size]
        base = float(stream.time_base or 1)
        cut_off = len(all_packets) < stream.frames < MOST_FRAMES
    packets = [packet for packet in all_packets if not packet.is_discard]
    if not packets:
        raise ReadError("it holds no frames")
    if cut_off:
        return Video(decodable(path), lambda ticks: decode_in_order(path, ticks))
    timed = all(packet.pts is not None for packet in packets)
    stamps = np.array(sorted(packet.pts for packet in packets) if timed else [], dtype=np.int64)
    shown = clock(stamps.astype(np.float64) * base) if timed else None
    if shown is None:
        return Video(len(packets), lambda ticks: decode_in_order(path, ticks))
    keys = np.array(sorted(packet.pts for packet in all_packets if packet.is_keyframe), dtype=np.int64)
    return Video(len(packets), lambda ticks: decode_by_time(path, stamps, keys, shown[ticks]))


def decodable(path: Path) -> int:
    """How many frames of a file can be read before its end or its first fault; raises `ReadError` for none."""
    av = require("av", "video files")
    count = 0
    with av.open(str(path)) as container, suppress(av.FFmpegError):
        for _ in container.decode(_video_stream(container)):
            count += 1
    if count == 0:
        raise ReadError("it holds no frames that can be decoded")
    return count


def _video_stream(container: Any) -> Any:
    if not container.streams.video:
        raise ReadError("it holds no pictures" + (", only sound" if container.streams.audio else ""))
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ReadError("it holds pictures of no known codec")
    stream.codec_context.thread_count = 1
    return stream


def read_ticks(video: Video, ticks: Places) -> Frames:
    """Frames at ``ticks`` (T,), in any order and with repetitions, each decoded once: (T, H, W, 3).

    Raises:
        ReadError: the file is broken further on.
    """
    wanted, order = np.unique(ticks, return_inverse=True)
    try:
        return video.read(wanted)[order]
    except _broken() as error:
        raise ReadError(_why(error)) from error


def decode_in_order(path: Path, ticks: Places) -> Frames:
    """Decode a file from its start, keep the frames at the rising ``ticks``; past the end, its last frame."""
    av = require("av", "video files")
    frames: list[Any] = []
    with av.open(str(path)) as container:
        last = None
        for number, last in enumerate(container.decode(_video_stream(container))):
            while len(frames) < len(ticks) and ticks[len(frames)] == number:
                frames.append(_upright(last))
            if len(frames) == len(ticks):
                break
        if last is None:
            raise ReadError("it holds no frames that can be decoded")
        while len(frames) < len(ticks):
            frames.append(_upright(last))
    return np.stack(frames)


def _upright(frame: Any) -> NDArray[np.uint8]:
    """A decoded frame as (H, W, 3), turned as the file asks for (decord does so by itself)."""
    picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture


def decode_by_time(path: Path, stamps: NDArray[np.int64], keys: NDArray[np.int64], numbers: Places) -> Frames:
    """Decode some frames of a file, each from the key frame before it.

    Args:
        path: the video.
        stamps: (L,) when each frame is shown, in units of the stream, rising.
        keys: those of the key frames.
        numbers: which frames, rising; a number may come twice.
    """
    av = require("av", "video files")
    found: dict[int, Any] = {}
    with av.open(str(path)) as container:
        stream = _video_stream(container)
        decoded, now = container.decode(stream), None
        for stamp in np.unique(stamps[numbers]).tolist():
            before = keys[keys <= stamp]
            if len(before) and before[-1] > stamps[0] and (now is None or now < before[-1]):
                container.seek(int(before[-1]), stream=stream)
                decoded = container.decode(stream)
            for frame in decoded:
                now = frame.pts
                if now is not None and now >= stamp:
                    break
            if now != stamp:  # the frame before was dropped, or the file does not seek as its stamps say
                return decode_in_order(path, numbers)
            found[stamp] = _upright(frame)
    return np.stack([found[stamp] for stamp in stamps[numbers].tolist()])


def open_cached(path: Path, folder: Path, side: int | None) -> Video:
    """Like `open_video`, from decoded frames kept in ``folder``; they are drawn anew when the file changes.

    Args:
        path: the video.
        folder: one ``.npy`` per file, (L, H, W, 3) uint8.
        side: short side of the kept frames at most, in pixels; ``None`` keeps their size.
    """
    if not path.is_file():
        raise ReadError("there is no such file")
    about = path.stat()
    key = f"2|{path.resolve()}|{about.st_size}|{about.st_mtime_ns}|{side}"
    kept = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    stored = read_array(kept)
    if stored is None:
        video = open_video(path)
        frames = read_ticks(video, np.arange(video.length, dtype=np.int64))
        height, width = frames.shape[1:3]
        shrink = 1.0 if side is None else side / min(height, width)
        if shrink < 1:
            height, width = round(height * shrink), round(width * shrink)
            pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
            frames = _resize(pictures, height, width).permute(0, 2, 3, 1).numpy()
        keep_array(kept, frames, folder)
        stored = frames
    return Video(len(stored), lambda ticks: np.asarray(stored[ticks]))


def _broken() -> tuple[type[Exception], ...]:
    """What decord and PyAV raise on files that are no video or broken."""
    decord = available("decord")
    of_decord = () if decord is None else (decord.DECORDError,)
    return *of_decord, require("av", "video files").FFmpegError, RuntimeError, OSError, IndexError


def _why(error: Any) -> str:
    """One line without the path and without the place in decord's source."""
    if isinstance(error, ReadError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0].split("Error: ")[-1].split("Check failed: ")[-1] if lines else type(error).__name__
    if "Error reading" in reason or "Invalid data" in reason:
        return "it cannot be read as video (no video format recognised)"
    return f"it cannot be decoded as video ({reason[:120].rstrip(' .')})"
