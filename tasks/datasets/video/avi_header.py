"""What the header of an AVI file says of its frames, read without a decoder.

Decoders make room for as many frames as a stream is said to have, and some end the whole process where there is not so
much memory. (AVI: RIFF chunks; a stream's number of frames is ``dwLength`` of its chunk ``strh``.)
"""

import struct
from pathlib import Path

HEADER = 2**16  # bytes; the headers of the streams come first
LENGTH = 40  # bytes from the name of the chunk `strh` to dwLength
FRAME = 8  # bytes that a frame takes at least: the name and the size of its chunk


def is_plausible(path: Path) -> bool:
    """Whether an AVI file can hold the frames that it states; true of all other files."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER)
    except OSError:
        return True  # said by who opens it
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
