"""Outlines of objects: polygons and run-length encoding (RLE) in COCO format, and their masks.

Shapes: H and W of the image. Run lengths count pixels in column-major order, beginning with the background.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CORNERS = 3  # minimum of a polygon
LONGEST = 10_000_000  # characters of compressed RLE, or numbers of a polygon


@dataclass(frozen=True, eq=False)
class Outline:
    """The outline of one object: polygons, each x, y, x, y, … in pixels, or run lengths."""

    polygons: tuple[NDArray[np.float32], ...] = ()
    runs: NDArray[np.int64] | None = None

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Mask (H, W), true on the object and clipped to the image.

        Raises:
            ValueError: run lengths for a different number of pixels.
        """
        if self.runs is not None:
            if int(self.runs.sum()) != height * width:
                raise ValueError(f"its run lengths are of {int(self.runs.sum()):,} pixels")
            return _decoded(self.runs, height, width)
        from pycocotools import mask as coco

        # A corner far outside would cost memory in proportion to its distance.
        within = [
            np.stack(
                [each[0::2].clip(-width, 2 * width), each[1::2].clip(-height, 2 * height)], axis=1
            ).reshape(-1)
            for each in self.polygons
        ]
        pieces = coco.frPyObjects([each.astype(np.float64).tolist() for each in within], height, width)
        counts = coco.merge(pieces)["counts"]  # pycocotools' own decoder warns with NumPy 2
        return _decoded(np.array(unpacked(counts.decode("ascii")), dtype=np.int64), height, width)

    def content(self) -> bytes:
        """Bytes for hashing."""
        return b"".join(each.tobytes() for each in (self.polygons if self.runs is None else (self.runs,)))


def _decoded(runs: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def read_outline(said: Any, size: tuple[int, int] | None) -> Outline | None:
    """Parses COCO's `segmentation`: polygons, or an object with `size` (height, width) and `counts`; None if empty.

    Args:
        said: the JSON value.
        size: width and height of the image, if stated.

    Raises:
        ValueError: anything else.
    """
    if said is None or said == []:
        return None
    if isinstance(said, dict):
        return Outline(runs=_runs(said, size))
    if not isinstance(said, list):
        raise ValueError("its segmentation is neither polygons nor run lengths")
    polygons = tuple(_polygon(each) for each in said)
    return Outline(polygons)


def _polygon(said: Any) -> NDArray[np.float32]:
    if not isinstance(said, list) or len(said) < 2 * CORNERS or len(said) % 2 or len(said) > LONGEST:
        raise ValueError("its segmentation has a polygon that is no list of three corners x, y or more")
    if not all(type(value) in (int, float) for value in said):
        raise ValueError("its segmentation has a polygon with something else than numbers")
    try:
        points = np.array(said, dtype=np.float64)
    except OverflowError as error:
        raise ValueError("its segmentation has a polygon with a number that is too large") from error
    if not np.isfinite(points).all() or np.abs(points).max() > 1e9:
        raise ValueError("its segmentation has a polygon that is not finite")
    return points.astype(np.float32)


def _runs(said: dict[Any, Any], size: tuple[int, int] | None) -> NDArray[np.int64]:
    shape, counts = said.get("size"), said.get("counts")
    if not (
        isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)
    ):
        raise ValueError("its segmentation's size is no height and width")
    if size is not None and (shape[1], shape[0]) != size:
        raise ValueError(
            f"its run lengths are for {shape[1]}×{shape[0]} pixels, the picture has {size[0]}×{size[1]}"
        )
    if isinstance(counts, str):
        counts = unpacked(counts)
    if not isinstance(counts, list) or len(counts) > LONGEST:
        raise ValueError("its segmentation's counts are no run lengths")
    if not all(type(count) is int and 0 <= count < 2**40 for count in counts):
        raise ValueError("its segmentation's counts are no whole numbers from 0")
    if sum(counts) != shape[0] * shape[1]:
        raise ValueError(f"its run lengths are of {sum(counts):,} pixels, not {shape[0]}×{shape[1]}")
    return np.array(counts, dtype=np.int64)


def unpacked(text: str) -> list[int]:
    """Decodes COCO's compressed RLE: five bits per character, differences to the run before the last one.

    Raises:
        ValueError: anything else.
    """
    if len(text) > LONGEST:
        raise ValueError("its segmentation's counts are too long")
    counts: list[int] = []
    value = shift = 0
    for mark in text:
        bits = ord(mark) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its segmentation's counts are no run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its segmentation's counts break off")
    return counts


def packed_polygons(points: Sequence[Sequence[float]]) -> list[float]:
    """Corners (P, 2) in COCO format: x, y, x, y, … with two decimals."""
    return [round(float(value), 2) for point in points for value in point]


def run_lengths(mask_HW: NDArray[np.bool_]) -> list[int]:
    """Run lengths of a mask in column-major order, beginning with the background."""
    flat = np.concatenate([[False], mask_HW.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask_HW.size]])).tolist()
