"""Prepare several measurements at once, each in a process of its own, and then measure one at a time.

Compiling a network keeps one CPU core busy for a minute or two and the GPU idle; measuring needs the GPU alone.
"""

import itertools
import multiprocessing as mp
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

S = TypeVar("S")
R = TypeVar("R")


class Measure(Protocol[S, R]):
    """Prepares, calls ``my_turn``, which returns when no other process works, and measures. Importable by name."""

    def __call__(self, setting: S, my_turn: Callable[[], None]) -> R: ...


def _work(measure: Measure[S, R], setting: S, connection: Connection) -> None:
    waited = False

    def my_turn() -> None:
        nonlocal waited
        waited = True
        connection.send(None)
        connection.recv()

    try:
        answer: R | str = measure(setting, my_turn)
    except Exception as error:
        answer = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        if not waited:
            my_turn()
    connection.send(answer)


def in_turns(measure: Measure[S, R], settings: Sequence[S], jobs: int) -> Iterator[tuple[S, R | str]]:
    """Every setting with what ``measure`` returned, or with why it failed, ``jobs`` of them prepared at once."""
    context = mp.get_context("spawn")
    waiting = iter(settings)
    while wave := tuple(itertools.islice(waiting, jobs)):
        started: list[tuple[S, Any, Connection]] = []
        for setting in wave:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(measure, setting, theirs))
            process.start()
            theirs.close()
            started.append((setting, process, ours))
        prepared = [_receive(connection) for _, _, connection in started]
        for (setting, process, connection), ended in zip(started, prepared, strict=True):
            if ended is None:
                connection.send(None)
                ended = _receive(connection)
            process.join()
            connection.close()
            yield setting, ended


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        return "its process ended without an answer (out of memory?)"
