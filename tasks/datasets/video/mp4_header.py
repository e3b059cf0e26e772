"""Reads the frame counts, edit lists, order and orientation of the frames of an MP4 or MOV file from its header.

A cut without re-encoding keeps the frames since the preceding key frame and hides them with an edit list, which some
decoders ignore; and impossible frame counts crash some decoders. (Boxes: ISO/IEC 14496-12.)
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.video.upright import orientation_of

KINDS = (".mp4", ".mov", ".m4v", ".3gp")
LARGEST_HEADER = 2**28  # bytes
MOST_FRAMES = 2**22  # whose order is told; 39 hours at 30 frames per second
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")


@dataclass(frozen=True)
class Header:
    """Header of the first video track.

    Args:
        counts_agree: the tables of times and of sizes have the same number of frames.
        may_hide_frames: its edit list may hide frames at the start or at the end.
        leads_a_key_frame: a frame is shown before a key frame that precedes it in the file; `None` if the tables do not
            tell, as in a fragmented file.
        mirrors: its frames are to be mirrored, as those of some front cameras.
    """

    counts_agree: bool
    may_hide_frames: bool
    leads_a_key_frame: bool | None
    mirrors: bool


def read_header(path: Path) -> Header | None:
    """The header of an MP4 or MOV file; `None` if there is none that can be parsed."""
    try:
        with path.open("rb") as file:
            moov = _moov(file)
        return None if moov is None else _of_video_track(moov)
    except (OSError, struct.error, IndexError, ValueError):
        return None


def _moov(file: BinaryIO) -> bytes | None:
    while len(start := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", start)
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", file.read(8))[0], 16
        if size < header:  # 0: to the end of the file
            return file.read(LARGEST_HEADER) if kind == b"moov" and size == 0 else None
        if kind == b"moov":
            return file.read(size - header) if size <= LARGEST_HEADER else None
        file.seek(size - header, 1)
    return None


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        if size < 8:
            return
        yield kind, content[place + 8 : place + size]
        place += size


def _flat(content: bytes) -> dict[bytes, bytes]:
    """Flattens nested boxes to type -> content; of several of one type, the first is kept."""
    found: dict[bytes, bytes] = {}
    for kind, inside in _boxes(content):
        for name, what in (_flat(inside) if kind in CONTAINERS else {kind: inside}).items():
            found.setdefault(name, what)
    return found


def _of_video_track(moov: bytes) -> Header | None:
    movie = dict(_boxes(moov))
    for kind, track in _boxes(moov):
        boxes = _flat(track) if kind == b"trak" else {}
        if boxes.get(b"hdlr", b"")[8:12] == b"vide":
            hides = _may_hide(boxes, _timescale(movie[b"mvhd"])) if b"mvhd" in movie else True
            leads = None if b"mvex" in movie else _leads_a_key_frame(boxes)  # mvex: fragments follow
            return Header(_counts_agree(boxes), hides, leads, _mirrors(boxes))
    return None


def _counts_agree(boxes: dict[bytes, bytes]) -> bool:
    if b"stts" not in boxes or b"stsz" not in boxes:
        return b"stts" not in boxes
    return sum(count for count, _ in _pairs(boxes[b"stts"])) == struct.unpack_from(">I", boxes[b"stsz"], 8)[0]


def _may_hide(boxes: dict[bytes, bytes], movie_scale: int) -> bool:
    """Whether the edit list is anything but one edit from the first to the last frame of the track."""
    if b"elst" not in boxes:
        return False
    edits = [
        edit for edit in _edits(boxes[b"elst"]) if edit[1] >= 0
    ]  # -1: an empty edit before the first frame
    if len(edits) != 1 or b"mdhd" not in boxes or b"stts" not in boxes:
        return True
    duration, begins = edits[0]
    scale = _timescale(boxes[b"mdhd"])
    ticks = list(_pairs(boxes[b"stts"]))
    whole = sum(count * step for count, step in ticks)
    offsets = _pairs(boxes[b"ctts"]) if b"ctts" in boxes else iter([(1, 0)])
    first_shown = next(offsets, (1, 0))[1]
    step = max((step for _, step in ticks), default=0)
    return begins > first_shown or duration / movie_scale < (whole - step / 2) / scale


def _leads_a_key_frame(boxes: dict[bytes, bytes]) -> bool | None:
    # stps and sbgp mark key frames of other kinds than stss does.
    if {b"stps", b"sbgp"} & boxes.keys() or not {b"stts", b"stsz"} <= boxes.keys():
        return None
    if b"ctts" not in boxes and any(count for count, _ in _pairs(boxes[b"stts"])):
        return False
    length = struct.unpack_from(">I", boxes[b"stsz"], 8)[0]
    steps, offsets = (_per_frame(boxes.get(name, b""), length) for name in (b"stts", b"ctts"))
    if steps is None or offsets is None:
        return None
    shown = np.cumsum(steps) - steps + offsets
    is_key = np.ones(length, dtype=bool)
    if b"stss" in boxes:
        keys = np.frombuffer(boxes[b"stss"], ">u4", offset=8).astype(np.int64) - 1
        if len(keys) == 0 or keys.min() < 0 or keys.max() >= length:
            return None
        is_key[:] = False
        is_key[keys] = True
    newest_key = np.maximum.accumulate(np.where(is_key, shown, np.iinfo(np.int64).min))
    return bool((shown < newest_key).any())


def _mirrors(boxes: dict[bytes, bytes]) -> bool:
    if b"tkhd" not in boxes:
        return False
    place = 52 if boxes[b"tkhd"][0] == 1 else 40  # times of 64 bits come before it
    return orientation_of(struct.unpack_from(">9i", boxes[b"tkhd"], place)).mirrors


def _per_frame(table: bytes, length: int) -> NDArray[np.int64] | None:
    """The values (``length``,) of a table of (count, value); `None` if the counts do not sum up to ``length``."""
    entries = np.frombuffer(table[8 : len(table) - len(table) % 8], ">i4").astype(np.int64).reshape(-1, 2)
    if not 0 < length <= MOST_FRAMES or (entries[:, 0] < 0).any() or entries[:, 0].sum() != length:
        return None
    return entries[:, 1].repeat(entries[:, 0])


def _edits(elst: bytes) -> Iterator[tuple[int, int]]:
    """(duration in the movie's time scale, start in the track's time scale) of each edit."""
    form, size = (">Qq", 20) if elst[0] == 1 else (">Ii", 12)
    count = struct.unpack_from(">I", elst, 4)[0]
    for number in range(min(count, (len(elst) - 8) // size)):
        yield struct.unpack_from(form, elst, 8 + number * size)


def _pairs(table: bytes) -> Iterator[tuple[int, int]]:
    count = struct.unpack_from(">I", table, 4)[0]
    for number in range(min(count, (len(table) - 8) // 8)):
        yield struct.unpack_from(">II", table, 8 + number * 8)


def _timescale(header: bytes) -> int:
    """Ticks per second, from a box `mvhd` or `mdhd`."""
    return max(struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)[0], 1)
