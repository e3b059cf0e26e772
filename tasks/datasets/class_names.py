"""Compares the class names of a model with those of its test data."""

from collections.abc import Iterable, Sequence

from tasks.datasets.errors import DataError


def refuse_unknown(own: Sequence[str], known: Sequence[str], place: str) -> None:
    """Raise a `DataError` for classes that a model does not know."""
    unknown = sorted(set(own) - set(known))
    if unknown:
        raise DataError(
            f"{place} has classes that the model does not know: {_listed(unknown)}; it knows {_listed(known)}"
        )


def not_there(own: Iterable[str], known: Sequence[str]) -> str:
    """Message that lists the model's classes that its test data lack; empty if there are none.

    >>> not_there(["cat"], ["cat", "cow", "dog"])
    '; there is nothing of cow, dog, which it knows'
    """
    there = set(own)
    absent = [name for name in known if name not in there]
    return f"; there is nothing of {_listed(absent)}, which it knows" if absent else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"
