"""Whether a decoder that counts key frames in file order finds the frames of a video, told without decoding.

decord looks up the key frame before a frame by its number in the order of the file. Pictures that follow a key frame in
the file and are shown before it (open groups of pictures: x265's default, MPEG-2, MPEG-4 part 2 with B-frames) shift
that number against the order of showing, and decord silently returns other frames.
"""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from tasks.datasets.reading import require

# Containers without an index of their frames: seeks land near the key frame asked for.
WITHOUT_INDEX = ("asf", "mpeg", "mpegts")
# Codecs whose packets are always in the order of showing.
IN_ORDER = ("vp8", "vp9", "mjpeg", "flv", "h263", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2")
FILES_KEPT = 2**16  # answers, a few hundred bytes each


def seeks_by_key_frame(path: Path) -> bool:
    """Whether each key frame has the same number in the file as in the order of showing, and seeks find it.

    The answer is kept for the process until the file changes.

    Raises:
        av.FFmpegError: the file is broken.
    """
    about = path.stat()
    return _seeks_by_key_frame(os.fspath(path), about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=FILES_KEPT)
def _seeks_by_key_frame(path: str, *version: int) -> bool:
    av = require("av", "video files")
    with av.open(path) as container:
        stream = container.streams.video[0]
        if container.format.name in WITHOUT_INDEX or stream.codec_context is None:
            return False
        if stream.codec_context.codec.name in IN_ORDER:
            return True
        packets = (packet for packet in container.demux(stream) if packet.size)
        return not leads_a_key_frame((packet.pts, packet.is_keyframe) for packet in packets)


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
