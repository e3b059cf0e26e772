"""Tilings of the kernels of :mod:`backbone.kernels.toeplitz`: a small table, chosen by measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from backbone.kernels.sizes import ceil_div, power_of_two

#: Register limits of conv_by_tile: number of bands, and of simultaneously live input patches.
BANDS, WINDOW = 27, 28


@dataclass(frozen=True)
class Tiling:
    """The tile of the map processed by one program.

    Args:
        patch: PH x PW, 16 pixels.
        tile: TI x TJ output patches per program; ``conv_by_column`` and ``weight_grad`` use columns of TI, with TJ 0.
        reach: DI x DJ patches that the kernel extends to each side.
        halo: HI x HJ input patches around the tile.
        channels: channels per program, one per warp.
        images: images at a time, a multiple of 8; of 16 for the gradient of the weight.
        resident: concurrent programs per multiprocessor.
        registers: maximum number of registers per thread; 0 leaves it to the compiler.
        boxes: whether to use ``conv_by_box``, which reads through the tensor memory accelerator.
    """

    patch: tuple[int, int]
    tile: tuple[int, int]
    reach: tuple[int, int]
    halo: tuple[int, int]
    channels: int = 8
    images: int = 8
    resident: int = 1
    registers: int = 0
    boxes: bool = False

    @property
    def by_column(self) -> bool:
        return self.tile[1] == 0

    def tiles(self, height: int, width: int) -> int:
        """Number of programs per block of channels and images."""
        rows = ceil_div(height, self.tile[0] * self.patch[0])
        return rows * ceil_div(width, max(self.tile[1], 1) * self.patch[1])


def _reach(reach_in_pixels: int, side: int, patches: int | None = None) -> int:
    """Number of patches of ``side`` pixels that the kernel extends to one side, limited by a map of ``patches``."""
    reach = ceil_div(reach_in_pixels, side)
    return reach if patches is None else min(reach, patches - 1)


@lru_cache(maxsize=4096)
def forward_tilings(reach: int, height: int, width: int, boxes: bool) -> tuple[Tiling, ...]:
    """Tilings for the output and for the gradient of the input, the presumably fastest first.

    Args:
        reach: pixels that the kernel extends to each side, dilation * (K // 2).
        height, width: size of the map in pixels.
        boxes: whether a tensor memory accelerator can read this map.
    """
    tilings: list[Tiling] = []
    # The whole map in one tile: a single column of wide patches, or up to four columns of 2 x 8.
    for patch in ((1, 16), (2, 8)) if 8 < width <= 16 else ((2, 8),):
        rows, columns = ceil_div(height, patch[0]), ceil_div(width, patch[1])
        across = power_of_two(columns)  # 1, 2 or 4 patches are read at once
        di, dj = _reach(reach, patch[0], rows), _reach(reach, patch[1], columns)
        if rows <= 16 and across <= 4 and _fits(di, dj, min(rows, 2 * di + 1) * across):
            first = Tiling(patch, (rows, across), (di, dj), (0, 0))
            if across == 1:
                # 16 channels fill a memory sector, but with 16 warps each thread has only 128 registers.
                sixteen = replace(first, channels=16, images=16 if rows <= 4 else 8)
                columnar = [sixteen, first] if di <= 6 else [first, sixteen]
                columnar.append(replace(first, resident=2, registers=128))
                tilings += [replace(tiling, boxes=True) for tiling in columnar] if boxes else []
                tilings += columnar
            else:
                tilings.append(first)
    # Tiles with a border of input patches.
    patch = (2, 8)
    rows, columns = ceil_div(height, patch[0]), ceil_div(width, patch[1])
    di, dj = _reach(reach, patch[0]), _reach(reach, patch[1])
    tall = 7 if rows % 7 == 0 else 8
    if _fits(di, dj, (2 * di + 1) * 4):
        tilings.append(Tiling(patch, (tall, 4 - 2 * dj), (di, dj), (di, dj), resident=4))
    # One column at a time.
    dj = min(dj, columns - 1)
    if rows <= 14:
        columnwise = Tiling(patch, (rows, 0), (min(di, rows - 1), dj), (0, 0))
    else:
        columnwise = Tiling(patch, (tall, 0), (di, dj), (di, 0))
    return (*tilings, replace(columnwise, resident=4), columnwise)


def _fits(di: int, dj: int, window: int) -> bool:
    """Whether conv_by_tile fits into the registers of a warp."""
    return dj <= 1 and (2 * di + 1) * (2 * dj + 1) <= BANDS and window <= WINDOW


@lru_cache(maxsize=4096)
def weight_grad_tilings(reach: int, height: int, width: int) -> tuple[Tiling, ...]:
    """Tilings for the gradient of the weight, the presumably fastest first: whole columns up to 16 patches high."""
    tilings = []
    for patch in ((1, 16), (2, 8)) if 8 < width <= 16 and height <= 16 and reach <= 6 else ((2, 8),):
        rows, columns = ceil_div(height, patch[0]), ceil_div(width, patch[1])
        dj = _reach(reach, patch[1], columns)
        if rows <= 16:
            tilings.append(Tiling(patch, (rows, 0), (_reach(reach, patch[0], rows), dj), (0, 0), images=16))
        else:
            di = _reach(reach, patch[0])
            tilings.append(Tiling(patch, (8, 0), (di, dj), (di, 0), images=16))
    in_pairs = [replace(tiling, resident=2) for tiling in tilings]
    # Two programs per multiprocessor hide each other's latency, if half the registers suffice.
    halved = [replace(tiling, resident=2, registers=128) for tiling in tilings]
    return (*halved, *tilings, *in_pairs) if width > 16 and reach <= 6 else (*tilings, *in_pairs)
