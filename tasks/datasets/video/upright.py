"""Frames as a player shows them: turned and mirrored by the file's display matrix, and of one size.

Phones record as their sensor lies, and front cameras mirror; the file says how to show it (ISO/IEC 14496-12, `tkhd`).

Shapes: H and W of a frame.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MATRIX = "DISPLAYMATRIX"  # PyAV's name of it
MATRIX_BYTES = 36


@dataclass(frozen=True)
class Orientation:
    """How to show a frame: exchange rows and columns first, then mirror.

    Args:
        transpose: exchange rows and columns.
        left_right, upside_down: mirror the result.
    """

    transpose: bool = False
    left_right: bool = False
    upside_down: bool = False

    @property
    def mirrors(self) -> bool:
        """Whether text in the frame is mirrored, which a rotation alone does not do."""
        return (self.transpose + self.left_right + self.upside_down) % 2 == 1

    def applied(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A stored frame (H, W, 3) as it is shown."""
        picture = picture.swapaxes(0, 1) if self.transpose else picture
        picture = picture[:, ::-1] if self.left_right else picture
        return picture[::-1] if self.upside_down else picture


UNCHANGED = Orientation()
TURNS = (  # by multiples of 90 degrees, counterclockwise
    UNCHANGED,
    Orientation(transpose=True, upside_down=True),
    Orientation(left_right=True, upside_down=True),
    Orientation(transpose=True, left_right=True),
)


def orientation_of(matrix: Sequence[int]) -> Orientation:
    """The orientation nearest to a display matrix.

    Args:
        matrix: a, b, u, c, d, v, x, y, w: a stored point (p, q), right and down, is shown at (ap + cq, bp + dq).

    >>> orientation_of((0, 1, 0, -1, 0, 0, 0, 0, 1))
    Orientation(transpose=True, left_right=True, upside_down=False)
    """
    a, b, _, c, d = matrix[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, left_right=c < 0, upside_down=b < 0)
    return Orientation(left_right=a < 0, upside_down=d < 0)


def orientation_of_frame(frame: Any) -> Orientation:
    """The orientation of a frame that PyAV decoded."""
    try:
        matrix = frame.side_data.get(MATRIX)
    except ValueError:  # beside the matrix lies something that PyAV does not know yet
        return TURNS[round(frame.rotation / 90) % 4]
    if matrix is None or matrix.buffer_size < MATRIX_BYTES:
        return UNCHANGED
    return orientation_of(struct.unpack_from("=9i", bytes(matrix)))


def upright(frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A frame that PyAV decoded as (H, W, 3), as a player shows it.

    Args:
        frame: the frame.
        size: width and height of the frames of the file as they are stored; others, which a change of the resolution
            in mid-file makes, are scaled to it (decord does so itself).
    """
    other = {} if size in ((0, 0), (frame.width, frame.height)) else {"width": size[0], "height": size[1]}
    picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", **other)
    return orientation_of_frame(frame).applied(picture)
