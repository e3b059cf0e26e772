"""How a map is cut for the kernels of :mod:`backbone.kernels.toeplitz`: a small table, chosen by measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

#: What conv_by_tile can hold in registers: bands, and input patches alive at once.
BANDS, WINDOW = 27, 28


@dataclass(frozen=True)
class Tiling:
    """How one program cuts the map.

    Args:
        patch: PH x PW, 16 pixels.
        tile: TI x TJ output patches a program; ``conv_by_column`` and ``weight_grad`` take columns of TI, TJ 0.
        reach: DI x DJ patches that the kernel reaches to each side.
        halo: HI x HJ input patches around the tile.
        channels: channels a program, one a warp.
        images: images a program, a multiple of 8; of 16 for the gradient of the weight.
    """

    patch: tuple[int, int]
    tile: tuple[int, int]
    reach: tuple[int, int]
    halo: tuple[int, int]
    channels: int = 8
    images: int = 8

    @property
    def by_column(self) -> bool:
        return self.tile[1] == 0

    def tiles(self, height: int, width: int) -> int:
        """Programs that one block of channels and images takes."""
        rows = -(-height // (self.tile[0] * self.patch[0]))
        return rows * -(-width // (max(self.tile[1], 1) * self.patch[1]))


def _reach(reach_in_pixels: int, side: int, patches: int | None = None) -> int:
    """Patches of ``side`` pixels that the kernel reaches to one side; not beyond a map of ``patches`` patches."""
    reach = -(-reach_in_pixels // side)
    return reach if patches is None else min(reach, patches - 1)


@lru_cache(maxsize=4096)
def forward_tilings(reach: int, height: int, width: int) -> tuple[Tiling, ...]:
    """Tilings for the output and for the gradient of the input, the one expected to be the fastest first.

    Args:
        reach: pixels that the kernel reaches to each side, dilation * (K // 2).
        height, width: the map, in pixels.
    """
    tilings = []
    # The whole map in one tile: a single column of wide patches, or up to four columns of 2 x 8.
    for patch in ((1, 16), (2, 8)) if 8 < width <= 16 else ((2, 8),):
        rows, columns = -(-height // patch[0]), -(-width // patch[1])
        across = 1 << (columns - 1).bit_length()  # 1, 2 or 4 patches are read at once
        di, dj = _reach(reach, patch[0], rows), _reach(reach, patch[1], columns)
        if rows <= 16 and across <= 4 and _fits(di, dj, min(rows, 2 * di + 1) * across):
            # Sixteen channels fill a sector of memory, and sixteen warps leave each 128 registers.
            wide = patch == (1, 16) and di <= 6
            for channels in (16, 8) if wide else (8, 16):
                tilings.append(Tiling(patch, (rows, across), (di, dj), (0, 0), channels))
    # Tiles with a border of input patches.
    patch = (2, 8)
    rows, columns = -(-height // patch[0]), -(-width // patch[1])
    di, dj = _reach(reach, patch[0]), _reach(reach, patch[1])
    tall = 7 if rows % 7 == 0 else 8
    if _fits(di, dj, (2 * di + 1) * 4):
        tilings.append(Tiling(patch, (tall, 4 - 2 * dj), (di, dj), (di, dj)))
    # One column at a time.
    dj = min(dj, columns - 1)
    if rows <= 14:
        columnwise = Tiling(patch, (rows, 0), (min(di, rows - 1), dj), (0, 0))
    else:
        columnwise = Tiling(patch, (tall, 0), (di, dj), (di, 0))
    return (*tilings, columnwise, replace(columnwise, channels=16))


def _fits(di: int, dj: int, window: int) -> bool:
    """Whether conv_by_tile can do it with the registers of a warp."""
    return dj <= 1 and (2 * di + 1) * (2 * dj + 1) <= BANDS and window <= WINDOW


@lru_cache(maxsize=4096)
def weight_grad_tilings(reach: int, height: int, width: int) -> tuple[Tiling, ...]:
    """Tilings for the gradient of the weight, likewise: whole columns up to 16 patches high."""
    patch = (2, 8)
    rows, columns = -(-height // patch[0]), -(-width // patch[1])
    dj = _reach(reach, patch[1], columns)
    if rows <= 16:
        first = Tiling(patch, (rows, 0), (_reach(reach, patch[0], rows), dj), (0, 0), images=16)
    else:
        di = _reach(reach, patch[0])
        first = Tiling(patch, (8, 0), (di, dj), (di, 0), images=16)
    return first, replace(first, channels=16)
