"""Whether the output of an action is based on real data or on embedded (synthetic) samples.

A synthetic sample imitates a dataset; numbers and figures made from it must not be mistaken for those of the dataset.
Data modules declare what they imitate, checkpoints store it, and readers of either register it here. The functions that
write figures, tables and other files add `note` themselves, so that no output can lack it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

FIELD = "drawn"  # column of a table, key of a JSON file, entry of an exported model


@dataclass
class Provenance:
    """The datasets that synthetic samples imitate, in one action.

    Args:
        data: imitated by the data that are read.
        models: imitated by the training data of its models, or of the runs that these were initialised from.
    """

    data: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """All datasets, without duplicates."""
        return list(dict.fromkeys([*self.data, *self.models]))

    def note(self) -> str | None:
        """The provenance note, to be shown with every result; None if all data are real.

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
    """Context with an empty record, discarded at the end; wraps every action."""
    with _within(Provenance()) as own:
        yield own


@contextmanager
def only(data: Iterable[str]) -> Iterator[Provenance]:
    """Within this context only `data` count as data read; other datasets count as those of its models."""
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
    """Register the datasets that the data read imitate; empty if the data are real."""
    if current := _CURRENT.get():
        current.data += [name for name in names if name not in current.data]


def model_read(names: Iterable[str]) -> None:
    """Register the datasets imitated by the synthetic samples that a model was trained on."""
    if current := _CURRENT.get():
        current.models += [name for name in names if name not in current.models]


def known() -> list[str]:
    """All registered datasets, as stored in a checkpoint."""
    current = _CURRENT.get()
    return current.names() if current else []


def note() -> str | None:
    """The provenance note of this action; None if all data are real."""
    current = _CURRENT.get()
    return current.note() if current else None
