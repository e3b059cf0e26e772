"""What processes of a benchmark's test import: nothing heavy."""

from collections.abc import Callable


def fails_in_its_turn(setting: int, my_turn: Callable[[], None]) -> int:
    my_turn()
    return 1 // setting
