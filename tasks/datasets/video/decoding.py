"""Decoding of video files by tick, with a cache of decoded frames.

Shapes: L frames of a file, T frames of a clip, H and W of a frame.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.datasets.array_cache import keep_array, read_array
from tasks.datasets.errors import ReadError
from tasks.datasets.reading import available, require
from tasks.datasets.video import avi_header, mp4_header
from tasks.datasets.video.crops import Frames, resize
from tasks.datasets.video.mp4_header import Header, read_header
from tasks.datasets.video.seeking import shown_by_decord
from tasks.datasets.video.ticks import Places, clock
from tasks.datasets.video.upright import upright

MOST_FRAMES = 2**31 - 1  # declared by a damaged header


@dataclass(frozen=True)
class Video:
    """An open file: its number of ticks, and a function that reads the frames at given ticks (ascending, unique)."""

    length: int
    read: Callable[[Places], Frames]


def open_video(path: Path) -> Video:
    """Open a file for reading by tick: with decord, or with PyAV if decord fails, misses frames or is not installed.

    Frames are turned and mirrored as in a player; those of another size than the first are scaled to it. Frames hidden
    by an edit list (a cut without re-encoding) are excluded. A truncated file consists of its readable frames.

    Raises:
        ReadError: the file is missing, empty, not a video or broken.
        MissingLibrary: PyAV cannot be imported.
    """
    require("av", "video files")
    if not path.is_file():
        raise ReadError("there is no such file")
    if path.stat().st_size == 0:
        raise ReadError("the file is empty (0 bytes)")
    # Samples of shards have no extension.
    header = read_header(path) if path.suffix.lower() in (*mp4_header.KINDS, "") else None
    try:
        return _open(path, header)
    except _broken() as error:
        raise ReadError(_why(error)) from error


def _open(path: Path, header: Header | None) -> Video:
    decord = available("decord")
    # decord returns frames hidden by an edit list and does not mirror; wrong frame counts can crash the process.
    if decord is None or (header and (header.may_hide_frames or header.mirrors or not header.counts_agree)):
        return _open_with_av(path)
    if not avi_header.is_plausible(path):
        return _open_with_av(path)
    try:
        return _open_with_decord(path, decord, header)
    except decord.DECORDError:  # an unsupported codec, such as AV1, or a truncated file
        return _open_with_av(path)


def _open_with_decord(path: Path, decord: Any, header: Header | None) -> Video:
    decord.logging.set_level(decord.logging.QUIET)
    # One thread: the workers are parallel already.
    reader = decord.VideoReader(str(path), num_threads=1)
    length = len(reader)
    if length == 0:
        raise ReadError("it holds no frames")
    shown = clock(reader.get_frame_timestamp(np.arange(length))[:, 0].astype(np.float64))
    if shown is not None and not _is_shown(path, header):
        return _open_with_av(path)

    def seek(ticks: Places) -> Frames:
        assert shown is not None
        try:
            return np.asarray(reader.get_batch(shown[ticks]).asnumpy())
        except decord.DECORDError as error:
            if "DECORDArrayCopyFromTo" not in str(error):
                raise
            return decode_in_order(path, shown[ticks])  # decord fails for some small widths (48, 72, …)

    # decord seeks by timestamp: if those are invalid, it silently returns other frames.
    read = seek if shown is not None else lambda ticks: decode_in_order(path, ticks)
    return Video(length, read)


def _is_shown(path: Path, header: Header | None) -> bool:
    if header is not None and header.leads_a_key_frame is not None:
        return not header.leads_a_key_frame
    return shown_by_decord(path)


def _open_with_av(path: Path) -> Video:
    """Index the frames without decoding: a packet has one frame, its timestamp, and a flag if it is hidden."""
    import av

    with av.open(str(path)) as container:
        stream = _video_stream(container)
        all_packets = [packet for packet in container.demux(stream) if packet.size]
        base = float(stream.time_base or 1)
        cut_off = len(all_packets) < stream.frames < MOST_FRAMES
        seeks_exactly = (
            container.format.name != "mpeg"
        )  # after a seek in it, frames may carry their neighbours' stamps
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
    if not seeks_exactly:
        return Video(len(packets), lambda ticks: decode_in_order(path, shown[ticks]))
    keys = np.array(sorted(packet.pts for packet in all_packets if packet.is_keyframe), dtype=np.int64)
    return Video(len(packets), lambda ticks: decode_by_time(path, stamps, keys, shown[ticks]))


def decodable(path: Path) -> int:
    """Number of frames that can be decoded before the end or the first error; raises `ReadError` if there are none."""
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


def _size(stream: Any) -> tuple[int, int]:
    """Width and height that the header states; decoding may change the attributes."""
    return stream.codec_context.width, stream.codec_context.height


def read_ticks(video: Video, ticks: Places) -> Frames:
    """Frames (T, H, W, 3) at ``ticks`` (T,), in any order and with repetitions; each is decoded once.

    Raises:
        ReadError: the file is broken further on.
    """
    wanted, order = np.unique(ticks, return_inverse=True)
    try:
        return video.read(wanted)[order]
    except _broken() as error:
        raise ReadError(_why(error)) from error


def decode_in_order(path: Path, ticks: Places) -> Frames:
    """Decode a file from its start and return the frames at the ascending ``ticks``; past the end, the last frame."""
    av = require("av", "video files")
    frames: list[Any] = []
    with av.open(str(path)) as container:
        stream, last = _video_stream(container), None
        size = _size(stream)
        for number, last in enumerate(container.decode(stream)):
            while len(frames) < len(ticks) and ticks[len(frames)] == number:
                frames.append(upright(last, size))
            if len(frames) == len(ticks):
                break
        if last is None:
            raise ReadError("it holds no frames that can be decoded")
        while len(frames) < len(ticks):
            frames.append(upright(last, size))
    return np.stack(frames)


def decode_by_time(path: Path, stamps: NDArray[np.int64], keys: NDArray[np.int64], numbers: Places) -> Frames:
    """Decode selected frames of a file, each from the preceding key frame.

    Args:
        path: the video.
        stamps: (L,) timestamps of all frames, in units of the stream, ascending.
        keys: timestamps of the key frames.
        numbers: frame indices, ascending; may repeat.
    """
    av = require("av", "video files")
    found: dict[int, Any] = {}
    with av.open(str(path)) as container:
        stream = _video_stream(container)
        size = _size(stream)
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
            if now != stamp:  # a frame was dropped, or seeking does not match the timestamps
                return decode_in_order(path, numbers)
            found[stamp] = upright(frame, size)
    return np.stack([found[stamp] for stamp in stamps[numbers].tolist()])


def open_cached(path: Path, folder: Path, side: int | None) -> Video:
    """Like `open_video`, with decoded frames cached in ``folder``; they are decoded again when the file changes.

    Args:
        path: the video.
        folder: one ``.npy`` per file, (L, H, W, 3) uint8.
        side: maximum shorter side of the cached frames, in pixels; ``None`` keeps their size.
    """
    if not path.is_file():
        raise ReadError("there is no such file")
    about = path.stat()
    key = f"3|{path.resolve()}|{about.st_size}|{about.st_mtime_ns}|{side}"
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
            frames = resize(pictures, height, width).permute(0, 2, 3, 1).numpy()
        keep_array(kept, frames, folder)
        stored = frames
    return Video(len(stored), lambda ticks: np.asarray(stored[ticks]))


def _broken() -> tuple[type[Exception], ...]:
    """Exceptions of decord and PyAV for files that are not videos or broken."""
    decord = available("decord")
    of_decord = () if decord is None else (decord.DECORDError,)
    return *of_decord, require("av", "video files").FFmpegError, RuntimeError, OSError, IndexError


def _why(error: Any) -> str:
    """A one-line message without the path and the location in decord's source."""
    if isinstance(error, ReadError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0].split("Error: ")[-1].split("Check failed: ")[-1] if lines else type(error).__name__
    if "Error reading" in reason or "Invalid data" in reason:
        return "it cannot be read as video (no video format recognised)"
    return f"it cannot be decoded as video ({reason[:120].rstrip(' .')})"
