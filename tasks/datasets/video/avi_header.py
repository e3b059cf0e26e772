"""Checks the frame count in the header of an AVI file, without a decoder.

Decoders allocate memory for the declared number of frames, and some crash the process if it is not available. (AVI:
RIFF chunks; a stream's number of frames is ``dwLength`` of its chunk ``strh``.)
"""

import struct
from pathlib import Path

HEADER = 2**16  # bytes; the headers of the streams come first
LENGTH = 40  # bytes from the name of the chunk `strh` to dwLength
FRAME = 8  # minimum bytes of a frame: the name and the size of its chunk


def is_plausible(path: Path) -> bool:
    """Whether an AVI file is large enough for the frames it declares; true for all other files."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER)
    except OSError:
        return True  # reported when it is opened
    if header[:4] != b"RIFF" or header[8:12] != b"AVI ":
        return True
    place = header.find(b"strh")
    while place >= 0:
        stated = header[place + LENGTH : place + LENGTH + 4]
        video = header[place + 8 : place + 12] == b"vids"
        if video and (len(stated) < 4 or struct.unpack("<I", stated)[0] * FRAME > size):
            return False
        place = header.find(b"strh", place + 4)
    return True
