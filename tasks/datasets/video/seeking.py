"""Whether decord finds the frames of a video and shows them as a player does, told from packets and one frame.

decord looks up the key frame before a frame by its number in the order of the file. Pictures that follow a key frame in
the file and are shown before it (open groups of pictures: x265's default, MPEG-2, MPEG-4 part 2 with B-frames) shift
that number against the order of showing, and decord silently returns other frames. And of all containers it turns the
frames of MP4 and MOV alone, and mirrors none.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.datasets.reading import require
from tasks.datasets.video.upright import UNCHANGED, orientation_of_frame

# Containers without an index of their frames: seeks land near the key frame asked for.
WITHOUT_INDEX = ("asf", "mpeg", "mpegts")
# Codecs whose packets are always in the order of showing.
IN_ORDER = ("vp8", "vp9", "mjpeg", "flv", "h263", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2")
TURNED = "mov"  # one of PyAV's names of MP4 and MOV, whose frames decord turns
FILES_KEPT = 2**16  # answers, a few hundred bytes each


def shown_by_decord(path: Path) -> bool:
    """Whether decord returns the frames asked for, as they are to be shown.

    That is so if each key frame has the same number in the file as in the order of showing, seeks find it, and decord
    turns the frames as the file says. The answer is kept for the process until the file changes.

    Raises:
        av.FFmpegError: the file is broken.
    """
    about = path.stat()
    return _shown_by_decord(os.fspath(path), about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=FILES_KEPT)
def _shown_by_decord(path: str, *version: int) -> bool:
    av = require("av", "video files")
    with av.open(path) as container:
        stream = container.streams.video[0]
        if container.format.name in WITHOUT_INDEX or stream.codec_context is None:
            return False
        stream.codec_context.thread_count = 1
        in_order = stream.codec_context.codec.name in IN_ORDER
        first, stamps = None, []
        for packet in container.demux(stream):
            if first is None:
                first = _first_frame(packet)
                if first is not None and not _is_turned_by_decord(first, container.format.name):
                    return False
                if first is not None and in_order:
                    return True
            if packet.size:
                stamps.append((packet.pts, packet.is_keyframe))
        return in_order or not leads_a_key_frame(stamps)


def _first_frame(packet: Any) -> Any:
    """The first frame that this packet completes; None if there is none, or it is broken."""
    with suppress(require("av", "video files").FFmpegError):
        return next(iter(packet.decode()), None)
    return None


def _is_turned_by_decord(frame: Any, container: str) -> bool:
    orientation = orientation_of_frame(frame)
    return orientation == UNCHANGED or (TURNED in container.split(",") and not orientation.mirrors)


def leads_a_key_frame(packets: Iterable[tuple[int | None, bool]]) -> bool:
    """Whether a packet is shown before a key frame that precedes it in the file; true if that is not known.

    Args:
        packets: timestamp, and whether it is a key frame, of each packet in the order of the file.
    """
    newest_key = None
    for stamp, is_key in packets:
        if stamp is None or (newest_key is not None and stamp < newest_key):
            return True
        if is_key:
            newest_key = stamp
    return False
