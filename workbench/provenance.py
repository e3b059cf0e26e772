"""Whether what an action writes comes of real data: the one place that knows.

A drawn sample imitates a data set, and a number or a picture made from one must never pass for one of that data set.
Data modules say what they imitate, checkpoints keep it, and whatever reads either says so here. Figures, tables and
other files ask for `note` where they are written, so a new one cannot forget it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

FIELD = "drawn"  # column of a table, key of a JSON file, entry of an exported model


@dataclass
class Provenance:
    """The data sets that drawn samples stand for, in one action.

    Args:
        data: of the data that are read.
        models: of those that its models were trained on, or on which the run that they began with was.
    """

    data: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([*self.data, *self.models]))

    def note(self) -> str | None:
        """What must stand beside every number; None: all data are real.

        >>> Provenance(["Speech Commands"]).note()
        'drawn sample, not Speech Commands'
        >>> Provenance(models=["ETTh1", "ESC-50"]).note()
        'model trained on drawn samples, not ETTh1, ESC-50'
        """
        for names, one, several in (
            (self.data, "drawn sample", "drawn samples"),
            (self.models, "model trained on a drawn sample", "model trained on drawn samples"),
        ):
            if names:
                return f"{several if len(names) > 1 else one}, not {', '.join(names)}"
        return None


_CURRENT: ContextVar[Provenance | None] = ContextVar("provenance", default=None)


@contextmanager
def provenance() -> Iterator[Provenance]:
    """Nothing is known when it begins, and forgotten when it ends: put around every action."""
    with _within(Provenance()) as own:
        yield own


@contextmanager
def only(data: Iterable[str]) -> Iterator[Provenance]:
    """Of several data sets in an action those that the block is about; the others have taught its model."""
    outer, own = _CURRENT.get() or Provenance(), list(data)
    others = [name for name in outer.names() if name not in own]
    with _within(Provenance(own, others)) as inner:
        yield inner


@contextmanager
def _within(own: Provenance) -> Iterator[Provenance]:
    token = _CURRENT.set(own)
    try:
        yield own
    finally:
        _CURRENT.reset(token)


def data_read(names: Iterable[str]) -> None:
    """Say what the data read are a drawn sample of; no names: they are real."""
    if current := _CURRENT.get():
        current.data += [name for name in names if name not in current.data]


def model_read(names: Iterable[str]) -> None:
    """Say what a model read was trained on a drawn sample of."""
    if current := _CURRENT.get():
        current.models += [name for name in names if name not in current.models]


def known() -> list[str]:
    """Every data set that a drawn sample stands for, as a checkpoint keeps it."""
    current = _CURRENT.get()
    return current.names() if current else []


def note() -> str | None:
    """What must stand beside every number of this action; None: all data are real."""
    current = _CURRENT.get()
    return current.note() if current else None
