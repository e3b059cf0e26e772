"""Class names of a model beside those of the data that it is tested on."""

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
    """The classes of a model that its test data lack, in words; empty where there are none.

    >>> not_there(["cat"], ["cat", "cow", "dog"])
    '; there is nothing of cow, dog, which it knows'
    """
    there = set(own)
    absent = [name for name in known if name not in there]
    return f"; there is nothing of {_listed(absent)}, which it knows" if absent else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"
