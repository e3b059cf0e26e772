"""Integer rounding helpers. Triton's own (``cdiv``, ``next_power_of_2``) are slow outside of kernels."""

from __future__ import annotations


def ceil_div(size: int, block: int) -> int:
    """Number of blocks that cover ``size``."""
    return -(-size // block)


def round_up(size: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return ceil_div(size, unit) * unit


def power_of_two(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()
